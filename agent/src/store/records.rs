//! Which records of devices were committed: a meter keeps its measurements and shows them again at every look, for months,
//! and each is to become one message.
//!
//! Invariant: a record is remembered exactly when its message is committed, because both are one transaction. A crash before
//! it leaves neither, and the device shows the record again; a crash after it leaves both.

use super::{Store, StoreError, checked_rows};
use crate::message::{Message, Position, RevisionId, SourceId, UNNAMED_RECORD};
use rusqlite::types::Value;
use rusqlite::{Transaction, params};

/// Records that are remembered of a source: more than drivers know of their devices. Older ones are forgotten.
const KEPT: i64 = 10_000;
/// Records of a commit after which the oldest are looked for.
const FORGET_EVERY: u64 = 64;

/// Remembers the records of a batch that begins at `first`.
pub(super) fn remember(
    transaction: &Transaction<'_>,
    first: Position,
    batch: &[(Message, RevisionId)],
) -> rusqlite::Result<()> {
    for (position, (message, _)) in (first..).zip(batch) {
        let Some(record) = message.record.filter(|record| *record != UNNAMED_RECORD) else {
            continue;
        };
        let row = [i64::from(message.source.0), position as i64, record as i64];
        checked_rows::put(transaction, "sent_record", row.map(Value::from).to_vec())?;
        if position % FORGET_EVERY == 0 {
            forget(transaction, message.source)?;
        }
    }
    Ok(())
}

fn forget(transaction: &Transaction<'_>, source: SourceId) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM sent_record WHERE source = ?1 AND position <=
             (SELECT position FROM sent_record WHERE source = ?1 ORDER BY position DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![source.0, KEPT])
        .map(drop)
}

impl Store {
    /// The records of a source that were committed, oldest first.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when a row is not what was written: a record that is taken for another would never
    /// be stored.
    pub fn sent_records(&self, source: SourceId) -> Result<Vec<u64>, StoreError> {
        let tail = "WHERE source = ?1 ORDER BY position";
        checked_rows::read(&self.connection, "sent_record", tail, [source.0], |row| {
            row.get::<_, i64>(2).map(|record| record as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Payload, PayloadKind, Stamp};
    use iomt_mapping::Timestamp;

    fn message(source: u32, record: Option<u64>) -> (Message, RevisionId) {
        let message = Message {
            source: SourceId(source),
            stamp: Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::MIN,
                trusted: true,
            },
            payload: Payload(bytes::Bytes::from_static(b"{}")),
            kind: PayloadKind::Whole,
            topic: None,
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record,
            ack: None,
        };
        (message, RevisionId(0))
    }

    #[test]
    fn records_are_known_after_a_restart_by_source_oldest_first() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        for batch in [
            vec![message(1, Some(u64::MAX)), message(2, Some(5)), message(1, None)],
            vec![message(1, Some(3)), message(1, Some(4))],
        ] {
            store.append(&batch, &[], None, 0, 0).unwrap();
        }
        drop(store);
        let (store, _) = Store::open(folder.path()).unwrap();
        assert_eq!(store.sent_records(SourceId(1)).unwrap(), [u64::MAX, 3, 4]);
        assert_eq!(store.sent_records(SourceId(2)).unwrap(), [5]);
        assert!(store.sent_records(SourceId(3)).unwrap().is_empty());
    }

    #[test]
    fn a_flood_of_records_is_bounded_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let most = u64::try_from(KEPT).unwrap() + FORGET_EVERY;
        for batch in 0..3_u64 {
            let batch: Vec<_> = (0..4500).map(|n| message(1, Some(batch * 4500 + n))).collect();
            store.append(&batch, &[], None, 0, 0).unwrap();
        }
        let kept = store.sent_records(SourceId(1)).unwrap();
        assert!(kept.len() as u64 <= most, "{}", kept.len());
        assert!(kept.len() as i64 >= KEPT, "{}", kept.len());
        assert_eq!(kept.last(), Some(&13_499));
    }
}
