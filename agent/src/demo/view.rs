//! The demo in words: what stands where, the figures, and an Observation in one line. Everything is simulated, so that it may
//! be shown.

use super::ward::{Moment, Report};
use crate::telemetry::status::Summary;
use serde_json::Value;

/// What is shown once, at the start.
pub fn introduction(moment: &Moment) -> Option<String> {
    let Moment::Started {
        broker,
        serial_port,
        fhir,
        page,
        folder,
    } = moment
    else {
        return None;
    };
    Some(format!(
        "Simulated wearables are read over MQTT and a serial line, and become FHIR Observations.\n\
         Nothing here is installed or leaves this machine.\n\n  \
         broker        {broker}\n  \
         serial line   {serial_port}\n  \
         FHIR server   {fhir}      try: curl '{fhir}/Observation?_count=1'\n  \
         status page   {page}\n  \
         folder        {}    agent.toml, mappings.d, store; it stays\n",
        folder.display()
    ))
}

/// The figures in one line.
pub fn figures(summary: &Summary) -> String {
    let Summary {
        messages,
        unmatched,
        unparsable,
        matches,
        delivered,
        superseded,
        buffered,
        waiting,
        dead,
        lost,
        observations,
    } = summary;
    let mut text =
        format!("{messages} messages, {matches} readings: {delivered} delivered, {buffered} buffered");
    let rare = [
        (superseded, "superseded"),
        (waiting, "waiting"),
        (dead, "dead"),
        (lost, "lost"),
        (unmatched, "messages unmatched"),
        (unparsable, "messages unparsable"),
    ];
    for (count, name) in rare.iter().filter(|(count, _)| **count > 0) {
        text.push_str(&format!(", {count} {name}"));
    }
    text.push_str(&format!("; {observations} Observations written"));
    text
}

/// An Observation in one line.
pub fn observation(resource: &Value) -> String {
    let name = concept(resource);
    let mut values: Vec<String> = quantity(resource).into_iter().collect();
    let components = resource
        .get("component")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    for component in components {
        if let Some(value) = quantity(component) {
            values.push(format!("{} {value}", concept(component)));
        }
    }
    let text = |path: &str| resource.pointer(path).and_then(Value::as_str);
    let time = text("/effectiveDateTime")
        .or(text("/effectivePeriod/start"))
        .unwrap_or_default();
    let subject = text("/subject/reference").unwrap_or_default();
    let (subject, id) = subject.split_once('/').unwrap_or((subject, ""));
    let id = id.get(..8).unwrap_or(id);
    format!("{name} {} at {time}, {subject}/{id}", values.join(", "))
}

/// The name of a code, as a person says it.
fn concept(of: &Value) -> &str {
    let text = |path: &str| of.pointer(path).and_then(Value::as_str);
    text("/code/coding/0/display")
        .or(text("/code/text"))
        .or(text("/code/coding/0/code"))
        .unwrap_or_default()
}

fn quantity(of: &Value) -> Option<String> {
    let quantity = of.get("valueQuantity")?;
    let unit = quantity
        .get("unit")
        .or(quantity.get("code"))
        .and_then(Value::as_str)
        .unwrap_or_default();
    Some(format!("{} {unit}", quantity.get("value")?))
}

/// What is shown at the end.
pub fn conclusion(report: &Report) -> String {
    let mut text = String::new();
    if let Some(last) = &report.last {
        let pretty = serde_json::to_string_pretty(last).unwrap_or_default();
        text.push_str(&format!(
            "The last Observation, as the FHIR server holds it:\n{pretty}\n\n"
        ));
    }
    text.push_str(&format!(
        "{}\nThe wearables sent {} messages; the FHIR server holds {} Observations.\n\
         Configuration, mapping packs and store stay in {}\n",
        figures(&report.summary),
        report.sent,
        report.observations,
        report.folder.display()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_observation_reads_like_a_sentence() {
        let resource = json!({
            "code": { "coding": [{ "code": "85354-9", "display": "Blood pressure" }] },
            "subject": { "reference": "Patient/0123456789abcdef" },
            "effectivePeriod": { "start": "2026-03-01T07:15:30.0000000Z" },
            "component": [
                { "code": { "coding": [{ "display": "Systolic" }] }, "valueQuantity": { "value": 128, "unit": "mmHg" } },
                { "code": { "coding": [{ "display": "Diastolic" }] }, "valueQuantity": { "value": 82, "code": "mm[Hg]" } }
            ]
        });
        assert_eq!(
            observation(&resource),
            "Blood pressure Systolic 128 mmHg, Diastolic 82 mm[Hg] at 2026-03-01T07:15:30.0000000Z, Patient/01234567"
        );
    }

    #[test]
    fn figures_name_what_is_rare_only_when_it_happened() {
        let summary = Summary {
            messages: 3,
            matches: 4,
            delivered: 3,
            dead: 1,
            observations: 3,
            ..Summary::default()
        };
        assert_eq!(
            figures(&summary),
            "3 messages, 4 readings: 3 delivered, 0 buffered, 1 dead; 3 Observations written"
        );
    }
}
