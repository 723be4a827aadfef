//! Simulated devices on lines, through the whole agent to a FHIR server, compared value by value: what the journal holds is
//! what the devices showed, and what the server holds is what the journal says.

mod cable;

pub use cable::Cable;

use bedside_agent::ingest::serial::drivers::driver;
use bedside_agent::store::Store;
use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of the ready packs.
pub fn packs() -> PathBuf {
    crate::real::root().join("board-configs/mappings")
}

/// The pack of a driver; of a device that needs none, [`COUNTER`], the one that reads its lines.
pub fn pack_of(name: &str) -> &'static str {
    driver(name).map_or("heart-rate", |info| info.pack)
}

/// A device that says numbered lines of JSON.
pub const COUNTER: &str = "counter";

/// The instant that a FHIR text stands for.
pub fn instant(text: &str) -> Timestamp {
    let (whole, fraction) = text
        .trim_end_matches('Z')
        .split_once('.')
        .unwrap_or((text.trim_end_matches('Z'), "0"));
    let seconds = bedside_agent::ingest::serial::drivers::clock::parse(whole).expect("a time in UTC");
    let ticks = format!("{fraction:0<7}")
        .get(..7)
        .and_then(|digits| digits.parse::<i64>().ok());
    seconds.plus_ticks(ticks.expect("digits")).expect("in range")
}

/// A committed message.
pub struct Heard {
    /// Name of the source's driver.
    pub name: String,
    /// When it was received.
    pub wall: Timestamp,
    /// The message.
    pub text: Vec<u8>,
    /// The same, read.
    pub body: Value,
}

/// Everything that was committed to the store in `folder`, whose sources have the device ids `dev-DRIVER`; nobody else may
/// have it open.
///
/// # Panics
/// When the journal cannot be read whole.
pub fn journal(folder: &Path) -> Vec<Heard> {
    let (store, _) = Store::open(folder).expect("the store opens");
    let batch = store.read_from(1, usize::MAX).expect("the journal can be read");
    assert!(batch.damaged.is_empty(), "damaged: {:?}", batch.damaged);
    let heard = |stored: &bedside_agent::message::StoredMessage| {
        let message = &stored.message;
        let device = message.device_id.as_deref().expect("a device id");
        Heard {
            name: device.trim_start_matches("dev-").to_owned(),
            wall: message.stamp.wall,
            text: message.payload.bytes().to_vec(),
            body: serde_json::from_slice(message.payload.bytes()).expect("a body is JSON"),
        }
    };
    batch.messages.iter().map(heard).collect()
}

/// Readings by device and time, or by device and waveform.
pub type Readings = BTreeMap<(String, String), Vec<String>>;

fn number(value: &str) -> String {
    format!("{:.4}", value.parse::<f64>().expect("a number"))
}

fn mapping(name: &str) -> DeviceMapping {
    let file = packs().join(pack_of(name)).join("devicecontent.json");
    let text = std::fs::read_to_string(file).expect("the pack is there");
    DeviceMapping::load(&text).0.expect("the pack loads")
}

/// What the FHIR server has to hold, and the number of matches.
pub fn expected(journal: &[Heard]) -> (Readings, u64) {
    let mut mappings = BTreeMap::new();
    let (mut readings, mut matches) = (Readings::new(), 0);
    for heard in journal {
        let device = format!("dev-{}", heard.name);
        let envelope = Envelope {
            body: &heard.text,
            properties: &[],
            system_properties: &[
                ("iothub-connection-device-id", PropertyValue::Text(&device)),
                ("iothub-enqueuedtime", PropertyValue::Time(heard.wall)),
            ],
        };
        let mapping = mappings
            .entry(&heard.name)
            .or_insert_with(|| mapping(&heard.name));
        let normalized = mapping.normalize(&envelope.parse().expect("a body is JSON"));
        assert_eq!(normalized.errors, [], "{}", heard.name);
        matches += normalized.matches.len() as u64;
        for one in normalized.matches {
            let measurement = one.measurement;
            let key = if measurement.type_name.contains("waveform") {
                measurement.type_name.clone()
            } else {
                measurement.occurrence_time.to_seven_digits()
            };
            let values = measurement
                .properties
                .iter()
                .map(|property| number(&property.value));
            readings.entry((device.clone(), key)).or_default().extend(values);
        }
    }
    readings.values_mut().for_each(|values| values.sort_unstable());
    (readings, matches)
}

/// What Observations hold, whose devices have the ids `dev-DRIVER`.
pub fn held(observations: &[Value]) -> Readings {
    let mut readings = Readings::new();
    for observation in observations {
        let device = observation["device"]["reference"].as_str().expect("a device");
        let device = device
            .trim_start_matches("Device/")
            .trim_start_matches("device-")
            .to_owned();
        if let Some(data) = observation["valueSampledData"]["data"].as_str() {
            let codes = observation["code"]["text"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let values = data.split(' ').filter(|value| *value != "E").map(number);
            readings
                .entry((device, format!("{codes}_waveform")))
                .or_default()
                .extend(values);
            continue;
        }
        let time = observation["effectivePeriod"]["start"]
            .as_str()
            .or_else(|| observation["effectiveDateTime"].as_str())
            .expect("a time");
        let parts = observation["component"].as_array().cloned().unwrap_or_default();
        let values = parts
            .iter()
            .chain([observation])
            .filter_map(|part| part["valueQuantity"]["value"].as_number())
            .map(|value| number(&value.to_string()));
        let time = instant(time).to_seven_digits();
        readings.entry((device, time)).or_default().extend(values);
    }
    readings.values_mut().for_each(|values| values.sort_unstable());
    readings
}

/// Compares value by value.
///
/// # Panics
/// When the server misses a value, or has one that is in no message.
pub fn compare(expected: &Readings, held: &Readings) {
    let waveforms = |readings: &Readings| -> BTreeMap<String, usize> {
        let waves = readings.iter().filter(|((_, key), _)| key.contains("waveform"));
        waves.fold(BTreeMap::new(), |mut counts, ((device, _), values)| {
            *counts.entry(device.clone()).or_default() += values.len();
            counts
        })
    };
    let spots = |readings: &Readings| -> Readings {
        let spots = readings.iter().filter(|((_, key), _)| !key.contains("waveform"));
        spots.map(|(key, values)| (key.clone(), values.clone())).collect()
    };
    let (wanted, found) = (spots(expected), spots(held));
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(key, values)| found.get(*key) != Some(*values))
        .take(5)
        .collect();
    let strange: Vec<_> = found
        .keys()
        .filter(|key| !wanted.contains_key(*key))
        .take(5)
        .collect();
    assert!(
        missing.is_empty() && strange.is_empty(),
        "missing {missing:?}; strange {strange:?}"
    );
    // Of waveforms all samples of a device, as a bag: which value is whose is the mapping's affair.
    assert_eq!(waveforms(expected), waveforms(held));
    let bag = |readings: &Readings| -> BTreeMap<String, Vec<String>> {
        let mut bags: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ((device, key), values) in readings {
            if key.contains("waveform") {
                bags.entry(device.clone())
                    .or_default()
                    .extend(values.iter().cloned());
            }
        }
        bags.values_mut().for_each(|values| values.sort_unstable());
        bags
    };
    assert!(bag(expected) == bag(held), "samples of waveforms differ");
}
