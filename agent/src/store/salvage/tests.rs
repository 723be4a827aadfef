//! Damage, and what comes out of it; by the question that is asked.

mod files;
mod journal;
mod once;
mod sealed;
mod tables;

use super::super::check::tests::message;
use super::super::progress::Row;
use super::super::{Changes, Recovered, Store, StoredLetter};
use super::pages::pages_of;
use super::*;
use crate::config::Encryption;
use crate::message::{RevisionId, SourceId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const BATCHES: u64 = 120;
const LAST: u64 = BATCHES * 10;

/// Messages of a segment that was dropped: free pages still show them.
const DROPPED: u64 = 100;

/// A closed store of [`BATCHES`] batches of ten messages, the first [`DROPPED`] delivered and dropped, the others not; its id.
fn filled(folder: &Path, encryption: &Encryption) -> String {
    let (mut store, recovered) = Store::open_with(folder, encryption).unwrap();
    assert_eq!(store.source("ward").unwrap(), SourceId(1));
    for batch in 0..BATCHES {
        let messages: Vec<_> = (batch * 10 + 1..=batch * 10 + 10).map(message).collect();
        let now_us = if batch * 10 < DROPPED { 0 } else { 3_700_000_000 };
        store.append(&messages, &[], None, now_us, 0).unwrap();
    }
    let mut changes = Changes::default();
    changes.progress.cursor = DROPPED;
    store.commit_progress(&changes, 0).unwrap();
    store.reclaim(&[1], None, None, 0).unwrap();
    recovered.store_id
}

fn smash(file: &Path, page: u32) {
    let mut bytes = std::fs::read(file).unwrap();
    let place = (page as usize - 1) * 1024;
    for byte in &mut bytes[place..place + 1024] {
        *byte = byte.wrapping_mul(31).wrapping_add(0x5b);
    }
    std::fs::write(file, bytes).unwrap();
}

/// The number that [`message`] was made with.
fn number(message: &crate::message::Message) -> u64 {
    let text = String::from_utf8_lossy(message.payload.bytes()).into_owned();
    text[5..].split(',').next().unwrap().parse().unwrap()
}

fn drain(store: &mut Store, salvage: &mut Salvage, portions: usize) {
    for _ in 0..portions {
        match next_portion(store, salvage, &Encryption::Off) {
            Some(portion) => {
                let stored = store.append_salvaged(&portion, |_| RevisionId(0), 0, 0).unwrap();
                salvage.committed(stored.state);
            }
            None => return,
        }
    }
}

fn next_portion(store: &mut Store, salvage: &mut Salvage, encryption: &Encryption) -> Option<Portion> {
    loop {
        match salvage.step() {
            Step::Looking => {}
            Step::Names => {
                salvage.find_key(encryption).unwrap();
                store.adopt_salvage(salvage).unwrap();
            }
            Step::Portion(portion) => return Some(*portion),
            Step::Nothing => return None,
        }
    }
}

/// Opens the folder, salvages what was set aside, and gives the numbers of all messages with their identities.
fn salvaged(folder: &Path) -> (Store, BTreeMap<u64, (String, u64)>, Option<State>) {
    let begin = crate::clock::monotonic_us();
    let (mut store, mut recovered) = Store::open(folder).unwrap();
    let took_us = crate::clock::monotonic_us() - begin;
    assert!(took_us < 3_000_000, "ready after {took_us} us");
    let mut state = None;
    for salvage in &mut recovered.salvages {
        drain(&mut store, salvage, usize::MAX);
        state = Some(salvage.state().clone());
    }
    let messages = messages_of(&store, &recovered);
    (store, messages, state)
}

fn messages_of(store: &Store, recovered: &Recovered) -> BTreeMap<u64, (String, u64)> {
    let runs = Runs::new(store.recovered_runs().unwrap());
    let id = store.meta_text("store_id").unwrap().unwrap();
    assert_eq!(id, recovered.store_id);
    let mut messages = BTreeMap::new();
    for stored in store.read_from(1, usize::MAX).unwrap().messages {
        let known = runs.identity(stored.position);
        let known = known.map_or((id.clone(), stored.position), |known| {
            (known.store.to_string(), known.known_as)
        });
        let doubled = messages.insert(number(&stored.message), known);
        assert_eq!(doubled, None, "message {} came twice", number(&stored.message));
    }
    messages
}
