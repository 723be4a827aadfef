//! `bedside-agent mappings`: the ready packs and the installed ones side by side, and copying a ready pack into the drop-in
//! folder.

pub mod install;
mod list;
#[cfg(test)]
mod tests;

use super::check::check_packs;
use super::packs::{Located, folder_of_packs, locate};
use super::{DEFAULT_CONFIG, Format, print};
use crate::config::{self, Config, MappingsConfig};
use crate::packs::folder::PackFiles;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use iomt_mapping::finding::nearest;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where a package puts the ready packs.
const READY: &str = "/usr/share/bedside-agent/mappings";

/// Where they are in the sources.
const IN_SOURCES: &str = "board-configs/mappings";

/// No more similar names than these are offered.
const MOST_SIMILAR: usize = 3;

/// List ready and installed mapping packs, and install a ready one
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  bedside-agent mappings list                            ready and installed packs, and what they measure
  bedside-agent mappings list --format json              the same for a program
  bedside-agent mappings add nonin                       copies a ready pack into the drop-in folder of the service
  bedside-agent mappings add nonin --dir mappings.d      into another folder
  bedside-agent mappings add nonin --force               puts the ready pack in place of a changed one")]
pub struct Mappings {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show ready and installed packs, what they measure, and which installed ones differ from the ready ones
    List(List),
    /// Check a ready pack and copy it into the drop-in folder
    Add(Add),
}

/// Where the packs are.
#[derive(Args, Debug)]
struct Folders {
    /// Configuration whose mappings folder is meant [default: the service's]
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    config: Option<PathBuf>,
    /// Drop-in folder, without a configuration
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Folder of the ready packs [default: /usr/share/bedside-agent/mappings, else board-configs/mappings of the sources]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    folders: Folders,
    /// How the result is shown
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Args, Debug)]
struct Add {
    /// Name of the ready pack
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    folders: Folders,
    /// Overwrite an installed pack that differs
    #[arg(long)]
    force: bool,
}

impl Mappings {
    /// Lists or installs.
    ///
    /// # Errors
    /// When there are no packs where they should be, or the pack cannot or must not be written.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.command {
            Command::List(list) => list.run(),
            Command::Add(add) => add.run(),
        }
    }
}

impl List {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let ready = self.folders.ready();
        let (dir, _) = self.folders.installed()?;
        let installed = folder_of_packs(&dir);
        // What was named must be there. Of the others one is worth showing; what keeps away the second is said beside it.
        let named = self.folders.dir.is_some() || self.folders.config.is_some();
        let (ready, installed) = match (ready, installed) {
            (Err(error), _) if self.folders.from.is_some() => return Err(error),
            (_, Err(error)) if named => return Err(error),
            (Err(ready), Err(installed)) => anyhow::bail!("{ready:#}; {installed:#}"),
            (ready, installed) => (said(ready), said(installed)),
        };
        let listed = list::listed(ready.as_ref(), installed.as_ref());
        print(&match self.format {
            Format::Text => list::text(&listed),
            Format::Json => format!("{}\n", serde_json::to_string_pretty(&listed)?),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Add {
    fn run(&self) -> anyhow::Result<ExitCode> {
        print(&self.add()?)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Installs the pack and says what was done.
    fn add(&self) -> anyhow::Result<String> {
        let ready = self.folders.ready()?;
        let (dir, config) = self.folders.installed()?;
        let pack = one_pack(&ready, &self.name)?;
        let (shown, errors) = check_packs(&pack);
        anyhow::ensure!(
            errors == 0,
            "{shown}the ready pack {} has errors, nothing was copied; correct it or give another folder with --from",
            self.name
        );
        eprint!("{shown}");
        let files = files_of(&pack, &self.name).context("the pack is gone")?;
        let text = files.text(&self.name).map_err(|findings| {
            let shown: Vec<String> = findings.iter().map(|found| found.render()).collect();
            anyhow::anyhow!("{}", shown.join("\n"))
        })?;
        let installed = folder_of_packs(&dir)?;
        let present = files_of(&installed, &self.name);
        let done = match present {
            Some(present) if present.text(&self.name).is_ok_and(|known| known == text) => {
                return Ok(format!(
                    "{} is in {} already and is as the ready pack\n",
                    self.name,
                    dir.display()
                ));
            }
            Some(present) => {
                anyhow::ensure!(
                    self.force,
                    "{} is in {} already and differs from the ready pack; nothing was copied. --force puts the ready pack \
                     in its place; to keep your changes, rename yours first",
                    self.name,
                    dir.display()
                );
                install::replace(&dir, &text, present.form).with_context(|| install::cannot_write(&dir))?;
                "replaced"
            }
            None => {
                install::create(&dir, &text).with_context(|| install::cannot_write(&dir))?;
                "installed"
            }
        };
        let mut said = format!("{done} {} in {}\n", self.name, dir.display());
        let listed = list::listed(Some(&pack), Some(&pack));
        said.push_str(&list::text(&listed));
        said.push_str(&self.who_sees_it(config.as_ref()));
        Ok(said)
    }

    /// Whether messages will come to the pack.
    fn who_sees_it(&self, config: Option<&Config>) -> String {
        let named =
            |packs: &Option<Vec<String>>| packs.as_ref().is_none_or(|packs| packs.contains(&self.name));
        match config {
            Some(config) if !config.sources.iter().any(|source| named(&source.packs)) => format!(
                "no source uses it: add \"{}\" to packs = [...] of its source in the configuration\n",
                self.name
            ),
            _ => "a running service uses it within two seconds\n".to_owned(),
        }
    }
}

impl Folders {
    /// The ready packs.
    fn ready(&self) -> anyhow::Result<Located> {
        match &self.from {
            Some(from) => locate(from),
            None => folder_of_packs(&ready_folder(Path::new(READY), &std::env::current_dir()?)?),
        }
    }

    /// The drop-in folder, and the configuration that names it.
    fn installed(&self) -> anyhow::Result<(PathBuf, Option<Config>)> {
        if let Some(dir) = &self.dir {
            return Ok((dir.clone(), None));
        }
        let default = Path::new(DEFAULT_CONFIG);
        let Some(path) = self.config.as_deref().or(default.exists().then_some(default)) else {
            return Ok((MappingsConfig::default().dir, None));
        };
        let config = config::check(path)?.config.with_context(|| {
            let path = path.display();
            format!(
                "the configuration {path} has errors; `bedside-agent check --config {path}` shows them. Correct it, or name \
                 the drop-in folder with --dir"
            )
        })?;
        Ok((config.mappings.dir.clone(), Some(config)))
    }
}

/// The packs; why there are none is told.
fn said(found: anyhow::Result<Located>) -> Option<Located> {
    found.map_err(|error| eprintln!("note: {error:#}")).ok()
}

/// Where the ready packs are: with the installed program, else with the sources that `here` is in.
fn ready_folder(with_program: &Path, here: &Path) -> anyhow::Result<PathBuf> {
    if with_program.is_dir() {
        return Ok(with_program.to_owned());
    }
    let in_sources = here.ancestors().map(|folder| folder.join(IN_SOURCES));
    in_sources.into_iter().find(|folder| folder.is_dir()).with_context(|| {
        format!(
            "the ready packs are neither in {} nor in {IN_SOURCES} above the current folder: copy them there, or say with \
             --from DIR where they are",
            with_program.display()
        )
    })
}

fn files_of<'l>(located: &'l Located, name: &str) -> Option<&'l PackFiles> {
    let pack = located.packs.iter().find(|(known, _)| known == name);
    pack.map(|(_, files)| files)
}

/// The pack with this name alone.
fn one_pack(ready: &Located, name: &str) -> anyhow::Result<Located> {
    let Some(files) = files_of(ready, name) else {
        let names: Vec<&str> = ready.packs.iter().map(|(name, _)| name.as_str()).collect();
        let similar = similar(name, &names);
        let dir = ready.dir.display();
        if similar.is_empty() {
            anyhow::bail!("there is no ready pack {name} in {dir}; `bedside-agent mappings list` shows all");
        }
        anyhow::bail!(
            "there is no ready pack {name} in {dir}; did you mean {}?",
            similar.join(", ")
        );
    };
    Ok(Located {
        dir: ready.dir.clone(),
        packs: vec![(name.to_owned(), files.clone())],
        strays: Vec::new(),
    })
}

/// Names that are nearly `name` or have it within, the nearest first.
fn similar<'n>(name: &str, names: &[&'n str]) -> Vec<&'n str> {
    let mut left = names.to_vec();
    let mut found = Vec::new();
    while let Some(near) = nearest(name, left.iter().copied()) {
        found.push(near);
        left.retain(|other| *other != near);
    }
    let lower = name.to_lowercase();
    found.extend(
        left.into_iter()
            .filter(|other| lower.len() > 1 && other.contains(&lower)),
    );
    found.truncate(MOST_SIMILAR);
    found
}
