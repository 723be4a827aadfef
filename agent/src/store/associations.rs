//! Who had a device: entries of the operator, what servers showed of devices, and corrections that are not done.
//!
//! An entry and the corrections that follow from it are one synced transaction of their own: whoever entered it may rely
//! on it. What servers showed rides on the next commit of progress; until then the next look finds it again.

use super::open::collect;
use super::vault::Vault;
use super::{Store, StoreError, checked_rows, doubt};
use crate::associations::{Book, Change, Entry, Planned, Record, Who};
use crate::corrections::Correction;
use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::sync::Arc;

/// What a commit of progress writes about associations.
#[derive(Clone, Debug, Default)]
pub struct AssociationChanges {
    /// Destination, device, and what the destination showed of it.
    pub sightings: Vec<(u32, Arc<str>, Record)>,
    /// New corrections.
    pub corrections: Vec<Correction>,
    /// Numbers of corrections that are done.
    pub corrections_done: Vec<i64>,
}

impl AssociationChanges {
    pub(super) fn write(&self, transaction: &Transaction<'_>, vault: &Vault) -> rusqlite::Result<()> {
        for (destination, device, record) in &self.sightings {
            let record = serde_json::to_string(record)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
            let row = vec![
                Value::from(*destination),
                Value::from(vault.text("sighting.device", device).into_owned()),
                Value::from(vault.text("sighting.record", &record).into_owned()),
            ];
            checked_rows::put(transaction, "sighting", row)?;
        }
        for correction in &self.corrections {
            write_correction(transaction, correction, vault)?;
        }
        for number in &self.corrections_done {
            transaction.execute("DELETE FROM correction WHERE id = ?1", [number])?;
        }
        Ok(())
    }
}

fn write_correction(connection: &Connection, correction: &Correction, vault: &Vault) -> rusqlite::Result<()> {
    let change = &correction.change;
    let patient = |column: &str, who: Option<&Who>| {
        Value::from(who.map(|who| vault.text(column, &who.text("Patient")).into_owned()))
    };
    let row = vec![
        Value::from(correction.number),
        Value::from(correction.destination),
        Value::from(vault.text("correction.device", &change.device).into_owned()),
        Value::from(change.from),
        Value::from(change.to),
        patient("correction.patient_before", change.before.as_ref()),
        patient("correction.patient_after", change.after.as_ref()),
        Value::from("open".to_owned()),
    ];
    checked_rows::put(connection, "correction", row)
}

fn write_entry(connection: &Connection, entry: &Entry, vault: &Vault) -> rusqlite::Result<()> {
    let who = |column: &str, who: Option<&Who>, kind: &str| {
        Value::from(who.map(|who| vault.text(column, &who.text(kind)).into_owned()))
    };
    let row = vec![
        Value::from(entry.number),
        Value::from(vault.text("association.device", &entry.device).into_owned()),
        who("association.patient", entry.patient.as_ref(), "Patient"),
        who("association.encounter", entry.encounter.as_ref(), "Encounter"),
        Value::from(entry.from),
        Value::from(entry.to),
        Value::from("operator".to_owned()),
        Value::from(entry.entered),
    ];
    checked_rows::put(connection, "association", row)
}

impl Store {
    /// Everything that is known about who had which device.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when a row is not what was written.
    pub fn association_book(&self) -> Result<Book, StoreError> {
        let vault = self.codec.vault();
        let who = |kind: &'static str| move |text: String| Who::parse(kind, &text);
        let read =
            |column: &str, text: Option<String>| text.map(|text| vault.read_text(column, text)).transpose();
        let connection = &self.connection;
        let tail = "WHERE source = 'operator' ORDER BY id";
        let entries = checked_rows::read(connection, "association", tail, [], |row| {
            Ok(Entry {
                number: row.get(0)?,
                device: Arc::from(vault.read_text("association.device", row.get(1)?)?),
                patient: read("association.patient", row.get(2)?)?.map(who("Patient")),
                encounter: read("association.encounter", row.get(3)?)?.map(who("Encounter")),
                from: row.get(4)?,
                to: row.get(5)?,
                entered: row.get(7)?,
            })
        })?;
        let sightings = checked_rows::read(connection, "sighting", "", [], |row| {
            let record = vault.read_text("sighting.record", row.get(2)?)?;
            Ok((
                row.get(0)?,
                Arc::from(vault.read_text("sighting.device", row.get(1)?)?),
                serde_json::from_str(&record).ok(),
            ))
        })?;
        // What this version does not understand is looked at again on the server.
        let sightings = sightings
            .into_iter()
            .filter_map(|(destination, device, record): (u32, Arc<str>, Option<Record>)| {
                Some((destination, device, record?))
            })
            .collect();
        Ok(Book::restore(entries, sightings, self.doubt()?))
    }

    /// Corrections that are not done, in order.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when a row is not what was written.
    pub fn corrections(&self) -> Result<Vec<Correction>, StoreError> {
        let vault = self.codec.vault();
        let read =
            |column: &str, text: Option<String>| text.map(|text| vault.read_text(column, text)).transpose();
        checked_rows::read(&self.connection, "correction", "ORDER BY id", [], |row| {
            let before = read("correction.patient_before", row.get(5)?)?;
            let after = read("correction.patient_after", row.get(6)?)?;
            Ok(Correction {
                number: row.get(0)?,
                destination: row.get(1)?,
                change: Change {
                    device: Arc::from(vault.read_text("correction.device", row.get(2)?)?),
                    from: row.get(3)?,
                    to: row.get(4)?,
                    before: before.map(|text| Who::parse("Patient", &text)),
                    after: after.map(|text| Who::parse("Patient", &text)),
                },
            })
        })
    }

    /// Numbers of the destinations that the store has seen.
    ///
    /// # Errors
    /// SQLite's.
    pub fn destination_numbers(&self) -> Result<Vec<u32>, StoreError> {
        Ok(collect(
            &self.connection,
            "SELECT id FROM destination ORDER BY id",
            |row| row.get(0),
        )?)
    }

    /// Stores what an operator entered or took back, with the corrections that follow; the entry gets its number. When it
    /// returns, all of it survives a power cut.
    ///
    /// # Errors
    /// SQLite's; then nothing of it is stored.
    pub fn enter_association(
        &mut self,
        mut planned: Planned,
        corrections: &[Correction],
    ) -> Result<Planned, StoreError> {
        let vault = self.codec.vault();
        if let (Some(folder), true) = (self.folder(), planned.entry.is_some()) {
            doubt::expect_entries(&folder)?;
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(entry) = &mut planned.entry {
            entry.number = checked_rows::next_number(&transaction, "association")?;
            write_entry(&transaction, entry, &vault)?;
        }
        if let Some(gone) = &planned.retracted {
            transaction.execute("DELETE FROM association WHERE id = ?1", [gone.number])?;
        }
        if planned.is_complete {
            doubt::end(&transaction)?;
        }
        for correction in corrections {
            write_correction(&transaction, correction, &vault)?;
        }
        transaction.commit()?;
        self.statistics.committed(0);
        Ok(planned)
    }

    /// Stores a correction as it is now: it may reach further than it seemed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keep_correction(&mut self, correction: &Correction) -> Result<(), StoreError> {
        write_correction(&self.connection, correction, &self.codec.vault())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::associations::{Command, Seen, Ticks};

    fn set(device: &str, patient: &str, from: Ticks) -> Command {
        Command::Set {
            device: device.to_owned(),
            patient: Who::parse("Patient", patient),
            encounter: Some(Who::Identifier("visit 7".to_owned())),
            from: Some(from),
            to: None,
        }
    }

    #[test]
    fn entries_sightings_and_corrections_survive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let device: Arc<str> = Arc::from("band-1");
        let (mut store, _) = Store::open(folder.path()).unwrap();
        let mut book = store.association_book().unwrap();
        let seen = Seen {
            device: "d-1".to_owned(),
            version: Some("1".to_owned()),
            last_updated: Some(10),
            patient: Some("anna".to_owned()),
            asked: Some(20),
            answered: Some(21),
        };
        book.look(3, &device, &seen, None, Some(Vec::new()));
        let changes = super::super::Changes {
            associations: AssociationChanges {
                sightings: book.take_unwritten().records,
                ..AssociationChanges::default()
            },
            ..super::super::Changes::default()
        };
        store.commit_progress(&changes, 0).unwrap();
        for (number, patient, from) in [(1, "Patient/bert", 15), (2, "mrn 5", 18)] {
            let planned = book.plan(&set("band-1", patient, from), Some(30), &[3]).unwrap();
            let corrections: Vec<Correction> = planned
                .corrections
                .iter()
                .map(|(destination, change)| Correction {
                    number,
                    destination: *destination,
                    change: change.clone(),
                })
                .collect();
            let planned = store.enter_association(planned, &corrections).unwrap();
            assert_eq!(planned.entry.as_ref().unwrap().number, number);
            book.take(&planned);
        }
        drop(store);

        let mut store = Store::open_for_command(folder.path(), &crate::config::Encryption::Off).unwrap();
        let mut again = store.association_book().unwrap();
        assert_eq!(again.entries("band-1"), book.entries("band-1"));
        assert_eq!(again.record(3, &device), book.record(3, &device));
        assert_eq!(again.at(3, &device, 16), book.at(3, &device, 16));
        let corrections = store.corrections().unwrap();
        let ranges: Vec<_> = corrections
            .iter()
            .map(|one| (one.destination, one.change.from, one.change.to))
            .collect();
        assert_eq!(ranges, [(3, Some(15), None), (3, Some(18), None)]);
        assert_eq!(corrections[1].change.before, Some(Who::Id("bert".to_owned())));
        let mut wider = corrections[1].clone();
        wider.change.from = Some(11);
        store.keep_correction(&wider).unwrap();
        assert_eq!(store.corrections().unwrap()[1], wider);

        // Taken back, and a correction that is done.
        let retract = Command::Retract {
            device: "band-1".to_owned(),
        };
        let planned = again.plan(&retract, Some(50), &[3]).unwrap();
        again.take(&store.enter_association(planned, &[]).unwrap());
        let changes = super::super::Changes {
            associations: AssociationChanges {
                corrections_done: vec![1],
                ..AssociationChanges::default()
            },
            ..super::super::Changes::default()
        };
        store.commit_progress(&changes, 0).unwrap();
        assert_eq!(store.association_book().unwrap().all_entries().count(), 1);
        assert_eq!(store.corrections().unwrap().len(), 1);
    }
}
