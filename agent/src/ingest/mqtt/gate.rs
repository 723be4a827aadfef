//! The acknowledgement gate between the store and the connection.
//!
//! Invariants:
//! 1. A PUBACK leaves only after the commit of its message.
//! 2. A PUBACK leaves only on the connection on which its packet came: each token carries the number of its connection
//!    (epoch), and each connection has a client of its own, so that nothing queued for one can reach the next.
//! 3. PUBACKs leave in the order in which the packets came on that connection.
//! 4. An acknowledgement that the client cannot take now stays at the front until it can.

use super::link::Outbox;
use super::repeat::{PacketMemory, StoredPacket, Verdict};
use crate::ingest::{Acknowledger, SourceStatus};
use crate::message::AckToken;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A packet of the current connection whose PUBACK has not been handed to the client.
struct InFlight {
    packet_id: u16,
    /// Connection of the copy whose commit it waits for.
    waits_for: u64,
    ready: bool,
}

/// A message on its way to its commit.
struct Uncommitted {
    epoch: u64,
    packet_id: u16,
    weight: usize,
}

struct State {
    /// Number of the current connection.
    epoch: u64,
    outbox: Option<Box<dyn Outbox>>,
    in_flight: VecDeque<InFlight>,
    uncommitted: VecDeque<Uncommitted>,
    uncommitted_bytes: usize,
    memory: PacketMemory,
}

/// What the gate says to a packet.
pub(super) struct Received {
    pub(super) verdict: Verdict,
    /// Its token, where it is to be handed on.
    pub(super) token: AckToken,
    /// Bytes of messages that wait for their commit.
    pub(super) uncommitted_bytes: usize,
}

/// The gate of one source.
pub(super) struct Gate {
    state: Mutex<State>,
    /// Told after each commit.
    pub(super) changed: Notify,
    status: Arc<SourceStatus>,
}

impl Gate {
    /// A closed gate.
    pub(super) fn new(window: u16, resume: &[StoredPacket], status: Arc<SourceStatus>) -> Gate {
        Gate {
            state: Mutex::new(State {
                epoch: 0,
                outbox: None,
                in_flight: VecDeque::new(),
                uncommitted: VecDeque::new(),
                uncommitted_bytes: 0,
                memory: PacketMemory::resume(window, resume),
            }),
            changed: Notify::new(),
            status,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connection `epoch` is up; acknowledgements leave through `outbox`.
    pub(super) fn open(&self, epoch: u64, outbox: Box<dyn Outbox>, session_resumed: bool) {
        let mut state = self.lock();
        state.epoch = epoch;
        state.outbox = Some(outbox);
        state.in_flight.clear();
        if !session_resumed {
            state.memory.new_session();
        }
    }

    /// The connection is gone; what is committed from now on is acknowledged when it comes again.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.outbox = None;
        state.in_flight.clear();
    }

    /// The source starts, perhaps again after a fault: what it had received and not handed on never gets to a commit, so
    /// that it is to be stored when it comes again.
    pub(super) fn restart(&self) {
        let mut state = self.lock();
        state.outbox = None;
        state.in_flight.clear();
        state.uncommitted.clear();
        state.uncommitted_bytes = 0;
        state.memory.forget_uncommitted();
    }

    /// The session was ended on purpose.
    pub(super) fn end_session(&self) {
        self.lock().memory.new_session();
    }

    /// A packet with a packet id came on the current connection.
    pub(super) fn receive(&self, packet_id: u16, hash: u64, redelivered: bool, weight: usize) -> Received {
        let mut guard = self.lock();
        let state = &mut *guard;
        let epoch = state.epoch;
        let verdict = state.memory.judge(packet_id, hash, redelivered, epoch);
        let (waits_for, ready) = match verdict {
            Verdict::Store { .. } => {
                state.uncommitted.push_back(Uncommitted {
                    epoch,
                    packet_id,
                    weight,
                });
                state.uncommitted_bytes += weight;
                (epoch, false)
            }
            Verdict::Acknowledge => (epoch, true),
            Verdict::AcknowledgeWith { epoch } => (epoch, false),
        };
        // A broker that repeats itself on one connection gets one answer.
        let repeated = verdict == (Verdict::AcknowledgeWith { epoch })
            && state.in_flight.iter().any(|entry| entry.packet_id == packet_id);
        if !repeated {
            state.in_flight.push_back(InFlight {
                packet_id,
                waits_for,
                ready,
            });
        }
        if ready {
            state.send_ready();
        }
        let token = AckToken {
            epoch,
            packet_id,
            session: state.memory.session(),
        };
        Received {
            verdict,
            token,
            uncommitted_bytes: state.uncommitted_bytes,
        }
    }

    /// A PUBACK may have left on the current connection.
    pub(super) fn acknowledgement_left(&self, packet_id: u16) {
        let mut state = self.lock();
        state.memory.acknowledged(packet_id);
        // There is room in the client's queue now.
        state.send_ready();
    }

    /// Bytes of messages that wait for their commit.
    pub(super) fn uncommitted_bytes(&self) -> usize {
        self.lock().uncommitted_bytes
    }
}

impl State {
    fn send_ready(&mut self) {
        let Some(outbox) = &self.outbox else { return };
        while let Some(entry) = self.in_flight.front()
            && entry.ready
            && outbox.acknowledge(entry.packet_id)
        {
            self.in_flight.pop_front();
        }
    }

    /// Takes the token's message off the list of uncommitted ones, normally the first.
    fn settle(&mut self, token: &AckToken) {
        let found = self
            .uncommitted
            .iter()
            .position(|entry| entry.packet_id == token.packet_id && entry.epoch == token.epoch);
        if let Some(entry) = found.and_then(|index| self.uncommitted.remove(index)) {
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(entry.weight);
        }
    }
}

impl Acknowledger for Gate {
    fn committed(&self, tokens: &[AckToken]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        // Tokens come in receive order, so that each is found right behind the one before.
        let mut behind = 0;
        for token in tokens.iter().filter(|token| token.packet_id != 0) {
            state.settle(token);
            if token.session == state.memory.session() {
                state.memory.committed(token.packet_id, token.epoch);
            }
            let is_waiting = |entry: &InFlight| {
                !entry.ready && entry.packet_id == token.packet_id && entry.waits_for == token.epoch
            };
            let found = (state.in_flight.range(behind..).position(is_waiting))
                .map(|index| behind + index)
                .or_else(|| state.in_flight.range(..behind).position(is_waiting));
            match found.and_then(|index| Some((index, state.in_flight.get_mut(index)?))) {
                Some((index, entry)) => {
                    entry.ready = true;
                    behind = index + 1;
                }
                // Its connection is gone: the broker delivers it again, and it is recognised then.
                None => self.status.stale_acknowledgements.count(),
            }
        }
        state.send_ready();
        drop(guard);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's queue with room for a few acknowledgements.
    #[derive(Clone, Default)]
    struct Queue(Arc<Mutex<(Vec<u16>, usize)>>);

    impl Queue {
        fn with_room(room: usize) -> Queue {
            Queue(Arc::new(Mutex::new((Vec::new(), room))))
        }
        fn sent(&self) -> Vec<u16> {
            self.0.lock().unwrap().0.clone()
        }
    }

    impl Outbox for Queue {
        fn acknowledge(&self, packet_id: u16) -> bool {
            let mut queue = self.0.lock().unwrap();
            if queue.0.len() == queue.1 {
                return false;
            }
            queue.0.push(packet_id);
            true
        }

        fn subscribe(&self, _filters: &[String]) -> bool {
            true
        }

        fn publish(&self, _topic: &str, _payload: Vec<u8>) -> bool {
            true
        }
    }

    fn gate() -> Gate {
        Gate::new(10, &[], Arc::default())
    }

    fn receive(gate: &Gate, packet_id: u16, redelivered: bool) -> (Verdict, AckToken) {
        let received = gate.receive(packet_id, u64::from(packet_id), redelivered, 100);
        (received.verdict, received.token)
    }

    #[test]
    fn acknowledgements_leave_after_the_commit_in_receive_order() {
        let (gate, queue) = (gate(), Queue::with_room(10));
        gate.open(1, Box::new(queue.clone()), false);
        let tokens: Vec<_> = (1..=3).map(|id| receive(&gate, id, false).1).collect();
        assert_eq!(queue.sent(), [0; 0]);
        assert_eq!(gate.uncommitted_bytes(), 300);
        gate.committed(&tokens[1..2]);
        assert_eq!(queue.sent(), [0; 0], "the first is not committed yet");
        gate.committed(&[tokens[0], tokens[2]]);
        assert_eq!(queue.sent(), [1, 2, 3]);
        assert_eq!(gate.uncommitted_bytes(), 0);
    }

    #[test]
    fn an_acknowledgement_never_leaves_on_another_connection() {
        let (gate, first, second) = (gate(), Queue::with_room(10), Queue::with_room(10));
        gate.open(1, Box::new(first.clone()), false);
        let (_, token) = receive(&gate, 7, false);
        gate.close();
        gate.open(2, Box::new(second.clone()), false);
        let (verdict, fresh) = receive(&gate, 7, false);
        assert_eq!(
            verdict,
            Verdict::Store {
                possible_repeat: false
            }
        );
        gate.committed(&[token]);
        assert_eq!(
            (first.sent(), second.sent()),
            (vec![], vec![]),
            "the same id in a new session"
        );
        gate.committed(&[fresh]);
        assert_eq!(second.sent(), [7]);
        assert_eq!(gate.status.stale_acknowledgements.get(), 1);
    }

    #[test]
    fn a_redelivered_message_is_acknowledged_once_its_first_copy_is_committed() {
        let (gate, first, second) = (gate(), Queue::with_room(10), Queue::with_room(10));
        gate.open(1, Box::new(first), false);
        let tokens: Vec<_> = (1..=3).map(|id| receive(&gate, id, false).1).collect();
        gate.committed(&tokens[..1]);
        gate.close();
        gate.open(2, Box::new(second.clone()), true);
        assert_eq!(receive(&gate, 1, true).0, Verdict::Acknowledge);
        assert_eq!(receive(&gate, 2, true).0, Verdict::AcknowledgeWith { epoch: 1 });
        assert_eq!(receive(&gate, 3, true).0, Verdict::AcknowledgeWith { epoch: 1 });
        assert_eq!(second.sent(), [1]);
        gate.committed(&tokens[1..]);
        assert_eq!(second.sent(), [1, 2, 3]);
    }

    #[test]
    fn an_acknowledgement_that_cannot_be_queued_is_kept() {
        let (gate, queue) = (gate(), Queue::with_room(2));
        gate.open(1, Box::new(queue.clone()), false);
        let tokens: Vec<_> = (1..=5).map(|id| receive(&gate, id, false).1).collect();
        gate.committed(&tokens);
        assert_eq!(queue.sent(), [1, 2]);
        queue.0.lock().unwrap().1 = 10;
        gate.acknowledgement_left(1);
        assert_eq!(queue.sent(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn after_a_restart_of_the_source_uncommitted_messages_are_stored_when_they_come_again() {
        let (gate, queue) = (gate(), Queue::with_room(10));
        gate.open(1, Box::new(queue.clone()), false);
        let (_, first) = receive(&gate, 1, false);
        receive(&gate, 2, false);
        gate.committed(&[first]);
        gate.restart();
        assert_eq!(gate.uncommitted_bytes(), 0);
        gate.open(2, Box::new(queue), true);
        assert_eq!(receive(&gate, 1, true).0, Verdict::Acknowledge);
        assert!(matches!(receive(&gate, 2, true).0, Verdict::Store { .. }));
    }

    #[test]
    fn a_broker_that_repeats_itself_on_one_connection_gets_one_answer() {
        let (gate, queue) = (gate(), Queue::with_room(10));
        gate.open(1, Box::new(queue.clone()), false);
        let (_, token) = receive(&gate, 4, false);
        assert_eq!(receive(&gate, 4, true).0, Verdict::AcknowledgeWith { epoch: 1 });
        gate.committed(&[token]);
        assert_eq!(queue.sent(), [4]);
    }
}
