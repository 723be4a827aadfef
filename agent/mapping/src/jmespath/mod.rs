//! JMESPath with the eight functions of the reference (`mapping.md` 1.6) under rules D1, D3, D7 and D23.
//!
//! Parser and interpreter are the engine's own. The `jmespath` crate is held against them by a property test, but cannot stand
//! in for them: its values sort members and lose the spelling of computed and big numbers, a literal that is no JSON is an
//! error there (D23), integers and floats can be equal there, and neither its parser nor its
//! interpreter bounds nesting or work.

mod evaluate;
mod functions;
mod lexer;
mod parser;
mod value;

use std::fmt;

use crate::expression::{EvaluationError, SyntaxError};
use crate::message::{Token, Tree};
use functions::Function;
pub use value::Value;

/// Steps that one evaluation may take, elements visited and text written included.
pub const MAXIMUM_WORK: u32 = 4_000_000;

/// Expressions within each other, at most.
pub const MAXIMUM_NESTING: usize = 100;

/// An expression, parsed.
///
/// ```
/// use iomt_mapping::jmespath::JmesPath;
/// use iomt_mapping::message::parse;
///
/// let path = JmesPath::parse("multiply(height, `0.0254`)").unwrap();
/// let message = parse(br#"{"height": 78}"#).unwrap();
/// let found = path.select_one(message.root()).unwrap().unwrap();
/// assert_eq!(found.to_text().as_deref(), Some("1.9812"));
/// ```
#[derive(Clone, Debug)]
pub struct JmesPath {
    text: String,
    root: Expr,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Current,
    Field(Box<str>),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Literal(Box<Tree<'static>>),
    /// The right one on what the left one gives.
    Sub(Box<Expr>, Box<Expr>),
    /// As `Sub`, and ends a projection.
    Pipe(Box<Expr>, Box<Expr>),
    /// The right one on each element that the left one gives.
    Project(Box<Expr>, Box<Expr>),
    /// The last one on each element of the first for which the second is true.
    Filter(Box<Expr>, Box<Expr>, Box<Expr>),
    ObjectValues(Box<Expr>),
    Flatten(Box<Expr>),
    MultiList(Vec<Expr>),
    MultiHash(Vec<(Box<str>, Expr)>),
    Or(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Compare(Box<Expr>, Comparator, Box<Expr>),
    Call(Function, Vec<Expr>),
    /// `&expression`
    Reference(Box<Expr>),
    /// In parentheses: what follows is about the whole.
    Group(Box<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JmesPath {
    /// Parses an expression; unknown functions and wrong numbers of arguments are errors here too.
    pub fn parse(text: &str) -> Result<JmesPath, SyntaxError> {
        Ok(JmesPath {
            text: text.to_owned(),
            root: parser::parse(text)?,
        })
    }

    /// The expression as it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn expr(&self) -> &Expr {
        &self.root
    }

    /// The member of the root where the expression starts, when it starts with one.
    pub fn first_member(&self) -> Option<&str> {
        let mut expr = &self.root;
        loop {
            expr = match expr {
                Expr::Field(name) => return Some(name),
                Expr::Sub(left, _)
                | Expr::Pipe(left, _)
                | Expr::Project(left, _)
                | Expr::Filter(left, _, _)
                | Expr::ObjectValues(left)
                | Expr::Flatten(left)
                | Expr::Group(left) => left,
                _ => return None,
            };
        }
    }

    /// The matches of a type match: each element of a projection, else the one value, none when it is null.
    pub fn select_all<'t>(&'t self, root: Token<'t>) -> Result<Vec<Value<'t>>, EvaluationError> {
        evaluate::select_all(self, root)
    }

    /// The value; `None` when it is null. A projection of several elements is a `TemplateExpressionException`, one of one element
    /// is an array.
    pub fn select_one<'t>(&'t self, root: Token<'t>) -> Result<Option<Value<'t>>, EvaluationError> {
        evaluate::select_one(self, root)
    }
}

impl fmt::Display for JmesPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
