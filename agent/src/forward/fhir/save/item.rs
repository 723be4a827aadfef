//! A group on its way to its Observation.

use iomt_mapping::fhir::{
    BuildOptions, FhirMapping, FhirTemplate, IdSegment, Identity, ObservationGroup, Period, ResourceIds,
    identity,
};
use std::sync::Arc;

/// A group on its way to its Observation.
pub struct Item {
    /// The mapping that it is built with.
    pub mapping: Arc<FhirMapping>,
    /// Measurement type as received.
    pub type_name: Arc<str>,
    /// The readings.
    pub group: ObservationGroup,
    /// What it refers to.
    pub ids: ResourceIds,
    /// How it is built.
    pub options: BuildOptions,
    /// Group and reading in the batch, for each reading index of `group`.
    pub places: Arc<[(usize, usize)]>,
    pub(super) identity: Identity,
    /// How often it changed on the server between reading and writing.
    pub(super) conflicts: u8,
}

impl Item {
    /// An item; its identity follows from the rest.
    pub fn new(
        mapping: Arc<FhirMapping>,
        type_name: Arc<str>,
        group: ObservationGroup,
        ids: ResourceIds,
        options: BuildOptions,
        places: Arc<[(usize, usize)]>,
    ) -> Item {
        let identity = identity_of(&group, &ids, &type_name, &options);
        Item {
            mapping,
            type_name,
            group,
            ids,
            options,
            places,
            identity,
            conflicts: 0,
        }
    }

    /// How it is built.
    pub fn template(&self) -> Option<&FhirTemplate> {
        self.mapping.template(&self.type_name)
    }

    /// What identifies it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The same readings as another Observation (rules D19 and D25).
    #[must_use]
    pub fn moved(mut self, id_segment: IdSegment) -> Item {
        self.group = self.group.with_segment(id_segment);
        self.identity = identity_of(&self.group, &self.ids, &self.type_name, &self.options);
        self
    }

    /// Whether it stands for more than one instant.
    pub fn has_period(&self) -> bool {
        self.template()
            .is_some_and(|template| template.period() != Period::Single)
    }
}

fn identity_of(
    group: &ObservationGroup,
    ids: &ResourceIds,
    type_name: &str,
    options: &BuildOptions,
) -> Identity {
    identity(
        &ids.patient,
        &ids.device,
        type_name,
        &group.id_segment,
        options.identity_form,
    )
}
