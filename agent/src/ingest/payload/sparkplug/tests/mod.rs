//! Decoding and births of Sparkplug B, with messages that the same structures write.

mod names;
mod refused;
mod values;

use super::births::{Births, Observed};
use super::*;
use crate::ingest::payload::decode_parts;
use proto::{
    DataSet, DataSetValue, Metric, Parameter, Payload, PropertySet, PropertySetList, PropertyValue, Row,
    Template,
};

/// 2024-03-05T14:30:00Z.
const TIME: u64 = 1_709_649_000_000;

fn bytes(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

fn metric(name: &str, datatype: u32, set: impl Fn(&mut Metric)) -> Metric {
    let mut metric = Metric {
        name: (!name.is_empty()).then(|| name.to_owned()),
        datatype: (datatype > 0).then_some(datatype),
        ..Metric::default()
    };
    set(&mut metric);
    metric
}

/// A metric of a birth.
fn born(name: &str, alias: u64) -> Metric {
    metric(name, 3, |m| (m.alias, m.int_value) = (Some(alias), Some(72)))
}

/// A metric of data, by its alias.
fn aliased(alias: u64, value: u32) -> Metric {
    metric("", 0, |m| (m.alias, m.int_value) = (Some(alias), Some(value)))
}

fn payload(seq: u64, metrics: &[Metric]) -> Bytes {
    bytes(&Payload {
        timestamp: Some(TIME),
        metrics: metrics.iter().map(bytes).collect(),
        seq: Some(seq),
        ..Payload::default()
    })
}

fn topic(text: &str) -> Topic<'_> {
    Topic::read(text).unwrap()
}

/// Body and refusals of a message.
fn decoded(births: &mut Births, on: &str, payload: &Bytes) -> (Value, Vec<String>) {
    let observed = births.observe(&topic(on), payload);
    let names = observed.names.map(|names| serde_json::to_string(&names).unwrap());
    let mut body = decode_parts(Some("sparkplug-b"), names.as_deref(), on, payload).unwrap();
    let failed = body.take_failed().into_iter();
    let failed = failed
        .map(|error| format!("{}: {}", error.name, error.text))
        .collect();
    (serde_json::from_slice(body.bytes()).unwrap(), failed)
}

/// `name=value` of all metrics, and the refusals.
fn readings(births: &mut Births, on: &str, payload: &Bytes) -> Vec<String> {
    let (body, failed) = decoded(births, on, payload);
    let metrics = body["metrics"].as_array().unwrap().iter();
    let shown = metrics.map(|metric| format!("{}={}", metric["name"].as_str().unwrap(), metric["value"]));
    shown.chain(failed).collect()
}

const DBIRTH: &str = "spBv1.0/ward3/DBIRTH/gw7/oxi7";
const DDATA: &str = "spBv1.0/ward3/DDATA/gw7/oxi7";
const DDEATH: &str = "spBv1.0/ward3/DDEATH/gw7/oxi7";
const NBIRTH: &str = "spBv1.0/ward3/NBIRTH/gw7";
const NDATA: &str = "spBv1.0/ward3/NDATA/gw7";
const NDEATH: &str = "spBv1.0/ward3/NDEATH/gw7";

fn session(number: u64) -> Metric {
    metric("bdSeq", 8, |m| m.long_value = Some(number))
}
