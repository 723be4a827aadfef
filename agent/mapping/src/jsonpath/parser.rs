//! The dialect's grammar. It has no definition but the reference's parser (Newtonsoft.Json 13.0.3, `JPath`); each function
//! here is one of its functions, so that the same texts are taken. Where that parser runs beyond the end of the text, or
//! silently drops a condition, this one reports a syntax error.

mod filter;

use crate::jsonpath::{JsonPath, Step, SyntaxError};

/// Filters within filters, at most.
const MAXIMUM_NESTING: usize = 16;

/// Backtracking steps that a regular expression may take for one text.
const MAXIMUM_BACKTRACKING: usize = 100_000;

/// Bytes that a compiled regular expression may take.
const MAXIMUM_REGEX_SIZE: usize = 1 << 20;

type Parsed<T> = Result<T, SyntaxError>;

pub(super) fn parse(text: &str) -> Parsed<JsonPath> {
    let mut parser = Parser {
        text,
        bytes: text.as_bytes(),
        at: 0,
        nesting: 0,
        mixes_operators: false,
    };
    let steps = parser.main()?;
    Ok(JsonPath {
        text: text.to_owned(),
        steps,
        mixes_operators: parser.mixes_operators,
    })
}

/// `/pattern/flags` as a regular expression; the flags are those of the reference, unknown ones are ignored.
pub(super) fn regex(written: &str) -> Option<Result<fancy_regex::Regex, String>> {
    let (pattern, flags) = written.strip_prefix('/')?.rsplit_once('/')?;
    let built = fancy_regex::RegexBuilder::new(pattern)
        .case_insensitive(flags.contains('i'))
        .multi_line(flags.contains('m'))
        .dot_matches_new_line(flags.contains('s'))
        .backtrack_limit(MAXIMUM_BACKTRACKING)
        .delegate_size_limit(MAXIMUM_REGEX_SIZE)
        .delegate_dfa_size_limit(MAXIMUM_REGEX_SIZE)
        .build();
    Some(built.map_err(|error| error.to_string()))
}

struct Parser<'e> {
    text: &'e str,
    bytes: &'e [u8],
    at: usize,
    nesting: usize,
    mixes_operators: bool,
}

impl<'e> Parser<'e> {
    fn error<T>(&self, message: impl Into<String>) -> Parsed<T> {
        self.error_at(self.at, message)
    }

    fn error_at<T>(&self, offset: usize, message: impl Into<String>) -> Parsed<T> {
        Err(SyntaxError {
            message: message.into(),
            offset: offset.min(self.text.len()),
        })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The character here, for messages.
    fn here(&self) -> String {
        self.text
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
            .map(String::from)
            .unwrap_or_default()
    }

    fn skip_spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    fn ensure_more(&self, message: &str) -> Parsed<()> {
        if self.at < self.bytes.len() {
            Ok(())
        } else {
            self.error(message)
        }
    }

    fn taken(&mut self, text: &str) -> bool {
        let found = self
            .bytes
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(text.as_bytes()));
        if found {
            self.at += text.len();
        }
        found
    }

    fn main(&mut self) -> Parsed<Vec<Step>> {
        let mut steps = Vec::new();
        let mut name_start = self.at;
        self.skip_spaces();
        if self.peek().is_none() || self.text == "$" {
            return Ok(steps);
        }
        // A dollar is the root only before a dot or bracket, else the beginning of a name.
        if self.peek() == Some(b'$') && matches!(self.bytes.get(self.at + 1), Some(b'.' | b'[')) {
            self.at += 1;
            name_start = self.at;
        }
        if !self.path(&mut steps, name_start, false)? {
            let last = self.at;
            self.skip_spaces();
            if self.peek().is_some() {
                let unexpected = self
                    .text
                    .get(last..)
                    .and_then(|rest| rest.trim_start().chars().next());
                let unexpected = unexpected.map(String::from).unwrap_or_default();
                return self.error(format!("Unexpected character following indexer: {unexpected}"));
            }
        }
        Ok(steps)
    }

    /// Reads steps; whether the end of the text was reached.
    fn path(&mut self, steps: &mut Vec<Step>, mut name_start: usize, in_filter: bool) -> Parsed<bool> {
        let mut descend = false;
        let mut after_indexer = false;
        let mut after_dot = false;
        while let Some(byte) = self.peek() {
            match byte {
                b'[' | b'(' => {
                    self.push_name(steps, name_start, &mut descend);
                    let step = self.indexer(byte, descend)?;
                    steps.push(step);
                    descend = false;
                    self.at += 1;
                    name_start = self.at;
                    after_indexer = true;
                    after_dot = false;
                }
                b']' | b')' | b' ' => break,
                b'.' => {
                    self.push_name(steps, name_start, &mut descend);
                    if self.bytes.get(self.at + 1) == Some(&b'.') {
                        descend = true;
                        self.at += 1;
                    }
                    self.at += 1;
                    name_start = self.at;
                    after_indexer = false;
                    after_dot = true;
                }
                b'=' | b'<' | b'!' | b'>' | b'|' | b'&' if in_filter => break,
                _ if after_indexer => {
                    let unexpected = self.here();
                    return self.error(format!("Unexpected character following indexer: {unexpected}"));
                }
                _ => self.at += 1,
            }
        }
        let at_end = self.at >= self.bytes.len();
        if self.at > name_start {
            self.push_name(steps, name_start, &mut descend);
        } else if after_dot && (at_end || in_filter) {
            return self.error("Unexpected end while parsing path.");
        }
        Ok(at_end)
    }

    /// The name from `start` to here, if there is one.
    fn push_name(&self, steps: &mut Vec<Step>, start: usize, descend: &mut bool) {
        let name = self.text.get(start..self.at).unwrap_or_default();
        if name.is_empty() {
            return;
        }
        steps.push(match (name, *descend) {
            ("*", false) => Step::AnyMember,
            ("*", true) => Step::DescendAll,
            (name, false) => Step::Member(name.into()),
            (name, true) => Step::Descend(name.into()),
        });
        *descend = false;
    }

    /// What stands in brackets or parentheses; ends at the closing one.
    fn indexer(&mut self, open: u8, descend: bool) -> Parsed<Step> {
        const OPEN_END: &str = "Path ended with open indexer.";
        let close = if open == b'[' { b']' } else { b')' };
        self.at += 1;
        self.ensure_more(OPEN_END)?;
        self.skip_spaces();
        self.ensure_more(OPEN_END)?;
        match self.peek() {
            Some(b'\'') => self.quoted_names(close, descend),
            Some(b'?') => self.filter(close, descend),
            _ => self.array_indexer(close),
        }
    }

    fn quoted_names(&mut self, close: u8, descend: bool) -> Parsed<Step> {
        let mut names: Vec<Box<str>> = Vec::new();
        loop {
            if self.peek() != Some(b'\'') {
                let unexpected = self.here();
                return self.error(format!(
                    "Unexpected character while parsing path indexer: {unexpected}"
                ));
            }
            names.push(self.quoted_text()?.into());
            self.skip_spaces();
            self.ensure_more("Path ended with open indexer.")?;
            match self.peek() {
                Some(byte) if byte == close => break,
                Some(b',') => {
                    self.at += 1;
                    self.skip_spaces();
                }
                _ => {
                    let unexpected = self.here();
                    return self.error(format!(
                        "Unexpected character while parsing path indexer: {unexpected}"
                    ));
                }
            }
        }
        Ok(match (names.pop(), names.is_empty(), descend) {
            (Some(name), true, false) => Step::Member(name),
            (Some(name), true, true) => Step::Descend(name),
            (last, _, false) => Step::Members(names.into_iter().chain(last).collect()),
            (last, _, true) => Step::DescendMembers(names.into_iter().chain(last).collect()),
        })
    }

    fn array_indexer(&mut self, close: u8) -> Parsed<Step> {
        let begin = self.at;
        let mut parts: Vec<Option<i32>> = Vec::new();
        let mut separator = None;
        loop {
            self.skip_spaces();
            let start = self.at;
            if self.peek() == Some(b'*') {
                self.at += 1;
                self.skip_spaces();
                if self.peek() != Some(close) || !parts.is_empty() {
                    return self.error_at(start, "Unexpected character while parsing path indexer: *");
                }
                return Ok(Step::AnyElement);
            }
            while self
                .peek()
                .is_some_and(|byte| byte.is_ascii_digit() || byte == b'-')
            {
                self.at += 1;
            }
            let digits = self.text.get(start..self.at).unwrap_or_default();
            parts.push(match digits {
                "" => None,
                digits => match digits.parse() {
                    Ok(index) => Some(index),
                    Err(_) => return self.error_at(start, format!("Array index expected, found {digits}.")),
                },
            });
            self.skip_spaces();
            match self.peek() {
                Some(byte) if byte == close => break,
                Some(byte @ (b',' | b':')) if separator.is_none_or(|separator| separator == byte) => {
                    separator = Some(byte);
                    self.at += 1;
                }
                None => return self.error("Path ended with open indexer."),
                Some(_) => {
                    let unexpected = self.here();
                    let message = format!("Unexpected character while parsing path indexer: {unexpected}");
                    return self.error(message);
                }
            }
        }
        if separator == Some(b':') {
            return match parts.as_slice() {
                [start, end] => Ok(Step::Slice(*start, *end, 1)),
                [_, _, Some(0)] => self.error_at(begin, "Step cannot be zero."),
                [start, end, step] => Ok(Step::Slice(*start, *end, step.unwrap_or(1))),
                _ => self.error_at(begin, "A slice has at most start, end and step."),
            };
        }
        let indexes: Option<Vec<i32>> = parts.into_iter().collect();
        match indexes.as_deref() {
            None => self.error("Array index expected."),
            Some([index]) => Ok(Step::Index(*index)),
            Some(_) => Ok(Step::Indexes(indexes.unwrap_or_default())),
        }
    }

    /// A text in single quotes, from its opening quote.
    fn quoted_text(&mut self) -> Parsed<String> {
        let start = self.at;
        let mut text = String::new();
        let rest = self.text.get(start + 1..).unwrap_or_default();
        let mut characters = rest.char_indices();
        while let Some((n, character)) = characters.next() {
            match character {
                '\'' => {
                    self.at = start + 1 + n + 1;
                    return Ok(text);
                }
                '\\' => match characters.next() {
                    Some((_, 'b')) => text.push('\u{8}'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 'f')) => text.push('\u{c}'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, escaped @ ('\\' | '"' | '\'' | '/'))) => text.push(escaped),
                    Some((_, other)) => {
                        return self.error_at(start + 1 + n, format!("Unknown escape character: \\{other}"));
                    }
                    None => break,
                },
                other => text.push(other),
            }
        }
        self.error_at(start, "Path ended with an open string.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonpath::{Filter, Operand};

    fn refused(text: &str) -> (String, usize) {
        let error = parse(text).unwrap_err();
        (error.message, error.offset)
    }

    #[test]
    fn texts_of_the_reference_are_taken() {
        for text in [
            "$",
            "$.a",
            "a.b",
            "$a",
            "$.['a'].['b']",
            "$.a-b",
            "$.a[0]",
            "$.a(0)",
            "$.a[-1:]",
            "$.a[ 0 , 1 ]",
            "$.a[::2]",
            "$.a[1:]",
            "$..a",
            "$..*",
            "$..['a','b']",
            "$.*",
            "$[*]",
            "@.a",
            "$.a ",
            "$['it\\'s']",
            "$..[?(@a)]",
            "$.a[?( @.b )]",
            "$..[?(@.a=='x' && @.b!=1 )]",
            "$..[?(@a =~ /^b\\/c/i)]",
            "$..[?(@['my key'] <> null)]",
            "$.a[?(@..b)]",
            "$.a[?($.c == @.d)]",
            "$.a[?('x' == @.b)]",
            "$.a[?(@.b[?(@.c)])]",
            "$.a[?(@)]",
            "$.Überwachung",
            "$.a[?(@.b =~ '/x/i')]",
            "$..[?(@.a == -1.5e3 )]",
            "",
            "  ",
            "$....a",
        ] {
            assert!(parse(text).is_ok(), "{text}: {:?}", parse(text).unwrap_err());
        }
    }

    #[test]
    fn syntax_errors_tell_their_place() {
        let table = [
            ("$.", 2),
            ("$.a.", 4),
            ("$.a..", 5),
            ("$.[", 3),
            ("$.a[", 4),
            ("$.a[0", 5),
            ("$.a[\"b\"]", 4),
            ("$.a[0]b", 6),
            ("$.a b", 4),
            ("$.a]", 3),
            ("$.a[1:2:3:4]", 4),
            ("$.a[::0]", 4),
            ("$.a['b]", 4),
            ("$.a['b\\x']", 6),
            ("$.a[?@b]", 5),
            ("$..[?(", 6),
            ("$..[?(@a", 8),
            ("$..[?(@a)", 9),
            ("$..[?(@a & @b)]", 9),
            ("$..[?(@a == 1&&@b)]", 12),
            ("$..[?(@a = 1)]", 9),
            ("$..[?(!@a)]", 6),
            ("$..[?((@a))]", 6),
            ("$..[?(@a == \"2\")]", 12),
            ("$..[?(@a == 1 @b)]", 14),
            ("$..[?(@a =~ /[/)]", 12),
            ("$..[?(@a =~ 'b')]", 9),
            ("$..[?(@. == 1)]", 8),
            ("$.a[99999999999]", 4),
        ];
        for (text, offset) in table {
            assert_eq!(refused(text).1, offset, "{text}: {}", refused(text).0);
        }
    }

    #[test]
    fn operators_group_everything_to_their_right() {
        let of = |text: &str| match parse(&format!("$..[?({text})]")).unwrap().steps.pop() {
            Some(Step::DescendFilter(filter)) => filter,
            other => panic!("{other:?}"),
        };
        let name = |name: &str| Filter::Exists(Operand::Path(vec![Step::Member(name.into())]));
        assert_eq!(
            of("@a && @b && @c"),
            Filter::And(vec![name("a"), name("b"), name("c")])
        );
        assert_eq!(
            of("@a && @b || @c"),
            Filter::And(vec![name("a"), Filter::Or(vec![name("b"), name("c")])])
        );
        assert_eq!(
            of("@a || @b && @c || @d"),
            Filter::Or(vec![
                name("a"),
                Filter::And(vec![name("b"), Filter::Or(vec![name("c"), name("d")])])
            ])
        );
        assert!(parse("$..[?(@a && @b || @c)]").unwrap().mixes_operators());
        assert!(!parse("$..[?(@a && @b)]").unwrap().mixes_operators());
    }

    #[test]
    fn nesting_of_filters_ends_before_the_stack_does() {
        let text = format!("$.a{}", "[?(@.a".repeat(10_000));
        assert_eq!(refused(&text).0, "Filters are nested too deeply.");
    }
}
