//! The functions: the standard ones that the reference has, and its own eight (rules D1, D3, D7).
//!
//! A wrong type of an argument is an `Exception`, as in the reference; texts of errors never hold a value.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use crate::error::ErrorKind;
use crate::jmespath::Value;
use crate::jmespath::evaluate::{Evaluated, Evaluator, Failure, Number, numeric_order};
use crate::jmespath::value::Reference;
use crate::message::Kind;
use crate::time::{TICKS_PER_SECOND, Timestamp};

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

fn finite<'t>(result: f64) -> Evaluated<'t> {
    if result.is_finite() {
        Ok(Value::Float(result))
    } else {
        Err(Failure::Error(
            ErrorKind::OverflowException,
            Cow::Borrowed("the result is not a finite number."),
        ))
    }
}

fn overflow() -> Failure {
    Failure::Error(
        ErrorKind::OverflowException,
        Cow::Borrowed("the result does not fit 64 bits."),
    )
}

fn division_by_zero() -> Failure {
    Failure::Error(
        ErrorKind::DivideByZeroException,
        Cow::Borrowed("division by zero."),
    )
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

    fn absolute(&self) -> Evaluated<'t> {
        match self.number(0)? {
            Number::Integer(integer) => integer.checked_abs().map(Value::Integer).ok_or_else(overflow),
            number => finite(number.float().abs()),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only for values that fit")]
    fn rounded(&self, round: fn(f64) -> f64) -> Evaluated<'t> {
        match self.number(0)? {
            Number::Integer(integer) => Ok(Value::Integer(integer)),
            number => {
                let rounded = round(number.float());
                // 2^63 is the first double that no longer fits.
                let fits = rounded.abs() < 9_223_372_036_854_775_808.0;
                if fits {
                    Ok(Value::Integer(rounded as i64))
                } else {
                    finite(rounded)
                }
            }
        }
    }

    fn numbers(&self, index: usize) -> Result<Vec<Number>, Failure> {
        let elements = self.array(index)?;
        let numbers: Option<Vec<Number>> = elements.iter().map(Number::of).collect();
        numbers.ok_or_else(|| self.invalid(index, "an array of numbers"))
    }

    fn sum(&self) -> Evaluated<'t> {
        total(&self.numbers(0)?)
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of elements")]
    fn average(&self) -> Evaluated<'t> {
        let numbers = self.numbers(0)?;
        if numbers.is_empty() {
            return Ok(Value::Null);
        }
        finite(numbers.iter().map(|number| number.float()).sum::<f64>() / numbers.len() as f64)
    }

    fn contains(&self) -> Evaluated<'t> {
        let subject = self.argument(0)?;
        let search = self.argument(1)?;
        if let Some(text) = subject.as_text() {
            return Ok(Value::Bool(
                search.as_text().is_some_and(|search| text.contains(&*search)),
            ));
        }
        if subject.kind() != Kind::Array {
            return Err(self.invalid(0, "an array or a string"));
        }
        for element in self.array(0)? {
            if self.evaluator.equal(&element, search)? {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
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

    fn length(&self) -> Evaluated<'t> {
        let value = self.argument(0)?;
        let length = match value.kind() {
            Kind::String => value.as_text().map_or(0, |text| text.chars().count()),
            Kind::Array => self.array(0)?.len(),
            Kind::Object => self.object(0)?.len(),
            _ => return Err(self.invalid(0, "a string, an array or an object")),
        };
        Ok(Value::Integer(i64::try_from(length).unwrap_or(i64::MAX)))
    }

    /// Order of two elements: both numbers, or both texts.
    fn order(&self, a: &Value<'t>, b: &Value<'t>) -> Result<Ordering, Failure> {
        match (a.as_text(), b.as_text()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => numeric_order(a, b).ok_or_else(|| self.invalid(0, "all numbers or all strings")),
        }
    }

    fn check_order(&self, keys: &[Value<'t>]) -> Result<(), Failure> {
        match keys {
            [first, ..] => keys.iter().try_for_each(|key| self.order(first, key).map(|_| ())),
            [] => Ok(()),
        }
    }

    fn extreme(&self, wanted: Ordering) -> Evaluated<'t> {
        let elements = self.array(0)?;
        self.best(&elements, &elements, wanted)
    }

    fn extreme_by(&self, wanted: Ordering) -> Evaluated<'t> {
        let elements = self.array(0)?;
        let keys = self.each(&elements, self.reference(1)?)?;
        self.best(&elements, &keys, wanted)
    }

    fn best(&self, elements: &[Value<'t>], keys: &[Value<'t>], wanted: Ordering) -> Evaluated<'t> {
        self.check_order(keys)?;
        let mut best: Option<(&Value<'t>, &Value<'t>)> = None;
        for (element, key) in elements.iter().zip(keys) {
            let better = match best {
                Some((_, known)) => self.order(key, known)? == wanted,
                None => true,
            };
            if better {
                best = Some((element, key));
            }
        }
        Ok(best.map_or(Value::Null, |(element, _)| element.clone()))
    }

    fn sorted(&self, elements: &[Value<'t>], keys: &[Value<'t>]) -> Evaluated<'t> {
        self.check_order(keys)?;
        let mut pairs: Vec<(&Value<'t>, &Value<'t>)> = keys.iter().zip(elements).collect();
        self.evaluator.charge(pairs.len() * 16)?;
        pairs.sort_by(|(a, _), (b, _)| self.order(a, b).unwrap_or(Ordering::Equal));
        Ok(array(
            pairs.into_iter().map(|(_, element)| element.clone()).collect(),
        ))
    }

    fn merge(&self) -> Evaluated<'t> {
        let mut merged: Vec<(Cow<'t, str>, Value<'t>)> = Vec::new();
        for index in 0..self.arguments.len() {
            for (name, value) in self.object(index)? {
                self.evaluator.charge(merged.len())?;
                match merged.iter_mut().find(|(known, _)| *known == name) {
                    Some(member) => member.1 = value,
                    None => merged.push((name, value)),
                }
            }
        }
        Ok(Value::Object(Rc::new(merged)))
    }

    fn reverse(&self) -> Evaluated<'t> {
        let value = self.argument(0)?;
        if let Some(text) = value.as_text() {
            self.charge_text(text.len())?;
            return Ok(Value::Text(Cow::Owned(text.chars().rev().collect())));
        }
        if value.kind() != Kind::Array {
            return Err(self.invalid(0, "an array or a string"));
        }
        Ok(array(self.array(0)?.into_iter().rev().collect()))
    }

    fn to_number(&self) -> Evaluated<'t> {
        let value = self.argument(0)?;
        if let Kind::Integer | Kind::Float = value.kind() {
            return Ok(value.clone());
        }
        let text = value.as_text().unwrap_or_default();
        let text = text.trim();
        // A thousands comma, which the reference skips, is refused: 36,6 is not 366.
        let is_number = text.contains(|c: char| c.is_ascii_digit())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
        if !is_number {
            return Ok(Value::Null);
        }
        match text.parse() {
            Ok(integer) => Ok(Value::Integer(integer)),
            Err(_) => Ok(text
                .parse()
                .ok()
                .filter(|f: &f64| f.is_finite())
                .map_or(Value::Null, Value::Float)),
        }
    }

    fn to_string(&self) -> Evaluated<'t> {
        let value = self.argument(0)?;
        if let Some(text) = value.as_text() {
            return Ok(Value::Text(text));
        }
        self.evaluator.charge_whole(value)?;
        Ok(Value::Text(Cow::Owned(value.to_string())))
    }

    fn arithmetic(&self, exact: fn(i64, i64) -> Option<i64>, rounded: fn(f64, f64) -> f64) -> Evaluated<'t> {
        match (self.number(0)?, self.number(1)?) {
            (Number::Integer(a), Number::Integer(b)) => exact(a, b).map(Value::Integer).ok_or_else(overflow),
            (Number::Big(_), Number::Integer(_) | Number::Big(_)) | (Number::Integer(_), Number::Big(_)) => {
                Err(overflow())
            }
            (a, b) => finite(rounded(a.float(), b.float())),
        }
    }

    fn divide(&self) -> Evaluated<'t> {
        let (a, b) = (self.number(0)?, self.number(1)?);
        if b.float() == 0.0 {
            return Err(division_by_zero());
        }
        match (a, b) {
            (Number::Integer(a), Number::Integer(b)) if a.checked_rem(b).is_none() => Err(overflow()),
            (Number::Integer(a), Number::Integer(b)) if a % b == 0 => Ok(Value::Integer(a / b)),
            (a, b) => finite(a.float() / b.float()),
        }
    }

    fn power(&self) -> Evaluated<'t> {
        let (base, exponent) = (self.number(0)?, self.number(1)?);
        if base.float() == 0.0 && exponent.float() < 0.0 {
            return Err(division_by_zero());
        }
        match (base, exponent) {
            (Number::Integer(base), Number::Integer(exponent)) => integer_power(base, exponent),
            (Number::Big(_), Number::Integer(_)) => Err(overflow()),
            (base, exponent) => finite(base.float().powf(exponent.float())),
        }
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

    fn unix_time(&self, ticks_per_unit: i64) -> Evaluated<'t> {
        let ticks = match self.number(0)? {
            Number::Integer(count) => count.checked_mul(ticks_per_unit),
            Number::Big(_) => None,
            Number::Float(_) => return Err(self.invalid(0, "an integer")),
        };
        match ticks.and_then(Timestamp::from_ticks) {
            Some(time) => Ok(Value::Text(Cow::Owned(time.to_string()))),
            None => {
                let text = Cow::Borrowed("the time is outside of the years 1 to 9999.");
                Err(Failure::Error(ErrorKind::ArgumentOutOfRangeException, text))
            }
        }
    }
}

/// Exact while all are integers.
#[expect(clippy::cast_possible_truncation, reason = "only for values that are exact")]
fn total<'t>(numbers: &[Number]) -> Evaluated<'t> {
    let mut exact: i64 = 0;
    for number in numbers {
        match number {
            Number::Integer(integer) => exact = exact.checked_add(*integer).ok_or_else(overflow)?,
            Number::Big(_) | Number::Float(_) => {
                let sum: f64 = numbers.iter().map(|number| number.float()).sum();
                // A whole sum is an integer, as in the reference.
                let whole = sum.fract() == 0.0 && sum.abs() < 9_007_199_254_740_992.0;
                return if whole {
                    Ok(Value::Integer(sum as i64))
                } else {
                    finite(sum)
                };
            }
        }
    }
    Ok(Value::Integer(exact))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the quotient of a negative power is a double"
)]
fn integer_power<'t>(base: i64, exponent: i64) -> Evaluated<'t> {
    let odd = exponent % 2 != 0;
    match (base, exponent) {
        (1, _) | (_, 0) => return Ok(Value::Integer(1)),
        (-1, _) => return Ok(Value::Integer(if odd { -1 } else { 1 })),
        (0, _) => return Ok(Value::Integer(0)),
        _ => {}
    }
    match u32::try_from(exponent) {
        Ok(exponent) => base
            .checked_pow(exponent)
            .map(Value::Integer)
            .ok_or_else(overflow),
        Err(_) if exponent > 0 => Err(overflow()),
        Err(_) => finite((base as f64).powf(exponent as f64)),
    }
}
