//! Nonin OEM III, Xpod, Onyx II 9560, WristOx and handhelds: serial formats 2, 7, 8 and 13 and the ASCII real-time line.
//!
//! The format is recognised by itself. The driver only listens; older units choose their format by hardware, the 9560 keeps
//! the format it is set to.
//!
//! Bodies:
//! * `vitals`: `spo2`, `pulse_rate_oximeter` (of formats 2 and 7 the values for recording, of format 8 and the ASCII line the displayed
//!   ones), `spot_check: true` when SmartPoint is reached;
//! * `record` (format 13): the same, with `device_time`, `from_memory`; one from memory has `time` = `device_time`;
//! * `waveform` `pleth_waveform`, 75 Hz, without unit, 8 bit (format 2) or 16 bit (format 7).
//!
//! `status`: `sensor_disconnected`, `sensor_alarm`, `out_of_track`, `artifact`, `low_perfusion`, `marginal_perfusion`, `low_battery`,
//! `battery_critical` (WristOx), `no_measurement`, `event_mark`.

mod formats;

pub use formats::{Frame, Framing};

use super::body::{Body, Vitals, Waveform};
use super::port::{Listener, Port};
use super::seen::Seen;
use super::{Description, Direction, DriverInfo, Evidence, Now, Output, PortSettings, Speaks};
use crate::ingest::serial::framing::frames;

const NAME: &str = "nonin";

/// The entry in the list of drivers.
pub const DRIVER: DriverInfo = DriverInfo {
    name: NAME,
    title: "Nonin OEM III, Xpod, Onyx, WristOx pulse oximeters",
    settings: PortSettings::eight_none_one(9600),
    evidence: Evidence::TwoSources,
    speaks: Speaks::Always,
    pack: NAME,
    describe,
    commands: Vec::new,
    create: || Box::new(Port::new(Framing::default(), Reading::default())),
};

/// Turns frames into readings.
#[derive(Debug)]
struct Reading {
    vitals: Vitals,
    pleth: Waveform,
    sent: Seen,
}

/// The memory of an Onyx II holds 20 spot checks.
const REMEMBERED: usize = 256;

impl Default for Reading {
    fn default() -> Self {
        Reading {
            vitals: Vitals::default(),
            pleth: Waveform::new(NAME, "pleth_waveform", 75_000),
            sent: Seen::new(REMEMBERED),
        }
    }
}

impl Listener<Frame> for Reading {
    fn frame(&mut self, frame: Frame, now: Now, out: &mut Output) {
        let vitals = Body::new(NAME, "vitals");
        match frame {
            Frame::Packet(packet) => {
                for sample in &packet.pleth {
                    self.pleth.sample(*sample, now, out);
                }
                let seen = |word| packet.perfusion_seen.contains(&word);
                let body = vitals
                    .value("spo2", packet.spo2_pct)
                    .value("pulse_rate_oximeter", packet.hr_bpm)
                    .with("spot_check", packet.smartpoint.then_some(true))
                    .status(&[
                        (packet.status_any.sensor_disconnect, "sensor_disconnected"),
                        (packet.status_any.sensor_alarm, "sensor_alarm"),
                        (packet.status_any.out_of_track, "out_of_track"),
                        (packet.status_any.artifact, "artifact"),
                        (seen("red"), "low_perfusion"),
                        (seen("yellow"), "marginal_perfusion"),
                        (packet.low_battery, "low_battery"),
                    ]);
                self.vitals.offer(body, now, out);
            }
            Frame::Display(display) => {
                let body = vitals
                    .value("spo2", display.spo2_d_pct)
                    .value("pulse_rate_oximeter", display.hr_d_bpm)
                    .with("spot_check", display.smartpoint.then_some(true))
                    .status(&[
                        (display.sensor_disconnect, "sensor_disconnected"),
                        (display.sensor_alarm, "sensor_alarm"),
                        (display.out_of_track, "out_of_track"),
                        (display.artifact, "artifact"),
                        (display.low_perfusion, "low_perfusion"),
                        (display.marginal_perfusion, "marginal_perfusion"),
                        (display.low_battery, "low_battery"),
                        (display.battery_critical, "battery_critical"),
                    ]);
                self.vitals.offer(body, now, out);
            }
            Frame::Clock(_) => {}
            Frame::Record(record) => {
                let from_memory = record.from_memory;
                let key = serde_json::to_value(&record).unwrap_or_default();
                let time = record.device_time.clone().filter(|_| record.from_memory);
                let body = Body::new(NAME, "record")
                    .with("time", time)
                    .with("device_time", record.device_time)
                    .with("from_memory", record.from_memory)
                    .value("spo2", record.spo2_pct.filter(|_| !record.no_measurement))
                    .value(
                        "pulse_rate_oximeter",
                        record.hr_bpm.filter(|_| !record.no_measurement),
                    )
                    .with("spot_check", record.smartpoint.then_some(true))
                    .status(&[
                        (record.no_measurement, "no_measurement"),
                        (record.low_battery, "low_battery"),
                    ]);
                if !body.has_values() {
                    return;
                }
                if !from_memory {
                    out.messages.push(body.message());
                } else if let Some(identity) = self.sent.take_new(&key.to_string()) {
                    out.messages.push(body.record(identity));
                }
            }
            Frame::Line(line) => {
                let body = vitals
                    .with("device_time", line.device_time)
                    .value("spo2", line.spo2_pct)
                    .value("pulse_rate_oximeter", line.hr_bpm)
                    .status(&[(line.event_mark, "event_mark")]);
                self.vitals.offer(body, now, out);
            }
        }
    }

    fn gap(&mut self, _now: Now, out: &mut Output) {
        self.pleth.gap(out);
    }

    fn remember(&mut self, records: &[u64]) {
        self.sent.remember(records);
    }
}

fn describe(direction: Direction, bytes: &[u8]) -> Description {
    match direction {
        Direction::DeviceToHost => frames::describe(Framing::default(), bytes),
        Direction::HostToDevice => Description::of(describe_command(bytes)),
    }
}

/// Commands of the 9560 as other programs may send them; this driver sends none.
fn describe_command(bytes: &[u8]) -> Option<serde_json::Value> {
    match *bytes {
        [0x02, 0x70, 0x02, 0x02, format, 0x03] => {
            Some(serde_json::json!({"command": "set_format", "format": format}))
        }
        [0x02, 0x72, 0x06, year, month, day, hour, minute, second, 0x03] => Some(serde_json::json!({
            "command": "set_time",
            "device_time": format!("20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"),
        })),
        [0x02, 0x72, 0x00, 0x03] => Some(serde_json::json!({"command": "read_time"})),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver;
    use super::*;

    const PACKET: &str = "018380000401829848630182b062950182c430770182d400570182df096b0182e352b80182e200650182da62bf0182cd62b20182ba629f0182a4002701808c000d01807400f501805c48250180466229018033621601802600a701801e009f01801d009e01802148ea01802c00ad01803c480501805000d101806800e9";

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    fn at(monotonic_us: u64) -> Now {
        Now {
            monotonic_us,
            wall: iomt_mapping::Timestamp::from_ticks(i64::try_from(monotonic_us).unwrap() * 10),
        }
    }

    fn bodies(out: &Output) -> Vec<String> {
        out.messages
            .iter()
            .map(|m| String::from_utf8(m.body.clone()).unwrap())
            .collect()
    }

    #[test]
    fn vitals_leave_once_a_second_and_the_waveform_in_blocks() {
        let mut driver = driver("nonin").unwrap().create();
        let mut out = Output::default();
        for third in 0..30 {
            driver.bytes(&hex(PACKET), at(third * 333_333), &mut out);
        }
        let vitals = out.messages.iter().filter(|m| !m.waveform).count();
        assert_eq!((vitals, out.messages.len() - vitals, out.garbage), (10, 3, 0));
        assert_eq!(
            bodies(&out)[0],
            r#"{"driver":"nonin","kind":"vitals","spo2":98,"pulse_rate_oximeter":72}"#
        );
    }

    #[test]
    fn every_split_of_a_packet_gives_the_same_reading() {
        for split in 0..=PACKET.len() / 2 {
            let mut driver = driver("nonin").unwrap().create();
            let mut out = Output::default();
            let (head, tail) = (&hex(PACKET)[..split], &hex(PACKET)[split..]);
            driver.bytes(head, at(0), &mut out);
            driver.bytes(tail, at(1000), &mut out);
            assert_eq!((out.messages.len(), out.garbage), (1, 0), "split at {split}");
        }
    }

    #[test]
    fn format_8_is_recognised_by_silence_and_missing_codes_give_a_status_once() {
        let mut driver = driver("nonin").unwrap().create();
        let mut out = Output::default();
        for (second, frame) in ["80426100", "81115f00", "a37f7f00", "a37f7f00"]
            .iter()
            .enumerate()
        {
            let now = second as u64 * 1_000_000;
            driver.bytes(&hex(frame), at(now), &mut out);
            if let Some(deadline) = driver.deadline() {
                driver.timeout(at(deadline), &mut out);
            }
        }
        assert_eq!(
            bodies(&out),
            [
                r#"{"driver":"nonin","kind":"vitals","spo2":97,"pulse_rate_oximeter":66}"#,
                r#"{"driver":"nonin","kind":"vitals","spo2":95,"pulse_rate_oximeter":145}"#,
                r#"{"driver":"nonin","kind":"status","status":["out_of_track"]}"#,
            ]
        );
    }
}
