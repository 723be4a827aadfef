//! Wearables that send a JSON object or a line of columns per reading, in the form that the mapping packs of
//! `board-configs/mappings` take.

use super::physiology::Physiology;
use iomt_mapping::Timestamp;

/// Ticks of 100 ns in a millisecond.
const MILLISECOND: i64 = 10_000;

/// What a wearable measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WearableKind {
    /// Heart rate and skin temperature.
    Band,
    /// Oxygen saturation and pulse rate.
    Oximeter,
    /// Blood pressure.
    Cuff,
}

impl WearableKind {
    /// The device of each kind on one patient, in turn.
    const ALL: [WearableKind; 3] = [WearableKind::Band, WearableKind::Oximeter, WearableKind::Cuff];

    fn name(self) -> &'static str {
        match self {
            WearableKind::Band => "band",
            WearableKind::Oximeter => "oximeter",
            WearableKind::Cuff => "cuff",
        }
    }
}

/// One wearable on one patient.
#[derive(Clone, Debug)]
pub struct Wearable {
    kind: WearableKind,
    device_id: String,
    patient_id: String,
    physiology: Physiology,
    /// Time of the last reading: no two readings of a device have the same.
    last: i64,
}

impl Wearable {
    /// A wearable of `kind` on patient `patient`; the patients of two seeds differ.
    pub fn new(kind: WearableKind, patient: u64, seed: u64) -> Wearable {
        Wearable {
            kind,
            device_id: format!("{}-{:04}", kind.name(), patient + 1),
            patient_id: format!("patient-{:04}", patient + 1),
            physiology: Physiology::new(seed.wrapping_add(patient.wrapping_mul(0x5851_F42D_4C95_7F2D))),
            last: i64::MIN,
        }
    }

    /// `count` wearables: a band, an oximeter and a cuff on each patient.
    pub fn ward(count: usize, seed: u64) -> Vec<Wearable> {
        let patients = (0_u64..).flat_map(|patient| WearableKind::ALL.map(|kind| (patient, kind)));
        patients
            .take(count)
            .map(|(patient, kind)| Wearable::new(kind, patient, seed))
            .collect()
    }

    /// The device identifier in its messages.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The patient identifier in its messages.
    pub fn patient_id(&self) -> &str {
        &self.patient_id
    }

    /// What it measures.
    pub fn kind(&self) -> WearableKind {
        self.kind
    }

    /// Takes a reading at `now`: names and values in the order of a message. Times are whole milliseconds and never
    /// repeat, so that above a thousand readings a second they run ahead of the clock.
    fn read(&mut self, now: Timestamp) -> Vec<(&'static str, Field)> {
        let ticks = now
            .floor_to(MILLISECOND)
            .ticks()
            .max(self.last.saturating_add(MILLISECOND));
        self.last = ticks;
        let time = Timestamp::from_ticks(ticks).unwrap_or(now);
        let vitals = self
            .physiology
            .at(u64::try_from(ticks / MILLISECOND).unwrap_or(0));
        let mut fields = vec![
            ("deviceId", Field::Text(self.device_id.clone())),
            ("patientId", Field::Text(self.patient_id.clone())),
            ("time", Field::Text(time.to_string())),
        ];
        let number = |value: u32| Field::Number(value.to_string());
        match self.kind {
            WearableKind::Band => {
                let tenths = vitals.temperature_tenths;
                fields.push(("heartRate", number(vitals.heart_rate)));
                fields.push((
                    "skinTemperature",
                    Field::Number(format!("{}.{}", tenths / 10, tenths % 10)),
                ));
            }
            WearableKind::Oximeter => {
                fields.push(("spo2", number(vitals.spo2)));
                fields.push(("pulseRate", number(vitals.pulse_rate)));
            }
            WearableKind::Cuff => {
                fields.push(("systolic", number(vitals.systolic)));
                fields.push(("diastolic", number(vitals.diastolic)));
                fields.push(("meanArterial", number(vitals.mean_arterial)));
            }
        }
        fields
    }

    /// A reading as a JSON object.
    pub fn json(&mut self, now: Timestamp) -> String {
        let members: Vec<String> = self
            .read(now)
            .iter()
            .map(|(name, field)| match field {
                // Names, ids and times hold nothing that JSON escapes.
                Field::Text(text) => format!("\"{name}\":\"{text}\""),
                Field::Number(text) => format!("\"{name}\":{text}"),
            })
            .collect();
        format!("{{{}}}", members.join(","))
    }

    /// A reading as a line of columns without its end.
    pub fn csv(&mut self, now: Timestamp) -> String {
        let fields = self.read(now);
        let texts: Vec<&str> = fields.iter().map(|(_, field)| field.text()).collect();
        texts.join(",")
    }

    /// The names of the columns.
    pub fn csv_header(&self) -> String {
        let fields = self.clone().read(Timestamp::MIN);
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        names.join(",")
    }
}

enum Field {
    Text(String),
    Number(String),
}

impl Field {
    fn text(&self) -> &str {
        match self {
            Field::Text(text) | Field::Number(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn now() -> Timestamp {
        Timestamp::from_ticks(17_900_000_001_000_123).unwrap()
    }

    #[test]
    fn devices_on_one_patient_tell_the_same_story() {
        let mut ward = Wearable::ward(6, 1);
        let read: Vec<Value> = ward
            .iter_mut()
            .map(|w| serde_json::from_str(&w.json(now())).unwrap())
            .collect();
        assert_eq!(read[0]["deviceId"], "band-0001");
        assert_eq!(read[4]["deviceId"], "oximeter-0002");
        for patient in [0, 3] {
            assert_eq!(read[patient]["patientId"], read[patient + 2]["patientId"]);
            let heart = read[patient]["heartRate"].as_i64().unwrap();
            let pulse = read[patient + 1]["pulseRate"].as_i64().unwrap();
            assert!((heart - pulse).abs() <= 1);
        }
        assert_ne!(read[0]["patientId"], read[3]["patientId"]);
    }

    #[test]
    fn no_two_readings_of_a_device_have_the_same_time() {
        let mut band = Wearable::new(WearableKind::Band, 0, 1);
        let times: Vec<String> = (0..3)
            .map(|_| {
                let read: Value = serde_json::from_str(&band.json(now())).unwrap();
                read["time"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(times[0], now().floor_to(MILLISECOND).to_string());
        assert!(times[0] < times[1] && times[1] < times[2]);
    }

    #[test]
    fn columns_stand_below_their_names() {
        let mut cuff = Wearable::new(WearableKind::Cuff, 0, 1);
        let header = cuff.csv_header();
        assert_eq!(header, "deviceId,patientId,time,systolic,diastolic,meanArterial");
        let mut same = cuff.clone();
        let read: Value = serde_json::from_str(&same.json(now())).unwrap();
        let line = cuff.csv(now());
        for (name, text) in header.split(',').zip(line.split(',')) {
            assert_eq!(read[name].to_string().trim_matches('"'), text);
        }
    }
}
