//! What qemu's `blklogwrites` recorded: every write, flush and discard of the guest's disk, in the format of dm-log-writes.

use anyhow::{Context, ensure};
use bedside_disk::Chance;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// The first block of ext4 with its superblock: it has a checksum over two sectors and no copy in the journal, so that
/// ext4 itself relies on a device that writes a block whole.
const FIRST_BLOCK: usize = 4096;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// Entries of a log that is being written.
///
/// # Errors
/// When it cannot be read.
pub fn entries(log: &Path) -> std::io::Result<u64> {
    let mut head = [0; 24];
    File::open(log)?.read_exact_at(&mut head, 0)?;
    Ok(number(&head, 16))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

struct Entry {
    /// Byte of the disk at which it begins.
    at: usize,
    data: Vec<u8>,
    flush: bool,
}

/// A recorded disk, and how much of it was replayed.
pub struct WriteLog {
    entries: Vec<Entry>,
    disk: Vec<u8>,
    done: usize,
}

impl WriteLog {
    /// Reads a log and the disk as it was before.
    pub fn read(log: &Path, before: &Path) -> anyhow::Result<WriteLog> {
        // The file is long and mostly empty: only what was recorded is read.
        let file = File::open(log)?;
        let read = |at: u64, length: usize| -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let head = read(0, 32)?;
        ensure!(number(&head, 0) == MAGIC, "no log of writes");
        let count = number(&head, 16);
        let mut at = SECTOR as u64;
        let mut entries = Vec::new();
        for _ in 0..count {
            let head = read(at, 32).context("the log ends early")?;
            let (sector, sectors, flags) = (number(&head, 0), number(&head, 8), number(&head, 16));
            at += SECTOR as u64;
            let length = if flags & DISCARD == 0 {
                sectors as usize * SECTOR
            } else {
                0
            };
            let data = read(at, length).context("the log ends early")?;
            at += length as u64;
            entries.push(Entry {
                at: sector as usize * SECTOR,
                data,
                flush: flags & FLUSH != 0,
            });
        }
        Ok(WriteLog {
            entries,
            disk: std::fs::read(before)?,
            done: 0,
        })
    }

    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| entry.flush).count()
    }

    /// The first entry that wrote `bytes`.
    pub fn first_with(&self, bytes: &[u8]) -> Option<usize> {
        let has = |entry: &Entry| {
            let mut begins = entry
                .data
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == bytes[0]);
            begins.any(|(at, _)| entry.data[at..].starts_with(bytes))
        };
        self.entries.iter().position(has)
    }

    /// The disk as a cut before entry `cut` leaves it; cuts come in their order. What was flushed is there, of the rest some
    /// writes, and of some writes some sectors. With `forgetful` flushes of the last while count for nothing.
    pub fn cut(&mut self, cut: u64, chance: &mut Chance, forgetful: bool) -> Vec<u8> {
        let cut = cut as usize;
        let flushed = |entry: &Entry| entry.flush;
        let until = self.entries[..cut].iter().rposition(flushed).unwrap_or(0);
        let until = if forgetful {
            until.saturating_sub(200)
        } else {
            until
        };
        while self.done < until {
            put(&mut self.disk, &self.entries[self.done]);
            self.done += 1;
        }
        let mut disk = self.disk.clone();
        let kept_of_ten = [0, 1, 5, 9, 10][chance.below(5) as usize];
        let torn = chance.below(2) == 0;
        for entry in &self.entries[self.done..cut] {
            let piece = if torn && entry.at >= FIRST_BLOCK {
                SECTOR
            } else {
                entry.data.len().max(SECTOR)
            };
            for (number, part) in entry.data.chunks(piece).enumerate() {
                if chance.below(10) < kept_of_ten {
                    let at = entry.at + number * piece;
                    disk[at..at + part.len()].copy_from_slice(part);
                }
            }
        }
        disk
    }
}

fn put(disk: &mut [u8], entry: &Entry) {
    disk[entry.at..entry.at + entry.data.len()].copy_from_slice(&entry.data);
}
