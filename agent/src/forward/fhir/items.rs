//! From groups to the Observations that they become: whose they are, and which readings belong together.

use super::identity::{Named, Resolved};
use super::save::{Item, Outcome};
use super::server::Down;
use crate::associations::Ticks;
use crate::forward::{Delivery, Fate, Group, GroupReading};
use crate::packs::Pack;
use crate::telemetry::errors::ErrorRecord;
use iomt_mapping::ErrorKind;
use iomt_mapping::fhir::{
    BuildOptions, FhirMapping, IdentityForm, ObservationGroup, Reading, ReadingOutcome, ResourceIds,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Who tells whose a reading is.
pub trait Identities {
    /// The instant that decides whose a reading is that was taken then; always the same where it does not matter.
    fn instant(&self, device: &str, patient: Option<&Arc<str>>, taken: Ticks) -> Ticks;

    /// Resolves everything that a batch names. What is missing in the result could not be asked.
    fn resolve(&mut self, named: &[Named]) -> impl Future<Output = (HashMap<Named, Resolved>, Option<Down>)>;
}

/// Readings that are built together: those of one mapping, type, resources and correlation id.
#[derive(Clone, PartialEq, Eq, Hash)]
struct BucketKey {
    mapping: usize,
    type_name: Arc<str>,
    patient: String,
    device: String,
    encounter: Option<String>,
    correlation: Option<Arc<str>>,
}

impl BucketKey {
    fn new(mapping: &Arc<FhirMapping>, group: &Group, ids: &ResourceIds) -> BucketKey {
        BucketKey {
            mapping: Arc::as_ptr(mapping).addr(),
            type_name: Arc::clone(&group.key.type_name),
            patient: ids.patient.clone(),
            device: ids.device.clone(),
            encounter: ids.encounter.clone(),
            correlation: group.key.correlation.clone(),
        }
    }

    fn is_of(&self, mapping: &Arc<FhirMapping>, group: &Group, ids: &ResourceIds) -> bool {
        self.mapping == Arc::as_ptr(mapping).addr()
            && self.type_name == group.key.type_name
            && self.patient == ids.patient
            && self.device == ids.device
            && self.encounter == ids.encounter
            && self.correlation == group.key.correlation
    }
}

struct Bucket {
    mapping: Arc<FhirMapping>,
    ids: ResourceIds,
    /// Group and reading in the batch.
    places: Vec<(usize, usize)>,
}

/// The Observations that the groups become. Readings that cannot become one get their fate in `delivery`, and its link
/// says why when nobody could be asked (none then).
pub async fn items_of(
    identities: &mut impl Identities,
    identity_form: IdentityForm,
    groups: &[Group],
    delivery: &mut Delivery,
) -> Option<Vec<Item>> {
    let mappings: Vec<Option<Arc<FhirMapping>>> =
        groups.iter().map(|group| mapping_of(&group.pack)).collect();
    let mut named: Vec<Option<Named>> = Vec::with_capacity(groups.len());
    for ((group, mapping), fates) in groups.iter().zip(&mappings).zip(&mut delivery.fates) {
        let known = mapping
            .as_ref()
            .is_some_and(|m| m.template(&group.key.type_name).is_some());
        if !known {
            fates.fill(Fate::Dead(no_template(group)));
        }
        named.push(known.then(|| name_of(group)));
    }
    let mut wanted: Vec<Named> = Vec::new();
    for (group, named) in groups.iter().zip(&named) {
        let Some(named) = named else { continue };
        for reading in &group.readings {
            let name = name_at(identities, named, reading);
            if wanted.last() != Some(&name) {
                wanted.push(name);
            }
        }
    }
    let (resolved, down) = identities.resolve(&wanted).await;
    let mut buckets: Vec<(BucketKey, Bucket)> = Vec::new();
    let mut index: HashMap<BucketKey, usize> = HashMap::new();
    for (number, ((group, mapping), named)) in groups.iter().zip(&mappings).zip(&named).enumerate() {
        let (Some(mapping), Some(named)) = (mapping, named) else {
            continue;
        };
        for (place, reading) in group
            .readings
            .iter()
            .enumerate()
            .map(|(at, one)| ((number, at), one))
        {
            let ids = match resolved.get(&name_at(identities, named, reading)) {
                None => continue,
                Some(Resolved::Waiting(error)) => {
                    set(&mut delivery.fates, place, Fate::Waiting(error.clone()));
                    continue;
                }
                Some(Resolved::Ids(ids)) => ids,
            };
            // Neighbours are mostly of one Observation.
            if let Some((key, bucket)) = buckets.last_mut()
                && key.is_of(mapping, group, ids)
            {
                bucket.places.push(place);
                continue;
            }
            let key = BucketKey::new(mapping, group, ids);
            let at = *index.entry(key.clone()).or_insert_with(|| {
                let bucket = Bucket {
                    mapping: Arc::clone(mapping),
                    ids: ids.clone(),
                    places: Vec::new(),
                };
                buckets.push((key, bucket));
                buckets.len() - 1
            });
            if let Some((_, bucket)) = buckets.get_mut(at) {
                bucket.places.push(place);
            }
        }
    }
    if let Some(down) = down {
        delivery.link = down.link();
        return None;
    }
    let mut items = Vec::new();
    for (key, bucket) in buckets {
        // Senders wait for their acknowledgements.
        tokio::task::yield_now().await;
        split(
            identity_form,
            &key,
            bucket,
            groups,
            &mut items,
            &mut delivery.fates,
        );
    }
    Some(items)
}

/// What a message names, at the time of one of its readings: when it was taken, and at the latest when it came.
fn name_at(identities: &impl Identities, named: &Named, reading: &GroupReading) -> Named {
    let occurrence = reading.measurement.occurrence_time.ticks();
    let taken = if reading.received.trusted {
        occurrence.min(reading.received.wall.ticks())
    } else {
        occurrence
    };
    Named {
        instant: identities.instant(&named.device, named.patient.as_ref(), taken),
        ..named.clone()
    }
}

/// Splits a bucket into Observations.
fn split(
    identity_form: IdentityForm,
    key: &BucketKey,
    mut bucket: Bucket,
    groups: &[Group],
    items: &mut Vec<Item>,
    fates: &mut [Vec<Fate>],
) {
    bucket.places.sort_by_key(|place| {
        reading_at(groups, *place).map(|reading| (reading.position, reading.match_number))
    });
    let readings: Vec<&GroupReading> = bucket
        .places
        .iter()
        .filter_map(|place| reading_at(groups, *place))
        .collect();
    let input: Vec<Reading> = readings
        .iter()
        .map(|reading| Reading {
            measurement: reading.measurement.as_ref().clone(),
            ingestion: i64::try_from(reading.position).unwrap_or(i64::MAX),
        })
        .collect();
    let Some(template) = bucket.mapping.template(&key.type_name) else {
        return;
    };
    let places: Arc<[(usize, usize)]> = bucket.places.into();
    match template.observation_groups(&input) {
        Ok(observations) => items.extend(observations.into_iter().map(|group| {
            let options = BuildOptions {
                issued: issued(&group, &readings),
                identity_form,
                ..BuildOptions::default()
            };
            Item::new(
                Arc::clone(&bucket.mapping),
                Arc::clone(&key.type_name),
                group,
                bucket.ids.clone(),
                options,
                Arc::clone(&places),
            )
        })),
        Err(error) => {
            let error = ErrorRecord::new(error.kind.name(), error.text);
            for place in places.iter() {
                set(fates, *place, Fate::Dead(error.clone()));
            }
        }
    }
}

fn mapping_of(pack: &Pack) -> Option<Arc<FhirMapping>> {
    pack.fhir.clone()
}

fn name_of(group: &Group) -> Named {
    let not_blank = |id: &Option<Arc<str>>| id.clone().filter(|id| !id.trim().is_empty());
    Named {
        device: Arc::clone(&group.key.device),
        patient: not_blank(&group.key.patient),
        encounter: not_blank(&group.key.encounter),
        instant: i64::MAX,
    }
}

fn no_template(group: &Group) -> ErrorRecord {
    ErrorRecord::new(
        "TemplateNotFoundException",
        format!(
            "pack {} has no FHIR template with typeName {}: add one, the same in both mappings",
            group.key.pack, group.key.type_name
        ),
    )
}

fn reading_at(groups: &[Group], (group, reading): (usize, usize)) -> Option<&GroupReading> {
    groups.get(group)?.readings.get(reading)
}

/// When the newest reading was committed, so that building the Observation again gives the same; unknown while that
/// stamp cannot be trusted.
fn issued(group: &ObservationGroup, readings: &[&GroupReading]) -> Option<iomt_mapping::Timestamp> {
    let newest = group
        .readings
        .iter()
        .filter_map(|account| readings.get(account.reading))
        .max_by_key(|reading| (reading.position, reading.match_number))?;
    newest.received.trusted.then_some(newest.received.wall)
}

fn set(fates: &mut [Vec<Fate>], (group, reading): (usize, usize), fate: Fate) {
    if let Some(slot) = fates.get_mut(group).and_then(|group| group.get_mut(reading)) {
        *slot = fate;
    }
}

/// Gives the readings of an item their fate.
pub fn give_fates(item: &Item, outcome: &Outcome, fates: &mut [Vec<Fate>]) {
    for account in &item.group.readings {
        let Some(place) = item.places.get(account.reading) else {
            continue;
        };
        let fate = match (account.outcome, outcome) {
            (ReadingOutcome::Refused(kind), _) => Fate::Dead(refused_value(kind)),
            (_, Outcome::Dead(error)) => Fate::Dead(error.clone()),
            (_, Outcome::Waiting(error)) => Fate::Waiting(error.clone()),
            (_, Outcome::Retry) => Fate::Retry,
            (ReadingOutcome::Superseded, Outcome::Confirmed { .. }) => Fate::Superseded,
            (ReadingOutcome::TookPart, Outcome::Confirmed { superseded }) => {
                if superseded.contains(&account.reading) {
                    Fate::Superseded
                } else {
                    Fate::Delivered
                }
            }
        };
        set(fates, *place, fate);
    }
}

fn refused_value(kind: ErrorKind) -> ErrorRecord {
    ErrorRecord::new(
        kind.name(),
        "the value of the reading cannot become what the FHIR mapping asks for: a Quantity or SampledData needs a decimal \
         such as 36.5",
    )
}
