//! An expression of a device mapping: its language, its text, its parsed form.

use std::fmt;

use crate::error::ErrorKind;
use crate::jmespath::JmesPath;
use crate::jsonpath::JsonPath;
use crate::message::MATCHED_TOKEN;

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// What is wrong, in the reference's wording where it has one.
    pub message: String,
    /// Byte of the expression at which it is wrong.
    pub offset: usize,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (position {})", self.message, self.offset + 1)
    }
}

impl std::error::Error for SyntaxError {}

/// Why an evaluation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluationError {
    /// The reference's name of the error.
    pub kind: ErrorKind,
    /// What went wrong, without any value of the message.
    pub text: String,
}

/// A language of expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// The dialect of [`crate::jsonpath`].
    JsonPath,
    /// The dialect of [`crate::jmespath`].
    JmesPath,
}

impl Language {
    /// The name as mappings write it.
    pub fn name(self) -> &'static str {
        match self {
            Language::JsonPath => "JsonPath",
            Language::JmesPath => "JmesPath",
        }
    }

    /// The language of that name, in any letter case, or of its number in the reference (0, 1).
    pub fn of_name(name: &str) -> Option<Language> {
        match name.to_ascii_lowercase().as_str() {
            "jsonpath" | "0" => Some(Language::JsonPath),
            "jmespath" | "1" => Some(Language::JmesPath),
            _ => None,
        }
    }
}

/// An expression, parsed.
///
/// ```
/// use iomt_mapping::expression::{Expression, Language};
///
/// let expression = Expression::parse("$.Body.deviceId", Language::JsonPath).unwrap();
/// assert_eq!(expression.first_member(), Some("Body"));
/// let error = Expression::parse("Body.", Language::JmesPath).unwrap_err();
/// assert_eq!(error.offset, 5);
/// ```
#[derive(Clone, Debug)]
pub enum Expression {
    /// In JSONPath.
    JsonPath(JsonPath),
    /// In JMESPath.
    JmesPath(JmesPath),
}

impl Expression {
    /// Parses an expression of that language.
    pub fn parse(text: &str, language: Language) -> Result<Expression, SyntaxError> {
        match language {
            Language::JsonPath => JsonPath::parse(text).map(Expression::JsonPath),
            Language::JmesPath => JmesPath::parse(text).map(Expression::JmesPath),
        }
    }

    /// Its language.
    pub fn language(&self) -> Language {
        match self {
            Expression::JsonPath(_) => Language::JsonPath,
            Expression::JmesPath(_) => Language::JmesPath,
        }
    }

    /// The expression as it is written.
    pub fn text(&self) -> &str {
        match self {
            Expression::JsonPath(path) => path.text(),
            Expression::JmesPath(path) => path.text(),
        }
    }

    /// The member of the root where it starts, when it starts with one.
    pub fn first_member(&self) -> Option<&str> {
        match self {
            Expression::JsonPath(path) => path.first_member(),
            Expression::JmesPath(path) => path.first_member(),
        }
    }

    /// Whether it names one place of the envelope, member by member, and not within the match: it finds the same for all
    /// matches in a message.
    pub(crate) fn is_place_in_envelope(&self) -> bool {
        match self {
            Expression::JsonPath(path) => {
                path.first_member() != Some(MATCHED_TOKEN) && path.is_place() && !path.steps().is_empty()
            }
            Expression::JmesPath(_) => false,
        }
    }

    /// Whether a JSONPath filter has `&&` and `||`, which have no precedence there.
    pub fn mixes_operators(&self) -> bool {
        match self {
            Expression::JsonPath(path) => path.mixes_operators(),
            Expression::JmesPath(_) => false,
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
