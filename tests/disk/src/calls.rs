//! The file calls of the C library, recorded where they are below the folder. The linker prefers these to the library's.

use crate::model::{Chance, Image, Medium};
use libc::{c_char, c_int, c_uint, c_void, off_t, size_t, ssize_t};
use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

enum Open {
    File(usize, bool),
    Folder(PathBuf),
}

/// What a call that fails says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writes find no room (`ENOSPC`); half of what a write brings may be taken.
    Full,
    /// Writes and syncs are refused by the device (`EIO`).
    Failing,
    /// Everything that changes something is refused (`EROFS`).
    ReadOnly,
    /// Reads are refused by the device (`EIO`).
    Unreadable,
}

/// What a call does to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Write,
    Sync,
    Name,
    Read,
}

/// Which calls fail from now on.
struct Plan {
    fault: Fault,
    /// Calls of its kind that still work.
    after: u64,
    /// Calls that fail then.
    times: u64,
}

struct Disk {
    plan: Option<Plan>,
    failures: u64,
    refusals: Vec<String>,
    folder: PathBuf,
    medium: Medium,
    open: HashMap<c_int, Open>,
    operations: u64,
    cut_at: u64,
    chance: Chance,
    left: Option<Image>,
    on_cut: Option<Box<dyn FnOnce() + Send>>,
}

static ATTACHED: AtomicBool = AtomicBool::new(false);
static DISK: Mutex<Option<Disk>> = Mutex::new(None);

fn disk() -> MutexGuard<'static, Option<Disk>> {
    DISK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts `image` into `folder` (absolute, without links, empty) and records from now on; `on_cut` is called at the cut.
///
/// # Errors
/// The file system's.
pub fn attach(
    folder: &Path,
    image: &Image,
    seed: u64,
    on_cut: Box<dyn FnOnce() + Send>,
) -> std::io::Result<()> {
    detach();
    image.write_to(folder)?;
    *disk() = Some(Disk {
        plan: None,
        failures: 0,
        refusals: Vec::new(),
        folder: folder.to_owned(),
        medium: Medium::of(image),
        open: HashMap::new(),
        operations: 0,
        cut_at: u64::MAX,
        chance: Chance(seed),
        left: None,
        on_cut: Some(on_cut),
    });
    ATTACHED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Cuts the power at the `operations`-th change, sync or naming from now on.
pub fn cut_after(operations: u64) {
    if let Some(disk) = disk().as_mut() {
        disk.cut_at = disk.operations + operations;
    }
}

/// Whether the power is cut: nothing is written any more, and nobody sees what the process does.
pub fn cut_has_come() -> bool {
    disk().as_ref().is_some_and(|disk| disk.left.is_some())
}

/// Changes, syncs and namings so far.
pub fn operations() -> u64 {
    disk().as_ref().map_or(0, |disk| disk.operations)
}

/// Lets calls fail: `times` of those that `fault` concerns, after `after` of them have worked.
pub fn fail(fault: Fault, after: u64, times: u64) {
    if let Some(disk) = disk().as_mut() {
        disk.plan = Some(Plan { fault, after, times });
    }
}

/// From now on nothing fails any more.
pub fn heal() {
    if let Some(disk) = disk().as_mut() {
        disk.plan = None;
    }
}

/// The last calls that were made to fail, for a finding.
pub fn refusals() -> Vec<String> {
    disk()
        .as_ref()
        .map(|disk| disk.refusals.clone())
        .unwrap_or_default()
}

/// Calls that were made to fail.
pub fn failures() -> u64 {
    disk().as_ref().map_or(0, |disk| disk.failures)
}

/// Ends the recording; returns what a cut left, the planned one or one now.
pub fn detach() -> Option<Image> {
    ATTACHED.store(false, Ordering::SeqCst);
    let mut disk = disk().take()?;
    Some(match disk.left.take() {
        Some(left) => left,
        None => disk.medium.after_cut(&mut disk.chance),
    })
}

impl Disk {
    /// The error number with which a call that `does` this fails now.
    fn refuses(&mut self, does: Does) -> Option<c_int> {
        let plan = self.plan.as_mut()?;
        let concerned = match plan.fault {
            Fault::Full => does == Does::Write || does == Does::Name,
            Fault::Failing => does == Does::Write || does == Does::Sync,
            Fault::ReadOnly => does != Does::Read,
            Fault::Unreadable => does == Does::Read,
        };
        if !concerned || self.left.is_some() {
            return None;
        }
        if plan.after > 0 {
            plan.after -= 1;
            return None;
        }
        let number = match plan.fault {
            Fault::Full => libc::ENOSPC,
            Fault::Failing | Fault::Unreadable => libc::EIO,
            Fault::ReadOnly => libc::EROFS,
        };
        plan.times = plan.times.saturating_sub(1);
        if plan.times == 0 {
            self.plan = None;
        }
        self.failures += 1;
        self.refusals
            .push(format!("{does:?} {number} before operation {}", self.operations));
        Some(number)
    }

    /// Does `change` unless the power is cut, and cuts it when it is time: what is under way then may arrive or not.
    fn step(&mut self, synced: bool, change: impl FnOnce(&mut Medium)) -> bool {
        if self.left.is_some() {
            return false;
        }
        self.operations += 1;
        let cut = self.operations >= self.cut_at;
        if !(cut && synced) {
            change(&mut self.medium);
        }
        if cut {
            self.left = Some(self.medium.after_cut(&mut self.chance));
        }
        !cut
    }
}

/// Runs `work` with the disk, if one is attached.
fn with<T>(work: impl FnOnce(&mut Disk) -> Option<T>) -> Option<T> {
    if !ATTACHED.load(Ordering::Relaxed) {
        return None;
    }
    let mut guard = disk();
    let disk = guard.as_mut()?;
    let result = work(disk);
    let on_cut = if disk.left.is_some() {
        disk.on_cut.take()
    } else {
        None
    };
    // Whoever is told may write to a descriptor, and comes back here.
    drop(guard);
    if let Some(on_cut) = on_cut {
        on_cut();
    }
    result
}

/// # Safety
/// `path` is a C string.
unsafe fn below(disk: &Disk, path: *const c_char) -> Option<PathBuf> {
    // SAFETY: the caller's promise.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    path.strip_prefix(&disk.folder).ok().map(Path::to_owned)
}

fn no_power() -> c_int {
    failed(libc::EIO)
}

fn failed(number: c_int) -> c_int {
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() = number };
    -1
}

/// The error number with which a call on an open file fails now.
fn refused(descriptor: c_int, does: Does) -> Option<c_int> {
    with(|disk| match disk.open.get(&descriptor)? {
        Open::File(..) => disk.refuses(does),
        Open::Folder(_) => None,
    })
}

/// How much of a write of `length` bytes is taken before it fails; all of it when it does not.
fn taken(descriptor: c_int, length: size_t) -> Result<size_t, c_int> {
    match refused(descriptor, Does::Write) {
        None => Ok(length),
        // The last bytes of the room.
        Some(libc::ENOSPC) if length > 1 => Ok(length / 2),
        Some(number) => Err(number),
    }
}

fn changes_file(descriptor: c_int, change: impl FnOnce(&mut Medium, usize)) -> Option<bool> {
    with(|disk| {
        let Some(Open::File(file, _)) = disk.open.get(&descriptor) else {
            return None;
        };
        let file = *file;
        Some(disk.step(false, |medium| change(medium, file)))
    })
}

unsafe fn open_any(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: what the caller of `open` gave.
    let inside = with(|disk| unsafe { below(disk, path) });
    let is_new = |inside: &Path| with(|disk| disk.medium.find(inside)).is_none();
    if let Some(inside) = inside.as_deref()
        && !inside.as_os_str().is_empty()
        && flags & libc::O_CREAT != 0
        && is_new(inside)
    {
        if let Some(number) = with(|disk| disk.refuses(Does::Name)) {
            return failed(number);
        }
        if with(|disk| {
            Some(disk.step(false, |medium| {
                medium.create(inside);
            }))
        }) == Some(false)
        {
            return no_power();
        }
    }
    // SAFETY: what the caller of `open` gave.
    let descriptor = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) } as c_int;
    if let Some(inside) = inside.filter(|_| descriptor >= 0) {
        with(|disk| {
            let open = match disk.medium.find(&inside) {
                Some(file) => {
                    if flags & libc::O_TRUNC != 0 {
                        disk.step(false, |medium| medium.truncate(file, 0));
                    }
                    Open::File(file, flags & libc::O_APPEND != 0)
                }
                None => Open::Folder(inside),
            };
            disk.open.insert(descriptor, open)
        });
    }
    descriptor
}

macro_rules! opens {
    ($($name:ident)*) => {$(
        /// `open`.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { open_any(path, flags, mode) }
        }
    )*};
}
opens!(open open64);

/// `close`.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    with(|disk| disk.open.remove(&descriptor));
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_close, descriptor) as c_int }
}

macro_rules! writes_at {
    ($($name:ident)*) => {$(
        /// `pwrite`.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            descriptor: c_int, data: *const c_void, length: size_t, offset: off_t,
        ) -> ssize_t {
            let length = match taken(descriptor, length) {
                Ok(length) => length,
                Err(number) => return failed(number) as ssize_t,
            };
            // SAFETY: the caller's buffer has this length.
            let bytes = || unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
            if changes_file(descriptor, |m, file| m.write(file, offset as usize, bytes())) == Some(false) {
                return no_power() as ssize_t;
            }
            // SAFETY: the caller's promise.
            unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, data, length, offset) as ssize_t }
        }
    )*};
}
writes_at!(pwrite pwrite64);

/// `write`.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(descriptor: c_int, data: *const c_void, length: size_t) -> ssize_t {
    let length = match taken(descriptor, length) {
        Ok(length) => length,
        Err(number) => return failed(number) as ssize_t,
    };
    let appends = with(|disk| match disk.open.get(&descriptor) {
        Some(Open::File(_, appends)) => Some(*appends),
        _ => None,
    });
    if let Some(appends) = appends {
        let whence = if appends { libc::SEEK_END } else { libc::SEEK_CUR };
        // SAFETY: asks for the offset of a descriptor, and the caller's buffer has this length.
        let (offset, bytes) = unsafe {
            let offset = libc::lseek(descriptor, 0, whence);
            (offset, std::slice::from_raw_parts(data.cast::<u8>(), length))
        };
        if changes_file(descriptor, |m, file| m.write(file, offset as usize, bytes)) == Some(false) {
            return no_power() as ssize_t;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_write, descriptor, data, length) as ssize_t }
}

macro_rules! truncates {
    ($($name:ident)*) => {$(
        /// `ftruncate`.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(descriptor: c_int, length: off_t) -> c_int {
            if let Some(number) = refused(descriptor, Does::Write) {
                return failed(number);
            }
            if changes_file(descriptor, |m, file| m.truncate(file, length as usize)) == Some(false) {
                return no_power();
            }
            // SAFETY: the caller's promise.
            unsafe { libc::syscall(libc::SYS_ftruncate, descriptor, length) as c_int }
        }
    )*};
}
truncates!(ftruncate ftruncate64);

macro_rules! syncs {
    ($($name:ident $number:ident)*) => {$(
        /// `fsync`; nothing is really synced below the folder.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(descriptor: c_int) -> c_int {
            let number = with(|disk| {
                let file = match disk.open.get(&descriptor)? {
                    Open::File(file, _) => Some(*file),
                    Open::Folder(_) => None,
                };
                let number = disk.refuses(Does::Sync)?;
                if let Some(file) = file {
                    disk.medium.sync_refused(file, &mut disk.chance);
                }
                Some(number)
            });
            if let Some(number) = number {
                return failed(number);
            }
            let done = with(|disk| match disk.open.get(&descriptor)? {
                Open::File(file, _) => {
                    let file = *file;
                    Some(disk.step(true, |medium| medium.sync(file)))
                }
                Open::Folder(folder) => {
                    let folder = folder.clone();
                    Some(disk.step(true, |medium| medium.sync_names(&folder)))
                }
            });
            match done {
                Some(true) => 0,
                Some(false) => no_power(),
                // SAFETY: the caller's promise.
                None => unsafe { libc::syscall(libc::$number, descriptor) as c_int },
            }
        }
    )*};
}
syncs!(fsync SYS_fsync fdatasync SYS_fdatasync);

/// `rename`.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let inside = with(|disk| unsafe { below(disk, from) }).is_some();
    if let Some(number) = with(|disk| if inside { disk.refuses(Does::Name) } else { None }) {
        return failed(number);
    }
    let done = with(|disk| {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (below(disk, from)?, below(disk, to)?) };
        Some(disk.step(false, |medium| medium.rename(&from, &to)))
    });
    if done == Some(false) {
        return no_power();
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) as c_int }
}

/// Lets two names change places, for a program whose call for it does not go through the C library: to be called before the
/// real one.
///
/// # Errors
/// When the power is cut, or the call is made to fail.
pub fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    let done = with(|disk| {
        let inside = |path: &Path| path.strip_prefix(&disk.folder).ok().map(Path::to_owned);
        let (one, other) = (inside(one)?, inside(other)?);
        if let Some(number) = disk.refuses(Does::Name) {
            return Some(Err(std::io::Error::from_raw_os_error(number)));
        }
        let is_done = disk.step(false, |medium| medium.exchange(&one, &other));
        Some(match is_done {
            true => Ok(()),
            false => Err(std::io::Error::from_raw_os_error(libc::EIO)),
        })
    });
    done.unwrap_or(Ok(()))
}

/// `unlink`.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let inside = with(|disk| unsafe { below(disk, path) }).is_some();
    if let Some(number) = with(|disk| if inside { disk.refuses(Does::Name) } else { None }) {
        return failed(number);
    }
    let done = with(|disk| {
        // SAFETY: the caller's promise.
        let inside = unsafe { below(disk, path)? };
        Some(disk.step(false, |medium| medium.remove(&inside)))
    });
    if done == Some(false) {
        return no_power();
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int }
}

/// `unlinkat`, with which `std` removes whole folders.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    let done = with(|disk| {
        // SAFETY: the caller's promise.
        let name = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        let whole = if name.is_absolute() || folder == libc::AT_FDCWD {
            name.to_owned()
        } else {
            std::fs::read_link(format!("/proc/self/fd/{folder}"))
                .ok()?
                .join(name)
        };
        let inside = whole.strip_prefix(&disk.folder).ok()?.to_owned();
        // Folders have no entry of their own here; what is in one goes with it.
        if flags & libc::AT_REMOVEDIR == 0 {
            disk.medium.find(&inside)?;
        }
        Some(disk.step(false, |medium| medium.remove(&inside)))
    });
    if done == Some(false) {
        return no_power();
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_unlinkat, folder, path, flags) as c_int }
}

/// `read`.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(descriptor: c_int, data: *mut c_void, length: size_t) -> ssize_t {
    if let Some(number) = refused(descriptor, Does::Read) {
        return failed(number) as ssize_t;
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_read, descriptor, data, length) as ssize_t }
}

macro_rules! reads_at {
    ($($name:ident)*) => {$(
        /// `pread`.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            descriptor: c_int, data: *mut c_void, length: size_t, offset: off_t,
        ) -> ssize_t {
            if let Some(number) = refused(descriptor, Does::Read) {
                return failed(number) as ssize_t;
            }
            // SAFETY: the caller's promise.
            unsafe { libc::syscall(libc::SYS_pread64, descriptor, data, length, offset) as ssize_t }
        }
    )*};
}
reads_at!(pread pread64);
