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
use crate::jsonpath::MAXIMUM_RESULTS;
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
    let found = evaluator.result(path.expr(), root);
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
    let found = evaluator.result(path.expr(), root);
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

    /// Takes what writing `value` out takes: parts that an expression repeats are shared until then.
    pub(super) fn charge_whole(&self, value: &Value<'_>) -> Result<(), Failure> {
        const OF_EACH: usize = 4;
        match value {
            Value::Token(token) => token.with_descendants().try_for_each(|(name, each)| {
                let text = each.text().or(each.number()).map_or(0, str::len);
                self.charge(OF_EACH + (name.map_or(0, str::len) + text).div_ceil(8))
            }),
            Value::Text(text) => self.charge(OF_EACH + text.len().div_ceil(8)),
            Value::Array(elements) => {
                self.charge(OF_EACH)?;
                elements.iter().try_for_each(|element| self.charge_whole(element))
            }
            Value::Object(members) => {
                self.charge(OF_EACH)?;
                members.iter().try_for_each(|(name, member)| {
                    self.charge(name.len().div_ceil(8))?;
                    self.charge_whole(member)
                })
            }
            _ => self.charge(OF_EACH),
        }
    }

    /// As [`Evaluator::top`], and what it gives can be written out.
    fn result<'t>(&self, expr: &'t Expr, root: Token<'t>) -> Result<(Value<'t>, bool), Failure> {
        let (value, projection) = self.top(expr, &Value::Token(root))?;
        match &value {
            // Elements of the message, as type matches give them, are as large as they are there.
            Value::Array(elements)
                if projection
                    && elements.len() <= MAXIMUM_RESULTS
                    && elements.iter().all(|element| matches!(element, Value::Token(_))) => {}
            Value::Array(elements) if projection && elements.len() > MAXIMUM_RESULTS => {
                return Err(Failure::Limit);
            }
            Value::Array(_) | Value::Object(_) => self.charge_whole(&value)?,
            _ => {}
        }
        Ok((value, projection))
    }

    /// The value of the whole expression, and whether it is a projection, of which each element counts.
    fn top<'t>(&self, expr: &'t Expr, current: &Value<'t>) -> Result<(Value<'t>, bool), Failure> {
        match expr {
            Expr::Project(..) | Expr::Filter(..) => Ok((self.value(expr, current)?, true)),
            Expr::Group(inner) => self.top(inner, current),
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

    /// Whether two values are equal: objects whatever the order of members; an integer and a float never are, as in the
    /// reference (`` `37` == `37.0` `` is false).
    pub(super) fn equal(&self, left: &Value<'_>, right: &Value<'_>) -> Result<bool, Failure> {
        self.charge(1)?;
        Ok(match (left.kind(), right.kind()) {
            (Kind::Null, Kind::Null) => true,
            (Kind::Boolean, Kind::Boolean) => is_true(left) == is_true(right),
            (Kind::String, Kind::String) => left.as_text() == right.as_text(),
            (Kind::Integer, Kind::Integer) | (Kind::Float, Kind::Float) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Tree, parse};
    use proptest::prelude::*;

    fn found(path: &str, document: &str) -> String {
        let tree = parse(document.as_bytes()).unwrap();
        let path = JmesPath::parse(path).unwrap();
        match path.select_one(tree.root()) {
            Ok(found) => found.map_or("nothing".to_owned(), |found| found.to_string()),
            Err(error) => error.kind.name().to_owned(),
        }
    }

    #[test]
    fn numbers_keep_their_spelling_until_they_are_computed() {
        let document =
            r#"{"a": 36.50, "b": [1.10, 1.2], "big": 12345678901234567890, "c": {"z": 1, "y": 2}}"#;
        let table = [
            ("max(b)", "1.2"),
            ("sort(b)[0]", "1.10"),
            ("not_null(missing, a)", "36.50"),
            ("to_string(@.b)", "\"[1.10,1.2]\""),
            ("add(a, `0`)", "36.5"),
            ("big", "12345678901234567890"),
            ("add(big, `1`)", "OverflowException"),
            ("keys(c)", "[\"z\",\"y\"]"),
            ("`1.50`", "1.50"),
            ("b[?@ == `1.1`]", "[1.10]"),
        ];
        for (path, expected) in table {
            assert_eq!(found(path, document), expected, "{path}");
        }
    }

    #[test]
    fn arithmetic_is_exact_and_says_when_it_cannot_be() {
        let table = [
            ("divide(`40`, `50`)", "0.8"),
            ("divide(`100`, `-1`)", "-100"),
            ("divide(`1`, `0`)", "DivideByZeroException"),
            ("divide(`1`, `0.0`)", "DivideByZeroException"),
            ("divide(`-9223372036854775808`, `-1`)", "OverflowException"),
            ("add(`9223372036854775807`, `1`)", "OverflowException"),
            ("multiply(`1e308`, `10`)", "OverflowException"),
            ("pow(`2`, `-1`)", "0.5"),
            ("pow(`-1`, `-3`)", "-1"),
            ("pow(`0`, `-1`)", "DivideByZeroException"),
            ("pow(`2`, `63`)", "OverflowException"),
            ("pow(`-2`, `63`)", "-9223372036854775808"),
            ("pow(`-1`, `0.5`)", "OverflowException"),
            ("abs(`-9223372036854775808`)", "OverflowException"),
            ("sum(`[1, 2.5]`)", "3.5"),
            ("sum(`[]`)", "0"),
            ("avg(`[]`)", "nothing"),
            ("add('1', `1`)", "Exception"),
            ("fromUnixTimestamp(`253402300800`)", "ArgumentOutOfRangeException"),
            (
                "fromUnixTimestampMs(`1626799080250`)",
                "\"2021-07-20T16:38:00.250Z\"",
            ),
            ("insertString('äb', 'x', `1`)", "\"äxb\""),
            ("insertString('ab', 'x', `3`)", "ArgumentOutOfRangeException"),
            ("to_number('1,000')", "nothing"),
            ("to_number('.5')", "0.5"),
            ("to_number('-5.')", "-5"),
            ("type(sum(`[1.5, 1.5]`)) | @", "\"number\""),
            ("sum(`[1.5, 1.5]`) == `3`", "true"),
            ("`37` == `37.0`", "false"),
            ("avg(`[1, 2]`)", "1.5"),
            ("to_number(' 7 ')", "7"),
            ("ceil(`-0.5`)", "0"),
        ];
        for (path, expected) in table {
            assert_eq!(found(path, "{}"), expected, "{path}");
        }
    }

    #[test]
    fn work_and_text_are_bounded_with_a_clear_error() {
        let doubled = format!("[a, a]{}", " | [@, @]".repeat(40));
        for path in [
            format!("{doubled} | to_string(@)"),
            format!("{doubled} == {doubled}"),
            format!("'aaaaaaaaaaaaaaaa'{}", " | join('', [@, @])".repeat(40)),
            format!("{doubled}{} | length(@)", " | []".repeat(40)),
        ] {
            assert_eq!(
                found(&path, r#"{"a": [1, 2, 3]}"#),
                "InsufficientExecutionStackException",
                "{path}"
            );
        }
    }

    fn expressions() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            4 => "[a-c]",
            1 => Just("@".to_owned()),
            1 => "`(1|\"a\"|null|true|\\[1\\])`",
            1 => "'[a-c]'",
            1 => (-2..3i32).prop_map(|n| format!("[{n}]")),
            1 => (-2..3i32, -2..3i32).prop_map(|(a, b)| format!("[{a}:{b}]")),
            1 => Just("*".to_owned()),
        ];
        leaf.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                3 => (inner.clone(), "[a-c]").prop_map(|(a, b)| format!("{a}.{b}")),
                1 => (inner.clone(), -2..3i32).prop_map(|(a, n)| format!("{a}[{n}]")),
                1 => (inner.clone(), 1..3i32).prop_map(|(a, n)| format!("{a}[::{n}]")),
                1 => inner.clone().prop_map(|a| format!("{a}[*]")),
                1 => inner.clone().prop_map(|a| format!("{a}[]")),
                1 => inner.clone().prop_map(|a| format!("{a}.*")),
                2 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[?{b}]")),
                2 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} | {b}")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} && {b}")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} || {b}")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} == {b}")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} < {b}")),
                1 => inner.clone().prop_map(|a| format!("!{a}")),
                1 => inner.clone().prop_map(|a| format!("({a})")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
                1 => inner.clone().prop_map(|a| format!("{{a: {a}}}")),
                2 => (inner.clone(), "length|keys|values|type|to_string|to_array|reverse|sort|max|min|sum|not_null|to_number|abs|ceil|floor")
                    .prop_map(|(a, name)| format!("{name}({a})")),
                1 => (inner.clone(), inner.clone(), "contains|starts_with|ends_with|join|merge").prop_map(|(a, b, name)| format!("{name}({a}, {b})")),
                1 => (inner.clone(), "[a-c]", "sort_by|max_by|min_by").prop_map(|(a, b, name)| format!("{name}({a}, &{b})")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("map(&{a}, {b})")),
            ]
        })
    }

    fn documents() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            (-2i64..3).prop_map(Into::into),
            "[a-c]{0,2}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
                // In order of names, as the oracle has them.
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    /// Numbers by value; an error is an error.
    fn plain(value: &serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Number(number) => number
                .as_f64()
                .map_or(serde_json::Value::Null, |float| format!("{float}").into()),
            serde_json::Value::Array(elements) => elements.iter().map(plain).collect(),
            serde_json::Value::Object(members) => members
                .iter()
                .map(|(name, member)| (name.clone(), plain(member)))
                .collect(),
            other => other.clone(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The jmespath crate is the oracle: the same expressions are taken, with the same results.
        #[test]
        fn agrees_with_the_jmespath_crate(text in expressions(), document in documents()) {
            let theirs = jmespath::compile(&text);
            let ours = JmesPath::parse(&text);
            prop_assert_eq!(theirs.is_ok(), ours.is_ok(), "{}: {:?} {:?}", text, theirs.err(), ours.err());
            let (Ok(theirs), Ok(ours)) = (theirs, ours) else { return Ok(()) };
            let tree = Tree::from(&document);
            let variable = jmespath::Variable::from_json(&document.to_string()).unwrap();
            let variable = std::sync::Arc::new(variable);
            let mut context = jmespath::Context::new(&text, &jmespath::DEFAULT_RUNTIME);
            let theirs = jmespath::interpret(&variable, theirs.as_ast(), &mut context)
                .map(|found| plain(&serde_json::from_str(&found.to_string()).unwrap()));
            let evaluator = Evaluator::default();
            let ours = evaluator.value(ours.expr(), &Value::Token(tree.root()));
            match (theirs, ours) {
                (Ok(theirs), Ok(ours)) => {
                    prop_assert_eq!(plain(&ours.to_tree().root().to_value()), theirs, "{} on {}", text, document);
                }
                (Err(_), Err(_)) => {}
                (theirs, ours) => prop_assert!(false, "{} on {}: {:?} {:?}", text, document, theirs, ours),
            }
        }
    }
}
