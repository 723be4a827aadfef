//! What the aliases of data messages mean: the births of the edge nodes, as the intake sees them come.
//!
//! A wrong name is a heart rate in place of a saturation, so a name is given only while it is proven:
//!
//! 1. Aliases are those of the last birth of the same device. A birth of the edge node ends the births of its devices, a death
//!    ends what it names; a death of an earlier session of the node (another `bdSeq`) ends nothing.
//! 2. Sequence numbers count up by one, 255 is followed by 0. Where one is missing, a message was lost that may have been a
//!    birth: all names of the node are forgotten until they are born again. The same number once more is a repeat.
//! 3. After a restart the names of the last births hold if the next message follows the last one in the journal, else they
//!    are forgotten.
//! 4. An alias that stands for two names in one birth stands for none.
//! 5. What is remembered is bounded. No value of a message is kept.
//!
//! What cannot be seen: while the connection to the broker was down, a node was born again and has counted exactly as far as
//! before. The type of the metric is compared too, where the sender gives it.

use crate::message::Message;

use super::{Kind, Topic, proto, read};
use bytes::Bytes;
use iomt_mapping::Timestamp;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Edge nodes that are remembered.
const MOST_NODES: usize = 1024;

/// Names that are remembered, of all nodes together.
const MOST_NAMES: usize = 50_000;

/// Why a name is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// No birth came since the source was set up.
    #[default]
    NoBirth,
    /// A sequence number is missing.
    LostMessage,
    /// The node or the device has said goodbye.
    Death,
    /// The agent was away, and the message does not follow the last one that it has.
    Away,
    /// The birth gives the alias to two names.
    Ambiguous,
    /// There are more births than are remembered.
    TooMany,
}

impl Cause {
    /// For people; what to do is in it.
    pub fn text(self) -> &'static str {
        match self {
            Cause::NoBirth => {
                "no birth of this device has come that defines it; let the edge node publish its births again (restart \
                 it, or Node Control/Rebirth)"
            }
            Cause::LostMessage => {
                "a message of the edge node was lost (a sequence number is missing), it may have been a birth; the names \
                 hold again after the next birth (restart the edge node, or Node Control/Rebirth)"
            }
            Cause::Death => "the device or its edge node has died since its birth, and was not born again",
            Cause::Away => {
                "messages of the edge node were missed while the agent or its connection was away, one may have been a \
                 birth; the names hold again after the next birth (restart the edge node, or Node Control/Rebirth)"
            }
            Cause::Ambiguous => "the birth gives it to two metrics",
            Cause::TooMany => "the edge nodes of this source have more metrics than are remembered",
        }
    }
}

/// A name and the type that the birth declares.
type Name = (String, Option<u32>);

/// The names that one message needs; travels beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// By alias.
    #[serde(default)]
    names: BTreeMap<u64, Name>,
    /// Why the others are missing.
    #[serde(default)]
    missing: Cause,
    /// Aliases with two names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ambiguous: Vec<u64>,
}

impl Names {
    /// What an alias means.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn of(&self, alias: u64) -> Result<(&str, Option<u32>), Cause> {
        match self.names.get(&alias) {
            Some((name, datatype)) => Ok((name, *datatype)),
            None if self.ambiguous.contains(&alias) => Err(Cause::Ambiguous),
            None => Err(self.missing),
        }
    }
}

/// A birth: names by alias; none where the alias stands for two.
type Birth = BTreeMap<u64, Option<Name>>;

/// An edge node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<u64>,
    /// By device; the node itself is "".
    births: BTreeMap<String, Birth>,
    /// Why a birth is not there.
    missing: Cause,
    /// The last sequence number.
    #[serde(skip)]
    last: Option<u8>,
    /// From the store, and nothing came yet.
    #[serde(skip)]
    recalled: bool,
}

impl Node {
    fn forget(&mut self, cause: Cause) -> bool {
        let changed = !self.births.is_empty() || self.missing != cause;
        self.births.clear();
        self.missing = cause;
        changed
    }

    /// Checks and takes a sequence number; true when names had to be forgotten.
    fn follows(&mut self, seq: Option<u64>) -> bool {
        let recalled = std::mem::take(&mut self.recalled);
        let Some(seq) = seq.and_then(|seq| u8::try_from(seq).ok()) else {
            // A sender that does not count: nothing can be proven after a time away.
            return recalled && self.last.is_none() && self.forget(Cause::Away);
        };
        let last = self.last.replace(seq);
        match last {
            Some(last) if seq == last || seq == last.wrapping_add(1) => false,
            Some(_) => self.forget(if recalled { Cause::Away } else { Cause::LostMessage }),
            None => recalled && self.forget(Cause::Away),
        }
    }

    fn names(&self) -> usize {
        self.births.values().map(Birth::len).sum()
    }
}

/// What an observed message needs and changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What to put beside the message.
    pub names: Option<Names>,
    /// What to write down before the message is stored: key and text.
    pub remember: Option<(String, String)>,
    /// Names of the node are missing: ask it to be born again.
    pub incomplete: bool,
}

/// The births of all edge nodes of a source.
#[derive(Debug, Default)]
pub struct Births {
    nodes: BTreeMap<String, Node>,
}

impl Births {
    /// What was written down before a restart.
    pub fn recall(&mut self, key: &str, text: &str) {
        if let Ok(mut node) = serde_json::from_str::<Node>(text)
            && self.nodes.len() < MOST_NODES
        {
            node.recalled = true;
            self.nodes.insert(key.to_owned(), node);
        }
    }

    /// The last message of a node in the journal.
    pub fn recall_last(&mut self, topic: &Topic<'_>, payload: &Bytes) {
        let seq = read::<proto::Payload>(payload)
            .ok()
            .and_then(|payload| payload.seq);
        if let Some(node) = self.nodes.get_mut(&key(topic)) {
            node.last = seq.and_then(|seq| u8::try_from(seq).ok());
        }
    }

    /// Forgets everything: what came in between is not known.
    pub fn forget_all(&mut self) {
        for node in self.nodes.values_mut() {
            node.forget(Cause::Away);
        }
    }

    /// A message whose payload was too large to be kept, or is no message: it may have been a birth.
    pub fn observe_unreadable(&mut self, topic: &Topic<'_>) -> Observed {
        if matches!(topic.kind, Kind::Command) {
            return Observed::default();
        }
        let key = key(topic);
        let changed = self.nodes.get_mut(&key).is_some_and(|node| {
            node.last = None;
            node.forget(Cause::LostMessage)
        });
        Observed {
            remember: changed.then(|| self.text(&key)).flatten().map(|text| (key, text)),
            ..Observed::default()
        }
    }

    /// A message in the order in which it came.
    pub fn observe(&mut self, topic: &Topic<'_>, payload: &Bytes) -> Observed {
        if topic.kind == Kind::Command {
            return Observed::default();
        }
        let decoded = read::<proto::Payload>(payload).and_then(|payload| {
            let metrics = payload.metrics.iter().map(read::<proto::Metric>);
            Ok((payload.seq, metrics.collect::<Result<Vec<_>, _>>()?))
        });
        let Ok((seq, metrics)) = decoded else {
            return self.observe_unreadable(topic);
        };
        let key = key(topic);
        if !self.nodes.contains_key(&key) && self.nodes.len() >= MOST_NODES {
            let needs = topic.kind == Kind::Data && metrics.iter().any(is_by_alias);
            return Observed {
                names: needs.then(|| Names {
                    missing: Cause::TooMany,
                    ..Names::default()
                }),
                ..Observed::default()
            };
        }
        let known: usize = self.nodes.values().map(Node::names).sum();
        let node = self.nodes.entry(key.clone()).or_default();
        let mut observed = Observed::default();
        let changed = match (topic.kind, topic.device) {
            (Kind::Birth, device) => {
                let gap = if device.is_none() {
                    *node = Node {
                        session: session(&metrics),
                        last: seq.and_then(|seq| u8::try_from(seq).ok()),
                        ..Node::default()
                    };
                    false
                } else {
                    node.follows(seq)
                };
                let birth = birth(&metrics);
                if known + birth.len() > MOST_NAMES {
                    node.births.remove(device.unwrap_or_default());
                    node.missing = Cause::TooMany;
                } else {
                    node.births.insert(device.unwrap_or_default().to_owned(), birth);
                }
                observed.incomplete = gap;
                true
            }
            (Kind::Data, device) => {
                let forgot = node.follows(seq);
                let aliases: Vec<u64> = metrics
                    .iter()
                    .filter(|metric| is_by_alias(metric))
                    .filter_map(|metric| metric.alias)
                    .collect();
                if !aliases.is_empty() {
                    let names = names(node, device.unwrap_or_default(), &aliases);
                    observed.incomplete = aliases.iter().any(|alias| names.of(*alias).is_err());
                    observed.names = Some(names);
                }
                observed.incomplete |= forgot;
                forgot
            }
            (Kind::Death, Some(device)) => {
                let forgot = node.follows(seq);
                observed.incomplete = forgot;
                let died = node.births.remove(device).is_some();
                if died {
                    node.missing = Cause::Death;
                }
                forgot || died
            }
            (Kind::Death, None) => {
                let ended = session(&metrics);
                let of_this_session = ended.is_none() || node.session.is_none() || ended == node.session;
                if of_this_session {
                    node.last = None;
                    node.recalled = false;
                }
                of_this_session && node.forget(Cause::Death)
            }
            (Kind::Command, _) => false,
        };
        if changed {
            observed.remember = self.text(&key).map(|text| (key, text));
        }
        observed
    }

    fn text(&self, key: &str) -> Option<String> {
        serde_json::to_string(self.nodes.get(key)?).ok()
    }
}

/// Topic and payload that ask an edge node to publish its births again: `Node Control/Rebirth` (Sparkplug 3.0, 6.4.20).
/// It is the only command that there is.
pub fn rebirth_request(group: &str, node: &str, now: Timestamp) -> (String, Vec<u8>) {
    let timestamp = u64::try_from(now.ticks() / 10_000).ok();
    let metric = proto::Metric {
        name: Some("Node Control/Rebirth".to_owned()),
        timestamp,
        datatype: Some(11),
        boolean_value: Some(true),
        ..proto::Metric::default()
    };
    let payload = proto::Payload {
        timestamp,
        metrics: vec![metric.encode_to_vec().into()],
        ..proto::Payload::default()
    };
    (format!("spBv1.0/{group}/NCMD/{node}"), payload.encode_to_vec())
}

/// Under which key a node is written down.
fn key(topic: &Topic<'_>) -> String {
    format!("{}/{}", topic.group, topic.node)
}

/// The key of a message that its node counts; none for others.
pub fn node_of(message: &Message) -> Option<String> {
    let topic = Topic::read(message.topic.as_deref()?)?;
    let counted = match topic.kind {
        Kind::Birth | Kind::Data => true,
        // The last will of a node has no number.
        Kind::Death => topic.device.is_some(),
        Kind::Command => false,
    };
    counted.then(|| key(&topic))
}

fn is_by_alias(metric: &proto::Metric) -> bool {
    metric.alias.is_some() && metric.name.as_deref().is_none_or(str::is_empty)
}

fn birth(metrics: &[proto::Metric]) -> Birth {
    let mut birth = Birth::new();
    for metric in metrics {
        let (Some(alias), Some(name)) = (metric.alias, metric.name.as_deref()) else {
            continue;
        };
        let name = (name.to_owned(), metric.datatype.filter(|datatype| *datatype != 0));
        birth
            .entry(alias)
            .and_modify(|known| {
                if known.as_ref() != Some(&name) {
                    *known = None;
                }
            })
            .or_insert(Some(name.clone()));
    }
    birth.retain(|_, name| name.as_ref().is_none_or(|(name, _)| !name.is_empty()));
    birth
}

fn names(node: &Node, device: &str, aliases: &[u64]) -> Names {
    let Some(birth) = node.births.get(device) else {
        return Names {
            missing: node.missing,
            ..Names::default()
        };
    };
    let mut names = Names::default();
    for alias in aliases {
        match birth.get(alias) {
            Some(Some(name)) => drop(names.names.insert(*alias, name.clone())),
            Some(None) => names.ambiguous.push(*alias),
            None => {}
        }
    }
    names
}

/// The number of the session: metric `bdSeq` of NBIRTH and NDEATH.
fn session(metrics: &[proto::Metric]) -> Option<u64> {
    let metric = metrics
        .iter()
        .find(|metric| metric.name.as_deref() == Some("bdSeq"))?;
    metric.long_value.or(metric.int_value.map(u64::from))
}
