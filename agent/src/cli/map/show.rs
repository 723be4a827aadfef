//! The steps as a person reads them.

use super::explain::{DEVICE, Explained, Failed, ObservationExplained, PATIENT, PackExplained};
use iomt_mapping::device::{FieldTrace, MatchTrace, TemplateTrace};
use iomt_mapping::fhir::{GroupTrace, ValueTrace};
use serde_json::Value;
use std::fmt::Write;

/// What a source says of its device.
const CONNECTION_DEVICE: &str = "iothub-connection-device-id";

/// Longest text of a value on a line, in characters.
const LONGEST: usize = 80;

/// All steps.
pub(super) fn text(explained: &Explained) -> String {
    let mut out = String::new();
    for pack in &explained.packs {
        // Writing to a String cannot fail.
        let _ = show_pack(&mut out, pack);
    }
    let shadowed = match explained.shadowed {
        0 => String::new(),
        count => format!(", {count} left out: an earlier pack gives the same type"),
    };
    let plural = if explained.measurements == 1 { "" } else { "s" };
    let (measurements, failed) = (explained.measurements, explained.failed);
    let _ = writeln!(
        out,
        "{measurements} measurement{plural}, {failed} failed{shadowed}"
    );
    if explained.measurements == 0 && explained.failed == 0 {
        out.push_str("No template matched: the agent would keep the message as unmatched.\n");
    }
    let templates = explained.packs.iter().flat_map(|pack| &pack.trace.templates);
    let mut fields = templates
        .flat_map(|template| &template.matches)
        .flat_map(|one| &one.fields);
    if fields.any(|field| field.failed && field.expression.contains(CONNECTION_DEVICE)) {
        out.push_str("The device is that of the connection: name one with --device-id, as `device_id` of the source does.\n");
    }
    out
}

fn show_pack(out: &mut String, pack: &PackExplained) -> std::fmt::Result {
    writeln!(out, "pack {}", pack.pack)?;
    for template in &pack.trace.templates {
        show_template(out, template)?;
    }
    for error in &pack.errors {
        show_error(out, "  ", error)?;
    }
    match &pack.observations {
        None => writeln!(out, "  no FHIR mapping: measurements end here")?,
        Some(observations) => {
            for observation in observations {
                show_observation(out, observation)?;
            }
        }
    }
    writeln!(out)
}

fn show_template(out: &mut String, template: &TemplateTrace) -> std::fmt::Result {
    let count = template.matches.len();
    let result = match (&template.error, count) {
        (Some(_), _) => "its type match failed".to_owned(),
        (None, 0) => "no match".to_owned(),
        (None, 1) => "1 match".to_owned(),
        (None, count) => format!("{count} matches"),
    };
    writeln!(
        out,
        "  template {} {} (line {}): {result}",
        template.template, template.type_name, template.line
    )?;
    writeln!(out, "    typeMatchExpression  {}", template.type_match)?;
    if let Some(error) = &template.error {
        writeln!(out, "      {error}")?;
    }
    // That the message itself is there says nothing.
    if let Some(part) = template.found_up_to.as_ref().filter(|part| *part != "$") {
        writeln!(out, "      finds something up to {part}")?;
    }
    for missing in &template.missing {
        let similar = missing
            .similar
            .as_ref()
            .map_or(String::new(), |near| format!("; it has \"{near}\""));
        writeln!(
            out,
            "      the message has no member \"{}\"{similar}",
            missing.name
        )?;
    }
    template
        .matches
        .iter()
        .try_for_each(|found| show_match(out, found))
}

fn show_match(out: &mut String, found: &MatchTrace) -> std::fmt::Result {
    writeln!(out, "    match {}  {}", found.match_index, short(&found.token))?;
    let width = found
        .fields
        .iter()
        .map(|field| field.field.chars().count())
        .max()
        .unwrap_or(0);
    for field in &found.fields {
        show_field(out, field, width)?;
    }
    writeln!(
        out,
        "      {}",
        if found.measured {
            "=> a measurement"
        } else {
            "=> no measurement"
        }
    )
}

fn show_field(out: &mut String, field: &FieldTrace, width: usize) -> std::fmt::Result {
    let mark = if field.failed { "x" } else { " " };
    write!(out, "    {mark} {:width$}  {}", field.field, field.expression)?;
    if field.language != "JsonPath" {
        write!(out, " ({})", field.language)?;
    }
    match (&field.text, &field.found) {
        (Some(text), _) => write!(out, "  ->  {}", cut(text))?,
        (None, Some(found)) => write!(out, "  ->  {}", short(found))?,
        (None, None) => write!(out, "  ->  nothing")?,
    }
    if let Some(note) = &field.note {
        write!(out, "  ({note})")?;
    }
    writeln!(out)
}

/// The steps from the group to its Observation, a line for each value of the template.
fn show_group(out: &mut String, trace: &GroupTrace) -> std::fmt::Result {
    write!(out, "  FHIR template {} {}", trace.template, trace.type_name)?;
    if let Some(line) = trace.line {
        write!(out, " (line {line})")?;
    }
    let (took_part, superseded, refused) = trace.readings;
    write!(
        out,
        ": {took_part} of {} readings",
        took_part + superseded + refused
    )?;
    if superseded > 0 {
        write!(out, ", {superseded} superseded")?;
    }
    if refused > 0 {
        write!(out, ", {refused} refused")?;
    }
    writeln!(out, ", periodInterval {}", trace.period_interval)?;
    for value in &trace.values {
        show_value(out, value)?;
    }
    for unused in &trace.unused {
        let similar = unused
            .similar
            .as_ref()
            .map_or(String::new(), |near| format!("; it has \"{near}\""));
        writeln!(
            out,
            "      the template has no valueName \"{}\"{similar}",
            unused.name
        )?;
    }
    Ok(())
}

fn show_value(out: &mut String, value: &ValueTrace) -> std::fmt::Result {
    let mark = if value.taken.is_none() { "x" } else { " " };
    let place = value
        .component
        .map_or("value".to_owned(), |index| format!("component {index}"));
    let taken = value.taken.as_deref().map_or("nothing".to_owned(), cut);
    write!(
        out,
        "    {mark} {place}  {} ({})  ->  {taken}",
        value.name, value.value_type
    )?;
    for (count, what) in [(value.left_out, "left out"), (value.refused, "refused")] {
        if count > 0 {
            write!(out, ", {count} {what}")?;
        }
    }
    if let Some(note) = &value.note {
        write!(out, "  ({note})")?;
    }
    writeln!(out)
}

fn show_observation(out: &mut String, observation: &ObservationExplained) -> std::fmt::Result {
    if let Some(trace) = &observation.trace {
        show_group(out, trace)?;
    }
    if let Some(error) = &observation.error {
        return show_error(out, "  ", error);
    }
    let template = observation
        .template
        .map_or(String::new(), |index| format!(" by FHIR template {index}"));
    write!(out, "  Observation of {}{template}", observation.type_name)?;
    if let Some((start, end)) = observation.period.as_ref().filter(|(start, end)| start != end) {
        write!(out, ", period {start} to {end}")?;
    }
    writeln!(
        out,
        " (its id depends on {PATIENT} and {DEVICE}, which the destination resolves)"
    )?;
    let resource = observation.resource.as_ref().map(serde_json::to_string_pretty);
    for line in resource
        .transpose()
        .unwrap_or_default()
        .unwrap_or_default()
        .lines()
    {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

fn show_error(out: &mut String, indent: &str, error: &Failed) -> std::fmt::Result {
    write!(out, "{indent}{}", error.name)?;
    if let Some(template) = error.template {
        write!(out, " in template {template}")?;
    }
    if let Some(field) = &error.field {
        write!(out, ", {field}")?;
    }
    writeln!(out, ": {}", error.text)
}

fn short(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(" ...".chars()).collect()
}
