//! The journal's story: see the head of `main.rs`.

use crate::life::{DESTINATIONS, Life, World, device, kind, serial_of};
use crate::story::{Nonces, nothing_is_readable};
use anyhow::{Context, bail, ensure};
use bedside_agent::config::Encryption;
use bedside_agent::message::Position;
use bedside_agent::random;
use bedside_agent::store::{Store, StoreError, Trouble};
use bedside_disk::{Chance, Fault, Image};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What a start would find, on a copy.
fn judge(image: &Image, world: &mut World, scratch: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(scratch)?;
    image.write_to(folder.path())?;
    if world.encryption != Encryption::Off {
        nothing_is_readable(folder.path())?;
    }
    let (store, found) =
        Store::open_with(folder.path(), &world.encryption).context("the store does not open")?;
    ensure!(found.set_aside.is_none(), "the store was taken for damaged");
    let stored = store.read_from(1, usize::MAX)?;
    ensure!(stored.damaged.is_empty(), "damaged batches: {:?}", stored.damaged);
    let mut places: BTreeMap<u64, Position> = BTreeMap::new();
    for one in &stored.messages {
        let serial = serial_of(one);
        if let Some(other) = places.insert(serial, one.position) {
            world.twice.insert(serial);
            bail!(
                "message {serial} is stored twice, at {other} and {}",
                one.position
            );
        }
    }
    let came_through = |serial: u64| match kind(serial) {
        "unparsable" => true,
        "unmatched" => world.forgotten.contains(&serial),
        _ => DESTINATIONS.iter().all(|d| world.told.contains(&(*d, serial))),
    };
    let kept_from = stored
        .messages
        .first()
        .map_or(found.next_position, |m| m.position);
    let may_be_dropped = |serial: u64| world.stored_at.get(&serial).is_some_and(|at| *at < kept_from);
    let lost: Vec<u64> = world
        .acknowledged
        .iter()
        .copied()
        .filter(|serial| !places.contains_key(serial))
        .filter(|serial| !may_be_dropped(*serial) || !came_through(*serial))
        .collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let p = &found.progress;
    ensure!(
        p.cursor == p.messages && p.messages == p.matched + p.unmatched + p.unparsable,
        "messages do not balance: {p:?}"
    );
    for (id, d) in &p.destinations {
        let rows = found.rows.iter().filter(|row| row.destination == *id);
        let rows: u64 = rows.map(|row| row.count).sum();
        ensure!(
            d.lost == 0 && d.matches == p.matched && d.matches == d.delivered + d.superseded + d.dead + rows,
            "destination {id}: {d:?} and {rows} in rows do not balance with {} messages",
            p.matched
        );
    }
    let names: HashMap<u32, &str> = found.series.iter().map(|(id, key)| (*id, &*key.device)).collect();
    for (serial, at) in places
        .iter()
        .filter(|(serial, at)| kind(**serial) == "matched" && **at <= p.cursor)
    {
        for destination in DESTINATIONS {
            let in_row = || {
                found.rows.iter().any(|row| {
                    row.destination == destination
                        && names.get(&row.series) == Some(&device(*serial).as_str())
                        && match &row.refs {
                            Some(refs) => refs.contains(&(*at, 0)),
                            None => (row.first..=row.last).contains(at),
                        }
                })
            };
            ensure!(
                world.told.contains(&(destination, *serial)) || in_row(),
                "reading {serial} of destination {destination} is behind the cursor and in no row"
            );
        }
    }
    drop(store);
    let plain = rusqlite::Connection::open(folder.path().join("store.db"))?;
    let verdict: String = plain.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(verdict == "ok", "integrity: {verdict}");
    Ok(())
}

/// A store's life with `cuts` cuts, then drained and judged.
pub fn chain(seed: u64, cuts: u64, scratch: &Path, world: &mut World) -> anyhow::Result<()> {
    random::seed(seed);
    let mut chance = Chance(seed);
    let mut image = Image::default();
    let mut nonces = Nonces::default();
    for _ in 0..cuts {
        let folder = tempfile::tempdir_in(scratch)?;
        let number = chance.number();
        bedside_disk::attach(folder.path(), &image, number, Box::new(|| {}))?;
        bedside_disk::cut_after(1 + number % 300);
        let ended = run(folder.path(), world, &mut chance);
        let cut = bedside_disk::cut_has_come();
        world.failures += bedside_disk::failures();
        world.refusals = bedside_disk::refusals();
        image = bedside_disk::detach().context("no disk")?;
        if !cut {
            ended?;
        } else if let Err(error) = ended
            && !error.is::<StoreError>()
        {
            return Err(error);
        }
        nonces.check()?;
        judge(&image, world, scratch)?;
    }
    let folder = tempfile::tempdir_in(scratch)?;
    image.write_to(folder.path())?;
    Life::begin(folder.path(), world, &mut chance)?.drain()?;
    let missing: Vec<u64> = world
        .acknowledged
        .iter()
        .copied()
        .filter(|serial| kind(*serial) == "matched")
        .filter(|serial| !DESTINATIONS.iter().all(|d| world.told.contains(&(*d, *serial))))
        .collect();
    ensure!(
        missing.is_empty(),
        "acknowledged and never delivered: {missing:?}"
    );
    Ok(())
}

/// Lives until the cut; some end in order, and the next one starts on the same disk.
fn run(folder: &Path, world: &mut World, chance: &mut Chance) -> anyhow::Result<()> {
    while !bedside_disk::cut_has_come() {
        if world.troubles && chance.below(4) == 0 {
            trouble(chance);
        }
        let troubles = world.troubles;
        let mut life = match Life::begin(folder, world, chance) {
            Err(failure) if troubles && !bedside_disk::cut_has_come() => {
                let known = failure.downcast_ref::<StoreError>();
                ensure!(
                    known.is_some_and(|error| Trouble::of(error, folder).is_some()),
                    "a start in trouble fails for another reason: {failure:#}"
                );
                continue;
            }
            other => other?,
        };
        for _ in 0..life.chance.below(60) {
            if bedside_disk::cut_has_come() {
                break;
            }
            if life.world.troubles && life.chance.below(6) == 0 {
                trouble(life.chance);
            }
            if let Err(failure) = life.step() {
                if bedside_disk::cut_has_come() || !life.world.troubles {
                    return Err(failure);
                }
                life.go_on_after(failure, folder)?;
            }
        }
        bedside_disk::heal();
    }
    Ok(())
}

/// Some of the next calls of the disk fail.
fn trouble(chance: &mut Chance) {
    let (after, times) = (chance.below(25), 1 + chance.below(4));
    match chance.below(5) {
        0 | 1 => bedside_disk::fail(Fault::Full, after, times),
        2 | 3 => bedside_disk::fail(Fault::Failing, after, times),
        _ if times > 2 => bedside_disk::fail(Fault::ReadOnly, after, times),
        // More of them at one place would be damage, which the store counts lost.
        _ => bedside_disk::fail(Fault::Unreadable, after, 1),
    }
}
