//! A message as the templates see it: the envelope `{ Body, Properties, SystemProperties }`, read without copying.
//!
//! [`Tree`] holds a JSON document as one list of nodes in document order: texts borrow from the message, numbers keep
//! their spelling (rule D7), a subtree is a range of the list, and searching all descendants is a walk over that range.
//! [`Token`] is a place in such a tree; it also stands for the envelope enriched with `matchedToken`, which is never built.

mod envelope;
mod json;
mod token;
mod tree;

pub use envelope::{Envelope, ParsedMessage, PropertyValue};
pub use json::{JsonError, MAXIMUM_NESTING, parse, parse_nested};
pub(crate) use token::MATCHED_TOKEN;
pub use token::{Enriched, Kind, Token};
pub use tree::Tree;
pub(crate) use tree::{TreeBuilder, named};
