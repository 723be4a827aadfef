//! Reading the pages of a damaged database without SQLite, which gives a table up at its first broken page.
//!
//! Two ways: a walk from the root of a table (`walk.rs`), which says what could not be reached, and a look at every page
//! there is, which finds the rows on it whatever has become of the pages above. Nothing that is found by such a look is
//! believed by itself, as a page that was freed still shows its rows: a batch has its checksum. (SQLite's file format,
//! section 1.6.)

use super::super::log::{Log, PAGE};
use super::super::set_aside::beside;
use super::pointers::Maps;
use super::record::{Row, number, record};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A row that claims to be larger is damaged: a batch of the largest message that a source takes is far smaller.
const LARGEST: u64 = 64 << 20;

pub(super) const TABLE_LEAF: u8 = 0x0d;
pub(super) const TABLE_INNER: u8 = 0x05;
const INDEX_LEAF: u8 = 0x0a;
const INDEX_INNER: u8 = 0x02;

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) page: u32,
    pub(super) cell: u16,
}

/// The pages of a database with its log.
pub(super) struct Pages {
    /// None when only the log was left.
    database: Option<File>,
    log: Option<File>,
    in_log: HashMap<u32, u64>,
    count: u32,
    /// The pointer maps that were read.
    pub(super) maps: Maps,
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
            maps: Maps::default(),
        })
    }

    /// Number of pages; they are counted from 1.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// A page; none when the disk does not give it.
    pub(super) fn read(&self, page: u32) -> Option<[u8; PAGE]> {
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

    /// The row of the cell that begins at this byte of a page.
    pub(super) fn row(&self, node: &Node<'_>, at: usize) -> Option<Row> {
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
pub(super) struct Node<'a> {
    bytes: &'a [u8; PAGE],
    pub(super) kind: u8,
    pub(super) cells: u16,
    /// Where the pointers to its cells begin.
    pointers: usize,
    /// Its last child; none of a leaf.
    pub(super) right: Option<u32>,
}

/// A row as its page begins it.
struct Head<'a> {
    row: i64,
    length: u64,
    local: &'a [u8],
    overflow: u32,
}

impl<'a> Node<'a> {
    pub(super) fn of(bytes: &'a [u8; PAGE], page: u32) -> Option<Node<'a>> {
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

    /// The byte at which a cell begins.
    pub(super) fn cell(&self, number: u16) -> Option<usize> {
        let at = self.pointers + usize::from(number) * 2;
        let at = u16::from_be_bytes(self.bytes.get(at..at + 2)?.try_into().ok()?);
        Some(usize::from(at)).filter(|at| *at >= self.pointers && *at < PAGE)
    }

    /// The child that a cell of an inner page leads to.
    pub(super) fn child(&self, at: usize) -> Option<u32> {
        self.right?;
        Some(u32::from_be_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?))
    }

    /// The largest row number below the child that a cell of an inner page of a table leads to.
    pub(super) fn largest(&self, at: usize) -> Option<i64> {
        number(&mut self.bytes.get(at + 4..)?).map(|row| row as i64)
    }

    /// Whether it is a page of a tree whose rows have numbers.
    pub(super) fn is_of_table(&self) -> bool {
        matches!(self.kind, TABLE_LEAF | TABLE_INNER)
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
mod tests;
