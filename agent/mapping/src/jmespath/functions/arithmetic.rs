//! Functions on numbers and times: exact where integers allow it, and an error where a result is none (rule D3).

use std::borrow::Cow;

use crate::error::ErrorKind;
use crate::jmespath::Value;
use crate::jmespath::evaluate::{Evaluated, Failure, Number};
use crate::jmespath::functions::Call;
use crate::message::Kind;
use crate::time::Timestamp;

impl<'t> Call<'_, 't> {
    pub(super) fn absolute(&self) -> Evaluated<'t> {
        match self.number(0)? {
            Number::Integer(integer) => integer.checked_abs().map(Value::Integer).ok_or_else(overflow),
            number => finite(number.float().abs()),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "only for values that fit")]
    pub(super) fn rounded(&self, round: fn(f64) -> f64) -> Evaluated<'t> {
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

    pub(super) fn numbers(&self, index: usize) -> Result<Vec<Number>, Failure> {
        let elements = self.array(index)?;
        let numbers: Option<Vec<Number>> = elements.iter().map(Number::of).collect();
        numbers.ok_or_else(|| self.invalid(index, "an array of numbers"))
    }

    pub(super) fn sum(&self) -> Evaluated<'t> {
        total(&self.numbers(0)?)
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of elements")]
    pub(super) fn average(&self) -> Evaluated<'t> {
        let numbers = self.numbers(0)?;
        if numbers.is_empty() {
            return Ok(Value::Null);
        }
        finite(numbers.iter().map(|number| number.float()).sum::<f64>() / numbers.len() as f64)
    }

    pub(super) fn arithmetic(
        &self,
        exact: fn(i64, i64) -> Option<i64>,
        rounded: fn(f64, f64) -> f64,
    ) -> Evaluated<'t> {
        match (self.number(0)?, self.number(1)?) {
            (Number::Integer(a), Number::Integer(b)) => exact(a, b).map(Value::Integer).ok_or_else(overflow),
            (Number::Big(_), Number::Integer(_) | Number::Big(_)) | (Number::Integer(_), Number::Big(_)) => {
                Err(overflow())
            }
            (a, b) => finite(rounded(a.float(), b.float())),
        }
    }

    pub(super) fn divide(&self) -> Evaluated<'t> {
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

    pub(super) fn power(&self) -> Evaluated<'t> {
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

    pub(super) fn unix_time(&self, ticks_per_unit: i64) -> Evaluated<'t> {
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

    pub(super) fn to_number(&self) -> Evaluated<'t> {
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
