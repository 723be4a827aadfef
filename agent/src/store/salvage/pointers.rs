//! The pointer maps of an auto-vacuum database: of every page what it is, and which page leads to it (SQLite's file format,
//! section 1.8).
//!
//! They tell which pages are in use, and in which tree, where the pages above are gone: what lies on a page says neither, as
//! one that was freed still shows its rows. A map has no checksum; one of whose entries makes no sense is not believed at all.

use super::super::log::PAGE;
use super::pages::Pages;
use std::cell::RefCell;
use std::collections::HashMap;

/// Bytes of an entry: what the page is, and the page that leads to it.
const ENTRY: usize = 5;
/// Pages from one map to the next.
const PERIOD: u32 = (PAGE / ENTRY) as u32 + 1;
/// SQLite locks this page and never uses it.
const LOCKED: u32 = 0x4000_0000 / PAGE as u32 + 1;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The root of a table or an index.
    Root,
    /// In no use.
    Free,
    /// Holds the rest of a row.
    Overflow,
    /// Part of a tree, below this page.
    Below(u32),
}

/// Maps that were read; none that cannot be believed.
pub(super) type Maps = RefCell<HashMap<u32, Option<Box<[u8; PAGE]>>>>;

/// The pages right below another one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Children {
    pub(super) certain: Vec<u32>,
    /// Pages of which the maps say nothing: they may be, or not.
    pub(super) doubtful: Vec<u32>,
}

/// The map that has the entry of a page, which may be the page itself; the first page is in none.
fn map_of(page: u32) -> Option<u32> {
    let map = page.checked_sub(2)? / PERIOD * PERIOD + 2;
    Some(if map == LOCKED { map + 1 } else { map })
}

/// Whether a page is a map.
pub(super) fn is_map(page: u32) -> bool {
    map_of(page) == Some(page)
}

/// What an entry says; none when it says nothing.
fn owner(entry: &[u8]) -> Option<Owner> {
    let (kind, parent) = entry.split_first()?;
    let parent = u32::from_be_bytes(parent.try_into().ok()?);
    match (kind, parent) {
        (1, 0) => Some(Owner::Root),
        (2, 0) => Some(Owner::Free),
        (3 | 4, 1..) => Some(Owner::Overflow),
        (5, 1..) => Some(Owner::Below(parent)),
        _ => None,
    }
}

impl Pages {
    /// What the maps say of a page; none when it cannot be told.
    pub(super) fn owner(&self, page: u32) -> Option<Owner> {
        let map = map_of(page).filter(|map| *map < page)?;
        let at = usize::try_from(page - map - 1).ok()? * ENTRY;
        self.in_map(map, |entries| owner(entries.get(at..at + ENTRY)?))
            .flatten()
    }

    /// What is found in a map; none when the map cannot be believed.
    fn in_map<T>(&self, map: u32, find: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut maps = self.maps.borrow_mut();
        let bytes = maps.entry(map).or_insert_with(|| self.read_map(map)).as_ref()?;
        Some(find(bytes.get(..self.entries(map) * ENTRY)?))
    }

    /// How many pages a map has entries of.
    fn entries(&self, map: u32) -> usize {
        self.count().saturating_sub(map).min(PERIOD - 1) as usize
    }

    fn read_map(&self, map: u32) -> Option<Box<[u8; PAGE]>> {
        let bytes = self.read(map)?;
        let makes_sense = |entry: &[u8]| match owner(entry) {
            Some(Owner::Below(page)) => page <= self.count(),
            Some(_) => true,
            // A page that was never used.
            None => entry.iter().all(|byte| *byte == 0),
        };
        let mut all = bytes.chunks_exact(ENTRY).take(self.entries(map));
        let is_one = bytes.iter().any(|byte| *byte != 0) && all.all(makes_sense);
        is_one.then(|| Box::new(bytes))
    }

    /// The pages right below another one.
    pub(super) fn children(&self, parent: u32) -> Children {
        let mut children = Children::default();
        let mut place = Some(2);
        while let Some(next) = place.filter(|next| *next <= self.count()) {
            let map = map_of(next).unwrap_or(next);
            let pages = (map + 1..).zip(0..self.entries(map)).map(|(page, _)| page);
            let read = self.in_map(map, |entries| {
                for (page, entry) in pages.clone().zip(entries.chunks_exact(ENTRY)) {
                    if owner(entry) == Some(Owner::Below(parent)) {
                        children.certain.push(page);
                    }
                }
            });
            if read.is_none() {
                children.doubtful.extend(pages.filter(|page| *page != LOCKED));
            }
            place = next.checked_add(PERIOD);
        }
        children
    }

    /// The roots of all trees but that of the schema; none when the maps cannot be read whole.
    pub(super) fn roots(&self) -> Option<Vec<u32>> {
        let mut roots = Vec::new();
        // They lie at the beginning, one behind the other.
        for page in (3..=self.count()).filter(|page| !is_map(*page) && *page != LOCKED) {
            match self.owner(page)? {
                Owner::Root => roots.push(page),
                _ => break,
            }
        }
        Some(roots)
    }

    /// Whether these are the first roots that there are: in an auto-vacuum database roots are the first pages, without a gap. A
    /// schema that is in part of another time has a gap, or one twice.
    pub(super) fn are_first_roots(&self, roots: &mut [u32]) -> bool {
        roots.sort_unstable();
        let first = (3..=self.count()).filter(|page| !is_map(*page));
        !roots.is_empty() && roots.iter().copied().eq(first.take(roots.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::log::Log;
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn maps_say_what_each_page_is_as_sqlite_wrote_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db");
        let connection = Connection::open(&file).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL;
                 CREATE TABLE one (id INTEGER PRIMARY KEY, bytes BLOB); CREATE TABLE gone (id INTEGER PRIMARY KEY, bytes BLOB);
                 CREATE TABLE other (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
                 WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 400)
                 INSERT INTO one SELECT n, zeroblob(n * 7) FROM n;
                 INSERT INTO gone SELECT id, bytes FROM one; DROP TABLE gone;
                 INSERT INTO other VALUES (1, 'a');",
            )
            .unwrap();
        let pages = Pages::open(&file, &Log::default(), true).unwrap();
        assert!(pages.count() > 2 * PERIOD);
        let mut statement = connection
            .prepare("SELECT rootpage FROM sqlite_schema WHERE rootpage > 0")
            .unwrap();
        let roots = statement.query_map([], |row| row.get(0)).unwrap();
        let mut roots: Vec<u32> = roots.map(Result::unwrap).collect();
        assert!(pages.are_first_roots(&mut roots));
        assert_eq!(pages.roots(), Some(roots.clone()));
        let free: i64 = connection
            .query_row("PRAGMA freelist_count", [], |row| row.get(0))
            .unwrap();
        let owners: Vec<Option<Owner>> = (3..=pages.count()).map(|page| pages.owner(page)).collect();
        let count = |wanted: fn(&Owner) -> bool| owners.iter().flatten().filter(|one| wanted(one)).count();
        assert_eq!(count(|owner| *owner == Owner::Free) as i64, free);
        assert!(count(|owner| *owner == Owner::Overflow) > 100);
        let children = pages.children(roots[0]);
        assert!(!children.certain.is_empty() && children.doubtful.is_empty());
        // One too few at the end is not seen; one that is another, or a gap, is.
        roots[1] += 1;
        assert!(!pages.are_first_roots(&mut roots));
    }

    #[test]
    fn a_map_that_makes_no_sense_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db");
        for (first, is_believed) in [(5, false), (9, false), (1, true)] {
            let mut bytes = vec![0; 4 * PAGE];
            bytes[PAGE] = first;
            std::fs::write(&file, bytes).unwrap();
            let pages = Pages::open(&file, &Log::default(), true).unwrap();
            assert_eq!(pages.owner(3).is_some(), is_believed, "{first}");
            assert_eq!(pages.children(1).doubtful.len(), if is_believed { 0 } else { 2 });
        }
    }
}
