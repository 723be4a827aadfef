//! What is wrong with a configuration, shown as a compiler shows it. No text here repeats a secret that was written into
//! the file by mistake.

use super::Config;
use iomt_mapping::{Finding, Severity, has_errors};

/// Members whose values are references to secrets.
pub(super) const SECRET_MEMBERS: [&str; 5] = ["password", "token", "key", "secret", "value"];

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: the configuration cannot be read: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// The file is wrong; the text shows everything that is.
    #[error("{shown}")]
    Invalid {
        /// All findings, rendered.
        shown: String,
        /// The same for a program.
        findings: Vec<Finding>,
    },
}

/// A configuration that was read and validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The configuration, when there is no error.
    pub config: Option<Config>,
    /// Errors and warnings in the order of the file.
    pub findings: Vec<Finding>,
    /// Name of the file.
    pub file: String,
    /// Its text, with everything that looks like a secret masked.
    text: String,
}

impl Checked {
    pub(super) fn new(file: &str, text: &str, config: Option<Config>, mut findings: Vec<Finding>) -> Checked {
        findings.sort_by_key(|finding| finding.place.map(|place| place.start));
        let config = config.filter(|_| !has_errors(&findings));
        Checked {
            config,
            findings,
            file: file.to_owned(),
            text: masked(text),
        }
    }

    /// All findings as a compiler shows them; empty when there are none.
    pub fn render(&self) -> String {
        let shown: Vec<String> = self
            .findings
            .iter()
            .map(|finding| self.render_one(finding))
            .collect();
        shown.join("\n")
    }

    /// One finding as a compiler shows it.
    pub fn render_one(&self, finding: &Finding) -> String {
        finding.render(&self.file, &self.text)
    }

    /// Each finding on one line, for the log.
    pub fn one_line_each(&self) -> Vec<String> {
        self.findings
            .iter()
            .map(|finding| one_line(&self.file, finding))
            .collect()
    }

    /// The configuration.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let shown = self.render();
        self.config.ok_or_else(|| {
            let errors = self
                .findings
                .iter()
                .filter(|f| f.severity == Severity::Error)
                .count();
            let plural = if errors == 1 { "" } else { "s" };
            ConfigError::Invalid {
                shown: format!("{shown}\n{errors} error{plural} in {}", self.file),
                findings: self.findings,
            }
        })
    }
}

/// A finding on one line: file, line, column, message, suggestion.
pub fn one_line(file: &str, finding: &Finding) -> String {
    let place = finding
        .place
        .map(|place| format!(":{}:{}", place.line, place.column))
        .unwrap_or_default();
    let suggestion = finding
        .suggestion
        .as_ref()
        .map(|suggestion| format!(" {suggestion}"))
        .unwrap_or_default();
    format!("{file}{place}: {}{suggestion}", finding.message)
}

/// The text with the same bytes in the same places, but for what may be a secret: values of secret members that are no
/// references, user parts of addresses, and long runs of Base64.
fn masked(text: &str) -> String {
    let mut shown = Vec::with_capacity(text.len());
    let mut open_quotes = false;
    for line in text.split_inclusive('\n') {
        let secret = if open_quotes { Some(0) } else { secret_begins(line) };
        if let Some(begin) = secret {
            let quotes = line.matches("\"\"\"").count() + line.matches("'''").count();
            open_quotes ^= quotes % 2 == 1;
            shown.extend(line.bytes().enumerate().map(|(at, byte)| {
                let keep = at < begin || matches!(byte, b'\n' | b'\r' | b'"' | b'\'');
                if keep { byte } else { b'*' }
            }));
        } else {
            mask_runs(line, &mut shown);
        }
    }
    // Only whole lines and ASCII runs were replaced, byte by byte with ASCII.
    String::from_utf8(shown).unwrap_or_default()
}

/// Where the value of a secret member begins that is no reference.
fn secret_begins(line: &str) -> Option<usize> {
    SECRET_MEMBERS.iter().find_map(|member| {
        line.match_indices(member).find_map(|(at, _)| {
            let (before, rest) = (line.get(..at)?, line.get(at + member.len()..)?);
            let own_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-');
            let rest = rest
                .trim_start_matches(['"', '\'', ' ', '\t'])
                .strip_prefix('=')?;
            let value = rest.trim_start();
            let reference = value.trim_start_matches(['"', '\'']);
            let is_reference = ["credential:", "file:", "env:"]
                .iter()
                .any(|form| reference.starts_with(form));
            (own_word && !is_reference).then_some(line.len() - value.len())
        })
    })
}

fn mask_runs(line: &str, shown: &mut Vec<u8>) {
    const LONGEST: usize = 40;
    let from = shown.len();
    shown.extend_from_slice(line.as_bytes());
    let mut mask = |range: std::ops::Range<usize>| {
        if let Some(bytes) = shown.get_mut(from + range.start..from + range.end) {
            bytes.fill(b'*');
        }
    };
    if let Some((scheme, at)) = line.find("://").zip(line.find('@'))
        && scheme + 3 < at
        && !line
            .get(scheme + 3..at)
            .is_some_and(|user| user.contains(['/', '"', ' ']))
    {
        mask(scheme + 3..at);
    }
    let mut start = 0;
    for (at, byte) in line.bytes().chain([b' ']).enumerate() {
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')) {
            if at - start >= LONGEST {
                mask(start..at);
            }
            start = at + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_masked_and_nothing_moves() {
        let table = [
            ("password = \"credential:mqtt\"", "password = \"credential:mqtt\""),
            ("password = \"hunter2\" # x", "password = \"*******\"****"),
            ("password = hunter2", "password = *******"),
            ("\"password\" = 'hunter2'", "\"password\" = '*******'"),
            (
                "auth = { kind = \"sas\", key = \"abc=\" }",
                "auth = { kind = \"sas\", key = \"****\"**",
            ),
            ("key_name = \"gateway\"", "key_name = \"gateway\""),
            ("url = \"mqtt://me:pass@host\"", "url = \"mqtt://*******@host\""),
            ("url = \"https://host/a@b\"", "url = \"https://host/a@b\""),
            (
                "key = \"\"\"-----BEGIN\nMIIE\n\"\"\"\nx = 1",
                "key = \"\"\"**********\n****\n\"\"\"\nx = 1",
            ),
            (
                "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7",
                "****************************************************",
            ),
        ];
        for (text, shown) in table {
            assert_eq!(masked(text), shown);
        }
    }
}
