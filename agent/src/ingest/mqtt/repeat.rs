//! The duplicate rule. A broker that has not seen our PUBACK delivers the message again, marked DUP, after the connection
//! came back. It is acknowledged and not stored again only where that is provably safe:
//!
//! 1. The session was resumed: a new session starts with an empty memory.
//! 2. The message equals the last one received under its packet id. A broker may not use an id again before its PUBACK,
//!    so that this can only be the same message, unless
//! 3. the earlier one's PUBACK may have left: then the broker may have used the id again, for a message that happens to
//!    have the same bytes. Only a broker that is seen to count its ids up excludes that.
//!
//! In doubt the message is stored and marked a possible repeat: twice is better than never.

use crate::message::{Message, PayloadKind};
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};

/// A message of the journal as the duplicate rule needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPacket {
    /// MQTT packet identifier.
    pub packet_id: u16,
    /// Number of the MQTT session.
    pub session: u32,
    /// Hash of topic and payload.
    pub hash: u64,
    /// It was stored although it was a redelivery.
    pub possible_repeat: bool,
}

impl StoredPacket {
    /// What the duplicate rule needs of a stored message; none when it came without a packet id.
    pub fn of(message: &Message) -> Option<StoredPacket> {
        let token = message.ack.filter(|token| token.packet_id != 0)?;
        let topic = message.topic.as_deref().unwrap_or_default();
        Some(StoredPacket {
            packet_id: token.packet_id,
            session: token.session,
            hash: packet_hash(topic.as_bytes(), message.payload.bytes(), message.kind),
            possible_repeat: message.possible_repeat,
        })
    }
}

/// Hash of a packet, the same for what came and for what the journal holds of it. Stays within one build of the program.
pub(super) fn packet_hash(topic: &[u8], payload: &[u8], kind: PayloadKind) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_usize(topic.len());
    hasher.write(topic);
    match kind {
        PayloadKind::Whole => hasher.write(payload),
        PayloadKind::Truncated { length, crc } => {
            hasher.write_u64(length);
            hasher.write_u32(crc);
        }
    }
    hasher.finish()
}

/// What to do with a packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Hand it on.
    Store {
        /// It may have been stored before.
        possible_repeat: bool,
    },
    /// It is stored already: acknowledge it.
    Acknowledge,
    /// Its first copy, which came on connection `epoch`, waits for its commit: acknowledge it with that one.
    AcknowledgeWith {
        /// Connection of the first copy.
        epoch: u64,
    },
}

/// Acknowledged packets that are remembered: their PUBACKs may be lost in the buffers of a connection that breaks. With those
/// that wait for their commit they fit half a table of 8192 places, which grows when it is fuller: 300 KB for each source.
const REMEMBERED: usize = 3072;

struct Packet {
    hash: u64,
    epoch: u64,
    /// Counts packets; tells whether an entry of the order is about this one.
    serial: u32,
    committed: bool,
    may_be_acknowledged: bool,
}

/// The last packets of the current session.
pub(super) struct PacketMemory {
    session: u32,
    packets: HashMap<u16, Packet>,
    order: VecDeque<(u16, u32)>,
    capacity: usize,
    unacknowledged: usize,
    serial: u32,
    counting: Counting,
}

impl PacketMemory {
    /// Continues from the journal's last messages of this source, oldest first.
    pub(super) fn resume(window: u16, stored: &[StoredPacket]) -> PacketMemory {
        let session = stored.iter().map(|packet| packet.session).max().unwrap_or(1);
        let mut memory = PacketMemory {
            session,
            packets: HashMap::new(),
            order: VecDeque::new(),
            capacity: usize::from(window).saturating_mul(4).max(REMEMBERED),
            unacknowledged: 0,
            serial: 0,
            counting: Counting::new(window),
        };
        for packet in stored.iter().filter(|packet| packet.session == session) {
            memory.counting.saw(packet.packet_id, packet.possible_repeat);
            memory.insert(packet.packet_id, packet.hash, 0);
            memory.committed(packet.packet_id, 0);
            // What an earlier process sent is not known.
            memory.acknowledged(packet.packet_id);
        }
        memory
    }

    /// Number of the current session.
    pub(super) fn session(&self) -> u32 {
        self.session
    }

    /// The broker has no session any more: ids mean other messages from now on.
    pub(super) fn new_session(&mut self) {
        self.session = self.session.saturating_add(1);
        self.packets.clear();
        self.order.clear();
        self.unacknowledged = 0;
        self.counting.last = None;
    }

    /// Packets that wait for their commit will not get to it.
    pub(super) fn forget_uncommitted(&mut self) {
        self.packets.retain(|_, packet| packet.committed);
        let unacknowledged = self.packets.values().filter(|packet| !packet.may_be_acknowledged);
        self.unacknowledged = unacknowledged.count();
    }

    /// Judges a packet that came on connection `epoch` and remembers it.
    pub(super) fn judge(&mut self, packet_id: u16, hash: u64, redelivered: bool, epoch: u64) -> Verdict {
        if !redelivered {
            self.counting.saw(packet_id, false);
            self.insert(packet_id, hash, epoch);
            return Verdict::Store {
                possible_repeat: false,
            };
        }
        let verdict = match self.packets.get(&packet_id) {
            Some(known) if known.hash != hash => Verdict::Store {
                possible_repeat: false,
            },
            Some(known) if !known.committed => Verdict::AcknowledgeWith { epoch: known.epoch },
            Some(known) if !known.may_be_acknowledged || self.counting.excludes_reuse(packet_id) => {
                Verdict::Acknowledge
            }
            Some(_) => Verdict::Store {
                possible_repeat: true,
            },
            None => Verdict::Store {
                possible_repeat: !self.counting.is_next(packet_id),
            },
        };
        self.counting.saw(packet_id, true);
        if matches!(verdict, Verdict::Store { .. }) {
            self.insert(packet_id, hash, epoch);
        }
        verdict
    }

    /// The packet that came on connection `epoch` is committed.
    pub(super) fn committed(&mut self, packet_id: u16, epoch: u64) {
        if let Some(packet) = self.packets.get_mut(&packet_id)
            && packet.epoch == epoch
        {
            packet.committed = true;
        }
    }

    /// A PUBACK may have left.
    pub(super) fn acknowledged(&mut self, packet_id: u16) {
        if let Some(packet) = self.packets.get_mut(&packet_id)
            && !packet.may_be_acknowledged
        {
            packet.may_be_acknowledged = true;
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
        }
    }

    fn insert(&mut self, packet_id: u16, hash: u64, epoch: u64) {
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        self.unacknowledged += 1;
        let earlier = self.packets.insert(
            packet_id,
            Packet {
                hash,
                epoch,
                serial,
                committed: false,
                may_be_acknowledged: false,
            },
        );
        if earlier.is_some_and(|packet| !packet.may_be_acknowledged) {
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
        }
        self.order.push_back((packet_id, serial));
        while self.order.len() > self.capacity + self.unacknowledged
            && let Some((oldest, serial)) = self.order.front()
        {
            match self.packets.get(oldest) {
                // It will come again when the connection is lost, however many there are.
                Some(packet) if packet.serial == *serial && !packet.may_be_acknowledged => return,
                Some(packet) if packet.serial == *serial => drop(self.packets.remove(oldest)),
                _ => {}
            }
            self.order.pop_front();
        }
    }
}

/// Whether the broker is seen to count its packet ids up, as mosquitto does, or takes free ones again. A broker that takes
/// free ids again never climbs above its window without a step back.
struct Counting {
    window: u16,
    last: Option<u16>,
    /// Packets in a row whose id was a little above the one before.
    streak: u32,
    /// Highest id in the streak.
    highest: u16,
}

/// Steps in a row before an id above the window counts as a proof.
const FEW_STEPS: u32 = 20;

/// A larger step up is no counting; ids of messages that expired at the broker are left out.
const LARGEST_STEP: u32 = 1024;

/// Ids go from 1 to 65535 and start again; up to here an id is behind or ahead of another one.
const HALF_ROUND: u32 = 32_768;

impl Counting {
    fn new(window: u16) -> Counting {
        Counting {
            window: window.max(1),
            last: None,
            streak: 0,
            highest: 0,
        }
    }

    /// How far `id` is above the last one.
    fn above_last(&self, id: u16) -> Option<u32> {
        let (id, last) = (
            u32::from(id).saturating_sub(1),
            u32::from(self.last?).saturating_sub(1),
        );
        Some((id + 65_535 - last) % 65_535)
    }

    fn saw(&mut self, id: u16, redelivered: bool) {
        match self.above_last(id) {
            Some(1..=LARGEST_STEP) => {
                self.streak = self.streak.saturating_add(1);
                self.highest = self.highest.max(id);
            }
            // What is delivered again is behind, naturally.
            Some(_) if redelivered => return,
            Some(_) => (self.streak, self.highest) = (0, 0),
            None => {}
        }
        self.last = Some(id);
    }

    fn is_proven(&self) -> bool {
        let window = u32::from(self.window);
        self.streak >= (2 * window).max(FEW_STEPS)
            || (self.streak >= FEW_STEPS && u32::from(self.highest) > window)
    }

    /// Whether `id` cannot have been used again: the broker counts up and is not half a round further.
    fn excludes_reuse(&self, id: u16) -> bool {
        let below = self.above_last(id).map(|above| (65_535 - above) % 65_535);
        self.is_proven() && below.is_some_and(|below| below < HALF_ROUND)
    }

    /// Whether `id` was certainly never received: the broker counts up and has not been there yet.
    fn is_next(&self, id: u16) -> bool {
        self.is_proven() && matches!(self.above_last(id), Some(1..HALF_ROUND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: Verdict = Verdict::Store {
        possible_repeat: false,
    };
    const IN_DOUBT: Verdict = Verdict::Store {
        possible_repeat: true,
    };

    fn memory() -> PacketMemory {
        PacketMemory::resume(10, &[])
    }

    #[test]
    fn a_redelivery_before_the_commit_is_acknowledged_with_its_first_copy() {
        let mut memory = memory();
        assert_eq!(memory.judge(5, 1, false, 1), STORE);
        assert_eq!(memory.judge(5, 1, true, 2), Verdict::AcknowledgeWith { epoch: 1 });
        assert_eq!(memory.judge(5, 1, true, 3), Verdict::AcknowledgeWith { epoch: 1 });
    }

    #[test]
    fn a_redelivery_after_the_commit_is_recognised_when_no_puback_left() {
        let mut memory = memory();
        memory.judge(5, 1, false, 1);
        memory.committed(5, 1);
        assert_eq!(memory.judge(5, 1, true, 2), Verdict::Acknowledge);
        memory.acknowledged(5);
        assert_eq!(memory.judge(5, 1, true, 3), IN_DOUBT, "its PUBACK may have left");
    }

    #[test]
    fn another_message_under_the_same_id_is_stored() {
        let mut memory = memory();
        memory.judge(5, 1, false, 1);
        memory.committed(5, 1);
        assert_eq!(memory.judge(5, 2, true, 2), STORE);
        assert_eq!(memory.judge(6, 2, true, 2), IN_DOUBT, "an id never seen");
    }

    #[test]
    fn a_new_session_forgets_all_ids() {
        let mut memory = memory();
        memory.judge(5, 1, false, 1);
        memory.committed(5, 1);
        memory.new_session();
        assert_eq!(memory.session(), 2);
        assert_eq!(memory.judge(5, 1, true, 2), IN_DOUBT);
    }

    #[test]
    fn a_broker_that_counts_up_is_believed_also_when_the_puback_left() {
        let mut memory = memory();
        for id in 1..=30 {
            memory.judge(id, u64::from(id), false, 1);
            memory.committed(id, 1);
            memory.acknowledged(id);
        }
        assert_eq!(memory.judge(25, 25, true, 2), Verdict::Acknowledge);
        assert_eq!(memory.judge(31, 31, true, 2), STORE, "ahead of all seen ids");
        assert_eq!(
            memory.judge(5, 5, true, 2),
            Verdict::Acknowledge,
            "not half a round behind"
        );
        assert_eq!(
            memory.judge(3, 99, false, 2),
            STORE,
            "a step back: it takes free ids again"
        );
        assert_eq!(memory.judge(26, 26, true, 3), IN_DOUBT);
    }

    #[test]
    fn counting_up_wraps_from_65535_to_1() {
        let mut memory = memory();
        for step in 0..40_u16 {
            let id = if step < 20 { 65_516 + step } else { step - 19 };
            memory.judge(id, 7, false, 1);
            memory.committed(id, 1);
            memory.acknowledged(id);
        }
        assert_eq!(memory.judge(10, 7, true, 2), Verdict::Acknowledge);
        assert_eq!(memory.judge(65_535, 7, true, 2), Verdict::Acknowledge);
    }

    #[test]
    fn the_journal_shows_a_broker_that_counts_up_after_a_restart() {
        let stored: Vec<_> = (1..=40)
            .map(|packet_id| StoredPacket {
                packet_id,
                session: 3,
                hash: u64::from(packet_id),
                possible_repeat: false,
            })
            .collect();
        let mut memory = PacketMemory::resume(10, &stored);
        assert_eq!(memory.session(), 3);
        assert_eq!(memory.judge(38, 38, true, 1), Verdict::Acknowledge);
        let mut few = PacketMemory::resume(10, &stored[..5]);
        assert_eq!(few.judge(4, 4, true, 1), IN_DOUBT, "too few messages to know");
        assert_eq!(few.judge(5, 99, true, 1), STORE);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut memory = memory();
        for id in 1..=65_535_u16 {
            memory.judge(id, 0, false, 1);
            memory.acknowledged(id);
        }
        assert!(memory.packets.len() <= REMEMBERED + 1);
        assert!(memory.order.len() <= REMEMBERED + 1);
        // What is unacknowledged stays: a broker without a window delivers all of it again.
        for id in 1..=10_000 {
            memory.judge(id, 0, false, 1);
        }
        assert_eq!(memory.judge(1, 0, true, 2), Verdict::AcknowledgeWith { epoch: 1 });
    }
}
