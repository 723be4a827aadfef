//! What is on the medium, and what is only on its way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SECTOR: usize = 512;

/// Random numbers: the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }
}

/// The files that a power cut left, by path.
#[derive(Clone, Debug, Default)]
pub struct Image(pub BTreeMap<PathBuf, Vec<u8>>);

impl Image {
    /// Writes the files into `folder`.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_to(&self, folder: &Path) -> std::io::Result<()> {
        for (name, content) in &self.0 {
            let path = folder.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
        }
        Ok(())
    }

    /// The files below `folder` as they are.
    ///
    /// # Errors
    /// The file system's.
    pub fn of_folder(folder: &Path) -> std::io::Result<Image> {
        let mut image = Image::default();
        image.take(folder, folder)?;
        Ok(image)
    }

    fn take(&mut self, top: &Path, folder: &Path) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.take(top, &path)?;
            } else if let Ok(name) = path.strip_prefix(top) {
                self.0.insert(name.to_owned(), std::fs::read(&path)?);
            }
        }
        Ok(())
    }
}

enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Naming {
    Create(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
}

fn name(names: &mut BTreeMap<PathBuf, usize>, naming: &Naming) {
    match naming {
        Naming::Create(path, file) => drop(names.insert(path.clone(), *file)),
        // A folder that is gone has nothing in it.
        Naming::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
        Naming::Exchange(one, other) => {
            let moved = |path: PathBuf| {
                let places = [(one, other), (other, one)];
                let found = places
                    .into_iter()
                    .find_map(|(from, to)| Some(to.join(path.strip_prefix(from).ok()?)));
                found.unwrap_or(path)
            };
            *names = std::mem::take(names)
                .into_iter()
                .map(|(path, file)| (moved(path), file))
                .collect();
        }
        Naming::Rename(from, to) => {
            // A folder takes what is in it along.
            let moved: Vec<PathBuf> = names
                .keys()
                .filter(|path| path.starts_with(from))
                .cloned()
                .collect();
            for old in moved {
                let rest = old.strip_prefix(from).unwrap_or(Path::new(""));
                let new = if rest.as_os_str().is_empty() {
                    to.clone()
                } else {
                    to.join(rest)
                };
                if let Some(file) = names.remove(&old) {
                    names.insert(new, file);
                }
            }
        }
    }
}

impl Naming {
    /// Whether a sync of `folder` makes it durable.
    fn is_in(&self, folder: &Path) -> bool {
        let path = match self {
            Naming::Create(path, _)
            | Naming::Remove(path)
            | Naming::Rename(_, path)
            | Naming::Exchange(_, path) => path,
        };
        // What happened to the folder itself before is durable with what is in it now.
        path.parent() == Some(folder) || folder.starts_with(path)
    }
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

/// The medium below one folder; paths are relative to it.
#[derive(Default)]
pub(crate) struct Medium {
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<Naming>,
}

impl Medium {
    pub(crate) fn of(image: &Image) -> Medium {
        let mut medium = Medium::default();
        for (path, content) in &image.0 {
            medium.names.insert(path.clone(), medium.files.len());
            medium.files.push(File {
                durable: content.clone(),
                unsynced: Vec::new(),
            });
        }
        medium.durable_names = medium.names.clone();
        medium
    }

    pub(crate) fn find(&self, path: &Path) -> Option<usize> {
        self.names.get(path).copied()
    }

    fn change_names(&mut self, naming: Naming) {
        name(&mut self.names, &naming);
        self.unsynced_names.push(naming);
    }

    pub(crate) fn create(&mut self, path: &Path) -> usize {
        let file = self.files.len();
        self.files.push(File::default());
        self.change_names(Naming::Create(path.to_owned(), file));
        file
    }

    pub(crate) fn remove(&mut self, path: &Path) {
        self.change_names(Naming::Remove(path.to_owned()));
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) {
        self.change_names(Naming::Rename(from.to_owned(), to.to_owned()));
    }

    pub(crate) fn exchange(&mut self, one: &Path, other: &Path) {
        self.change_names(Naming::Exchange(one.to_owned(), other.to_owned()));
    }

    pub(crate) fn write(&mut self, file: usize, offset: usize, data: &[u8]) {
        self.files[file]
            .unsynced
            .push(Change::Write(offset, data.to_vec()));
    }

    pub(crate) fn truncate(&mut self, file: usize, length: usize) {
        self.files[file].unsynced.push(Change::Truncate(length));
    }

    pub(crate) fn sync(&mut self, file: usize) {
        let file = &mut self.files[file];
        for change in std::mem::take(&mut file.unsynced) {
            match change {
                Change::Write(offset, data) => put(&mut file.durable, offset, &data),
                Change::Truncate(length) => file.durable.resize(length, 0),
            }
        }
    }

    /// A sync that the device refused: some of the changes are on the medium, the others never will be, although whoever
    /// reads the file still sees them. So does Linux after an error: the pages count as clean.
    pub(crate) fn sync_refused(&mut self, file: usize, chance: &mut Chance) {
        let file = &mut self.files[file];
        for change in std::mem::take(&mut file.unsynced) {
            match change {
                Change::Write(offset, data) if chance.below(2) == 0 => put(&mut file.durable, offset, &data),
                Change::Truncate(length) if chance.below(2) == 0 => file.durable.resize(length, 0),
                Change::Write(..) | Change::Truncate(_) => {}
            }
        }
    }

    /// A synced folder keeps its names; those of other folders may still be lost.
    pub(crate) fn sync_names(&mut self, folder: &Path) {
        let (here, elsewhere): (Vec<Naming>, Vec<Naming>) = std::mem::take(&mut self.unsynced_names)
            .into_iter()
            .partition(|naming| naming.is_in(folder));
        here.iter()
            .for_each(|naming| name(&mut self.durable_names, naming));
        self.unsynced_names = elsewhere;
    }

    /// What a cut now leaves: names change in their order up to some point, as a journal keeps them; of the changes to
    /// contents anything may be missing.
    pub(crate) fn after_cut(&self, chance: &mut Chance) -> Image {
        let mut names = self.durable_names.clone();
        let reached = chance.below(self.unsynced_names.len() as u64 + 1) as usize;
        self.unsynced_names
            .iter()
            .take(reached)
            .for_each(|naming| name(&mut names, naming));
        // Nothing, everything, or some of it: each is a way in which stores fail.
        let kept_of_ten = [0, 1, 5, 9, 10][chance.below(5) as usize];
        let torn = chance.below(2) == 0;
        let content = |file: &File, chance: &mut Chance| {
            let mut content = file.durable.clone();
            for change in &file.unsynced {
                match change {
                    Change::Truncate(length) if chance.below(10) < kept_of_ten => content.resize(*length, 0),
                    Change::Truncate(_) => {}
                    Change::Write(offset, data) => {
                        let piece = if torn { SECTOR } else { data.len().max(1) };
                        let mut at = 0;
                        while at < data.len() {
                            // A sector is whole or not there, wherever the write began in it.
                            let to =
                                (at + piece - if torn { (offset + at) % SECTOR } else { 0 }).min(data.len());
                            if chance.below(10) < kept_of_ten {
                                put(&mut content, offset + at, &data[at..to]);
                            }
                            at = to;
                        }
                    }
                }
            }
            content
        };
        let files = names
            .into_iter()
            .map(|(path, file)| (path, content(&self.files[file], chance)));
        Image(files.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_is_there_after_every_cut_and_the_rest_not_always() {
        let mut medium = Medium::default();
        let path = Path::new("a");
        let file = medium.create(path);
        medium.write(file, 0, &[1; 1024]);
        medium.sync(file);
        medium.sync_names(Path::new(""));
        medium.write(file, 512, &[2; 1024]);
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let image = medium.after_cut(&mut Chance(seed));
            let content = &image.0[path];
            assert_eq!(content[..512], [1; 512]);
            assert!(content[512..1024] == [1; 512] || content[512..1024] == [2; 512]);
            lengths.insert(content.len());
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [1024, 1536]);
    }

    #[test]
    fn what_a_refused_sync_left_out_is_not_brought_by_the_next_one() {
        let lost = (0..100).filter(|seed| {
            let mut medium = Medium::default();
            let file = medium.create(Path::new("a"));
            medium.write(file, 0, b"x");
            medium.sync_refused(file, &mut Chance(*seed));
            medium.sync(file);
            medium.sync_names(Path::new(""));
            medium.after_cut(&mut Chance(1)).0[Path::new("a")].is_empty()
        });
        assert!((1..100).contains(&lost.count()));
    }

    #[test]
    fn a_file_whose_folder_was_not_synced_may_be_missing() {
        let mut medium = Medium::default();
        let file = medium.create(Path::new("a"));
        medium.write(file, 0, b"x");
        medium.sync(file);
        let there = (0..100).filter(|seed| !medium.after_cut(&mut Chance(*seed)).0.is_empty());
        assert!((1..100).contains(&there.count()));
    }

    #[test]
    fn a_sync_of_one_folder_keeps_its_names_and_not_those_of_another() {
        let mut medium = Medium::default();
        medium.create(Path::new("a/x"));
        medium.create(Path::new("b/y"));
        medium.sync_names(Path::new("a"));
        let with_y = (0..100).filter(|seed| {
            let image = medium.after_cut(&mut Chance(*seed));
            assert!(image.0.contains_key(Path::new("a/x")));
            image.0.contains_key(Path::new("b/y"))
        });
        assert!((1..100).contains(&with_y.count()));
    }

    #[test]
    fn a_folder_that_is_renamed_takes_its_files_along() {
        let mut medium = Medium::default();
        medium.create(Path::new("new/x"));
        medium.sync_names(Path::new("new"));
        medium.rename(Path::new("new"), Path::new("pack"));
        medium.sync_names(Path::new(""));
        let image = medium.after_cut(&mut Chance(1));
        assert_eq!(image.0.keys().collect::<Vec<_>>(), [Path::new("pack/x")]);
    }

    #[test]
    fn folders_that_change_places_do_it_in_one_step() {
        let mut medium = Medium::default();
        for (path, content) in [("new/x", b"new"), ("pack/x", b"old"), ("pack/y", b"old")] {
            let file = medium.create(Path::new(path));
            medium.write(file, 0, content);
            medium.sync(file);
        }
        for folder in ["new", "pack", ""] {
            medium.sync_names(Path::new(folder));
        }
        medium.exchange(Path::new("new"), Path::new("pack"));
        let look = |image: &Image| {
            let files = image.0.iter();
            files
                .filter(|(path, _)| path.starts_with("pack"))
                .map(|(path, content)| (path.clone(), content.clone()))
                .collect::<Vec<_>>()
        };
        let of = |path: &str, content: &[u8]| (PathBuf::from(path), content.to_vec());
        let (old, new) = (
            [of("pack/x", b"old"), of("pack/y", b"old")],
            [of("pack/x", b"new")],
        );
        let mut seen = [false; 2];
        for seed in 0..100 {
            let found = look(&medium.after_cut(&mut Chance(seed)));
            assert!(found == old || found == new, "{found:?}");
            seen[usize::from(found == new)] = true;
        }
        assert_eq!(seen, [true; 2]);
        medium.sync_names(Path::new(""));
        assert!((0..100).all(|seed| look(&medium.after_cut(&mut Chance(seed))) == new));
    }
}
