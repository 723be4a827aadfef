//! The wear of the flash: what may be written in a day, what is written, and what the medium says of itself.
//!
//! A budget is held by committing less often, as far as `commit_interval_max` allows: each commit costs some pages, however
//! small it is. Readings are never refused for it; a budget that cannot be held is said.

use crate::config::ByteSize;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

const DAY_US: f64 = 86_400e6;
/// Days of a year, leap years in it.
const YEAR_DAYS: f64 = 365.25;
/// Bytes that a medium writes for each byte that it is given: it erases in large blocks, and the agent's writes are small.
const AMPLIFICATION: f64 = 4.0;
/// The part of a medium's life that the store may use; the rest is for the system's logs and updates.
const SHARE: f64 = 0.5;
/// What the rate is judged by.
const JUDGED_US: u64 = 300_000_000;
/// The time over which the shown rate is taken.
const SHOWN_US: u64 = 3_600_000_000;

/// How many bytes may be written in a day: `"8 GB eMMC, 7 years"`, `"32 GB SD, 5 years"` or `"500 MB/day"`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub struct FlashBudget {
    /// Bytes that the store may make the medium take in a day.
    pub bytes_per_day: u64,
}

/// Erase cycles that makers of such media commonly promise (eMMC and SSD with two or three bits per cell, SD cards without a
/// promise of their own).
fn cycles(medium: &str) -> Option<f64> {
    match medium.to_ascii_lowercase().as_str() {
        "emmc" => Some(3000.0),
        "ssd" | "nvme" => Some(1000.0),
        "sd" => Some(500.0),
        _ => None,
    }
}

impl TryFrom<String> for FlashBudget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        budget(&text).filter(|bytes| *bytes > 0).map_or_else(
            || {
                Err(format!(
                    "\"{text}\" is no budget: write the medium and the years that it has to last, such as \
                     \"8 GB eMMC, 7 years\" (eMMC, SD, SSD), or bytes per day, such as \"500 MB/day\""
                ))
            },
            |bytes_per_day| Ok(FlashBudget { bytes_per_day }),
        )
    }
}

fn budget(text: &str) -> Option<u64> {
    if let Some(bytes) = text.trim().strip_suffix("/day") {
        return Some(ByteSize::try_from(bytes.to_owned()).ok()?.0);
    }
    let (medium, life) = text.split_once(',')?;
    let (capacity, medium) = medium.trim().rsplit_once(' ')?;
    let capacity = ByteSize::try_from(capacity.to_owned()).ok()?.0;
    let years = life
        .trim()
        .strip_suffix("years")
        .or_else(|| life.trim().strip_suffix("year"))?;
    let years: f64 = years.trim().parse().ok().filter(|years| *years > 0.0)?;
    let bytes = capacity as f64 * cycles(medium)? / AMPLIFICATION * SHARE / (years * YEAR_DAYS);
    Some(bytes as u64)
}

/// Holds the budget: looks at the bytes written, and says how long a message may wait for its commit.
#[derive(Debug)]
pub struct Governor {
    budget: Option<FlashBudget>,
    shortest_us: u64,
    longest_us: u64,
    interval_us: u64,
    /// Running time and bytes written until then; the oldest first.
    samples: VecDeque<(u64, u64)>,
    judged_at: u64,
}

impl Governor {
    /// `commit_interval` and `commit_interval_max` in microseconds.
    pub fn new(budget: Option<FlashBudget>, shortest_us: u64, longest_us: u64) -> Governor {
        Governor {
            budget,
            shortest_us,
            longest_us: longest_us.max(shortest_us),
            interval_us: shortest_us,
            samples: VecDeque::new(),
            judged_at: 0,
        }
    }

    /// Longest wait of a message for its commit now, in microseconds.
    pub fn interval_us(&self) -> u64 {
        self.interval_us
    }

    /// Notes that `bytes` were written until `now_us` (running time). Every five minutes the interval is judged anew: half as
    /// long again when more was written than the budget allows, shorter again when less than two thirds of it was.
    pub fn note(&mut self, now_us: u64, bytes: u64) {
        let outdated = |(at, _): &(u64, u64)| now_us.saturating_sub(*at) > SHOWN_US;
        while self.samples.len() > 2 && self.samples.front().is_some_and(outdated) {
            self.samples.pop_front();
        }
        if self.samples.is_empty() {
            self.judged_at = now_us;
        }
        self.samples.push_back((now_us, bytes));
        let Some(budget) = self.budget else { return };
        if now_us.saturating_sub(self.judged_at) < JUDGED_US {
            return;
        }
        let Some(rate) = self.rate_since(self.judged_at) else {
            return;
        };
        self.judged_at = now_us;
        let allowed = budget.bytes_per_day as f64;
        if rate > allowed {
            self.interval_us = (self.interval_us + self.interval_us / 2).min(self.longest_us);
        } else if rate < allowed * 2.0 / 3.0 {
            self.interval_us = (self.interval_us * 2 / 3).max(self.shortest_us);
        }
    }

    fn rate_since(&self, since_us: u64) -> Option<f64> {
        let (from, before) = *self.samples.iter().rfind(|(at, _)| *at <= since_us)?;
        let (until, after) = *self.samples.back()?;
        let elapsed = until.checked_sub(from).filter(|elapsed| *elapsed > 0)?;
        Some(after.saturating_sub(before) as f64 / elapsed as f64 * DAY_US)
    }

    /// What the last hour, or the time since the start, makes in a day.
    pub fn state(&self) -> WearState {
        let oldest = self.samples.front().map_or(0, |(at, _)| *at);
        let per_day = self.rate_since(oldest).map(|rate| rate as u64);
        let budget = self.budget.map(|budget| budget.bytes_per_day);
        WearState {
            bytes_per_day: per_day,
            budget_per_day: budget,
            commit_interval_ms: self.interval_us / 1000,
            exceeded: self.interval_us >= self.longest_us
                && per_day.zip(budget).is_some_and(|(rate, allowed)| rate > allowed),
            ..WearState::default()
        }
    }
}

/// Wear as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WearState {
    /// Bytes that the store makes the medium take in a day, from the last hour.
    pub bytes_per_day: Option<u64>,
    /// What `flash_budget` allows.
    pub budget_per_day: Option<u64>,
    /// Longest wait of a message for its commit now, in milliseconds.
    pub commit_interval_ms: u64,
    /// The budget cannot be held, not with the longest wait either.
    pub exceeded: bool,
    /// Bytes that the kernel has counted for this process since its start (`/proc/self/io`).
    pub process_written_bytes: Option<u64>,
    /// What an eMMC says of itself.
    pub emmc: Option<Emmc>,
}

/// Registers of an eMMC (JEDEC JESD84-B51, section 7.4: `DEVICE_LIFE_TIME_EST_TYP_A`, `_B` and `PRE_EOL_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Emmc {
    /// Used life of the memory of type A (single-level cells) in tenths: 1 is up to 10 %, 10 up to 100 %, 11 beyond.
    pub life_a: u8,
    /// The same for type B (multi-level cells), where files usually lie.
    pub life_b: u8,
    /// Use of the reserved blocks: 1 normal, 2 four fifths used, 3 urgent.
    pub pre_eol: u8,
}

impl Emmc {
    /// Whether it is time to plan a replacement.
    pub fn is_worn(&self) -> bool {
        self.pre_eol >= 2 || self.life_a.max(self.life_b) >= 9
    }
}

/// Bytes that the kernel counts as written to storage by this process; none where it does not count.
pub fn process_written_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"))?;
    line.trim().parse().ok()
}

/// The registers of the eMMC on which `folder` lies; none on any other medium.
pub fn emmc_of(folder: &Path) -> Option<Emmc> {
    let device = rustix::fs::stat(folder).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    emmc_at(&std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?)
}

/// From the folder of a block device or of a partition of it in sysfs.
fn emmc_at(block: &Path) -> Option<Emmc> {
    let disks = [Some(block), block.parent()];
    let device: PathBuf = disks
        .into_iter()
        .flatten()
        .map(|disk| disk.join("device"))
        .find(|device| device.join("life_time").exists())?;
    let numbers = |name: &str| -> Option<Vec<u8>> {
        let text = std::fs::read_to_string(device.join(name)).ok()?;
        let number = |word: &str| u8::from_str_radix(word.trim_start_matches("0x"), 16).ok();
        text.split_whitespace().map(number).collect()
    };
    let life = numbers("life_time")?;
    Some(Emmc {
        life_a: *life.first()?,
        life_b: *life.get(1)?,
        pre_eol: numbers("pre_eol_info")
            .and_then(|found| found.first().copied())
            .unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000;

    fn per_day(text: &str) -> Option<u64> {
        FlashBudget::try_from(text.to_owned())
            .ok()
            .map(|budget| budget.bytes_per_day)
    }

    #[test]
    fn budgets_are_a_medium_and_its_years_or_bytes_per_day() {
        assert_eq!(per_day("500 MB/day"), Some(500_000_000));
        // 8 GB, 3000 cycles, a quarter for the amplification, half of it for the store, over 2556.75 days.
        assert_eq!(per_day("8 GB eMMC, 7 years"), Some(1_173_364_623));
        assert_eq!(per_day("8 GB eMMC, 14 years"), Some(586_682_311));
        assert!(per_day("32 GB SD, 1 year") > per_day("32 GB SD, 2.5 years"));
        for wrong in [
            "",
            "8 GB",
            "8 GB floppy, 7 years",
            "8 GB eMMC, 0 years",
            "eMMC, 7 years",
            "0 B/day",
            "8 GB eMMC, long",
        ] {
            assert_eq!(per_day(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_interval_widens_while_too_much_is_written_and_narrows_when_little_is() {
        let budget = FlashBudget {
            bytes_per_day: 86_400_000,
        };
        let mut governor = Governor::new(Some(budget), 1_000_000, 4_000_000);
        let (mut now, mut bytes) = (0, 0);
        let mut minutes = |governor: &mut Governor, count: u64, per_minute: u64| {
            for _ in 0..count {
                governor.note(now, bytes);
                now += MINUTE;
                bytes += per_minute;
            }
        };
        minutes(&mut governor, 6, 120_000);
        assert_eq!(governor.interval_us(), 1_500_000, "twice the budget");
        minutes(&mut governor, 30, 120_000);
        assert_eq!(governor.interval_us(), 4_000_000);
        assert!(governor.state().exceeded);
        minutes(&mut governor, 10, 50_000);
        assert_eq!(governor.interval_us(), 4_000_000, "within it: as it is");
        minutes(&mut governor, 70, 1_000);
        assert_eq!(governor.interval_us(), 1_000_000);
        assert_eq!(governor.state().bytes_per_day, Some(1_440_000));
        assert!(!governor.state().exceeded);
    }

    #[test]
    fn without_a_budget_the_interval_stays() {
        let mut governor = Governor::new(None, 1_000_000, 10_000_000);
        for minute in 0..20 {
            governor.note(minute * MINUTE, minute << 40);
        }
        assert_eq!(governor.interval_us(), 1_000_000);
    }

    #[test]
    fn registers_are_read_for_a_disk_and_its_partition() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("mmcblk0");
        let partition = disk.join("mmcblk0p2");
        std::fs::create_dir_all(disk.join("device")).unwrap();
        std::fs::create_dir(&partition).unwrap();
        assert_eq!(emmc_at(&partition), None);
        std::fs::write(disk.join("device/life_time"), "0x02 0x0b\n").unwrap();
        std::fs::write(disk.join("device/pre_eol_info"), "0x01\n").unwrap();
        let found = Emmc {
            life_a: 2,
            life_b: 11,
            pre_eol: 1,
        };
        assert_eq!(emmc_at(&disk), Some(found));
        assert_eq!(emmc_at(&partition), Some(found));
        assert!(found.is_worn());
    }

    #[test]
    fn the_kernel_counts_what_this_process_writes() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let Some(before) = process_written_bytes() else {
            return;
        };
        std::fs::write(folder.path().join("written"), vec![1; 1 << 20]).unwrap();
        assert!(process_written_bytes().unwrap() >= before + (1 << 20));
    }
}
