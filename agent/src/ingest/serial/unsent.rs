//! What a driver has to say, on its way to the device: in order, each when the messages that it acknowledges are committed,
//! and as far as the line takes it. Writing never holds reading up.

use super::commits::Commits;
use super::ports::Line;
use std::collections::VecDeque;
use std::io::ErrorKind;

/// Answers that wait for a commit or for their turn at most; a device that has more to say repeats what was not answered.
const MOST: usize = 64;

/// How long a line may take nothing, in microseconds: what fits into 4 KiB needs 4 s at 9600 baud.
const PATIENCE_US: u64 = 5_000_000;

/// Answers that have not left.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    /// With the number of the message whose commit each waits for.
    waiting: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of the first one that have left.
    sent: usize,
    /// Since when the line takes nothing.
    stuck_since: Option<u64>,
    /// Something was dropped, and nothing has left since.
    given_up: bool,
}

/// What became of a look at the answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// What may leave has left.
    All,
    /// The line has taken what it can for now.
    Full,
    /// The line has taken nothing for so long that what waited was dropped.
    GivenUp,
}

impl Unsent {
    /// Adds answers that may leave once the message number `after` is committed.
    pub(super) fn add(&mut self, after: u64, answers: impl Iterator<Item = Vec<u8>>) {
        let room = MOST.saturating_sub(self.waiting.len());
        self.waiting
            .extend(answers.take(room).map(|bytes| (after, bytes)));
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether something was dropped because the line takes nothing, and nothing has left since.
    pub(super) fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether the line is to tell when it takes bytes again.
    pub(super) fn wants_room(&self) -> bool {
        self.stuck_since.is_some()
    }

    /// When patience ends, in monotonic microseconds.
    pub(super) fn deadline(&self) -> Option<u64> {
        Some(self.stuck_since? + PATIENCE_US)
    }

    /// Sends what may leave.
    ///
    /// # Errors
    /// The line is gone.
    pub(super) fn send(
        &mut self,
        line: &mut dyn Line,
        commits: &Commits,
        now_us: u64,
    ) -> Result<Sent, String> {
        while let Some((after, bytes)) = self.waiting.front() {
            if !commits.covers(*after) {
                break;
            }
            let rest = bytes.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.waiting.pop_front();
                self.sent = 0;
                continue;
            }
            match line.try_write(rest) {
                // A terminal that takes no byte of some says 0.
                Ok(0) => return Ok(self.stuck(now_us)),
                Ok(length) => {
                    self.sent += length;
                    self.stuck_since = None;
                    self.given_up = false;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(self.stuck(now_us)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        self.stuck_since = None;
        Ok(Sent::All)
    }

    fn stuck(&mut self, now_us: u64) -> Sent {
        let since = *self.stuck_since.get_or_insert(now_us);
        if now_us < since + PATIENCE_US {
            return Sent::Full;
        }
        *self = Unsent {
            given_up: true,
            ..Unsent::default()
        };
        Sent::GivenUp
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::Acknowledger as _;
    use crate::ingest::serial::drivers::PortSettings;
    use std::io;
    use std::task::{Context, Poll};

    /// Takes so many bytes.
    #[derive(Default)]
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl Line for Narrow {
        fn try_read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }

        fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.room);
            if length == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= length;
            self.taken.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn poll_ready(&mut self, _: &mut Context<'_>, _: bool) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn apply(&mut self, _: PortSettings) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn answers_leave_in_order_in_pieces_and_after_their_commits() {
        let (mut unsent, mut line, commits) = (Unsent::default(), Narrow::default(), Commits::default());
        let token = commits.next();
        unsent.add(0, [b"first".to_vec()].into_iter());
        unsent.add(token.epoch, [b"second".to_vec()].into_iter());
        assert_eq!(unsent.send(&mut line, &commits, 0), Ok(Sent::Full));
        assert!(unsent.wants_room());
        line.room = 3;
        assert_eq!(unsent.send(&mut line, &commits, 4_000_000), Ok(Sent::Full));
        line.room = 100;
        // Patience began anew with the bytes that left.
        assert_eq!(unsent.send(&mut line, &commits, 8_000_000), Ok(Sent::All));
        assert_eq!(
            (line.taken.as_slice(), unsent.is_empty()),
            (b"first".as_slice(), false)
        );
        assert!(!unsent.wants_room());
        commits.committed(&[token]);
        assert_eq!(unsent.send(&mut line, &commits, 8_000_000), Ok(Sent::All));
        assert_eq!(
            (line.taken.as_slice(), unsent.is_empty()),
            (b"firstsecond".as_slice(), true)
        );
    }

    #[test]
    fn a_line_that_takes_nothing_is_given_up_after_five_seconds() {
        let (mut unsent, mut line, commits) = (Unsent::default(), Narrow::default(), Commits::default());
        unsent.add(0, [b"hello".to_vec()].into_iter());
        assert_eq!(unsent.send(&mut line, &commits, 1_000_000), Ok(Sent::Full));
        assert_eq!(unsent.deadline(), Some(6_000_000));
        assert_eq!(unsent.send(&mut line, &commits, 5_999_999), Ok(Sent::Full));
        assert_eq!(unsent.send(&mut line, &commits, 6_000_000), Ok(Sent::GivenUp));
        assert!(unsent.is_empty() && unsent.deadline().is_none() && unsent.has_given_up());
        line.room = 100;
        unsent.add(0, [b"hello".to_vec()].into_iter());
        assert_eq!(unsent.send(&mut line, &commits, 7_000_000), Ok(Sent::All));
        assert!(!unsent.has_given_up());
    }

    #[test]
    fn answers_to_a_device_that_hears_nothing_are_bounded() {
        let mut unsent = Unsent::default();
        for _ in 0..100 {
            unsent.add(1, [vec![6]].into_iter());
        }
        assert_eq!(unsent.waiting.len(), MOST);
    }
}
