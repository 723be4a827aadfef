//! Strict JSON (RFC 8259) into a [`Tree`], under rule D9: UTF-8, a byte order mark is allowed, text after the document is
//! not, nesting at most [`MAXIMUM_NESTING`], of duplicate members the last one counts (at the place of the first).

use std::borrow::Cow;
use std::fmt;

use crate::message::tree::{Name, Node, Tree, TreeBuilder, Value};

/// Arrays and objects within each other in a payload, at most.
pub const MAXIMUM_NESTING: usize = 64;

/// Bytes of a document for each of its values, roughly: a sample of a waveform with its time has 17.
pub(super) const BYTES_PER_VALUE: usize = 16;

/// Why a text is no JSON, and where; holds nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub reason: &'static str,
    /// Bytes from the start of the text.
    pub offset: usize,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.reason, self.offset)
    }
}

impl std::error::Error for JsonError {}

/// Parses a JSON document.
pub fn parse(bytes: &[u8]) -> Result<Tree<'_>, JsonError> {
    parse_nested(bytes, MAXIMUM_NESTING)
}

/// As [`parse`], with another limit of nesting.
pub fn parse_nested(bytes: &[u8], nesting: usize) -> Result<Tree<'_>, JsonError> {
    let mut builder = TreeBuilder::with_capacity(bytes.len() / BYTES_PER_VALUE + 4);
    append(&mut builder, None, bytes, nesting)?;
    Ok(builder.build())
}

/// Parses a document and writes it as the member `name` into a tree.
pub(super) fn append<'a>(
    builder: &mut TreeBuilder<'a>,
    name: Name<'a>,
    bytes: &'a [u8],
    nesting: usize,
) -> Result<(), JsonError> {
    let without_mark = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let shift = bytes.len() - without_mark.len();
    let text = std::str::from_utf8(without_mark).map_err(|error| JsonError {
        reason: "invalid UTF-8",
        offset: shift + error.valid_up_to(),
    })?;
    let mut parser = Parser {
        text,
        bytes: without_mark,
        at: 0,
        builder,
        duplicates: false,
    };
    let first = parser.builder.nodes.len();
    let done = parser.document(name, nesting);
    let (at, duplicates) = (parser.at, parser.duplicates);
    done.map_err(|reason| JsonError {
        reason,
        offset: shift + at,
    })?;
    if duplicates {
        let nodes = builder.nodes.split_off(first);
        drop_duplicates(&nodes, 0, first, builder);
    }
    Ok(())
}

struct Parser<'a, 'b> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    builder: &'b mut TreeBuilder<'a>,
    /// Some object has two members of one name.
    duplicates: bool,
}

type Step<T> = Result<T, &'static str>;

impl<'a> Parser<'a, '_> {
    fn document(&mut self, name: Name<'a>, nesting: usize) -> Step<()> {
        self.value(name, nesting)?;
        self.skip_space();
        if self.at < self.bytes.len() {
            Err("text after the document")
        } else {
            Ok(())
        }
    }

    fn peek(&self) -> u8 {
        // NUL stands for the end; it is no valid byte outside of a text either.
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn value(&mut self, name: Name<'a>, nesting: usize) -> Step<()> {
        self.skip_space();
        match self.peek() {
            b'{' => self.object(name, nesting),
            b'[' => self.array(name, nesting),
            b'"' => {
                let text = self.string()?;
                self.builder.push(name, Value::Text(text));
                Ok(())
            }
            b'-' | b'0'..=b'9' => {
                let spelling = self.number()?;
                self.builder.push(name, Value::Number(Cow::Borrowed(spelling)));
                Ok(())
            }
            b't' => self.word("true", name, Value::Bool(true)),
            b'f' => self.word("false", name, Value::Bool(false)),
            b'n' => self.word("null", name, Value::Null),
            _ => Err("expected a value"),
        }
    }

    fn word(&mut self, word: &str, name: Name<'a>, value: Value<'a>) -> Step<()> {
        if !self
            .bytes
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(word.as_bytes()))
        {
            return Err("expected a value");
        }
        self.at += word.len();
        self.builder.push(name, value);
        Ok(())
    }

    fn array(&mut self, name: Name<'a>, nesting: usize) -> Step<()> {
        let deeper = nesting.checked_sub(1).ok_or("nesting is too deep")?;
        self.at += 1;
        let mark = self.builder.push(name, Value::Array);
        self.skip_space();
        if self.peek() == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(None, deeper)?;
            self.skip_space();
            match self.peek() {
                b',' => self.at += 1,
                b']' => break,
                _ => return Err("expected a comma or ]"),
            }
        }
        self.at += 1;
        self.builder.end(mark);
        Ok(())
    }

    fn object(&mut self, name: Name<'a>, nesting: usize) -> Step<()> {
        let deeper = nesting.checked_sub(1).ok_or("nesting is too deep")?;
        self.at += 1;
        let mark = self.builder.push(name, Value::Object);
        self.skip_space();
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(());
        }
        // One bit per hash of a name: only a name whose bit is set can be a duplicate.
        let mut seen = 0u64;
        loop {
            self.skip_space();
            if self.peek() != b'"' {
                return Err("expected a member name");
            }
            let member = self.string()?;
            let bit = 1u64 << (hash(&member) & 63);
            if seen & bit != 0 && !self.duplicates {
                self.duplicates = self.has_member(mark, &member);
            }
            seen |= bit;
            self.skip_space();
            if self.peek() != b':' {
                return Err("expected a colon");
            }
            self.at += 1;
            self.value(Some(member), deeper)?;
            self.skip_space();
            match self.peek() {
                b',' => self.at += 1,
                b'}' => break,
                _ => return Err("expected a comma or }"),
            }
        }
        self.at += 1;
        self.builder.end(mark);
        Ok(())
    }

    fn has_member(&self, object: u32, name: &str) -> bool {
        let mut at = object as usize + 1;
        while let Some(node) = self.builder.nodes.get(at) {
            if node.name.as_deref() == Some(name) {
                return true;
            }
            at = node.end as usize;
        }
        false
    }

    fn number(&mut self) -> Step<&'a str> {
        let start = self.at;
        if self.peek() == b'-' {
            self.at += 1;
        }
        match self.peek() {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return Err("expected a digit"),
        }
        if self.peek() == b'.' {
            self.at += 1;
            if !self.peek().is_ascii_digit() {
                return Err("expected a digit");
            }
            self.digits();
        }
        if let b'e' | b'E' = self.peek() {
            self.at += 1;
            if let b'+' | b'-' = self.peek() {
                self.at += 1;
            }
            if !self.peek().is_ascii_digit() {
                return Err("expected a digit");
            }
            self.digits();
        }
        self.text.get(start..self.at).ok_or("expected a digit")
    }

    fn digits(&mut self) {
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
    }

    /// A text, from its opening quote.
    fn string(&mut self) -> Step<Cow<'a, str>> {
        self.at += 1;
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let text = self.text.get(start..self.at).ok_or("invalid text")?;
                    self.at += 1;
                    return Ok(Cow::Borrowed(text));
                }
                Some(b'\\') => return self.string_with_escapes(start),
                Some(0..=0x1f) => return Err("control character in a text"),
                Some(_) => self.at += 1,
                None => return Err("a text is not closed"),
            }
        }
    }

    fn string_with_escapes(&mut self, start: usize) -> Step<Cow<'a, str>> {
        let mut text = String::new();
        let mut plain_from = start;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    text.push_str(self.text.get(plain_from..self.at).ok_or("invalid text")?);
                    self.at += 1;
                    return Ok(Cow::Owned(text));
                }
                Some(b'\\') => {
                    text.push_str(self.text.get(plain_from..self.at).ok_or("invalid text")?);
                    self.at += 1;
                    text.push(self.escape()?);
                    plain_from = self.at;
                }
                Some(0..=0x1f) => return Err("control character in a text"),
                Some(_) => self.at += 1,
                None => return Err("a text is not closed"),
            }
        }
    }

    fn escape(&mut self) -> Step<char> {
        let escaped = self.peek();
        self.at += 1;
        Ok(match escaped {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.four_hex_digits()?;
                match unit {
                    0xd800..=0xdbff => {
                        if self.peek() != b'\\' || self.bytes.get(self.at + 1) != Some(&b'u') {
                            return Err("half of a surrogate pair");
                        }
                        self.at += 2;
                        let low = self.four_hex_digits()?;
                        let pair = (0xdc00..=0xdfff)
                            .contains(&low)
                            .then(|| 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
                        pair.and_then(char::from_u32).ok_or("half of a surrogate pair")?
                    }
                    _ => char::from_u32(unit).ok_or("half of a surrogate pair")?,
                }
            }
            _ => return Err("unknown escape"),
        })
    }

    fn four_hex_digits(&mut self) -> Step<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = char::from(self.peek())
                .to_digit(16)
                .ok_or("expected four hexadecimal digits")?;
            unit = unit * 16 + digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

fn hash(name: &str) -> usize {
    let bytes = name.as_bytes();
    let first = bytes.first().copied().unwrap_or(0);
    let last = bytes.last().copied().unwrap_or(0);
    let middle = bytes.get(bytes.len() / 2).copied().unwrap_or(0);
    bytes.len() ^ usize::from(first) ^ (usize::from(last) << 3) ^ (usize::from(middle) << 1)
}

/// Copies `nodes[at]` and what it holds; of members with one name the last value goes to the place of the first.
fn drop_duplicates<'a>(nodes: &[Node<'a>], at: usize, shift: usize, out: &mut TreeBuilder<'a>) {
    let Some(node) = nodes.get(at) else { return };
    let mark = out.push(node.name.clone(), node.value.clone());
    let end = (node.end as usize).saturating_sub(shift);
    let children: Vec<usize> = std::iter::successors(Some(at + 1), |child| {
        nodes
            .get(*child)
            .map(|node| (node.end as usize).saturating_sub(shift))
    })
    .take_while(|child| *child < end)
    .collect();
    if node.value == Value::Object {
        let mut places: Vec<(&str, usize)> = Vec::with_capacity(children.len());
        let mut known: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
        for child in children {
            let name = nodes
                .get(child)
                .and_then(|node| node.name.as_deref())
                .unwrap_or_default();
            match known.get(name).and_then(|place| places.get_mut(*place)) {
                Some(place) => place.1 = child,
                None => {
                    known.insert(name, places.len());
                    places.push((name, child));
                }
            }
        }
        places
            .iter()
            .for_each(|(_, child)| drop_duplicates(nodes, *child, shift, out));
    } else {
        children
            .iter()
            .for_each(|child| drop_duplicates(nodes, *child, shift, out));
    }
    out.end(mark);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(text: &str) -> Result<String, JsonError> {
        parse(text.as_bytes()).map(|tree| tree.root().to_string())
    }

    #[test]
    fn what_is_no_strict_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[1",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "{'a':1}",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1e",
            "0x1",
            "NaN",
            "nul",
            "truex",
            "\"a",
            "\"\\x\"",
            "\"\u{1}\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "1 2",
            "{} x",
            "// c\n1",
            "[1 2]",
            "{\"a\" 1}",
            "{\"a\":}",
            "undefined",
        ] {
            assert!(json(text).is_err(), "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn byte_order_mark_is_allowed_once() {
        assert_eq!(json("\u{feff}{\"a\": 1}").unwrap(), "{\"a\":1}");
        assert!(json("\u{feff}\u{feff}1").is_err());
    }

    #[test]
    fn nesting_ends_at_64_and_never_in_a_crash() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json(&nested(64)).is_ok());
        assert_eq!(
            json(&nested(65)).unwrap_err(),
            JsonError {
                reason: "nesting is too deep",
                offset: 64
            }
        );
        assert!(json(&nested(1_000_000)).is_err());
    }

    #[test]
    fn last_duplicate_wins_at_the_place_of_the_first() {
        assert_eq!(
            json(r#"{"a":1,"b":2,"a":{"c":1,"c":2,"d":3}}"#).unwrap(),
            r#"{"a":{"c":2,"d":3},"b":2}"#
        );
        assert_eq!(
            json(r#"[{"a":[1,2],"a":3},4,{"x":{"y":1,"y":2}}]"#).unwrap(),
            r#"[{"a":3},4,{"x":{"y":2}}]"#
        );
    }

    #[test]
    fn numbers_keep_their_spelling() {
        let text = "[36.50,-0.0,1E+2,123456789012345678901234567890,0.10e-5]";
        assert_eq!(json(text).unwrap(), text);
    }

    proptest! {
        /// serde_json is the oracle: the same texts are taken, with the same values.
        #[test]
        fn agrees_with_serde_json(text in r#"[\[\]{},:"a-c0-2.eE+\\u -]{0,24}|(\{"[ab]":(1|"x\\n"|\[[0-9.]{0,4}\])(,"[ab]":(true|\{\}))?\})"#) {
            let theirs: Result<serde_json::Value, _> = serde_json::from_str(&text);
            let ours = parse(text.as_bytes());
            prop_assert_eq!(theirs.is_ok(), ours.is_ok(), "{}", text);
            if let (Ok(theirs), Ok(ours)) = (theirs, ours) {
                prop_assert_eq!(ours.root().to_value(), theirs);
            }
        }
    }
}
