//! Reading a write-ahead log without SQLite: what it holds, and whether a part of it is damaged.
//!
//! SQLite takes a log up to the first frame that does not fit and says nothing of what lies behind. After a power cut that
//! is right: the frame belongs to a commit that was not finished, and was never acknowledged. But a place of the log that
//! went bad later hides every commit behind it, and those were acknowledged. The two are told apart by what is behind the
//! break: a commit is begun only after the one before it was synced, so more than one commit there is damage.
//!
//! Each frame carries the checksum over everything up to its end, so a frame can be judged by the one right before it, also
//! behind a break (SQLite's file format, section 4).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The only page size that the store has.
pub(super) const PAGE: usize = super::bounds::PAGE_BYTES as usize;
/// `0x377f0682`, and with the last bit set when checksums are over big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// One page in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    page: u32,
    /// Where its content begins in the file.
    offset: u64,
    /// It ends a commit.
    commits: bool,
    /// Its checksum fits.
    is_good: bool,
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// Frames of the run that the header names, or the first frame when the header is damaged, in order.
    frames: Vec<Frame>,
    /// Frames that SQLite takes.
    taken: usize,
    header_fits: bool,
    bytes: u64,
}

/// What became of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// SQLite takes all of it, or what it leaves is in the database already.
    Whole,
    /// The last commit was not finished: it was never acknowledged.
    TornAtTheEnd,
    /// Commits that were synced cannot be reached by SQLite.
    Damaged {
        /// How many are behind the damage, at least.
        commits: u64,
        /// The header is damaged, so that nothing can be reached.
        header: bool,
    },
}

impl State {
    /// Why a store with this log must not be opened; none when it may.
    pub(super) fn reason(self) -> Option<String> {
        match self {
            State::Whole | State::TornAtTheEnd => None,
            State::Damaged { commits, header } => Some(format!(
                "the write-ahead log is damaged {}: {commits} commits that were synced lie behind the damage",
                if header { "at its header" } else { "in the middle" }
            )),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    u32::from_be_bytes(four.unwrap_or_default())
}

type Checksum = (u32, u32);

/// SQLite's checksum over `bytes`, going on from `sum`.
fn checksum(mut sum: Checksum, bytes: &[u8], big_endian: bool) -> Checksum {
    let (words, _) = bytes.as_chunks::<8>();
    for &[a, b, c, d, e, f, g, h] in words {
        let (one, two) = if big_endian {
            (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
        } else {
            (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
        };
        sum.0 = sum.0.wrapping_add(one).wrapping_add(sum.1);
        sum.1 = sum.1.wrapping_add(two).wrapping_add(sum.0);
    }
    sum
}

impl Log {
    /// Reads a log; one that is not there is empty.
    ///
    /// # Errors
    /// A disk that refuses to read.
    pub(super) fn read(path: &Path) -> std::io::Result<Log> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Log::default()),
            Err(error) => return Err(error),
        };
        let bytes = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let mut header = [0; HEADER];
        if bytes < HEADER as u64 || reader.read_exact(&mut header).is_err() {
            return Ok(Log::default());
        }
        let magic = word(&header, 0);
        let big_endian = magic & 1 == 1;
        let summed = checksum((0, 0), header.get(..24).unwrap_or_default(), big_endian);
        let stored = (word(&header, 24), word(&header, 28));
        let header_fits = magic & !1 == MAGIC && word(&header, 8) as usize == PAGE && summed == stored;
        // Without a header the first frame says which run it is; this program's processors are little-endian.
        let big_endian = big_endian && header_fits;
        let mut run = header_fits.then(|| (word(&header, 16), word(&header, 20)));
        let mut log = Log {
            header_fits,
            bytes,
            ..Log::default()
        };
        // The checksum of the frame before, where that one is of the run.
        let mut before = header_fits.then_some(stored);
        let mut whole = header_fits;
        let mut frame = [0; FRAME_HEADER + PAGE];
        let mut offset = HEADER as u64;
        while reader.read_exact(&mut frame).is_ok() {
            let content = offset + FRAME_HEADER as u64;
            offset += frame.len() as u64;
            let (head, page) = frame.split_at(FRAME_HEADER);
            let salts = (word(head, 8), word(head, 12));
            if run.is_none() && salts != (0, 0) {
                run = Some(salts);
            }
            if run != Some(salts) || word(head, 0) == 0 {
                (before, whole) = (None, false);
                continue;
            }
            let stored = (word(head, 16), word(head, 20));
            let fits = before.map(|before| {
                let sum = checksum(before, head.get(..8).unwrap_or_default(), big_endian);
                checksum(sum, page, big_endian) == stored
            });
            whole &= fits == Some(true);
            before = Some(stored);
            log.frames.push(Frame {
                page: word(head, 0),
                offset: content,
                commits: word(head, 4) != 0,
                is_good: fits != Some(false),
            });
            if whole && word(head, 4) != 0 {
                log.taken = log.frames.len();
            }
        }
        Ok(log)
    }

    /// Length of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Frames that cannot be believed.
    pub(super) fn bad_frames(&self) -> u64 {
        self.frames.iter().filter(|frame| !frame.is_good).count() as u64
    }

    /// Where the newest content of each page is: as SQLite sees it, or of every commit that can be found.
    pub(super) fn pages(&self, as_taken: bool) -> HashMap<u32, u64> {
        let end = self
            .frames
            .iter()
            .rposition(|frame| frame.commits)
            .map_or(0, |at| at + 1);
        let end = if as_taken { self.taken } else { end };
        let frames = self.frames.iter().take(end).filter(|frame| frame.is_good);
        frames.map(|frame| (frame.page, frame.offset)).collect()
    }

    /// Whether SQLite would leave commits behind; `database` and `log` are the files.
    ///
    /// # Errors
    /// A disk that refuses to read.
    pub(super) fn state(&self, database: &Path, log: &Path) -> std::io::Result<State> {
        let behind = self.frames.get(self.taken..).unwrap_or_default();
        let commits = behind.iter().filter(|frame| frame.commits).count() as u64;
        if behind.is_empty() {
            return Ok(State::Whole);
        }
        // The one commit that was under way may lie behind a break; of a log without header nothing is known to be synced
        // but what another commit follows.
        if commits < 2 {
            return Ok(State::TornAtTheEnd);
        }
        if self.is_in(database, log)? {
            return Ok(State::Whole);
        }
        let header = !self.header_fits;
        Ok(State::Damaged { commits, header })
    }

    /// Whether the database holds everything that the log does: it was taken over before.
    fn is_in(&self, database: &Path, log: &Path) -> std::io::Result<bool> {
        let (database, log) = (File::open(database)?, File::open(log)?);
        let (mut one, mut other) = ([0; PAGE], [0; PAGE]);
        for (page, offset) in self.pages(false) {
            log.read_exact_at(&mut one, offset)?;
            let place = u64::from(page - 1) * PAGE as u64;
            if database.read_exact_at(&mut other, place).is_err() || one != other {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
