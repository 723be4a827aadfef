//! Boots, and what ties the monotonic time of each to trusted wall time: readings that came before the clock was set are dated
//! by it, so its rows have checksums (`checked_rows.rs`).

use super::recover::Dating;
use super::{Store, StoreError, checked_rows};
use crate::clock;
use rusqlite::types::Value;
use rusqlite::{Connection, Params, TransactionBehavior};

/// A row of the table.
#[derive(Clone, Debug)]
struct Boot {
    number: u32,
    id: String,
    /// Monotonic time in microseconds, and the wall time then.
    reference: Option<(i64, i64)>,
    /// When the operator gave up readings of it that nobody can date.
    given_up: Option<i64>,
}

impl Boot {
    fn keep(self, connection: &Connection) -> Result<(), StoreError> {
        let (us, wall) = self.reference.unzip();
        let row = vec![
            Value::from(self.number),
            Value::from(self.id),
            Value::from(us),
            Value::from(wall),
            Value::from(self.given_up),
        ];
        Ok(checked_rows::put(connection, "boot", row)?)
    }
}

fn boots(connection: &Connection, tail: &str, parameters: impl Params) -> Result<Vec<Boot>, StoreError> {
    checked_rows::read(connection, "boot", tail, parameters, |row| {
        let reference: (Option<i64>, Option<i64>) = (row.get(2)?, row.get(3)?);
        Ok(Boot {
            number: row.get(0)?,
            id: row.get(1)?,
            reference: reference.0.zip(reference.1),
            given_up: row.get(4)?,
        })
    })
}

fn numbered(connection: &Connection, number: u32) -> Result<Boot, StoreError> {
    let mut found = boots(connection, "WHERE id = ?1", [number])?;
    found
        .pop()
        .ok_or(StoreError::Sqlite(rusqlite::Error::QueryReturnedNoRows))
}

/// Number of the boot with this id, which is entered when it is new, and its reference, which is taken when it has none.
pub(super) fn enter(
    connection: &Connection,
    id: &str,
    reference: Option<(i64, i64)>,
) -> Result<u32, StoreError> {
    // Not by the index: that has no checksum, and one that leads to another boot would date by the wrong one.
    let mut found = boots(connection, "NOT INDEXED WHERE boot_id = ?1", [id])?;
    let (boot, changes) = match found.pop() {
        Some(boot) => {
            let changes = boot.reference.is_none() && reference.is_some();
            let reference = boot.reference.or(reference);
            (Boot { reference, ..boot }, changes)
        }
        None => {
            let number = checked_rows::next_number(connection, "boot")?;
            let boot = Boot {
                number: u32::try_from(number)
                    .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, number))?,
                id: id.to_owned(),
                reference,
                given_up: None,
            };
            (boot, true)
        }
    };
    let number = boot.number;
    if changes {
        boot.keep(connection)?;
    }
    Ok(number)
}

impl Store {
    /// Notes a moment at which the wall clock could be trusted, so that readings of that boot can be dated. The first one
    /// stays; returns the one that holds.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when the row is not what was written.
    pub fn set_reference(
        &mut self,
        boot: u32,
        monotonic_us: u64,
        wall: i64,
    ) -> Result<(u64, i64), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut boot = numbered(&transaction, boot)?;
        let known = boot.reference;
        let (us, wall) = *boot.reference.get_or_insert((monotonic_us as i64, wall));
        if known.is_none() {
            boot.keep(&transaction)?;
        }
        transaction.commit()?;
        Ok((us as u64, wall))
    }

    /// Notes that the operator gives up readings of a boot that nobody can date.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when the row is not what was written.
    pub fn give_up_boot(&mut self, boot: u32, wall: i64) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let boot = numbered(&transaction, boot)?;
        if boot.reference.is_none() {
            let given_up = Some(wall);
            Boot { given_up, ..boot }.keep(&transaction)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// What ties the monotonic time of each boot to trusted wall time.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when a row is not what was written.
    pub fn dating(&self) -> Result<Vec<Dating>, StoreError> {
        let current = clock::boot_id();
        let dating = boots(&self.connection, "ORDER BY id", [])?
            .into_iter()
            .map(|boot| Dating {
                boot: boot.number,
                is_current: boot.id == current,
                given_up: boot.given_up.is_some(),
                reference: boot.reference.map(|(us, wall)| (us as u64, wall)),
            });
        Ok(dating.collect())
    }
}
