//! `format = "serial-lines"`: a gateway sends the lines of a serial device as `{"value": "SPO2=098 HR=072"}` (OpenMQTTGateway,
//! topic `.../SERIALtoMQTT`). The member `line` of the source says what is in them, with the members of a serial source; the
//! body is that of the same line on a serial port.

use super::{Decoded, Unreadable};
use crate::ingest::serial::framing::cutter::Cut;
use crate::ingest::serial::framing::{Format, FramingConfig, FramingKind, format};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Members of `line` that say something about a line.
pub(crate) const MEMBERS: [&str; 8] = [
    "format",
    "delimiter",
    "separator",
    "quote",
    "columns",
    "text",
    "missing",
    "max_bytes",
];

/// Reads `line`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn options(table: &toml::Table) -> Result<FramingConfig, String> {
    if let Some(name) = table.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        return Err(format!(
            "`{name}` is no member of `line`; it has {}",
            MEMBERS.join(", ")
        ));
    }
    let config = FramingConfig::deserialize(table.clone()).map_err(|error| error.message().to_owned())?;
    if config.framing != FramingKind::Lines {
        return Err("lines have no other framing".to_owned());
    }
    Ok(config)
}

/// The lines of a payload.
fn inner(payload: &[u8]) -> Result<String, Unreadable> {
    let body: Value = serde_json::from_slice(payload).map_err(|_| Unreadable::new("it is no JSON"))?;
    match body.get("value") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Unreadable::new("its member `value` is no text")),
        None => Err(Unreadable::new("it has no member `value`")),
    }
}

/// A line becomes its body, several become a list.
pub(super) fn decode(payload: &Bytes, options: &str) -> Result<Decoded, Unreadable> {
    let config: FramingConfig = serde_json::from_str(options)
        .map_err(|_| Unreadable::new("the options of its lines cannot be read"))?;
    let text = inner(payload)?;
    let mut bodies: Vec<Box<RawValue>> = Vec::new();
    for line in text.split(['\n', '\r']).filter(|line| !line.trim().is_empty()) {
        if line.len() > config.max_bytes {
            return Err(Unreadable::new("a line is longer than `max_bytes`"));
        }
        let cut = Cut {
            payload: line.as_bytes().to_vec(),
            ..Cut::default()
        };
        let body = format::body(&config, &mut None, &cut).map_err(|reason| {
            let format = match config.format {
                Format::Json => "json",
                Format::Csv => "csv",
                Format::Label => "label",
                Format::Hex => "hex",
            };
            Unreadable::new(format!("a line is not of the format {format}: {}", reason.name()))
        })?;
        let raw = |body| {
            String::from_utf8(body)
                .ok()
                .and_then(|text| RawValue::from_string(text).ok())
        };
        bodies.extend(body.and_then(raw));
    }
    let body = match bodies.as_slice() {
        [] => return Err(Unreadable::new("there is no line in it")),
        [one] => one.get().as_bytes().to_vec(),
        several => serde_json::to_vec(several).unwrap_or_default(),
    };
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(options: &str, payload: &str) -> Result<String, String> {
        let table: toml::Table = options.parse().unwrap();
        super::options(&table).unwrap();
        let options = serde_json::to_string(&table).unwrap();
        decode(&Bytes::copy_from_slice(payload.as_bytes()), &options)
            .map(|decoded| String::from_utf8(decoded.body).unwrap())
            .map_err(|Unreadable(why)| why)
    }

    #[test]
    fn a_line_of_a_gateway_is_read_as_on_a_serial_port() {
        let label = "format = 'label'\ndelimiter = ' '";
        for (options, payload, expected) in [
            (label, r#"{"value":"SPO2=098 HR=072"}"#, r#"{"SPO2":98,"HR":72}"#),
            (label, r#"{"value":"SPO2=-- HR=072\r\n"}"#, r#"{"HR":72}"#),
            (
                "format = 'csv'\ncolumns = ['spo2', 'hr']",
                r#"{"value":"97,72\n98,73\n"}"#,
                r#"[{"spo2":97,"hr":72},{"spo2":98,"hr":73}]"#,
            ),
            ("", r#"{"value":"{\"hr\":72}"}"#, r#"{"hr":72}"#),
            ("format = 'hex'", r#"{"value":"AB"}"#, r#"{"hex":"4142"}"#),
        ] {
            assert_eq!(body(options, payload).unwrap(), expected, "{payload}");
        }
        for (options, payload, expected) in [
            (label, "SPO2=098", "no JSON"),
            (label, r#"{"value":98}"#, "no text"),
            (label, r#"{"line":"x"}"#, "no member"),
            (label, r#"{"value":" "}"#, "no line"),
            ("", r#"{"value":"SPO2=098"}"#, "not of the format json"),
            (
                "format = 'csv'\ncolumns = ['a']",
                r#"{"value":"1,2"}"#,
                "not of the format csv",
            ),
            ("max_bytes = 3", r#"{"value":"[1,2]"}"#, "longer"),
        ] {
            let why = body(options, payload).unwrap_err();
            assert!(why.contains(expected), "{payload}: {why}");
        }
    }

    #[test]
    fn options_that_say_nothing_about_a_line_are_refused() {
        for wrong in [
            "framing = 'slip'",
            "baud = 9600",
            "format = 'xml'",
            "delimiter = 'ab'",
        ] {
            assert!(options(&wrong.parse().unwrap()).is_err(), "{wrong}");
        }
    }
}
