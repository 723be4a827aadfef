//! Devices on serial lines.

pub mod drivers;
pub mod framing;
