//! What a process has used, read from `/proc`.

use anyhow::Context;
use std::path::Path;

/// CPU, memory and bytes written of a process since its start, or since an earlier reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUse {
    /// User and system time in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set in bytes.
    pub peak_rss_bytes: u64,
    /// Resident set in bytes at this moment.
    pub rss_bytes: u64,
    /// The part of it that is memory of its own, and not pages of files such as the program itself.
    pub anonymous_bytes: u64,
    /// Bytes that it caused to be sent to the storage layer (`write_bytes`).
    pub written_bytes: u64,
}

impl ProcessUse {
    /// Of the process `pid` now.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: u32) -> anyhow::Result<ProcessUse> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
        // Fields after the command's name, which may hold blanks; utime and stime are the 14th and 15th of all.
        let rest = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: u64 = rest
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap_or(0))
            .sum();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
        let number = |text: &str, name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default();
            line.trim_start_matches(':')
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0)
        };
        Ok(ProcessUse {
            // Linux reports in hundredths of a second on every architecture that we run on.
            cpu_seconds: ticks as f64 / 100.0,
            peak_rss_bytes: number(&status, "VmHWM") * 1024,
            rss_bytes: number(&status, "VmRSS") * 1024,
            anonymous_bytes: number(&status, "RssAnon") * 1024,
            written_bytes: number(&io, "write_bytes"),
        })
    }

    /// The difference to an earlier reading; memory stays what it is.
    #[must_use]
    pub fn since(&self, before: &ProcessUse) -> ProcessUse {
        ProcessUse {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            peak_rss_bytes: self.peak_rss_bytes,
            rss_bytes: self.rss_bytes,
            anonymous_bytes: self.anonymous_bytes,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }
}

/// Type of the file system that holds `path` (`ext4`).
///
/// # Errors
/// When the mounts cannot be read.
pub fn file_system(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut best = (0, String::from("unknown"));
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        if path.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), kind.to_owned());
        }
    }
    Ok(best.1)
}

/// Whether a file system holds its files in memory only.
pub fn is_memory(file_system: &str) -> bool {
    matches!(file_system, "tmpfs" | "ramfs" | "devtmpfs")
}
