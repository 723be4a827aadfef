//! Runs acceptance vectors (formats: `tests/vectors/README.md`) against the engine.
//!
//! A vector is recognised by what it has, not by the name of its file, so that further folders in the same format run as they
//! are. Vectors that the tests of another package run (identity and saving need the FHIR destination's insides) are listed as
//! "elsewhere", those that nobody runs as "not yet"; neither is counted as passed.

pub mod built;
pub mod device;
pub mod event_hubs;
pub mod examples;
pub mod expressions;
pub mod fhir;
pub mod payloads;
pub mod phd;
pub mod same;
pub mod serial;
pub mod validator;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Who runs the vectors of identity and saving.
pub const ELSEWHERE: &str = "cargo test -p bedside-agent forward::fhir::vectors";

/// What a vector's run gives: nothing when it agrees, else the first difference.
pub type Outcome = Result<(), String>;

/// The list of this name; empty where there is none.
fn list(value: &Value, name: &str) -> Vec<Value> {
    value
        .get(name)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

/// What came of one file.
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Vectors that were run.
    pub vectors: usize,
    /// Name and difference of each that does not hold.
    pub failed: Vec<(String, String)>,
    /// Vectors that no runner here knows.
    pub not_yet: usize,
    /// Vectors that [`ELSEWHERE`] runs.
    pub elsewhere: usize,
    /// Name and reason of those of them whose reason is known.
    pub reasons: Vec<(String, String)>,
}

/// What came of all files.
#[derive(Default)]
pub struct Report {
    /// In order of their paths.
    pub files: Vec<FileReport>,
}

impl Report {
    /// Runs every vector file below the folders (or the files themselves).
    pub fn of(folders: &[PathBuf]) -> std::io::Result<Report> {
        let mut paths = Vec::new();
        for folder in folders {
            vector_files(folder, &mut paths)?;
        }
        paths.sort();
        let files = paths
            .into_iter()
            .map(|path| run_file(&path))
            .collect::<Result<_, _>>()?;
        Ok(Report { files })
    }

    /// Vectors that were run.
    pub fn vectors(&self) -> usize {
        self.files.iter().map(|file| file.vectors).sum()
    }

    /// Names of vectors that do not hold, with their file.
    pub fn failed(&self) -> Vec<String> {
        let failed = self
            .files
            .iter()
            .flat_map(|file| file.failed.iter().map(move |(name, _)| (file, name)));
        failed
            .map(|(file, name)| format!("{}: {name}", file.path.display()))
            .collect()
    }

    /// Files with vectors that no runner here knows.
    pub fn not_yet(&self) -> Vec<String> {
        let files = self.files.iter().filter(|file| file.not_yet > 0);
        files.map(|file| file.path.display().to_string()).collect()
    }

    /// A line for each file, below it each failing name with its difference.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for file in &self.files {
            let passed = file.vectors - file.failed.len();
            let later = if file.not_yet > 0 {
                format!("  not yet: {}", file.not_yet)
            } else if file.elsewhere > 0 {
                format!("  {}: {ELSEWHERE}", file.elsewhere)
            } else {
                String::new()
            };
            table.push_str(&format!(
                "{passed:>5} / {:<5} {}{later}\n",
                file.vectors,
                file.path.display()
            ));
            for (name, difference) in &file.failed {
                table.push_str(&format!("        {name}: {difference}\n"));
            }
            for (name, reason) in &file.reasons {
                table.push_str(&format!("        not yet: {name}: {reason}\n"));
            }
        }
        table
    }

    /// The one line for machines.
    pub fn json(&self) -> Value {
        let failed = self.failed();
        json!({
            "vectors": self.vectors(), "passed": self.vectors() - failed.len(), "failed": failed, "not_yet": self.not_yet(),
            "elsewhere": self.files.iter().map(|file| file.elsewhere).sum::<usize>(),
        })
    }
}

fn vector_files(path: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            vector_files(&entry?.path(), found)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "json")
        || path.is_file() && found.is_empty()
    {
        found.push(path.to_owned());
    }
    Ok(())
}

fn run_file(path: &Path) -> std::io::Result<FileReport> {
    let text = std::fs::read_to_string(path)?;
    built::place(&path.display().to_string());
    let mut report = FileReport {
        path: path.to_owned(),
        vectors: 0,
        failed: Vec::new(),
        not_yet: 0,
        elsewhere: 0,
        reasons: Vec::new(),
    };
    let file: Value = match serde_json::from_str(&text) {
        Ok(file) => file,
        Err(error) => {
            report.vectors = 1;
            report
                .failed
                .push(("the file".to_owned(), format!("is no JSON: {error}")));
            return Ok(report);
        }
    };
    if let Some(outcomes) = serial::run(&file) {
        for outcome in outcomes {
            report.vectors += 1;
            report
                .failed
                .extend(outcome.difference.map(|difference| (outcome.id, difference)));
        }
        return Ok(report);
    }
    if let Some(outcomes) = payloads::run(&file) {
        for outcome in outcomes {
            match outcome.run {
                payloads::Run::NotYet(reason) => {
                    report.not_yet += 1;
                    report.reasons.push((outcome.id, reason.to_owned()));
                }
                payloads::Run::Done(done) => {
                    report.vectors += 1;
                    report
                        .failed
                        .extend(done.err().map(|difference| (outcome.id, difference)));
                }
            }
        }
        return Ok(report);
    }
    let vectors = match &file {
        Value::Array(vectors) => vectors.clone(),
        Value::Object(members) => match members.get("vectors") {
            Some(Value::Array(vectors)) => vectors.clone(),
            _ => vec![file.clone()],
        },
        _ => Vec::new(),
    };
    for vector in &vectors {
        let name = vector.get("name").or(vector.get("id")).and_then(Value::as_str);
        built::place(&format!("{} {}", path.display(), name.unwrap_or("?")));
        match run_vector(vector) {
            Run::Informative => {}
            Run::NotYet => report.not_yet += 1,
            Run::Elsewhere => report.elsewhere += 1,
            Run::Done(outcome) => {
                report.vectors += 1;
                let name = vector
                    .get("name")
                    .or(vector.get("id"))
                    .and_then(Value::as_str)
                    .unwrap_or("?");
                report
                    .failed
                    .extend(outcome.err().map(|difference| (name.to_owned(), difference)));
            }
        }
    }
    Ok(report)
}

/// What became of one vector.
pub enum Run {
    /// It was run.
    Done(Outcome),
    /// No runner here knows its form.
    NotYet,
    /// [`ELSEWHERE`] runs it.
    Elsewhere,
    /// It holds facts about the reference that the agent has no use for.
    Informative,
}

/// Runs one vector.
pub fn run_vector(vector: &Value) -> Run {
    let has = |name: &str| vector.get(name).is_some();
    let text = |name: &str| vector.get(name).and_then(Value::as_str).unwrap_or_default();
    if let Some(outcome) = event_hubs::run(vector) {
        return Run::Done(outcome);
    }
    if let Some(outcome) = phd::run(vector) {
        return Run::Done(outcome);
    }
    let outcome = if text("use").starts_with("informative") || has("title") && has("measurements") {
        return Run::Informative;
    } else if has("language") && has("expression") {
        expressions::run(vector)
    } else if has("server") {
        return Run::Elsewhere;
    } else if has("kind") && (has("mapping") || has("mappingText")) {
        match text("kind") {
            "device" => device::template_validation(vector),
            _ => fhir::template_validation(vector),
        }
    } else if validator::is_validator_vector(vector) {
        validator::run(vector)
    } else if has("messageForm") || has("normalizedInput") {
        examples::run(vector)
    } else if has("deviceMapping") || has("deviceMappingText") {
        device::normalize(vector)
    } else if (has("fhirMapping") || has("fhirMappings")) && (has("measurements") || has("batches")) {
        fhir::fhir(vector)
    } else if has("fn") {
        fhir::sampled_data(vector)
    } else if has("use") {
        fhir::hash(vector)
    } else {
        return Run::NotYet;
    };
    Run::Done(outcome)
}
