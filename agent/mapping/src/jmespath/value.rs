//! What an expression gives: a place in the message, or something computed.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;

use crate::jmespath::Expr;
use crate::message::{Kind, Token, Tree, TreeBuilder};
use crate::number::computed_text;

/// The result of an expression.
#[derive(Clone, Debug)]
pub enum Value<'t> {
    /// A value of the message, or of a literal: numbers keep their spelling.
    Token(Token<'t>),
    /// `null`
    Null,
    /// A boolean.
    Bool(bool),
    /// A computed integer.
    Integer(i64),
    /// A computed number, finite.
    Float(f64),
    /// A text.
    Text(Cow<'t, str>),
    /// An array.
    Array(Rc<Vec<Value<'t>>>),
    /// An object, members in order.
    Object(Rc<Vec<(Cow<'t, str>, Value<'t>)>>),
    /// An expression handed to a function.
    Reference(Reference<'t>),
}

/// An expression handed to a function (`&name`).
#[derive(Clone, Copy, Debug)]
pub struct Reference<'t>(pub(crate) &'t Expr);

impl<'t> Value<'t> {
    /// What it is; a reference counts as null.
    pub fn kind(&self) -> Kind {
        match self {
            Value::Token(token) => token.kind(),
            Value::Null | Value::Reference(_) => Kind::Null,
            Value::Bool(_) => Kind::Boolean,
            Value::Integer(_) => Kind::Integer,
            Value::Float(_) => Kind::Float,
            Value::Text(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::Object(_) => Kind::Object,
        }
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// The text, when it is one.
    pub fn as_text(&self) -> Option<Cow<'t, str>> {
        match self {
            Value::Token(token) => token.text().map(Cow::Borrowed),
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// The text of a measurement's value: texts as they are, numbers as rule D7 spells them, `True` and `False`; `None` for
    /// null, arrays and objects.
    pub fn to_text(&self) -> Option<Cow<'t, str>> {
        match self {
            Value::Token(token) => token_text(*token),
            Value::Bool(flag) => Some(Cow::Borrowed(boolean_text(*flag))),
            Value::Integer(integer) => Some(Cow::Owned(integer.to_string())),
            Value::Float(float) => Some(Cow::Owned(computed_text(*float))),
            Value::Text(text) => Some(text.clone()),
            Value::Null | Value::Array(_) | Value::Object(_) | Value::Reference(_) => None,
        }
    }

    /// The elements of an array.
    pub(crate) fn elements(&self) -> Option<Vec<Value<'t>>> {
        match self {
            Value::Token(token) if token.is_array() => Some(
                token
                    .elements()
                    .map(|(_, element)| Value::Token(element))
                    .collect(),
            ),
            Value::Array(elements) => Some(elements.to_vec()),
            _ => None,
        }
    }

    /// The members of an object.
    pub(crate) fn members(&self) -> Option<Vec<(Cow<'t, str>, Value<'t>)>> {
        match self {
            Value::Token(token) if token.is_object() => Some(
                token
                    .members()
                    .map(|(name, member)| (Cow::Borrowed(name), Value::Token(member)))
                    .collect(),
            ),
            Value::Object(members) => Some(members.to_vec()),
            _ => None,
        }
    }

    /// A document of its own, for expressions to be evaluated on.
    pub fn to_tree(&self) -> Tree<'t> {
        let mut builder = TreeBuilder::default();
        self.write(None, &mut builder);
        builder.build()
    }

    fn write(&self, name: Option<Cow<'t, str>>, builder: &mut TreeBuilder<'t>) {
        match self {
            Value::Token(token) => token.copy_to(name, builder),
            Value::Null | Value::Reference(_) => builder.null(name),
            Value::Bool(flag) => builder.bool(name, *flag),
            Value::Integer(integer) => builder.number(name, integer.to_string().into()),
            Value::Float(float) => builder.number(name, computed_text(*float).into()),
            Value::Text(text) => builder.text(name, text.clone()),
            Value::Array(elements) => {
                let mark = builder.begin_array(name);
                elements.iter().for_each(|element| element.write(None, builder));
                builder.end(mark);
            }
            Value::Object(members) => {
                let mark = builder.begin_object(name);
                for (name, member) in members.iter() {
                    member.write(Some(name.clone()), builder);
                }
                builder.end(mark);
            }
        }
    }
}

/// Compact JSON.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Token(token) => token.fmt(f),
            Value::Float(float) => f.write_str(&computed_text(*float)),
            other => other.to_tree().root().fmt(f),
        }
    }
}

/// The text of a value that is in the message.
pub(crate) fn token_text(token: Token<'_>) -> Option<Cow<'_, str>> {
    let text = token.text().or_else(|| token.number());
    text.or_else(|| token.bool().map(boolean_text)).map(Cow::Borrowed)
}

fn boolean_text(flag: bool) -> &'static str {
    if flag { "True" } else { "False" }
}
