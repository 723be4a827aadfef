//! One look at a device outside of a batch, for corrections.

use super::decide::of_entry;
use super::{Found, Key, Kind, Known, Named, Resolver, id_of};
use crate::associations::{Answer as Whose, Ticks};
use crate::forward::fhir::server::{Down, Server};
use std::sync::Arc;

/// What a look told.
pub struct Looked {
    /// Id of the Device; none when the server has none.
    pub device: Option<String>,
    known: Known,
}

impl Resolver {
    /// Looks at a device and at everybody whom the operator entered for it within a stretch of time. `None` when some of
    /// it cannot be told now.
    pub async fn look(
        &mut self,
        server: &mut Server,
        device: &Arc<str>,
        from: Ticks,
        to: Ticks,
    ) -> Result<Option<Looked>, Down> {
        let within = |turn: &Ticks| from < *turn && *turn < to;
        let instants = std::iter::once(from).chain(self.turns(device).into_iter().filter(within));
        let named: Vec<Named> = instants
            .map(|instant| Named {
                device: Arc::clone(device),
                patient: None,
                encounter: None,
                instant: instant.min(Ticks::MAX - 1),
            })
            .collect();
        let (known, down) = self.look_up(server, &named).await;
        if let Some(down) = down {
            return Err(down);
        }
        let key: Key = (Kind::Device, Arc::clone(device));
        let failed = known
            .values()
            .any(|found| matches!(found, Found::Failed(_) | Found::Many));
        let id = match known.get(&key) {
            _ if failed => return Ok(None),
            Some(Found::One(resource)) => id_of(resource).map(str::to_owned),
            // Registered under another identifier now: what was written still names the Device that was.
            _ => self.times.device_id(device),
        };
        Ok(Some(Looked { device: id, known }))
    }

    /// Instants at which it may change whose a device is.
    pub fn turns(&self, device: &Arc<str>) -> Vec<Ticks> {
        self.times.turns(device)
    }

    /// Ids of the Patient, and of the Encounter where the operator named one, at an instant.
    pub fn whose(
        &self,
        device: &Arc<str>,
        instant: Ticks,
        looked: &Looked,
    ) -> Option<(String, Option<String>)> {
        let Whose::Patient {
            patient, encounter, ..
        } = self.times.at(device, instant)
        else {
            return None;
        };
        let encounter = encounter.map(|who| of_entry(Kind::Encounter, &who, &looked.known));
        Some((
            of_entry(Kind::Patient, &patient, &looked.known).ok()?,
            encounter.transpose().ok()?,
        ))
    }
}
