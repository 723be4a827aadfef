//! What the server holds against what was published and what was acknowledged.

use bedside_tests::fhir_server::FhirServer;
use bedside_tests::real::agent::{Gateway, is_balanced};
use bedside_tests::real::chain::{Chain, Place, Publisher};
use bedside_tests::real::fhir::{place_of, readings};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

/// The broker has this long to hand over the rest, and the agent to deliver it.
const LIMIT: Duration = Duration::from_secs(60);
/// An agent that says that it has nothing left for this long will deliver nothing any more.
const QUIET: Duration = Duration::from_secs(3);

/// What is wrong.
#[derive(Debug, Default)]
pub struct Finding {
    /// Acknowledged readings that the server does not hold with their value.
    pub lost: Vec<Place>,
    /// Readings that it holds more than once, and readings that nobody sent.
    pub duplicated: Vec<Place>,
    /// Accounts of the agent in which a match is missing.
    pub unbalanced: Option<String>,
}

impl Finding {
    /// Nothing is.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.duplicated.is_empty() && self.unbalanced.is_none()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |places: &[Place]| places.iter().take(5).cloned().collect::<Vec<_>>();
        write!(
            f,
            "acknowledged and not on the server: {} {:?}; more than once on it, or never sent: {} {:?}",
            self.lost.len(),
            some(&self.lost),
            self.duplicated.len(),
            some(&self.duplicated)
        )?;
        self.unbalanced
            .iter()
            .try_for_each(|accounts| write!(f, "; a match is missing: {accounts}"))
    }
}

/// Lets everything arrive that can still arrive, and compares value by value.
///
/// # Errors
/// When what was never acknowledged does not arrive either, or the agent's accounts do not balance.
pub fn judge(
    chain: &Chain,
    publisher: &mut Publisher,
    server: &FhirServer,
    gateway: &Gateway,
) -> anyhow::Result<Finding> {
    let sent = publisher.pause()?;
    let expected: BTreeMap<Place, f64> = sent
        .iter()
        .map(|one| {
            (
                place_of(&one.device, &one.time),
                one.value.parse().expect("a decimal"),
            )
        })
        .collect();
    let until = Instant::now() + LIMIT;
    let mut quiet_since: Option<(Instant, u64)> = None;
    let finding = loop {
        let held = readings(server);
        let acknowledged: HashSet<Place> = chain
            .acknowledged()
            .iter()
            .map(|(device, time)| place_of(device, time))
            .collect();
        let finding = compare(&expected, &acknowledged, &held);
        let all_there = expected.keys().all(|place| held.contains_key(place));
        if !finding.duplicated.is_empty() {
            break finding;
        }
        // The server counts requests: while they come, the agent is not done.
        let accounts = gateway.status().map(|status| status["summary"].clone());
        let balanced = accounts.as_ref().is_none_or(is_balanced);
        let left = accounts.as_ref().and_then(unsent);
        let work = server.stats()["writes"].as_u64().unwrap_or(0);
        // Everything is on the server with its value, and the agent knows it.
        if all_there && finding.is_clean() && balanced && left == Some(0) {
            break finding;
        }
        let all_acknowledged = expected.keys().all(|place| acknowledged.contains(place));
        match quiet_since {
            Some((since, before)) if left == Some(0) && all_acknowledged && before == work => {
                if since.elapsed() > QUIET {
                    let unbalanced = accounts
                        .filter(|_| !balanced)
                        .map(|accounts| accounts.to_string());
                    break Finding {
                        unbalanced,
                        ..finding
                    };
                }
            }
            _ => quiet_since = Some((Instant::now(), work)),
        }
        if Instant::now() > until {
            let unbalanced = accounts
                .filter(|_| !balanced)
                .map(|accounts| accounts.to_string());
            let finding = Finding {
                unbalanced,
                ..finding
            };
            anyhow::ensure!(
                !finding.is_clean(),
                "{} of {} readings arrived, and the rest was not acknowledged; the agent said:\n{}",
                held.len(),
                expected.len(),
                gateway
                    .log()
                    .lines()
                    .rev()
                    .take(40)
                    .collect::<Vec<_>>()
                    .join("\n")
            );
            break finding;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    publisher.go_on();
    Ok(finding)
}

fn compare(
    expected: &BTreeMap<Place, f64>,
    acknowledged: &HashSet<Place>,
    held: &BTreeMap<Place, Vec<f64>>,
) -> Finding {
    let wrong = |place: &&Place| {
        let value = expected.get(*place);
        held.get(*place)
            .is_none_or(|values| !values.iter().any(|held| Some(held) == value))
    };
    Finding {
        lost: acknowledged.iter().filter(wrong).cloned().collect(),
        duplicated: held
            .iter()
            .filter(|(place, values)| values.len() != 1 || !expected.contains_key(*place))
            .map(|(place, _)| place.clone())
            .collect(),
        unbalanced: None,
    }
}

/// What the agent says that it has still to send.
fn unsent(accounts: &Value) -> Option<u64> {
    Some(accounts["buffered"].as_u64()? + accounts["waiting"].as_u64()?)
}
