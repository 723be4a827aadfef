//! What loading or checking a mapping found: every error and warning with its place and a suggestion.

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The mapping is refused (for an inner template: that template).
    Error,
    /// The mapping works, but probably not as meant.
    Warning,
    /// Worth knowing.
    Information,
}

/// A place in a mapping file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Bytes from the start of the text.
    pub start: usize,
    /// Length in bytes.
    pub length: usize,
}

/// One error, warning or remark about a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How serious it is.
    pub severity: Severity,
    /// Kind of template error as in `vectors/README.md` (`MissingMember`, `ExpressionSyntax`, ...), or the lint's name.
    pub kind: &'static str,
    /// Index of the inner template, from 0.
    pub template: Option<usize>,
    /// Member of the mapping or the `valueName`.
    pub field: Option<String>,
    /// Where in the text.
    pub place: Option<Place>,
    /// What is wrong; the wording of the reference where it has one.
    pub message: String,
    /// What to do about it.
    pub suggestion: Option<String>,
}

impl Finding {
    /// An error of this kind without place; further members are set with the methods below.
    pub fn error(kind: &'static str, message: impl Into<String>) -> Finding {
        Finding::new(Severity::Error, kind, message)
    }

    /// A warning of this kind.
    pub fn warning(kind: &'static str, message: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, kind, message)
    }

    /// A finding of this severity and kind.
    pub fn new(severity: Severity, kind: &'static str, message: impl Into<String>) -> Finding {
        let message = message.into();
        Finding {
            severity,
            kind,
            template: None,
            field: None,
            place: None,
            message,
            suggestion: None,
        }
    }

    /// At this place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Finding {
        self.place = Some(place);
        self
    }

    /// In the inner template of this index.
    #[must_use]
    pub fn template(mut self, template: usize) -> Finding {
        self.template = Some(template);
        self
    }

    /// About this member or value name.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Finding {
        self.field = Some(field.into());
        self
    }

    /// With this advice.
    #[must_use]
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Finding {
        self.suggestion = Some(suggestion.into());
        self
    }

    /// The finding as a compiler shows it: message, file with line and column, the line with a mark below it, and the
    /// suggestion. `text` is the mapping text that was loaded.
    ///
    /// ```
    /// use iomt_mapping::document::Document;
    ///
    /// let text = "{ \"template\" [] }";
    /// let finding = Document::parse(text).unwrap_err();
    /// let shown = finding.render("ward.device.json", text);
    /// assert!(shown.contains("--> ward.device.json:1:14"), "{shown}");
    /// ```
    pub fn render(&self, file: &str, text: &str) -> String {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Information => "info",
        };
        let mut shown = format!("{severity}[{}]: {}\n", self.kind, self.message.trim_end());
        if let Some(place) = self.place {
            let start = text
                .get(..place.start)
                .map_or(0, |before| before.rfind(['\n', '\r']).map_or(0, |n| n + 1));
            let line = text
                .get(start..)
                .unwrap_or_default()
                .lines()
                .next()
                .unwrap_or_default();
            let marked = text
                .get(place.start..place.start + place.length)
                .unwrap_or_default();
            let marks = marked.lines().next().unwrap_or_default().chars().count().max(1);
            let number = place.line.to_string();
            let margin = " ".repeat(number.len());
            // Tabs stay tabs, so that the mark stands below what it marks.
            let indent: String = line
                .chars()
                .take(place.column.saturating_sub(1))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            shown.push_str(&format!("{margin}--> {file}:{}:{}\n", place.line, place.column));
            shown.push_str(&format!(
                "{margin} |\n{number} | {line}\n{margin} | {indent}{}\n",
                "^".repeat(marks)
            ));
        } else {
            shown.push_str(&format!(" --> {file}\n"));
        }
        if let Some(suggestion) = &self.suggestion {
            shown.push_str(&format!("  = help: {suggestion}\n"));
        }
        shown
    }
}

/// The candidate that is nearest to `name`: equal but for letter case, or a few typing errors away.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let lower = name.to_lowercase();
    let limit = 1 + lower.chars().count() / 4;
    candidates
        .into_iter()
        .map(|candidate| (typing_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit || is_extended(&lower, candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A known name with something before or after it (`deviceIdExpressionFake`).
fn is_extended(lower: &str, candidate: &str) -> bool {
    let candidate = candidate.to_lowercase();
    candidate.len() >= 5 && (lower.starts_with(&candidate) || lower.ends_with(&candidate))
}

/// Levenshtein distance in characters.
fn typing_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for (pair, to) in row.windows(2).zip(&b) {
            if let [diagonal, above] = pair {
                left = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
                next.push(left);
            }
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

/// Whether any finding refuses the mapping.
pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.severity == Severity::Error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_found_across_letter_case_typing_errors_and_additions() {
        let known = ["typeName", "typeMatchExpression", "deviceIdExpression"];
        assert_eq!(nearest("TYPENAME", known), Some("typeName"));
        assert_eq!(nearest("typMatchExpresion", known), Some("typeMatchExpression"));
        assert_eq!(
            nearest("deviceIdExpressionFake", known),
            Some("deviceIdExpression")
        );
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn mark_stands_below_the_place() {
        let text = "{\n\t\"a\": ö\n}";
        let place = Place {
            line: 2,
            column: 7,
            start: 8,
            length: 2,
        };
        let shown = Finding::error("InvalidJson", "Unexpected word.")
            .at(place)
            .suggest("Quote it.")
            .render("f", text);
        assert_eq!(
            shown,
            "error[InvalidJson]: Unexpected word.\n --> f:2:7\n  |\n2 | \t\"a\": ö\n  | \t     ^\n  = help: Quote it.\n"
        );
    }
}
