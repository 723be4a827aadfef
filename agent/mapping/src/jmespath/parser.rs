//! A precedence-climbing parser for JMESPath. Nesting is bounded, so that neither parsing nor evaluating can exhaust the stack.

use crate::expression::SyntaxError;
use crate::finding::nearest;
use crate::jmespath::functions::Function;
use crate::jmespath::lexer::{Lexeme, lexemes};
use crate::jmespath::{Comparator, Expr, MAXIMUM_NESTING};

/// An expression and how deep its tree is.
type Built = Result<(Expr, usize), SyntaxError>;

/// What binds tighter than a projection's right side; everything below ends it.
const PROJECTION_STOP: u8 = 10;

pub(super) fn parse(text: &str) -> Result<Expr, SyntaxError> {
    let mut parser = Parser {
        lexemes: lexemes(text)?,
        at: 0,
        nesting: 0,
    };
    let (expr, _) = parser.expression(0)?;
    match parser.peek() {
        Lexeme::End => Ok(expr),
        other => Err(parser.error(format!("Unexpected {}.", describe(other)))),
    }
}

struct Parser {
    lexemes: Vec<(usize, Lexeme)>,
    at: usize,
    nesting: usize,
}

fn binding_power(lexeme: &Lexeme) -> u8 {
    match lexeme {
        Lexeme::Pipe => 1,
        Lexeme::Or => 2,
        Lexeme::And => 3,
        Lexeme::Equal
        | Lexeme::NotEqual
        | Lexeme::Less
        | Lexeme::LessOrEqual
        | Lexeme::Greater
        | Lexeme::GreaterOrEqual => 5,
        Lexeme::Flatten => 9,
        Lexeme::Star => 20,
        Lexeme::Filter => 21,
        Lexeme::Dot => 40,
        Lexeme::Not => 45,
        Lexeme::LeftBrace => 50,
        Lexeme::LeftBracket => 55,
        Lexeme::LeftParenthesis => 60,
        _ => 0,
    }
}

fn describe(lexeme: &Lexeme) -> String {
    match lexeme {
        Lexeme::Identifier(name) | Lexeme::Quoted(name) => format!("name {name}"),
        Lexeme::Number(number) => format!("number {number}"),
        Lexeme::Literal(_) => "literal".to_owned(),
        Lexeme::End => "end of the expression".to_owned(),
        other => format!("token {other:?}"),
    }
}

fn boxed(expr: Expr) -> Box<Expr> {
    Box::new(expr)
}

impl Parser {
    fn peek(&self) -> &Lexeme {
        self.peek_at(0)
    }

    fn peek_at(&self, ahead: usize) -> &Lexeme {
        self.lexemes
            .get(self.at + ahead)
            .map_or(&Lexeme::End, |(_, lexeme)| lexeme)
    }

    fn advance(&mut self) -> Lexeme {
        let lexeme = self.peek().clone();
        self.at = (self.at + 1).min(self.lexemes.len());
        lexeme
    }

    fn error(&self, message: impl Into<String>) -> SyntaxError {
        self.error_at(self.at, message)
    }

    fn error_at(&self, lexeme: usize, message: impl Into<String>) -> SyntaxError {
        let offset = self
            .lexemes
            .get(lexeme)
            .or(self.lexemes.last())
            .map_or(0, |(offset, _)| *offset);
        SyntaxError {
            message: message.into(),
            offset,
        }
    }

    fn expect(&mut self, lexeme: &Lexeme, name: &str) -> Result<(), SyntaxError> {
        if self.peek() == lexeme {
            self.advance();
            return Ok(());
        }
        Err(self.error(format!("Expected {name}, found {}.", describe(self.peek()))))
    }

    fn deeper(&self, expr: Expr, depths: impl IntoIterator<Item = usize>) -> Built {
        let depth = 1 + depths.into_iter().max().unwrap_or(0);
        if depth > MAXIMUM_NESTING {
            return Err(self.error(format!("The expression is nested deeper than {MAXIMUM_NESTING}.")));
        }
        Ok((expr, depth))
    }

    fn expression(&mut self, power: u8) -> Built {
        if self.nesting >= MAXIMUM_NESTING {
            return Err(self.error(format!("The expression is nested deeper than {MAXIMUM_NESTING}.")));
        }
        self.nesting += 1;
        let mut built = self.prefix()?;
        while power < binding_power(self.peek()) {
            built = self.infix(built)?;
        }
        self.nesting -= 1;
        Ok(built)
    }

    fn prefix(&mut self) -> Built {
        let start = self.at;
        match self.advance() {
            Lexeme::At => self.deeper(Expr::Current, []),
            Lexeme::Identifier(name) if *self.peek() == Lexeme::LeftParenthesis => self.call(start, &name),
            Lexeme::Identifier(name) => self.deeper(Expr::Field(name.into()), []),
            Lexeme::Quoted(_) if *self.peek() == Lexeme::LeftParenthesis => {
                Err(self.error("A function's name has no quotes."))
            }
            Lexeme::Quoted(name) => self.deeper(Expr::Field(name.into()), []),
            Lexeme::Literal(tree) => self.deeper(Expr::Literal(tree), []),
            Lexeme::Star => self.object_values((Expr::Current, 1)),
            Lexeme::Flatten => self.flatten((Expr::Current, 1)),
            Lexeme::Filter => self.filter((Expr::Current, 1)),
            Lexeme::LeftBracket => match (self.peek(), self.peek_at(1)) {
                (Lexeme::Number(_) | Lexeme::Colon, _) | (Lexeme::Star, Lexeme::RightBracket) => {
                    self.bracket((Expr::Current, 1))
                }
                _ => self.multi_list(),
            },
            Lexeme::LeftBrace => self.multi_hash(),
            Lexeme::Reference => {
                let (expr, depth) = self.expression(0)?;
                self.deeper(Expr::Reference(boxed(expr)), [depth])
            }
            Lexeme::Not => {
                let (expr, depth) = self.expression(binding_power(&Lexeme::Not))?;
                self.deeper(Expr::Not(boxed(expr)), [depth])
            }
            Lexeme::LeftParenthesis => {
                let (expr, depth) = self.expression(0)?;
                self.expect(&Lexeme::RightParenthesis, "a closing parenthesis")?;
                self.deeper(Expr::Group(boxed(expr)), [depth])
            }
            other => Err(self.error_at(start, format!("Unexpected {}.", describe(&other)))),
        }
    }

    fn infix(&mut self, left: (Expr, usize)) -> Built {
        let start = self.at;
        let lexeme = self.advance();
        let power = binding_power(&lexeme);
        let comparator = match lexeme {
            Lexeme::Dot if *self.peek() == Lexeme::Star => {
                self.advance();
                return self.object_values(left);
            }
            Lexeme::Dot => {
                let (right, depth) = self.after_dot(power)?;
                return self.deeper(Expr::Sub(boxed(left.0), boxed(right)), [left.1, depth]);
            }
            Lexeme::LeftBracket => match self.peek() {
                Lexeme::Number(_) | Lexeme::Colon | Lexeme::Star => return self.bracket(left),
                other => {
                    let message = format!("Expected an index, a slice or *, found {}.", describe(other));
                    return Err(self.error(message));
                }
            },
            Lexeme::Flatten => return self.flatten(left),
            Lexeme::Filter => return self.filter(left),
            Lexeme::Or | Lexeme::And | Lexeme::Pipe => {
                let (right, depth) = self.expression(power)?;
                let parts = (boxed(left.0), boxed(right));
                let expr = match lexeme {
                    Lexeme::Or => Expr::Or(parts.0, parts.1),
                    Lexeme::And => Expr::And(parts.0, parts.1),
                    _ => Expr::Pipe(parts.0, parts.1),
                };
                return self.deeper(expr, [left.1, depth]);
            }
            Lexeme::Equal => Comparator::Equal,
            Lexeme::NotEqual => Comparator::NotEqual,
            Lexeme::Less => Comparator::Less,
            Lexeme::LessOrEqual => Comparator::LessOrEqual,
            Lexeme::Greater => Comparator::Greater,
            Lexeme::GreaterOrEqual => Comparator::GreaterOrEqual,
            other => return Err(self.error_at(start, format!("Unexpected {}.", describe(&other)))),
        };
        let (right, depth) = self.expression(power)?;
        self.deeper(
            Expr::Compare(boxed(left.0), comparator, boxed(right)),
            [left.1, depth],
        )
    }

    fn after_dot(&mut self, power: u8) -> Built {
        match self.peek() {
            Lexeme::LeftBracket => {
                self.advance();
                self.multi_list()
            }
            Lexeme::Identifier(_) | Lexeme::Quoted(_) | Lexeme::Star | Lexeme::LeftBrace => {
                self.expression(power)
            }
            other => Err(self.error(format!(
                "Expected a name, * or a selection after the dot, found {}.",
                describe(other)
            ))),
        }
    }

    fn after_projection(&mut self, power: u8) -> Built {
        match self.peek() {
            Lexeme::Dot => {
                self.advance();
                self.after_dot(power)
            }
            Lexeme::LeftBracket | Lexeme::Filter => self.expression(power),
            other if binding_power(other) < PROJECTION_STOP => Ok((Expr::Current, 1)),
            other => Err(self.error(format!("Unexpected {}.", describe(other)))),
        }
    }

    fn object_values(&mut self, left: (Expr, usize)) -> Built {
        let (right, depth) = self.after_projection(binding_power(&Lexeme::Star))?;
        let values = Expr::ObjectValues(boxed(left.0));
        self.deeper(Expr::Project(boxed(values), boxed(right)), [left.1 + 1, depth])
    }

    fn flatten(&mut self, left: (Expr, usize)) -> Built {
        let (right, depth) = self.after_projection(binding_power(&Lexeme::Flatten))?;
        let flat = Expr::Flatten(boxed(left.0));
        self.deeper(Expr::Project(boxed(flat), boxed(right)), [left.1 + 1, depth])
    }

    fn filter(&mut self, left: (Expr, usize)) -> Built {
        let (condition, condition_depth) = self.expression(0)?;
        self.expect(&Lexeme::RightBracket, "a closing bracket")?;
        let (right, depth) = match self.peek() {
            Lexeme::Flatten => (Expr::Current, 1),
            _ => self.after_projection(binding_power(&Lexeme::Filter))?,
        };
        let expr = Expr::Filter(boxed(left.0), boxed(condition), boxed(right));
        self.deeper(expr, [left.1, condition_depth, depth])
    }

    /// `[0]`, `[0:1]` or `[*]`, after the bracket.
    fn bracket(&mut self, left: (Expr, usize)) -> Built {
        if *self.peek() == Lexeme::Star {
            self.advance();
            self.expect(&Lexeme::RightBracket, "a closing bracket")?;
            let (right, depth) = self.after_projection(binding_power(&Lexeme::Star))?;
            return self.deeper(Expr::Project(boxed(left.0), boxed(right)), [left.1, depth]);
        }
        let start = self.at;
        let mut parts = [None; 3];
        let mut part = 0;
        loop {
            match self.advance() {
                Lexeme::Number(number) => match parts.get_mut(part) {
                    Some(place @ None) => *place = Some(number),
                    _ => return Err(self.error_at(self.at.saturating_sub(1), "Unexpected number.")),
                },
                Lexeme::Colon if part < 2 => part += 1,
                Lexeme::RightBracket => break,
                other => {
                    let message = format!("Expected a closing bracket, found {}.", describe(&other));
                    return Err(self.error_at(self.at.saturating_sub(1), message));
                }
            }
        }
        match (part, parts) {
            (0, [Some(index), ..]) => {
                self.deeper(Expr::Sub(boxed(left.0), boxed(Expr::Index(index))), [left.1])
            }
            (_, [_, _, Some(0)]) => Err(self.error_at(start, "The step of a slice cannot be zero.")),
            (_, [from, to, step]) => {
                let slice = Expr::Slice(from, to, step.unwrap_or(1));
                let sliced = Expr::Sub(boxed(left.0), boxed(slice));
                let (right, depth) = self.after_projection(binding_power(&Lexeme::Star))?;
                self.deeper(Expr::Project(boxed(sliced), boxed(right)), [left.1 + 1, depth])
            }
        }
    }

    /// `[a, b]`, after the bracket.
    fn multi_list(&mut self) -> Built {
        let (elements, depth) = self.list(&Lexeme::RightBracket, "a closing bracket")?;
        if elements.is_empty() {
            return Err(self.error_at(self.at.saturating_sub(1), "Expected an expression."));
        }
        self.deeper(Expr::MultiList(elements), [depth])
    }

    /// `{a: b}`, after the brace.
    fn multi_hash(&mut self) -> Built {
        let mut members = Vec::new();
        let mut deepest = 0;
        loop {
            let start = self.at;
            let name = match self.advance() {
                Lexeme::Identifier(name) | Lexeme::Quoted(name) => name,
                other => {
                    return Err(self.error_at(start, format!("Expected a name, found {}.", describe(&other))));
                }
            };
            self.expect(&Lexeme::Colon, "a colon")?;
            let (value, depth) = self.expression(0)?;
            deepest = deepest.max(depth);
            members.push((name.into(), value));
            match self.peek() {
                Lexeme::Comma => self.advance(),
                _ => break,
            };
        }
        self.expect(&Lexeme::RightBrace, "a closing brace")?;
        self.deeper(Expr::MultiHash(members), [deepest])
    }

    fn call(&mut self, start: usize, name: &str) -> Built {
        self.advance();
        let (arguments, depth) = self.list(&Lexeme::RightParenthesis, "a closing parenthesis")?;
        let Some(function) = Function::of_name(name) else {
            let advice = match nearest(name, Function::NAMES.iter().map(|(name, ..)| *name)) {
                Some(near) => format!(" Did you mean {near}?"),
                None => String::new(),
            };
            return Err(self.error_at(
                start,
                format!("Error: unknown-function, no function is named {name}.{advice}"),
            ));
        };
        let (at_least, at_most) = function.arity();
        if arguments.len() < at_least || at_most.is_some_and(|at_most| arguments.len() > at_most) {
            let wanted = match at_most {
                Some(at_most) if at_most == at_least => format!("{at_least}"),
                Some(at_most) => format!("{at_least} to {at_most}"),
                None => format!("at least {at_least}"),
            };
            let count = arguments.len();
            let message = format!("Error: invalid-arity, {name} takes {wanted} argument(s), not {count}.");
            return Err(self.error_at(start, message));
        }
        self.deeper(Expr::Call(function, arguments), [depth])
    }

    /// Expressions between commas up to `close`.
    fn list(&mut self, close: &Lexeme, name: &str) -> Result<(Vec<Expr>, usize), SyntaxError> {
        let mut elements = Vec::new();
        let mut deepest = 0;
        if self.peek() == close {
            self.advance();
            return Ok((elements, deepest));
        }
        loop {
            let (element, depth) = self.expression(0)?;
            deepest = deepest.max(depth);
            elements.push(element);
            if *self.peek() == Lexeme::Comma {
                self.advance();
            } else {
                self.expect(close, name)?;
                return Ok((elements, deepest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_errors_tell_their_place() {
        let table = [
            ("", 0),
            ("a.", 2),
            ("a.[", 3),
            ("a..b", 2),
            ("a b", 2),
            ("a[", 2),
            ("a[b]", 2),
            ("a[0", 3),
            ("a[0:1:2:3]", 7),
            ("a[::0]", 2),
            ("[]a", 2),
            ("{a}", 2),
            ("{a: b", 5),
            ("foo(", 4),
            ("unknownFn(@)", 0),
            ("a | lenght(@)", 4),
            ("sort(a, b)", 0),
            ("multiply()", 0),
            ("not_null()", 0),
            ("'open", 0),
            ("`open", 0),
            ("\"open", 0),
            ("$..[?(@heartrate)]", 0),
            ("a == ", 5),
            ("(a", 2),
            ("a)", 1),
            ("\"f\"(a)", 3),
            ("a # b", 2),
        ];
        for (text, offset) in table {
            let error = parse(text).unwrap_err();
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
    }

    #[test]
    fn nesting_ends_before_the_stack_does() {
        for text in [
            "(",
            "[",
            "!",
            "&",
            "a.",
            "a|",
            "[*].",
            "to_array(",
            "{a: ",
            "a[?",
            "a[0]",
            "a[]",
        ] {
            let error = parse(&text.repeat(100_000));
            assert!(error.is_err(), "{text}");
        }
        assert!(parse(&format!("a{}", ".b".repeat(90))).is_ok());
    }
}
