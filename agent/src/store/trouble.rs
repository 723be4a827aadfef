//! What is the matter with the disk when the store cannot use it, and what helps: the text that an operator reads.
//!
//! A trouble is never the end of the program. The intake keeps its messages and tries again, the senders are not
//! acknowledged meanwhile, and what a failed commit left behind is undone before the file is used again (`reopen.rs`).

use super::StoreError;
use rusqlite::ErrorCode;
use rustix::fs::StatVfsMountFlags;
use serde::Serialize;
use std::io;
use std::path::Path;

/// Why the disk of the store cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// No room, or no quota left.
    Full,
    /// The store is at its own limit, and nothing in it can be given up yet.
    Limit,
    /// The file system can only be read.
    ReadOnly,
    /// The user of the service may not write there.
    Denied,
    /// The device does not take or give what it should, or the file is not there.
    Failing,
}

/// Free bytes below which a refused write is told as a full disk, whatever its error was.
const NO_ROOM: u64 = 64 << 10;

impl Trouble {
    /// The trouble behind `error` of the store in `folder`; none when the disk is not the reason.
    pub fn of(error: &StoreError, folder: &Path) -> Option<Trouble> {
        let told = match error {
            StoreError::Unavailable { trouble, .. } => return Some(*trouble),
            StoreError::Io(error) => of_io(error)?,
            StoreError::Sqlite(error) => match error.sqlite_error_code()? {
                ErrorCode::DiskFull => Trouble::Full,
                ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Trouble::Denied,
                ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Trouble::Failing,
                _ => return None,
            },
            _ => return None,
        };
        if matches!(told, Trouble::Full | Trouble::ReadOnly) {
            return Some(told);
        }
        // SQLite passes the cause on as "input or output error" or "cannot open": the file system knows better.
        Some(match rustix::fs::statvfs(existing(folder)) {
            Ok(found) if found.f_flag.contains(StatVfsMountFlags::RDONLY) => Trouble::ReadOnly,
            Ok(found) if told == Trouble::Failing && found.f_bavail * found.f_frsize < NO_ROOM => {
                Trouble::Full
            }
            _ if told == Trouble::Failing && is_denied(folder) => Trouble::Denied,
            _ => told,
        })
    }

    /// What an operator reads: what is the matter, and what to do.
    pub fn advice(self, folder: &Path) -> String {
        let folder = folder.display();
        match self {
            Trouble::Full => format!("the disk of {folder} is full: free space on it (`df {folder}`, `du`)"),
            Trouble::Limit => format!(
                "the store in {folder} has reached [store] max_bytes and nothing in it can be given up: raise it, or look why \
                 the destinations take nothing"
            ),
            Trouble::ReadOnly => format!(
                "the file system of {folder} is read-only: look at `dmesg` for what made it so, check it (`fsck`) and mount it \
                 writable again"
            ),
            Trouble::Denied => {
                format!(
                    "the service may not write in {folder}: give it to its user (`ls -ld {folder}`, `chown`)"
                )
            }
            Trouble::Failing => format!(
                "the storage below {folder} fails: look at `dmesg`; a card or eMMC that is worn out has to be replaced"
            ),
        }
    }

    /// Whether the files are opened anew before the next try: an error of the device may outlive the descriptor that saw
    /// it, and a file system can only be mounted anew when nobody holds files of it.
    pub fn needs_reopening(self) -> bool {
        matches!(self, Trouble::ReadOnly | Trouble::Failing | Trouble::Denied)
    }
}

fn of_io(error: &io::Error) -> Option<Trouble> {
    Some(match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Trouble::Full,
        io::ErrorKind::ReadOnlyFilesystem => Trouble::ReadOnly,
        io::ErrorKind::PermissionDenied => Trouble::Denied,
        // Without a number it is not the operating system's.
        _ => {
            error.raw_os_error()?;
            Trouble::Failing
        }
    })
}

/// Whether it is the rights that are missing: SQLite says only that it cannot open.
fn is_denied(folder: &Path) -> bool {
    let denied =
        |error: &rustix::io::Errno| [rustix::io::Errno::ACCESS, rustix::io::Errno::PERM].contains(error);
    ["store.db", "store.db-wal", "."].iter().any(|name| {
        let access = rustix::fs::access(folder.join(name), rustix::fs::Access::WRITE_OK);
        access.is_err_and(|error| denied(&error))
    })
}

/// `folder`, or the nearest folder above it that exists.
fn existing(folder: &Path) -> &Path {
    folder
        .ancestors()
        .find(|above| above.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite(code: i32) -> StoreError {
        StoreError::Sqlite(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(code),
            None,
        ))
    }

    fn system(number: i32) -> StoreError {
        StoreError::Io(io::Error::from_raw_os_error(number))
    }

    #[test]
    fn every_trouble_of_a_disk_is_told_from_what_a_disk_cannot_cause() {
        use rusqlite::ffi;
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("not/there");
        for (error, expected) in [
            (sqlite(ffi::SQLITE_FULL), Some(Trouble::Full)),
            (sqlite(ffi::SQLITE_IOERR_WRITE), Some(Trouble::Failing)),
            (sqlite(ffi::SQLITE_IOERR_FSYNC), Some(Trouble::Failing)),
            (sqlite(ffi::SQLITE_CANTOPEN), Some(Trouble::Failing)),
            (sqlite(ffi::SQLITE_READONLY), Some(Trouble::Denied)),
            (sqlite(ffi::SQLITE_CORRUPT), None),
            (sqlite(ffi::SQLITE_NOTADB), None),
            (sqlite(ffi::SQLITE_CONSTRAINT), None),
            (system(libc_number("ENOSPC")), Some(Trouble::Full)),
            (system(libc_number("EDQUOT")), Some(Trouble::Full)),
            (system(libc_number("EROFS")), Some(Trouble::ReadOnly)),
            (system(libc_number("EACCES")), Some(Trouble::Denied)),
            (system(libc_number("EIO")), Some(Trouble::Failing)),
            (StoreError::Io(io::Error::other("no memory")), None),
            (StoreError::Newer(missing.clone()), None),
            (StoreError::Stopped, None),
        ] {
            assert_eq!(Trouble::of(&error, &missing), expected, "{error}");
        }
    }

    /// Numbers of Linux on all our targets.
    fn libc_number(name: &str) -> i32 {
        match name {
            "EIO" => 5,
            "EACCES" => 13,
            "ENOSPC" => 28,
            "EROFS" => 30,
            _ => 122,
        }
    }

    #[test]
    fn the_advice_names_the_folder_and_a_command() {
        let folder = Path::new("/var/lib/bedside-agent");
        for trouble in [
            Trouble::Full,
            Trouble::ReadOnly,
            Trouble::Denied,
            Trouble::Failing,
        ] {
            let text = trouble.advice(folder);
            assert!(
                text.contains("/var/lib/bedside-agent") && text.contains('`'),
                "{text}"
            );
        }
    }
}
