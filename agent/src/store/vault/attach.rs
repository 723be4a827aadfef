//! A store and its key: which values say that it is encrypted, and how it becomes so.

use super::{BLOBS, MasterKey, TEXTS, Vault};
use crate::config::Encryption;
use crate::random;
use crate::store::codec::{self, Codec};
use crate::store::progress::sql_error;
use crate::store::{StoreError, checked_rows};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::Path;

/// Row of `meta` with a text that only the right key opens.
const CHECK: &str = "vault";
const CHECK_TEXT: &str = "the key of this store";
const CHECK_COLUMN: &str = "meta.vault";

/// The vault of a store that was opened. A store that is to be encrypted and is not yet becomes so.
pub(in crate::store) fn of_store(
    connection: &mut Connection,
    encryption: &Encryption,
    folder: &Path,
) -> Result<Vault, StoreError> {
    let id = store_id(connection)?;
    let check: Option<String> = meta(connection, CHECK)?;
    match (encryption, check) {
        (Encryption::Off, None) => Ok(Vault::default()),
        (Encryption::Off, Some(_)) => Err(StoreError::Key(
            "the store is encrypted, and [store] encryption is off: put the setting back as it was. To begin an \
             unencrypted store, erase this one with `bedside-agent store wipe`"
                .to_owned(),
        )),
        (_, Some(check)) => {
            let vault = Vault::new(&MasterKey::find(encryption, folder, false)?, &id);
            match vault.open_text(CHECK_COLUMN, check) {
                Ok(text) if text == CHECK_TEXT => Ok(vault),
                _ => Err(StoreError::Key(
                    "the key is not the one that the store was encrypted with: put the right one back. The store is left \
                     as it is"
                        .to_owned(),
                )),
            }
        }
        (_, None) => {
            let vault = Vault::new(&MasterKey::find(encryption, folder, true)?, &id);
            encrypt(connection, vault)
        }
    }
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .optional()
}

fn store_id(connection: &Connection) -> rusqlite::Result<String> {
    if let Some(id) = meta(connection, "store_id")? {
        return Ok(id);
    }
    let id = random::id();
    connection.execute("INSERT INTO meta (key, value) VALUES ('store_id', ?1)", [&id])?;
    Ok(id)
}

/// Seals what the columns hold, and notes the key, in one transaction. Batches of the journal stay until they are dropped.
fn encrypt(connection: &mut Connection, vault: Vault) -> Result<Vault, StoreError> {
    let mut codec = Codec::new(vault)?;
    // Checksums are those of columns as they are stored: what was damaged before must not get a good one.
    checked_rows::verify(connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (table, column) in TEXTS {
        let name = format!("{table}.{column}");
        for plain in distinct::<String>(&transaction, table, column)? {
            let sealed = codec.vault().text(&name, &plain).into_owned();
            replace(&transaction, table, column, plain, sealed)?;
        }
    }
    for (table, column) in BLOBS {
        let name = format!("{table}.{column}");
        for plain in distinct::<Vec<u8>>(&transaction, table, column)? {
            let sealed = codec.vault().bytes(&name, &plain).into_owned();
            replace(&transaction, table, column, plain, sealed)?;
        }
    }
    checked_rows::seal(&transaction)?;
    seal_letters(&transaction, &mut codec)?;
    let check = codec.vault().text(CHECK_COLUMN, CHECK_TEXT).into_owned();
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2)",
        params![CHECK, check],
    )?;
    transaction.commit()?;
    codec.into_vault().ok_or(StoreError::Stopped)
}

fn distinct<T: rusqlite::types::FromSql>(
    transaction: &Transaction<'_>,
    table: &str,
    column: &str,
) -> rusqlite::Result<Vec<T>> {
    transaction
        .prepare(&format!(
            "SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"
        ))?
        .query_map([], |row| row.get(0))?
        .collect()
}

fn replace<T: rusqlite::ToSql>(
    transaction: &Transaction<'_>,
    table: &str,
    column: &str,
    plain: T,
    sealed: T,
) -> rusqlite::Result<()> {
    let sql = format!("UPDATE {table} SET {column} = ?1 WHERE {column} = ?2");
    transaction.execute(&sql, params![sealed, plain])?;
    Ok(())
}

fn seal_letters(transaction: &Transaction<'_>, codec: &mut Codec) -> rusqlite::Result<()> {
    let letters: Vec<(i64, i64)> = transaction
        .prepare("SELECT id, position FROM dead_letter")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (id, position) in letters {
        let sql = "SELECT message FROM dead_letter WHERE id = ?1";
        let plain: Vec<u8> = transaction.query_row(sql, [id], |row| row.get(0))?;
        let Ok(messages) = codec::decode(&codec.vault(), position as u64, 1, &plain) else {
            continue;
        };
        let batch = messages.iter().map(|stored| (&stored.message, stored.revision));
        let sealed = codec.encode(position as u64, batch).map_err(sql_error)?;
        transaction.execute(
            "UPDATE dead_letter SET message = ?2 WHERE id = ?1",
            params![id, sealed],
        )?;
    }
    Ok(())
}
