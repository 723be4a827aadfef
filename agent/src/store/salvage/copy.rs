//! Rows of the small tables on their way from a store that was set aside into this one: with the numbers and the seals of now.

use super::super::checked_rows;
use super::super::vault::{BLOBS, TEXTS, Vault};
use super::adopt::Names;
use super::former::Former;
use super::record::{Row, Value};
use crate::timekeeping::device;
use rusqlite::Transaction;
use std::collections::BTreeMap;

/// A column on its way from one store to the other.
fn stored(value: &Value) -> rusqlite::types::Value {
    match value {
        Value::Null | Value::Real => rusqlite::types::Value::Null,
        Value::Integer(number) => (*number).into(),
        Value::Text(text) => text.clone().into(),
        Value::Blob(bytes) => bytes.clone().into(),
    }
}

/// Tables whose rows are copied by themselves, with their columns; rows of the others have a number of their own in front,
/// which is given anew.
const COLUMNS: &[(&str, &[&str])] = &[
    (
        "association",
        &[
            "id",
            "device",
            "patient",
            "encounter",
            "valid_from",
            "valid_to",
            "source",
            "entered",
        ],
    ),
    (
        "correction",
        &[
            "destination",
            "device",
            "valid_from",
            "valid_to",
            "patient_before",
            "patient_after",
            "state",
        ],
    ),
    ("sighting", &["destination", "device", "record"]),
    (
        "ledger",
        &[
            "destination",
            "source",
            "device",
            "type",
            "first",
            "last",
            "count",
            "reason",
            "wall",
        ],
    ),
    ("sent_record", &["source", "position", "record"]),
    (
        "sent_period",
        &["destination", "observation", "memory", "expires"],
    ),
    ("device_clock", &["device", "state"]),
];

/// Copies the rows that must be there before anything is forwarded; sealed columns are sealed anew. A row that names a
/// destination that has no name any more stays behind, and is counted in `left_out`. `salvage` is the number of this salvage.
pub(super) fn copy_rows(
    transaction: &Transaction<'_>,
    former: &Former,
    names: &Names,
    vault: &Vault,
    salvage: i64,
    left_out: &mut BTreeMap<String, u64>,
) -> rusqlite::Result<()> {
    let destination = |value: &Value| {
        let then = u32::try_from(value.integer()?).ok()?;
        let now = names.destinations.get(&then)?;
        Some(Value::Integer(i64::from(*now)))
    };
    let source = |value: &Value| {
        let then = u32::try_from(value.integer()?).ok()?;
        let now = names.sources.get(&then)?;
        Some(Value::Integer(i64::from(now.0)))
    };
    let or_none = |name: Option<Value>| Some(name.unwrap_or(Value::Null));
    let below = number_below(transaction, former.copied.get("association"))?;
    for (table, columns) in COLUMNS.iter().copied() {
        for (number, row) in former.copied.get(table).into_iter().flatten() {
            let mut row = row.clone();
            let without_number = row.first() == Some(&Value::Null);
            let row = match table {
                "association" => {
                    row.splice(..1, [Value::Integer(number.saturating_add(below))]);
                    Some(row)
                }
                _ if without_number => row.get(1..).map(<[Value]>::to_vec),
                _ => Some(row),
            };
            let row = row.and_then(|row| match table {
                "correction" | "sighting" | "sent_period" => replaced(&row, 0, destination),
                "ledger" => {
                    // Positions are those of the former store.
                    let row = replaced(&row, 0, |value| or_none(destination(value)))?;
                    replaced(&row, 1, |value| or_none(source(value)))
                }
                "sent_record" => record_of_now(&row, former, source),
                "device_clock" => replaced(&row, 1, |state| {
                    device::carried_over(state.text()?, salvage).map(Value::Text)
                }),
                _ => Some(row),
            });
            match row.and_then(|row| resealed(table, columns, &row, former, vault)) {
                Some(row) => insert(transaction, table, columns, &row)?,
                // A record that was only stored comes again.
                None if table == "sent_record" => {}
                None => *left_out.entry(table.to_owned()).or_default() += 1,
            }
        }
    }
    Ok(())
}

fn insert(
    transaction: &Transaction<'_>,
    table: &str,
    columns: &[&str],
    row: &[Value],
) -> rusqlite::Result<()> {
    if let Some(checked) = checked_rows::table(table) {
        let mut values: Vec<rusqlite::types::Value> = Vec::with_capacity(checked.columns.len());
        if checked.columns.len() > columns.len() {
            values.push(checked_rows::next_number(transaction, checked.name)?.into());
        }
        values.extend(row.iter().map(stored));
        return checked_rows::put_new(transaction, checked.name, values);
    }
    let marks: Vec<String> = (1..=columns.len()).map(|n| format!("?{n}")).collect();
    let sql = format!(
        "INSERT OR IGNORE INTO {table} ({}) VALUES ({})",
        columns.join(", "),
        marks.join(", ")
    );
    transaction
        .prepare_cached(&sql)?
        .execute(rusqlite::params_from_iter(row.iter().map(stored)))
        .map(drop)
}

/// What is added to the numbers of entries so that those of this store come behind them: what an operator has entered here is
/// newer than anything in a store that is taken over.
fn number_below(transaction: &Transaction<'_>, entries: Option<&Vec<Row>>) -> rusqlite::Result<i64> {
    let sql = "SELECT min(id) FROM association";
    let first: Option<i64> = transaction.query_row(sql, [], |row| row.get(0))?;
    let last = entries.into_iter().flatten().map(|(number, _)| *number).max();
    Ok(first.zip(last).map_or(0, |(first, last)| {
        first.saturating_sub(1).saturating_sub(last).min(0)
    }))
}

/// A record that its device keeps and shows again, if it was processed. One that was only stored may be lost.
fn record_of_now(
    row: &[Value],
    former: &Former,
    source: impl Fn(&Value) -> Option<Value>,
) -> Option<Vec<Value>> {
    /// In front of all positions of this store.
    const BEFORE: i64 = 1 << 60;
    let known = former.known.as_ref()?;
    let [_, Value::Integer(at), record] = row else {
        return None;
    };
    let position = match u64::try_from(*at) {
        Ok(position) if position > known.progress.cursor => return None,
        Ok(_) => at - BEFORE,
        // That store had it from one before.
        Err(_) => *at,
    };
    let source = source(row.first()?)?;
    Some(vec![source, Value::Integer(position), record.clone()])
}

/// The row with one column replaced; none when there is nothing to replace it with.
fn replaced(row: &[Value], column: usize, with: impl Fn(&Value) -> Option<Value>) -> Option<Vec<Value>> {
    let mut row = row.to_vec();
    let place = row.get_mut(column)?;
    if *place != Value::Null {
        *place = with(place)?;
    }
    Some(row)
}

/// The columns with the seals of this store instead of the former one's.
fn resealed(
    table: &str,
    columns: &[&str],
    row: &[Value],
    former: &Former,
    vault: &Vault,
) -> Option<Vec<Value>> {
    if row.len() < columns.len() {
        return None;
    }
    let mut sealed = Vec::with_capacity(columns.len());
    for (column, value) in columns.iter().zip(row) {
        let name = format!("{table}.{column}");
        sealed.push(match value {
            Value::Text(text) if TEXTS.contains(&(table, *column)) => {
                let plain = former.vault.open_text(&name, text.clone()).ok()?;
                Value::Text(vault.text(&name, &plain).into_owned())
            }
            Value::Blob(bytes) if BLOBS.contains(&(table, *column)) => {
                let plain = former.vault.open_bytes(&name, bytes).ok()?;
                Value::Blob(vault.bytes(&name, &plain).into_owned())
            }
            other => other.clone(),
        });
    }
    Some(sealed)
}
