//! What sources remember over restarts: births of edge nodes, announced entities ([`crate::ingest::payload`]).
//!
//! Invariants:
//! 1. What a message taught is on the medium before the message is: names are never older than the journal.
//! 2. A row is written only when it changed: rebirths that say the same cost nothing.

use super::{Store, StoreError, codec, commit};
use crate::ingest::payload::Remembered;
use crate::message::{Message, SourceId};
use rusqlite::{TransactionBehavior, params};
use std::collections::{HashMap, HashSet};

/// Compressed bytes of the journal that are looked through for the last messages.
const LOOK_BACK_BYTES: usize = 4 << 20;

impl Store {
    /// Writes what sources have learnt; it survives a power cut when this returns.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is stored, and the same call may be made again.
    pub fn remember(&mut self, learnt: &[Remembered]) -> Result<(), StoreError> {
        if learnt.is_empty() {
            return Ok(());
        }
        let vault = self.codec.vault();
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for one in learnt {
            transaction
                .prepare_cached(
                    "INSERT INTO source_memory (source, key, text) VALUES (?1, ?2, ?3)
                     ON CONFLICT (source, key) DO UPDATE SET text = excluded.text WHERE text <> excluded.text",
                )?
                .execute(params![
                    one.source.0,
                    vault.text("source_memory.key", &one.key),
                    vault.text("source_memory.text", &one.text)
                ])?;
        }
        commit(transaction)?;
        Ok(())
    }

    /// What a source has learnt, by key.
    ///
    /// # Errors
    /// SQLite's.
    pub fn recalled(&self, source: SourceId) -> Result<Vec<(String, String)>, StoreError> {
        let mut rows = self
            .connection
            .prepare("SELECT key, text FROM source_memory WHERE source = ?1 ORDER BY key")?;
        let vault = self.codec.vault();
        let rows = rows.query_map([source.0], |row| {
            let key = vault.read_text("source_memory.key", row.get(0)?)?;
            Ok((key, vault.read_text("source_memory.text", row.get(1)?)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The last message of a source for each of `keys`, as far as the newest part of the journal holds one; `key_of` says to which a
    /// message belongs.
    ///
    /// # Errors
    /// [`StoreError`] when the journal cannot be read.
    pub fn last_messages(
        &self,
        source: SourceId,
        mut keys: HashSet<String>,
        key_of: impl Fn(&Message) -> Option<String>,
    ) -> Result<HashMap<String, Message>, StoreError> {
        let mut found = HashMap::new();
        let mut looked_through = 0;
        for segment in self.segments.iter().rev() {
            let mut rows = self.connection.prepare(&format!(
                "SELECT first, count, batch FROM journal_{} ORDER BY first DESC",
                segment.id
            ))?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let blob: Vec<u8> = row.get(2)?;
                looked_through += blob.len();
                if keys.is_empty() || looked_through > LOOK_BACK_BYTES {
                    return Ok(found);
                }
                let (first, count): (i64, i64) = (row.get(0)?, row.get(1)?);
                // What cannot be read may have been the last message: nothing older stands for it.
                let Ok(batch) = codec::decode(&self.codec.vault(), first as u64, count as u64, &blob) else {
                    return Ok(found);
                };
                for stored in batch.into_iter().rev().filter(|m| m.message.source == source) {
                    if let Some(key) = key_of(&stored.message)
                        && keys.remove(&key)
                    {
                        found.insert(key, stored.message);
                    }
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Payload, PayloadKind, RevisionId, Stamp};
    use iomt_mapping::Timestamp;

    fn message(source: u32, topic: &str, payload: &'static [u8]) -> (Message, RevisionId) {
        let message = Message {
            source: SourceId(source),
            stamp: Stamp {
                boot: 1,
                monotonic_us: 0,
                wall: Timestamp::MIN,
                trusted: false,
            },
            payload: Payload(bytes::Bytes::from_static(payload)),
            kind: PayloadKind::Whole,
            topic: Some(topic.into()),
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record: None,
            ack: None,
        };
        (message, RevisionId(0))
    }

    #[test]
    fn what_was_learnt_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let learnt = |source, text: &str| Remembered {
            source: SourceId(source),
            key: "ward3/gw7".to_owned(),
            text: text.to_owned(),
        };
        {
            let (mut store, _) = Store::open(folder.path()).unwrap();
            store.remember(&[learnt(1, "a"), learnt(2, "b")]).unwrap();
            store.remember(&[learnt(1, "c")]).unwrap();
        }
        let (store, _) = Store::open(folder.path()).unwrap();
        let of = |source| store.recalled(SourceId(source)).unwrap();
        assert_eq!(of(1), [("ward3/gw7".to_owned(), "c".to_owned())]);
        assert_eq!(of(2), [("ward3/gw7".to_owned(), "b".to_owned())]);
        assert_eq!(of(3), []);
    }

    #[test]
    fn the_last_message_of_each_key_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let batches = [
            vec![message(1, "a", b"1"), message(1, "b", b"2")],
            vec![message(1, "a", b"3"), message(2, "b", b"4")],
            vec![message(1, "c", b"5"), message(1, "a", b"6")],
        ];
        for batch in &batches {
            store.append(batch, &[], None, 0, 0).unwrap();
        }
        let keys = ["a", "b", "d"].map(str::to_owned).into();
        let found = store
            .last_messages(SourceId(1), keys, |m| m.topic.as_deref().map(str::to_owned))
            .unwrap();
        let mut found: Vec<_> = found
            .iter()
            .map(|(k, m)| (k.as_str(), m.payload.bytes()))
            .collect();
        found.sort();
        assert_eq!(found, [("a", &b"6"[..]), ("b", b"2")]);
    }
}
