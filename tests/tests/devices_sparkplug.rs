//! Sparkplug B through a real broker while the whole program is killed again and again: data by alias keeps the names of the
//! birth that it follows, a new session with other aliases is read with them, and what may mean something else is refused.
//! The messages are written by code of this test.
#![allow(clippy::disallowed_methods, reason = "a test of processes lives in real time")]

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::Gateway;
use bedside_tests::real::mosquitto::Mosquitto;
use bedside_tests::real::publisher::publish;
use bedside_tests::real::wait_for;
use std::collections::BTreeSet;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// 2024-03-05T14:30:00Z in milliseconds.
const BEGIN: u64 = 1_709_649_000_000;
const HEART_RATE: &str = "8867-4";

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number as u8 & 0x7F) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// Name, alias, time, type Int32 or UInt64, value.
fn metric(name: Option<&str>, alias: Option<u64>, at: u64, value: u64) -> Vec<u8> {
    let is_session = name == Some("bdSeq");
    [
        name.map_or_else(Vec::new, |name| bytes(1, name.as_bytes())),
        alias.map_or_else(Vec::new, |alias| number(2, alias)),
        number(3, at),
        number(4, if is_session { 8 } else { 3 }),
        number(if is_session { 11 } else { 10 }, value),
    ]
    .concat()
}

/// An edge node with one oximeter. It counts its messages, and knows what each of them says.
struct Node {
    session: u64,
    seq: u64,
    second: u64,
    /// Aliases of heart rate and saturation.
    aliases: [u64; 2],
    /// Heart rate or not, time, value.
    said: BTreeSet<(bool, String, u64)>,
}

type Message = (String, Vec<u8>);

impl Node {
    fn message(&mut self, kind: &str, metrics: &[Vec<u8>]) -> Message {
        let mut payload = number(1, BEGIN + self.second * 1000);
        for metric in metrics {
            payload.extend(bytes(2, metric));
        }
        payload.extend(number(3, self.seq));
        self.seq = (self.seq + 1) % 256;
        let device = if kind.starts_with('D') { "/oxi7" } else { "" };
        (format!("spBv1.0/ward3/{kind}/gw7{device}"), payload)
    }

    fn values(&mut self) -> (u64, u64) {
        self.second += 1;
        let time = format!("14:{}:{:02}", 30 + self.second / 60, self.second % 60);
        // No rate is a saturation, and no two neighbours are the same.
        let (rate, saturation) = (50 + self.second % 30, 90 + self.second % 10);
        self.said.insert((true, time.clone(), rate));
        self.said.insert((false, time, saturation));
        (rate, saturation)
    }

    /// A new session in which the aliases are these.
    fn births(&mut self, session: u64, aliases: [u64; 2]) -> Vec<Message> {
        (self.session, self.seq, self.aliases) = (session, 0, aliases);
        let at = BEGIN + (self.second + 1) * 1000;
        let node = self.message("NBIRTH", &[metric(Some("bdSeq"), None, at, session)]);
        let (rate, saturation) = self.values();
        let names = [
            metric(Some("Vitals/HR"), Some(aliases[0]), at, rate),
            metric(Some("spo2"), Some(aliases[1]), at, saturation),
        ];
        vec![node, self.message("DBIRTH", &names)]
    }

    fn data(&mut self) -> Message {
        let (rate, saturation) = self.values();
        let at = BEGIN + self.second * 1000;
        let values = [
            metric(None, Some(self.aliases[0]), at, rate),
            metric(None, Some(self.aliases[1]), at, saturation),
        ];
        self.message("DDATA", &values)
    }

    /// Data that nobody can prove the meaning of.
    fn doubtful(&mut self) -> Message {
        let before = self.said.clone();
        let message = self.data();
        self.said = before;
        message
    }

    /// The last will of a session: it is not counted.
    fn death(&mut self, session: u64) -> Message {
        let seq = self.seq;
        let message = self.message("NDEATH", &[metric(Some("bdSeq"), None, BEGIN, session)]);
        self.seq = seq;
        message
    }
}

fn held(server: &FhirServer) -> BTreeSet<(bool, String, u64)> {
    let observations = server.held("Observation").into_iter();
    observations
        .map(|held| {
            let observation = held.resource;
            let codes = observation["code"]["coding"].as_array().unwrap();
            let time = observation["effectivePeriod"]["start"]
                .as_str()
                .or_else(|| observation["effectiveDateTime"].as_str())
                .unwrap();
            (
                codes.iter().any(|code| code["code"] == HEART_RATE),
                time[11..19].to_owned(),
                observation["valueQuantity"]["value"].as_f64().unwrap() as u64,
            )
        })
        .collect()
}

#[test]
fn aliases_mean_what_they_meant_through_kills_of_the_whole_program() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(folder.path(), "");
    let server = FhirServer::start(&[]);
    server.put_device("oxi7", "p-1");
    let gateway = Gateway::new(folder.path())
        .with(&format!(
            "[[source]]\nname = \"nodes\"\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{}\"\ntopics = [\"spBv1.0/#\"]\n\
             format = \"sparkplug-b\"",
            broker.port
        ))
        .fhir(&server.base, "resolution = \"lookup\"");
    gateway.drop_pack("sparkplug-b");
    let mut node = Node {
        session: 0,
        seq: 0,
        second: 0,
        aliases: [0; 2],
        said: BTreeSet::new(),
    };
    let mut agent = gateway.start();
    gateway.wait_connected(LIMIT);
    let agree = |node: &Node, what: &str| {
        wait_for(what, LIMIT, || held(&server) == node.said);
    };
    let say = |messages: &[Message]| publish(broker.port, messages);

    let mut messages = node.births(1, [1, 2]);
    messages.extend((0..5).map(|_| node.data()));
    say(&messages);
    agree(&node, "the first session is read");

    // The broker keeps what comes while nobody listens; it follows the birth of before the kill.
    for round in 0..3 {
        agent.kill();
        let messages: Vec<_> = (0..20).map(|_| node.data()).collect();
        say(&messages);
        agent = gateway.start();
        agree(&node, &format!("what came during kill {round} is read"));
    }

    // Killed in the middle of a stream that runs past the end of the numbers.
    for _ in 0..4 {
        let messages: Vec<_> = (0..60).map(|_| node.data()).collect();
        let (first, rest) = messages.split_at(20);
        say(first);
        agent.kill();
        say(rest);
        agent = gateway.start();
    }
    agree(&node, "a stream with kills in it is read");

    // While the agent is away the node is born again with its aliases exchanged; its earlier session dies late.
    agent.kill();
    let mut messages = node.births(2, [2, 1]);
    messages.push(node.death(1));
    messages.extend((0..5).map(|_| node.data()));
    say(&messages);
    agent = gateway.start();
    agree(&node, "the second session is read with its own aliases");

    // Messages are lost while the agent is away: one may have been a birth, so that aliases prove nothing any more.
    agent.kill();
    let lost = node.doubtful();
    drop(lost);
    let doubtful: Vec<_> = (0..3).map(|_| node.doubtful()).collect();
    say(&doubtful);
    agent = gateway.start();
    gateway.wait_connected(LIMIT);
    // Killed once more: the doubt is remembered too.
    wait_for("the doubtful data is refused", LIMIT, || {
        gateway
            .status()
            .is_some_and(|status| status["summary"]["dead"].as_u64() >= Some(1))
    });
    agent.kill();
    say(&[node.doubtful()]);
    agent = gateway.start();
    let messages = [node.births(3, [7, 8]), vec![node.data()]].concat();
    say(&messages);
    agree(
        &node,
        "the third session is read, and nothing of the doubtful data",
    );
    let accounts = gateway.stop(&mut agent);
    assert_eq!(accounts["lost"], 0, "{accounts}");
    assert_eq!(held(&server), node.said);
}
