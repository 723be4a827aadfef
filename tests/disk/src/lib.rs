//! A disk that forgets: file calls below one folder are recorded, and a power cut leaves what was synced, and of the rest
//! a random part (torn at sectors of 512 bytes). It stands between the program and the C library, so that SQLite's own file
//! layer and `std::fs` are seen alike: writes, truncations, syncs, file creation, renames, removals and folder syncs. An
//! exchange of two names, which no library function of `std` does, is shown to it ([`exchange`]).
//!
//! Any call can also be made to fail ([`fail`]): a full disk, a device that refuses, a write that is cut short.
//!
//! One folder of one process at a time. Nothing is really synced, which makes it quick.

mod calls;
mod model;

pub use calls::{
    Fault, attach, cut_after, cut_has_come, detach, exchange, fail, failures, heal, operations, refusals,
};
pub use model::{Chance, Image};
