//! Births that were missed: which edge nodes are asked for them, and how often.

use crate::clock;
use crate::ingest::payload::sparkplug::births;
use embassy_time::{Duration, Instant};
use std::collections::HashMap;

/// Pause before an edge node is asked for its births again.
const PAUSE: Duration = Duration::from_secs(30);

/// Edge nodes that are asked within one pause.
const MOST_ASKED: usize = 256;

/// Group and name of an edge node.
type Node = (String, String);

/// The requests of one source.
#[derive(Default)]
pub(super) struct Rebirths {
    /// When an edge node was last asked.
    asked: HashMap<Node, Instant>,
    /// Topics and payloads to send.
    pub(super) requests: Vec<(String, Vec<u8>)>,
}

impl Rebirths {
    /// Asks an edge node, if that was not done just now.
    pub(super) fn ask(&mut self, node: Node, source: &str) {
        let now = Instant::now();
        self.asked.retain(|_, asked| now.duration_since(*asked) < PAUSE);
        if self.asked.contains_key(&node) || self.asked.len() >= MOST_ASKED {
            return;
        }
        tracing::info!(source, "edge node {}/{} is asked for its births", node.0, node.1);
        self.requests
            .push(births::rebirth_request(&node.0, &node.1, clock::wall()));
        self.asked.insert(node, now);
    }
}
