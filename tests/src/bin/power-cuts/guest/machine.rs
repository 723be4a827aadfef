//! The virtual machine: Debian's kernel for arm64, a first process of our own, the aarch64 program, one ext4 disk.

use super::SILENCE;
use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio-rng",
    "virtio_blk",
    "crc32c_generic",
    "libcrc32c",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
    "failover",
    "net_failover",
    "virtio_net",
];

/// What the guest is made of.
pub struct Parts {
    /// Kernel, modules and busybox.
    pub tools: PathBuf,
    /// First process.
    pub init: PathBuf,
    /// The program under test.
    pub agent: PathBuf,
}

/// An entry of a cpio archive (the format `newc`, which the kernel unpacks).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let number = |value: usize| format!("{value:08x}");
    archive.extend_from_slice(b"070701");
    let inode = archive.len();
    for field in [
        inode,
        mode as usize,
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ] {
        archive.extend_from_slice(number(field).as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

impl Parts {
    /// Boots a guest that judges: its agent checks the stores of the disk in this file, whenever it is told to.
    pub fn judging(&self, archive: &Path, disk: &Path, stores: usize) -> anyhow::Result<Machine> {
        let drive = format!("file={},format=raw,if=none,id=d0,cache=unsafe", disk.display());
        let task = format!("guest=judge stores={stores}");
        let machine = Machine::boot(self, archive, &task, &["-drive".to_owned(), drive])?;
        machine.wait("ready", SILENCE)?;
        Ok(machine)
    }

    /// Writes the first file system of the guest to `path`: with these files beside its own, by their names.
    pub fn write_archive(&self, path: &Path, files: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut archive = Vec::new();
        let mut folders = vec!["bin", "dev", "proc", "state", "modules", "mappings"];
        folders.extend(["mappings/heart-rate", "tmp"]);
        for folder in folders {
            entry(&mut archive, folder, 0o040_755, b"");
        }
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        for module in MODULES {
            let content = read(&self.tools.join(format!("{module}.ko")))?;
            entry(&mut archive, &format!("modules/{module}.ko"), 0o100_644, &content);
        }
        entry(
            &mut archive,
            "bin/busybox",
            0o100_755,
            &read(&self.tools.join("busybox"))?,
        );
        entry(&mut archive, "init", 0o100_755, &read(&self.init)?);
        entry(&mut archive, "agent", 0o100_755, &read(&self.agent)?);
        for (name, content) in files {
            entry(&mut archive, name, 0o100_644, content.as_bytes());
        }
        entry(&mut archive, "TRAILER!!!", 0, b"");
        Ok(std::fs::write(path, archive)?)
    }
}

/// A guest that runs; it ends with the value.
pub struct Machine {
    process: Child,
    to: ChildStdin,
    from: Receiver<String>,
}

impl Machine {
    /// Boots; `disk` are qemu's arguments that make the device `d0`.
    pub fn boot(parts: &Parts, archive: &Path, task: &str, disk: &[String]) -> anyhow::Result<Machine> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs();
        let mut command = Command::new("qemu-system-aarch64");
        command
            .args([
                "-M",
                "virt",
                "-cpu",
                "cortex-a53",
                "-m",
                "512",
                "-display",
                "none",
                "-monitor",
                "none",
            ])
            .args([
                "-serial",
                "stdio",
                "-no-reboot",
                "-nodefaults",
                "-netdev",
                "user,id=n0",
            ])
            .args([
                "-device",
                "virtio-net-device,netdev=n0",
                "-device",
                "virtio-rng-device",
            ])
            .args(["-device", "virtio-blk-device,drive=d0"])
            .arg("-kernel")
            .arg(parts.tools.join("vmlinuz"))
            .arg("-initrd")
            .arg(archive)
            .args([
                "-append",
                &format!("console=ttyAMA0 quiet loglevel=3 panic=-1 now={now} {task}"),
            ])
            .args(disk);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-system-aarch64 does not start")?;
        let to = process.stdin.take().context("no console")?;
        let output = process.stdout.take().context("no console")?;
        let (sender, from) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        Ok(Machine { process, to, from })
    }

    /// Writes a line to the console.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.to, "{line}")?;
        Ok(self.to.flush()?)
    }

    /// Waits for a line that begins with `GUEST` and `beginning`; gives the rest of it.
    pub fn wait(&self, beginning: &str, limit: Duration) -> anyhow::Result<String> {
        let wanted = format!("GUEST {beginning}");
        let mut last = Vec::new();
        loop {
            match self.from.recv_timeout(limit) {
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once(&wanted) {
                        return Ok(rest.trim().to_owned());
                    }
                    if !line.is_empty() {
                        eprintln!("guest: {line}");
                        last.push(line);
                    }
                }
                Err(_) => bail!(
                    "the guest does not say {wanted:?}: {:?}",
                    last.split_off(last.len().saturating_sub(8))
                ),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
