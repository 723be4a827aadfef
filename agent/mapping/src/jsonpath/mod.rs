//! JSONPath in the dialect of the reference (Newtonsoft `SelectTokens`, `mapping.md` 1.5) under rules D11 and D12.
//!
//! The dialect is no subset of RFC 9535 and no superset: `@name` without a dot, names with hyphens, `===`, `=~ /x/i`, `&&` and
//! `||` without precedence, `..[?()]` that tests the root too, `..[0]` that is not recursive. So an expression has one parser
//! ([`JsonPath::parse`], errors with their place when the mapping loads), one form (a list of steps), and one evaluator that walks the
//! message in document order and copies nothing.
//!
//! What jsonpath-rust carries: [`JsonPath::to_rfc9535`] gives the expression as its query where dialect and RFC mean the same; `check` tells
//! by it whether an expression is portable, and a property test holds the evaluator against it there. Evaluating with it was
//! measured at 50 times the cost, because it builds the path of every node that it visits.

mod evaluate;
mod parser;
mod rfc9535;

use std::fmt;

pub use crate::expression::{EvaluationError, SyntaxError};
use crate::message::Token;

/// Nodes that one evaluation may visit; `..a..b..c` over a large message would visit them many times over.
pub const MAXIMUM_VISITS: u32 = 4_000_000;

/// Tokens that one expression may give.
pub const MAXIMUM_RESULTS: usize = 100_000;

/// An expression, parsed.
///
/// ```
/// use iomt_mapping::jsonpath::JsonPath;
/// use iomt_mapping::message::parse;
///
/// let path = JsonPath::parse("$..[?(@heartRate > 40)]").unwrap();
/// let message = parse(br#"{"Body": [{"heartRate": 78}, {"heartRate": 12}]}"#).unwrap();
/// let matches = path.select_all(message.root()).unwrap();
/// assert_eq!(matches.len(), 1);
/// assert_eq!(matches[0].to_string(), r#"{"heartRate":78}"#);
/// ```
#[derive(Clone, Debug)]
pub struct JsonPath {
    text: String,
    steps: Vec<Step>,
    /// A filter mixes `&&` and `||`, which group to the right.
    mixes_operators: bool,
}

/// One step of a path: from each token that the steps before it gave, to some tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// `.name`, `['name']`
    Member(Box<str>),
    /// `['a','b']`
    Members(Vec<Box<str>>),
    /// `.*`: members of objects only
    AnyMember,
    /// `[*]`: elements of arrays only
    AnyElement,
    /// `[0]`, `[-1]`
    Index(i32),
    /// `[0,1]`
    Indexes(Vec<i32>),
    /// `[start:end:step]`
    Slice(Option<i32>, Option<i32>, i32),
    /// `[?(...)]`: elements of arrays only
    Filter(Filter),
    /// `..name`
    Descend(Box<str>),
    /// `..['a','b']`
    DescendMembers(Vec<Box<str>>),
    /// `..*`: the token itself too
    DescendAll,
    /// `..[?(...)]`: the token itself too
    DescendFilter(Filter),
    /// `$` within a filter
    Root,
}

/// The condition of a filter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filter {
    Exists(Operand),
    Compare(Operand, Operator, Operand),
    And(Vec<Filter>),
    Or(Vec<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Path(Vec<Step>),
    Literal(Literal),
}

#[derive(Clone, Debug)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(Box<str>),
    /// `/pattern/flags`, as it is written and compiled.
    Regex(Box<str>, Box<fancy_regex::Regex>),
}

impl PartialEq for Literal {
    fn eq(&self, other: &Literal) -> bool {
        match (self, other) {
            (Literal::Null, Literal::Null) => true,
            (Literal::Bool(a), Literal::Bool(b)) => a == b,
            (Literal::Integer(a), Literal::Integer(b)) => a == b,
            (Literal::Float(a), Literal::Float(b)) => a == b,
            (Literal::Text(a), Literal::Text(b)) | (Literal::Regex(a, _), Literal::Regex(b, _)) => a == b,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    StrictEqual,
    NotEqual,
    StrictNotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Matches,
}

impl JsonPath {
    /// Parses an expression.
    pub fn parse(text: &str) -> Result<JsonPath, SyntaxError> {
        parser::parse(text)
    }

    /// The expression as it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The member of the root where the path starts, when it starts with one.
    pub fn first_member(&self) -> Option<&str> {
        match self.steps.first()? {
            Step::Member(name) => Some(name),
            _ => None,
        }
    }

    /// Whether it names one member after another, and nothing else.
    pub(crate) fn is_place(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Member(_)))
    }

    /// Whether a filter has `&&` and `||`, which have no precedence: everything to the right of an operator is grouped.
    pub fn mixes_operators(&self) -> bool {
        self.mixes_operators
    }

    /// The longest beginning of the path that finds something, `None` when all of it does.
    pub fn found_up_to(&self, root: Token<'_>) -> Option<String> {
        let finds = |length: usize| {
            let steps = self.steps.get(..length).unwrap_or_default().to_vec();
            let beginning = JsonPath {
                text: self.text.clone(),
                steps,
                mixes_operators: false,
            };
            beginning.select_all(root).is_ok_and(|found| !found.is_empty())
        };
        let missing = (1..=self.steps.len()).find(|length| !finds(*length))?;
        let beginning = self.steps.get(..missing - 1).unwrap_or_default();
        Some(
            std::iter::once("$".to_owned())
                .chain(beginning.iter().map(Step::to_string))
                .collect(),
        )
    }

    /// All tokens that the expression finds, in document order.
    pub fn select_all<'t>(&self, root: Token<'t>) -> Result<Vec<Token<'t>>, EvaluationError> {
        evaluate::select_all(self, root)
    }

    /// The token that the expression finds, `None` when there is none; several are a `TemplateExpressionException`.
    pub fn select_one<'t>(&self, root: Token<'t>) -> Result<Option<Token<'t>>, EvaluationError> {
        evaluate::select_one(self, root)
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The step as it could be written.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |names: &[Box<str>]| {
            let each = names
                .iter()
                .map(|name| format!("'{}'", name.replace('\\', "\\\\").replace('\'', "\\'")));
            each.collect::<Vec<_>>().join(",")
        };
        let part = |index: &Option<i32>| index.map(|index| index.to_string()).unwrap_or_default();
        match self {
            Step::Member(name) => write!(f, "[{}]", quoted(std::slice::from_ref(name))),
            Step::Members(names) => write!(f, "[{}]", quoted(names)),
            Step::AnyMember => f.write_str(".*"),
            Step::AnyElement => f.write_str("[*]"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Indexes(indexes) => {
                let indexes: Vec<String> = indexes.iter().map(i32::to_string).collect();
                write!(f, "[{}]", indexes.join(","))
            }
            Step::Slice(start, end, step) => write!(f, "[{}:{}:{step}]", part(start), part(end)),
            Step::Filter(_) => f.write_str("[?(...)]"),
            Step::Descend(name) => write!(f, "..[{}]", quoted(std::slice::from_ref(name))),
            Step::DescendMembers(names) => write!(f, "..[{}]", quoted(names)),
            Step::DescendAll => f.write_str("..*"),
            Step::DescendFilter(_) => f.write_str("..[?(...)]"),
            Step::Root => f.write_str("$"),
        }
    }
}
