//! Evaluating a template on a message.

use std::borrow::Cow;

use crate::device::load::pascal_case;
use crate::device::{DeviceTemplate, TemplateKind, TemplateMatch};
use crate::error::ErrorKind;
use crate::expression::{EvaluationError, Expression};
use crate::jmespath::Value;
use crate::measurement::{GroupKey, Measurement, NormalizeError, Property};
use crate::message::{Enriched, ParsedMessage, Token};
use crate::time::Timestamp;
use crate::timestamp::{ReadTime, read_timestamp};
use smol_str::SmolStr;
use std::sync::Arc;

/// Learns of each expression's result; `()` learns nothing and costs nothing.
pub(super) trait Recorder {
    /// `field` was evaluated: its result, and what became of it.
    fn field(&mut self, field: &str, expression: &Expression, found: &Found<'_>, outcome: Outcome<'_>);
}

impl Recorder for () {
    #[inline]
    fn field(&mut self, _: &str, _: &Expression, _: &Found<'_>, _: Outcome<'_>) {}
}

/// What an expression gave.
pub(super) type Found<'t> = Result<Option<Value<'t>>, EvaluationError>;

/// What became of a result.
pub(super) enum Outcome<'o> {
    /// This text.
    Text(&'o str),
    /// This time.
    Time(ReadTime),
    /// Nothing: there was none, or it could not be used and is optional.
    LeftOut(&'static str),
    /// The match fails.
    Failed(&'o str),
}

/// A field that fails its match.
pub(super) struct FieldFailure {
    kind: ErrorKind,
    field: String,
    text: String,
}

impl FieldFailure {
    pub(super) fn into_error(self, template: usize, match_index: Option<usize>) -> NormalizeError {
        NormalizeError {
            kind: self.kind,
            template: Some(template),
            match_index,
            field: Some(self.field),
            text: self.text,
        }
    }
}

/// What the expressions of one match see.
#[derive(Clone, Copy)]
struct Sight<'t> {
    /// The root of most expressions.
    root: Token<'t>,
    /// Where device, time and properties come from (rule D20).
    origin: Token<'t>,
}

impl DeviceTemplate {
    /// Hands over the measurements of this template, each with how many may come from it on, and adds its errors.
    pub(crate) fn normalize(
        &self,
        message: &ParsedMessage<'_>,
        hand_over: &mut impl FnMut(usize, TemplateMatch),
        errors: &mut Vec<NormalizeError>,
    ) {
        let found = match self.find(message.root()) {
            Ok(found) => found,
            Err(failure) => return errors.push(failure.into_error(self.index, None)),
        };
        let mut last_key: Option<Arc<GroupKey>> = None;
        for (match_index, matched) in found.iter().enumerate() {
            match self.measure(message.root(), matched, last_key.as_ref(), &mut ()) {
                Ok(measurement) => {
                    if last_key
                        .as_ref()
                        .is_none_or(|last| !Arc::ptr_eq(last, &measurement.key))
                    {
                        last_key = Some(Arc::clone(&measurement.key));
                    }
                    let matched = TemplateMatch {
                        template: self.index,
                        match_index,
                        measurement,
                    };
                    hand_over(found.len() - match_index, matched);
                }
                Err(failure) => errors.push(failure.into_error(self.index, Some(match_index))),
            }
        }
    }

    /// The matches of the type match expression.
    pub(super) fn find<'t>(&'t self, root: Token<'t>) -> Result<Vec<Value<'t>>, FieldFailure> {
        let found = match &self.type_match {
            Expression::JsonPath(path) => path
                .select_all(root)
                .map(|tokens| tokens.into_iter().map(Value::Token).collect()),
            Expression::JmesPath(path) => path.select_all(root),
        };
        found.map_err(|error| failure(error, "typeMatchExpression"))
    }

    /// The measurement of one match. It shares `last_key`, the key of another match in the message, where it has the same.
    pub(super) fn measure<R: Recorder>(
        &self,
        root: Token<'_>,
        matched: &Value<'_>,
        last_key: Option<&Arc<GroupKey>>,
        recorder: &mut R,
    ) -> Result<Measurement, FieldFailure> {
        // A computed match becomes a document of its own, which JSONPath can look into.
        let computed;
        let matched = match matched {
            Value::Token(token) => *token,
            value => {
                computed = value.to_tree();
                computed.root()
            }
        };
        let enriched;
        let sight = match self.kind {
            TemplateKind::Calculated => {
                enriched = Enriched::new(root, matched);
                let root = Token::Enriched(&enriched);
                Sight { root, origin: root }
            }
            TemplateKind::JsonPath => Sight {
                root: matched,
                origin: matched,
            },
            TemplateKind::IotJsonPath => Sight {
                root: matched,
                origin: root,
            },
            TemplateKind::IotCentralJsonPath => Sight {
                root: matched,
                origin: export_of(root, matched),
            },
        };
        let (key, occurrence_time) = match last_key.filter(|_| self.one_key) {
            // None of its parts can fail where they did not before.
            Some(key) => (Arc::clone(key), self.time(sight, recorder)?),
            None => {
                let (key, time) = self.key_and_time(sight, recorder)?;
                match last_key.filter(|last| ***last == key) {
                    Some(last) => (Arc::clone(last), time),
                    None => (Arc::new(key), time),
                }
            }
        };
        let mut properties = Vec::with_capacity(self.values.len());
        for value in &self.values {
            let Some(expression) = &value.expression else {
                continue;
            };
            let text = if value.required {
                Some(self.required(sight, &value.name, expression, recorder)?)
            } else {
                self.optional(sight, &value.name, Some(expression), recorder)?
            };
            properties.extend(text.map(|text| Property {
                name: value.name.clone(),
                value: text,
            }));
        }
        Ok(Measurement {
            key,
            occurrence_time,
            properties,
        })
    }

    /// Whose it is, and when; evaluated in this order, of which the first failure is told.
    fn key_and_time<R: Recorder>(
        &self,
        sight: Sight<'_>,
        recorder: &mut R,
    ) -> Result<(GroupKey, Timestamp), FieldFailure> {
        let device_id = self.required(sight, "deviceIdExpression", &self.device_id, recorder)?;
        let time = self.time(sight, recorder)?;
        let correlation_id = match &self.correlation_id {
            Some(expression) => {
                Some(self.required(sight, "correlationIdExpression", expression, recorder)?)
            }
            None => None,
        };
        let patient_id = self.optional(sight, "patientIdExpression", self.patient_id.as_ref(), recorder)?;
        let encounter_id = self.optional(
            sight,
            "encounterIdExpression",
            self.encounter_id.as_ref(),
            recorder,
        )?;
        let key = GroupKey {
            device_id: device_id.into(),
            type_name: self.type_name.clone(),
            patient_id: patient_id.map(String::from),
            encounter_id: encounter_id.map(String::from),
            correlation_id: correlation_id.map(String::from),
        };
        Ok((key, time))
    }

    fn evaluate<'t>(&'t self, sight: Sight<'t>, field: &str, expression: &'t Expression) -> Found<'t> {
        let root = match self.kind {
            TemplateKind::Calculated | TemplateKind::JsonPath => sight.root,
            // Rule D20: what names device and time, and all properties, is never taken from within the match.
            TemplateKind::IotJsonPath | TemplateKind::IotCentralJsonPath => {
                let identity = matches!(field, "deviceIdExpression" | "timestampExpression");
                let properties = matches!(expression.first_member(), Some("Properties" | "SystemProperties"));
                if identity || properties {
                    sight.origin
                } else {
                    sight.root
                }
            }
        };
        match expression {
            Expression::JsonPath(path) => path.select_one(root).map(|token| token.map(Value::Token)),
            Expression::JmesPath(path) => path.select_one(root),
        }
    }

    fn required<R: Recorder>(
        &self,
        sight: Sight<'_>,
        field: &str,
        expression: &Expression,
        recorder: &mut R,
    ) -> Result<SmolStr, FieldFailure> {
        let found = self.evaluate(sight, field, expression);
        let text = usable(&found);
        match (text, &found) {
            (Ok(Some(text)), _) => {
                recorder.field(field, expression, &found, Outcome::Text(&text));
                Ok(text.into())
            }
            (_, Err(error)) => {
                recorder.field(field, expression, &found, Outcome::Failed(&error.text));
                Err(failure(error.clone(), field))
            }
            (unusable, _) => {
                let reason = unusable.err().unwrap_or("nothing was found");
                let failure = unable(field, expression, reason);
                recorder.field(field, expression, &found, Outcome::Failed(&failure.text));
                Err(failure)
            }
        }
    }

    fn optional<R: Recorder>(
        &self,
        sight: Sight<'_>,
        field: &str,
        expression: Option<&Expression>,
        recorder: &mut R,
    ) -> Result<Option<SmolStr>, FieldFailure> {
        let Some(expression) = expression else {
            return Ok(None);
        };
        let found = self.evaluate(sight, field, expression);
        match (usable(&found), &found) {
            (Ok(Some(text)), _) => {
                recorder.field(field, expression, &found, Outcome::Text(&text));
                Ok(Some(text.into()))
            }
            // What cannot be evaluated is an error, optional or not.
            (_, Err(error)) => {
                recorder.field(field, expression, &found, Outcome::Failed(&error.text));
                Err(failure(error.clone(), field))
            }
            (unusable, _) => {
                let reason = unusable.err().unwrap_or("nothing was found");
                recorder.field(field, expression, &found, Outcome::LeftOut(reason));
                Ok(None)
            }
        }
    }

    fn time<R: Recorder>(&self, sight: Sight<'_>, recorder: &mut R) -> Result<Timestamp, FieldFailure> {
        const FIELD: &str = "timestampExpression";
        let mut reason = None;
        for expression in std::iter::once(&self.timestamp).chain(&self.timestamp_fallback) {
            let found = self.evaluate(sight, FIELD, expression);
            let read = match &found {
                Ok(Some(value)) => match value.as_text() {
                    Some(text) => read_timestamp(&text).ok_or("the text is no timestamp"),
                    None if value.is_null() => Err("it is null"),
                    None => Err("it is no text"),
                },
                Ok(None) => Err("nothing was found"),
                Err(error) => {
                    recorder.field(FIELD, expression, &found, Outcome::Failed(&error.text));
                    return Err(failure(error.clone(), FIELD));
                }
            };
            match read {
                Ok(read) => {
                    recorder.field(FIELD, expression, &found, Outcome::Time(read));
                    return Ok(read.time);
                }
                Err(why) => {
                    recorder.field(FIELD, expression, &found, Outcome::LeftOut(why));
                    reason = Some((expression, why));
                }
            }
        }
        let (expression, why) = reason.unwrap_or((&self.timestamp, "nothing was found"));
        Err(unable(FIELD, expression, why))
    }
}

/// The text of a result: `Ok(None)` when there is none, an error when it cannot be used.
fn usable<'f>(found: &'f Found<'_>) -> Result<Option<Cow<'f, str>>, &'static str> {
    let Ok(Some(value)) = found else { return Ok(None) };
    match value.to_text() {
        Some(text) if is_blank(&text) => Err("it is blank"),
        Some(text) => Ok(Some(text)),
        None if value.is_null() => Err("it is null"),
        None => Err("an array or object is no text"),
    }
}

/// Whether nothing can be read in it.
fn is_blank(text: &str) -> bool {
    // Of hundreds of samples in a message each begins with a digit or a sign.
    !text.as_bytes().first().is_some_and(u8::is_ascii_graphic) && text.trim().is_empty()
}

fn failure(error: EvaluationError, field: &str) -> FieldFailure {
    FieldFailure {
        kind: error.kind,
        field: field.to_owned(),
        text: error.text,
    }
}

fn unable(field: &str, expression: &Expression, reason: &str) -> FieldFailure {
    let name = pascal_case(field);
    let text = format!("Unable to extract required value for [{name}] using {expression}: {reason}.");
    FieldFailure {
        kind: ErrorKind::IncompatibleDataException,
        field: field.to_owned(),
        text,
    }
}

/// The outermost object on the way from `root` to `matched` that has a `deviceId`: the export of IoT Central, whatever the
/// device put into it (rule D20). The match itself when there is none.
fn export_of<'t>(root: Token<'t>, matched: Token<'t>) -> Token<'t> {
    let mut token = root;
    loop {
        if token.member("deviceId").is_some() {
            return token;
        }
        match token.child_that_holds(matched) {
            Some(child) => token = child,
            None => return matched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceMapping;

    /// Matches of `values`, each with the device that `device` finds.
    fn keys(device: &str, body: &str) -> Vec<Arc<GroupKey>> {
        let text = format!(
            r#"{{ "templateType": "CollectionContent", "template": [ {{ "templateType": "CalculatedContent", "template": {{
                "typeName": "ecg", "typeMatchExpression": "$.Body.values[*]", "deviceIdExpression": "{device}",
                "timestampExpression": "$.matchedToken.at", "correlationIdExpression": "$.Body.block",
                "values": [ {{ "valueName": "ecg", "valueExpression": "$.matchedToken.v", "required": true }} ] }} }} ] }}"#
        );
        let (mapping, findings) = DeviceMapping::load(&text);
        assert_eq!(findings, []);
        let envelope = format!(r#"{{"Body": {body}, "SystemProperties": {{"device": "strap"}}}}"#);
        let message = ParsedMessage::from_envelope(envelope.as_bytes()).unwrap();
        let found = mapping.unwrap().normalize(&message);
        assert_eq!(found.errors, []);
        found.matches.into_iter().map(|one| one.measurement.key).collect()
    }

    #[test]
    fn samples_of_a_block_share_one_key() {
        let body = r#"{"block": "b-1", "values": [{"at": "2026-03-01T07:00:00Z", "v": 1, "device": "a"},
            {"at": "2026-03-01T07:00:00.004Z", "v": 2, "device": "a"}, {"at": "2026-03-01T07:00:00.008Z", "v": 3, "device": "b"}]}"#;
        // A place in the envelope is looked up once, any other expression for each sample.
        for (device, id) in [
            ("$.SystemProperties.device", "strap"),
            ("$.SystemProperties['device']", "strap"),
            ("$.Body.block", "b-1"),
        ] {
            let keys = keys(device, body);
            assert_eq!(keys.len(), 3);
            assert!(keys.iter().all(|key| Arc::ptr_eq(key, &keys[0])), "{device}");
            let (found, block) = (&*keys[0].device_id, keys[0].correlation_id.as_deref());
            assert_eq!((found, block), (id, Some("b-1")));
        }
        let keys = keys("$.matchedToken.device", body);
        assert!(Arc::ptr_eq(&keys[0], &keys[1]));
        let devices: Vec<&str> = keys.iter().map(|key| key.device_id.as_str()).collect();
        assert_eq!(devices, ["a", "a", "b"]);
    }

    #[test]
    fn a_sample_is_small_in_memory() {
        // A block of 250 samples stays in memory with what it became until it is sent.
        assert!(size_of::<Measurement>() <= 40);
        assert!(size_of::<Property>() <= 48);
    }
}
