//! The tokens of JMESPath.

use crate::document::{Document, Node, Shape};
use crate::expression::SyntaxError;
use crate::message::{Tree, TreeBuilder, named, parse};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Lexeme {
    Identifier(String),
    Quoted(String),
    Number(i64),
    Literal(Box<Tree<'static>>),
    Dot,
    Star,
    /// `[]`
    Flatten,
    /// `[?`
    Filter,
    LeftBracket,
    RightBracket,
    LeftParenthesis,
    RightParenthesis,
    LeftBrace,
    RightBrace,
    Comma,
    Colon,
    At,
    Reference,
    Pipe,
    Or,
    And,
    Not,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    End,
}

/// The tokens with the byte at which each begins; the last one is [`Lexeme::End`].
pub(super) fn lexemes(text: &str) -> Result<Vec<(usize, Lexeme)>, SyntaxError> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at).copied() {
        let next = bytes.get(at + 1).copied();
        let (lexeme, length) = match (byte, next) {
            (b' ' | b'\t' | b'\n' | b'\r', _) => {
                at += 1;
                continue;
            }
            (b'[', Some(b']')) => (Lexeme::Flatten, 2),
            (b'[', Some(b'?')) => (Lexeme::Filter, 2),
            (b'[', _) => (Lexeme::LeftBracket, 1),
            (b'|', Some(b'|')) => (Lexeme::Or, 2),
            (b'|', _) => (Lexeme::Pipe, 1),
            (b'&', Some(b'&')) => (Lexeme::And, 2),
            (b'&', _) => (Lexeme::Reference, 1),
            (b'=', Some(b'=')) => (Lexeme::Equal, 2),
            (b'!', Some(b'=')) => (Lexeme::NotEqual, 2),
            (b'!', _) => (Lexeme::Not, 1),
            (b'<', Some(b'=')) => (Lexeme::LessOrEqual, 2),
            (b'<', _) => (Lexeme::Less, 1),
            (b'>', Some(b'=')) => (Lexeme::GreaterOrEqual, 2),
            (b'>', _) => (Lexeme::Greater, 1),
            (b'.', _) => (Lexeme::Dot, 1),
            (b'*', _) => (Lexeme::Star, 1),
            (b']', _) => (Lexeme::RightBracket, 1),
            (b'(', _) => (Lexeme::LeftParenthesis, 1),
            (b')', _) => (Lexeme::RightParenthesis, 1),
            (b'{', _) => (Lexeme::LeftBrace, 1),
            (b'}', _) => (Lexeme::RightBrace, 1),
            (b',', _) => (Lexeme::Comma, 1),
            (b':', _) => (Lexeme::Colon, 1),
            (b'@', _) => (Lexeme::At, 1),
            (b'\'', _) => delimited(text, at, '\'').map(|(raw, length)| (raw_text(raw), length))?,
            (b'`', _) => delimited(text, at, '`').map(|(raw, length)| (literal(raw), length))?,
            (b'"', _) => {
                let (raw, length) = delimited(text, at, '"')?;
                let name = serde_json::from_str(&format!("\"{raw}\""));
                let name = name.map_err(|_| error(at, "Invalid text in double quotes."))?;
                (Lexeme::Quoted(name), length)
            }
            (b'-' | b'0'..=b'9', _) => {
                let digits = bytes
                    .iter()
                    .skip(at + 1)
                    .take_while(|byte| byte.is_ascii_digit())
                    .count();
                let number = text.get(at..=at + digits).and_then(|number| number.parse().ok());
                (
                    Lexeme::Number(number.ok_or_else(|| error(at, "Invalid number."))?),
                    digits + 1,
                )
            }
            (b'a'..=b'z' | b'A'..=b'Z' | b'_', _) => {
                let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
                let length = bytes.iter().skip(at).take_while(is_part).count();
                (
                    Lexeme::Identifier(text.get(at..at + length).unwrap_or_default().to_owned()),
                    length,
                )
            }
            _ => {
                let character = text.get(at..).and_then(|rest| rest.chars().next()).unwrap_or(' ');
                return Err(error(at, format!("Unexpected character: {character}")));
            }
        };
        found.push((at, lexeme));
        at += length;
    }
    found.push((text.len(), Lexeme::End));
    Ok(found)
}

fn error(offset: usize, message: impl Into<String>) -> SyntaxError {
    SyntaxError {
        message: message.into(),
        offset,
    }
}

/// What stands between the delimiter at `at` and the next one that no backslash precedes, and the length of all.
fn delimited(text: &str, at: usize, delimiter: char) -> Result<(&str, usize), SyntaxError> {
    let rest = text.get(at + 1..).unwrap_or_default();
    let mut escaped = false;
    for (n, character) in rest.char_indices() {
        if character == delimiter && !escaped {
            return Ok((rest.get(..n).unwrap_or_default(), n + 2));
        }
        escaped = character == '\\' && !escaped;
    }
    Err(error(at, format!("Unclosed {delimiter} delimiter.")))
}

/// A text in single quotes; only the quote itself is escaped.
fn raw_text(raw: &str) -> Lexeme {
    text_literal(raw.replace("\\'", "'"))
}

fn text_literal(text: String) -> Lexeme {
    let mut builder = TreeBuilder::default();
    builder.text(None, text.into());
    Lexeme::Literal(Box::new(builder.build()))
}

/// A literal in backticks: JSON, or text when it is none (rule D23).
fn literal(raw: &str) -> Lexeme {
    let content = raw.replace("\\`", "`");
    let content = content.trim_start();
    if let Ok(tree) = parse(content.trim_end().as_bytes()) {
        return Lexeme::Literal(Box::new(tree.into_owned()));
    }
    // The reference's reader takes single quotes; anything else is the text as it stands.
    match Document::parse(content) {
        Ok(document) if content.contains('\'') => {
            let mut builder = TreeBuilder::default();
            copy(&document.root, None, &mut builder);
            Lexeme::Literal(Box::new(builder.build().into_owned()))
        }
        _ => text_literal(
            serde_json::from_str(&format!("\"{content}\"")).unwrap_or_else(|_| content.to_owned()),
        ),
    }
}

fn copy<'n>(node: &'n Node<'_>, name: Option<&'n str>, builder: &mut TreeBuilder<'n>) {
    let name = name.and_then(named);
    match &node.shape {
        Shape::Null => builder.null(name),
        Shape::Bool(flag) => builder.bool(name, *flag),
        Shape::Number(spelling) => builder.number(name, (*spelling).into()),
        Shape::Text(text) => builder.text(name, text.as_ref().into()),
        Shape::Array(elements) => {
            let mark = builder.begin_array(name);
            elements.iter().for_each(|element| copy(element, None, builder));
            builder.end(mark);
        }
        Shape::Object(members) => {
            let mark = builder.begin_object(name);
            members
                .iter()
                .for_each(|member| copy(&member.value, Some(&member.name), builder));
            builder.end(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_in_backticks_are_json_or_text() {
        let table = [
            ("`1.50`", "1.50"),
            ("` {\"a\": [1]} `", "{\"a\":[1]}"),
            ("`\"x\"`", "\"x\""),
            ("`heartRate`", "\"heartRate\""),
            ("`2019-01-01`", "\"2019-01-01\""),
            ("`'single'`", "\"single\""),
            ("`it's`", "\"it's\""),
            ("`a\\`b`", "\"a`b\""),
            ("``", "\"\""),
            ("'it\\'s'", "\"it's\""),
            ("'a\\b'", "\"a\\\\b\""),
        ];
        for (text, expected) in table {
            match &lexemes(text).unwrap()[0].1 {
                Lexeme::Literal(tree) => assert_eq!(tree.root().to_string(), expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
