//! Reading the pages of a damaged database without SQLite, which gives a table up at its first broken page.
//!
//! Two ways: a walk from the root of a table, which says whether everything was reachable, and a look at every page there
//! is, which finds the rows on it whatever has become of the pages above. Nothing that is found is believed by itself: a
//! batch has its checksum. (SQLite's file format, section 1.6.)

use super::super::log::{Log, PAGE};
use super::super::set_aside::beside;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// No tree is deeper.
const DEEPEST: u32 = 24;
/// A row that claims to be larger is damaged: a batch of the largest message that a source takes is far smaller.
const LARGEST: u64 = 64 << 20;

const TABLE_LEAF: u8 = 0x0d;
const TABLE_INNER: u8 = 0x05;
const INDEX_LEAF: u8 = 0x0a;
const INDEX_INNER: u8 = 0x02;

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Real,
    Text(String),
    Blob(Vec<u8>),
}

impl Value {
    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn blob(&self) -> Option<&[u8]> {
        match self {
            Value::Blob(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// A row: its number (0 for tables without one) and its columns.
pub(super) type Row = (i64, Vec<Value>);

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    page: u32,
    cell: u16,
}

/// The pages of a database with its log.
pub(super) struct Pages {
    /// None when only the log was left.
    database: Option<File>,
    log: Option<File>,
    in_log: HashMap<u32, u64>,
    count: u32,
}

impl Pages {
    /// The pages of the file that was set aside; `as_taken`: with the log as SQLite would take it, else with all commits
    /// that can be found in it.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub(super) fn open(file: &Path, log: &Log, as_taken: bool) -> std::io::Result<Pages> {
        let database = match File::open(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        let in_log = log.pages(as_taken);
        let bytes = database
            .as_ref()
            .map(File::metadata)
            .transpose()?
            .map_or(0, |found| found.len());
        let in_file = bytes.div_ceil(PAGE as u64);
        let last = in_log.keys().copied().max().unwrap_or_default();
        Ok(Pages {
            database,
            log: match in_log.is_empty() {
                true => None,
                false => Some(File::open(beside(file, "-wal"))?),
            },
            in_log,
            count: u32::try_from(in_file).unwrap_or(u32::MAX).max(last),
        })
    }

    /// Number of pages; they are counted from 1.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// A page; none when the disk does not give it.
    fn read(&self, page: u32) -> Option<[u8; PAGE]> {
        let mut bytes = [0; PAGE];
        let found = match (self.in_log.get(&page), &self.log) {
            (Some(offset), Some(log)) => log.read_exact_at(&mut bytes, *offset),
            _ => {
                let place = u64::from(page.checked_sub(1)?) * PAGE as u64;
                self.database.as_ref()?.read_exact_at(&mut bytes, place)
            }
        };
        found.ok().map(|()| bytes)
    }

    /// Gives each row of a tree to `visit`, in order; says whether all of it could be reached.
    pub(super) fn walk(&self, root: u32, visit: &mut dyn FnMut(Row, Place)) -> bool {
        let mut left = self.count;
        self.walk_page(root, 0, &mut left, visit)
    }

    fn walk_page(&self, page: u32, depth: u32, left: &mut u32, visit: &mut dyn FnMut(Row, Place)) -> bool {
        // A page that leads back to one above it would never end.
        if page == 0 || page > self.count || depth > DEEPEST || *left == 0 {
            return false;
        }
        *left -= 1;
        let Some(bytes) = self.read(page) else {
            return false;
        };
        let Some(node) = Node::of(&bytes, page) else {
            return false;
        };
        let mut whole = true;
        for cell in 0..node.cells {
            let Some(at) = node.cell(cell) else {
                whole = false;
                continue;
            };
            if let Some(child) = node.child(at) {
                whole &= self.walk_page(child, depth + 1, left, visit);
            }
            if node.has_rows() {
                match self.row(&node, at) {
                    Some(row) => visit(row, Place { page, cell }),
                    None => whole = false,
                }
            }
        }
        match node.right {
            Some(right) => self.walk_page(right, depth + 1, left, visit) && whole,
            None => whole,
        }
    }

    /// Gives the first columns of each row on one page to `visit`, as far as the page itself holds them; says whether the
    /// page can be read.
    pub(super) fn rows_on(&self, page: u32, mut visit: impl FnMut(i64, &[u8], u64, Place)) -> bool {
        let Some(bytes) = self.read(page) else {
            return false;
        };
        let Some(node) = Node::of(&bytes, page).filter(|node| node.kind == TABLE_LEAF) else {
            return true;
        };
        for cell in 0..node.cells {
            let found = node.cell(cell).and_then(|at| node.head(at));
            if let Some(head) = found {
                visit(head.row, head.local, head.length, Place { page, cell });
            }
        }
        true
    }

    /// The row at a place.
    pub(super) fn row_at(&self, place: Place) -> Option<Row> {
        let bytes = self.read(place.page)?;
        let node = Node::of(&bytes, place.page)?;
        self.row(&node, node.cell(place.cell)?)
    }

    fn row(&self, node: &Node<'_>, at: usize) -> Option<Row> {
        let head = node.head(at)?;
        let mut payload = head.local.to_vec();
        let mut next = head.overflow;
        while (payload.len() as u64) < head.length {
            if next == 0 || next > self.count {
                return None;
            }
            let bytes = self.read(next)?;
            let (link, rest) = bytes.split_at_checked(4)?;
            let wanted = usize::try_from(head.length).ok()? - payload.len();
            payload.extend_from_slice(rest.get(..wanted.min(rest.len()))?);
            next = u32::from_be_bytes(link.try_into().ok()?);
        }
        Some((head.row, record(&payload)?))
    }
}

/// A page of a tree.
struct Node<'a> {
    bytes: &'a [u8; PAGE],
    kind: u8,
    cells: u16,
    /// Where the pointers to its cells begin.
    pointers: usize,
    right: Option<u32>,
}

/// A row as its page begins it.
struct Head<'a> {
    row: i64,
    length: u64,
    local: &'a [u8],
    overflow: u32,
}

impl<'a> Node<'a> {
    fn of(bytes: &'a [u8; PAGE], page: u32) -> Option<Node<'a>> {
        // The first page begins with the header of the file.
        let start = if page == 1 { 100 } else { 0 };
        let kind = *bytes.get(start)?;
        let inner = matches!(kind, TABLE_INNER | INDEX_INNER);
        if !inner && !matches!(kind, TABLE_LEAF | INDEX_LEAF) {
            return None;
        }
        let cells = u16::from_be_bytes(bytes.get(start + 3..start + 5)?.try_into().ok()?);
        let pointers = start + if inner { 12 } else { 8 };
        if pointers + usize::from(cells) * 2 > PAGE {
            return None;
        }
        let right = match inner {
            true => Some(u32::from_be_bytes(
                bytes.get(start + 8..start + 12)?.try_into().ok()?,
            )),
            false => None,
        };
        Some(Node {
            bytes,
            kind,
            cells,
            pointers,
            right,
        })
    }

    fn cell(&self, number: u16) -> Option<usize> {
        let at = self.pointers + usize::from(number) * 2;
        let at = u16::from_be_bytes(self.bytes.get(at..at + 2)?.try_into().ok()?);
        Some(usize::from(at)).filter(|at| *at >= self.pointers && *at < PAGE)
    }

    fn child(&self, at: usize) -> Option<u32> {
        self.right?;
        Some(u32::from_be_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }

    /// Inner pages of a table only lead to rows.
    fn has_rows(&self) -> bool {
        self.kind != TABLE_INNER
    }

    fn head(&self, at: usize) -> Option<Head<'a>> {
        let mut rest = self.bytes.get(at..)?;
        if self.kind == INDEX_INNER {
            rest = rest.get(4..)?;
        }
        let length = number(&mut rest).filter(|length| *length <= LARGEST)?;
        let row = match self.kind {
            TABLE_LEAF => number(&mut rest)? as i64,
            _ => 0,
        };
        let usable = PAGE as u64;
        let most = match self.kind {
            TABLE_LEAF => usable - 35,
            _ => (usable - 12) * 64 / 255 - 23,
        };
        let least = (usable - 12) * 32 / 255 - 23;
        if length <= most {
            return Some(Head {
                row,
                length,
                local: rest.get(..usize::try_from(length).ok()?)?,
                overflow: 0,
            });
        }
        let full = least + (length - least) % (usable - 4);
        let local = usize::try_from(if full <= most { full } else { least }).ok()?;
        let overflow = rest.get(local..local + 4)?;
        Some(Head {
            row,
            length,
            local: rest.get(..local)?,
            overflow: u32::from_be_bytes(overflow.try_into().ok()?),
        })
    }
}

/// SQLite's number of one to nine bytes.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..9 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        if place == 8 {
            return Some((value << 8) | u64::from(*byte));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Kinds of the columns of a record, and what follows them.
pub(super) fn kinds(payload: &[u8]) -> Option<(Vec<u64>, &[u8])> {
    let mut rest = payload;
    let length = usize::try_from(number(&mut rest)?).ok()?;
    let mut head = payload.get(payload.len() - rest.len()..length)?;
    let mut kinds = Vec::new();
    while !head.is_empty() {
        kinds.push(number(&mut head)?);
    }
    Some((kinds, payload.get(length..)?))
}

/// The columns of a record.
fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let (kinds, mut body) = kinds(payload)?;
    let mut take = |length: u64| {
        let (taken, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
        body = rest;
        Some(taken)
    };
    let mut values = Vec::with_capacity(kinds.len());
    for kind in kinds {
        values.push(match kind {
            0 => Value::Null,
            1..=6 => Value::Integer(integer(take(match kind {
                5 => 6,
                6 => 8,
                short => short,
            })?)),
            7 => {
                take(8)?;
                Value::Real
            }
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            10 | 11 => return None,
            kind if kind % 2 == 0 => Value::Blob(take((kind - 12) / 2)?.to_vec()),
            kind => Value::Text(String::from_utf8(take((kind - 13) / 2)?.to_vec()).ok()?),
        });
    }
    Some(values)
}

/// A big-endian number with its sign.
pub(super) fn integer(bytes: &[u8]) -> i64 {
    let begin = bytes.first().map_or(0, |first| i64::from(*first as i8) >> 7);
    bytes
        .iter()
        .fold(begin, |value, byte| (value << 8) | i64::from(*byte))
}

/// What a page is for, as the tests of damage name it.
#[cfg(test)]
pub(super) fn pages_of(file: &Path, root: u32) -> Vec<(u32, &'static str, Option<i64>)> {
    let log = Log::read(&beside(file, "-wal")).unwrap();
    let pages = Pages::open(file, &log, true).unwrap();
    let mut found = Vec::new();
    let mut left = vec![root];
    while let Some(page) = left.pop() {
        let bytes = pages.read(page).unwrap();
        let node = Node::of(&bytes, page).unwrap();
        found.push((page, if node.right.is_some() { "inner" } else { "leaf" }, None));
        left.extend(node.right);
        for cell in 0..node.cells {
            let at = node.cell(cell).unwrap();
            left.extend(node.child(at));
            if node.kind == TABLE_LEAF {
                let head = node.head(at).unwrap();
                found.push((page, "row", Some(head.row)));
                let mut next = head.overflow;
                while next != 0 {
                    found.push((next, "overflow", Some(head.row)));
                    let bytes = pages.read(next).unwrap();
                    next = u32::from_be_bytes(bytes[..4].try_into().unwrap());
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::{Connection, params};

    fn rows(pages: &Pages, root: u32) -> (Vec<Row>, bool) {
        let mut rows = Vec::new();
        let whole = pages.walk(root, &mut |row, _| rows.push(row));
        (rows, whole)
    }

    #[test]
    fn tables_are_read_as_sqlite_wrote_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db");
        let connection = Connection::open(&file).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL;
                 CREATE TABLE one (id INTEGER PRIMARY KEY, number INTEGER, text TEXT, bytes BLOB);
                 CREATE TABLE other (key TEXT PRIMARY KEY, value) WITHOUT ROWID;",
            )
            .unwrap();
        let numbers = [
            0,
            1,
            -1,
            127,
            -128,
            40_000,
            -9_000_000,
            1 << 40,
            i64::MIN,
            i64::MAX,
        ];
        for n in 0..400_i64 {
            let number = (n % 11 != 0).then(|| numbers[(n % 10) as usize]);
            let bytes = vec![n as u8; (n * n % 5003) as usize];
            connection
                .execute(
                    "INSERT INTO one VALUES (?1, ?2, ?3, ?4)",
                    params![n * 7, number, "ä".repeat(n as usize), bytes],
                )
                .unwrap();
            connection
                .execute(
                    "INSERT INTO other VALUES (?1, ?2)",
                    params![format!("key {n:05}"), "v".repeat(n as usize % 900)],
                )
                .unwrap();
        }
        let root = |name: &str| -> u32 {
            let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
            connection.query_row(sql, [name], |row| row.get(0)).unwrap()
        };
        let pages = Pages::open(&file, &Log::default(), true).unwrap();
        let (found, whole) = rows(&pages, root("one"));
        assert!(whole);
        assert_eq!(found.len(), 400);
        for (n, (id, columns)) in (0_i64..).zip(&found) {
            assert_eq!(*id, n * 7);
            let number = columns[1].integer();
            assert_eq!(number, (n % 11 != 0).then(|| numbers[(n % 10) as usize]));
            assert_eq!(columns[2].text(), Some("ä".repeat(n as usize).as_str()));
            assert_eq!(columns[3].blob().map(<[u8]>::len), Some((n * n % 5003) as usize));
        }
        let (found, whole) = rows(&pages, root("other"));
        assert!(whole);
        let keys: Vec<_> = found
            .iter()
            .filter_map(|(_, columns)| columns[0].text())
            .collect();
        assert_eq!(keys, (0..400).map(|n| format!("key {n:05}")).collect::<Vec<_>>());
    }

    #[test]
    fn pages_of_noise_end_nothing_but_themselves() {
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store.db");
        for round in 0..200 {
            let mut bytes = vec![0; 64 * PAGE];
            for byte in &mut bytes {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (noise >> 40) as u8;
            }
            for page in 0..64 {
                bytes[page * PAGE] = [TABLE_LEAF, TABLE_INNER, INDEX_LEAF, INDEX_INNER][(page + round) % 4];
                bytes[page * PAGE + 3] = 0;
            }
            std::fs::write(&file, bytes).unwrap();
            let pages = Pages::open(&file, &Log::default(), true).unwrap();
            for page in 1..=pages.count() {
                let (_, whole) = rows(&pages, page);
                let _ = whole;
                pages.rows_on(page, |_, _, _, place| drop(pages.row_at(place)));
            }
        }
    }
}
