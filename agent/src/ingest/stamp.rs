//! The receive stamp of messages.

use crate::clock;
use crate::config::ClockTrust;
use crate::message::Stamp;

/// How long an answer about the clock's trust is used: asking looks at a file, which is dear for each message.
const TRUST_VALID_US: u64 = 200_000;

/// Makes the stamps of one source.
pub(super) struct Stamper {
    boot: u32,
    trust: ClockTrust,
    trusted: bool,
    ask_at_us: u64,
}

impl Stamper {
    /// Stamps for the boot with number `boot`.
    pub(super) fn new(boot: u32, trust: ClockTrust) -> Stamper {
        Stamper {
            boot,
            trust,
            trusted: false,
            ask_at_us: 0,
        }
    }

    /// The stamp of a message that came now.
    pub(super) fn stamp(&mut self) -> Stamp {
        let monotonic_us = clock::monotonic_us();
        if monotonic_us >= self.ask_at_us {
            self.trusted = clock::is_trusted(self.trust);
            self.ask_at_us = monotonic_us + TRUST_VALID_US;
        }
        Stamp {
            boot: self.boot,
            monotonic_us,
            wall: clock::wall(),
            trusted: self.trusted,
        }
    }
}
