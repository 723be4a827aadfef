//! Whether a text is a unit of the Unified Code for Units of Measure (UCUM, case-sensitive form), by its grammar and
//! its table of atoms; and what a common other spelling should be.

use super::ucum_atoms::{METRIC, NOT_METRIC, PREFIXES, SPECIAL};

/// The system of UCUM codes.
pub const UCUM_SYSTEM: &str = "http://unitsofmeasure.org";

const MAXIMUM_NESTING: usize = 32;

/// Why a text is no UCUM unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UcumError {
    /// What is wrong.
    pub message: String,
}

/// Checks a unit.
///
/// ```
/// use iomt_mapping::check::check_ucum;
///
/// for unit in ["/min", "mm[Hg]", "Cel", "10*3/uL", "{steps}", "kg/m2", "mL/(kg.min)", "cm[H2O]"] {
///     assert!(check_ucum(unit).is_ok(), "{unit}");
/// }
/// for other in ["mmHg", "count/min", "degC", "bpm", "kg m", ""] {
///     assert!(check_ucum(other).is_err(), "{other}");
/// }
/// ```
pub fn check_ucum(text: &str) -> Result<(), UcumError> {
    let mut parser = Parser {
        rest: text,
        nesting: 0,
        factors: 0,
        special: None,
    };
    if text.is_empty() {
        return Err(error("a unit is empty"));
    }
    if let Some(other) = text.chars().find(|c| !('!'..='~').contains(c)) {
        return Err(error(format!("{other:?} cannot stand in a unit")));
    }
    // Only the whole unit may begin with a division of one.
    parser.eat('/');
    parser.term()?;
    if let Some(special) = parser.special
        && (parser.factors > 1 || text.starts_with('/'))
    {
        return Err(error(format!(
            "'{special}' is on no ratio scale and must stand alone"
        )));
    }
    match parser.rest.chars().next() {
        None => Ok(()),
        Some(more) => Err(error(format!("'{more}' is not expected"))),
    }
}

fn error(message: impl Into<String>) -> UcumError {
    UcumError {
        message: message.into(),
    }
}

struct Parser<'t> {
    rest: &'t str,
    nesting: usize,
    /// Units and numbers so far.
    factors: usize,
    special: Option<&'t str>,
}

impl<'t> Parser<'t> {
    fn eat(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Components joined by `.` and `/`.
    fn term(&mut self) -> Result<(), UcumError> {
        self.component()?;
        while self.eat('.') || self.eat('/') {
            self.component()?;
        }
        Ok(())
    }

    fn component(&mut self) -> Result<(), UcumError> {
        if self.eat('(') {
            self.nesting += 1;
            if self.nesting > MAXIMUM_NESTING {
                return Err(error("parentheses are nested too deeply"));
            }
            self.term()?;
            self.nesting -= 1;
            if !self.eat(')') {
                return Err(error("a ')' is missing"));
            }
            return self.annotation().map(|_| ());
        }
        let symbol = self.symbol()?;
        let annotated = self.annotation()?;
        if symbol.is_empty() {
            return if annotated {
                Ok(())
            } else {
                Err(error("a unit is missing"))
            };
        }
        self.factors += 1;
        let atom = check_symbol(symbol)?;
        if SPECIAL.binary_search(&atom).is_ok() {
            self.special = Some(symbol);
            // A power counts as a product.
            self.factors += usize::from(!symbol.ends_with(atom));
        }
        Ok(())
    }

    /// The characters up to the next operator, parenthesis or annotation; in square brackets anything may stand.
    fn symbol(&mut self) -> Result<&'t str, UcumError> {
        let mut bracketed = false;
        let mut end = self.rest.len();
        for (at, c) in self.rest.char_indices() {
            match c {
                '[' if bracketed => return Err(error("a '[' stands within brackets")),
                '[' => bracketed = true,
                ']' if !bracketed => return Err(error("a ']' has no '['")),
                ']' => bracketed = false,
                '.' | '/' | '(' | ')' | '{' | '}' if !bracketed => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        if bracketed {
            return Err(error("a ']' is missing"));
        }
        let (symbol, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(symbol)
    }

    fn annotation(&mut self) -> Result<bool, UcumError> {
        if !self.eat('{') {
            return Ok(false);
        }
        let end = self
            .rest
            .find(['}', '{'])
            .ok_or_else(|| error("a '}' is missing"))?;
        let (_, rest) = self.rest.split_at(end);
        self.rest = rest;
        if self.eat('}') {
            Ok(true)
        } else {
            Err(error("a '{' stands within braces"))
        }
    }
}

/// A number, or a unit atom with prefix and exponent; returns the atom.
fn check_symbol(symbol: &str) -> Result<&str, UcumError> {
    if symbol.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(symbol);
    }
    let unit = symbol.trim_end_matches(|c: char| c.is_ascii_digit());
    let has_exponent = unit.len() < symbol.len();
    let unit = if has_exponent {
        unit.strip_suffix(['+', '-']).unwrap_or(unit)
    } else {
        unit
    };
    if METRIC.binary_search(&unit).is_ok() || NOT_METRIC.binary_search(&unit).is_ok() {
        return Ok(unit);
    }
    PREFIXES
        .iter()
        .filter_map(|prefix| unit.strip_prefix(prefix))
        .find(|atom| METRIC.binary_search(atom).is_ok())
        .ok_or_else(|| error(format!("'{unit}' is no unit of UCUM")))
}

/// Units as people write them and their UCUM code, lower case.
const COMMON: [(&str, &str); 66] = [
    ("mmhg", "mm[Hg]"),
    ("mm hg", "mm[Hg]"),
    ("cmh2o", "cm[H2O]"),
    ("cm h2o", "cm[H2O]"),
    ("bpm", "/min"),
    ("beats/min", "/min"),
    ("beats/minute", "/min"),
    ("beats per minute", "/min"),
    ("count/min", "/min"),
    ("counts/min", "/min"),
    ("breaths/min", "/min"),
    ("breaths/minute", "/min"),
    ("brpm", "/min"),
    ("rpm", "/min"),
    ("1/min.", "/min"),
    ("per minute", "/min"),
    ("c", "Cel"),
    ("degc", "Cel"),
    ("deg c", "Cel"),
    ("°c", "Cel"),
    ("celsius", "Cel"),
    ("degrees celsius", "Cel"),
    ("f", "[degF]"),
    ("degf", "[degF]"),
    ("deg f", "[degF]"),
    ("°f", "[degF]"),
    ("fahrenheit", "[degF]"),
    ("lb", "[lb_av]"),
    ("lbs", "[lb_av]"),
    ("pound", "[lb_av]"),
    ("pounds", "[lb_av]"),
    ("oz", "[oz_av]"),
    ("kgs", "kg"),
    ("kilogram", "kg"),
    ("kilograms", "kg"),
    ("in", "[in_i]"),
    ("inch", "[in_i]"),
    ("inches", "[in_i]"),
    ("ft", "[ft_i]"),
    ("feet", "[ft_i]"),
    ("mile", "[mi_i]"),
    ("miles", "[mi_i]"),
    ("meter", "m"),
    ("meters", "m"),
    ("percent", "%"),
    ("pct", "%"),
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("msec", "ms"),
    ("milliseconds", "ms"),
    ("minute", "min"),
    ("minutes", "min"),
    ("mins", "min"),
    ("hour", "h"),
    ("hours", "h"),
    ("hr", "h"),
    ("hrs", "h"),
    ("step", "{steps}"),
    ("steps", "{steps}"),
    ("count", "{count}"),
    ("counts", "{count}"),
    ("ohms", "Ohm"),
    ("volt", "V"),
    ("µv", "uV"),
];

/// The UCUM code that is probably meant by a text that is none; `None` when nobody can tell.
///
/// ```
/// use iomt_mapping::check::suggest_ucum;
///
/// assert_eq!(suggest_ucum("mmHg"), Some("mm[Hg]".to_owned()));
/// assert_eq!(suggest_ucum("KG"), Some("kg".to_owned()));
/// ```
pub fn suggest_ucum(text: &str) -> Option<String> {
    let lower = text.trim().to_lowercase();
    let common = COMMON.iter().find(|(other, _)| *other == lower);
    if let Some((_, code)) = common {
        return Some((*code).to_owned());
    }
    // The right letters in the wrong case, or with spaces.
    let without_spaces: String = lower.split_whitespace().collect();
    [
        without_spaces.clone(),
        without_spaces.replace('l', "L"),
        without_spaces.replace("mmhg", "mm[Hg]"),
    ]
    .into_iter()
    .find(|candidate| candidate != text && check_ucum(candidate).is_ok())
}
