//! Sparkplug B (Eclipse Sparkplug 3.0): topics `spBv1.0/GROUP/TYPE/EDGE_NODE[/DEVICE]`, payloads in Protocol Buffers.
//!
//! The body that mappings see, made anew of the journal's bytes whenever a message is normalized:
//!
//! ```json
//! { "kind": "sparkplug-b", "messageType": "DDATA", "group": "ward3", "edgeNode": "gw7", "device": "oxi7",
//!   "time": "2024-03-05T14:30:01Z", "seq": 1,
//!   "metrics": [ { "name": "hr", "type": "Int32", "value": 73, "time": "2024-03-05T14:30:01Z",
//!                  "historical": true, "properties": { "engUnit": "bpm" } } ] }
//! ```
//!
//! `device` is the edge node where the message is of the node itself. `value` is null where the sender has none (`is_null`, no
//! value, not-a-number). `time` of a metric is its own, else that of the payload. `historical` and `transient` are there when
//! true. 64-bit integers keep all digits; a DateTime is ISO 8601; bytes are base64; arrays are lists; a data set is `{columns,
//! types, rows}` with an object for each row; a template is `{templateRef, version, metrics, parameters}`. Commands have
//! `commands` in place of `metrics`, so that no mapping takes a set point for a reading. What says that someone left or came is
//! in `available`.
//!
//! Data messages name metrics by the alias of their last birth. Which birth that is only the intake knows ([`births`]): it puts
//! the names that a message needs beside it into the journal, so that the message means the same tomorrow, after a restart, and
//! in `explain`. A metric whose name is in doubt is an error of its own; the others go on.

pub mod births;
mod proto;
pub(in crate::ingest::payload) mod value;

#[cfg(test)]
mod tests;

use super::{Decoded, Unreadable};
use crate::telemetry::errors::ErrorRecord;
use base64::prelude::{BASE64_STANDARD, Engine};
use births::{Cause, Names};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use value::Fields;

/// Metrics, cells, parameters and properties of one message.
const MOST_VALUES: usize = 20_000;

/// Templates within templates.
const DEEPEST: usize = 8;

/// What a message says, by its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NBIRTH, DBIRTH.
    Birth,
    /// NDATA, DDATA.
    Data,
    /// NDEATH, DDEATH.
    Death,
    /// NCMD, DCMD.
    Command,
}

/// A topic of Sparkplug B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic<'t> {
    /// What the message says.
    pub kind: Kind,
    /// The third level as it is written.
    pub message_type: &'t str,
    /// Group.
    pub group: &'t str,
    /// Edge node.
    pub node: &'t str,
    /// Device; none for messages of the node itself.
    pub device: Option<&'t str>,
}

impl<'t> Topic<'t> {
    /// Reads a topic; none when it is no node's or device's (a host's STATE, or nothing of Sparkplug).
    pub fn read(topic: &'t str) -> Option<Topic<'t>> {
        let mut levels = topic.split('/');
        if levels.next() != Some("spBv1.0") {
            return None;
        }
        let (group, message_type, node) = (levels.next()?, levels.next()?, levels.next()?);
        let device = levels.next();
        let (of, kind) = message_type.split_at_checked(1)?;
        let kind = match kind {
            "BIRTH" => Kind::Birth,
            "DATA" => Kind::Data,
            "DEATH" => Kind::Death,
            "CMD" => Kind::Command,
            _ => return None,
        };
        let fits = matches!((of, device), ("N", None) | ("D", Some(_)));
        (fits && levels.next().is_none()).then_some(Topic {
            kind,
            message_type,
            group,
            node,
            device,
        })
    }
}

/// What is left of the values that a message may hold.
struct Budget(usize);

impl Budget {
    fn take(&mut self, count: usize) -> Result<(), Unreadable> {
        let too_many = || {
            Unreadable::new(format!(
                "the Sparkplug B message holds more than {MOST_VALUES} values"
            ))
        };
        self.0 = self.0.checked_sub(count).ok_or_else(too_many)?;
        Ok(())
    }
}

fn read<M: prost::Message + Default>(bytes: &Bytes) -> Result<M, Unreadable> {
    M::decode(bytes.clone())
        .map_err(|error| Unreadable::new(format!("it is no Sparkplug B message: {error}")))
}

/// The body of a message; `names` are those that came beside it.
pub(super) fn decode(topic: &Topic<'_>, payload: &Bytes, names: &Names) -> Result<Decoded, Unreadable> {
    let payload: proto::Payload = read(payload)?;
    let mut decoder = Decoder {
        names,
        birth: topic.kind == Kind::Birth,
        budget: Budget(MOST_VALUES),
        failed: Vec::new(),
    };
    let time = match payload.timestamp {
        Some(milliseconds) => Some(
            value::time(milliseconds)
                .ok_or_else(|| Unreadable::new("its timestamp is beyond the year 9999"))?,
        ),
        None => None,
    };
    let metrics = decoder.metrics(&payload.metrics, time.as_deref(), 0)?;
    let mut body = json!({
        "kind": "sparkplug-b",
        "messageType": topic.message_type,
        "group": topic.group,
        "edgeNode": topic.node,
        "device": topic.device.unwrap_or(topic.node),
    });
    if let Some(body) = body.as_object_mut() {
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        };
        put("time", time.map(Value::from));
        put("seq", payload.seq.map(Value::from));
        put("uuid", payload.uuid.map(Value::from));
        put(
            "body",
            payload.body.map(|bytes| BASE64_STANDARD.encode(bytes).into()),
        );
        match topic.kind {
            Kind::Birth => put("available", Some(true.into())),
            Kind::Death => put("available", Some(false.into())),
            Kind::Data | Kind::Command => {}
        }
        let metrics_name = if topic.kind == Kind::Command {
            "commands"
        } else {
            "metrics"
        };
        put(metrics_name, Some(metrics.into()));
    }
    Ok(Decoded {
        body: body.to_string().into_bytes(),
        failed: decoder.failed,
    })
}

struct Decoder<'n> {
    names: &'n Names,
    birth: bool,
    budget: Budget,
    failed: Vec<ErrorRecord>,
}

impl Decoder<'_> {
    fn metrics(
        &mut self,
        metrics: &[Bytes],
        time: Option<&str>,
        depth: usize,
    ) -> Result<Vec<Value>, Unreadable> {
        self.budget.take(metrics.len())?;
        if depth > DEEPEST {
            return Err(Unreadable::new(format!(
                "templates stand more than {DEEPEST} deep within templates"
            )));
        }
        let mut values = Vec::with_capacity(metrics.len());
        for (number, metric) in metrics.iter().enumerate() {
            let metric: proto::Metric = read(metric)?;
            match self.metric(metric, time, depth)? {
                Ok(value) => values.push(value),
                Err((error, why)) => {
                    let text = format!("metric {} of the Sparkplug B message: {why}", number + 1);
                    self.failed.push(ErrorRecord::new(error, text));
                }
            }
        }
        Ok(values)
    }

    /// A metric as JSON, or why it is refused.
    fn metric(
        &mut self,
        metric: proto::Metric,
        time: Option<&str>,
        depth: usize,
    ) -> Result<Result<Value, (&'static str, String)>, Unreadable> {
        let refused = |why: &str| Ok(Err(("InvalidDataFormatException", why.to_owned())));
        let own_name = metric.name.filter(|name| !name.is_empty());
        let (name, declared) = match (own_name, metric.alias) {
            (Some(name), _) => (name, None),
            // Within a template names are of the template.
            (None, Some(alias)) if !self.birth => match self.names.of(alias) {
                Ok((name, declared)) => (name.to_owned(), declared),
                Err(cause) => return Ok(Err(("AliasNotDefinedException", unknown(alias, cause)))),
            },
            (None, Some(_)) => return refused("a birth must name its metrics, not only number them"),
            (None, None) => return refused("it has neither name nor alias"),
        };
        let datatype = match (metric.datatype.filter(|datatype| *datatype != 0), declared) {
            (Some(own), Some(birth)) if own != birth => {
                let text = "its type is not that of the birth, so the alias may mean another metric now; publish a new birth";
                return Ok(Err(("AliasNotDefinedException", text.to_owned())));
            }
            (own, birth) => own.or(birth),
        };
        let fields = Fields {
            int: metric.int_value,
            long: metric.long_value,
            float: metric.float_value,
            double: metric.double_value,
            boolean: metric.boolean_value,
            string: metric.string_value,
            bytes: metric.bytes_value,
        };
        let is_null = metric.is_null == Some(true);
        let value = match (datatype, &metric.dataset_value, &metric.template_value) {
            _ if is_null => Ok(Value::Null),
            (Some(16) | None, Some(data_set), _) => self.data_set(data_set)?,
            (Some(19) | None, _, Some(template)) => Ok(self.template(template, time, depth)?),
            (Some(16 | 19), None, None) => Ok(Value::Null),
            (_, Some(_), _) | (_, _, Some(_)) => Err("the value is not in the field that its type has"),
            (Some(datatype), None, None) => value::json(datatype, &fields),
            (None, None, None) => value::undeclared(&fields),
        };
        let value = match value {
            Ok(value) => value,
            Err(why) => return refused(why),
        };
        let own_time = match metric.timestamp.map(value::time) {
            Some(None) => return refused("its timestamp is beyond the year 9999"),
            Some(time) => time,
            None => time.map(str::to_owned),
        };
        let mut members = Map::new();
        members.insert("name".to_owned(), name.into());
        if let Some(name) = datatype.and_then(value::type_name) {
            members.insert("type".to_owned(), name.into());
        }
        members.insert("value".to_owned(), value);
        if let Some(time) = own_time {
            members.insert("time".to_owned(), time.into());
        }
        for (name, flag) in [
            ("historical", metric.is_historical),
            ("transient", metric.is_transient),
        ] {
            if flag == Some(true) {
                members.insert(name.to_owned(), true.into());
            }
        }
        if let Some(properties) = &metric.properties {
            members.insert("properties".to_owned(), self.properties(properties, 0)?);
        }
        Ok(Ok(Value::Object(members)))
    }

    fn data_set(&mut self, bytes: &Bytes) -> Result<Result<Value, &'static str>, Unreadable> {
        let set: proto::DataSet = read(bytes)?;
        self.budget.take(set.columns.len())?;
        let count = set.columns.len();
        if set.types.len() != count || set.number_of_columns.is_some_and(|said| said != count as u64) {
            return Ok(Err("the data set has not as many types as columns"));
        }
        let mut rows = Vec::new();
        for row in &set.rows {
            let row: proto::Row = read(row)?;
            self.budget.take(row.elements.len() + 1)?;
            if row.elements.len() != count {
                return Ok(Err(
                    "a row of the data set has not as many cells as there are columns",
                ));
            }
            let mut cells = Map::new();
            for ((cell, column), datatype) in row.elements.iter().zip(&set.columns).zip(&set.types) {
                let cell: proto::DataSetValue = read(cell)?;
                let fields = Fields {
                    int: cell.int_value,
                    long: cell.long_value,
                    float: cell.float_value,
                    double: cell.double_value,
                    boolean: cell.boolean_value,
                    string: cell.string_value,
                    bytes: None,
                };
                match value::json(*datatype, &fields) {
                    Ok(value) => drop(cells.insert(column.clone(), value)),
                    Err(why) => return Ok(Err(why)),
                }
            }
            rows.push(Value::Object(cells));
        }
        let types: Vec<_> = set
            .types
            .iter()
            .map(|datatype| value::type_name(*datatype))
            .collect();
        Ok(Ok(
            json!({ "columns": set.columns, "types": types, "rows": rows }),
        ))
    }

    fn template(&mut self, bytes: &Bytes, time: Option<&str>, depth: usize) -> Result<Value, Unreadable> {
        let template: proto::Template = read(bytes)?;
        let metrics = self.metrics(&template.metrics, time, depth + 1)?;
        self.budget.take(template.parameters.len())?;
        let mut parameters = Map::new();
        for parameter in &template.parameters {
            let parameter: proto::Parameter = read(parameter)?;
            let fields = Fields {
                int: parameter.int_value,
                long: parameter.long_value,
                float: parameter.float_value,
                double: parameter.double_value,
                boolean: parameter.boolean_value,
                string: parameter.string_value,
                bytes: None,
            };
            let value = parameter
                .datatype
                .map_or_else(|| value::undeclared(&fields), |t| value::json(t, &fields));
            parameters.insert(parameter.name.unwrap_or_default(), value.unwrap_or(Value::Null));
        }
        let mut members = json!({
            "templateRef": template.template_ref,
            "version": template.version,
            "metrics": metrics,
            "parameters": parameters,
        });
        if template.is_definition == Some(true)
            && let Some(members) = members.as_object_mut()
        {
            // A definition holds default values, no readings.
            let metrics = members.remove("metrics").unwrap_or_default();
            members.insert("definition".to_owned(), metrics);
        }
        Ok(members)
    }

    fn properties(&mut self, bytes: &Bytes, depth: usize) -> Result<Value, Unreadable> {
        let set: proto::PropertySet = read(bytes)?;
        self.budget.take(set.values.len())?;
        if depth > DEEPEST {
            return Ok(Value::Null);
        }
        let mut members = Map::new();
        for (key, value) in set.keys.into_iter().zip(&set.values) {
            let property: proto::PropertyValue = read(value)?;
            let value = if property.is_null == Some(true) {
                Value::Null
            } else if let Some(set) = &property.set_value {
                self.properties(set, depth + 1)?
            } else if let Some(sets) = &property.sets_value {
                let sets: proto::PropertySetList = read(sets)?;
                self.budget.take(sets.sets.len())?;
                let sets = sets.sets.iter().map(|set| self.properties(set, depth + 1));
                Value::Array(sets.collect::<Result<_, _>>()?)
            } else {
                let fields = Fields {
                    int: property.int_value,
                    long: property.long_value,
                    float: property.float_value,
                    double: property.double_value,
                    boolean: property.boolean_value,
                    string: property.string_value,
                    bytes: None,
                };
                let value = property
                    .datatype
                    .map_or_else(|| value::undeclared(&fields), |t| value::json(t, &fields));
                value.unwrap_or(Value::Null)
            };
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

/// What is said of an alias that has no name. The number is the sender's, nothing of the patient.
fn unknown(alias: u64, cause: Cause) -> String {
    format!("what its alias {alias} means is not known: {}", cause.text())
}
