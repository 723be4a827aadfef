//! Lines: LF ends a frame, a CR before it is not part of it.

use super::bits::part;
use super::frames::{Protocol, Reason, Step};

/// Cuts lines of limited length.
#[derive(Debug)]
pub struct Lines {
    /// Longest line in bytes.
    pub max_bytes: usize,
    /// The line became too long: its rest is dropped too.
    dropping: bool,
}

impl Lines {
    /// Lines of at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Lines {
            max_bytes,
            dropping: false,
        }
    }
}

impl Protocol for Lines {
    type Frame = Vec<u8>;
    const LONGEST: usize = super::MAX_FRAME_BYTES;
    const HALF_FRAME_US: u64 = 5_000_000;

    fn next(&mut self, bytes: &[u8]) -> Step<Vec<u8>> {
        let end = bytes.iter().position(|b| *b == b'\n');
        match end {
            Some(end) if self.dropping => {
                self.dropping = false;
                Step::Skip(end + 1)
            }
            Some(end) if end <= self.max_bytes => {
                let line = part(bytes, 0, end);
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                Step::Frame(end + 1, line.to_vec())
            }
            Some(end) => Step::Refused(end + 1, Reason::TooLong.into()),
            None if self.dropping => Step::Skip(bytes.len()),
            None if bytes.len() > self.max_bytes => {
                self.dropping = true;
                Step::Refused(bytes.len(), Reason::TooLong.into())
            }
            None => Step::More,
        }
    }

    fn last(&mut self, bytes: &[u8]) -> Step<Vec<u8>> {
        self.dropping = false;
        Step::Refused(bytes.len(), Reason::Incomplete.into())
    }
}
