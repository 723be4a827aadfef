//! `observations MAPPINGS FOLDER...`: every Observation that the samples of the packs below MAPPINGS and the vectors below the
//! folders give, one a line as `{"of": .., "kind": "pack" | "vector", "observation": {..}}`. For validators
//! (`tests/fhir-validators`).

use bedside_agent::packs::{Form, Pack, PackText};
use bedside_tests::conformance::{Report, built};
use bedside_tests::samples::observations;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};

fn main() -> anyhow::Result<()> {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let Some((mappings, vectors)) = folders.split_first() else {
        anyhow::bail!("usage: observations MAPPINGS FOLDER...");
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut packs: Vec<PathBuf> = std::fs::read_dir(mappings)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("devicecontent.json").is_file())
        .collect();
    packs.sort();
    for pack in packs {
        of_pack(&pack, &mut out)?;
    }
    built::keep();
    Report::of(vectors)?;
    for (of, observation) in built::kept() {
        writeln!(
            out,
            "{}",
            json!({"of": of, "kind": "vector", "observation": observation})
        )?;
    }
    Ok(())
}

fn of_pack(folder: &Path, out: &mut impl std::io::Write) -> anyhow::Result<()> {
    let read = |file: &str| std::fs::read_to_string(folder.join(file));
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let text = PackText {
        name: name.clone(),
        device: read("devicecontent.json")?,
        fhir: Some(read("fhirmapping.json")?),
        agent: read("agent.json").ok(),
    };
    let (Some(pack), _) = Pack::load_form(text, Form::Folder) else {
        anyhow::bail!("{name} does not load");
    };
    let Some(fhir) = &pack.fhir else {
        anyhow::bail!("{name} has no FHIR mapping");
    };
    let mut samples: Vec<PathBuf> = std::fs::read_dir(folder.join("samples"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    samples.sort();
    for file in samples {
        let sample: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        for observation in observations(&pack.device, fhir, &sample) {
            let of = format!(
                "{name} {}",
                file.file_name().unwrap_or_default().to_string_lossy()
            );
            writeln!(
                out,
                "{}",
                json!({"of": of, "kind": "pack", "observation": observation})
            )?;
        }
    }
    Ok(())
}
