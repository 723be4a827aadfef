//! Functions on arrays and objects, and on texts where a text does as well.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use crate::jmespath::Value;
use crate::jmespath::evaluate::{Evaluated, Failure, numeric_order};
use crate::jmespath::functions::{Call, array};
use crate::message::Kind;

impl<'t> Call<'_, 't> {
    pub(super) fn contains(&self) -> Evaluated<'t> {
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

    /// Order of two elements: both numbers, or both texts.
    pub(super) fn order(&self, a: &Value<'t>, b: &Value<'t>) -> Result<Ordering, Failure> {
        match (a.as_text(), b.as_text()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => numeric_order(a, b).ok_or_else(|| self.invalid(0, "all numbers or all strings")),
        }
    }

    pub(super) fn check_order(&self, keys: &[Value<'t>]) -> Result<(), Failure> {
        match keys {
            [first, ..] => keys.iter().try_for_each(|key| self.order(first, key).map(|_| ())),
            [] => Ok(()),
        }
    }

    pub(super) fn extreme(&self, wanted: Ordering) -> Evaluated<'t> {
        let elements = self.array(0)?;
        self.best(&elements, &elements, wanted)
    }

    pub(super) fn extreme_by(&self, wanted: Ordering) -> Evaluated<'t> {
        let elements = self.array(0)?;
        let keys = self.each(&elements, self.reference(1)?)?;
        self.best(&elements, &keys, wanted)
    }

    pub(super) fn best(&self, elements: &[Value<'t>], keys: &[Value<'t>], wanted: Ordering) -> Evaluated<'t> {
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

    pub(super) fn sorted(&self, elements: &[Value<'t>], keys: &[Value<'t>]) -> Evaluated<'t> {
        self.check_order(keys)?;
        let mut pairs: Vec<(&Value<'t>, &Value<'t>)> = keys.iter().zip(elements).collect();
        self.evaluator.charge(pairs.len() * 16)?;
        pairs.sort_by(|(a, _), (b, _)| self.order(a, b).unwrap_or(Ordering::Equal));
        Ok(array(
            pairs.into_iter().map(|(_, element)| element.clone()).collect(),
        ))
    }

    pub(super) fn merge(&self) -> Evaluated<'t> {
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

    pub(super) fn reverse(&self) -> Evaluated<'t> {
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

    pub(super) fn length(&self) -> Evaluated<'t> {
        let value = self.argument(0)?;
        let length = match value.kind() {
            Kind::String => value.as_text().map_or(0, |text| text.chars().count()),
            Kind::Array => self.array(0)?.len(),
            Kind::Object => self.object(0)?.len(),
            _ => return Err(self.invalid(0, "a string, an array or an object")),
        };
        Ok(Value::Integer(i64::try_from(length).unwrap_or(i64::MAX)))
    }
}
