//! `phd/`: bytes of IEEE 11073 numbers -> decimal text, digits after the point count, and codes that are no number; what
//! becomes of the time of a reading by the clock of its device; how identifiers of readings are put together.

use iomt_mapping::Timestamp;
use iomt_mapping::fhir::parse_datetime;
use iomt_mapping::phd::identifier::{self, ObservationIdentifier, tick_part, time_part};
use iomt_mapping::phd::time::{ClockKind, DeviceTime, clock_code, treat};
use iomt_mapping::phd::{NotANumber, float32, sfloat16};
use serde_json::{Value, json};

/// All cases of the vector, and the first difference; none when it is no vector of this folder.
pub fn run(vector: &Value) -> Option<Result<(), String>> {
    let has = |name: &str| vector.get(name).is_some();
    if has("float32") && has("sfloat16") {
        Some(numbers(vector))
    } else if has("clockCodes") && has("rows") {
        Some(times(vector))
    } else if has("composition") && has("timestampExamples") {
        Some(identifiers(vector))
    } else {
        None
    }
}

/// The time table, row by row, and the example beside it.
fn times(vector: &Value) -> Result<(), String> {
    let columns = [
        "timeType",
        "current",
        "synced",
        "offset",
        "mapping",
        "coincidentTimestampNeeded",
    ];
    if vector["columns"] != json!(columns) {
        return Err(format!("the columns are {}", vector["columns"]));
    }
    let mut count = 0;
    for row in rows(vector, "rows") {
        let kind = match row[0].as_str() {
            Some("UTC") => ClockKind::Utc,
            Some("local") => ClockKind::Local,
            Some("tick") => ClockKind::Tick,
            _ => return Err(format!("{row}: an unknown kind of clock")),
        };
        let is = |column: usize| row[column].as_bool().unwrap_or(false);
        let verdict = treat(DeviceTime {
            kind,
            current: is(1),
            synchronized: is(2),
            has_offset: is(3),
        });
        let made = json!([verdict.treatment.name(), verdict.coincident_timestamp]);
        if made != json!([row[4], row[5]]) {
            return Err(format!("{row} gives {made}"));
        }
        count += 1;
    }
    if count == 0 {
        return Err("the table has no rows".to_owned());
    }
    let read = |name: &str| parse_datetime(text(&vector["example"], name)).map(Timestamp::ticks);
    let (gateway, device) = (read("gateway"), read("device"));
    let correction = gateway
        .zip(device)
        .map(|(gateway, device)| (gateway - device) / 10_000_000);
    if correction != vector["example"]["correctionSeconds"].as_i64() {
        return Err(format!("the example is corrected by {correction:?} s"));
    }
    for (code, kind, has_offset) in [
        ("68225", ClockKind::Utc, true),
        ("67975", ClockKind::Local, false),
        ("67983", ClockKind::Tick, false),
    ] {
        let known = vector["clockCodes"].get(code).is_some();
        if !known || clock_code(kind, has_offset).0 != code {
            return Err(format!(
                "{kind:?} has the code {}",
                clock_code(kind, has_offset).0
            ));
        }
    }
    Ok(())
}

/// The worked example put together from its parts, and the forms of the time within it.
fn identifiers(vector: &Value) -> Result<(), String> {
    let same = |what: &str, made: &str, expected: &str| match made == expected {
        true => Ok(()),
        false => Err(format!("{what} is {made}, not {expected}")),
    };
    same(
        "the system",
        identifier::OBSERVATION_SYSTEM,
        text(vector, "system"),
    )?;
    let example = ObservationIdentifier {
        device: "74E8FFFEFF051C00",
        patient: "sisansarahId",
        patient_system: "urn:oid:2.999.1.2.3.4.5.6.7.8.10",
        type_code: "149530",
        time: "20181113175903.00",
        duration: None,
        supplemental: &["150588"],
    };
    same("the example", &example.value(), text(vector, "documentedExample"))?;
    let examples = vector["timestampExamples"]
        .as_array()
        .ok_or("no examples of times")?;
    let [tick, wall, offset] = examples.as_slice() else {
        return Err(format!("{} examples of times", examples.len()));
    };
    same("a tick", &tick_part(12_345_678, 3), text(tick, "documented"))?;
    // The number in the guide is half a minute before the time beside it: the recomputed one holds.
    let shown = parse_datetime("2021-11-22T11:56:30.567Z").ok_or("no time")?;
    let recomputed = text(wall, "recomputed").split(' ').next().unwrap_or_default();
    same("a wall clock in seconds", &time_part(shown, 0, None), recomputed)?;
    same(
        "a wall clock",
        &time_part(shown, 3, None),
        &format!("{recomputed}.567"),
    )?;
    let suffixed = time_part(shown, 3, Some(4));
    same(
        "an offset",
        &suffixed,
        &format!("{recomputed}.567{}", text(offset, "documentedSuffix")),
    )
}

/// All numbers of the vector; the first difference.
fn numbers(vector: &Value) -> Result<(), String> {
    for (name, decode) in [
        ("float32", float as fn(&str) -> Result<String, String>),
        ("sfloat16", short_float),
    ] {
        for row in rows(vector, name) {
            let hex = text(row, "hex");
            let made = decode(hex)?;
            if made != text(row, "fhir") {
                return Err(format!("{name} {hex} is {made}, not {}", text(row, "fhir")));
            }
        }
    }
    for row in rows(vector, "special") {
        let reason = text(row, "dataAbsentReason");
        // The short form has exponent 0 before its 12 bits.
        for (hex, made) in [
            (text(row, "float32"), float(text(row, "float32"))),
            (text(row, "sfloat12"), short_float(text(row, "sfloat12"))),
        ] {
            if made.as_ref().err().map(String::as_str) != Some(reason) {
                return Err(format!("{hex} is {made:?}, not {reason}"));
            }
        }
    }
    Ok(())
}

fn rows<'v>(vector: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    vector.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'v>(row: &'v Value, name: &str) -> &'v str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn reason(special: NotANumber) -> String {
    special.data_absent_reason().to_owned()
}

fn float(hex: &str) -> Result<String, String> {
    let bits = u32::from_str_radix(hex, 16).map_err(|error| format!("{hex}: {error}"))?;
    float32(bits).map_err(reason)
}

fn short_float(hex: &str) -> Result<String, String> {
    let bits = u16::from_str_radix(hex, 16).map_err(|error| format!("{hex}: {error}"))?;
    sfloat16(bits).map_err(reason)
}
