//! A disk that forgets: file calls below one folder are recorded, and a power cut leaves what was synced, and of the rest
//! a random part (torn at sectors of 512 bytes). It stands between the program and the C library, so that SQLite's own file
//! layer and `std::fs` are seen alike: writes, truncations, syncs, file creation, renames, removals and folder syncs.
//!
//! One folder of one process at a time. Nothing is really synced, which makes it quick.

mod calls;
mod model;

pub use calls::{attach, cut_after, cut_has_come, detach, operations};
pub use model::{Chance, Image};
