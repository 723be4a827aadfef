//! Whether a destination can be reached, as status and metrics show it.

use crate::telemetry::errors::ErrorRecord;

/// State of a destination, for `status`.
#[derive(Clone, Debug, Default)]
pub struct LinkState {
    /// Whether the last exchange succeeded; none before the first.
    pub up: Option<bool>,
    /// Why it cannot be reached.
    pub error: Option<ErrorRecord>,
    /// When it is tried again: monotonic microseconds.
    pub next_try_us: Option<u64>,
}

/// Whether a destination is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// It is.
    Closed,
    /// Not before the next try.
    Open,
    /// It is being tried: one request, then more.
    HalfOpen,
}

impl Circuit {
    /// As status and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::Open => "open",
            Circuit::HalfOpen => "half-open",
        }
    }
}

impl LinkState {
    /// Whether the destination is used at this moment of the monotonic clock.
    pub fn circuit(&self, now_us: u64) -> Circuit {
        match (self.up, self.next_try_us) {
            (Some(false), Some(at)) if now_us < at => Circuit::Open,
            (Some(false), _) => Circuit::HalfOpen,
            (Some(true) | None, _) => Circuit::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_opens_until_the_next_try_and_is_half_open_during_it() {
        let state = |up, next_try_us| LinkState {
            up,
            error: None,
            next_try_us,
        };
        for (state, circuit) in [
            (state(None, None), "closed"),
            (state(Some(true), None), "closed"),
            (state(Some(false), Some(11)), "open"),
            (state(Some(false), Some(10)), "half-open"),
        ] {
            assert_eq!(state.circuit(10).name(), circuit, "{state:?}");
        }
    }
}
