//! The way from a source to the intake. What the intake has no room for waits here, so that reading goes on; the source
//! looks at the bytes that wait and slows its sender down.

use super::MessageSender;
use crate::message::Message;
use std::collections::VecDeque;
use std::pin::pin;
use tokio::sync::mpsc::error::TrySendError;

/// The intake's channel with a waiting room before it.
pub(super) struct Outlet {
    sender: MessageSender,
    waiting: VecDeque<Message>,
    bytes: usize,
    closed: bool,
    count_all: bool,
}

impl Outlet {
    /// An empty waiting room.
    pub(super) fn new(sender: MessageSender) -> Outlet {
        Outlet {
            sender,
            waiting: VecDeque::new(),
            bytes: 0,
            closed: false,
            count_all: false,
        }
    }

    /// The same for a source without a gate: every waiting message counts.
    pub(super) fn counting_all(sender: MessageSender) -> Outlet {
        Outlet {
            count_all: true,
            ..Outlet::new(sender)
        }
    }

    /// What a message adds to [`Outlet::bytes`].
    fn uncounted(&self, message: &Message) -> usize {
        if self.count_all || message.ack.is_none() {
            message.weight()
        } else {
            0
        }
    }

    /// Bytes of waiting messages that no gate counts until their commit.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the intake is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed || self.sender.is_closed()
    }

    /// Hands `message` on, at once or in its turn.
    pub(super) fn put(&mut self, message: Message) {
        self.move_on();
        if self.waiting.is_empty() {
            match self.sender.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => self.wait(message),
                Err(TrySendError::Closed(_)) => self.closed = true,
            }
        } else {
            self.wait(message);
        }
    }

    fn wait(&mut self, message: Message) {
        self.bytes += self.uncounted(&message);
        self.waiting.push_back(message);
    }

    /// Hands on what the intake can take at once.
    pub(super) fn move_on(&mut self) {
        while !self.waiting.is_empty() {
            let Ok(permit) = self.sender.try_reserve() else {
                return;
            };
            if let Some(message) = self.waiting.pop_front() {
                self.bytes = self.bytes.saturating_sub(self.uncounted(&message));
                permit.send(message);
            }
        }
    }

    /// Ends when the intake has taken one of the waiting messages, or is gone. Can be dropped at any time.
    pub(super) async fn moved(&mut self) {
        if self.waiting.is_empty() {
            self.sender.closed().await;
            self.closed = true;
            return;
        }
        match self.sender.reserve().await {
            Ok(permit) => {
                if let Some(message) = self.waiting.pop_front() {
                    self.bytes = self.bytes.saturating_sub(self.uncounted(&message));
                    permit.send(message);
                }
            }
            Err(_) => self.closed = true,
        }
    }

    /// Waits for `event` and hands on meanwhile; ends early when the intake is gone.
    pub(super) async fn during(&mut self, event: impl Future<Output = ()>) {
        let mut event = pin!(event);
        while !self.is_closed() {
            tokio::select! {
                biased;
                () = &mut event => return,
                () = self.moved() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{SourceId, Stamp};
    use embassy_time::Timer;
    use iomt_mapping::Timestamp;
    use tokio::sync::mpsc;

    fn message(number: u8) -> Message {
        Message::new(
            SourceId(1),
            Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::MIN,
                trusted: false,
            },
            bytes::Bytes::from(vec![number]),
        )
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let start = Timestamp::from_ticks(17_900_000_000_000_000).unwrap();
        crate::clock::simulate(start, future).unwrap().0
    }

    #[test]
    fn messages_keep_their_order_through_the_waiting_room() {
        run(async {
            let (sender, mut intake) = mpsc::channel(2);
            let mut outlet = Outlet::new(sender);
            (0..5).for_each(|number| outlet.put(message(number)));
            assert_eq!(outlet.bytes(), 3 * message(0).weight());
            let mut came = vec![intake.recv().await.unwrap()];
            // The one that comes now does not overtake those that wait.
            outlet.put(message(5));
            while came.len() < 6 {
                outlet.during(Timer::after_millis(1)).await;
                came.push(intake.recv().await.unwrap());
            }
            let numbers: Vec<u8> = came.iter().map(|message| message.payload.bytes()[0]).collect();
            assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
            assert_eq!(outlet.bytes(), 0);
        });
    }

    #[test]
    fn waiting_ends_when_the_intake_is_gone() {
        run(async {
            let (sender, intake) = mpsc::channel(1);
            let mut outlet = Outlet::new(sender);
            drop(intake);
            outlet.during(std::future::pending()).await;
            assert!(outlet.is_closed());
        });
    }
}
