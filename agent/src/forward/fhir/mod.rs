//! A FHIR R4 server as a destination: readings become Observations there, each exactly once, of the right patient.
//!
//! A batch goes through four steps: who the readings belong to ([`identity`]), which Observations they become (the
//! mapping engine), what the server holds of them and what has to be written ([`save`]), and how that is packed into
//! requests ([`server`]). Every reading gets its fate; a failing entry never stops another.

mod answer;
mod clocks;
mod identity;
mod items;
mod recent;
mod retract;
mod save;
pub(crate) mod sent_memory;
mod server;

use super::auth::{AuthError, Authorizer};
use super::http::Http;
use super::{Delivery, Fate, Group, Link};
use crate::associations::{Book, Ticks};
use crate::config::{ClockTrust, FhirConfig, IdentityConfig};
use crate::telemetry::errors::ErrorRecord;
use clocks::Clocks;
use identity::Resolver;
use iomt_mapping::fhir::IdentityForm;
use save::Saver;
use server::Server;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

pub use retract::{Held, Restored, Retracted, Search, Trouble, Wrong};

// Observations as events are made of the same parts.
pub(super) use identity::{Named, Resolved, nobody_then};
pub(super) use items::{Identities, give_fates, items_of};
pub(super) use recent::{Recent, Stored};
pub(super) use save::{Item, Outcome};
pub(super) use sent_memory::expires as sent_until;
pub(super) use server::Down;

/// Requests to a server that may be under way at a time, each on a thread of its own.
pub const REQUESTS: usize = 4;

/// What earlier deliveries have left in the store for later readings of the same period.
pub trait SentPeriods {
    /// The stored memories of these Observations, by their id; those that there is none of are absent.
    fn read(&self, observations: &[String]) -> impl Future<Output = HashMap<String, Vec<u8>>>;
}

impl SentPeriods for HashMap<String, Vec<u8>> {
    async fn read(&self, observations: &[String]) -> HashMap<String, Vec<u8>> {
        observations
            .iter()
            .filter_map(|id| Some((id.clone(), self.get(id)?.clone())))
            .collect()
    }
}

/// A FHIR server.
pub struct FhirDestination {
    server: Server,
    resolver: Resolver,
    saver: Saver,
    identity_form: IdentityForm,
    /// What the Personal Health Device guide asks for, where the site wants it.
    clocks: Option<Clocks>,
}

impl FhirDestination {
    /// A destination; `http` reaches the server, `direct` the managed identity of Azure, which no proxy serves.
    ///
    /// # Errors
    /// When address or authentication cannot be what the configuration says.
    pub fn new(
        config: &FhirConfig,
        trust: ClockTrust,
        http: Http,
        direct: Http,
    ) -> Result<FhirDestination, ErrorRecord> {
        let authorizer =
            Authorizer::new(&config.auth, &config.url, http.clone(), direct).map_err(|error| {
                let name = match error {
                    AuthError::NoManagedIdentity(_) => "ManagedIdentityCredentialNotFound",
                    _ => "InvalidFhirServiceException",
                };
                ErrorRecord::new(name, error.text())
            })?;
        let mut resolver = Resolver::new(config.resolution, config.device_identifier_system.clone(), trust);
        if config.device_use_statements {
            resolver.ask_statements();
        }
        Ok(FhirDestination {
            server: Server::new(&config.url, http, authorizer, trust),
            resolver,
            saver: Saver::new(config.index_lag * 1_000_000, config.correction_ticks()),
            identity_form: match config.identity {
                IdentityConfig::Agent => IdentityForm::Agent,
                IdentityConfig::Medtech => IdentityForm::Medtech,
            },
            clocks: None,
        })
    }

    /// Writes coincident timestamps, the gateway and identifiers as the Personal Health Device guide has them.
    pub fn write_clocks(&mut self, gateway: &str, base: &str, trust: ClockTrust) {
        self.clocks = Some(Clocks::new(gateway, base, trust));
    }

    /// Uses this book of associations, in which this destination has that number, in place of one of its own.
    pub fn share_associations(&mut self, book: Rc<RefCell<Book>>, destination: u32) {
        self.resolver.share(book, destination);
    }

    /// Observations that the server likes to be given at a time.
    pub fn appetite(&self) -> usize {
        self.server.appetite()
    }

    /// Delivers the groups as far as the server lets us; every reading gets its fate.
    pub async fn deliver(&mut self, groups: Vec<Group>, sent: &impl SentPeriods) -> Delivery {
        let mut delivery = Delivery {
            fates: groups
                .iter()
                .map(|group| vec![Fate::Retry; group.readings.len()])
                .collect(),
            sent_periods: Vec::new(),
            link: Link::Up,
            written: 0,
        };
        let Some(mut items) = self.observations(&groups, &mut delivery).await else {
            return delivery;
        };
        if let Some(clocks) = &mut self.clocks
            && let Err(down) = clocks.prepare(&mut self.server, &groups, &mut items).await
        {
            delivery.link = down.link();
            return delivery;
        }
        let saved = self.saver.save(&mut self.server, items, sent).await;
        for (item, outcome) in saved.outcomes {
            give_fates(&item, &outcome, &mut delivery.fates);
        }
        delivery.sent_periods = saved.sent_periods;
        delivery.written = saved.written;
        if let Some(down) = saved.down {
            delivery.link = down.link();
        }
        delivery
    }

    /// The Observations that the groups become, with whose they are as this server knows it. Readings that cannot become
    /// one get their fate in `delivery`; none when the server is down.
    pub(super) async fn observations(
        &mut self,
        groups: &[Group],
        delivery: &mut Delivery,
    ) -> Option<Vec<Item>> {
        let mut identities = OnServer {
            server: &mut self.server,
            resolver: &mut self.resolver,
        };
        items_of(&mut identities, self.identity_form, groups, delivery).await
    }
}

/// Identities as the server has them.
struct OnServer<'a> {
    server: &'a mut Server,
    resolver: &'a mut Resolver,
}

impl Identities for OnServer<'_> {
    fn instant(&self, device: &str, patient: Option<&Arc<str>>, taken: Ticks) -> Ticks {
        self.resolver.instant(device, patient, taken)
    }

    async fn resolve(&mut self, named: &[Named]) -> (HashMap<Named, Resolved>, Option<Down>) {
        self.resolver.resolve(self.server, named).await
    }
}

#[cfg(test)]
mod chaos;
#[cfg(test)]
pub(super) mod double;
#[cfg(test)]
mod entries;
#[cfg(test)]
mod moves;
#[cfg(test)]
pub(super) mod tests;
#[cfg(test)]
mod vectors;
