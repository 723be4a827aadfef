//! What must be in a message for a type match to find anything, or to fail.
//!
//! Derived from the expression alone, on the safe side: a need is only claimed where without it the expression gives
//! nothing and evaluates nothing that could fail.

use crate::expression::Expression;
use crate::jmespath::{Comparator, Expr};
use crate::jsonpath::{Filter, Literal, Operand, Operator, Step};
use crate::message::Token;

/// Member names and texts that must all be somewhere in the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) names: Vec<Box<str>>,
    pub(super) texts: Vec<Box<str>>,
}

impl Needs {
    pub(super) fn of(expression: &Expression) -> Needs {
        let mut needs = match expression {
            Expression::JsonPath(path) => of_steps(path.steps()),
            Expression::JmesPath(path) => of_match(path.expr(), true),
        };
        for words in [&mut needs.names, &mut needs.texts] {
            words.sort();
            words.dedup();
        }
        needs
    }

    fn name(name: &str) -> Needs {
        Needs {
            names: vec![name.into()],
            texts: Vec::new(),
        }
    }

    fn and(mut self, mut other: Needs) -> Needs {
        self.names.append(&mut other.names);
        self.texts.append(&mut other.texts);
        self
    }

    /// What both need.
    fn or(mut self, other: &Needs) -> Needs {
        self.names.retain(|name| other.names.contains(name));
        self.texts.retain(|text| other.texts.contains(text));
        self
    }
}

fn all(needs: impl Iterator<Item = Needs>) -> Needs {
    needs.fold(Needs::default(), Needs::and)
}

fn of_steps(steps: &[Step]) -> Needs {
    all(steps.iter().map(|step| match step {
        Step::Member(name) | Step::Descend(name) => Needs::name(name),
        Step::Filter(filter) | Step::DescendFilter(filter) => of_filter(filter),
        Step::Members(_)
        | Step::DescendMembers(_)
        | Step::AnyMember
        | Step::AnyElement
        | Step::Index(_)
        | Step::Indexes(_)
        | Step::Slice(..)
        | Step::DescendAll
        | Step::Root => Needs::default(),
    }))
}

fn of_filter(filter: &Filter) -> Needs {
    match filter {
        Filter::Exists(operand) => of_operand(operand),
        Filter::Compare(left, operator, right) => {
            let both = of_operand(left).and(of_operand(right));
            match (operator, left, right) {
                // Text equals text only; a literal must stand in the message, unless it compares with a literal.
                (
                    Operator::Equal | Operator::StrictEqual,
                    Operand::Path(_),
                    Operand::Literal(Literal::Text(text)),
                )
                | (
                    Operator::Equal | Operator::StrictEqual,
                    Operand::Literal(Literal::Text(text)),
                    Operand::Path(_),
                ) => both.and(Needs {
                    names: Vec::new(),
                    texts: vec![text.clone()],
                }),
                _ => both,
            }
        }
        Filter::And(filters) => all(filters.iter().map(of_filter)),
        Filter::Or(filters) => {
            let mut each = filters.iter().map(of_filter);
            let first = each.next().unwrap_or_default();
            each.fold(first, |needs, other| needs.or(&other))
        }
    }
}

/// A missing path compares with nothing, so its names are needed.
fn of_operand(operand: &Operand) -> Needs {
    match operand {
        Operand::Path(steps) => of_steps(steps),
        Operand::Literal(_) => Needs::default(),
    }
}

/// What a value must be for a need to be claimed: without the need it is not that, and evaluating it does not fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Not null.
    Something,
    /// Neither null, false nor empty.
    True,
}

/// The needs of a type match: without them it has no match.
fn of_match(expr: &Expr, from_message: bool) -> Needs {
    match expr {
        Expr::Project(..) | Expr::Filter(..) => claims(expr, Wanted::True, from_message),
        Expr::Group(inner) => of_match(inner, from_message),
        Expr::Sub(left, right) | Expr::Pipe(left, right) => chained(left, right, from_message, of_match),
        Expr::Or(left, right) => claims(left, Wanted::True, from_message).or(&of_match(right, from_message)),
        Expr::And(left, _) => claims(left, Wanted::Something, from_message),
        _ => claims(expr, Wanted::Something, from_message),
    }
}

/// `from_message`: the current value is one of the message, so the names of its members are names of the message.
fn claims(expr: &Expr, wanted: Wanted, from_message: bool) -> Needs {
    let something = |expr: &Expr| claims(expr, Wanted::Something, from_message);
    let inside =
        |expr: &Expr, source: &Expr, wanted| claims(expr, wanted, is_of_message(source, from_message));
    match expr {
        Expr::Field(name) if from_message => Needs::name(name),
        Expr::Group(inner) => claims(inner, wanted, from_message),
        Expr::ObjectValues(inner) | Expr::Flatten(inner) => claims(inner, wanted, from_message),
        Expr::Sub(left, right) | Expr::Pipe(left, right) => {
            chained(left, right, from_message, |right, from_message| {
                claims(right, wanted, from_message)
            })
        }
        // Of something, a projection is an array, maybe an empty one.
        Expr::Project(left, _) | Expr::Filter(left, ..) if wanted == Wanted::Something => something(left),
        // With elements it has something to project.
        Expr::Project(left, _) | Expr::Filter(left, ..) if can_fail(left) => {
            claims(left, Wanted::True, from_message)
        }
        Expr::Project(left, right) => {
            claims(left, Wanted::True, from_message).and(inside(right, left, Wanted::Something))
        }
        Expr::Filter(left, condition, right) => {
            let needs = claims(left, Wanted::True, from_message).and(inside(condition, left, Wanted::True));
            if can_fail(condition) {
                needs
            } else {
                needs.and(inside(right, left, Wanted::Something))
            }
        }
        Expr::And(left, _) if wanted == Wanted::Something => something(left),
        Expr::And(left, right) => {
            let needs = claims(left, Wanted::True, from_message);
            if can_fail(left) {
                needs
            } else {
                needs.and(claims(right, Wanted::True, from_message))
            }
        }
        Expr::Or(left, right) => {
            claims(left, Wanted::True, from_message).or(&claims(right, wanted, from_message))
        }
        Expr::Compare(left, comparator, right) => match comparator {
            Comparator::Equal if wanted == Wanted::True => match (&**left, &**right) {
                (Expr::Literal(literal), other) | (other, Expr::Literal(literal)) => {
                    of_equality(other, literal.root(), from_message)
                }
                _ => Needs::default(),
            },
            // Always true or false.
            Comparator::Equal | Comparator::NotEqual => Needs::default(),
            // Null unless both are numbers.
            _ if can_fail(left) || can_fail(right) => Needs::default(),
            _ => something(left).and(something(right)),
        },
        _ => Needs::default(),
    }
}

fn of_equality(other: &Expr, literal: Token<'_>, from_message: bool) -> Needs {
    if literal.is_null() {
        return Needs::default();
    }
    let needs = claims(other, Wanted::Something, from_message);
    match literal.text() {
        Some(text) if is_of_message(other, from_message) && !can_fail(other) => needs.and(Needs {
            names: Vec::new(),
            texts: vec![text.into()],
        }),
        _ => needs,
    }
}

fn chained(left: &Expr, right: &Expr, from_message: bool, of_right: impl Fn(&Expr, bool) -> Needs) -> Needs {
    let of_left = if keeps_null(right) {
        claims(left, Wanted::Something, from_message)
    } else {
        Needs::default()
    };
    if can_fail(left) {
        of_left
    } else {
        of_left.and(of_right(right, is_of_message(left, from_message)))
    }
}

/// Whether evaluating it on null gives null and cannot fail.
fn keeps_null(expr: &Expr) -> bool {
    match expr {
        Expr::Current | Expr::Field(_) | Expr::Index(_) | Expr::Slice(..) => true,
        Expr::MultiList(_) | Expr::MultiHash(_) => true,
        Expr::Project(inner, _)
        | Expr::Filter(inner, ..)
        | Expr::ObjectValues(inner)
        | Expr::Flatten(inner)
        | Expr::Group(inner)
        | Expr::And(inner, _) => keeps_null(inner),
        Expr::Sub(left, right) | Expr::Pipe(left, right) | Expr::Or(left, right) => {
            keeps_null(left) && keeps_null(right)
        }
        Expr::Literal(_) | Expr::Not(_) | Expr::Compare(..) | Expr::Call(..) | Expr::Reference(_) => false,
    }
}

/// Whether what it gives are values of the message, or arrays of such.
fn is_of_message(expr: &Expr, current: bool) -> bool {
    match expr {
        Expr::Current | Expr::Field(_) | Expr::Index(_) | Expr::Slice(..) => current,
        Expr::Sub(left, right)
        | Expr::Pipe(left, right)
        | Expr::Project(left, right)
        | Expr::Filter(left, _, right) => is_of_message(right, is_of_message(left, current)),
        Expr::ObjectValues(inner) | Expr::Flatten(inner) | Expr::Group(inner) => {
            is_of_message(inner, current)
        }
        Expr::And(left, right) | Expr::Or(left, right) => {
            is_of_message(left, current) && is_of_message(right, current)
        }
        Expr::MultiList(exprs) => exprs.iter().all(|expr| is_of_message(expr, current)),
        Expr::Call(function, arguments) => {
            function.gives_its_arguments()
                && arguments.iter().all(|argument| is_of_message(argument, current))
        }
        Expr::Literal(_) | Expr::MultiHash(_) | Expr::Not(_) | Expr::Compare(..) | Expr::Reference(_) => {
            false
        }
    }
}

/// Whether evaluating it can be an error.
fn can_fail(expr: &Expr) -> bool {
    match expr {
        Expr::Current | Expr::Field(_) | Expr::Index(_) | Expr::Slice(..) | Expr::Literal(_) => false,
        Expr::Sub(left, right)
        | Expr::Pipe(left, right)
        | Expr::Project(left, right)
        | Expr::And(left, right)
        | Expr::Or(left, right)
        | Expr::Compare(left, _, right) => can_fail(left) || can_fail(right),
        Expr::Filter(left, condition, right) => can_fail(left) || can_fail(condition) || can_fail(right),
        Expr::ObjectValues(inner)
        | Expr::Flatten(inner)
        | Expr::Group(inner)
        | Expr::Not(inner)
        | Expr::Reference(inner) => can_fail(inner),
        Expr::MultiList(exprs) => exprs.iter().any(can_fail),
        Expr::MultiHash(members) => members.iter().any(|(_, expr)| can_fail(expr)),
        Expr::Call(function, arguments) => !function.cannot_fail() || arguments.iter().any(can_fail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::Language;

    fn needs(text: &str, language: Language) -> String {
        let needs = Needs::of(&Expression::parse(text, language).unwrap());
        format!("{}/{}", needs.names.join(","), needs.texts.join(","))
    }

    #[test]
    fn needs_of_jsonpath() {
        let table = [
            ("$..[?(@heartRate && @date)]", "date,heartRate/"),
            ("$..[?(@a || @b)]", "/"),
            ("$..[?(@a && @b || @a && @c)]", "a/"),
            ("$..[?(@.type == 'hr')].x", "type,x/hr"),
            ("$..[?(@.type != 'hr')]", "type/"),
            ("$.Body['a','b'][0].c", "Body,c/"),
            ("$..[?('x' == 'x')]", "/"),
            ("$", "/"),
        ];
        for (text, expected) in table {
            assert_eq!(needs(text, Language::JsonPath), expected, "{text}");
        }
    }

    #[test]
    fn needs_of_jmespath() {
        let table = [
            ("to_array(@)[?heartrate && date]", "date,heartrate/"),
            (
                "Body.readings[?unit == 'bpm' && hr].x",
                "Body,hr,readings,unit,x/bpm",
            ),
            ("Body.readings[?add(hr, `1`) > `2`]", "Body,readings/"),
            (
                "to_array(@.Body) | [? deviceId && starts_with(deviceId, 'a')].data[]",
                "deviceId/",
            ),
            ("[Body][?contains(keys(@), 'o')]", "/"),
            ("Body[?!a]", "Body/"),
            ("Body.a == 'x'", "/"),
            ("Body.a || Body.b", "Body/"),
            ("Body.a && Body.b", "Body,a/"),
            ("{a: Body}.a", "/"),
            ("`{\"a\": 1}`.a", "/"),
            ("Body.length(@)", "/"),
            ("Body[*].a | [0]", "Body/"),
            ("Body", "Body/"),
        ];
        for (text, expected) in table {
            assert_eq!(needs(text, Language::JmesPath), expected, "{text}");
        }
    }
}
