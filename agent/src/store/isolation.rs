//! A message that ends the process is found and set aside.
//!
//! A start notes the cursor that it found. When the start before it found the same one, the messages behind it may be what
//! ended the program: they are normalized one at a time, each with a mark of its position that is durable before. A mark
//! that is still there at a start names the message that was being normalized when the process ended. Found three times for
//! the same message it is no chance (somebody pulled the plug): the message becomes a dead letter and is not read again.
//!
//! A sender whose acknowledgement did not leave before the end sends the message again, under a new position, so a message
//! is recognised by its content too: each copy of one that was found is set aside without ending the process once more.
//!
//! A mark is synced when it is set and not when it is cleared: the end of a process keeps what was written, so the next
//! start does not find the mark of a message that was through. After a power cut it may.

use super::{Store, StoreError};
use crate::message::{Message, Position, StoredMessage};
use ring::digest;
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

/// Row of `meta` that holds the notes of the starts.
const NOTES: &str = "isolation";
/// Row of `meta` that holds the mark.
const MARK: &str = "normalizing";
/// Messages that the second start normalizes one at a time; each further one twice as many, as the cursor that was stored
/// may be far behind the message that ends the process.
const FIRST_CAREFUL: u64 = 1_024;

/// Ends during the same message that make it the cause.
const ENDS: u32 = 3;

/// What starts note about the cursor that they find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    cursor: Position,
    /// Starts that found it.
    starts: u32,
    /// The message whose mark was found last, and how often in a row.
    #[serde(default)]
    suspect: Option<(Position, u32)>,
    /// Messages that ended the process.
    killers: Vec<Killer>,
}

/// A message that ended the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killer {
    /// Where it stands.
    pub position: Position,
    /// SHA-256 of what is normalized of it, in hexadecimal; copies have the same. None when the journal did not give it.
    content: Option<String>,
}

/// How a start treats the messages behind the cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Messages up to this position are normalized one at a time, marked; 0 when none.
    pub careful_until: Position,
    /// Messages that ended the process: neither they nor their copies are read again.
    pub killers: Vec<Killer>,
}

impl Isolation {
    /// Whether this message, or one like it, ended the process.
    pub fn holds(&self, stored: &StoredMessage) -> bool {
        if self.killers.is_empty() {
            return false;
        }
        let content = content(&stored.message);
        self.killers
            .iter()
            .any(|killer| killer.position == stored.position || killer.content.as_ref() == Some(&content))
    }
}

/// SHA-256 of what the normalization sees, but for the time.
fn content(message: &Message) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(bytes);
    };
    add(&message.source.0.to_le_bytes());
    add(message.topic.as_deref().unwrap_or_default().as_bytes());
    add(message.device_id.as_deref().unwrap_or_default().as_bytes());
    for (name, value) in &message.properties {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    add(message.payload.bytes());
    crate::packs::hexadecimal(context.finish().as_ref())
}

impl Store {
    /// Notes a start that found the normalizing cursor at `cursor`.
    pub(super) fn note_start(&mut self, cursor: Position) -> Result<Isolation, StoreError> {
        let text: Option<String> = self.meta_text(NOTES)?;
        let mut notes: Notes = text
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let mark: Option<i64> = self
            .connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [MARK], |row| row.get(0))
            .optional()?;
        let mark = mark.map(|mark| mark as u64).filter(|mark| *mark > cursor);
        // Rows may range over it as long as the journal holds it, so it is remembered that long.
        let oldest = self.segments.first().map_or(cursor + 1, |segment| segment.first);
        notes.killers.retain(|killer| killer.position >= oldest);
        let waiting = self.next_position.saturating_sub(cursor + 1);
        if waiting == 0 || notes.cursor != cursor {
            notes.starts = 0;
            notes.cursor = cursor;
        }
        notes.starts = notes.starts.saturating_add(u32::from(waiting > 0));
        if let Some(position) = mark {
            let before = notes.suspect.filter(|(suspect, _)| *suspect == position);
            let ends = before.map_or(0, |(_, ends)| ends) + 1;
            notes.suspect = (ends < ENDS).then_some((position, ends));
            if ends >= ENDS {
                notes.killers.push(Killer {
                    position,
                    content: self.content_at(position),
                });
            }
        }
        let careful_until = match (mark, notes.starts) {
            // Progress past it ends the careful mode.
            (Some(marked), _) => marked,
            (None, 0 | 1) => 0,
            (None, starts) => {
                let messages = FIRST_CAREFUL << (starts - 2).min(32);
                cursor + messages.min(waiting)
            }
        };
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM meta WHERE key = ?1", [MARK])?;
        let text = serde_json::to_string(&notes).map_err(std::io::Error::from)?;
        transaction.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)",
            [NOTES, &text],
        )?;
        transaction.commit()?;
        Ok(Isolation {
            careful_until,
            killers: notes.killers,
        })
    }

    fn content_at(&self, position: Position) -> Option<String> {
        let batch = self.read_from(position, 1).ok()?;
        let stored = batch.messages.iter().find(|stored| stored.position == position)?;
        Some(content(&stored.message))
    }

    /// What is known, for a command while the service is down: that is no start.
    pub(super) fn known_killers(&self) -> Result<Isolation, StoreError> {
        let text: Option<String> = self.meta_text(NOTES)?;
        let notes: Option<Notes> = text.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Isolation {
            careful_until: 0,
            killers: notes.unwrap_or_default().killers,
        })
    }

    /// Marks the message at `position` as the one that is being normalized. When it returns, a start finds the mark.
    ///
    /// # Errors
    /// SQLite's.
    pub fn mark(&mut self, position: Position) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
            .execute(rusqlite::params![MARK, position as i64])?;
        Ok(())
    }

    /// Clears the mark: the message is through. Not synced (see above); a later commit syncs it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn clear_mark(&mut self) -> Result<(), StoreError> {
        let synchronous: i64 = self
            .connection
            .query_row("PRAGMA synchronous", [], |row| row.get(0))?;
        // Checkpoints sync with NORMAL too, commits do not.
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        let cleared = self
            .connection
            .prepare_cached("DELETE FROM meta WHERE key = ?1")
            .and_then(|mut statement| statement.execute([MARK]));
        self.connection.pragma_update(None, "synchronous", synchronous)?;
        cleared?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Changes;
    use super::super::check::tests::message;
    use super::*;
    use std::path::Path;

    fn start(folder: &Path) -> (Store, Isolation) {
        let (store, recovered) = Store::open(folder).unwrap();
        (store, recovered.isolation)
    }

    fn filled(folder: &Path, messages: u64) {
        let (mut store, _) = start(folder);
        let batch: Vec<_> = (0..messages).map(message).collect();
        store.append(&batch, &[], None, 0, 0).unwrap();
    }

    fn careful(until: Position) -> Isolation {
        Isolation {
            careful_until: until,
            killers: Vec::new(),
        }
    }

    /// The process ended as often during this message as makes it the cause.
    fn ended_at(folder: &Path, position: Position) {
        for _ in 0..ENDS {
            let (mut store, isolation) = start(folder);
            assert!(!positions(&isolation).contains(&position), "too early");
            store.mark(position).unwrap();
        }
    }

    fn positions(isolation: &Isolation) -> Vec<Position> {
        isolation.killers.iter().map(|killer| killer.position).collect()
    }

    fn progress(store: &mut Store, cursor: Position) {
        let mut changes = Changes::default();
        changes.progress.cursor = cursor;
        store.commit_progress(&changes, 0).unwrap();
    }

    #[test]
    fn the_second_start_without_progress_is_careful_and_each_further_one_for_longer() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 2_500);
        for until in [0, 1_024, 2_048, 2_500] {
            assert_eq!(start(folder.path()).1, careful(until));
        }
        progress(&mut start(folder.path()).0, 7);
        for until in [0, 1_031] {
            assert_eq!(start(folder.path()).1, careful(until));
        }
    }

    #[test]
    fn starts_with_nothing_to_normalize_are_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 3);
        progress(&mut start(folder.path()).0, 3);
        for _ in 0..4 {
            assert_eq!(start(folder.path()).1, careful(0));
        }
        let (mut store, _) = start(folder.path());
        store.append(&[message(4)], &[], None, 0, 0).unwrap();
        drop(store);
        assert_eq!(start(folder.path()).1, careful(0));
        assert_eq!(start(folder.path()).1, careful(4));
    }

    #[test]
    fn a_message_whose_mark_is_found_is_remembered_as_long_as_the_journal_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 9);
        ended_at(folder.path(), 4);
        let (store, found) = start(folder.path());
        assert_eq!((found.careful_until, positions(&found)), (4, vec![4]));
        drop(store);
        // The cursor was not stored when the next one ended the process.
        ended_at(folder.path(), 6);
        let (mut store, isolation) = start(folder.path());
        assert_eq!(positions(&isolation), [4, 6]);
        progress(&mut store, 5);
        drop(store);
        assert_eq!(positions(&start(folder.path()).1), [4, 6]);
        progress(&mut start(folder.path()).0, 6);
        let past = start(folder.path()).1;
        assert_eq!((past.careful_until, positions(&past)), (0, vec![4, 6]));
    }

    #[test]
    fn a_copy_of_a_message_that_ended_the_process_is_recognised_under_its_new_position() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 9);
        ended_at(folder.path(), 4);
        let (mut store, isolation) = start(folder.path());
        let copy = store.read_from(4, 1).unwrap().messages.swap_remove(0).message;
        store
            .append(
                &[(copy, crate::message::RevisionId(1)), message(100)],
                &[],
                None,
                0,
                0,
            )
            .unwrap();
        let stored = store.read_from(1, usize::MAX).unwrap().messages;
        let held: Vec<_> = stored
            .iter()
            .filter(|s| isolation.holds(s))
            .map(|s| s.position)
            .collect();
        assert_eq!(held, [stored[3].position, stored[9].position], "and no other");
        assert_eq!(held, [4, 10]);
    }

    #[test]
    fn a_mark_that_was_cleared_or_passed_accuses_nobody_and_commits_are_synced_again() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 9);
        let (mut store, _) = start(folder.path());
        store.mark(2).unwrap();
        store.clear_mark().unwrap();
        let synchronous: i64 = store
            .connection
            .query_row("PRAGMA synchronous", [], |row| row.get(0))
            .unwrap();
        assert_eq!(synchronous, 2);
        drop(store);
        let (mut store, isolation) = start(folder.path());
        assert!(isolation.killers.is_empty());
        store.mark(3).unwrap();
        progress(&mut store, 3);
        drop(store);
        assert_eq!(start(folder.path()).1, careful(0));
    }
}
