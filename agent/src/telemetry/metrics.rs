//! The metrics endpoint: Prometheus text format (version 0.0.4) with the metric names of the MedTech service where it has
//! one, and ours beside them.

use super::status::Status;
use std::fmt::Write;

/// The page for a scraper.
pub fn render(status: &Status) -> String {
    let mut page = String::with_capacity(4096);
    let summary = &status.summary;
    let traffic = [
        (
            "DeviceEvent",
            "Messages read from sources and normalized.",
            summary.messages,
        ),
        (
            "DroppedEvent",
            "Messages that gave no measurement.",
            summary.unmatched + summary.unparsable,
        ),
        ("Measurement", "Template matches.", summary.matches),
        (
            "FhirResourceSaved",
            "Observations created or updated.",
            summary.observations,
        ),
    ];
    for (name, help, value) in traffic {
        family(&mut page, name, "counter", help);
        let _ = writeln!(page, "{name} {value}");
    }
    family(
        &mut page,
        "bedside_matches",
        "gauge",
        "Template matches by state; the states add up to Measurement.",
    );
    for (state, value) in [
        ("delivered", summary.delivered),
        ("superseded", summary.superseded),
        ("buffered", summary.buffered),
        ("waiting", summary.waiting),
        ("dead", summary.dead),
        ("lost", summary.lost),
    ] {
        let _ = writeln!(page, "bedside_matches{{state=\"{state}\"}} {value}");
    }
    family(
        &mut page,
        "bedside_destination_up",
        "gauge",
        "1 when the last exchange succeeded.",
    );
    for d in &status.destinations {
        let name = label(&d.name);
        let _ = writeln!(
            page,
            "bedside_destination_up{{destination=\"{name}\"}} {}",
            u8::from(d.link == "up")
        );
    }
    family(
        &mut page,
        "bedside_destination_circuit",
        "gauge",
        "1 for the state of the circuit: closed, open until the next try, or half-open while it is tried; with its cause.",
    );
    for d in &status.destinations {
        let cause = d.error.as_ref().map_or("", |error| error.name.as_str());
        let _ = writeln!(
            page,
            "bedside_destination_circuit{{destination=\"{}\",state=\"{}\",cause=\"{}\"}} 1",
            label(&d.name),
            d.circuit,
            label(cause)
        );
    }
    family(
        &mut page,
        "bedside_destination_buffered",
        "gauge",
        "Unsent readings or messages.",
    );
    for d in &status.destinations {
        let _ = writeln!(
            page,
            "bedside_destination_buffered{{destination=\"{}\"}} {}",
            label(&d.name),
            d.buffered
        );
    }
    family(
        &mut page,
        "bedside_oldest_unsent_seconds",
        "gauge",
        "Age of the oldest unsent reading.",
    );
    for d in &status.destinations {
        let age = d.oldest_unsent_seconds.unwrap_or(0);
        let _ = writeln!(
            page,
            "bedside_oldest_unsent_seconds{{destination=\"{}\"}} {age}",
            label(&d.name)
        );
    }
    family(
        &mut page,
        "bedside_source_connected",
        "gauge",
        "1 while connected.",
    );
    for s in &status.sources {
        let _ = writeln!(
            page,
            "bedside_source_connected{{source=\"{}\"}} {}",
            label(&s.name),
            u8::from(s.connected)
        );
    }
    family(
        &mut page,
        "TotalErrors",
        "gauge",
        "Dead letters kept, by error name.",
    );
    for letters in &status.dead_letters {
        let e = &letters.error;
        let _ = writeln!(
            page,
            "TotalErrors{{Name=\"{}\",ErrorType=\"{:?}\",ErrorSeverity=\"{:?}\",Operation=\"{:?}\"}} {}",
            label(&e.name),
            e.error_type,
            e.severity,
            e.operation,
            letters.count
        );
    }
    for (name, help, value) in [
        (
            "bedside_store_bytes",
            "Bytes of database and write-ahead log.",
            status.store.bytes,
        ),
        (
            "bedside_store_damaged_messages",
            "Messages found damaged since the start.",
            status.store.damaged,
        ),
        (
            "bedside_store_trouble",
            "1 while the store cannot be written.",
            u64::from(status.store.trouble.is_some()),
        ),
        (
            "bedside_store_commits",
            "Synced commits since the start.",
            status.store.statistics.commits,
        ),
        (
            "bedside_store_payload_bytes",
            "Payload bytes stored since the start.",
            status.store.statistics.payload_bytes,
        ),
        (
            "bedside_store_device_bytes",
            "Bytes that reached the medium for the store since the start, as the store counts them.",
            status.store.statistics.device_bytes,
        ),
        (
            "bedside_store_commit_interval_ms",
            "Longest wait of a message for its commit now.",
            status.store.wear.commit_interval_ms,
        ),
        (
            "bedside_clock_trusted",
            "1 when the wall clock is trusted.",
            u64::from(status.clock_trusted),
        ),
        (
            "bedside_clock_jumps",
            "Times that the trusted wall clock was moved since the start.",
            status.clock_jumps,
        ),
    ] {
        family(&mut page, name, "gauge", help);
        let _ = writeln!(page, "{name} {value}");
    }
    family(
        &mut page,
        "bedside_device_clock_behind_seconds",
        "gauge",
        "How far clocks of devices are behind the gateway's, of those that are corrected or far off.",
    );
    for clock in &status.device_clocks {
        if let Some(seconds) = clock.behind_seconds {
            let device = label(&clock.device);
            let _ = writeln!(
                page,
                "bedside_device_clock_behind_seconds{{device=\"{device}\"}} {seconds}"
            );
        }
    }
    let (outlook, wear) = (&status.store.outlook, &status.store.wear);
    for (name, help, value) in [
        (
            "bedside_store_needed_bytes",
            "Bytes of the store that something still needs.",
            Some(outlook.needed_bytes),
        ),
        (
            "bedside_store_room_bytes",
            "Bytes that can be taken before anything is given up.",
            Some(outlook.room_bytes),
        ),
        (
            "bedside_store_full_in_seconds",
            "When the room is used up at the present rates; absent while what is needed does not grow.",
            outlook.full_in_seconds,
        ),
        (
            "bedside_store_outage_lasts_seconds",
            "How long the room lasts with nothing delivered.",
            outlook.outage_lasts_seconds,
        ),
        (
            "bedside_store_device_bytes_per_day",
            "Bytes that reach the medium in a day at the rate of the last hour.",
            wear.bytes_per_day,
        ),
        (
            "bedside_flash_budget_bytes_per_day",
            "What flash_budget allows.",
            wear.budget_per_day,
        ),
        (
            "bedside_process_written_bytes",
            "Bytes that the kernel counts as written to storage by this process.",
            wear.process_written_bytes,
        ),
        (
            "bedside_emmc_life_used_tenths",
            "What the eMMC says of its used life, the worse of its two types.",
            wear.emmc.map(|emmc| u64::from(emmc.life_a.max(emmc.life_b))),
        ),
        (
            "bedside_emmc_pre_end_of_life",
            "1 normal, 2 four fifths of the reserve used, 3 urgent.",
            wear.emmc.map(|emmc| u64::from(emmc.pre_eol)),
        ),
    ] {
        if let Some(value) = value {
            family(&mut page, name, "gauge", help);
            let _ = writeln!(page, "{name} {value}");
        }
    }
    page
}

fn family(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_quotes_stays_one_label() {
        let mut status = Status::default();
        status
            .destinations
            .push(crate::telemetry::status::DestinationState {
                name: "the \"ward\"\n".to_owned(),
                link: "up",
                circuit: "closed",
                ..Default::default()
            });
        let page = render(&status);
        assert!(page.contains("bedside_destination_up{destination=\"the \\\"ward\\\" \"} 1\n"));
        assert!(page.contains("ward\\\" \",state=\"closed\",cause=\"\"} 1\n"));
        assert!(
            page.lines()
                .all(|line| line.starts_with('#') || line.rsplit(' ').next().unwrap().parse::<f64>().is_ok())
        );
    }
}
