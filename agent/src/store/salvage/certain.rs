//! Which rows of the tables that are copied can be believed.
//!
//! A row counts when its checksum fits (rows of versions before them have none), it looks like one of its table and what it
//! holds can be read. Most rows stand for themselves: a lost
//! one beside them changes nothing about them. **Associations do not**: of two entries of a device the one that was entered
//! last holds, so that an entry may have been ended or covered by one that is lost. Entries that are newer than everything
//! that is lost hold whatever was lost; all others are left out, and a reading of theirs is never sent by half of a history.
//!
//! A table whose rows are all good and are not those that it should have (a page of an earlier time, a root that leads
//! elsewhere) says nothing about what is lost: none of its rows counts. Corrections do: what is left to be corrected stays
//! right, whatever else there was.

use super::super::checked_rows;
use super::super::vault::Vault;
use super::record::{Row, Value};
use super::shapes;
use super::tables::{Table, Tables};
use crate::associations::Record;
use crate::{forward, timekeeping};
use rusqlite::types::ValueRef;
use std::collections::HashMap;

/// What the store said about its rows.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Rows without a checksum are damaged ones, not of an older version.
    has_checksums: bool,
    /// Number of rows and sum of their checksums, by table, where that can be read.
    sums: HashMap<String, (i64, i64)>,
}

impl Proof {
    pub(super) fn of(tables: &Tables<'_>) -> Proof {
        let rows = tables.table("row_sum").unwrap_or_default().rows.into_iter();
        let sums = rows.filter_map(|(_, row)| {
            let number = |at: usize| row.get(at).and_then(Value::integer);
            let sums = checked_rows::sums(number(1), number(2), number(3))?;
            Some((row.first()?.text()?.to_owned(), sums))
        });
        let has_column = |table: &checked_rows::Table| {
            let rows = tables.table(table.name).unwrap_or_default().rows;
            rows.iter().any(|(_, row)| row.len() > table.columns.len())
        };
        Proof {
            sums: sums.collect(),
            has_checksums: tables.roots.contains_key("row_sum")
                || checked_rows::TABLES.iter().any(has_column),
        }
    }

    /// Whether the store was of a version that has checksums.
    pub(super) fn has_checksums(&self) -> bool {
        self.has_checksums
    }

    /// Whether a row is what was written, as far as that can be told.
    pub(super) fn holds(&self, name: &str, (number, row): &Row) -> bool {
        let Some(table) = checked_rows::table(name) else {
            return true;
        };
        let crc = match row.get(table.columns.len()) {
            None | Some(Value::Null) => return !self.has_checksums,
            Some(crc) => crc.integer(),
        };
        let is_numbered = table.columns.first() == Some(&"id");
        let values = row
            .iter()
            .take(table.columns.len())
            .enumerate()
            .map(|(at, value)| {
                Some(match value {
                    Value::Null if at == 0 && is_numbered => ValueRef::Integer(*number),
                    Value::Null => ValueRef::Null,
                    Value::Integer(number) => ValueRef::Integer(*number),
                    Value::Text(text) => ValueRef::Text(text.as_bytes()),
                    Value::Blob(bytes) => ValueRef::Blob(bytes),
                    // In none of these tables.
                    Value::Real => return None,
                })
            });
        let values: Option<Vec<ValueRef<'_>>> = values.collect();
        values.is_some_and(|values| crc == Some(checked_rows::checksum(name, values.into_iter())))
    }

    /// Whether rows are gone, or others than were written last, without anything that shows which.
    pub(super) fn is_short(&self, name: &str, table: &Table) -> bool {
        let Some((count, sum)) = self.sums.get(name) else {
            return false;
        };
        let crc = |row: &Row| row.1.last().and_then(Value::integer).unwrap_or_default();
        let is_damaged = !table.lost.is_empty() || !table.rows.iter().all(|row| self.holds(name, row));
        let found = table
            .rows
            .iter()
            .fold(0_i64, |sum, row| sum.wrapping_add(crc(row)));
        !is_damaged && (table.rows.len() as i64, found) != (*count, *sum)
    }
}

/// The rows of a table that can be believed, without their checksums, and how many cannot. With a log that is damaged the
/// newest entries may be behind the damage.
pub(super) fn rows(
    name: &str,
    table: Table,
    vault: &Vault,
    proof: &Proof,
    log_is_whole: bool,
) -> (Vec<Row>, u64) {
    let found = table.rows.len() as u64;
    let is_good =
        |row: &Row| proof.holds(name, row) && shapes::fits(name, &row.1) && can_be_read(name, &row.1, vault);
    let is_short = name != "correction" && proof.is_short(name, &table);
    let mut rows = table.rows;
    if is_short {
        rows.clear();
    } else if name == "association" {
        // Its number may be what changed: what comes behind it in the tree was entered after it.
        if let Some(last) = rows.iter().rposition(|row| !proof.holds(name, row)) {
            rows.drain(..=last);
        }
        let of_lost = table.lost.iter().map(|(_, last)| *last);
        let of_bad = rows.iter().filter(|row| !is_good(row)).map(|(number, _)| *number);
        let of_log = (!log_is_whole).then_some(i64::MAX);
        let lost_to = of_lost.chain(of_bad).chain(of_log).max();
        rows.retain(|(number, _)| lost_to.is_none_or(|last| *number > last));
    } else {
        rows.retain(is_good);
    }
    if let Some(table) = checked_rows::table(name) {
        rows.iter_mut()
            .for_each(|(_, row)| row.truncate(table.columns.len()));
    }
    let left_out = found - rows.len() as u64;
    (rows, left_out)
}

fn can_be_read(name: &str, row: &[Value], vault: &Vault) -> bool {
    let text = |column: &str, at: usize| match row.get(at) {
        Some(Value::Text(text)) => vault.open_text(&format!("{name}.{column}"), text.clone()).ok(),
        _ => None,
    };
    let is_readable =
        |column: &str, at: usize| row.get(at) == Some(&Value::Null) || text(column, at).is_some();
    let number = |at: usize| row.get(at).and_then(Value::integer);
    match name {
        "association" => {
            let ends_later = number(4).zip(number(5)).is_none_or(|(from, to)| from < to);
            let device = text("device", 1).is_some_and(|device| !device.trim().is_empty());
            device && is_readable("patient", 2) && is_readable("encounter", 3) && ends_later
        }
        "correction" => {
            text("device", 2).is_some() && is_readable("patient_before", 5) && is_readable("patient_after", 6)
        }
        "sighting" => {
            let record = text("record", 2).and_then(|text| serde_json::from_str::<Record>(&text).ok());
            text("device", 1).is_some() && record.is_some()
        }
        "ledger" => is_readable("device", 3) && number(7).is_some_and(|count| count >= 0),
        "sent_period" => {
            let memory = row.get(2).and_then(Value::blob);
            let memory = memory.and_then(|memory| vault.open_bytes("sent_period.memory", memory).ok());
            text("observation", 1).is_some() && memory.is_some_and(|memory| forward::is_sent_memory(&memory))
        }
        "device_clock" => {
            let state = text("state", 1).and_then(|state| timekeeping::device::carried_over(&state, 0));
            text("device", 0).is_some() && state.is_some()
        }
        _ => true,
    }
}
