//! What is measured of clocks of devices. A change is a synced transaction of its own, before anything is dated by it.

use super::{Store, StoreError, checked_rows};
use rusqlite::types::Value;

impl Store {
    /// Keeps what is known of the clock of a device.
    ///
    /// # Errors
    /// SQLite's.
    pub fn keep_device_clock(&mut self, device: &str, state: &str) -> Result<(), StoreError> {
        let vault = self.codec.vault();
        let row = vec![
            Value::from(vault.text("device_clock.device", device).into_owned()),
            Value::from(state.to_owned()),
        ];
        Ok(checked_rows::put(&self.connection, "device_clock", row)?)
    }

    /// All that is known: device and state.
    ///
    /// # Errors
    /// SQLite's; [`StoreError::Damaged`] when a row is not what was written.
    pub fn device_clocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        let vault = self.codec.vault();
        checked_rows::read(&self.connection, "device_clock", "", [], |row| {
            Ok((vault.read_text("device_clock.device", row.get(0)?)?, row.get(1)?))
        })
    }
}
