//! Evaluating an expression. Every step, element and written byte counts against one budget, so that no expression can run
//! or grow without bound.

use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Ordering;
use std::rc::Rc;

use crate::error::ErrorKind;
use crate::expression::EvaluationError;
use crate::jmespath::value::Reference;
use crate::jmespath::{Comparator, Expr, JmesPath, MAXIMUM_WORK, Value, functions};
use crate::message::{Kind, Token};
use crate::number::compare_floats;

/// Why an evaluation stopped.
#[derive(Debug)]
pub(super) enum Failure {
    /// With this error, in words without any value.
    Error(ErrorKind, Cow<'static, str>),
    /// The budget is spent.
    Limit,
}

pub(super) type Evaluated<'t> = Result<Value<'t>, Failure>;

pub(super) fn select_all<'t>(path: &'t JmesPath, root: Token<'t>) -> Result<Vec<Value<'t>>, EvaluationError> {
    let evaluator = Evaluator::default();
    let found = evaluator.top(path.expr(), &Value::Token(root));
    let (value, projection) = found.map_err(|failure| described(path, failure))?;
    Ok(match value {
        value if value.is_null() => Vec::new(),
        value if projection => value.elements().unwrap_or_default(),
        value => vec![value],
    })
}

pub(super) fn select_one<'t>(
    path: &'t JmesPath,
    root: Token<'t>,
) -> Result<Option<Value<'t>>, EvaluationError> {
    // Most expressions name one member after another.
    if let Some(found) = chain(path.expr(), root) {
        return Ok(found.filter(|token| !token.is_null()).map(Value::Token));
    }
    let evaluator = Evaluator::default();
    let found = evaluator.top(path.expr(), &Value::Token(root));
    let (value, projection) = found.map_err(|failure| described(path, failure))?;
    if value.is_null() {
        return Ok(None);
    }
    if projection && value.elements().is_some_and(|elements| elements.len() > 1) {
        let text = format!("Multiple tokens were returned by expression {path}.");
        return Err(EvaluationError {
            kind: ErrorKind::TemplateExpressionException,
            text,
        });
    }
    Ok(Some(value))
}

/// The value of an expression that only names members; `None` when it does anything else.
#[expect(
    clippy::option_option,
    reason = "whether this is such an expression, and whether it finds something"
)]
fn chain<'t>(expr: &Expr, token: Token<'t>) -> Option<Option<Token<'t>>> {
    match expr {
        Expr::Field(name) => Some(token.member(name)),
        Expr::Sub(left, right) => match (&**right, chain(left, token)?) {
            (Expr::Field(name), Some(token)) => Some(token.member(name)),
            (Expr::Field(_), None) => Some(None),
            _ => None,
        },
        _ => None,
    }
}

fn described(path: &JmesPath, failure: Failure) -> EvaluationError {
    match failure {
        Failure::Error(kind, text) => EvaluationError {
            kind,
            text: format!("Expression {path}: {text}"),
        },
        Failure::Limit => EvaluationError {
            kind: ErrorKind::InsufficientExecutionStackException,
            text: format!("Expression {path} takes more than {MAXIMUM_WORK} steps on this message."),
        },
    }
}

pub(super) struct Evaluator {
    work: Cell<u32>,
}

impl Default for Evaluator {
    fn default() -> Evaluator {
        Evaluator {
            work: Cell::new(MAXIMUM_WORK),
        }
    }
}

impl Evaluator {
    /// Takes `amount` from the budget.
    pub(super) fn charge(&self, amount: usize) -> Result<(), Failure> {
        let left = u32::try_from(amount)
            .ok()
            .and_then(|amount| self.work.get().checked_sub(amount));
        self.work.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or(Failure::Limit)
    }

    /// The value of the whole expression, and whether it is a projection, of which each element counts.
    fn top<'t>(&self, expr: &'t Expr, current: &Value<'t>) -> Result<(Value<'t>, bool), Failure> {
        match expr {
            Expr::Project(..) | Expr::Filter(..) => Ok((self.value(expr, current)?, true)),
            // `a.b[*]` is `b[*]` on `a`.
            Expr::Sub(left, right) | Expr::Pipe(left, right) => {
                let left = self.value(left, current)?;
                self.top(right, &left)
            }
            Expr::Or(left, right) => match self.top(left, current)? {
                (value, projection) if is_true(&value) => Ok((value, projection)),
                _ => self.top(right, current),
            },
            Expr::And(left, right) => match self.top(left, current)? {
                (value, _) if is_true(&value) => self.top(right, current),
                found => Ok(found),
            },
            _ => Ok((self.value(expr, current)?, false)),
        }
    }

    pub(super) fn value<'t>(&self, expr: &'t Expr, current: &Value<'t>) -> Evaluated<'t> {
        self.charge(1)?;
        match expr {
            Expr::Current => Ok(current.clone()),
            Expr::Field(name) => Ok(field(current, name)),
            Expr::Index(index) => Ok(element(current, *index)),
            Expr::Slice(start, end, step) => self.slice(current, *start, *end, *step),
            Expr::Literal(tree) => Ok(Value::Token(tree.root())),
            Expr::Sub(left, right) | Expr::Pipe(left, right) => {
                let left = self.value(left, current)?;
                self.value(right, &left)
            }
            Expr::Project(left, right) => {
                let left = self.value(left, current)?;
                match left.elements() {
                    Some(elements) => self.project(elements, right, None),
                    None => Ok(Value::Null),
                }
            }
            Expr::Filter(left, condition, right) => {
                let left = self.value(left, current)?;
                match left.elements() {
                    Some(elements) => self.project(elements, right, Some(condition)),
                    None => Ok(Value::Null),
                }
            }
            Expr::ObjectValues(inner) => {
                let members = self.value(inner, current)?.members();
                let values =
                    |members: Vec<(_, Value<'t>)>| members.into_iter().map(|(_, value)| value).collect();
                Ok(members.map_or(Value::Null, |members| Value::Array(Rc::new(values(members)))))
            }
            Expr::Flatten(inner) => self.flatten(&self.value(inner, current)?),
            Expr::MultiList(_) | Expr::MultiHash(_) if current.is_null() => Ok(Value::Null),
            Expr::MultiList(exprs) => {
                let values = exprs
                    .iter()
                    .map(|expr| self.value(expr, current))
                    .collect::<Result<_, _>>()?;
                Ok(Value::Array(Rc::new(values)))
            }
            Expr::MultiHash(exprs) => {
                let mut members: Vec<(Cow<'t, str>, Value<'t>)> = Vec::with_capacity(exprs.len());
                for (name, expr) in exprs {
                    let value = self.value(expr, current)?;
                    match members.iter_mut().find(|(known, _)| **known == **name) {
                        Some(member) => member.1 = value,
                        None => members.push((Cow::Borrowed(name), value)),
                    }
                }
                Ok(Value::Object(Rc::new(members)))
            }
            Expr::Or(left, right) => match self.value(left, current)? {
                value if is_true(&value) => Ok(value),
                _ => self.value(right, current),
            },
            Expr::And(left, right) => match self.value(left, current)? {
                value if is_true(&value) => self.value(right, current),
                value => Ok(value),
            },
            Expr::Not(inner) => Ok(Value::Bool(!is_true(&self.value(inner, current)?))),
            Expr::Compare(left, comparator, right) => {
                let (left, right) = (self.value(left, current)?, self.value(right, current)?);
                self.compare(&left, *comparator, &right)
            }
            Expr::Call(function, arguments) => {
                let arguments: Vec<Value<'t>> = arguments
                    .iter()
                    .map(|argument| self.value(argument, current))
                    .collect::<Result<_, _>>()?;
                functions::call(self, *function, &arguments)
            }
            Expr::Reference(inner) => Ok(Value::Reference(Reference(inner))),
            Expr::Group(inner) => self.value(inner, current),
        }
    }

    fn project<'t>(
        &self,
        elements: Vec<Value<'t>>,
        right: &'t Expr,
        condition: Option<&'t Expr>,
    ) -> Evaluated<'t> {
        self.charge(elements.len())?;
        let mut projected = Vec::new();
        for element in elements {
            if let Some(condition) = condition
                && !is_true(&self.value(condition, &element)?)
            {
                continue;
            }
            let value = self.value(right, &element)?;
            if !value.is_null() || matches!(value, Value::Reference(_)) {
                projected.push(value);
            }
        }
        Ok(Value::Array(Rc::new(projected)))
    }

    fn flatten<'t>(&self, value: &Value<'t>) -> Evaluated<'t> {
        let Some(elements) = value.elements() else {
            return Ok(Value::Null);
        };
        let mut flat = Vec::with_capacity(elements.len());
        for element in elements {
            match element.elements() {
                Some(inner) => {
                    self.charge(inner.len())?;
                    flat.extend(inner);
                }
                None => flat.push(element),
            }
        }
        self.charge(flat.len())?;
        Ok(Value::Array(Rc::new(flat)))
    }

    fn slice<'t>(&self, value: &Value<'t>, start: Option<i64>, end: Option<i64>, step: i64) -> Evaluated<'t> {
        let Some(elements) = value.elements() else {
            return Ok(Value::Null);
        };
        self.charge(elements.len())?;
        let count = i64::try_from(elements.len()).unwrap_or(i64::MAX);
        let (lowest, highest) = if step > 0 { (0, count) } else { (-1, count - 1) };
        let bound = |index: i64| {
            if index < 0 {
                index.saturating_add(count)
            } else {
                index
            }
            .clamp(lowest, highest)
        };
        let start = start.map_or(if step > 0 { 0 } else { highest }, bound);
        let end = end.map_or(if step > 0 { count } else { -1 }, bound);
        let mut sliced = Vec::new();
        let mut at = start;
        while if step > 0 { at < end } else { at > end } {
            sliced.extend(usize::try_from(at).ok().and_then(|at| elements.get(at)).cloned());
            at = at.saturating_add(step);
        }
        Ok(Value::Array(Rc::new(sliced)))
    }

    fn compare<'t>(&self, left: &Value<'t>, comparator: Comparator, right: &Value<'t>) -> Evaluated<'t> {
        let by_order = |holds: fn(Ordering) -> bool| match numeric_order(left, right) {
            Some(order) => Value::Bool(holds(order)),
            None => Value::Null,
        };
        Ok(match comparator {
            Comparator::Equal => Value::Bool(self.equal(left, right)?),
            Comparator::NotEqual => Value::Bool(!self.equal(left, right)?),
            Comparator::Less => by_order(Ordering::is_lt),
            Comparator::LessOrEqual => by_order(Ordering::is_le),
            Comparator::Greater => by_order(Ordering::is_gt),
            Comparator::GreaterOrEqual => by_order(Ordering::is_ge),
        })
    }

    /// Whether two values are equal: numbers by value, objects whatever the order of members.
    pub(super) fn equal(&self, left: &Value<'_>, right: &Value<'_>) -> Result<bool, Failure> {
        self.charge(1)?;
        Ok(match (left.kind(), right.kind()) {
            (Kind::Null, Kind::Null) => true,
            (Kind::Boolean, Kind::Boolean) => is_true(left) == is_true(right),
            (Kind::String, Kind::String) => left.as_text() == right.as_text(),
            (Kind::Integer | Kind::Float, Kind::Integer | Kind::Float) => {
                numeric_order(left, right) == Some(Ordering::Equal)
            }
            (Kind::Array, Kind::Array) => {
                let (left, right) = (
                    left.elements().unwrap_or_default(),
                    right.elements().unwrap_or_default(),
                );
                if left.len() != right.len() {
                    return Ok(false);
                }
                for (left, right) in left.iter().zip(&right) {
                    if !self.equal(left, right)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Kind::Object, Kind::Object) => {
                let (left, right) = (
                    left.members().unwrap_or_default(),
                    right.members().unwrap_or_default(),
                );
                if left.len() != right.len() {
                    return Ok(false);
                }
                for (name, left) in &left {
                    self.charge(right.len())?;
                    match right.iter().find(|(other, _)| other == name) {
                        Some((_, right)) if self.equal(left, right)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            _ => false,
        })
    }
}

fn field<'t>(value: &Value<'t>, name: &str) -> Value<'t> {
    match value {
        Value::Token(token) => token.member(name).map_or(Value::Null, Value::Token),
        Value::Object(members) => members
            .iter()
            .find(|(known, _)| known == name)
            .map_or(Value::Null, |(_, value)| value.clone()),
        _ => Value::Null,
    }
}

fn element<'t>(value: &Value<'t>, index: i64) -> Value<'t> {
    let place = |count: usize| match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => usize::try_from(index.unsigned_abs())
            .ok()
            .and_then(|back| count.checked_sub(back)),
    };
    match value {
        Value::Token(token) => {
            let found = if index >= 0 {
                place(0)
            } else {
                place(token.elements().count())
            };
            found
                .and_then(|index| token.element(index))
                .map_or(Value::Null, Value::Token)
        }
        Value::Array(elements) => place(elements.len())
            .and_then(|index| elements.get(index).cloned())
            .unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

/// Null, false and empty texts, arrays and objects are false; zero is true.
pub(super) fn is_true(value: &Value<'_>) -> bool {
    match value {
        Value::Token(token) => match token.kind() {
            Kind::Null => false,
            Kind::Boolean => token.bool() == Some(true),
            Kind::Integer | Kind::Float => true,
            Kind::String => token.text().is_some_and(|text| !text.is_empty()),
            Kind::Array => token.elements().next().is_some(),
            Kind::Object => token.members().next().is_some(),
        },
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Integer(_) | Value::Float(_) | Value::Reference(_) => true,
        Value::Text(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// A number as an argument of arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Integer(i64),
    /// An integer beyond 64 bits.
    Big(f64),
    Float(f64),
}

impl Number {
    pub(super) fn of(value: &Value<'_>) -> Option<Number> {
        match value {
            Value::Integer(integer) => Some(Number::Integer(*integer)),
            Value::Float(float) => Some(Number::Float(*float)),
            Value::Token(token) => {
                let spelling = token.number()?;
                let float = || spelling.parse().ok();
                match (token.kind(), spelling.parse()) {
                    (Kind::Integer, Ok(integer)) => Some(Number::Integer(integer)),
                    (Kind::Integer, Err(_)) => float().map(Number::Big),
                    _ => float().map(Number::Float),
                }
            }
            _ => None,
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "mixed arithmetic is in doubles, as in the reference"
    )]
    pub(super) fn float(self) -> f64 {
        match self {
            Number::Integer(integer) => integer as f64,
            Number::Big(float) | Number::Float(float) => float,
        }
    }
}

/// `None` when one of them is no number.
pub(super) fn numeric_order(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    match (Number::of(left)?, Number::of(right)?) {
        (Number::Integer(left), Number::Integer(right)) => Some(left.cmp(&right)),
        (Number::Big(_), Number::Big(_)) if spelling(left) == spelling(right) => Some(Ordering::Equal),
        (left, right) => compare_floats(left.float(), right.float()),
    }
}

fn spelling<'t>(value: &Value<'t>) -> Option<&'t str> {
    match value {
        Value::Token(token) => token.number(),
        _ => None,
    }
}
