//! Mapping text with a place for everything: a tree whose every value and member name knows its bytes.
//!
//! Mapping files are read as leniently as the reference reads them (`mapping.md` 1.1, rule D9): `//` and `/* */` comments,
//! trailing commas, single quotes and names without quotes are taken; text after the document, nesting deeper
//! than [`MAXIMUM_NESTING`], and everything else that is no JSON is an `InvalidJson` error; a text without any value, and
//! `null`, are `EmptyDocument`. Member names compare without regard to letter case; of duplicates the last one counts.

use std::borrow::Cow;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::errors::{ParseError, ParseErrorKind};

use crate::finding::{Finding, Place, nearest};

/// Arrays and objects within each other in a mapping, at most.
pub const MAXIMUM_NESTING: usize = 64;

/// A range of bytes of the mapping text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte after the last one.
    pub end: usize,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape<'t> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number as it is spelled.
    Number(&'t str),
    /// A text, its escapes decoded.
    Text(Cow<'t, str>),
    /// An array.
    Array(Vec<Node<'t>>),
    /// An object, members in document order, duplicates kept.
    Object(Vec<Member<'t>>),
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<'t> {
    /// The bytes of the value, quotes and brackets included.
    pub span: Span,
    /// The value.
    pub shape: Shape<'t>,
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Member<'t> {
    /// Its name, escapes decoded.
    pub name: Cow<'t, str>,
    /// The bytes of the name, quotes included.
    pub name_span: Span,
    /// Its value.
    pub value: Node<'t>,
}

/// A mapping text and its tree.
///
/// ```
/// use iomt_mapping::document::Document;
///
/// let document = Document::parse("{ 'TypeName': \"hr\", // the heart\n }").unwrap();
/// let name = document.root.member("typeName").unwrap();
/// assert_eq!(name.text(), Some("hr"));
/// assert_eq!(document.place(name.span).column, 15);
/// ```
#[derive(Clone, Debug)]
pub struct Document<'t> {
    text: &'t str,
    lines: Lines,
    /// The outermost value; never null.
    pub root: Node<'t>,
}

impl<'t> Document<'t> {
    /// Parses a mapping text; the finding is an `InvalidJson` or `EmptyDocument` error with its place.
    pub fn parse(text: &'t str) -> Result<Document<'t>, Finding> {
        let lines = Lines::of(text);
        // A byte order mark is not part of the document, but its bytes count for places.
        let without_mark = text.strip_prefix('\u{feff}').unwrap_or(text);
        let shift = text.len() - without_mark.len();
        let options = jsonc_parser::ParseOptions {
            allow_comments: true,
            allow_trailing_commas: true,
            allow_single_quoted_strings: true,
            allow_loose_object_property_names: true,
            allow_missing_commas: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            // For \' within double quotes; escapes that the reference refuses are refused below.
            allow_extended_string_escapes: true,
        };
        let invalid = |span: Span, message: String, suggestion: Option<&str>| {
            let mut finding = Finding::error("InvalidJson", message).at(lines.place(text, span));
            finding.suggestion = suggestion.map(str::to_owned);
            finding
        };
        let parsed =
            jsonc_parser::parse_to_ast(without_mark, &Default::default(), &options).map_err(|error| {
                let range = error.range();
                let span = Span {
                    start: range.start + shift,
                    end: range.end + shift,
                };
                invalid(span, format!("{}.", error.kind()), advice(&error))
            })?;
        let empty = |span| {
            let place = lines.place(text, span);
            let finding = Finding::error("EmptyDocument", "The mapping is empty.").at(place);
            finding.suggest("Write an object with \"templateType\" and \"template\".")
        };
        let Some(value) = parsed.value else {
            return Err(empty(Span {
                start: 0,
                end: text.len(),
            }));
        };
        let root = convert(value, without_mark, shift, 0)
            .map_err(|refusal| invalid(refusal.span, refusal.message, None))?;
        if root.shape == Shape::Null {
            return Err(empty(root.span));
        }
        Ok(Document { text, lines, root })
    }

    /// The whole text.
    pub fn text(&self) -> &'t str {
        self.text
    }

    /// Line and column of a span.
    pub fn place(&self, span: Span) -> Place {
        self.lines.place(self.text, span)
    }

    /// An error about what stands at `span`.
    pub fn error(&self, kind: &'static str, span: Span, message: impl Into<String>) -> Finding {
        Finding::error(kind, message).at(self.place(span))
    }

    /// The span of characters `from..to` of the decoded text of `node`, a text; exact as long as no escape
    /// precedes it, else the whole text.
    pub fn span_within(&self, node: &Node<'_>, from: usize, to: usize) -> Span {
        let inner = Span {
            start: node.span.start + 1 + from,
            end: node.span.start + 1 + to,
        };
        let plain = self
            .text
            .get(node.span.start + 1..node.span.end.saturating_sub(1));
        match (&node.shape, plain) {
            (Shape::Text(text), Some(plain)) if **text == *plain && inner.end < node.span.end => inner,
            _ => node.span,
        }
    }
}

impl<'t> Node<'t> {
    /// The member of that name, whatever its letter case; the last one of duplicates. `None` also when this is no object.
    pub fn member(&self, name: &str) -> Option<&Node<'t>> {
        self.named_member(name).map(|member| &member.value)
    }

    /// As [`Node::member`], with the name as it is written.
    pub fn named_member(&self, name: &str) -> Option<&Member<'t>> {
        self.members()
            .iter()
            .rev()
            .find(|member| member.name.eq_ignore_ascii_case(name))
    }

    /// The members, none when this is no object.
    pub fn members(&self) -> &[Member<'t>] {
        match &self.shape {
            Shape::Object(members) => members,
            _ => &[],
        }
    }

    /// The elements, `None` when this is no array.
    pub fn elements(&self) -> Option<&[Node<'t>]> {
        match &self.shape {
            Shape::Array(elements) => Some(elements),
            _ => None,
        }
    }

    /// The text, `None` when this is no text.
    pub fn text(&self) -> Option<&str> {
        match &self.shape {
            Shape::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether this is an object.
    pub fn is_object(&self) -> bool {
        matches!(self.shape, Shape::Object(_))
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        self.shape == Shape::Null
    }

    /// What this is, in words for messages: `a text`, `an object`.
    pub fn kind_name(&self) -> &'static str {
        match self.shape {
            Shape::Null => "null",
            Shape::Bool(_) => "a boolean",
            Shape::Number(_) => "a number",
            Shape::Text(_) => "a text",
            Shape::Array(_) => "an array",
            Shape::Object(_) => "an object",
        }
    }
}

impl Document<'_> {
    /// One `UnknownMember` error for each member of `node` that is none of `known`, in the reference's wording, with the
    /// nearest known name that `node` does not have yet as the suggestion. `type_name` is the reference's name of the object.
    pub fn unknown_members(&self, node: &Node<'_>, known: &[&str], type_name: &str) -> Vec<Finding> {
        let is_known = |name: &str| known.iter().any(|k| k.eq_ignore_ascii_case(name));
        let unused: Vec<&str> = known
            .iter()
            .copied()
            .filter(|k| node.named_member(k).is_none())
            .collect();
        let mut findings = Vec::new();
        for member in node.members().iter().filter(|m| !is_known(&m.name)) {
            let message = format!(
                "Could not find member '{}' on object of type '{type_name}'.",
                member.name
            );
            let mut finding = self
                .error("UnknownMember", member.name_span, message)
                .field(&*member.name);
            finding.suggestion = Some(match nearest(&member.name, unused.iter().copied()) {
                Some(name) => format!("Did you mean \"{name}\"?"),
                None => format!("Remove it; known members are {}.", known.join(", ")),
            });
            findings.push(finding);
        }
        findings
    }
}

struct Refusal {
    span: Span,
    message: String,
}

fn convert<'t>(value: ast::Value<'t>, text: &str, shift: usize, depth: usize) -> Result<Node<'t>, Refusal> {
    let range = value.range();
    let span = Span {
        start: range.start + shift,
        end: range.end + shift,
    };
    let container = matches!(value, ast::Value::Array(_) | ast::Value::Object(_));
    if container && depth >= MAXIMUM_NESTING {
        let message = format!("Nesting is deeper than {MAXIMUM_NESTING}.");
        return Err(Refusal {
            span: Span {
                start: span.start,
                end: span.start + 1,
            },
            message,
        });
    }
    let shape = match value {
        ast::Value::NullKeyword(_) => Shape::Null,
        ast::Value::BooleanLit(literal) => Shape::Bool(literal.value),
        ast::Value::NumberLit(literal) => Shape::Number(literal.value),
        ast::Value::StringLit(literal) => {
            check_escapes(text, range.start, range.end, shift)?;
            Shape::Text(literal.value)
        }
        ast::Value::Array(array) => Shape::Array(
            array
                .elements
                .into_iter()
                .map(|element| convert(element, text, shift, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        ast::Value::Object(object) => {
            let mut members = Vec::with_capacity(object.properties.len());
            for property in object.properties {
                let name_range = property.name.range();
                let name_span = Span {
                    start: name_range.start + shift,
                    end: name_range.end + shift,
                };
                let name = match property.name {
                    ast::ObjectPropName::String(literal) => {
                        check_escapes(text, name_range.start, name_range.end, shift)?;
                        literal.value
                    }
                    ast::ObjectPropName::Word(literal) => Cow::Borrowed(literal.value),
                };
                members.push(Member {
                    name,
                    name_span,
                    value: convert(property.value, text, shift, depth + 1)?,
                });
            }
            Shape::Object(members)
        }
    };
    Ok(Node { span, shape })
}

/// Refuses escapes that the reference refuses; the parser, set to take `\'`, takes any.
fn check_escapes(text: &str, start: usize, end: usize, shift: usize) -> Result<(), Refusal> {
    let bytes = text.as_bytes().get(start..end).unwrap_or_default();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte != b'\\' {
            at += 1;
            continue;
        }
        if !matches!(
            bytes.get(at + 1),
            Some(b'"' | b'\'' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' | b'u')
        ) {
            let from = start + shift + at;
            let message = "Bad JSON escape sequence.".to_owned();
            return Err(Refusal {
                span: Span {
                    start: from,
                    end: from + 2,
                },
                message,
            });
        }
        at += 2;
    }
    Ok(())
}

fn advice(error: &ParseError) -> Option<&'static str> {
    use jsonc_parser::ParseStringErrorKind as Text;
    Some(match error.kind() {
        ParseErrorKind::ExpectedComma => "Put a comma between the two.",
        ParseErrorKind::ExpectedColonAfterObjectKey => "Put a colon after the member's name.",
        ParseErrorKind::ExpectedObjectValue
        | ParseErrorKind::UnexpectedCloseBrace
        | ParseErrorKind::UnexpectedComma => "A value is missing before this.",
        ParseErrorKind::UnexpectedWord => "Texts stand in quotes; is a quote missing?",
        ParseErrorKind::UnexpectedTokenInObject => {
            "Expected a member's name in quotes; is a comma or brace too much?"
        }
        ParseErrorKind::UnterminatedObject => "A closing brace } is missing.",
        ParseErrorKind::UnterminatedArray => "A closing bracket ] is missing.",
        ParseErrorKind::UnterminatedCommentBlock => "The comment is not closed with */.",
        ParseErrorKind::MultipleRootJsonValues => {
            "Remove what follows the document; is a brace too much before it?"
        }
        ParseErrorKind::String(Text::UnterminatedStringLiteral) => "The closing quote is missing.",
        ParseErrorKind::String(_) => "Write a backslash in a text as two backslashes.",
        _ => return None,
    })
}

/// Where lines begin, and how many characters stand before every block of the text: a generated mapping may be one line.
#[derive(Clone, Debug)]
struct Lines {
    starts: Vec<usize>,
    /// Characters before each block of [`Lines::BLOCK`] bytes.
    characters: Vec<usize>,
}

impl Lines {
    const BLOCK: usize = 256;

    fn of(text: &str) -> Lines {
        let bytes = text.as_bytes();
        let ends_line =
            |at: usize, byte: u8| byte == b'\n' || byte == b'\r' && bytes.get(at + 1) != Some(&b'\n');
        let breaks = bytes
            .iter()
            .enumerate()
            .filter(|(at, byte)| ends_line(*at, **byte));
        let starts = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        let mut before = 0;
        let characters = bytes.chunks(Self::BLOCK).map(|block| {
            let here = before;
            before += characters_in(block);
            here
        });
        Lines {
            characters: characters.collect(),
            starts,
        }
    }

    /// Characters before that byte; a byte order mark is none.
    fn characters_before(&self, text: &str, at: usize) -> usize {
        let block = at / Self::BLOCK;
        let rest = text.as_bytes().get(block * Self::BLOCK..at).unwrap_or_default();
        let mark = usize::from(at > 0 && text.starts_with('\u{feff}'));
        // After the last whole block there may be no entry when the text ends with it.
        let before = self
            .characters
            .get(block)
            .copied()
            .unwrap_or_else(|| characters_in(text.as_bytes()));
        (before + characters_in(rest)).saturating_sub(mark)
    }

    fn place(&self, text: &str, span: Span) -> Place {
        let start = span.start.min(text.len());
        let line = self.starts.partition_point(|line_start| *line_start <= start);
        let line_start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = self.characters_before(text, start) - self.characters_before(text, line_start) + 1;
        Place {
            line,
            column,
            start,
            length: span.end.min(text.len()).saturating_sub(start),
        }
    }
}

/// Characters that begin in these bytes of UTF-8.
fn characters_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (&'static str, usize, usize) {
        let finding = Document::parse(text).unwrap_err();
        let place = finding.place.unwrap();
        (finding.kind, place.line, place.column)
    }

    #[test]
    fn lenient_spellings_of_the_reference_are_taken() {
        for text in [
            "// c\n{ /* c */ \"a\": [1, 2,], }",
            "{'a': 'x'}",
            "{a: 'x'}",
            "\u{feff}{\"a\": 1}",
            r#"{"a": "it\'s", 'b': 'say \"x\"'}"#,
            "{\"a\": \"line\nbreak\"}",
        ] {
            assert!(Document::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_mapping_text_is_refused_with_its_place() {
        let table = [
            ("", ("EmptyDocument", 1, 1)),
            ("  // nothing\n", ("EmptyDocument", 1, 1)),
            ("\n null", ("EmptyDocument", 2, 2)),
            ("{} x", ("InvalidJson", 1, 4)),
            ("{\n  \"a\":\n}\n", ("InvalidJson", 3, 1)),
            ("{\"a\": 1 \"b\": 2}", ("InvalidJson", 1, 8)),
            ("{\"a\": \"\\$\"}", ("InvalidJson", 1, 8)),
            ("{\"a\": NaN}", ("InvalidJson", 1, 7)),
            ("{\"a\": 0x10}", ("InvalidJson", 1, 7)),
            ("{\"ä\": \"open}", ("InvalidJson", 1, 7)),
        ];
        for (text, expected) in table {
            assert_eq!(refused(text), expected, "{text}");
        }
    }

    #[test]
    fn nesting_ends_at_the_limit_and_never_in_a_crash() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Document::parse(&nested(MAXIMUM_NESTING)).is_ok());
        assert_eq!(refused(&nested(MAXIMUM_NESTING + 1)).0, "InvalidJson");
        assert_eq!(refused(&nested(100_000)).0, "InvalidJson");
        assert_eq!(refused(&"{\"a\":".repeat(100_000)).0, "InvalidJson");
    }

    #[test]
    fn places_are_right_in_long_lines_and_at_the_end() {
        let text = format!("{{\"ä\": [{}],\r\n \"b\": 1}}", "\"ö\", ".repeat(1000));
        let document = Document::parse(&text).unwrap();
        let last = document
            .root
            .member("ä")
            .and_then(Node::elements)
            .unwrap()
            .last()
            .unwrap();
        assert_eq!(
            (document.place(last.span).line, document.place(last.span).column),
            (1, 8 + 999 * 5)
        );
        let place = document.place(document.root.named_member("b").unwrap().name_span);
        assert_eq!((place.line, place.column), (2, 2));
        let whole = "x".repeat(512);
        let end = Lines::of(&whole).place(&whole, Span { start: 512, end: 512 });
        assert_eq!((end.line, end.column), (1, 513));
        let marked = "\u{feff}{\"a\": 1}";
        assert_eq!(
            Document::parse(marked)
                .map(|d| d.place(d.root.members()[0].name_span).column)
                .unwrap(),
            2
        );
    }

    #[test]
    fn members_are_found_in_any_letter_case_and_the_last_wins() {
        let document = Document::parse("{\"A\": 1, \"a\": 2, \"b\": 3}").unwrap();
        assert_eq!(document.root.member("a").unwrap().shape, Shape::Number("2"));
        assert_eq!(document.root.member("B").unwrap().shape, Shape::Number("3"));
        assert!(document.root.member("c").is_none());
    }

    #[test]
    fn unknown_members_come_with_the_nearest_known_name() {
        let document = Document::parse("{\"tpeName\": 1,\r\n \"zzz\": 2}").unwrap();
        let found = document.unknown_members(&document.root, &["typeName", "values"], "T");
        assert_eq!(found[0].suggestion.as_deref(), Some("Did you mean \"typeName\"?"));
        assert_eq!(
            found[1].suggestion.as_deref(),
            Some("Remove it; known members are typeName, values.")
        );
        assert_eq!(found[1].place.unwrap().line, 2);
        assert_eq!(found[0].field.as_deref(), Some("tpeName"));
    }
}
