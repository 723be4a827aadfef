//! How long set-aside files stay.

use super::*;

#[test]
fn set_aside_files_stay_until_they_are_salvaged_and_then_as_evidence_for_a_while() {
    const DAY: i64 = 86_400 * 10_000_000;
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), &Encryption::Off);
    Store::condemn_in(folder.path(), "a test").unwrap();
    let (mut store, mut recovered) = Store::open(folder.path()).unwrap();
    let mut salvage = recovered.salvages.pop().unwrap();
    let file = folder.path().join(&salvage.state().file);
    let bytes = store.set_aside_bytes();
    assert!(bytes > MIB / 4, "{bytes}");
    assert_eq!(store.limit_beside_former(100 * MIB), 100 * MIB - bytes);
    assert_eq!(store.limit_beside_former(bytes), bytes - bytes / 2);
    let now = adopt::now();
    // Not salvaged: neither age nor room removes it.
    store.tidy_set_aside(MIB, Some(now + 100 * DAY), true).unwrap();
    assert!(file.exists());
    drain(&mut store, &mut salvage, usize::MAX);
    store.tidy_set_aside(MIB, Some(now + 100 * DAY), true).unwrap();
    assert!(file.exists(), "not everything was normalized");
    store.settle_salvage(&mut salvage).unwrap();
    for (what, max_bytes, wall, short, stays) in [
        ("fresh", 100 * MIB, Some(now + DAY), false, true),
        ("the clock is not trusted", 100 * MIB, None, false, true),
        ("a week is over", 100 * MIB, Some(now + 8 * DAY), false, false),
        ("the disk is short", 100 * MIB, None, true, false),
        ("more than its share", bytes * 7, None, false, false),
    ] {
        let copy = std::fs::read(&file).unwrap();
        store.tidy_set_aside(max_bytes, wall, short).unwrap();
        assert_eq!(file.exists(), stays, "{what}");
        std::fs::write(&file, copy).unwrap();
    }
}
