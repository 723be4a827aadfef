//! The reference of the configuration in `README.md` names every member, and none that does not exist.

use super::trouble::members_of;
use super::*;
use crate::ingest::serial::framing::FramingConfig;
use std::collections::BTreeSet;

const README: &str = include_str!("../../../README.md");

/// Members in the first column of the table whose head begins so.
fn documented(head: &str) -> BTreeSet<&'static str> {
    let (_, table) = README
        .split_once(&format!("\n| {head}"))
        .unwrap_or_else(|| panic!("no table {head}"));
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    // Each second piece stands between backticks; what follows the name is an example of its value.
    let spans = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    spans
        .map(|span| span.split([' ', '=']).next().unwrap_or(span))
        .collect()
}

#[test]
fn every_member_is_in_the_reference_and_nothing_else() {
    let serial = ["name", "packs", "port", "driver", "settings", "device_id"];
    for (head, members) in [
        ("`[gateway]`", members_of::<GatewayConfig>().to_vec()),
        ("`[mappings]`", members_of::<MappingsConfig>().to_vec()),
        ("`[associations]`", members_of::<AssociationsConfig>().to_vec()),
        (
            "`[[source]]` `kind = \"mqtt\"`",
            [&["name", "packs"], members_of::<MqttConfig>()].concat(),
        ),
        (
            "`[[source]]` `kind = \"serial\"`",
            [&serial, members_of::<FramingConfig>()].concat(),
        ),
        (
            "`[[destination]]` `kind = \"fhir\"`",
            [&["name"], members_of::<FhirConfig>()].concat(),
        ),
        (
            "`[[destination]]` `kind = \"event-hub\"`",
            [&["name"], members_of::<EventHubConfig>()].concat(),
        ),
        ("`[store]`", members_of::<StoreConfig>().to_vec()),
        ("`[web]`", members_of::<WebConfig>().to_vec()),
        ("`[clock]`", vec!["trust"]),
    ] {
        assert!(!members.is_empty(), "{head}");
        assert_eq!(documented(head), BTreeSet::from_iter(members), "{head}");
    }
    // Some are told in the text of others.
    let (_, device) = README.split_once("| `[[clock.device]]`").unwrap();
    let (device, _) = device.split_once("\n## ").unwrap();
    for member in members_of::<DeviceClock>() {
        assert!(
            device.contains(&format!("`{member}`")),
            "[[clock.device]] {member}"
        );
    }
}
