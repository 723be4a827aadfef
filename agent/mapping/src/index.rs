//! Which templates a message can match at all, from the member names and texts that their type matches need to see.
//!
//! Invariants:
//! 1. A template that would give a match or an error on a message is among the candidates of that message: what a type
//!    match needs is only what must be in the message for it to find anything.
//! 2. Candidates come in template order.
//! 3. The cost is that of looking up the names of the message, plus that of the candidates; it does not grow with the
//!    number of templates.

mod needs;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::expression::Expression;
use crate::message::ParsedMessage;
use needs::Needs;

/// Below this many templates evaluating all of them on a message of few values is cheaper.
const WORTH_IT: usize = 4;
const FEW_VALUES: usize = 64;

/// An index over the type matches of templates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    count: usize,
    names: Dictionary,
    texts: Dictionary,
    /// Lengths of the words in each dictionary, a bit for each: others need no look-up.
    name_lengths: u64,
    text_lengths: u64,
    /// What each template needs, as identifiers.
    needs: Vec<Vec<u32>>,
    /// Templates by the one need that the fewest share.
    by_need: Vec<Vec<u32>>,
    /// Templates that need nothing.
    always: Vec<u32>,
}

type Dictionary = HashMap<Box<str>, u32, BuildHasherDefault<NameHasher>>;

impl Index {
    pub(crate) fn new<'e>(type_matches: impl Iterator<Item = &'e Expression>) -> Index {
        let mut index = Index::default();
        for type_match in type_matches {
            index.count += 1;
            let Needs { names, texts } = Needs::of(type_match);
            let mut next = index.by_need.len();
            let mut ids = Vec::with_capacity(names.len() + texts.len());
            for (needed, dictionary) in [(names, &mut index.names), (texts, &mut index.texts)] {
                for word in needed {
                    let id = *dictionary.entry(word).or_insert_with(|| {
                        next += 1;
                        u32::try_from(next - 1).unwrap_or(u32::MAX)
                    });
                    ids.push(id);
                }
            }
            index.by_need.resize(next, Vec::new());
            index.needs.push(ids);
        }
        index.name_lengths = index.names.keys().fold(0, |bits, name| bits | length_bit(name));
        index.text_lengths = index.texts.keys().fold(0, |bits, text| bits | length_bit(text));
        let mut shared = vec![0usize; index.by_need.len()];
        for id in index.needs.iter().flatten() {
            if let Some(count) = shared.get_mut(*id as usize) {
                *count += 1;
            }
        }
        for (template, needs) in index.needs.iter().enumerate() {
            let template = u32::try_from(template).unwrap_or(u32::MAX);
            let rarest = needs.iter().min_by_key(|id| shared.get(**id as usize));
            match rarest.and_then(|id| index.by_need.get_mut(*id as usize)) {
                Some(list) => list.push(template),
                None => index.always.push(template),
            }
        }
        index
    }

    /// Indexes of the templates that may match, in order.
    pub(crate) fn candidates(&self, message: &ParsedMessage<'_>) -> Vec<usize> {
        if self.count < WORTH_IT && message.tree().len() <= FEW_VALUES {
            return (0..self.count).collect();
        }
        let mut seen = vec![0u64; self.by_need.len().div_ceil(64)];
        let mut found: Vec<u32> = Vec::with_capacity(16);
        let mut note = |id: u32| {
            if let Some(word) = seen.get_mut(id as usize / 64) {
                let bit = 1 << (id % 64);
                if *word & bit == 0 {
                    *word |= bit;
                    found.push(id);
                }
            }
        };
        for (name, text) in message.tree().names_and_texts() {
            let known = |word: Option<&str>, lengths: u64, dictionary: &Dictionary| {
                let word = word.filter(|word| lengths & length_bit(word) != 0)?;
                dictionary.get(word).copied()
            };
            if let Some(id) = known(name, self.name_lengths, &self.names) {
                note(id);
            }
            if let Some(id) = known(text, self.text_lengths, &self.texts) {
                note(id);
            }
        }
        let sees = |id: &u32| {
            seen.get(*id as usize / 64)
                .is_some_and(|word| word & (1 << (id % 64)) != 0)
        };
        let listed = found
            .iter()
            .filter_map(|id| self.by_need.get(*id as usize))
            .flatten();
        let fits = |template: &&u32| {
            self.needs
                .get(**template as usize)
                .is_some_and(|needs| needs.iter().all(sees))
        };
        let mut candidates: Vec<usize> = listed
            .filter(fits)
            .chain(&self.always)
            .map(|template| *template as usize)
            .collect();
        candidates.sort_unstable();
        candidates
    }
}

/// The bit of a word's length; the last one stands for all that are longer.
fn length_bit(word: &str) -> u64 {
    1 << word.len().min(63)
}

/// A quick hash of short names. The dictionary holds names of the mapping only, so nobody outside can make it slow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            if let Some(start) = word.get_mut(..chunk.len()) {
                start.copy_from_slice(chunk);
            }
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(FACTOR);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write(&[byte]);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

/// The member names that a message must have for this type match to find anything.
pub(crate) fn needed_names(type_match: &Expression) -> Vec<Box<str>> {
    Needs::of(type_match).names
}
