//! Creates Observations (`mapping.md` 4.2 and 4.3, with the pack's third file).

use serde_json::Value;

use super::group::{BuildError, ObservationGroup};
use super::identity::{Identity, IdentityForm, identity};
use super::json::{self, Object, set_list, set_text};
use super::judge::{Judged, Usable, judge};
use super::memory::SentMemory;
use super::sampled_data::{MAXIMUM_SLOTS, SamplePeriod, Slotted, TooManySlots, fill_slots};
use super::template::{FhirTemplate, Unit, ValueKind, ValueTemplate};
use crate::error::ErrorKind;
use crate::pack_options::ValueOptions;
use crate::time::Timestamp;

/// Ids of the FHIR resources that an Observation refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceIds {
    /// Patient.
    pub patient: String,
    /// Device.
    pub device: String,
    /// Encounter, when there is one.
    pub encounter: Option<String>,
}

/// What else goes into an Observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// `issued`; left out when nobody knows the time for certain.
    pub issued: Option<Timestamp>,
    /// How precise the identifier's time is.
    pub identity_form: IdentityForm,
    /// What a changed `defaultPeriod` means for a window that has an Observation already.
    pub changed_period: ChangedPeriod,
    /// Extensions of a new Observation.
    pub extension: Vec<Value>,
    /// Identifiers of a new Observation beside its own.
    pub identifier: Vec<Value>,
}

/// What becomes of new readings when the stored Observation of their window has another SampledData period than the
/// mapping. Stored values never move in time either way (rule D19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangedPeriod {
    /// They go into the stored slots; the mapping's period starts with the next window.
    #[default]
    KeepStored,
    /// They start a new Observation of the window with the mapping's period.
    NewObservation,
}

/// A new Observation.
#[derive(Clone, Debug, PartialEq)]
pub struct BuiltObservation {
    /// What identifies it.
    pub identity: Identity,
    /// The FHIR resource.
    pub resource: Value,
    /// To be kept for later merges once the server has it.
    pub memory: SentMemory,
}

/// A value template with the group's data for it.
pub(crate) struct Use<'t> {
    /// `None` for the value of the Observation, else the index of the component.
    pub component: Option<usize>,
    pub template: &'t ValueTemplate,
    pub name: &'t str,
    pub options: Option<&'t ValueOptions>,
    pub judged: Judged,
}

impl Use<'_> {
    /// Key in the [`SentMemory`]: a value and a component may have the same name.
    pub(crate) fn memory_key(&self) -> String {
        match self.component {
            None => self.name.to_owned(),
            Some(_) => format!("component {}", self.name),
        }
    }
}

pub(crate) fn too_many_slots(_: TooManySlots) -> BuildError {
    let text = format!("The period of the Observation has more than {MAXIMUM_SLOTS} slots of defaultPeriod.");
    BuildError::new(ErrorKind::NotSupportedException, text)
}

impl FhirTemplate {
    /// The value templates that the group has data for. An error when every reading of every one was refused.
    pub(crate) fn uses<'t>(&'t self, group: &ObservationGroup) -> Result<Vec<Use<'t>>, BuildError> {
        let mut uses = Vec::new();
        for (component, template) in self.values() {
            let Some(name) = template.name.as_deref() else {
                continue;
            };
            let Some(series) = group.series(name) else {
                continue;
            };
            let options = self.options.value(name);
            uses.push(Use {
                component,
                template,
                name,
                options,
                judged: judge(template, options, series),
            });
        }
        let refused = uses
            .iter()
            .find_map(|one| one.judged.refused.last())
            .map(|refusal| refusal.error);
        match refused {
            Some(kind) if uses.iter().all(|one| one.judged.usable == Usable::Nothing) => Err(
                BuildError::new(kind, "No reading of the period has a usable value."),
            ),
            _ => Ok(uses),
        }
    }

    /// Creates the Observation of a group. `type_name` is the measurement type as received.
    ///
    /// Errors: `InvalidQuantityFhirValueException` when every reading was refused, `NotSupportedException` when the
    /// period has too many slots.
    pub fn create(
        &self,
        group: &ObservationGroup,
        ids: &ResourceIds,
        type_name: &str,
        options: &BuildOptions,
    ) -> Result<BuiltObservation, BuildError> {
        let uses = self.uses(group)?;
        let identity = identity(
            &ids.patient,
            &ids.device,
            type_name,
            &group.id_segment,
            options.identity_form,
        );
        let of_type = &self.options;
        let mut memory = SentMemory::default();
        let mut resource = Object::new();
        set_text(&mut resource, "resourceType", Some("Observation"));
        set_text(&mut resource, "id", Some(&identity.id));
        if !of_type.profile.is_empty() {
            let mut meta = Object::new();
            let profiles = of_type.profile.iter().map(|p| Value::from(p.as_str())).collect();
            set_list(&mut meta, "profile", profiles);
            resource.insert("meta".to_owned(), Value::Object(meta));
        }
        let mut identifier = Object::new();
        set_text(&mut identifier, "system", Some(identity.system));
        set_text(&mut identifier, "value", Some(&identity.value));
        set_list(&mut resource, "extension", options.extension.clone());
        let mut identifiers = vec![Value::Object(identifier)];
        identifiers.extend(options.identifier.iter().cloned());
        set_list(&mut resource, "identifier", identifiers);
        set_text(&mut resource, "status", Some("final"));
        set_list(&mut resource, "category", self.category_json());
        let code = json::code(&self.codes, of_type.mdc_code.as_deref(), type_name);
        resource.insert("code".to_owned(), code);
        let mut refer = |name: &str, kind: &str, id: &str| {
            resource.insert(name.to_owned(), json::reference(&format!("{kind}/{id}")));
        };
        refer("subject", "Patient", &ids.patient);
        if let Some(encounter) = &ids.encounter {
            refer("encounter", "Encounter", encounter);
        }
        self.set_effective(&mut resource, group.boundary_start, group.boundary_end);
        let issued = options.issued.map(|time| time.to_string());
        set_text(&mut resource, "issued", issued.as_deref());
        let performers = of_type.performer.iter().map(|p| json::reference(p)).collect();
        set_list(&mut resource, "performer", performers);
        let mut components = Vec::new();
        for one in &uses {
            if one.component.is_none() {
                set_value(&mut resource, one, group, &mut memory)?;
            } else {
                components.extend(self.new_component(one, group, &mut memory)?);
            }
        }
        let notes = of_type.note.iter().map(|text| {
            let mut note = Object::new();
            set_text(&mut note, "text", Some(text));
            Value::Object(note)
        });
        set_list(&mut resource, "note", notes.collect());
        for (name, concept) in [("bodySite", &of_type.body_site), ("method", &of_type.method)] {
            if let Some(concept) = concept.as_ref().and_then(json::concept) {
                resource.insert(name.to_owned(), concept);
            }
        }
        resource.insert(
            "device".to_owned(),
            json::reference(&format!("Device/{}", ids.device)),
        );
        set_list(&mut resource, "component", components);
        Ok(BuiltObservation {
            identity,
            resource: Value::Object(resource),
            memory,
        })
    }

    pub(crate) fn category_json(&self) -> Vec<Value> {
        self.category.iter().filter_map(json::concept).collect()
    }

    pub(crate) fn set_effective(&self, resource: &mut Object, start: Timestamp, end: Timestamp) {
        if self.options.effective_date_time && start == end {
            resource.shift_remove("effectivePeriod");
            set_text(resource, "effectiveDateTime", Some(&start.to_string()));
        } else {
            resource.shift_remove("effectiveDateTime");
            resource.shift_remove("effectiveInstant");
            let mut period = Object::new();
            set_text(&mut period, "start", Some(&start.to_seven_digits()));
            set_text(&mut period, "end", Some(&end.to_seven_digits()));
            resource.insert("effectivePeriod".to_owned(), Value::Object(period));
        }
    }

    /// A component with its code and value; `None` when there is nothing to tell.
    pub(crate) fn new_component(
        &self,
        one: &Use<'_>,
        group: &ObservationGroup,
        memory: &mut SentMemory,
    ) -> Result<Option<Value>, BuildError> {
        let codes = one
            .component
            .and_then(|index| self.components.get(index))
            .map(|component| component.codes.as_slice())
            .unwrap_or_default();
        let mdc_code = one.options.and_then(|o| o.mdc_code.as_deref());
        let mut component = Object::new();
        component.insert("code".to_owned(), json::code(codes, mdc_code, one.name));
        let before = component.len();
        set_value(&mut component, one, group, memory)?;
        Ok((component.len() > before).then_some(Value::Object(component)))
    }
}

/// Sets `value[x]` of a new Observation or component, with what belongs to it.
fn set_value(
    target: &mut Object,
    one: &Use<'_>,
    group: &ObservationGroup,
    memory: &mut SentMemory,
) -> Result<(), BuildError> {
    match (&one.judged.usable, &one.template.kind) {
        (
            Usable::Samples(samples),
            ValueKind::SampledData {
                period,
                spelled_period,
                unit,
                ..
            },
        ) => {
            let slotted = fill_slots(samples.clone(), group.boundary_start, group.boundary_end, *period)
                .map_err(too_many_slots)?;
            let mut sampled = Object::new();
            sampled.insert("origin".to_owned(), json::quantity("0", unit, one.options));
            sampled.insert("period".to_owned(), json::number(spelled_period));
            sampled.insert("dimensions".to_owned(), Value::from(1));
            set_text(&mut sampled, "data", Some(&slotted.data));
            remember_samples(memory, one, &slotted);
            target.insert("valueSampledData".to_owned(), Value::Object(sampled));
        }
        _ => {
            set_single_value(target, one, memory);
        }
    }
    let unit = match &one.template.kind {
        ValueKind::Quantity(unit) | ValueKind::SampledData { unit, .. } => unit,
        _ => &Unit::default(),
    };
    if let Some(options) = one.options {
        let ranges = json::reference_ranges(&options.reference_range, unit, options);
        if one.judged.usable != Usable::Nothing {
            set_list(target, "referenceRange", ranges);
        }
    }
    Ok(())
}

/// Sets a Quantity, String, CodeableConcept or the reason why there is none, and the interpretation.
pub(crate) fn set_single_value(target: &mut Object, one: &Use<'_>, memory: &mut SentMemory) {
    let absent = "dataAbsentReason";
    match (&one.judged.usable, &one.template.kind) {
        (Usable::Number { text, time }, ValueKind::Quantity(unit)) => {
            target.shift_remove(absent);
            target.insert(
                "valueQuantity".to_owned(),
                json::quantity(text, unit, one.options),
            );
            memory.remember(&one.memory_key(), text, vec![*time]);
            if let Some(options) = one.options.filter(|o| !o.interpretation.is_empty()) {
                match options.interpret(text) {
                    Some(rule) => {
                        target.insert("interpretation".to_owned(), json::interpretation(rule));
                    }
                    None => {
                        target.shift_remove("interpretation");
                    }
                }
            }
        }
        (Usable::Text { text, time }, _) => {
            target.shift_remove(absent);
            set_text(target, "valueString", Some(text));
            memory.remember(&one.memory_key(), text, vec![*time]);
        }
        (Usable::Concept, ValueKind::CodeableConcept(concept)) => {
            target.shift_remove(absent);
            if let Some(concept) = json::concept(concept) {
                target.insert("valueCodeableConcept".to_owned(), concept);
            }
        }
        (Usable::Absent { reason }, _) => {
            target.insert(absent.to_owned(), json::data_absent_reason(reason));
        }
        _ => {}
    }
}

/// Remembers when the samples in `data` were taken.
pub(crate) fn remember_samples(memory: &mut SentMemory, one: &Use<'_>, slotted: &Slotted) {
    let times = slotted.placed.iter().map(|sample| sample.time).collect();
    memory.remember(&one.memory_key(), &slotted.data, times);
}

/// The samples of a stored `data`, each at its remembered time.
pub(crate) fn with_remembered_times(
    stored: &mut [super::sampled_data::Sample],
    times: &[Timestamp],
    start: Timestamp,
    period: SamplePeriod,
) {
    let mut times = times.iter().peekable();
    for sample in stored {
        let slot = period.slot_of(start, sample.time);
        while times
            .next_if(|time| period.slot_of(start, **time) < slot)
            .is_some()
        {}
        if let Some(time) = times.next_if(|time| period.slot_of(start, **time) == slot) {
            sample.time = *time;
        }
    }
}
