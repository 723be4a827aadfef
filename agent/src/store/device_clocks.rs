//! What is measured of clocks of devices. A change is a synced transaction of its own, before anything is dated by it.

use super::open::collect;
use super::{Store, StoreError};
use rusqlite::params;

impl Store {
    /// Keeps what is known of the clock of a device.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keep_device_clock(&mut self, device: &str, state: &str) -> Result<(), StoreError> {
        let vault = self.codec.vault();
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO device_clock (device, state) VALUES (?1, ?2)")?
            .execute(params![vault.text("device_clock.device", device), state])?;
        Ok(())
    }

    /// All that is known: device and state.
    ///
    /// # Errors
    /// SQLite's.
    pub fn device_clocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        let vault = self.codec.vault();
        Ok(collect(
            &self.connection,
            "SELECT device, state FROM device_clock",
            |row| Ok((vault.read_text("device_clock.device", row.get(0)?)?, row.get(1)?)),
        )?)
    }
}
