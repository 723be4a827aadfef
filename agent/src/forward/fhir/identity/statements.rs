//! `DeviceUseStatement`s with a timing period: they say exactly when a patient used a device (FHIR R4).

use super::patient_id;
use crate::associations::{Statement, Ticks};
use crate::forward::fhir::answer::{Answer, hits};
use crate::forward::fhir::server::{Down, Entry, Server};
use crate::forward::http::percent_encode;
use iomt_mapping::fhir::parse_datetime;
use serde_json::Value;

/// Most pages of statements that are read of a device.
const MOST_PAGES: usize = 20;
/// Ticks of 100 ns in a second.
const SECOND: Ticks = 10_000_000;

/// The question for the statements about a Device.
pub(super) fn question(device: &str) -> Entry {
    let reference = percent_encode(&format!("Device/{device}"));
    Entry::get(format!("DeviceUseStatement?device={reference}&_count=200"))
}

/// What the answer tells of the Device; `None` when it cannot be told now.
pub(super) async fn told(
    server: &mut Server,
    device: &str,
    answer: Option<Answer>,
) -> Result<Option<Vec<Statement>>, Down> {
    let Some(mut bundle) = answer
        .filter(Answer::is_success)
        .and_then(|answer| answer.resource)
    else {
        return Ok(None);
    };
    let mut statements = Vec::new();
    for _ in 0..MOST_PAGES {
        let (resources, next) = hits(bundle);
        statements.extend(
            resources
                .iter()
                .filter_map(|resource| statement(resource, device)),
        );
        let Some(url) = next else {
            statements
                .sort_by(|a: &Statement, b| (a.from, a.last, &a.patient).cmp(&(b.from, b.last, &b.patient)));
            return Ok(Some(statements));
        };
        match server.page(&url).await? {
            Some(page) => bundle = page,
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn statement(resource: &Value, device: &str) -> Option<Statement> {
    let text = |name: &str| resource.get(name).and_then(Value::as_str);
    let reference = |name: &str| resource.get(name)?.get("reference")?.as_str();
    let is_use = text("resourceType") == Some("DeviceUseStatement")
        && reference("device")?.strip_prefix("Device/") == Some(device)
        && !matches!(text("status"), Some("entered-in-error" | "intended"));
    let period = resource
        .get("timingPeriod")
        .filter(|period| is_use && period.is_object())?;
    let limit = |name: &str| period.get(name).and_then(Value::as_str);
    let last = match limit("end") {
        Some(end) => Some(last_instant(end)?),
        None => None,
    };
    let from = match limit("start") {
        Some(start) => Some(parse_datetime(start)?.ticks()),
        None => None,
    };
    let recorded = resource
        .get("meta")
        .and_then(|meta| meta.get("lastUpdated")?.as_str())
        .or_else(|| text("recordedOn"));
    Some(Statement {
        patient: patient_id(reference("subject")?)?.to_owned(),
        from,
        last,
        end: limit("end")
            .filter(|end| end.contains('T'))
            .and_then(|end| Some(parse_datetime(end)?.ticks())),
        recorded: recorded.and_then(|at| Some(parse_datetime(at)?.ticks())),
    })
}

/// The last instant of what is written: of its second, or with digits behind it of their last; of its day, month or year.
fn last_instant(text: &str) -> Option<Ticks> {
    let first = parse_datetime(text)?.ticks();
    if let Some((_, time)) = text.split_once('T') {
        let digits = match time.split_once('.') {
            Some((_, fraction)) => fraction.bytes().take_while(u8::is_ascii_digit).count(),
            None => 0,
        };
        let width = SECOND / 10_i64.checked_pow(u32::try_from(digits.min(7)).ok()?)?;
        return Some(first + width.max(1) - 1);
    }
    let next = match text.len() {
        4 => format!("{:04}-01-01", text.parse::<u16>().ok()? + 1),
        7 => {
            let day: jiff::civil::Date = format!("{text}-01").parse().ok()?;
            day.last_of_month().tomorrow().ok()?.to_string()
        }
        _ => text
            .parse::<jiff::civil::Date>()
            .ok()?
            .tomorrow()
            .ok()?
            .to_string(),
    };
    Some(parse_datetime(&next)?.ticks() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_limit_is_as_wide_as_it_is_written() {
        for (text, behind) in [
            ("2026-09-22T10:00:00Z", "2026-09-22T10:00:01Z"),
            ("2026-09-22T10:00:00+02:00", "2026-09-22T08:00:01Z"),
            ("2026-09-22T10:00:00.25Z", "2026-09-22T10:00:00.26Z"),
            ("2026-09-22", "2026-09-23"),
            ("2026-12", "2027-01"),
            ("2026", "2027"),
        ] {
            let expected = parse_datetime(behind).unwrap().ticks();
            assert_eq!(last_instant(text), Some(expected - 1), "{text}");
        }
        assert_eq!(last_instant("soon"), None);
    }

    #[test]
    fn only_statements_of_a_use_over_a_time_count() {
        let resource = |more: Value| {
            let mut resource = json!({"resourceType": "DeviceUseStatement", "status": "completed",
                "subject": {"reference": "Patient/p"}, "device": {"reference": "Device/d"},
                "timingPeriod": {"start": "2026-09-22T10:00:00Z", "end": "2026-09-22"},
                "recordedOn": "2026-09-23T10:00:00Z"});
            for (name, value) in more.as_object().unwrap() {
                resource[name] = value.clone();
            }
            resource
        };
        let found = statement(&resource(json!({})), "d").unwrap();
        assert_eq!((found.patient.as_str(), found.end), ("p", None));
        assert!(found.recorded > found.last && found.from < found.last);
        let open = json!({"status": "active", "timingPeriod": {"start": "2026-09-22T10:00:00Z"}});
        assert_eq!(statement(&resource(open), "d").unwrap().last, None);
        for not in [
            json!({"status": "entered-in-error"}),
            json!({"status": "intended"}),
            json!({"device": {"reference": "Device/other"}}),
            json!({"subject": {"reference": "Group/g"}}),
            json!({"timingPeriod": {"start": "soon"}}),
            json!({"timingPeriod": null, "timingDateTime": "2026-09-22"}),
        ] {
            assert_eq!(statement(&resource(not.clone()), "d"), None, "{not}");
        }
    }
}
