//! Evaluating a path: each step maps one token to some, in document order; nothing is copied.

use std::cell::Cell;
use std::cmp::Ordering;

use crate::error::ErrorKind;
use crate::jsonpath::{
    EvaluationError, Filter, JsonPath, Literal, MAXIMUM_RESULTS, MAXIMUM_VISITS, Operand, Operator, Step,
    parser,
};
use crate::message::{Kind, Token};
use crate::number;

/// Whether to go on, and why not.
enum Stop {
    /// Enough was found.
    Enough,
    /// A limit was reached.
    Limit,
}

type Walk = Result<(), Stop>;

struct Walker<'t> {
    root: Token<'t>,
    visits: Cell<u32>,
}

pub(super) fn select_all<'t>(path: &JsonPath, root: Token<'t>) -> Result<Vec<Token<'t>>, EvaluationError> {
    let walker = Walker {
        root,
        visits: Cell::new(MAXIMUM_VISITS),
    };
    let mut found = Vec::new();
    let walked = walker.walk(&path.steps, root, &mut |token| {
        if found.len() >= MAXIMUM_RESULTS {
            return Err(Stop::Limit);
        }
        found.push(token);
        Ok(())
    });
    match walked {
        Err(Stop::Limit) => Err(too_much(path)),
        _ => Ok(found),
    }
}

pub(super) fn select_one<'t>(path: &JsonPath, root: Token<'t>) -> Result<Option<Token<'t>>, EvaluationError> {
    // Most expressions name one member after another: no need to walk.
    let mut token = root;
    let mut steps = path.steps.as_slice();
    while let [Step::Member(name), rest @ ..] = steps {
        match token.member(name) {
            Some(member) => token = member,
            None => return Ok(None),
        }
        steps = rest;
    }
    if steps.is_empty() {
        return Ok(Some(token));
    }
    let walker = Walker {
        root,
        visits: Cell::new(MAXIMUM_VISITS),
    };
    let mut found = None;
    let mut several = false;
    let walked = walker.walk(steps, token, &mut |token| {
        several = found.is_some();
        found = Some(token);
        if several { Err(Stop::Enough) } else { Ok(()) }
    });
    match walked {
        Err(Stop::Limit) => Err(too_much(path)),
        _ if several => {
            let text = format!(
                "Unable to retrieve JsonToken using expression {path}: Path returned multiple tokens."
            );
            Err(EvaluationError {
                kind: ErrorKind::TemplateExpressionException,
                text,
            })
        }
        _ => Ok(found),
    }
}

fn too_much(path: &JsonPath) -> EvaluationError {
    let text = format!(
        "Expression {path} visits more than {MAXIMUM_VISITS} values or finds more than {MAXIMUM_RESULTS} in this message."
    );
    EvaluationError {
        kind: ErrorKind::InsufficientExecutionStackException,
        text,
    }
}

impl<'t> Walker<'t> {
    fn visit(&self) -> Walk {
        match self.visits.get().checked_sub(1) {
            Some(left) => {
                self.visits.set(left);
                Ok(())
            }
            None => Err(Stop::Limit),
        }
    }

    /// Gives `out` each token that `steps` lead to from `token`.
    fn walk(&self, steps: &[Step], token: Token<'t>, out: &mut dyn FnMut(Token<'t>) -> Walk) -> Walk {
        let Some((step, rest)) = steps.split_first() else {
            return out(token);
        };
        self.visit()?;
        match step {
            Step::Member(name) => match token.member(name) {
                Some(member) => self.walk(rest, member, out),
                None => Ok(()),
            },
            Step::Members(names) => names
                .iter()
                .filter_map(|name| token.member(name))
                .try_for_each(|member| self.walk(rest, member, out)),
            Step::AnyMember => token
                .members()
                .try_for_each(|(_, member)| self.walk(rest, member, out)),
            Step::AnyElement => token
                .elements()
                .try_for_each(|(_, element)| self.walk(rest, element, out)),
            Step::Index(index) => match element(token, *index) {
                Some(element) => self.walk(rest, element, out),
                None => Ok(()),
            },
            Step::Indexes(indexes) => indexes
                .iter()
                .filter_map(|index| element(token, *index))
                .try_for_each(|element| self.walk(rest, element, out)),
            Step::Slice(start, end, step) => self.slice(token, *start, *end, *step, rest, out),
            Step::Filter(filter) => token.elements().try_for_each(|(_, element)| {
                if self.holds(filter, element)? {
                    self.walk(rest, element, out)
                } else {
                    Ok(())
                }
            }),
            Step::Descend(name) => self.descend(token, rest, out, |member| member == &**name),
            Step::DescendMembers(names) => self.descend(token, rest, out, |member| {
                names.iter().any(|name| member == &**name)
            }),
            Step::DescendAll => token.with_descendants().try_for_each(|(_, each)| {
                self.visit()?;
                self.walk(rest, each, out)
            }),
            Step::DescendFilter(filter) => token.with_descendants().try_for_each(|(_, each)| {
                if self.holds(filter, each)? {
                    self.walk(rest, each, out)
                } else {
                    Ok(())
                }
            }),
            Step::Root => self.walk(rest, self.root, out),
        }
    }

    fn descend(
        &self,
        token: Token<'t>,
        rest: &[Step],
        out: &mut dyn FnMut(Token<'t>) -> Walk,
        named: impl Fn(&str) -> bool,
    ) -> Walk {
        token.with_descendants().try_for_each(|(name, each)| {
            self.visit()?;
            if name.is_some_and(&named) {
                self.walk(rest, each, out)
            } else {
                Ok(())
            }
        })
    }

    fn slice(
        &self,
        token: Token<'t>,
        start: Option<i32>,
        end: Option<i32>,
        step: i32,
        rest: &[Step],
        out: &mut dyn FnMut(Token<'t>) -> Walk,
    ) -> Walk {
        let elements: Vec<Token<'t>> = token.elements().map(|(_, element)| element).collect();
        let count = i64::try_from(elements.len()).unwrap_or(i64::MAX);
        let forward = step > 0;
        let from_end = |index: i32| {
            if index < 0 {
                count + i64::from(index)
            } else {
                i64::from(index)
            }
        };
        let start = start.map_or(if forward { 0 } else { count - 1 }, from_end);
        let end = end.map_or(if forward { count } else { -1 }, from_end);
        let start = if forward {
            start.clamp(0, count)
        } else {
            start.min(count - 1)
        };
        let end = end.clamp(-1, count);
        let mut at = start;
        while if forward { at < end } else { at > end } {
            self.visit()?;
            if let Some(element) = usize::try_from(at).ok().and_then(|at| elements.get(at)) {
                self.walk(rest, *element, out)?;
            }
            at += i64::from(step);
        }
        Ok(())
    }

    fn holds(&self, filter: &Filter, token: Token<'t>) -> Result<bool, Stop> {
        self.visit()?;
        match filter {
            Filter::Exists(Operand::Literal(_)) => Ok(true),
            Filter::Exists(Operand::Path(steps)) => self.exists(steps, token),
            Filter::Compare(left, operator, right) => self.compares(left, *operator, right, token),
            Filter::And(all) => {
                for each in all {
                    if !self.holds(each, token)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Filter::Or(any) => {
                for each in any {
                    if self.holds(each, token)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    fn exists(&self, steps: &[Step], token: Token<'t>) -> Result<bool, Stop> {
        let mut token = token;
        let mut steps = steps;
        while let [Step::Member(name), rest @ ..] = steps {
            match token.member(name) {
                Some(member) => token = member,
                None => return Ok(false),
            }
            steps = rest;
        }
        if steps.is_empty() {
            return Ok(true);
        }
        match self.walk(steps, token, &mut |_| Err(Stop::Enough)) {
            Ok(()) => Ok(false),
            Err(Stop::Enough) => Ok(true),
            Err(Stop::Limit) => Err(Stop::Limit),
        }
    }

    /// Whether any token of the left side and any of the right side compare; a missing one compares with nothing.
    fn compares(
        &self,
        left: &Operand,
        operator: Operator,
        right: &Operand,
        token: Token<'t>,
    ) -> Result<bool, Stop> {
        let found = self.each_scalar(left, token, &mut |left| {
            self.each_scalar(right, token, &mut |right| {
                self.visit()?;
                if matches(left, operator, right) {
                    Err(Stop::Enough)
                } else {
                    Ok(())
                }
            })
        });
        match found {
            Ok(()) => Ok(false),
            Err(Stop::Enough) => Ok(true),
            Err(Stop::Limit) => Err(Stop::Limit),
        }
    }

    fn each_scalar(
        &self,
        operand: &Operand,
        token: Token<'t>,
        out: &mut dyn FnMut(Scalar<'_>) -> Walk,
    ) -> Walk {
        match operand {
            Operand::Literal(literal) => out(Scalar::of_literal(literal)),
            Operand::Path(steps) => self.walk(steps, token, &mut |found| out(Scalar::of_token(found))),
        }
    }
}

fn element(token: Token<'_>, index: i32) -> Option<Token<'_>> {
    match usize::try_from(index) {
        Ok(index) => token.element(index),
        Err(_) => {
            let count = token.elements().count();
            let back = usize::try_from(index.unsigned_abs()).ok()?;
            token.element(count.checked_sub(back)?)
        }
    }
}

/// One side of a comparison.
#[derive(Clone, Copy)]
enum Scalar<'s> {
    Null,
    Bool(bool),
    /// As it is spelled.
    Number(&'s str),
    Integer(i64),
    Float(f64),
    Text(&'s str),
    Regex(&'s fancy_regex::Regex),
    /// An array or object.
    Container,
}

impl<'s> Scalar<'s> {
    fn of_literal(literal: &'s Literal) -> Scalar<'s> {
        match literal {
            Literal::Null => Scalar::Null,
            Literal::Bool(flag) => Scalar::Bool(*flag),
            Literal::Integer(integer) => Scalar::Integer(*integer),
            Literal::Float(float) => Scalar::Float(*float),
            Literal::Text(text) => Scalar::Text(text),
            Literal::Regex(_, regex) => Scalar::Regex(regex),
        }
    }

    fn of_token(token: Token<'s>) -> Scalar<'s> {
        match token.kind() {
            Kind::Null => Scalar::Null,
            Kind::Boolean => Scalar::Bool(token.bool() == Some(true)),
            Kind::Integer | Kind::Float => Scalar::Number(token.number().unwrap_or_default()),
            Kind::String => Scalar::Text(token.text().unwrap_or_default()),
            Kind::Array | Kind::Object => Scalar::Container,
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Scalar::Number(_) | Scalar::Integer(_) | Scalar::Float(_))
    }

    /// The value as a number; a boolean counts as 0 or 1, text only when it is a decimal (rule D12).
    fn numeric(self) -> Option<Numeric> {
        match self {
            Scalar::Number(spelling) => Some(Numeric::of(spelling)),
            Scalar::Integer(integer) => Some(Numeric::Integer(i128::from(integer))),
            Scalar::Float(float) => Some(Numeric::Float(float)),
            Scalar::Bool(flag) => Some(Numeric::Integer(i128::from(flag))),
            Scalar::Text(text) => number::decimal(text).map(Numeric::of),
            Scalar::Null | Scalar::Regex(_) | Scalar::Container => None,
        }
    }
}

enum Numeric {
    Integer(i128),
    Float(f64),
}

impl Numeric {
    fn of(spelling: &str) -> Numeric {
        match spelling.parse::<i128>() {
            Ok(integer) => Numeric::Integer(integer),
            Err(_) => Numeric::Float(spelling.parse().unwrap_or(f64::NAN)),
        }
    }

    fn compare(&self, other: &Numeric) -> Option<Ordering> {
        match (self, other) {
            (Numeric::Integer(a), Numeric::Integer(b)) => Some(a.cmp(b)),
            _ => number::compare_floats(self.float(), other.float()),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "compared as doubles with a tolerance, as the reference does"
    )]
    fn float(&self) -> f64 {
        match self {
            Numeric::Integer(integer) => *integer as f64,
            Numeric::Float(float) => *float,
        }
    }
}

fn matches(left: Scalar<'_>, operator: Operator, right: Scalar<'_>) -> bool {
    use Operator::{
        Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Matches, NotEqual, StrictEqual, StrictNotEqual,
    };
    if let Scalar::Container = left {
        return operator == NotEqual;
    }
    if let Scalar::Container = right {
        return operator == NotEqual;
    }
    match operator {
        Equal | StrictEqual => equal(left, right),
        NotEqual | StrictNotEqual => !equal(left, right),
        Less => order(left, right) == Some(Ordering::Less),
        LessOrEqual => order(left, right).is_some_and(Ordering::is_le),
        Greater => order(left, right) == Some(Ordering::Greater),
        GreaterOrEqual => order(left, right).is_some_and(Ordering::is_ge),
        Matches => match (left, right) {
            (Scalar::Text(text), Scalar::Regex(regex)) => regex.is_match(text).unwrap_or(false),
            // The pattern is in the message.
            (Scalar::Text(text), Scalar::Text(written)) => parser::regex(written)
                .and_then(Result::ok)
                .is_some_and(|regex| regex.is_match(text).unwrap_or(false)),
            _ => false,
        },
    }
}

/// Text and number are never equal; an integer and a float are when their values are.
fn equal(left: Scalar<'_>, right: Scalar<'_>) -> bool {
    match (left, right) {
        (Scalar::Null, Scalar::Null) => true,
        (Scalar::Bool(a), Scalar::Bool(b)) => a == b,
        (Scalar::Text(a), Scalar::Text(b)) => a == b,
        (a, b) if a.is_number() && b.is_number() => a
            .numeric()
            .zip(b.numeric())
            .is_some_and(|(a, b)| a.compare(&b) == Some(Ordering::Equal)),
        _ => false,
    }
}

/// `None`: the two cannot be compared.
fn order(left: Scalar<'_>, right: Scalar<'_>) -> Option<Ordering> {
    match (left, right) {
        (Scalar::Null, Scalar::Null) => Some(Ordering::Equal),
        (Scalar::Null, _) => Some(Ordering::Less),
        (_, Scalar::Null) => Some(Ordering::Greater),
        (Scalar::Text(a), Scalar::Text(b)) => Some(a.encode_utf16().cmp(b.encode_utf16())),
        // The left side's type decides, except that text takes the other's.
        (Scalar::Bool(a), b) => Some(a.cmp(&truth(b)?)),
        (Scalar::Text(text), Scalar::Bool(b)) => Some(truth(Scalar::Text(text))?.cmp(&b)),
        (a, b) => a.numeric()?.compare(&b.numeric()?),
    }
}

fn truth(scalar: Scalar<'_>) -> Option<bool> {
    match scalar {
        Scalar::Bool(flag) => Some(flag),
        Scalar::Text(text) if text.trim().eq_ignore_ascii_case("true") => Some(true),
        Scalar::Text(text) if text.trim().eq_ignore_ascii_case("false") => Some(false),
        Scalar::Text(_) => None,
        number => number.numeric().map(|number| number.float() != 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::parse;

    fn found(path: &str, document: &str) -> String {
        let tree = parse(document.as_bytes()).unwrap();
        let found = JsonPath::parse(path).unwrap().select_all(tree.root()).unwrap();
        found
            .iter()
            .map(|token| token.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn comparisons_follow_the_dialect() {
        // Filter, then the values of `x` for which it holds.
        let values =
            r#"[{"x":7},{"x":"7"},{"x":"78.5"},{"x":"abc"},{"x":null},{"x":true},{"x":[1]},{"x":7.0},{}]"#;
        let table = [
            ("@.x == 7", "7 7.0"),
            ("@.x === 7", "7 7.0"),
            ("@.x == '7'", "\"7\""),
            ("@.x != 7", "\"7\" \"78.5\" \"abc\" null true [1]"),
            ("@.x !== 7", "\"7\" \"78.5\" \"abc\" null true"),
            ("@.x > 5", "7 \"7\" \"78.5\" 7.0"),
            ("@.x < 10", "7 \"7\" null 7.0"),
            ("@.x <= 'abc'", "\"7\" \"78.5\" \"abc\" null"),
            ("@.x < null", ""),
            ("@.x <= null", "null"),
            ("5 < @.x", "7 \"7\" \"78.5\" 7.0"),
            ("@.x == null", "null"),
            ("@.x == true", "true"),
            ("@.x =~ /^A/i", "\"abc\""),
            ("@.x =~ /^(?!a)/", "\"7\" \"78.5\""),
            ("@.x == @.y", ""),
            ("@.x[0] == 1", "[1]"),
            ("$[0].x == @.x", "7 7.0"),
            ("1 == 1", "7 \"7\" \"78.5\" \"abc\" null true [1] 7.0"),
        ];
        for (filter, expected) in table {
            assert_eq!(found(&format!("$[?({filter} )].x"), values), expected, "{filter}");
        }
    }

    #[test]
    fn big_integers_compare_exactly() {
        let values = r#"[{"x":9223372036854775808},{"x":9223372036854775807}]"#;
        assert_eq!(
            found("$[?(@.x > 9223372036854775807 )].x", values),
            "9223372036854775808"
        );
        assert_eq!(
            found("$[?(@.x == 9223372036854775807 )].x", values),
            "9223372036854775807"
        );
    }

    #[test]
    fn recursion_includes_the_root_and_goes_in_document_order() {
        let document = r#"{"a":{"a":1,"b":[{"a":2}]},"c":{"a":3}}"#;
        assert_eq!(found("$..a", document), r#"{"a":1,"b":[{"a":2}]} 1 2 3"#);
        assert_eq!(found("$..[?(@a)].a", document), r#"{"a":1,"b":[{"a":2}]} 1 2 3"#);
        assert_eq!(
            found("$.a..*", document),
            r#"{"a":1,"b":[{"a":2}]} 1 [{"a":2}] {"a":2} 2"#
        );
        assert_eq!(
            found("$..['b','a']", document),
            r#"{"a":1,"b":[{"a":2}]} 1 [{"a":2}] 2 3"#
        );
    }

    #[test]
    fn work_is_bounded_with_a_clear_error() {
        let document = format!("{}1{}", "{\"a\":".repeat(60), "}".repeat(60));
        let tree = parse(document.as_bytes()).unwrap();
        let path = JsonPath::parse("$..*..*..*..*..*..*").unwrap();
        let error = path.select_all(tree.root()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InsufficientExecutionStackException);
        assert!(path.select_one(tree.root()).is_err());
    }
}
