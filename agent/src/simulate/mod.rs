//! Devices that are not there: wearables on MQTT and serial lines, for the demo, for tests and for trying a mapping.

pub mod physiology;
pub mod serial;
pub mod wearable;
pub mod wearable_mqtt;
pub mod wearable_serial;
