//! The functions: the standard ones that the reference has, and its own eight (rules D1, D3, D7).
//!
//! A wrong type of an argument is an `Exception`, as in the reference; texts of errors never hold a value.

mod arithmetic;
mod collections;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use crate::error::ErrorKind;
use crate::jmespath::Value;
use crate::jmespath::evaluate::{Evaluated, Evaluator, Failure, Number};
use crate::jmespath::value::Reference;
use crate::message::Kind;
use crate::time::TICKS_PER_SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Abs,
    Avg,
    Ceil,
    Contains,
    EndsWith,
    Floor,
    Join,
    Keys,
    Length,
    Map,
    Max,
    MaxBy,
    Merge,
    Min,
    MinBy,
    NotNull,
    Reverse,
    Sort,
    SortBy,
    StartsWith,
    Sum,
    ToArray,
    ToNumber,
    ToString,
    Type,
    Values,
    Add,
    Subtract,
    Multiply,
    Divide,
    Pow,
    InsertString,
    FromUnixTimestamp,
    FromUnixTimestampMs,
}

use Function as F;

impl Function {
    /// Name, function, least and most arguments.
    pub(super) const NAMES: [(&'static str, Function, usize, Option<usize>); 34] = [
        ("abs", F::Abs, 1, Some(1)),
        ("avg", F::Avg, 1, Some(1)),
        ("ceil", F::Ceil, 1, Some(1)),
        ("contains", F::Contains, 2, Some(2)),
        ("ends_with", F::EndsWith, 2, Some(2)),
        ("floor", F::Floor, 1, Some(1)),
        ("join", F::Join, 2, Some(2)),
        ("keys", F::Keys, 1, Some(1)),
        ("length", F::Length, 1, Some(1)),
        ("map", F::Map, 2, Some(2)),
        ("max", F::Max, 1, Some(1)),
        ("max_by", F::MaxBy, 2, Some(2)),
        ("merge", F::Merge, 1, None),
        ("min", F::Min, 1, Some(1)),
        ("min_by", F::MinBy, 2, Some(2)),
        ("not_null", F::NotNull, 1, None),
        ("reverse", F::Reverse, 1, Some(1)),
        ("sort", F::Sort, 1, Some(1)),
        ("sort_by", F::SortBy, 2, Some(2)),
        ("starts_with", F::StartsWith, 2, Some(2)),
        ("sum", F::Sum, 1, Some(1)),
        ("to_array", F::ToArray, 1, Some(1)),
        ("to_number", F::ToNumber, 1, Some(1)),
        ("to_string", F::ToString, 1, Some(1)),
        ("type", F::Type, 1, Some(1)),
        ("values", F::Values, 1, Some(1)),
        ("add", F::Add, 2, Some(2)),
        ("subtract", F::Subtract, 2, Some(2)),
        ("multiply", F::Multiply, 2, Some(2)),
        ("divide", F::Divide, 2, Some(2)),
        ("pow", F::Pow, 2, Some(2)),
        ("insertString", F::InsertString, 3, Some(3)),
        ("fromUnixTimestamp", F::FromUnixTimestamp, 1, Some(1)),
        ("fromUnixTimestampMs", F::FromUnixTimestampMs, 1, Some(1)),
    ];

    pub(super) fn of_name(name: &str) -> Option<Function> {
        Self::NAMES
            .iter()
            .find(|(known, ..)| *known == name)
            .map(|(_, function, ..)| *function)
    }

    fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, function, ..)| *function == self)
            .map_or("", |(name, ..)| name)
    }

    /// Whether it takes arguments of any type, and gives a result for each.
    pub(crate) fn cannot_fail(self) -> bool {
        matches!(self, F::NotNull | F::ToArray | F::ToNumber | F::Type)
    }

    /// Whether it gives what it was given.
    pub(crate) fn gives_its_arguments(self) -> bool {
        matches!(self, F::NotNull | F::ToArray)
    }

    pub(super) fn arity(self) -> (usize, Option<usize>) {
        let row = Self::NAMES.iter().find(|(_, function, ..)| *function == self);
        row.map_or((0, None), |(_, _, least, most)| (*least, *most))
    }
}

/// The arguments of one call.
struct Call<'a, 't> {
    evaluator: &'a Evaluator,
    function: Function,
    arguments: &'a [Value<'t>],
}

pub(super) fn call<'t>(evaluator: &Evaluator, function: Function, arguments: &[Value<'t>]) -> Evaluated<'t> {
    let call = Call {
        evaluator,
        function,
        arguments,
    };
    match function {
        F::Abs => call.absolute(),
        F::Avg => call.average(),
        F::Ceil => call.rounded(f64::ceil),
        F::Floor => call.rounded(f64::floor),
        F::Contains => call.contains(),
        F::EndsWith => Ok(Value::Bool(call.text(0)?.ends_with(&*call.text(1)?))),
        F::StartsWith => Ok(Value::Bool(call.text(0)?.starts_with(&*call.text(1)?))),
        F::Join => call.join(),
        F::Keys => {
            let members = call.object(0)?;
            Ok(array(
                members.into_iter().map(|(name, _)| Value::Text(name)).collect(),
            ))
        }
        F::Values => Ok(array(
            call.object(0)?.into_iter().map(|(_, value)| value).collect(),
        )),
        F::Length => call.length(),
        F::Map => {
            let reference = call.reference(0)?;
            Ok(array(call.each(&call.array(1)?, reference)?))
        }
        F::Max => call.extreme(Ordering::Greater),
        F::Min => call.extreme(Ordering::Less),
        F::MaxBy => call.extreme_by(Ordering::Greater),
        F::MinBy => call.extreme_by(Ordering::Less),
        F::Merge => call.merge(),
        F::NotNull => Ok(arguments
            .iter()
            .find(|value| !value.is_null())
            .cloned()
            .unwrap_or(Value::Null)),
        F::Reverse => call.reverse(),
        F::Sort => {
            let elements = call.array(0)?;
            call.sorted(&elements, &elements)
        }
        F::SortBy => {
            let elements = call.array(0)?;
            let keys = call.each(&elements, call.reference(1)?)?;
            call.sorted(&elements, &keys)
        }
        F::Sum => call.sum(),
        F::ToArray => {
            let value = call.argument(0)?;
            let is_array = value.kind() == Kind::Array;
            Ok(if is_array {
                value.clone()
            } else {
                array(vec![value.clone()])
            })
        }
        F::ToNumber => call.to_number(),
        F::ToString => call.to_string(),
        F::Type => Ok(Value::Text(Cow::Borrowed(type_name(call.argument(0)?)))),
        F::Add => call.arithmetic(i64::checked_add, |a, b| a + b),
        F::Subtract => call.arithmetic(i64::checked_sub, |a, b| a - b),
        F::Multiply => call.arithmetic(i64::checked_mul, |a, b| a * b),
        F::Divide => call.divide(),
        F::Pow => call.power(),
        F::InsertString => call.insert_string(),
        F::FromUnixTimestamp => call.unix_time(TICKS_PER_SECOND),
        F::FromUnixTimestampMs => call.unix_time(TICKS_PER_SECOND / 1000),
    }
}

fn array(elements: Vec<Value<'_>>) -> Value<'_> {
    Value::Array(Rc::new(elements))
}

fn type_name(value: &Value<'_>) -> &'static str {
    match value.kind() {
        _ if matches!(value, Value::Reference(_)) => "expression",
        Kind::Null => "null",
        Kind::Boolean => "boolean",
        Kind::Integer | Kind::Float => "number",
        Kind::String => "string",
        Kind::Array => "array",
        Kind::Object => "object",
    }
}

impl<'t> Call<'_, 't> {
    fn argument(&self, index: usize) -> Result<&Value<'t>, Failure> {
        self.arguments
            .get(index)
            .ok_or_else(|| self.invalid(index, "a value"))
    }

    fn invalid(&self, index: usize, wanted: &str) -> Failure {
        let found = self.arguments.get(index).map_or("nothing", type_name);
        let text = format!(
            "Error: invalid-type, argument {} of {} must be {wanted}, found {found}.",
            index + 1,
            self.function.name()
        );
        Failure::Error(ErrorKind::Exception, Cow::Owned(text))
    }

    fn text(&self, index: usize) -> Result<Cow<'t, str>, Failure> {
        self.argument(index)?
            .as_text()
            .ok_or_else(|| self.invalid(index, "a string"))
    }

    fn number(&self, index: usize) -> Result<Number, Failure> {
        Number::of(self.argument(index)?).ok_or_else(|| self.invalid(index, "a number"))
    }

    fn array(&self, index: usize) -> Result<Vec<Value<'t>>, Failure> {
        let elements = self
            .argument(index)?
            .elements()
            .ok_or_else(|| self.invalid(index, "an array"))?;
        self.evaluator.charge(elements.len())?;
        Ok(elements)
    }

    fn object(&self, index: usize) -> Result<Vec<(Cow<'t, str>, Value<'t>)>, Failure> {
        let members = self
            .argument(index)?
            .members()
            .ok_or_else(|| self.invalid(index, "an object"))?;
        self.evaluator.charge(members.len())?;
        Ok(members)
    }

    fn reference(&self, index: usize) -> Result<Reference<'t>, Failure> {
        match self.argument(index)? {
            Value::Reference(reference) => Ok(*reference),
            _ => Err(self.invalid(index, "an expression (&...)")),
        }
    }

    fn each(&self, elements: &[Value<'t>], reference: Reference<'t>) -> Result<Vec<Value<'t>>, Failure> {
        elements
            .iter()
            .map(|element| self.evaluator.value(reference.0, element))
            .collect()
    }

    fn join(&self) -> Evaluated<'t> {
        let glue = self.text(0)?;
        let mut joined = String::new();
        for (n, element) in self.array(1)?.iter().enumerate() {
            let part = element
                .as_text()
                .ok_or_else(|| self.invalid(1, "an array of strings"))?;
            self.charge_text(part.len() + glue.len())?;
            if n > 0 {
                joined.push_str(&glue);
            }
            joined.push_str(&part);
        }
        Ok(Value::Text(Cow::Owned(joined)))
    }

    fn charge_text(&self, bytes: usize) -> Result<(), Failure> {
        self.evaluator.charge(bytes.div_ceil(8))
    }

    fn to_string(&self) -> Evaluated<'t> {
        let value = self.argument(0)?;
        if let Some(text) = value.as_text() {
            return Ok(Value::Text(text));
        }
        self.evaluator.charge_whole(value)?;
        Ok(Value::Text(Cow::Owned(value.to_string())))
    }

    fn insert_string(&self) -> Evaluated<'t> {
        let (original, inserted) = (self.text(0)?, self.text(1)?);
        let position = match self.number(2)? {
            Number::Integer(position) => usize::try_from(position).ok(),
            Number::Big(_) => None,
            Number::Float(_) => return Err(self.invalid(2, "an integer")),
        };
        let ends = std::iter::once(original.len());
        let mut places = original.char_indices().map(|(at, _)| at).chain(ends);
        let Some(at) = position.and_then(|position| places.nth(position)) else {
            let text = Cow::Borrowed("the position of insertString is outside of the text.");
            return Err(Failure::Error(ErrorKind::ArgumentOutOfRangeException, text));
        };
        self.charge_text(original.len() + inserted.len())?;
        let (before, after) = original.split_at_checked(at).unwrap_or((&original, ""));
        Ok(Value::Text(Cow::Owned(format!("{before}{inserted}{after}"))))
    }
}
