//! A simulated patient whose vital signs agree with each other, at rest and under light load.
//!
//! Invariants:
//! 1. The vital signs are a pure function of seed and time: two devices on one patient see the same heart.
//! 2. Diastolic < mean arterial < systolic; the pulse of the oximeter is the heart rate within one beat a minute.

/// Vital signs at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vitals {
    /// Beats a minute, as an electrocardiogram counts them.
    pub heart_rate: u32,
    /// Beats a minute, as a pulse oximeter counts them.
    pub pulse_rate: u32,
    /// Oxygen saturation in percent.
    pub spo2: u32,
    /// mm\[Hg\].
    pub systolic: u32,
    /// mm\[Hg\].
    pub diastolic: u32,
    /// mm\[Hg\]: a third of the pulse pressure above the diastolic.
    pub mean_arterial: u32,
    /// Tenths of a degree Celsius.
    pub temperature_tenths: u32,
}

/// A patient.
#[derive(Clone, Copy, Debug)]
pub struct Physiology {
    seed: u64,
    resting_heart_rate: f64,
    resting_systolic: f64,
    resting_diastolic: f64,
    usual_spo2: f64,
    usual_temperature: f64,
}

/// SplitMix64 (Steele, Lea, Flood 2014) as a hash: a number from 0 to below 1 for each pair.
fn unit(seed: u64, index: u64) -> f64 {
    let z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let top = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0);
    f64::from(top) / 4_294_967_296.0
}

/// The nearest whole number within the bounds.
fn whole(value: f64, least: u32, most: u32) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range of u32 before"
    )]
    let number = value.round().clamp(0.0, 1e6) as u32;
    number.clamp(least, most)
}

impl Physiology {
    /// The patient that `seed` stands for.
    pub fn new(seed: u64) -> Physiology {
        let between = |index, least: f64, most: f64| least + unit(seed, index) * (most - least);
        Physiology {
            seed,
            resting_heart_rate: between(1, 58.0, 82.0),
            resting_systolic: between(2, 108.0, 138.0),
            resting_diastolic: between(3, 66.0, 84.0),
            usual_spo2: between(4, 95.5, 98.5),
            usual_temperature: between(5, 36.4, 37.3),
        }
    }

    /// A slow wave of several periods (seconds) that never repeats in practice, from -1 to 1.
    fn wave(&self, stream: u64, periods: [f64; 3], seconds: f64) -> f64 {
        let sum: f64 = (stream..)
            .zip(periods)
            .map(|(index, period)| {
                let phase = unit(self.seed, 100 + index);
                (std::f64::consts::TAU * (seconds / period + phase)).sin()
            })
            .sum();
        sum / 3.0
    }

    /// Vital signs at `milliseconds` since any fixed moment.
    pub fn at(&self, milliseconds: u64) -> Vitals {
        // Whole milliseconds below 2^53 are exact.
        #[expect(
            clippy::cast_precision_loss,
            reason = "285,000 years of milliseconds are exact"
        )]
        let seconds = milliseconds as f64 / 1000.0;
        let load = 0.5 + 0.5 * self.wave(0, [97.0, 311.0, 1013.0], seconds);
        let breath = self.wave(10, [4.1, 4.7, 23.0], seconds);
        let fever = 0.4 * self.wave(20, [5003.0, 21_611.0, 86_400.0], seconds);
        let temperature = self.usual_temperature + fever + 0.2 * load;
        // About ten beats a minute for a degree, and the breath is in every pulse.
        let heart_rate = self.resting_heart_rate
            + 28.0 * load
            + 10.0 * (temperature - self.usual_temperature)
            + 2.0 * breath;
        let dip = self.wave(30, [67.0, 419.0, 1511.0], seconds);
        let spo2 = self.usual_spo2 - if dip > 0.6 { 8.0 * (dip - 0.6) } else { 0.0 };
        let systolic = self.resting_systolic + 20.0 * load + 3.0 * breath;
        let diastolic = self.resting_diastolic + 6.0 * load + 1.5 * breath;
        let heart_rate = whole(heart_rate, 40, 180);
        let (systolic, diastolic) = (whole(systolic, 85, 200), whole(diastolic, 45, 75 + 35));
        let miscount = whole(unit(self.seed, milliseconds / 1000 + 1000) * 2.999 - 0.5, 0, 2);
        Vitals {
            heart_rate,
            pulse_rate: heart_rate + miscount - 1,
            spo2: whole(spo2, 85, 100),
            systolic,
            diastolic,
            mean_arterial: diastolic + (systolic - diastolic) / 3,
            temperature_tenths: whole(10.0 * temperature, 350, 410),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vital_signs_of_many_patients_agree_with_themselves_over_a_day() {
        for seed in 0..40 {
            let patient = Physiology::new(seed);
            let mut seen = std::collections::BTreeSet::new();
            for second in (0..86_400).step_by(61) {
                let v = patient.at(second * 1000);
                assert!(v.diastolic + 20 < v.systolic, "{v:?}");
                assert!(
                    v.diastolic < v.mean_arterial && v.mean_arterial < v.systolic,
                    "{v:?}"
                );
                assert!(v.pulse_rate.abs_diff(v.heart_rate) <= 1, "{v:?}");
                assert!(
                    (90..=100).contains(&v.spo2) && (350..=400).contains(&v.temperature_tenths),
                    "{v:?}"
                );
                seen.insert(v.heart_rate);
            }
            assert!(seen.len() > 10, "the heart rate changes");
        }
    }

    #[test]
    fn a_patient_is_the_same_at_the_same_time_and_changes_slowly() {
        let (first, second) = (Physiology::new(7), Physiology::new(7));
        assert_eq!(first.at(123_456), second.at(123_456));
        assert_ne!(first.at(0), Physiology::new(8).at(0));
        for milliseconds in (0..600_000).step_by(1000) {
            let (now, next) = (first.at(milliseconds), first.at(milliseconds + 1000));
            assert!(now.heart_rate.abs_diff(next.heart_rate) <= 8);
            assert!(now.systolic.abs_diff(next.systolic) <= 8);
        }
    }
}
