//! Framings: how messages are cut out of a stream of bytes. Shared by the drivers, and usable alone for devices without a
//! driver: a source with `framing = "..."` and `format = "..."` needs no code.

pub mod astm;
pub mod bits;
pub mod checksum;
pub mod cutter;
pub mod format;
pub mod frames;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::checksum::to_hex;
pub use self::cutter::{Checksum, FramingKind};
use self::cutter::{Cut, Cutter};
pub use self::format::Format;
use self::frames::{Description, Found, Framer};
use super::drivers::port::{Listener, Port};
use super::drivers::{Driver, DriverMessage, Now, Output};

/// Longest frame that can be configured.
pub const MAX_FRAME_BYTES: usize = 65_536;

/// The members of a serial source that describe a device without a driver.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FramingConfig {
    /// How frames are cut.
    pub framing: FramingKind,
    /// What is inside.
    pub format: Format,
    /// The check inside `stx-etx`, `slip` and `cobs`.
    pub checksum: Checksum,
    /// Bytes of the length field of `length-crc16`, 1 or 2 (low byte first).
    pub length_bytes: usize,
    /// Longest frame in bytes, at most [`MAX_FRAME_BYTES`].
    pub max_bytes: usize,
    /// Between columns or pairs.
    pub delimiter: char,
    /// Between a label and its value.
    pub separator: char,
    /// Around a column that contains the delimiter.
    pub quote: char,
    /// The first line, and each equal line later, names the columns.
    pub header: bool,
    /// Names of the columns; an empty name leaves the column out.
    pub columns: Vec<String>,
    /// Columns and labels that stay text even when they look like a number.
    pub text: Vec<String>,
    /// Texts that mean "no value".
    pub missing: Vec<String>,
}

impl Default for FramingConfig {
    fn default() -> Self {
        FramingConfig {
            framing: FramingKind::Lines,
            format: Format::Json,
            checksum: Checksum::None,
            length_bytes: 1,
            max_bytes: 4096,
            delimiter: ',',
            separator: '=',
            quote: '"',
            header: false,
            columns: Vec::new(),
            text: Vec::new(),
            missing: ["", "-", "--", "---", "NaN", "nan", "null"]
                .map(str::to_owned)
                .to_vec(),
        }
    }
}

/// A driver that is all configuration.
pub fn from_config(config: &FramingConfig) -> Box<dyn Driver + Send> {
    Box::new(Port::new(
        Cutter::new(config),
        Payloads {
            config: config.clone(),
            header: None,
        },
    ))
}

/// Makes a body of each frame.
struct Payloads {
    config: FramingConfig,
    header: Option<Vec<String>>,
}

impl Listener<Cut> for Payloads {
    fn frame(&mut self, cut: Cut, _now: Now, out: &mut Output) {
        let mut reply = cut.reply.clone();
        match format::body(&self.config, &mut self.header, &cut) {
            Ok(Some(body)) => out.messages.push(DriverMessage {
                body,
                waveform: false,
                record: None,
            }),
            Ok(None) => {}
            Err(reason) => {
                let bytes = cut.payload.len() as u64;
                out.errors.push(reason.into());
                out.garbage += bytes;
                out.frames = out.frames.saturating_sub(1);
                out.frame_bytes = out.frame_bytes.saturating_sub(bytes);
                // What is not kept must not be acknowledged.
                reply = (self.config.framing == FramingKind::Astm).then(|| vec![astm::NAK]);
            }
        }
        if let Some(reply) = reply {
            // The sender forgets an HL7 message, or a whole ASTM transfer with its last record, when it reads this.
            out.after_commit |= match self.config.framing {
                FramingKind::Mllp => true,
                FramingKind::Astm => cut.payload.starts_with(b"L|"),
                _ => false,
            };
            out.send.push(reply);
        }
    }

    fn acknowledges(&self) -> bool {
        matches!(self.config.framing, FramingKind::Mllp | FramingKind::Astm)
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        if self.config.framing == FramingKind::Astm {
            out.send.push(vec![astm::NAK]);
        }
    }
}

/// Decodes `bytes` as far as they go, as if the line were silent afterwards; each frame shows its payload and what framing and
/// format make of it.
pub fn describe(config: &FramingConfig, bytes: &[u8]) -> Description {
    let mut framer = Framer::new(Cutter::new(config));
    let mut out = Output::default();
    let now = |monotonic_us| Now {
        monotonic_us,
        wall: None,
    };
    let mut found = framer.push(bytes, now(0), &mut out);
    found.extend(framer.timeout(now(u64::MAX), &mut out));
    let mut frames = Vec::new();
    let mut header = None;
    for one in found {
        let Found::Frame(cut) = one else { continue };
        match format::body(config, &mut header, &cut) {
            Err(reason) => out.errors.push(reason.into()),
            Ok(body) => frames.extend(show(config, cut, body.as_deref())),
        }
    }
    Description {
        frames,
        errors: out.errors,
        skipped: out.garbage,
    }
}

fn show(config: &FramingConfig, cut: Cut, body: Option<&[u8]>) -> Option<Value> {
    let empty = cut.payload.is_empty() && cut.details.is_empty();
    let may_be_empty = matches!(
        config.framing,
        FramingKind::Cobs | FramingKind::StxEtx | FramingKind::LengthCrc16
    );
    if empty && !may_be_empty {
        return None;
    }
    let mut shown = cut.details;
    shown.insert("payload_hex".into(), to_hex(&cut.payload).into());
    let text = String::from_utf8(cut.payload).ok();
    if let (Format::Label, Some(text)) = (config.format, &text) {
        let (pairs, trailing) = format::split_labels(config, text)?;
        let pairs: Map<String, Value> = pairs
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect();
        shown.insert("pairs".into(), pairs.into());
        shown.insert("trailing".into(), json!(trailing));
    }
    if let (Format::Csv, Some(Ok(Value::Object(body)))) = (config.format, body.map(serde_json::from_slice)) {
        shown.extend(body);
    }
    shown.insert("payload_text".into(), json!(text));
    Some(shown.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(toml: &str, input: &[u8]) -> (Vec<String>, Output) {
        let mut driver = from_config(&toml::from_str(toml).unwrap());
        let mut out = Output::default();
        driver.bytes(
            input,
            Now {
                monotonic_us: 0,
                wall: None,
            },
            &mut out,
        );
        let bodies = out
            .messages
            .iter()
            .map(|m| String::from_utf8(m.body.clone()).unwrap())
            .collect();
        (bodies, out)
    }

    #[test]
    fn json_lines_pass_and_a_partial_first_line_is_counted() {
        let (bodies, out) = run(
            "",
            b"\xff\xfehalf\"}\n{\"hr\":72,\"spo2\":98}\r\n\n{\"t\":36.50}\n",
        );
        assert_eq!(bodies, [r#"{"hr":72,"spo2":98}"#, r#"{"t":36.50}"#]);
        assert_eq!((out.garbage, out.errors.len()), (8, 1));
    }

    #[test]
    fn columns_are_named_by_the_configuration_or_by_a_header() {
        let named = "format = 'csv'\ncolumns = ['id', 'hr', 'spo2', 't']\ntext = ['id']";
        let (bodies, out) = run(named, b"007,072,--,36.80\n8,1\n\"a,b\",1,2,-0.5\n");
        assert_eq!(
            bodies,
            [
                r#"{"id":"007","hr":72,"t":36.80}"#,
                r#"{"id":"a,b","hr":1,"spo2":2,"t":-0.5}"#
            ]
        );
        assert_eq!(
            out.errors.len(),
            1,
            "a line with another number of columns is refused"
        );
        let (bodies, _) = run(
            "format = 'csv'\nheader = true\ndelimiter = ';'",
            b"hr;spo2\n72;98\nhr;spo2\n73;\n",
        );
        assert_eq!(bodies, [r#"{"hr":72,"spo2":98}"#, r#"{"hr":73}"#]);
        let (bodies, _) = run("format = 'csv'", b"72,,--\n");
        assert_eq!(bodies, [r#"{"fields":["72","","--"]}"#]);
    }

    #[test]
    fn labels_become_members_and_trailing_words_are_kept() {
        let (bodies, _) = run(
            "format = 'label'",
            b"IR=123456, BPM=72.35, Avg BPM=71 No finger?\r\n",
        );
        assert_eq!(
            bodies,
            [r#"{"IR":123456,"BPM":72.35,"Avg BPM":71,"trailing":"No finger?"}"#]
        );
    }

    #[test]
    fn a_line_without_end_is_dropped_and_the_next_one_is_read() {
        let mut input = vec![b'x'; 10_000];
        input.extend_from_slice(b"\n{\"hr\":1}\n");
        let (bodies, out) = run("max_bytes = 100", &input);
        assert_eq!(bodies, [r#"{"hr":1}"#]);
        assert_eq!(out.garbage, 10_001);
    }
}
