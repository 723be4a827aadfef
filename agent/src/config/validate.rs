//! What the types cannot say: names that must be unique, members that exclude each other, addresses that cannot be one.

mod destination;
mod payload;

use super::azure;
use super::reader::Draft;
use super::tree::{Step, Tree};
use super::{FhirConfig, MqttConfig, SerialConfig, SourceConfig, SourceKind, TlsConfig};
use crate::ingest::serial::drivers;
use crate::ingest::serial::port_name::PortName;
use Step::{Item, Member};
use iomt_mapping::finding::nearest;
use iomt_mapping::{Finding, Severity};
use std::collections::HashMap;

/// The store cannot work in less.
const SMALLEST_STORE: u64 = 8 * 1024 * 1024;

/// Largest MQTT payload that fits the window of one that takes large messages.
const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;

/// Everything that is wrong in what could be read.
pub(super) fn validate(draft: &Draft, tree: &Tree<'_>) -> Vec<Finding> {
    let mut check = Check {
        tree,
        findings: Vec::new(),
    };
    check.general(draft);
    let names = |list: Vec<(usize, &String)>| list.into_iter().map(|(n, name)| (n, name.clone())).collect();
    check.names(
        "source",
        names(draft.sources.iter().map(|(n, s)| (*n, &s.name)).collect()),
    );
    check.names(
        "destination",
        names(draft.destinations.iter().map(|(n, d)| (*n, &d.name)).collect()),
    );
    for (number, source) in &draft.sources {
        check.source(*number, source);
    }
    check.shared_lines(&draft.sources);
    for (number, destination) in &draft.destinations {
        check.destination(*number, destination, &draft.destinations);
    }
    check.findings
}

/// Base address of a FHIR destination from whichever form it is written in.
///
/// # Errors
/// The member that is wrong, and what to write instead.
pub(super) fn fhir_base(fhir: &FhirConfig) -> Result<String, (&'static str, String)> {
    match (&fhir.workspace, &fhir.service) {
        (None, None) => azure::fhir_address(&fhir.url).map_err(|advice| ("url", advice)),
        (Some(_), Some(_)) if !fhir.url.is_empty() => {
            Err(("url", "Write either url, or workspace and service.".to_owned()))
        }
        (Some(workspace), Some(service)) => {
            azure::fhir_service_address(workspace, service).map_err(|advice| ("workspace", advice))
        }
        (Some(_), None) => Err(("workspace", "Write service = \"NAME\" too.".to_owned())),
        (None, Some(_)) => Err(("service", "Write workspace = \"NAME\" too.".to_owned())),
    }
}

struct Check<'c> {
    tree: &'c Tree<'c>,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn report(
        &mut self,
        severity: Severity,
        kind: &'static str,
        steps: &[Step<'_>],
        message: &str,
        advice: &str,
    ) {
        let mut finding = Finding::new(severity, kind, message).at(self.tree.place(steps));
        if let Some(Member(name)) = steps.last() {
            finding = finding.field(*name);
        }
        self.findings.push(if advice.is_empty() {
            finding
        } else {
            finding.suggest(advice)
        });
    }

    fn error(&mut self, kind: &'static str, steps: &[Step<'_>], message: &str, advice: &str) {
        self.report(Severity::Error, kind, steps, message, advice);
    }

    fn warning(&mut self, kind: &'static str, steps: &[Step<'_>], message: &str, advice: &str) {
        self.report(Severity::Warning, kind, steps, message, advice);
    }

    fn general(&mut self, draft: &Draft) {
        if let Some(gateway) = &draft.gateway
            && !is_name(&gateway.id)
        {
            self.error(
                "InvalidName",
                &[Member("gateway"), Member("id")],
                "The id of the gateway cannot be used in topics and event ids.",
                "Use 1 to 64 letters, digits, \"-\", \"_\" and \".\".",
            );
        }
        if let Some(store) = &draft.store {
            if store.max_bytes.0 < SMALLEST_STORE {
                self.error(
                    "WrongValue",
                    &[Member("store"), Member("max_bytes")],
                    "The store cannot work in so few bytes.",
                    "Give it at least \"8 MiB\"; \"512 MiB\" hold days of readings.",
                );
            }
            for (name, interval) in [
                ("commit_interval", store.commit_interval),
                ("commit_interval_max", store.commit_interval_max),
                ("progress_interval", store.progress_interval),
            ] {
                if interval.0 == 0 || interval.0 > 3_600_000_000 {
                    self.error(
                        "WrongValue",
                        &[Member("store"), Member(name)],
                        "The interval is out of range.",
                        "It is more than nothing and at most \"1 h\".",
                    );
                }
            }
        }
        for (number, device) in draft
            .clock
            .iter()
            .flat_map(|clock| clock.devices.iter().enumerate())
        {
            if let Some((member, what, advice)) = device.wrong() {
                let steps = [Member("clock"), Member("device"), Item(number), Member(member)];
                self.error("WrongValue", &steps, what, advice);
            }
        }
        if let Some(listen) = draft.web.as_ref().and_then(|web| web.listen.as_ref()) {
            let steps = [Member("web"), Member("listen")];
            match listen.parse::<std::net::SocketAddr>() {
                Ok(address) if !address.ip().is_loopback() => self.warning(
                    "OpenToNetwork",
                    &steps,
                    "The status page can be reached from the network, without TLS.",
                    "Use \"127.0.0.1:8080\" and a tunnel or a reverse proxy.",
                ),
                Ok(_) => {}
                Err(_) => self.error(
                    "WrongValue",
                    &steps,
                    "It is no address to listen on.",
                    "Write IP:PORT, for example \"127.0.0.1:8080\".",
                ),
            }
        }
    }

    fn names(&mut self, section: &'static str, names: Vec<(usize, String)>) {
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (number, name) in names {
            let steps = [Member(section), Item(number), Member("name")];
            if !is_name(&name) {
                self.error(
                    "InvalidName",
                    &steps,
                    &format!("The name of a {section} cannot be this."),
                    "Use 1 to 64 letters, digits, \"-\", \"_\" and \".\".",
                );
            }
            if let Some(first) = seen.insert(name.clone(), number) {
                let line = self
                    .tree
                    .place(&[Member(section), Item(first), Member("name")])
                    .line;
                self.error(
                    "DuplicateName",
                    &steps,
                    &format!("The {section} in line {line} has the name \"{name}\" too."),
                    "Progress is kept by name: give each its own.",
                );
            }
        }
    }

    fn source(&mut self, number: usize, source: &SourceConfig) {
        if source.packs.as_ref().is_some_and(Vec::is_empty) {
            self.error(
                "WrongValue",
                &[Member("source"), Item(number), Member("packs")],
                "No mapping pack would see the messages of this source.",
                "Name at least one, or remove the member: then all packs see them.",
            );
        }
        match &source.kind {
            SourceKind::Mqtt(mqtt) => self.mqtt(number, mqtt),
            SourceKind::Serial(serial) => self.serial(number, serial),
        }
    }

    fn mqtt(&mut self, number: usize, mqtt: &MqttConfig) {
        let at = |name| [Member("source"), Item(number), Member(name)];
        let broker = mqtt.broker();
        if let Err(why) = &broker {
            self.error(
                "InvalidAddress",
                &at("url"),
                "It is no address of an MQTT broker.",
                &as_sentence(why),
            );
        }
        if mqtt.topics.is_empty() {
            self.error(
                "MissingTopic",
                &at("topics"),
                "A source needs at least one topic.",
                "For example topics = [\"wearables/+/telemetry\"].",
            );
        }
        for (index, topic) in mqtt.topics.iter().enumerate() {
            let steps = [Member("source"), Item(number), Member("topics"), Item(index)];
            if let Err(why) = check_topic_filter(topic) {
                self.error("InvalidTopic", &steps, "It is no MQTT topic filter.", why);
            } else if let Some(from) = &mqtt.device_id_from
                && from.topic_level > topic.split('/').count()
                && !topic.ends_with('#')
            {
                self.error(
                    "DeviceIdNotInTopic",
                    &steps,
                    &format!(
                        "Topics of this filter have no level {} for the device id.",
                        from.topic_level
                    ),
                    "Levels are counted from 1 and separated by \"/\".",
                );
            }
        }
        if mqtt.device_id.is_some() && mqtt.device_id_from.is_some() {
            self.error(
                "ConflictingMembers",
                &at("device_id_from"),
                "device_id and device_id_from exclude each other.",
                "device_id is the same for all messages; device_id_from takes it from the topic.",
            );
        }
        if mqtt
            .device_id_from
            .as_ref()
            .is_some_and(|from| from.topic_level == 0)
        {
            self.error(
                "WrongValue",
                &at("device_id_from"),
                "Levels of a topic are counted from 1.",
                "In \"wearables/w7/telemetry\" the device is level 2.",
            );
        }
        self.device_id("source", number, mqtt.device_id.as_deref());
        self.payload(number, mqtt);
        if mqtt.password.is_some() && mqtt.username.is_none() {
            self.error(
                "MissingMember",
                &at("password"),
                "A password needs a user name: MQTT 3.1.1 forbids one without the other.",
                "Write username = \"NAME\" too.",
            );
        }
        if mqtt.window == 0 {
            self.error(
                "WrongValue",
                &at("window"),
                "With a window of 0 no message could come.",
                "The default is 100.",
            );
        }
        if !(1..=LARGEST_MESSAGE).contains(&mqtt.max_message_bytes) {
            self.error(
                "WrongValue",
                &at("max_message_bytes"),
                "The limit is out of range.",
                "It is a number of bytes from 1 to 16777216; the default is 262144.",
            );
        }
        if mqtt.keep_alive < 5 {
            self.error(
                "WrongValue",
                &at("keep_alive"),
                "A dead connection is found by pings.",
                "Write at least 5 seconds; the default is 30.",
            );
        }
        let tls = broker.map_or(true, |broker| broker.tls);
        if !tls && mqtt.password.is_some() && !is_local(&mqtt.url) {
            self.warning(
                "PlainText",
                &at("url"),
                "The password and all readings cross the network in plain text.",
                "Use mqtts://.",
            );
        }
        self.tls("source", number, &mqtt.tls, tls, "mqtts://");
    }

    fn serial(&mut self, number: usize, serial: &SerialConfig) {
        let at = |name| [Member("source"), Item(number), Member(name)];
        match (&serial.driver, serial.framing.contains_key("framing")) {
            (Some(_), _) => {
                for name in serial.framing.keys() {
                    self.error(
                        "ConflictingMembers",
                        &at(name),
                        &format!("driver and {name} exclude each other."),
                        "A driver knows framing and format of its device; they are for devices without one.",
                    );
                }
            }
            (None, false) => self.error(
                "MissingMember",
                &at("driver"),
                "A serial source needs a driver or a framing.",
                "For example driver = \"nonin\", or framing = \"lines\" with format = \"json\".",
            ),
            (None, true) => {}
        }
        if let Some(driver) = &serial.driver
            && drivers::driver(driver).is_none()
        {
            let known: Vec<&str> = drivers::drivers().iter().map(|driver| driver.name).collect();
            let advice = match nearest(driver, known.iter().copied()) {
                Some(near) => format!("Did you mean \"{near}\"?"),
                None => format!("Drivers are {}.", known.join(", ")),
            };
            self.error(
                "UnknownValue",
                &at("driver"),
                &format!("There is no driver \"{driver}\"."),
                &advice,
            );
        }
        if matches!(&serial.port, PortName::Path(path) if !path.is_absolute()) {
            self.error(
                "WrongValue",
                &at("port"),
                "It is no device file.",
                "Write its path; one below /dev/serial/by-id/ stays the same when devices are plugged in another order.",
            );
        }
        self.device_id("source", number, serial.device_id.as_deref());
        if let Some(settings) = serial.settings {
            let ranges = [
                ("data_bits", u32::from(settings.data_bits), 5..=8, "5 to 8"),
                ("stop_bits", u32::from(settings.stop_bits), 1..=2, "1 or 2"),
                (
                    "baud",
                    settings.baud,
                    50..=4_000_000,
                    "a rate such as 9600 or 115200",
                ),
            ];
            for (name, value, range, words) in ranges {
                if !range.contains(&value) {
                    let steps = [Member("source"), Item(number), Member("settings"), Member(name)];
                    self.error(
                        "WrongValue",
                        &steps,
                        "No serial port can do this.",
                        &format!("It is {words}."),
                    );
                }
            }
        }
    }

    /// Two sources cannot read one port, nor be one client of one broker.
    fn shared_lines(&mut self, sources: &[(usize, SourceConfig)]) {
        let mut ports: HashMap<&PortName, usize> = HashMap::new();
        let mut clients: HashMap<(&str, &str), usize> = HashMap::new();
        for (number, source) in sources {
            let (first, member) = match &source.kind {
                SourceKind::Serial(serial) => (ports.insert(&serial.port, *number), "port"),
                SourceKind::Mqtt(mqtt) => match &mqtt.client_id {
                    Some(client) => (clients.insert((&mqtt.url, client), *number), "client_id"),
                    None => continue,
                },
            };
            if let Some(first) = first {
                let line = self
                    .tree
                    .place(&[Member("source"), Item(first), Member(member)])
                    .line;
                self.error(
                    "Conflict",
                    &[Member("source"), Item(*number), Member(member)],
                    &format!("The source in line {line} has the same {member}."),
                    "They would take each other's connection.",
                );
            }
        }
    }

    fn device_id(&mut self, section: &'static str, number: usize, device_id: Option<&str>) {
        if device_id.is_some_and(|id| id.trim().is_empty()) {
            self.error(
                "WrongValue",
                &[Member(section), Item(number), Member("device_id")],
                "A blank device id identifies nothing.",
                "Write the identifier of the device, or remove the member.",
            );
        }
    }

    fn tls(&mut self, section: &'static str, number: usize, tls: &TlsConfig, used: bool, scheme: &str) {
        let at = |name| [Member(section), Item(number), Member("tls"), Member(name)];
        if !used && *tls != TlsConfig::default() {
            self.error(
                "ConflictingMembers",
                &[Member(section), Item(number), Member("tls")],
                "The address does not use TLS.",
                &format!("Write {scheme} in the address, or remove tls."),
            );
        }
        if tls.cert_file.is_some() != tls.key.is_some() {
            self.error(
                "MissingMember",
                &at(if tls.key.is_some() { "key" } else { "cert_file" }),
                "A client certificate and its key belong together.",
                "Write both cert_file = \"PATH\" and key = \"credential:NAME\", or neither.",
            );
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn as_sentence(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| {
        format!("{}{}.", first.to_uppercase(), letters.as_str())
    })
}

/// Whether the host of an address is this machine.
fn is_local(address: &str) -> bool {
    let uri: Option<ureq::http::Uri> = address.parse().ok();
    let host = uri.as_ref().and_then(ureq::http::Uri::host).unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| azure::is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// MQTT 5 section 4.7: `#` stands alone as the last level, `+` stands alone in a level.
fn check_topic_filter(filter: &str) -> Result<(), &'static str> {
    if filter.is_empty() {
        return Err("It is empty.");
    }
    if filter.contains('\0') || filter.len() > 65535 {
        return Err("It is longer than 65535 bytes or holds a zero.");
    }
    let levels = filter.split('/').count();
    for (number, level) in filter.split('/').enumerate() {
        if level.contains('#') && (level != "#" || number + 1 < levels) {
            return Err("\"#\" stands alone as the last level.");
        }
        if level.contains('+') && level != "+" {
            return Err("\"+\" stands alone in a level.");
        }
    }
    Ok(())
}
