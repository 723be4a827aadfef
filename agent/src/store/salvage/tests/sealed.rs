//! Stores that are encrypted at rest.

use super::*;

#[test]
fn a_sealed_store_without_its_first_page_finds_its_id_and_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let id = filled(folder.path(), &Encryption::Own);
    smash(&folder.path().join("store.db"), 1);
    let (mut store, mut recovered) = Store::open_with(folder.path(), &Encryption::Own).unwrap();
    let mut salvage = recovered.salvages.pop().unwrap();
    while store.salvage_step(&mut salvage, &Encryption::Own).unwrap() {}
    let messages = messages_of(&store, &recovered);
    assert!((DROPPED + 1..=LAST).all(|n| messages[&n] == (id.clone(), n)));
    assert_eq!(salvage.state().lost, 0);
}

#[test]
fn a_sealed_store_waits_for_its_key() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Own);
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("store.db.damaged-1");
    std::fs::copy(folder.path().join("store.db"), &file).unwrap();
    drop(Store::open(other.path()).unwrap());
    let (mut store, recovered) = Store::open(other.path()).unwrap();
    assert_eq!(
        recovered.salvages.len(),
        1,
        "without a key what is not sealed comes over"
    );
    assert!(store.begin_salvage(&file, &Encryption::Own).unwrap().is_none());
    let state = store.salvages().unwrap().remove(0);
    assert!(
        state.waits.as_ref().unwrap().contains("its key is not there"),
        "{state:?}"
    );
    assert!(state.concerns(adopt::now()) && !state.settled);
    std::fs::copy(folder.path().join("store.key"), other.path().join("store.key")).unwrap();
    let mut salvage = store.begin_salvage(&file, &Encryption::Own).unwrap().unwrap();
    assert_eq!(salvage.state().waits, None);
    while store.salvage_step(&mut salvage, &Encryption::Own).unwrap() {}
    assert_eq!(salvage.state().messages, LAST - DROPPED);
}
