//! What qemu's `blklogwrites` recorded: every write, flush and discard of the guest's disk, in the format of dm-log-writes.

use anyhow::{Context, ensure};
use bedside_disk::Chance;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Blocks of ext4.
const BLOCK: usize = 4096;
/// How a block begins that ends a transaction of ext4's journal (jbd2: magic and type, big-endian).
const COMMIT_BLOCK: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2];
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
            let mut keep = |at: usize, part: &[u8]| {
                if chance.below(10) < kept_of_ten {
                    disk[at..at + part.len()].copy_from_slice(part);
                }
            };
            if !torn {
                keep(entry.at, &entry.data);
                continue;
            }
            for (at, block) in (entry.at..).step_by(BLOCK).zip(entry.data.chunks(BLOCK)) {
                let piece = if is_written_whole(at, block) {
                    BLOCK
                } else {
                    SECTOR
                };
                for (at, part) in (at..).step_by(piece).zip(block.chunks(piece)) {
                    keep(at, part);
                }
            }
        }
        disk
    }
}

/// Whether ext4 itself relies on a device that writes this block whole: the first one with the superblock, which has a
/// checksum over two sectors and no copy in the journal, and one that ends a transaction, which has a checksum over all of
/// it; ext4 takes a journal that ends with half of one for corrupt.
fn is_written_whole(at: usize, block: &[u8]) -> bool {
    at < BLOCK || block.starts_with(&COMMIT_BLOCK)
}

fn put(disk: &mut [u8], entry: &Entry) {
    disk[entry.at..entry.at + entry.data.len()].copy_from_slice(&entry.data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_kept_apart_but_for_the_blocks_that_ext4_needs_whole() {
        let mut end = vec![1; BLOCK];
        end[..8].copy_from_slice(&COMMIT_BLOCK);
        // The end of a transaction behind another block, in one write.
        let data = [vec![1; BLOCK], end].concat();
        let mut mixed = [0; 3];
        for seed in 0..100 {
            let entry = |at: usize, data: &[u8]| Entry {
                at,
                data: data.to_vec(),
                flush: false,
            };
            let mut log = WriteLog {
                entries: vec![entry(0, &data[..BLOCK]), entry(BLOCK, &data)],
                disk: vec![7; 3 * BLOCK],
                done: 0,
            };
            let left = log.cut(2, &mut Chance(seed), false);
            for (number, block) in left.chunks(BLOCK).enumerate() {
                let old = block.iter().filter(|byte| **byte == 7).count();
                mixed[number] += u32::from(old != 0 && old != BLOCK);
            }
        }
        assert_eq!((mixed[0], mixed[2]), (0, 0), "superblock, end of a transaction");
        assert!(mixed[1] > 10, "any other block");
    }
}
