//! From a payload with its properties to the message that templates see.

use crate::error::ErrorKind;
use crate::measurement::NormalizeError;
use crate::message::json::{self, MAXIMUM_NESTING};
use crate::message::tree::{TreeBuilder, named};
use crate::message::{Token, Tree};
use crate::time::Timestamp;

/// A typed property that a broker gives along with a payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PropertyValue<'a> {
    /// A text.
    Text(&'a str),
    /// A number as it is spelled.
    Number(&'a str),
    /// An instant; templates see its ISO 8601 text (rule D1).
    Time(Timestamp),
    /// A boolean.
    Bool(bool),
}

/// A payload as it came, with what the source knows about it.
///
/// ```
/// use iomt_mapping::message::{Envelope, PropertyValue};
///
/// let envelope = Envelope {
///     body: br#"{"heartRate": 78}"#,
///     properties: &[],
///     system_properties: &[("iothub-connection-device-id", PropertyValue::Text("bed-12"))],
/// };
/// let message = envelope.parse().unwrap();
/// let body = message.root().member("Body").unwrap();
/// assert_eq!(body.member("heartRate").unwrap().number(), Some("78"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The payload; JSON (rule D9), or empty.
    pub body: &'a [u8],
    /// Application properties.
    pub properties: &'a [(&'a str, PropertyValue<'a>)],
    /// Properties of the broker.
    pub system_properties: &'a [(&'a str, PropertyValue<'a>)],
}

/// A message whose payload was read; borrows from the payload and its properties.
#[derive(Clone, Debug)]
pub struct ParsedMessage<'a> {
    tree: Tree<'a>,
}

impl<'a> Envelope<'a> {
    /// Reads the payload. A payload that is no JSON is an `InvalidDataFormatException`; an empty one is `null`.
    pub fn parse(&self) -> Result<ParsedMessage<'a>, NormalizeError> {
        let properties = self.properties.len() + self.system_properties.len();
        let mut builder =
            TreeBuilder::with_capacity(self.body.len() / json::BYTES_PER_VALUE + properties + 8);
        let root = builder.begin_object(None);
        let content = self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(self.body);
        if content.is_empty() {
            builder.null(named("Body"));
        } else {
            json::append(&mut builder, named("Body"), self.body, MAXIMUM_NESTING).map_err(invalid)?;
        }
        for (name, list) in [
            ("Properties", self.properties),
            ("SystemProperties", self.system_properties),
        ] {
            let mark = builder.begin_object(named(name));
            for (n, (name, value)) in list.iter().enumerate() {
                // Of two properties with one name the last counts, as in JSON.
                if list.iter().skip(n + 1).all(|(later, _)| later != name) {
                    match *value {
                        PropertyValue::Text(text) => builder.text(named(name), text.into()),
                        PropertyValue::Number(spelling) => builder.number(named(name), spelling.into()),
                        PropertyValue::Time(time) => builder.text(named(name), time.to_string().into()),
                        PropertyValue::Bool(flag) => builder.bool(named(name), flag),
                    }
                }
            }
            builder.end(mark);
        }
        builder.end(root);
        Ok(ParsedMessage {
            tree: builder.build(),
        })
    }
}

impl<'a> ParsedMessage<'a> {
    /// From the JSON text of a whole envelope, as tools and tests have it. A text that is no JSON is an
    /// `InvalidDataFormatException`, one that is no object an `ArgumentException`.
    ///
    /// ```
    /// use iomt_mapping::message::ParsedMessage;
    ///
    /// let message = ParsedMessage::from_envelope(br#"{"Body": {}, "Properties": {}, "SystemProperties": {}}"#).unwrap();
    /// assert!(ParsedMessage::from_envelope(b"[]").is_err());
    /// # let _ = message;
    /// ```
    pub fn from_envelope(text: &'a [u8]) -> Result<ParsedMessage<'a>, NormalizeError> {
        // The payload may be as deep as it may be on its own; the envelope is one level around it.
        let tree = json::parse_nested(text, MAXIMUM_NESTING + 1).map_err(invalid)?;
        ParsedMessage::from_tree(tree)
    }

    /// From a tree that is the whole envelope; an `ArgumentException` when it is no object.
    pub fn from_tree(tree: Tree<'a>) -> Result<ParsedMessage<'a>, NormalizeError> {
        if tree.root().is_object() {
            return Ok(ParsedMessage { tree });
        }
        let text = "The message is not a JSON object.".to_owned();
        Err(message_error(ErrorKind::ArgumentException, text))
    }

    /// The envelope.
    pub fn root(&self) -> Token<'_> {
        self.tree.root()
    }

    /// The tree of the envelope.
    pub fn tree(&self) -> &Tree<'a> {
        &self.tree
    }

    /// The payload, `None` when the envelope has no `Body`.
    pub fn body(&self) -> Option<Token<'_>> {
        self.root().member("Body")
    }
}

fn invalid(error: json::JsonError) -> NormalizeError {
    let text = format!("Invalid event message. Cannot be parsed into a JSON object: {error}.");
    message_error(ErrorKind::InvalidDataFormatException, text)
}

fn message_error(kind: ErrorKind, text: String) -> NormalizeError {
    NormalizeError {
        kind,
        template: None,
        match_index: None,
        field: None,
        text,
    }
}

/// The envelope of a payload that is a value already, without properties.
impl<'a> From<&'a serde_json::Value> for ParsedMessage<'a> {
    fn from(body: &'a serde_json::Value) -> ParsedMessage<'a> {
        let mut builder = TreeBuilder::default();
        let root = builder.begin_object(None);
        builder.value(named("Body"), body);
        for name in ["Properties", "SystemProperties"] {
            let mark = builder.begin_object(named(name));
            builder.end(mark);
        }
        builder.end(root);
        ParsedMessage {
            tree: builder.build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &[u8], properties: &[(&str, PropertyValue<'_>)]) -> String {
        let envelope = Envelope {
            body,
            properties,
            system_properties: &[],
        };
        envelope.parse().unwrap().root().to_string()
    }

    #[test]
    fn empty_payload_is_null() {
        let expected = r#"{"Body":null,"Properties":{},"SystemProperties":{}}"#;
        assert_eq!(shown(b"", &[]), expected);
        assert_eq!(shown(b"\xef\xbb\xbf", &[]), expected);
    }

    #[test]
    fn properties_keep_their_types_and_the_last_of_a_name_counts() {
        let time = Timestamp::from_ticks(2_500_000).unwrap();
        let properties = [
            ("a", PropertyValue::Text("first")),
            ("n", PropertyValue::Number("7.0")),
            ("t", PropertyValue::Time(time)),
            ("b", PropertyValue::Bool(true)),
            ("a", PropertyValue::Text("last")),
        ];
        assert_eq!(
            shown(b"[{\"x\":1,\"x\":2}]", &properties),
            r#"{"Body":[{"x":2}],"Properties":{"n":7.0,"t":"1970-01-01T00:00:00.250Z","b":true,"a":"last"},"SystemProperties":{}}"#
        );
    }

    #[test]
    fn payload_that_is_no_json_is_an_invalid_data_format() {
        let envelope = Envelope {
            body: b"heartRate=78",
            properties: &[],
            system_properties: &[],
        };
        let error = envelope.parse().unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidDataFormatException);
        assert!(
            !error.text.contains("heartRate"),
            "the payload stays out of the text: {}",
            error.text
        );
        assert_eq!(
            ParsedMessage::from_envelope(b"[]").unwrap_err().kind,
            ErrorKind::ArgumentException
        );
    }

    #[test]
    fn payload_within_an_envelope_may_be_as_deep_as_on_its_own() {
        let deep = format!("{{\"Body\":{}1{}}}", "[".repeat(64), "]".repeat(64));
        assert!(ParsedMessage::from_envelope(deep.as_bytes()).is_ok());
    }
}
