//! Lints of a FHIR mapping: units, codes, periods, vital signs profiles.

use super::loinc::{LOINC_SYSTEM, Topic, has_loinc_check_digit, loinc};
use super::ucum::{UCUM_SYSTEM, check_ucum, suggest_ucum};
use crate::fhir::{Coding, FhirMapping, FhirTemplate, MAXIMUM_SLOTS, Period, Unit, ValueKind, ValueTemplate};
use crate::finding::{Finding, Place, Severity};
use crate::time::Timestamp;

/// Codes of the FHIR vital signs profiles and the units that they allow.
const VITAL_SIGNS: [(&str, &[&str]); 12] = [
    ("9279-1", &["/min"]),
    ("8867-4", &["/min"]),
    ("2708-6", &["%"]),
    ("59408-5", &["%"]),
    ("8310-5", &["Cel", "[degF]"]),
    ("8302-2", &["cm", "[in_i]"]),
    ("9843-4", &["cm", "[in_i]"]),
    ("29463-7", &["g", "kg", "[lb_av]"]),
    ("39156-5", &["kg/m2"]),
    ("8480-6", &["mm[Hg]"]),
    ("8462-4", &["mm[Hg]"]),
    ("8478-0", &["mm[Hg]"]),
];
const BLOOD_PRESSURE_PANEL: &str = "85354-9";

/// Lints of all templates.
pub(crate) fn lint_fhir(mapping: &FhirMapping) -> Vec<Finding> {
    let mut findings = Vec::new();
    for template in mapping.templates() {
        let mut lint = Lint {
            template,
            findings: &mut findings,
        };
        lint.period();
        lint.codes();
        for (component, value) in template.values() {
            lint.unit(value);
            lint.sampled_data(value);
            lint.vital_sign(component, value);
        }
        lint.profile();
    }
    findings
}

struct Lint<'m> {
    template: &'m FhirTemplate,
    findings: &'m mut Vec<Finding>,
}

fn is_loinc(coding: &Coding) -> bool {
    coding.system.as_deref() == Some(LOINC_SYSTEM)
}

fn loinc_texts(codes: &[Coding]) -> impl Iterator<Item = &str> {
    codes
        .iter()
        .filter(|c| is_loinc(c))
        .filter_map(|c| c.code.as_deref())
}

fn unit_of(value: &ValueTemplate) -> Option<&Unit> {
    match &value.kind {
        ValueKind::Quantity(unit) | ValueKind::SampledData { unit, .. } => Some(unit),
        _ => None,
    }
}

impl Lint<'_> {
    fn add(
        &mut self,
        severity: Severity,
        kind: &'static str,
        place: Option<Place>,
        field: &str,
        message: String,
    ) -> &mut Finding {
        let mut finding = Finding::new(severity, kind, message)
            .template(self.template.index)
            .field(field);
        finding.place = place;
        self.findings.push(finding);
        let last = self.findings.len() - 1;
        #[expect(clippy::indexing_slicing, reason = "the element was pushed on the line above")]
        &mut self.findings[last]
    }

    fn period(&mut self) {
        let template = self.template;
        let window = matches!(template.period, Period::Hourly | Period::Daily);
        let single = template
            .values()
            .find(|(_, value)| matches!(value.kind, ValueKind::Quantity(_) | ValueKind::String));
        if let (true, Some((_, value))) = (window, single) {
            let name = value.name.as_deref().unwrap_or_default();
            let message = format!(
                "Of the readings of '{name}' within one Observation only the last is kept: a Quantity or String holds one value."
            );
            self.add(
                Severity::Information,
                "OnlyLastReading",
                template.period_place,
                "periodInterval",
                message,
            )
            .suggest_with("Use periodInterval 0 for an Observation per reading, or SampledData.");
        }
    }

    fn codes(&mut self) {
        let template = self.template;
        self.coding_list(
            &template.codes,
            None,
            &template.type_name,
            template.components.is_empty(),
        );
        for component in &template.components {
            let name = component.value.name.as_deref().unwrap_or_default();
            self.coding_list(&component.codes, component.value.place, name, true);
            // obs-7: a component with the code of the Observation forbids a value there.
            let same = loinc_texts(&component.codes)
                .find(|code| template.value.is_some() && loinc_texts(&template.codes).any(|c| c == *code));
            if let Some(code) = same {
                let message = format!(
                    "The component '{name}' has the code {code} of the Observation, which has a value too; FHIR forbids that (obs-7)."
                );
                self.add(
                    Severity::Warning,
                    "ComponentRepeatsCode",
                    component.value.place,
                    "codes",
                    message,
                );
            }
        }
    }

    /// `name` is what the codes are for, judged where no display tells it.
    fn coding_list(&mut self, codes: &[Coding], place: Option<Place>, name: &str, name_tells: bool) {
        for coding in codes.iter().filter(|c| is_loinc(c)) {
            let Some(code) = coding.code.as_deref() else {
                continue;
            };
            let place = coding.place.or(place);
            let Some(known) = loinc(code) else {
                if !has_loinc_check_digit(code) {
                    let message = format!("'{code}' is no LOINC code: its check digit is wrong.");
                    self.add(Severity::Information, "LoincCheckDigit", place, "code", message);
                }
                continue;
            };
            let meant = coding
                .display
                .as_deref()
                .and_then(Topic::of)
                .or_else(|| Topic::of(name).filter(|_| name_tells));
            let Some(actual) = Topic::of(known.display) else {
                continue;
            };
            if let Some(meant) = meant.filter(|meant| *meant != actual) {
                let shown = coding.display.as_deref().unwrap_or(name);
                let message = format!("LOINC {code} is \"{}\", not \"{shown}\".", known.display);
                let right = meant.usual_code();
                let display = loinc(right).map_or("", |c| c.display);
                self.add(Severity::Warning, "WrongLoinc", place, "code", message)
                    .suggest_with(format!("Did you mean {right} ({display})?"));
            }
        }
    }

    fn unit(&mut self, value: &ValueTemplate) {
        let Some(unit) = unit_of(value) else { return };
        let name = value.name.as_deref().unwrap_or_default();
        let options = self.template.options.value(name);
        let system = unit
            .system
            .as_deref()
            .or_else(|| options.and_then(|o| o.system.as_deref()));
        let code = unit
            .code
            .as_deref()
            .or_else(|| options.and_then(|o| o.code.as_deref()));
        let is_sampled = matches!(value.kind, ValueKind::SampledData { .. });
        let advice = |text: &str| match (suggest_ucum(text), is_sampled) {
            (Some(right), false) => format!("Write \"system\": \"{UCUM_SYSTEM}\", \"code\": \"{right}\"."),
            (Some(right), true) => {
                format!("Write \"{right}\", or give \"system\" and \"code\" in the pack's third file.")
            }
            (None, _) => {
                "UCUM codes are listed at https://ucum.org; annotations stand in braces, for example {steps}."
                    .to_owned()
            }
        };
        match (system, code, unit.unit.as_deref()) {
            (Some(UCUM_SYSTEM), Some(code), _) => {
                if let Err(error) = check_ucum(code) {
                    let message = format!("The code \"{code}\" is no UCUM unit: {}.", error.message);
                    let advice = advice(code);
                    self.add(Severity::Warning, "NonUcumUnit", unit.place, "code", message)
                        .suggest_with(advice);
                }
            }
            (Some(UCUM_SYSTEM), None, shown) => {
                let message = "The unit has the system of UCUM but no code.".to_owned();
                let advice = advice(shown.unwrap_or_default());
                self.add(Severity::Warning, "NonUcumUnit", unit.place, "code", message)
                    .suggest_with(advice);
            }
            (Some(_), _, _) => {}
            (None, _, Some(shown)) if check_ucum(shown).is_err() => {
                let message = format!("The unit \"{shown}\" is no UCUM unit and has no code.");
                let advice = advice(shown);
                self.add(Severity::Warning, "NonUcumUnit", unit.place, "unit", message)
                    .suggest_with(advice);
            }
            (None, _, Some(_)) => {}
            (None, _, None) => {
                let message = format!("The value '{name}' has no unit.");
                self.add(Severity::Information, "NoUnit", unit.place, "unit", message)
                    .suggest_with("Give a unit; for plain numbers the UCUM code is \"1\".");
            }
        }
    }

    fn sampled_data(&mut self, value: &ValueTemplate) {
        let ValueKind::SampledData {
            period,
            spelled_period,
            period_place,
            ..
        } = &value.kind
        else {
            return;
        };
        let (start, end) = self
            .template
            .period
            .boundary(Timestamp::from_ticks(0).unwrap_or(Timestamp::MIN));
        match self.template.period {
            Period::Single => {
                let message =
                    "SampledData without periodInterval: every instant becomes an Observation with one sample.".to_owned();
                self.add(
                    Severity::Warning,
                    "SampledDataWithoutPeriod",
                    self.template.period_place,
                    "periodInterval",
                    message,
                )
                .suggest_with("Use \"periodInterval\": 60 (an hour) or 1440 (a day), or a Quantity.");
            }
            Period::Hourly | Period::Daily => {
                let ticks = self.template.period.ticks().unwrap_or(0);
                if !period.divides(ticks) {
                    let message = format!(
                        "A period of {spelled_period} ms does not divide the {} minutes of the Observation: its last slot reaches beyond.",
                        self.template.period.number()
                    );
                    self.add(
                        Severity::Warning,
                        "PeriodDoesNotDivide",
                        *period_place,
                        "defaultPeriod",
                        message,
                    );
                }
                let slots = period.slots(start, end);
                if slots > MAXIMUM_SLOTS {
                    let message = format!(
                        "An Observation would have {slots} samples, more than {MAXIMUM_SLOTS}; it cannot be built."
                    );
                    self.add(
                        Severity::Warning,
                        "TooManySlots",
                        *period_place,
                        "defaultPeriod",
                        message,
                    )
                    .suggest_with("Use an hour instead of a day, or a longer period.");
                }
            }
            Period::Correlation => {}
        }
    }

    /// Value and unit of a code with a vital signs profile.
    fn vital_sign(&mut self, component: Option<usize>, value: &ValueTemplate) {
        let template = self.template;
        let codes = match component {
            None => &template.codes,
            Some(index) => match template.components.get(index) {
                Some(component) => &component.codes,
                None => return,
            },
        };
        let Some((code, units)) = VITAL_SIGNS
            .iter()
            .find(|(code, _)| loinc_texts(codes).any(|c| c == *code))
        else {
            return;
        };
        let name = loinc(code).map_or("", |c| c.display);
        match &value.kind {
            ValueKind::SampledData { .. } => {
                let message = format!(
                    "The profiles of {code} ({name}) in US Core ask for a Quantity; SampledData satisfies the base vital signs profile only."
                );
                self.add(
                    Severity::Information,
                    "VitalSignsProfile",
                    value.place,
                    "valueType",
                    message,
                );
            }
            ValueKind::Quantity(unit) => {
                let options = value
                    .name
                    .as_deref()
                    .and_then(|name| template.options.value(name));
                let given = unit
                    .code
                    .as_deref()
                    .or_else(|| options.and_then(|o| o.code.as_deref()));
                let is_allowed = given.is_some_and(|code| units.contains(&code));
                // An invalid unit is told already.
                if !is_allowed && given.is_none_or(|code| check_ucum(code).is_ok()) {
                    let message = format!(
                        "The vital signs profile of {code} ({name}) allows the UCUM codes {}.",
                        units.join(", ")
                    );
                    let advice = format!(
                        "Write \"system\": \"{UCUM_SYSTEM}\", \"code\": \"{}\".",
                        units.first().unwrap_or(&"")
                    );
                    self.add(
                        Severity::Warning,
                        "VitalSignsProfile",
                        unit.place,
                        "code",
                        message,
                    )
                    .suggest_with(advice);
                }
            }
            ValueKind::String | ValueKind::CodeableConcept(_) => {
                let message = format!("The vital signs profile of {code} ({name}) asks for a Quantity.");
                self.add(
                    Severity::Warning,
                    "VitalSignsProfile",
                    value.place,
                    "valueType",
                    message,
                );
            }
        }
    }

    /// Category and components of the vital signs profiles.
    fn profile(&mut self) {
        let template = self.template;
        let has = |code: &str| loinc_texts(&template.codes).any(|c| c == code);
        let is_panel = has(BLOOD_PRESSURE_PANEL);
        let vital = VITAL_SIGNS.iter().map(|(code, _)| *code).find(|code| has(code));
        let Some(code) = vital.or(is_panel.then_some(BLOOD_PRESSURE_PANEL)) else {
            return;
        };
        let place = template.type_name_place;
        let categories = template.category.iter().flat_map(|c| &c.codes);
        if !categories
            .clone()
            .any(|c| c.code.as_deref() == Some("vital-signs"))
        {
            let message = format!("The vital signs profile of {code} asks for the category vital-signs.");
            self.add(Severity::Warning, "VitalSignsProfile", place, "category", message)
                .suggest_with(
                    "Add \"category\": [{ \"codes\": [{ \"code\": \"vital-signs\", \"system\": \
                     \"http://terminology.hl7.org/CodeSystem/observation-category\" }] }].",
                );
        }
        if is_panel {
            let of_components = |code: &str| {
                template
                    .components
                    .iter()
                    .any(|component| loinc_texts(&component.codes).any(|c| c == code))
            };
            for (code, name) in [("8480-6", "systolic"), ("8462-4", "diastolic")] {
                if !of_components(code) {
                    let message = format!(
                        "The blood pressure profile asks for a component with LOINC {code} ({name})."
                    );
                    self.add(
                        Severity::Warning,
                        "VitalSignsProfile",
                        place,
                        "components",
                        message,
                    );
                }
            }
        }
        if has("2708-6") != has("59408-5") {
            let missing = if has("2708-6") { "59408-5" } else { "2708-6" };
            let message = format!(
                "The US Core profile of pulse oximetry asks for both 2708-6 and 59408-5; {missing} is missing."
            );
            self.add(
                Severity::Information,
                "VitalSignsProfile",
                place,
                "codes",
                message,
            );
        }
    }
}

trait Suggest {
    fn suggest_with(&mut self, advice: impl Into<String>);
}

impl Suggest for Finding {
    fn suggest_with(&mut self, advice: impl Into<String>) {
        self.suggestion = Some(advice.into());
    }
}
