//! Small file systems that can be filled, made read-only and broken. They need the right to mount (root).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// On a loop device, read-only after an error.
    Ext4,
}

/// A mounted file system of its own; unmounted at the end.
pub struct Volume {
    /// Where it is mounted.
    pub point: PathBuf,
    image: PathBuf,
    kind: Kind,
    bytes: u64,
}

impl Volume {
    /// Mounts a file system of `bytes` below `folder`; none when this machine does not permit it, which is said.
    pub fn mount(folder: &Path, kind: Kind, bytes: u64) -> Option<Volume> {
        let volume = Volume {
            point: folder.join("volume"),
            image: folder.join("volume.img"),
            kind,
            bytes,
        };
        std::fs::create_dir_all(&volume.point).expect("a place to mount");
        if kind == Kind::Ext4 {
            let image = std::fs::File::create(&volume.image).expect("the image of the volume");
            image.set_len(bytes).expect("the image of the volume");
            assert!(
                run("mkfs.ext4", &["-q", "-m", "0", &text(&volume.image)]),
                "mkfs.ext4"
            );
        }
        if volume.mount_again() {
            return Some(volume);
        }
        eprintln!("SKIPPED: this machine does not permit to mount a {kind:?} (root is needed)");
        std::mem::forget(volume);
        None
    }

    /// Mounts it (again).
    pub fn mount_again(&self) -> bool {
        let (image, point) = (text(&self.image), text(&self.point));
        match self.kind {
            Kind::Tmpfs => {
                let size = format!("size={}", self.bytes);
                run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &point])
            }
            Kind::Ext4 => run("mount", &["-o", "loop,errors=remount-ro", &image, &point]),
        }
    }

    /// Unmounts it; tells whether nobody held files of it.
    pub fn unmount(&self) -> bool {
        run("umount", &[&text(&self.point)])
    }

    /// Repairs what an error has left (`fsck`), while it is not mounted.
    pub fn repair(&self) {
        // 0 and 1: nothing to do, and repaired.
        let ended = Command::new("e2fsck")
            .args(["-fy", &text(&self.image)])
            .output()
            .expect("e2fsck");
        assert!(ended.status.code().is_some_and(|code| code <= 1), "{ended:?}");
    }

    /// `mount -o remount,OPTION`.
    pub fn remount(&self, option: &str) -> bool {
        run("mount", &["-o", &format!("remount,{option}"), &text(&self.point)])
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.point.join("filler")).expect("a file that fills it");
        let noise = vec![0x5a_u8; 64 << 10];
        for size in [64 << 10, 4096, 512, 1] {
            while file.write_all(&noise[..size]).and_then(|()| file.flush()).is_ok() {}
        }
        let _ = file.sync_all();
    }

    /// Frees what [`Volume::fill`] took.
    pub fn free(&self) {
        std::fs::remove_file(self.point.join("filler")).expect("the file that filled it");
    }

    /// Makes ext4 meet an error, upon which it becomes read-only for everybody, also for who has files open.
    pub fn break_it(&self) {
        let device = Command::new("findmnt")
            .args(["-no", "SOURCE", &text(&self.point)])
            .output()
            .expect("findmnt");
        let device = String::from_utf8_lossy(&device.stdout)
            .trim()
            .replace("/dev/", "");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(&trigger, "on purpose").expect("ext4 takes an error on purpose");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Who still has files there lives not much longer.
        run("umount", &["-l", &text(&self.point)]);
        let _ = std::fs::remove_file(&self.image);
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let ended = Command::new(program).args(arguments).output();
    ended.is_ok_and(|output| output.status.success())
}
