//! Filters: conditions, what they compare, and how `&&` and `||` group.

use crate::jsonpath::parser::{MAXIMUM_NESTING, Parsed, Parser, regex};
use crate::jsonpath::{Filter, Literal, Operand, Operator, Step};

impl Parser<'_> {
    pub(super) fn filter(&mut self, close: u8, descend: bool) -> Parsed<Step> {
        self.at += 1;
        self.ensure_more("Path ended with open indexer.")?;
        if self.peek() != Some(b'(') {
            let unexpected = self.here();
            return self.error(format!(
                "Unexpected character while parsing path indexer: {unexpected}"
            ));
        }
        if self.nesting >= MAXIMUM_NESTING {
            return self.error("Filters are nested too deeply.");
        }
        self.at += 1;
        self.nesting += 1;
        let filter = self.conditions()?;
        self.nesting -= 1;
        self.at += 1;
        self.ensure_more("Path ended with open indexer.")?;
        self.skip_spaces();
        if self.peek() != Some(close) {
            let unexpected = self.here();
            return self.error(format!(
                "Unexpected character while parsing path indexer: {unexpected}"
            ));
        }
        Ok(if descend {
            Step::DescendFilter(filter)
        } else {
            Step::Filter(filter)
        })
    }

    /// Conditions up to the closing parenthesis. Operators have no precedence: a change of operator opens a group that
    /// takes everything to its right.
    fn conditions(&mut self) -> Parsed<Filter> {
        let mut chain: Vec<(Filter, bool)> = Vec::new();
        loop {
            self.ensure_more("Path ended with open query.")?;
            let condition = self.condition()?;
            match self.peek() {
                Some(b')') => {
                    let mixed = chain
                        .windows(2)
                        .any(|pair| matches!(pair, [(_, a), (_, b)] if a != b));
                    self.mixes_operators |= mixed;
                    return Ok(group(chain, condition));
                }
                Some(b'&') if self.taken("&&") => chain.push((condition, true)),
                Some(b'|') if self.taken("||") => chain.push((condition, false)),
                None => return self.error("Path ended with open query."),
                Some(_) => {
                    let unexpected = self.here();
                    return self.error(format!(
                        "Unexpected character while parsing path query: {unexpected}"
                    ));
                }
            }
        }
    }

    fn condition(&mut self) -> Parsed<Filter> {
        let left = self.operand()?;
        if let Some(b')' | b'|' | b'&') = self.peek() {
            return Ok(Filter::Exists(left));
        }
        let at = self.at;
        let operator = self.operator()?;
        let mut right = self.operand()?;
        if operator == Operator::Matches
            && let Operand::Literal(Literal::Text(written)) = &right
        {
            // A quoted text of the same form does as a pattern.
            match regex(written) {
                Some(Ok(compiled)) => {
                    right = Operand::Literal(Literal::Regex(written.clone(), Box::new(compiled)));
                }
                Some(Err(reason)) => return self.error_at(at, format!("Invalid pattern: {reason}")),
                None => return self.error_at(at, "A pattern is written as /pattern/ with optional flags."),
            }
        }
        Ok(Filter::Compare(left, operator, right))
    }

    fn operator(&mut self) -> Parsed<Operator> {
        const OPERATORS: [(&str, Operator); 10] = [
            ("===", Operator::StrictEqual),
            ("==", Operator::Equal),
            ("=~", Operator::Matches),
            ("!==", Operator::StrictNotEqual),
            ("!=", Operator::NotEqual),
            ("<>", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            ("<", Operator::Less),
            (">=", Operator::GreaterOrEqual),
            (">", Operator::Greater),
        ];
        if self.at + 1 >= self.bytes.len() {
            return self.error("Path ended with open query.");
        }
        match OPERATORS.iter().find(|(text, _)| self.taken(text)) {
            Some((_, operator)) => Ok(*operator),
            None => self.error("Could not read query operator."),
        }
    }

    fn operand(&mut self) -> Parsed<Operand> {
        self.skip_spaces();
        let operand = match self.peek() {
            None => return self.error("Path ended with open query."),
            Some(start @ (b'$' | b'@')) => {
                let mut steps = if start == b'$' {
                    vec![Step::Root]
                } else {
                    Vec::new()
                };
                self.at += 1;
                if self.path(&mut steps, self.at, true)? {
                    return self.error("Path ended with open query.");
                }
                Operand::Path(steps)
            }
            Some(_) => Operand::Literal(self.literal()?),
        };
        self.skip_spaces();
        self.ensure_more("Path ended with open query.")?;
        Ok(operand)
    }

    fn literal(&mut self) -> Parsed<Literal> {
        let start = self.at;
        let unexpected = format!("Unexpected character while parsing path query: {}", self.here());
        match self.peek() {
            Some(b'\'') => Ok(Literal::Text(self.quoted_text()?.into())),
            Some(b'-' | b'0'..=b'9') => {
                // A number ends at a space or a closing parenthesis, nowhere else.
                while self.peek().is_some_and(|byte| byte != b' ' && byte != b')') {
                    self.at += 1;
                }
                self.ensure_more("Path ended with open query.")?;
                let text = self.text.get(start..self.at).unwrap_or_default();
                let number = if text.contains(['.', 'e', 'E']) {
                    text.parse().ok().map(Literal::Float)
                } else {
                    text.parse().ok().map(Literal::Integer)
                };
                match number {
                    Some(number) => Ok(number),
                    None => self.error_at(start, format!("{unexpected} ({text} is no number; a number is followed by a space or a closing parenthesis)")),
                }
            }
            Some(b't') if self.taken("true") => Ok(Literal::Bool(true)),
            Some(b'f') if self.taken("false") => Ok(Literal::Bool(false)),
            Some(b'n') if self.taken("null") => Ok(Literal::Null),
            Some(b'/') => self.regex_literal(),
            _ => self.error(unexpected),
        }
    }

    fn regex_literal(&mut self) -> Parsed<Literal> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'\\') if self.at + 1 < self.bytes.len() => self.at += 2,
                Some(b'/') => break,
                Some(_) => self.at += 1,
                None => return self.error_at(start, "Path ended with an open regex."),
            }
        }
        self.at += 1;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphabetic()) {
            self.at += 1;
        }
        let written = self.text.get(start..self.at).unwrap_or_default();
        match regex(written) {
            Some(Ok(compiled)) => Ok(Literal::Regex(written.into(), Box::new(compiled))),
            Some(Err(reason)) => self.error_at(start, format!("Invalid pattern: {reason}")),
            None => self.error_at(start, "Path ended with an open regex."),
        }
    }
}

/// `a && b || c` is `a && (b || c)`, `a && b && c` is one group; the flag tells which operator follows a condition.
fn group(chain: Vec<(Filter, bool)>, last: Filter) -> Filter {
    let mut right = last;
    let mut operator: Option<bool> = None;
    for (condition, and) in chain.into_iter().rev() {
        right = match (right, operator == Some(and)) {
            (Filter::And(mut group), true) if and => {
                group.insert(0, condition);
                Filter::And(group)
            }
            (Filter::Or(mut group), true) if !and => {
                group.insert(0, condition);
                Filter::Or(group)
            }
            (right, _) if and => Filter::And(vec![condition, right]),
            (right, _) => Filter::Or(vec![condition, right]),
        };
        operator = Some(and);
    }
    right
}
