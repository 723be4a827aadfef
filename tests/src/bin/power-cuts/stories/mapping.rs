//! Mapping packs are exchanged while messages come that name them.

use super::judge_store;
use crate::story::{Sender, Story};
use anyhow::{Context, ensure};
use bedside_agent::cli::mappings::install;
use bedside_agent::message::{RevisionId, SourceId};
use bedside_agent::packs::{FileRole, Form, PackFolder, PackSet, PackText};
use bedside_agent::pipeline::PackBook;
use bedside_agent::store::Store;
use bedside_disk::{Chance, Image};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const NAME: &str = "band";
const SOURCE: SourceId = SourceId(1);

pub struct Mapping {
    sender: Sender,
    /// The pack that was in force for sure, and those of an installation that was cut off after it: by their numbers.
    installed: u64,
    attempted: BTreeSet<u64>,
    /// The set that each message named when it was sent, by its hash.
    named: BTreeMap<u64, String>,
}

/// The pack of this number; both files say it, so that halves of two are noticed.
fn pack(number: u64) -> PackText {
    PackText {
        name: NAME.to_owned(),
        device: format!(
            r#"{{"templateType":"CollectionContent","template":[{{"templateType":"JsonPathContent","template":
            {{"typeName":"heartrate","typeMatchExpression":"$..[?(@heartRate)]","deviceIdExpression":"$.deviceId",
            "timestampExpression":"$.at{number}","values":[{{"required":"true","valueExpression":"$.heartRate",
            "valueName":"hr"}}]}}}}]}}"#
        ),
        fhir: Some(format!(
            r#"{{"templateType":"CollectionFhir","template":[{{"templateType":"CodeValueFhir","template":
            {{"codes":[{{"code":"8867-4","system":"http://loinc.org","display":"Heart rate"}}],"periodInterval":0,
            "typeName":"heartrate","value":{{"unit":"per {number}","valueName":"hr","valueType":"Quantity"}}}}}}]}}"#
        )),
        // Every other one has a third file, so that files also come and go.
        agent: number.is_multiple_of(2).then(|| "{}".to_owned()),
    }
}

/// The set with this pack only; none when there is none of this number.
fn set(number: u64) -> anyhow::Result<PackSet> {
    if number == 0 {
        return Ok(PackSet::default());
    }
    let (loaded, findings) = bedside_agent::packs::Pack::load(pack(number));
    Ok(PackSet::new(vec![Arc::new(
        loaded.with_context(|| format!("{findings:?}"))?,
    )]))
}

/// The packs in use after a start.
fn in_use(folder: &Path, store: &Store) -> anyhow::Result<Arc<PackSet>> {
    let kept = store.last_good_packs()?;
    let texts = match &kept {
        Some(bundle) => PackSet::texts(bundle).context("the packs that were kept cannot be read")?,
        None => Vec::new(),
    };
    let packs = PackFolder::open(&folder.join("mappings"), texts).packs();
    let now = Arc::clone(&packs.borrow());
    Ok(now)
}

impl Mapping {
    pub fn new(sender: Sender) -> Mapping {
        Mapping {
            sender,
            installed: 0,
            attempted: BTreeSet::new(),
            named: BTreeMap::new(),
        }
    }

    /// Looks that these packs are whole and of now: those that were installed, or those whose installation was cut off.
    fn judge_set(&self, packs: &PackSet) -> anyhow::Result<()> {
        let mut known = vec![self.installed];
        known.extend(&self.attempted);
        for number in &known {
            if set(*number)?.revision() == packs.revision() {
                return Ok(());
            }
        }
        anyhow::bail!(
            "neither of the packs {known:?} is in use: {:?}",
            packs.packs().iter().map(|p| &p.text).collect::<Vec<_>>()
        )
    }

    /// A batch that names what is in use, as the intake does it.
    fn send(
        &mut self,
        store: &mut Store,
        book: &mut PackBook,
        packs: &PackSet,
        count: u64,
    ) -> anyhow::Result<()> {
        let first = self.sender.sent() + 1;
        self.named
            .extend((first..first + count).map(|serial| (serial, packs.revision())));
        let new = book.unsaved();
        self.sender.send_as(store, count, book.current(SOURCE), &new)?;
        let saved: Vec<RevisionId> = new.iter().map(|set| set.id).collect();
        book.saved(&saved);
        Ok(())
    }
}

impl Story for Mapping {
    fn begin(&mut self, chance: &mut Chance, _: &Path) -> anyhow::Result<Image> {
        let mut image = Image::default();
        // A pack of files or a folder, or none yet: then the first one comes as a folder.
        let form =
            [None, Some(Form::Files), Some(Form::Folder), Some(Form::Folder)][chance.below(4) as usize];
        if let Some(form) = form {
            self.installed = 1;
            let text = pack(1);
            let files = [
                (FileRole::Device, Some(text.device)),
                (FileRole::Fhir, text.fhir),
                (FileRole::Agent, text.agent),
            ];
            for (role, text) in files {
                if let Some(text) = text {
                    let path = Path::new("mappings").join(form.file_name(NAME, role));
                    image.0.insert(path, text.into_bytes());
                }
            }
        }
        Ok(image)
    }

    fn live(&mut self, folder: &Path, chance: &mut Chance) -> anyhow::Result<()> {
        let mappings = folder.join("mappings");
        std::fs::create_dir_all(&mappings)?;
        let (mut store, found) = self.sender.open(folder)?;
        let mut book = PackBook::restore(&found.revisions);
        for round in 0..=chance.below(3) {
            if round > 0 {
                let next = self.installed.max(self.attempted.last().copied().unwrap_or(0)) + 1;
                let is_folder = mappings.join(NAME).is_dir();
                self.attempted.insert(next);
                match mappings.join(format!("{NAME}.device.json")).exists() {
                    _ if is_folder => install::replace(&mappings, &pack(next), Form::Folder)?,
                    true => install::replace(&mappings, &pack(next), Form::Files)?,
                    false => install::create(&mappings, &pack(next))?,
                }
                if !bedside_disk::cut_has_come() {
                    self.installed = next;
                    self.attempted.clear();
                }
            }
            let packs = in_use(folder, &store)?;
            if !bedside_disk::cut_has_come() {
                self.judge_set(&packs)?;
            }
            book.set_current(SOURCE, Arc::clone(&packs));
            self.send(&mut store, &mut book, &packs, 1 + chance.below(3))?;
            if chance.below(2) == 0 {
                store.keep_packs(&packs.bundle())?;
                self.send(&mut store, &mut book, &packs, 1)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, folder: &Path) -> anyhow::Result<()> {
        let (store, _) = self.sender.open(folder).context("the store does not open")?;
        std::fs::create_dir_all(folder.join("mappings"))?;
        let packs = in_use(folder, &store)?;
        self.judge_set(&packs)?;
        // Of installations that were cut off one may be in force now; the next life begins with it.
        for stored in store.read_from(1, usize::MAX)?.messages {
            let serial = Sender::serial(&stored).context("a message without its number")?;
            let named = if stored.revision == RevisionId(0) {
                PackSet::default().revision()
            } else {
                let bundle = store.revision_bundle(stored.revision)?;
                let bundle = bundle
                    .with_context(|| format!("message {serial} names packs that are not in the store"))?;
                PackSet::from_bundle(&bundle)
                    .context("packs that cannot be read")?
                    .revision()
            };
            ensure!(
                self.named.get(&serial) == Some(&named),
                "message {serial} names other packs than those that were in force when it came"
            );
        }
        drop(store);
        judge_store(&self.sender, folder)
    }

    fn sender(&self) -> &Sender {
        &self.sender
    }
}
