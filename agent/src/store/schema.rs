//! Tables of the store and their migrations. A migration goes forward only, in one transaction with its version number.

use super::{checked_rows, progress};
use crate::sabotage::{self, Sabotage};
use rusqlite::{Connection, TransactionBehavior};

/// Version that this program writes (`PRAGMA user_version`).
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// `PRAGMA application_id`: "bedA".
pub const APPLICATION_ID: i64 = 0x6265_6441;

/// Each entry takes the schema one version further. Journal segments are tables of their own (`journal_N`), so that a
/// segment is dropped whole.
const MIGRATIONS: &[&str] = &[
    "
    -- Store id, next position, version of the program that wrote last.
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- Boots; reference_us and reference_wall tie monotonic time to trusted wall time.
    CREATE TABLE boot (id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE, reference_us INTEGER, reference_wall INTEGER);
    CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE destination (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    -- Sets of mapping packs by the hash of their texts.
    CREATE TABLE revision (id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, bundle BLOB NOT NULL);
    CREATE TABLE segment (id INTEGER PRIMARY KEY, first INTEGER NOT NULL, opened_us INTEGER NOT NULL);
    -- Group keys, referred to by their number.
    CREATE TABLE series (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);
    -- References to what a destination still has to get. period: start in ticks of 100 ns, or none for period 0.
    -- refs: exact readings when the row stands for some of its range only; revision: normalize with this one instead.
    -- waiting: why it waits, else due.
    CREATE TABLE outbox (id INTEGER PRIMARY KEY, destination INTEGER NOT NULL, series INTEGER NOT NULL, period INTEGER,
        first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL, oldest INTEGER NOT NULL,
        refs BLOB, revision INTEGER, waiting TEXT);
    -- Messages that no template matched, or that came while their source had no pack (revision 0): runs of positions.
    CREATE TABLE unmatched (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, source INTEGER NOT NULL, count INTEGER NOT NULL,
        no_pack INTEGER NOT NULL, wall INTEGER NOT NULL);
    -- What a late reading needs to be merged.
    CREATE TABLE sent_period (destination INTEGER NOT NULL, observation TEXT NOT NULL, memory BLOB NOT NULL,
        expires INTEGER NOT NULL, PRIMARY KEY (destination, observation)) WITHOUT ROWID;
    CREATE TABLE dead_letter (id INTEGER PRIMARY KEY, destination INTEGER, position INTEGER NOT NULL, match_number INTEGER,
        source INTEGER NOT NULL, stage TEXT NOT NULL, cause TEXT NOT NULL, error TEXT NOT NULL, revision INTEGER NOT NULL,
        wall INTEGER NOT NULL, message BLOB NOT NULL);
    -- Readings given up on purpose; one row per run.
    CREATE TABLE ledger (id INTEGER PRIMARY KEY, destination INTEGER, source INTEGER, device TEXT, type TEXT,
        first INTEGER, last INTEGER, count INTEGER NOT NULL, reason TEXT NOT NULL, wall INTEGER NOT NULL);
    CREATE TABLE association (id INTEGER PRIMARY KEY, device TEXT NOT NULL, patient TEXT, encounter TEXT,
        valid_from INTEGER, valid_to INTEGER, source TEXT NOT NULL, entered INTEGER NOT NULL);
    CREATE TABLE correction (id INTEGER PRIMARY KEY, destination INTEGER NOT NULL, device TEXT NOT NULL, valid_from INTEGER,
        valid_to INTEGER, patient_before TEXT, patient_after TEXT, state TEXT NOT NULL);
    -- Cursors and counters: one row, so that progress costs one page.
    CREATE TABLE progress (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL);
    ",
    "
    -- Destinations that count a dead letter as dead (JSON), so that the accounts hold when it is redriven or dropped. In
    -- older ones a refused reading is counted by its destination, a failed match by all.
    -- From this version on segments may hold batches with holes (version 2 of the batch format), which an older program
    -- would not understand.
    ALTER TABLE dead_letter ADD COLUMN counted TEXT;
    ",
    "
    -- What a server showed of a device: its link over time, and statements of its use.
    CREATE TABLE sighting (destination INTEGER NOT NULL, device TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (destination, device)) WITHOUT ROWID;
    ",
    "
    -- From this version on batches and columns may be sealed (version 3 of the batch format, store/vault), which an older
    -- program would take for damage.
    ",
    "
    -- What the payload format of a source remembers: births of edge nodes, announced entities.
    CREATE TABLE source_memory (source INTEGER NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (source, key)) WITHOUT ROWID;
    ",
    "
    -- Records that devices keep and show again, by the message that they became.
    CREATE TABLE sent_record (source INTEGER NOT NULL, position INTEGER NOT NULL, record INTEGER NOT NULL,
        PRIMARY KEY (source, position)) WITHOUT ROWID;
    ",
    "
    -- Stores that were set aside, and how far each is salvaged (JSON).
    CREATE TABLE former (id INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, state TEXT NOT NULL);
    -- Runs of messages that came from a former store: from its positions, and under which store and position they are known.
    CREATE TABLE recovered (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, former INTEGER NOT NULL,
        position INTEGER NOT NULL, store TEXT NOT NULL, known_as INTEGER NOT NULL);
    -- Id and names once more, on pages of their own and in rows that are recognised without the schema: without them a
    -- salvage could neither open what is sealed nor keep an identity.
    CREATE TABLE identity (id INTEGER PRIMARY KEY, mark TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL);
    INSERT INTO identity (mark, key, value) SELECT 'bedside-store', 'store', value FROM meta WHERE key = 'store_id';
    INSERT INTO identity (mark, key, value) SELECT 'bedside-store', 'source/' || id, name FROM source;
    INSERT INTO identity (mark, key, value) SELECT 'bedside-store', 'destination/' || id, name FROM destination;
    INSERT INTO identity (mark, key, value) SELECT 'bedside-store', 'boot/' || id, boot_id FROM boot;
    CREATE TRIGGER identity_store AFTER INSERT ON meta WHEN new.key = 'store_id' BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'store', new.value); END;
    CREATE TRIGGER identity_source AFTER INSERT ON source BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'source/' || new.id, new.name); END;
    CREATE TRIGGER identity_destination AFTER INSERT ON destination BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'destination/' || new.id, new.name); END;
    CREATE TRIGGER identity_boot AFTER INSERT ON boot BEGIN
        INSERT INTO identity (mark, key, value) VALUES ('bedside-store', 'boot/' || new.id, new.boot_id); END;
    ",
    "
    -- When the operator gave up readings of a boot that nobody can date: ticks of 100 ns.
    ALTER TABLE boot ADD COLUMN given_up INTEGER;
    -- How far clocks of devices are off, as measured, and from which message on.
    CREATE TABLE device_clock (device TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
    ",
    "
    -- Checksum of cursors and counters (CRC-32, as batches have it): a cursor that changed on the medium would pass over
    -- messages silently. Those of older versions get theirs in the same transaction.
    ALTER TABLE progress ADD COLUMN crc INTEGER;
    ",
    "
    -- Checksums of the rows that say whose a reading is and when it was taken (checked_rows.rs), and how many rows each of
    -- these tables has. Rows of older versions get theirs in the same transaction.
    ALTER TABLE association ADD COLUMN crc INTEGER;
    ALTER TABLE correction ADD COLUMN crc INTEGER;
    ALTER TABLE sighting ADD COLUMN crc INTEGER;
    ALTER TABLE device_clock ADD COLUMN crc INTEGER;
    ALTER TABLE boot ADD COLUMN crc INTEGER;
    ALTER TABLE sent_record ADD COLUMN crc INTEGER;
    -- What was lost with a damaged store, until the operator says that it is entered again.
    CREATE TABLE doubt (subject TEXT PRIMARY KEY, since INTEGER NOT NULL, crc INTEGER) WITHOUT ROWID;
    -- Number of rows, sum of their checksums, and both once more with the other sign: a damaged sum is known as such.
    CREATE TABLE row_sum (name TEXT PRIMARY KEY, rows INTEGER NOT NULL, sum INTEGER NOT NULL, again INTEGER NOT NULL)
        WITHOUT ROWID;
    ",
];

/// The version in which cursors and counters got their checksum.
const PROGRESS_CHECKSUM: i64 = 9;
/// The version in which rows that decide about patient and time got theirs.
const ROW_CHECKSUMS: i64 = 10;

/// Brings the schema to the newest version.
///
/// # Errors
/// SQLite's; [`rusqlite::Error::InvalidQuery`] when the file belongs to a newer version of the program.
pub fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    migrate_by(connection, MIGRATIONS)
}

fn migrate_by(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > migrations.len() as i64 {
        return Err(rusqlite::Error::InvalidQuery);
    }
    for (step, sql) in migrations
        .iter()
        .enumerate()
        .skip(usize::try_from(found).unwrap_or(0))
    {
        if sabotage::is_on(Sabotage::MigrateInSteps) {
            run_step(connection, step, sql)?;
            connection.pragma_update(None, "user_version", step as i64 + 1)?;
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            continue;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        run_step(&transaction, step, sql)?;
        transaction.pragma_update(None, "user_version", step as i64 + 1)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.commit()?;
    }
    Ok(())
}

fn run_step(connection: &Connection, step: usize, sql: &str) -> rusqlite::Result<()> {
    connection.execute_batch(sql)?;
    if step as i64 + 1 == PROGRESS_CHECKSUM {
        progress::add_checksum(connection)?;
    }
    if step as i64 + 1 == ROW_CHECKSUMS {
        checked_rows::add_checksums(connection)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
