//! Rows that say whose a reading is and when it was taken: none of them is believed that is not what was written.
//!
//! A batch of the journal has a checksum, and so have cursors and counters. An entry of the operator, a sighting, a
//! correction, the measure of a clock are rows of small tables, and flash flips bits in them too: a patient, a time or a
//! number that changed there would put readings on the wrong patient without a word.
//!
//! # Invariants
//!
//! 1. Each row has the CRC-32 of its table's name and of all its columns as they are stored, with their types and its number.
//!    Whoever writes a row writes it through [`put`].
//! 2. Each table knows how many rows it has and the sum of their checksums (`row_sum`, kept by triggers, so in the transaction
//!    of the row): an entry that is gone, a page of an earlier time, a root that leads elsewhere are found too. An entry says
//!    as much about a device by being there as by what is in it. `sent_record` has none: a record that is not remembered
//!    is stored again and becomes the same reading.
//! 3. Every row is looked at before anything of the store is used, at each reading after that, and by the check beside the
//!    intake.
//!
//! # What damage means
//!
//! The whole store is damaged: it is set aside and salvaged as any other, with the file as evidence. So there is one way only
//! in which rows that are in doubt are judged (`salvage/certain.rs`): entries count that are newer than everything that is
//! damaged, the others are left out, and messages come over with their identity. Nothing is lost by it, and nothing is
//! taken from half of a history. Where entries were lost, no server and no message may fill the gap, because the lost
//! entry may have said otherwise: readings of devices without an entry wait then, and that is said, until the operator has
//! entered them again (`doubt.rs`). To leave out the row alone and go on with the file would need the same doubt, and would
//! write into a file that is known to be damaged.
//!
//! # Encrypted stores
//!
//! The sum is taken of columns as they are stored, so of the sealed value where there is one: of the plain text it would let
//! anybody with a list of patients try which one it is. Sealed values are authenticated already; the checksum is for what
//! lies beside them (times, numbers, which row they are in) and for the mark that says that a value is sealed.
//!
//! # Flash
//!
//! 5 bytes in a row, and the page of `row_sum` in a commit that changes one. Entries and boots are rare; sightings are
//! written when a link changed, else at most every ten minutes for a device, with the progress of the loops.

use super::StoreError;
use super::codec::Damaged;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Params, Row, params_from_iter};

/// A table with checksums: its columns but the checksum, the first of them its key.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [&'static str],
    key: usize,
    /// It knows how many rows it has.
    pub(super) is_counted: bool,
}

/// All of them, with the order of columns in which [`put`] takes and [`read`] gives them.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "association",
        columns: &[
            "id",
            "device",
            "patient",
            "encounter",
            "valid_from",
            "valid_to",
            "source",
            "entered",
        ],
        key: 1,
        is_counted: true,
    },
    Table {
        name: "correction",
        columns: &[
            "id",
            "destination",
            "device",
            "valid_from",
            "valid_to",
            "patient_before",
            "patient_after",
            "state",
        ],
        key: 1,
        is_counted: true,
    },
    Table {
        name: "sighting",
        columns: &["destination", "device", "record"],
        key: 2,
        is_counted: true,
    },
    Table {
        name: "device_clock",
        columns: &["device", "state"],
        key: 1,
        is_counted: true,
    },
    Table {
        name: "boot",
        columns: &["id", "boot_id", "reference_us", "reference_wall", "given_up"],
        key: 1,
        is_counted: true,
    },
    Table {
        name: "doubt",
        columns: &["subject", "since"],
        key: 1,
        is_counted: true,
    },
    Table {
        name: "sent_record",
        columns: &["source", "position", "record"],
        key: 2,
        is_counted: false,
    },
];

/// The table of this name, where its rows have checksums.
pub(super) fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// Name of a table that has no checksums: a slip of the programmer.
fn unknown(name: &str) -> rusqlite::Error {
    rusqlite::Error::InvalidParameterName(name.to_owned())
}

/// Checksum of a row: its table and its columns as they are stored.
pub(super) fn checksum<'a>(table: &str, row: impl Iterator<Item = ValueRef<'a>>) -> i64 {
    let mut sum = crc32fast::Hasher::new();
    let mut bytes = |tag: u8, bytes: &[u8]| {
        sum.update(&[tag]);
        sum.update(&(bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
    };
    bytes(0, table.as_bytes());
    for value in row {
        match value {
            ValueRef::Null => bytes(1, &[]),
            ValueRef::Integer(number) => bytes(2, &number.to_le_bytes()),
            ValueRef::Real(number) => bytes(3, &number.to_bits().to_le_bytes()),
            ValueRef::Text(text) => bytes(4, text),
            ValueRef::Blob(blob) => bytes(5, blob),
        }
    }
    i64::from(sum.finalize())
}

fn checksum_of(table: &str, row: &[Value]) -> i64 {
    checksum(table, row.iter().map(ValueRef::from))
}

/// Writes a row with its checksum in place of the one with its key.
pub(super) fn put(connection: &Connection, name: &'static str, row: Vec<Value>) -> rusqlite::Result<()> {
    let table = table(name).ok_or_else(|| unknown(name))?;
    let sets: Vec<String> = table
        .columns
        .iter()
        .skip(table.key)
        .chain(&["crc"])
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    write(connection, table, row, &format!("UPDATE SET {}", sets.join(", ")))
}

/// Writes a row with its checksum unless there is one with its key.
pub(super) fn put_new(connection: &Connection, name: &'static str, row: Vec<Value>) -> rusqlite::Result<()> {
    let table = table(name).ok_or_else(|| unknown(name))?;
    write(connection, table, row, "NOTHING")
}

fn write(connection: &Connection, table: &Table, mut row: Vec<Value>, else_do: &str) -> rusqlite::Result<()> {
    let crc = checksum_of(table.name, &row);
    row.push(Value::Integer(crc));
    let marks: Vec<String> = (1..=row.len()).map(|n| format!("?{n}")).collect();
    let key = table.columns.get(..table.key).unwrap_or_default();
    let sql = format!(
        "INSERT INTO {} ({}, crc) VALUES ({}) ON CONFLICT ({}) DO {else_do}",
        table.name,
        table.columns.join(", "),
        marks.join(", "),
        key.join(", ")
    );
    connection
        .prepare_cached(&sql)?
        .execute(params_from_iter(row))
        .map(drop)
}

/// The number for a new row of a table whose rows are numbered, behind all others.
pub(super) fn next_number(connection: &Connection, name: &'static str) -> rusqlite::Result<i64> {
    let sql = format!("SELECT coalesce(max(id), 0) + 1 FROM {name}");
    connection.query_row(&sql, [], |row| row.get(0))
}

/// Rows of a table, each looked at; `tail` is what follows the table's name in SQL. `take` gets the columns in the order of
/// [`TABLES`].
///
/// # Errors
/// [`Damaged::Rows`] when one is not what was written; SQLite's.
pub(super) fn read<T>(
    connection: &Connection,
    name: &'static str,
    tail: &str,
    parameters: impl Params,
    mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let table = table(name).ok_or_else(|| unknown(name))?;
    let sql = format!("SELECT {}, crc FROM {name} {tail}", table.columns.join(", "));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(parameters)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        if !is_as_written(table, row)? {
            return Err(Damaged::Rows(name).into());
        }
        all.push(take(row)?);
    }
    Ok(all)
}

fn is_as_written(table: &Table, row: &Row<'_>) -> rusqlite::Result<bool> {
    let count = table.columns.len();
    let values: rusqlite::Result<Vec<ValueRef<'_>>> = (0..count).map(|at| row.get_ref(at)).collect();
    Ok(row.get_ref(count)? == ValueRef::Integer(checksum(table.name, values?.into_iter())))
}

/// Looks at every row of every table that has checksums, and at their numbers.
///
/// # Errors
/// [`Damaged::Rows`] with the first table that is not what was written; SQLite's.
pub(super) fn verify(connection: &Connection) -> Result<(), StoreError> {
    for table in TABLES {
        if !damage_of(connection, table)?.is_empty() {
            return Err(Damaged::Rows(table.name).into());
        }
    }
    Ok(())
}

/// What [`verify`] finds wrong, in words: a line for each table.
pub(super) fn damage(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut lines = Vec::new();
    for table in TABLES {
        lines.extend(damage_of(connection, table)?);
    }
    Ok(lines)
}

fn damage_of(connection: &Connection, table: &Table) -> rusqlite::Result<Vec<String>> {
    let name = table.name;
    let sql = format!("SELECT {}, crc FROM {name}", table.columns.join(", "));
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let (mut count, mut sum, mut bad) = (0, 0_i64, 0);
    while let Some(row) = rows.next()? {
        count += 1;
        bad += i64::from(!is_as_written(table, row)?);
        let crc = row.get_ref(table.columns.len())?.as_i64_or_null().ok().flatten();
        sum = sum.wrapping_add(crc.unwrap_or_default());
    }
    let mut lines = Vec::new();
    if bad > 0 {
        lines.push(format!(
            "{name}: the checksum of {bad} of {count} rows does not fit"
        ));
    }
    if table.is_counted {
        match written(connection, name)? {
            Some((rows, _)) if rows != count => {
                lines.push(format!("{name}: {count} rows where {rows} were written"));
            }
            Some((_, written)) if written != sum && bad == 0 => {
                lines.push(format!("{name}: its rows are not those that were written last"));
            }
            Some(_) => {}
            None => lines.push(format!("row_sum: what it says of {name} is damaged")),
        }
    }
    Ok(lines)
}

/// Number of rows that a table should have and the sum of their checksums; none when that is damaged itself.
fn written(connection: &Connection, name: &str) -> rusqlite::Result<Option<(i64, i64)>> {
    let mut statement = connection.prepare("SELECT rows, sum, again FROM row_sum WHERE name = ?1")?;
    let mut rows = statement.query([name])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let number = |at: usize| row.get_ref(at).map(|value| value.as_i64().ok());
    Ok(sums(number(0)?, number(1)?, number(2)?))
}

/// Number of rows and sum of checksums of a row of `row_sum`; none when it is damaged.
pub(super) fn sums(rows: Option<i64>, sum: Option<i64>, again: Option<i64>) -> Option<(i64, i64)> {
    let (rows, sum) = rows.zip(sum)?;
    (again == Some(rows.wrapping_add(sum).wrapping_neg())).then_some((rows, sum))
}

/// Gives all rows their checksums, and the tables their numbers: rows of a version before them, or rows that were sealed.
pub(super) fn seal(connection: &Connection) -> rusqlite::Result<()> {
    for table in TABLES {
        let columns = table.columns.join(", ");
        let mut statement = connection.prepare(&format!("SELECT {columns} FROM {}", table.name))?;
        let rows = statement.query_map([], |row| (0..table.columns.len()).map(|at| row.get(at)).collect());
        let rows: Vec<Vec<Value>> = rows?.collect::<rusqlite::Result<_>>()?;
        let key = table.columns.iter().take(table.key).enumerate();
        let key: Vec<String> = key
            .map(|(at, column)| format!("{column} = ?{}", at + 2))
            .collect();
        let sql = format!("UPDATE {} SET crc = ?1 WHERE {}", table.name, key.join(" AND "));
        let mut update = connection.prepare(&sql)?;
        for row in rows {
            let crc = Value::Integer(checksum_of(table.name, &row));
            update.execute(params_from_iter(
                [crc].into_iter().chain(row.into_iter().take(table.key)),
            ))?;
        }
        if table.is_counted {
            connection.execute(
                &format!(
                    "INSERT OR REPLACE INTO row_sum (name, rows, sum, again)
                     SELECT '{0}', count(*), coalesce(sum(crc), 0), -count(*) - coalesce(sum(crc), 0) FROM {0}",
                    table.name
                ),
                [],
            )?;
        }
    }
    Ok(())
}

/// Checksums for the rows of older versions, and the triggers that count.
pub(super) fn add_checksums(connection: &Connection) -> rusqlite::Result<()> {
    seal(connection)?;
    for table in TABLES.iter().filter(|table| table.is_counted) {
        let name = table.name;
        let change = |rows: &str, sum: &str| {
            format!(
                "UPDATE row_sum SET rows = rows + {rows}, sum = sum + {sum}, again = again - ({rows}) - ({sum})
                 WHERE name = '{name}'"
            )
        };
        let (new, old) = ("coalesce(new.crc, 0)", "coalesce(old.crc, 0)");
        connection.execute_batch(&format!(
            "CREATE TRIGGER sum_{name}_new AFTER INSERT ON {name} BEGIN {}; END;
             CREATE TRIGGER sum_{name}_gone AFTER DELETE ON {name} BEGIN {}; END;
             CREATE TRIGGER sum_{name}_changed AFTER UPDATE OF crc ON {name} BEGIN {}; END;",
            change("1", new),
            change("-1", &format!("-{old}")),
            change("0", &format!("({new} - {old})")),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
