//! The fault that the proof of the right patient has to notice: whose a device is, is looked up once and believed for two
//! hours since it was used last, whatever time a reading is of. Only with [`Sabotage::CacheTwoHours`].

use super::{Named, Resolved, Resolver};
use crate::clock;
use crate::forward::fhir::server::{Down, Server};
use crate::sabotage::{Sabotage, is_on};
use std::collections::HashMap;
use std::sync::Arc;

const TWO_HOURS_US: u64 = 2 * 3_600_000_000;

/// Devices, whose they are said to be, and until when that is believed.
pub type Believed = HashMap<Arc<str>, (Resolved, u64)>;

impl Resolver {
    /// Resolves everything that a batch names. What is missing in the result could not be asked: the server is down.
    pub async fn resolve(
        &mut self,
        server: &mut Server,
        named: &[Named],
    ) -> (HashMap<Named, Resolved>, Option<Down>) {
        if !is_on(Sabotage::CacheTwoHours) {
            return self.resolve_now(server, named).await;
        }
        let until = clock::monotonic_us() + TWO_HOURS_US;
        self.believed
            .retain(|_, (_, until)| *until > clock::monotonic_us());
        let mut resolved = HashMap::new();
        let mut open = Vec::new();
        for name in named {
            match self.believed.get_mut(&name.device) {
                Some((whose, believed_until)) => {
                    *believed_until = until;
                    resolved.insert(name.clone(), whose.clone());
                }
                None => open.push(name.clone()),
            }
        }
        let (found, down) = self.resolve_now(server, &open).await;
        for (name, whose) in &found {
            if matches!(whose, Resolved::Ids(_)) {
                self.believed
                    .insert(Arc::clone(&name.device), (whose.clone(), until));
            }
        }
        resolved.extend(found);
        (resolved, down)
    }
}
