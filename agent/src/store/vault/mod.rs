//! Encryption at rest: what is sealed, with which keys, and why no nonce is ever used twice.
//!
//! # What is sealed, and what stays readable
//!
//! Sealed are the batches of the journal and the messages of dead letters (payload, topic, device, properties) and every
//! column that holds an identifier or a text about one: [`TEXTS`] and [`BLOBS`]. Who has the files and not the key still
//! reads how many messages came when from which source, their sizes, positions and times, error names, measurement types in
//! the ledger, names of sources, destinations and packs, and the mapping packs themselves.
//!
//! It is authenticated: a sealed value that was changed, or moved to another position, column or store, is damage. Values
//! that were written before encryption was turned on stay valid, so somebody who can write the file can put plain ones
//! there; whoever can write the agent's files is not kept out by this.
//!
//! # Keys
//!
//! A master key of 32 bytes: a systemd credential, a file, or a file beside the store that the first start makes (mode 0600,
//! synced with its folder before anything is sealed). The file beside the store protects what leaves the gateway without it
//! (a copied database, a set-aside file sent for analysis) and makes erasing a matter of 65 bytes; against a stolen card it
//! takes a key from elsewhere, best a credential that systemd binds to the TPM.
//!
//! From the master key and the store id come, by HMAC-SHA256 over distinct labels, one key per purpose. The store id is in
//! every key, so a value of one store is not one of another.
//!
//! # Nonces
//!
//! ChaCha20-Poly1305 (as fast without AES instructions, which the Raspberry Pi 4 lacks, and in constant time) must not see a
//! key and nonce twice, and a store is rolled back by power cuts, copies and restored images. So nothing is counted:
//!
//! * **Batches** draw 24 bytes from the operating system for each. The first 12 make a key of their own (HMAC over them),
//!   the other 12 are the nonce: two batches meet only if all 192 bits do. No state, so no crash, rollback or copy of the
//!   file can bring one back, and there is no limit to their number (96 random bits alone would be good for 2^32 batches:
//!   seven years at twenty a second). `power-cuts --class sealed` looks at every sealing, also at those that a cut took back.
//! * **Columns** that are looked up or compared (`WHERE device IS ?`) need equal values to stay equal: their 24 bytes are an
//!   HMAC over column and value (a synthetic nonce, as SIV does). Two different values meet with a chance of 2^-96 after 2^48
//!   of them; equal ones give equal bytes, which shows that two rows of a column name the same device, and nothing else.
//!
//! # Turning it on, and off
//!
//! Turned on for a store that has data, the columns are sealed in one transaction at that start; batches that are there stay
//! as they are until they are dropped, a day or so later (`history`), and pages that were freed hold old text until they are
//! used again. Who needs certainty begins with `store wipe`. It cannot be turned off for a store; `store wipe` begins anew.
//!
//! # Figures, and SQLCipher's beside them
//!
//! | | this | SQLCipher (whole file) |
//! |---|---|---|
//! | Bytes | 41 for a batch (13 % of one of 20 like messages, 5 % of 100), 45 for bytes, 61 and a third for a text | none: pages keep their size, 80 bytes of each are reserved |
//! | CPU | 1.0 us for a batch: 0.05 us for a message with batches of 20, 0.01 with 100 (compression: 0.33 and 0.18) | 0.1 us for a message with batches of 100, and all reads 3.3 times as long |
//! | Program | nothing: `ring` is linked for TLS | 4.5 MB (2.6 on armv7), and OpenSSL beside rustls |
//! | Readable without the key | see above | nothing but the size |
//! | A wrong key | is told apart from damage | looks like a damaged file |
//! | Turning on | at any time | writes the file anew |
//!
//! SQLCipher's figures are those of a build of 4.19 measured when this was designed. What decides is the program's size, the
//! second TLS library, the wrong key that looks like damage (a damaged store is set aside), and that the other sealing costs
//! one operation per commit instead of one per page.

mod attach;
mod key;
pub mod wipe;

pub(super) use attach::of_store;
pub use key::MasterKey;

use super::codec::Damaged;
use crate::message::Position;
use crate::sabotage::{self, Sabotage};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::borrow::Cow;

/// Columns with sealed texts.
pub const TEXTS: &[(&str, &str)] = &[
    ("association", "device"),
    ("association", "patient"),
    ("association", "encounter"),
    ("correction", "device"),
    ("correction", "patient_before"),
    ("correction", "patient_after"),
    ("dead_letter", "error"),
    ("device_clock", "device"),
    ("ledger", "device"),
    ("outbox", "waiting"),
    ("sent_period", "observation"),
    ("sighting", "device"),
    ("sighting", "record"),
    ("source_memory", "key"),
    ("source_memory", "text"),
];
/// Columns with sealed bytes.
pub const BLOBS: &[(&str, &str)] = &[("sent_period", "memory"), ("series", "key")];

/// A sealed text begins with this, and no identifier does by accident.
const TEXT_MARK: &str = "\u{1}sealed:";
/// Sealed bytes begin with this; nothing else in these columns does (it would be a name of 10 KB).
const BYTES_MARK: &[u8] = b"\xffSEAL";
/// Drawn or computed bytes in front of what is sealed: the first half makes the key, the second is the nonce.
const RANDOM: usize = 24;

/// Seals and opens, or lets everything through when the store is not encrypted.
#[derive(Default)]
pub struct Vault(Option<Keys>);

struct Keys {
    batch: hmac::Key,
    column: hmac::Key,
    synthetic: hmac::Key,
    chance: SystemRandom,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Vault(sealed)"
        } else {
            "Vault(open)"
        })
    }
}

impl Vault {
    /// The vault of a store.
    pub fn new(master: &MasterKey, store_id: &str) -> Vault {
        let master = hmac::Key::new(hmac::HMAC_SHA256, master.bytes());
        let derive = |purpose: &str| {
            let tag = hmac::sign(
                &master,
                format!("bedside store 1/{purpose}/{store_id}").as_bytes(),
            );
            hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref())
        };
        Vault(Some(Keys {
            batch: derive("batch"),
            column: derive("column"),
            synthetic: derive("synthetic"),
            chance: SystemRandom::new(),
        }))
    }

    /// Whether anything is sealed.
    pub fn is_sealed(&self) -> bool {
        self.0.is_some()
    }

    /// A batch of the journal, sealed for its position; none when nothing is sealed.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn batch(&self, first: Position, plain: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        let Some(keys) = &self.0 else { return Ok(None) };
        let mut random = [0; RANDOM];
        let no_chance = |_| std::io::Error::other("the operating system gives no random bytes");
        keys.chance.fill(&mut random).map_err(no_chance)?;
        if sabotage::is_on(Sabotage::NonceFromPosition) {
            random = [0; RANDOM];
            random
                .iter_mut()
                .zip(first.to_le_bytes())
                .for_each(|(place, byte)| *place = byte);
        }
        seal(&keys.batch, random, &first.to_le_bytes(), plain).map(Some)
    }

    /// A batch as it was before [`Vault::batch`].
    ///
    /// # Errors
    /// [`Damaged::Sealed`] when it was sealed with another key, for another position, or changed since.
    pub fn open_batch(&self, first: Position, sealed: &[u8]) -> Result<Vec<u8>, Damaged> {
        let keys = self.0.as_ref().ok_or(Damaged::Sealed)?;
        open(&keys.batch, &first.to_le_bytes(), sealed).ok_or(Damaged::Sealed)
    }

    /// Bytes for a column: the same for the same bytes.
    pub fn bytes<'a>(&self, column: &str, plain: &'a [u8]) -> Cow<'a, [u8]> {
        match self.column(column, plain) {
            Some(sealed) => Cow::Owned([BYTES_MARK, &sealed].concat()),
            None => Cow::Borrowed(plain),
        }
    }

    /// Bytes of a column.
    ///
    /// # Errors
    /// [`Damaged::Sealed`] as for batches.
    pub fn open_bytes<'a>(&self, column: &str, stored: &'a [u8]) -> Result<Cow<'a, [u8]>, Damaged> {
        match stored.strip_prefix(BYTES_MARK) {
            Some(sealed) => self.open_column(column, sealed).map(Cow::Owned),
            None => Ok(Cow::Borrowed(stored)),
        }
    }

    /// A text for a column: the same for the same text.
    pub fn text<'a>(&self, column: &str, plain: &'a str) -> Cow<'a, str> {
        match self.column(column, plain.as_bytes()) {
            Some(sealed) => Cow::Owned(format!("{TEXT_MARK}{}", BASE64_STANDARD_NO_PAD.encode(sealed))),
            None => Cow::Borrowed(plain),
        }
    }

    /// A text of a column.
    ///
    /// # Errors
    /// [`Damaged::Sealed`] as for batches.
    pub fn open_text(&self, column: &str, stored: String) -> Result<String, Damaged> {
        let Some(sealed) = stored.strip_prefix(TEXT_MARK) else {
            return Ok(stored);
        };
        let sealed = BASE64_STANDARD_NO_PAD
            .decode(sealed)
            .map_err(|_| Damaged::Sealed)?;
        String::from_utf8(self.open_column(column, &sealed)?).map_err(|_| Damaged::Sealed)
    }

    /// [`Vault::open_text`] for what a row of SQLite holds.
    pub(super) fn read_text(&self, column: &str, stored: String) -> rusqlite::Result<String> {
        self.open_text(column, stored).map_err(unreadable)
    }

    fn column(&self, column: &str, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.0.as_ref()?;
        let mut context = hmac::Context::with_key(&keys.synthetic);
        context.update(&(column.len() as u64).to_le_bytes());
        context.update(column.as_bytes());
        context.update(plain);
        let mut random = [0; RANDOM];
        for (place, byte) in random.iter_mut().zip(context.sign().as_ref()) {
            *place = *byte;
        }
        // Sealing fails only for more bytes than a memory holds.
        seal(&keys.column, random, column.as_bytes(), plain).ok()
    }

    fn open_column(&self, column: &str, sealed: &[u8]) -> Result<Vec<u8>, Damaged> {
        let keys = self.0.as_ref().ok_or(Damaged::Sealed)?;
        open(&keys.column, column.as_bytes(), sealed).ok_or(Damaged::Sealed)
    }
}

/// A sealed value that cannot be opened, as an error of the row.
pub(super) fn unreadable(damaged: Damaged) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(damaged))
}

/// Key and nonce that the random bytes stand for.
fn cipher(key: &hmac::Key, random: &[u8]) -> Option<(LessSafeKey, Nonce)> {
    let (first, second) = random.split_at_checked(RANDOM / 2)?;
    let own = hmac::sign(key, first);
    let key = UnboundKey::new(&CHACHA20_POLY1305, own.as_ref()).ok()?;
    Some((
        LessSafeKey::new(key),
        Nonce::try_assume_unique_for_key(second).ok()?,
    ))
}

fn seal(key: &hmac::Key, random: [u8; RANDOM], place: &[u8], plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let failed = || std::io::Error::other("a value cannot be sealed");
    let (cipher, nonce) = cipher(key, &random).ok_or_else(failed)?;
    sabotage::sealed_with(&random, place, plain);
    let mut sealed = Vec::with_capacity(RANDOM + plain.len() + CHACHA20_POLY1305.tag_len());
    sealed.extend_from_slice(&random);
    sealed.extend_from_slice(plain);
    let body = sealed.get_mut(RANDOM..).ok_or_else(failed)?;
    let tag = cipher
        .seal_in_place_separate_tag(nonce, Aad::from(place), body)
        .map_err(|_| failed())?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

fn open(key: &hmac::Key, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (random, body) = sealed.split_at_checked(RANDOM)?;
    let (cipher, nonce) = cipher(key, random)?;
    let mut body = body.to_vec();
    let length = cipher
        .open_in_place(nonce, Aad::from(place), &mut body)
        .ok()?
        .len();
    body.truncate(length);
    Some(body)
}

#[cfg(test)]
mod tests;
