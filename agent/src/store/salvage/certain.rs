//! Which rows of the tables that are copied can be believed.
//!
//! A row counts when it looks like one of its table and what it holds can be read. Most rows stand for themselves: a lost
//! one beside them changes nothing about them. **Associations do not**: of two entries of a device the one that was entered
//! last holds, so that an entry may have been ended or covered by one that is lost. Entries that are newer than everything
//! that is lost hold whatever was lost; all others are left out, and a reading of theirs is never sent by half of a history.

use super::super::vault::Vault;
use super::record::{Row, Value};
use super::shapes;
use super::tables::Table;
use crate::associations::Record;
use crate::{forward, timekeeping};

/// The rows of a table that can be believed, and how many cannot. With a log that is damaged the newest entries may be
/// behind the damage.
pub(super) fn rows(name: &str, table: Table, vault: &Vault, log_is_whole: bool) -> (Vec<Row>, u64) {
    let found = table.rows.len() as u64;
    let is_good = |row: &Row| shapes::fits(name, &row.1) && can_be_read(name, &row.1, vault);
    let mut rows = table.rows;
    if name == "association" {
        let of_lost = table.lost.iter().map(|(_, last)| *last);
        let of_bad = rows.iter().filter(|row| !is_good(row)).map(|(number, _)| *number);
        let of_log = (!log_is_whole).then_some(i64::MAX);
        let lost_to = of_lost.chain(of_bad).chain(of_log).max();
        rows.retain(|(number, _)| lost_to.is_none_or(|last| *number > last));
    } else {
        rows.retain(is_good);
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
