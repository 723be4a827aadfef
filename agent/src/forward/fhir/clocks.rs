//! What the HL7 Personal Health Device guide asks for beside the values: the gateway that a reading came through, a record of
//! what the clock of its device showed (coincident timestamp), and the guide's identifier of the reading.
//!
//! Invariants:
//! 1. Ids and contents follow from the reading and what is stored of its device's clock: built again, they are the same.
//! 2. What a reading refers to is on the server before the reading is written, and is written once.
//! 3. A server that does not take them holds up no reading: it goes without the reference, and that is said.

use super::save::Item;
use super::server::{Down, Entry, Server};
use crate::config::ClockTrust;
use crate::forward::{Group, GroupReading};
use crate::timekeeping::device::AtReading;
use iomt_mapping::Timestamp;
use iomt_mapping::fhir::{Coding, Period, resource_id};
use iomt_mapping::phd::identifier::{
    OBSERVATION_SYSTEM, ObservationIdentifier, TIME_FORM, device_identifier, tick_part, time_part,
};
use iomt_mapping::phd::time::{ClockKind, MDC_SYSTEM, clock_code};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

/// Extension that names the gateway.
const GATEWAY: &str = "http://hl7.org/fhir/StructureDefinition/observation-gatewayDevice";
/// Extension that refers to a coincident timestamp.
const REFERENCE: &str = "http://hl7.org/fhir/uv/phd/StructureDefinition/CoincidentTimeStampReference";
/// Profile of coincident timestamps, and system of their identifiers.
const PROFILE: &str = "http://hl7.org/fhir/uv/phd/StructureDefinition/PhdCoincidentTimeStampObservation";
/// System of the identifiers of gateways.
const GATEWAY_SYSTEM: &str = "urn:bedside-agent:gateway";
/// Ticks of 100 ns in a day.
const DAY: i64 = 86_400 * 10_000_000;
/// Records that are known to be on the server; beyond them they are looked for again.
const KNOWN: usize = 4096;

/// Writes what readings refer to.
pub struct Clocks {
    gateway: String,
    /// Code of what keeps the clock of the gateway.
    kept_by: (&'static str, &'static str),
    patients: String,
    /// `Type/id` of what the server has, or does not take.
    known: HashSet<String>,
    has_gateway: bool,
    refused: HashSet<String>,
}

impl Clocks {
    /// For the gateway with this id; `base` is the address of the server.
    pub fn new(gateway: &str, base: &str, trust: ClockTrust) -> Clocks {
        Clocks {
            gateway: gateway.to_owned(),
            kept_by: match trust {
                ClockTrust::Ntp => ("532227", "MDC_TIME_SYNC_SNTPV4"),
                ClockTrust::Rtc | ClockTrust::Always => ("532224", "MDC_TIME_SYNC_NONE"),
            },
            patients: format!("{}/Patient", base.trim_end_matches('/')),
            known: HashSet::new(),
            has_gateway: false,
            refused: HashSet::new(),
        }
    }

    /// Gives each item what it refers to, after the server has that.
    ///
    /// # Errors
    /// When the server cannot be used.
    pub async fn prepare(
        &mut self,
        server: &mut Server,
        groups: &[Group],
        items: &mut [Item],
    ) -> Result<(), Down> {
        // A record refers to the gateway: that one first.
        let gateway = self.gateway_device();
        let path = path_of(&gateway);
        self.provide(server, vec![gateway]).await?;
        self.has_gateway = self.known.contains(&path);
        let mut wanted: BTreeMap<String, Value> = BTreeMap::new();
        let readings: Vec<Option<&GroupReading>> =
            items.iter().map(|item| reading_of(item, groups)).collect();
        let mut records = Vec::with_capacity(items.len());
        for (item, reading) in items.iter().zip(&readings) {
            let clock = reading.and_then(|reading| Some((reading, reading.clock.as_deref()?)));
            let record = clock
                .filter(|(_, clock)| clock.coincident)
                .and_then(|(reading, clock)| self.record(item, reading, clock));
            records.push(record.as_ref().map(path_of));
            wanted.extend(record.map(|record| (path_of(&record), record)));
        }
        self.provide(server, wanted.into_values().collect()).await?;
        for ((item, reading), record) in items.iter_mut().zip(&readings).zip(records) {
            let mut extension = vec![json!({"url": GATEWAY, "valueReference": self.gateway_reference()})];
            if let Some(record) = record.filter(|record| !self.refused.contains(record)) {
                extension.push(json!({"url": REFERENCE, "valueReference": {"reference": record}}));
            }
            let identifier = reading.and_then(|reading| self.identifier(item, reading));
            item.options.extension = extension;
            item.options.identifier = identifier.into_iter().collect();
        }
        Ok(())
    }

    /// Writes what the server does not have.
    async fn provide(&mut self, server: &mut Server, resources: Vec<Value>) -> Result<(), Down> {
        let is_open = |path: &String| !self.known.contains(path) && !self.refused.contains(path);
        let open: Vec<(String, Value)> = resources
            .into_iter()
            .map(|resource| (path_of(&resource), resource))
            .filter(|(path, _)| is_open(path))
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        if self.known.len() + open.len() > KNOWN {
            self.known.clear();
        }
        let reads: Vec<Entry> = open.iter().map(|(path, _)| Entry::get(path.clone())).collect();
        let exchange = server.send(&reads).await;
        let mut writes = Vec::new();
        let mut unanswered = false;
        for ((path, resource), answer) in open.into_iter().zip(exchange.answers) {
            match answer {
                Some(answer) if answer.is_success() => {
                    if is_older(answer.resource.as_ref(), &resource) {
                        writes.push((path, resource, answer.version));
                    } else {
                        self.known.insert(path);
                    }
                }
                Some(answer) if answer.status == 404 => writes.push((path, resource, None)),
                Some(answer) if !answer.is_passing() => self.refuse(path, &answer.text()),
                _ => unanswered = true,
            }
        }
        if let Some(down) = exchange.down {
            return Err(down);
        }
        let entries: Vec<Entry> = writes
            .iter()
            .map(|(path, resource, version)| Entry::put(path.clone(), resource.clone(), version.clone()))
            .collect();
        let exchange = server.send(&entries).await;
        for ((path, ..), answer) in writes.into_iter().zip(exchange.answers) {
            match answer {
                Some(answer) if answer.is_success() => drop(self.known.insert(path)),
                // Somebody else was quicker: it is looked at again.
                Some(answer) if !answer.is_passing() && !matches!(answer.status, 409 | 412) => {
                    self.refuse(path, &answer.text());
                }
                _ => unanswered = true,
            }
        }
        match exchange.down {
            Some(down) => Err(down),
            None if unanswered => Err(Down::new(
                "FhirServiceException",
                "the server cannot take the gateway's Device or the record of a device's clock now; it is tried again",
            )),
            None => Ok(()),
        }
    }

    fn refuse(&mut self, path: String, why: &str) {
        if self.refused.len() >= KNOWN {
            self.refused.clear();
        }
        if self.refused.is_empty() {
            tracing::warn!(
                "the server does not take {path} ({why}): readings are written without a reference to it"
            );
        }
        self.refused.insert(path);
    }

    fn gateway_id(&self) -> String {
        resource_id(GATEWAY_SYSTEM, &self.gateway)
    }

    /// The gateway, as the guide's PhgDevice.
    fn gateway_device(&self) -> Value {
        let mut identifier = vec![json!({"system": GATEWAY_SYSTEM, "value": self.gateway})];
        if let Some((system, value)) = device_identifier(&self.gateway) {
            identifier.push(json!({"system": system, "value": value}));
        }
        json!({
            "resourceType": "Device",
            "id": self.gateway_id(),
            "identifier": identifier,
            "deviceName": [{"name": self.gateway, "type": "user-friendly-name"}],
            "type": {"coding": [{"system": MDC_SYSTEM, "code": "531981", "display": "MDC_MOC_VMS_MDS_AHD"}]},
            "version": [{"value": env!("CARGO_PKG_VERSION")}],
        })
    }

    /// Literal where the server has the Device, else by its identifier.
    fn gateway_reference(&self) -> Value {
        match self.has_gateway {
            true => json!({"reference": format!("Device/{}", self.gateway_id())}),
            false => json!({"identifier": {"system": GATEWAY_SYSTEM, "value": self.gateway}}),
        }
    }

    /// What the clock of the device showed at a time of the gateway: when that was measured, or for the day of the reading
    /// where the operator says it for all times.
    fn record(&self, item: &Item, reading: &GroupReading, clock: &AtReading) -> Option<Value> {
        let taken = reading.measurement.occurrence_time;
        let seen = clock.seen.unwrap_or(taken.floor_to(DAY).ticks());
        let seen = Timestamp::from_ticks(seen)?;
        let shown = seen.plus_ticks(clock.correction.checked_neg()?)?;
        let value = format!(
            "{}.{}.{}.{}",
            self.gateway,
            item.ids.device,
            seen.ticks(),
            clock.correction
        );
        let (code, display) = clock_code(clock.kind, false);
        let mut record = json!({
            "resourceType": "Observation",
            "id": resource_id(PROFILE, &value),
            "meta": {"profile": [PROFILE]},
            "identifier": [{"system": PROFILE, "value": value}],
            "status": "final",
            "code": {"coding": [{"system": MDC_SYSTEM, "code": code, "display": display}]},
            "subject": {"reference": format!("Device/{}", item.ids.device)},
            "device": self.gateway_reference(),
            "component": [{
                "code": {"coding": [{"system": MDC_SYSTEM, "code": "68220", "display": "MDC_TIME_SYNC_PROTOCOL"}]},
                "valueCodeableConcept": {"coding": [
                    {"system": MDC_SYSTEM, "code": self.kept_by.0, "display": self.kept_by.1}]},
            }],
        });
        let fields = record.as_object_mut()?;
        if !clock.synchronized {
            // Absent where the clock of the device is the better one.
            fields.insert("effectiveDateTime".to_owned(), json!(seen.to_string()));
        }
        match clock.kind {
            // A counter counts from 0, which is written as 1970 all the way here.
            ClockKind::Tick => fields.insert(
                "valueQuantity".to_owned(),
                json!({"value": shown.ticks() / 10, "unit": "us", "system": "http://unitsofmeasure.org", "code": "us"}),
            ),
            ClockKind::Utc | ClockKind::Local => {
                fields.insert("valueDateTime".to_owned(), json!(shown.to_string()))
            }
        };
        Some(record)
    }

    /// The guide's identifier of a single reading: by the time that its device wrote, whatever that is corrected by.
    fn identifier(&self, item: &Item, reading: &GroupReading) -> Option<Value> {
        if item.template()?.period() != Period::Single {
            return None;
        }
        let clock = reading.clock.as_deref();
        let shown = clock.map_or(reading.measurement.occurrence_time, |clock| clock.shown);
        if clock.is_none() && shown == reading.received.wall {
            // The time of reception is no time of the device.
            return None;
        }
        let time = match clock.map(|clock| clock.kind) {
            Some(ClockKind::Tick) => tick_part(u64::try_from(shown.ticks() / 10_000).ok()?, 3),
            _ => time_part(shown, decimals(shown), None),
        };
        let device = device_identifier(&reading.measurement.device_id).map_or_else(
            || reading.measurement.device_id.clone(),
            |(_, value)| value.replace('-', ""),
        );
        let template = item.template()?;
        let of_mdc = |coding: &&Coding| coding.system.as_deref() == Some(MDC_SYSTEM);
        let coded = template.codes.iter().find(of_mdc);
        let mdc_code = coded
            .and_then(|coding| coding.code.as_deref())
            .or(template.options.mdc_code.as_deref());
        let value = ObservationIdentifier {
            device: &device,
            patient: &item.ids.patient,
            patient_system: &self.patients,
            type_code: mdc_code.unwrap_or(&item.type_name),
            time: &time,
            duration: None,
            supplemental: &[],
        }
        .value();
        Some(json!({"type": {"text": TIME_FORM}, "system": OBSERVATION_SYSTEM, "value": value}))
    }
}

/// Whether the gateway's Device there is of another version of the program.
fn is_older(there: Option<&Value>, ours: &Value) -> bool {
    let version = |resource: &Value| resource.pointer("/version/0/value").cloned();
    version(ours).is_some_and(|ours| there.is_some_and(|there| version(there) != Some(ours)))
}

/// As many decimals as say it exactly: whole seconds, milliseconds, or all.
fn decimals(time: Timestamp) -> u32 {
    match time.ticks() {
        ticks if ticks % 10_000_000 == 0 => 0,
        ticks if ticks % 10_000 == 0 => 3,
        _ => 7,
    }
}

/// The first reading of an Observation.
fn reading_of<'g>(item: &Item, groups: &'g [Group]) -> Option<&'g GroupReading> {
    let account = item.group.readings.first()?;
    let (group, reading) = item.places.get(account.reading)?;
    groups.get(*group)?.readings.get(*reading)
}

fn path_of(resource: &Value) -> String {
    let text = |name: &str| resource.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("resourceType"), text("id"))
}
