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

/// Whether any finding refuses the mapping.
pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.severity == Severity::Error)
}
