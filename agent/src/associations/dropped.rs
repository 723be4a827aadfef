//! Files of associations that somebody drops: `NAME.csv` or `NAME.json`. Pure: text in, commands out.
//!
//! A CSV file begins with a line of names: `device`, `patient`, `encounter`, `from`, `to`, in any order, separated by commas or
//! semicolons; `device` and `patient` have to be there. A JSON file is a list of objects with the same names. Without a
//! patient the device was taken away at `from`. A file with an error is not taken at all.
//!
//! Error texts hold names of columns and numbers of lines, never what is written there.

use super::{Command, Who, time};
use iomt_mapping::fhir::resource_id;
use serde::Deserialize;

/// What a file says, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the line, or of the entry of a JSON list; from 1.
    pub number: usize,
    /// What it says.
    pub command: Command,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Number of the line, from 1.
    pub line: usize,
    /// What, and what to write.
    pub text: String,
}

impl Line {
    /// Tells it from others, also over restarts; `salt` makes it say nothing of the patient to anybody else.
    pub fn mark(&self, salt: &str) -> u64 {
        let text = serde_json::to_string(&self.command).unwrap_or_default();
        // The first digits of an SHA-256.
        let digits: String = resource_id(salt, &text).chars().take(16).collect();
        u64::from_str_radix(&digits, 16).unwrap_or_default()
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    patient: Option<String>,
    #[serde(default)]
    encounter: Option<String>,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    to: Option<String>,
}

/// Reads a file; its name says which kind it is. None for other kinds.
pub fn read(name: &str, bytes: &[u8]) -> Option<Result<Vec<Line>, Vec<Wrong>>> {
    let (_, kind) = name.rsplit_once('.')?;
    let of_csv = match kind.to_ascii_lowercase().as_str() {
        "csv" => true,
        "json" => false,
        _ => return None,
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Some(Err(vec![wrong(1, "the file is no UTF-8 text")]));
    };
    let text = text.trim_start_matches('\u{feff}');
    let fields = if of_csv { csv(text) } else { json(text) };
    Some(fields.and_then(|fields| {
        let (mut lines, mut mistakes) = (Vec::new(), Vec::new());
        for (number, fields) in fields {
            match command(fields, true) {
                Ok(command) => lines.push(Line { number, command }),
                Err(text) => mistakes.push(wrong(number, &text)),
            }
        }
        if mistakes.is_empty() {
            Ok(lines)
        } else {
            Err(mistakes)
        }
    }))
}

fn wrong(line: usize, text: &str) -> Wrong {
    Wrong {
        line,
        text: text.to_owned(),
    }
}

fn json(text: &str) -> Result<Vec<(usize, Fields)>, Vec<Wrong>> {
    let list: Vec<Fields> = serde_json::from_str(text).map_err(|error| {
        // The text of the error may repeat what is written there.
        vec![wrong(
            error.line().max(1),
            "this is no list of objects with texts named device, patient, encounter, from and to, for example \
             [{\"device\": \"band-7\", \"patient\": \"MRN 4711\", \"from\": \"2026-09-22T10:00:00Z\"}]",
        )]
    })?;
    Ok(list
        .into_iter()
        .enumerate()
        .map(|(number, fields)| (number + 1, fields))
        .collect())
}

fn csv(text: &str) -> Result<Vec<(usize, Fields)>, Vec<Wrong>> {
    const HEAD: &str = "the first line has to name the columns: device,patient,encounter,from,to";
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line))
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let Some((head_line, head)) = lines.next() else {
        return Ok(Vec::new());
    };
    let separator = if head.contains(';') { ';' } else { ',' };
    let columns: Vec<String> = cells(head, separator)
        .ok_or_else(|| vec![wrong(head_line, HEAD)])?
        .iter()
        .map(|name| name.to_ascii_lowercase())
        .collect();
    let known = ["device", "patient", "encounter", "from", "to"];
    let all_known = columns.iter().all(|name| known.contains(&name.as_str()));
    let complete = ["device", "patient"]
        .iter()
        .all(|name| columns.iter().any(|one| one == name));
    if !all_known || !complete {
        return Err(vec![wrong(head_line, HEAD)]);
    }
    let (mut all, mut mistakes) = (Vec::new(), Vec::new());
    for (number, line) in lines {
        let Some(cells) = cells(line, separator).filter(|cells| cells.len() <= columns.len()) else {
            mistakes.push(wrong(
                number,
                "it has more columns than the first line, or a quote that does not end",
            ));
            continue;
        };
        let mut fields = Fields::default();
        for (name, cell) in columns.iter().zip(cells) {
            let place = match name.as_str() {
                "device" => &mut fields.device,
                "patient" => &mut fields.patient,
                "encounter" => &mut fields.encounter,
                "from" => &mut fields.from,
                _ => &mut fields.to,
            };
            *place = Some(cell);
        }
        all.push((number, fields));
    }
    if mistakes.is_empty() {
        Ok(all)
    } else {
        Err(mistakes)
    }
}

/// The cells of a line; a cell in double quotes may hold separators, and quotes written twice.
fn cells(line: &str, separator: char) -> Option<Vec<String>> {
    let mut cells = Vec::new();
    let mut cell = String::new();
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                cell.push('"');
                characters.next();
            }
            '"' if quoted || cell.trim().is_empty() => quoted = !quoted,
            _ if c == separator && !quoted => cells.push(std::mem::take(&mut cell).trim().to_owned()),
            _ => cell.push(c),
        }
    }
    cells.push(cell.trim().to_owned());
    (!quoted).then_some(cells)
}

/// What one entry says that is written as a JSON object, as the status page sends it; without `from` it is from now on.
///
/// # Errors
/// What is wrong with it.
pub fn entry(text: &str) -> Result<Command, String> {
    let fields = serde_json::from_str(text).map_err(|_| {
        "this is no object with texts named device, patient, encounter, from and to".to_owned()
    })?;
    command(fields, false)
}

fn command(fields: Fields, of_file: bool) -> Result<Command, String> {
    let text = |field: Option<String>| {
        field
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    };
    let moment = |name: &str, field: Option<String>| match text(field) {
        None => Ok(None),
        Some(written) => time::parse(&written)
            .map(|time| Some(time.ticks()))
            .map_err(|how| format!("{name}: {how}")),
    };
    let device = text(fields.device).ok_or("device is missing")?;
    let (from, to) = (moment("from", fields.from)?, moment("to", fields.to)?);
    if of_file && from.is_none() {
        let missing =
            "from is missing: a file has to say from when on, for example 2026-09-22T10:00:00+02:00";
        return Err(missing.to_owned());
    }
    if to.zip(from).is_some_and(|(to, from)| to <= from) {
        return Err("to is not later than from".to_owned());
    }
    let encounter = text(fields.encounter);
    let Some(patient) = text(fields.patient) else {
        if to.is_some() || encounter.is_some() {
            return Err(
                "patient is missing: a device that was taken away has neither to nor encounter".to_owned(),
            );
        }
        return Ok(Command::End { device, at: from });
    };
    Ok(Command::Set {
        device,
        patient: Who::parse("Patient", &patient),
        encounter: encounter.map(|text| Who::parse("Encounter", &text)),
        from,
        to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(text: &str) -> Option<i64> {
        Some(time::parse(text).unwrap().ticks())
    }

    fn errors(name: &str, text: &str) -> Vec<(usize, String)> {
        let found = read(name, text.as_bytes()).unwrap().unwrap_err();
        found.into_iter().map(|wrong| (wrong.line, wrong.text)).collect()
    }

    #[test]
    fn a_list_says_the_same_as_csv_and_as_json() {
        let expected = [
            Command::Set {
                device: "band, 7".to_owned(),
                patient: Who::Identifier("MRN \"4711\"".to_owned()),
                encounter: Some(Who::Id("e1".to_owned())),
                from: ticks("2026-09-22T08:00:00Z"),
                to: ticks("2026-09-22T12:30:00Z"),
            },
            Command::Set {
                device: "band-8".to_owned(),
                patient: Who::Id("anna".to_owned()),
                encounter: None,
                from: ticks("2026-09-22T08:00:00Z"),
                to: None,
            },
            Command::End {
                device: "band-9".to_owned(),
                at: ticks("2026-09-22T10:00:00Z"),
            },
        ];
        let csv = "# beds of ward 3\nfrom,device,patient,to,encounter\n\
                   2026-09-22T10:00:00+02:00,\"band, 7\",\"MRN \"\"4711\"\"\",2026-09-22T12:30:00Z,Encounter/e1\n\
                   2026-09-22T08:00,band-8,Patient/anna\n\n2026-09-22T10:00:00Z , band-9 ,,,\n";
        let semicolons = "\u{feff}Device;Patient;From;To;Encounter\r\n\
                          band, 7;\"MRN \"\"4711\"\"\";2026-09-22T10:00:00+02:00;2026-09-22T12:30:00Z;Encounter/e1\r\n\
                          band-8;Patient/anna;2026-09-22T08:00;;\r\nband-9;;2026-09-22T10:00:00Z;;\r\n";
        let json = r#"[{"device": "band, 7", "patient": "MRN \"4711\"", "from": "2026-09-22T10:00:00+02:00",
                        "to": "2026-09-22T12:30:00Z", "encounter": "Encounter/e1"},
                       {"device": "band-8", "patient": "Patient/anna", "from": "2026-09-22T08:00", "to": null},
                       {"device": "band-9", "from": "2026-09-22T10:00:00Z"}]"#;
        for (name, text) in [("a.csv", csv), ("a.CSV", semicolons), ("a.json", json)] {
            let lines = read(name, text.as_bytes()).unwrap().unwrap();
            let commands: Vec<Command> = lines.iter().map(|line| line.command.clone()).collect();
            assert_eq!(commands, expected, "{text}");
            let mut marks: Vec<u64> = lines.iter().map(|line| line.mark("store")).collect();
            assert_ne!(marks[0], lines[0].mark("another store"));
            marks.dedup();
            assert_eq!(marks.len(), 3);
        }
        assert_eq!(read("notes.txt", b"x"), None);
        assert_eq!(read("empty.csv", b""), Some(Ok(Vec::new())));
    }

    #[test]
    fn a_mistake_is_named_by_line_and_column_and_never_repeats_what_is_written() {
        let csv = "device,patient,from,to\nband-1,SECRET,yesterday,\n,SECRET,2026-09-22T10:00:00Z,\nband-1,SECRET,,\n\
                   band-1,SECRET,2026-09-22T10:00:00Z,2026-09-22T10:00:00Z\nband-1,,2026-09-22T10:00:00Z,2026-09-22T11:00:00Z\n";
        let found = errors("a.csv", csv);
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6]);
        for ((_, text), word) in
            found
                .iter()
                .zip(["from: write", "device is", "from is", "not later", "patient is"])
        {
            assert!(text.contains(word), "{text}");
        }
        let more = [
            ("a.csv", "device,patient,bed\n", 1),
            ("a.csv", "\ndevice,from\n", 2),
            ("a.csv", "device,patient\nband-1,\"SECRET\nband-2,SECRET\n", 2),
            ("a.csv", "device,patient\nband-1,SECRET,x,y\n", 2),
            ("a.json", "[\n{\"device\": \"SECRET\", \"bed\": 1}]", 2),
            ("a.json", "{\"device\": \"SECRET\"}", 1),
            ("a.json", "[{\"device\": 4711, \"patient\": \"SECRET\"}]", 1),
            ("a.json", "[{\"device\": \"SECRET\"", 1),
        ];
        for (name, text, line) in more {
            let found = errors(name, text);
            assert_eq!(found[0].0, line, "{text}");
            assert!(
                found.iter().all(|(_, text)| !text.contains("SECRET")),
                "{found:?}"
            );
        }
        assert_eq!(
            entry(r#"{"device": "band-7"}"#),
            Ok(Command::End {
                device: "band-7".to_owned(),
                at: None
            })
        );
        assert!(
            entry(r#"{"device": "band-7", "patient": "SECRET", "bed": 1}"#)
                .is_err_and(|text| !text.contains("SECRET"))
        );
        assert_eq!(read("a.csv", b"\xff").unwrap().unwrap_err()[0].line, 1);
    }
}
