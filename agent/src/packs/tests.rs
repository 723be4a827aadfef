//! Packs over their life: dropped in, changed, broken, removed, restarted.

use super::folder::{PackFiles, Snapshot};
use super::state::{HOLD_US, QUIET_US};
use super::*;
use crate::worker::Worker;
use embassy_time::{Duration, Instant, Timer};
use std::path::Path;

/// A device mapping whose types are these.
fn device(types: &[&str]) -> String {
    let templates: Vec<String> = types
        .iter()
        .map(|name| {
            format!(
                r#"{{ "templateType": "CalculatedContent", "template": {{ "typeName": "{name}",
                "typeMatchExpression": "$..[?(@{name})]", "deviceIdExpression": "$.matchedToken.id",
                "timestampExpression": "$.matchedToken.at",
                "values": [{{ "valueName": "v", "valueExpression": "$.matchedToken.{name}" }}] }} }}"#
            )
        })
        .collect();
    format!(
        r#"{{ "templateType": "CollectionContent", "template": [{}] }}"#,
        templates.join(",")
    )
}

/// A FHIR mapping with templates for these types.
fn fhir(types: &[&str]) -> String {
    let templates: Vec<String> = types
        .iter()
        .map(|name| {
            format!(
                r#"{{ "templateType": "CodeValueFhir", "template": {{ "typeName": "{name}",
                "codes": [{{ "code": "8867-4", "system": "http://loinc.org", "display": "{name}" }}],
                "value": {{ "valueType": "Quantity", "valueName": "v", "unit": "/min" }} }} }}"#
            )
        })
        .collect();
    format!(
        r#"{{ "templateType": "CollectionFhir", "template": [{}] }}"#,
        templates.join(",")
    )
}

fn text(name: &str, types: &[&str]) -> PackText {
    PackText {
        name: name.to_owned(),
        device: device(types),
        fhir: Some(fhir(types)),
        agent: None,
    }
}

fn snapshot(packs: &[(&str, &str, Option<&str>)]) -> Snapshot {
    let files = |device: &str, fhir: Option<&str>| PackFiles {
        device: Some(Ok(Arc::from(device))),
        fhir: fhir.map(|text| Ok(Arc::from(text))),
        ..PackFiles::default()
    };
    Snapshot {
        packs: packs
            .iter()
            .map(|(name, d, f)| ((*name).to_owned(), files(d, *f)))
            .collect(),
        strays: Vec::new(),
        folder: Ok((1, 1)),
    }
}

/// Events in words.
fn words(events: &[PackEvent]) -> Vec<String> {
    let word = |event: &PackEvent| match event {
        PackEvent::Loaded { pack, .. } => format!("loaded {}", pack.text.name),
        PackEvent::Removed { name } => format!("removed {name}"),
        PackEvent::Rejected { name, kept, .. } => format!("rejected {name} kept {kept}"),
        PackEvent::Held { name, types, .. } => format!("held {name} {}", types.join(" ")),
    };
    events.iter().map(word).collect()
}

fn names(state: &PackState) -> Vec<String> {
    state
        .set()
        .packs()
        .iter()
        .map(|pack| pack.text.name.clone())
        .collect()
}

const START: u64 = 5_000_000;

#[test]
fn a_revision_tells_packs_apart_by_every_part() {
    let pack = text("a", &["hr"]);
    let without_fhir = PackText {
        fhir: None,
        ..pack.clone()
    };
    let moved = PackText {
        fhir: None,
        agent: pack.fhir.clone(),
        ..pack.clone()
    };
    let renamed = PackText {
        name: "b".to_owned(),
        ..pack.clone()
    };
    let revisions = [&pack, &without_fhir, &moved, &renamed].map(PackText::revision);
    for (number, one) in revisions.iter().enumerate() {
        assert_eq!(one.len(), 64);
        assert!(!revisions[..number].contains(one));
    }
    assert_eq!(pack.revision(), pack.clone().revision());
}

#[test]
fn a_set_survives_its_bundle_and_is_narrowed_by_names() {
    let load = |name| Arc::new(Pack::load(text(name, &["hr"])).0.unwrap());
    let set = Arc::new(PackSet::new(vec![load("b"), load("c"), load("a")]));
    let again = PackSet::from_bundle(&set.bundle()).unwrap();
    assert_eq!(again.revision(), set.revision());
    assert_eq!(
        again
            .packs()
            .iter()
            .map(|pack| pack.text.name.as_str())
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    let narrowed = set.for_source(Some(&["c".to_owned(), "unknown".to_owned()]));
    assert_eq!(narrowed.packs().len(), 1);
    assert_ne!(narrowed.revision(), set.revision());
    assert_eq!(set.for_source(None).packs().len(), 3);
    let order: Vec<&str> = set
        .mapping_set()
        .packs()
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(order, ["a", "b", "c"]);
    assert!(PackSet::from_bundle(b"no bundle").is_none());
}

#[test]
fn a_change_is_taken_when_its_files_were_quiet_for_half_a_second() {
    let (d, f) = (device(&["hr"]), fhir(&["hr"]));
    let mut state = PackState::default();
    assert!(state.observe(&snapshot(&[("a", &d, None)]), START).is_empty());
    // The second file comes 400 ms later: both wait from then on.
    let both = snapshot(&[("a", &d, Some(&f))]);
    assert!(state.observe(&both, START + 400_000).is_empty());
    assert!(state.observe(&both, START + 899_999).is_empty());
    assert_eq!(state.next_due(), Some(START + 400_000 + QUIET_US));
    assert_eq!(words(&state.observe(&both, START + 900_000)), ["loaded a"]);
    assert!(state.observe(&both, START + 5_000_000).is_empty());
    assert_eq!(state.next_due(), None);
    assert_eq!(state.set().packs()[0].text.fhir.as_deref(), Some(f.as_str()));
}

#[test]
fn what_is_on_the_disk_at_start_is_in_use_at_once() {
    let mut state = PackState::default();
    let folder = snapshot(&[("b", &device(&["hr"]), None), ("a", &device(&["spo2"]), None)]);
    assert_eq!(
        words(&state.observe_at_start(&folder, START)),
        ["loaded a", "loaded b"]
    );
    assert_eq!(names(&state), ["a", "b"]);
}

#[test]
fn a_wrong_file_is_told_with_its_place_and_the_last_good_version_stays() {
    let (d, f) = (device(&["hr"]), fhir(&["hr"]));
    let mut state = PackState::default();
    state.observe_at_start(&snapshot(&[("a", &d, Some(&f))]), START);
    let broken = snapshot(&[(
        "a",
        &d.replace("\"valueName\": \"v\"", "\"valueName\": "),
        Some(&f),
    )]);
    assert!(state.observe(&broken, 2 * START).is_empty());
    assert_eq!(
        words(&state.observe(&broken, 2 * START + QUIET_US)),
        ["rejected a kept true"]
    );
    let problems = state.problems();
    assert_eq!(
        (problems[0].kind, problems[0].in_use),
        (ProblemKind::Rejected, true)
    );
    assert!(
        problems[0].lines[0].starts_with("a.device.json:4:"),
        "{:?}",
        problems[0].lines
    );
    assert!(problems[0].details.contains("\n4 | "), "{}", problems[0].details);
    assert_eq!(state.set().packs()[0].text.device, d);
    // It is told once, and gone when the file is good again.
    assert!(state.observe(&broken, 3 * START).is_empty());
    let good = snapshot(&[("a", &d, Some(&f))]);
    state.observe(&good, 4 * START);
    assert!(state.observe(&good, 4 * START + QUIET_US).is_empty());
    assert!(state.problems().is_empty());
}

#[test]
fn a_broken_fhir_mapping_or_third_file_refuses_the_pack_too() {
    let (d, f) = (device(&["hr"]), fhir(&["hr"]));
    let mut folder = snapshot(&[
        ("a", &d, Some("{ \"templateType\": \"CollectionFhir\" }")),
        ("b", &d, Some(&f)),
    ]);
    folder.packs.get_mut("b").unwrap().agent = Some(Ok(Arc::from("{ \"typs\": {} }")));
    let mut state = PackState::default();
    let events = state.observe_at_start(&folder, START);
    assert_eq!(words(&events), ["rejected a kept false", "rejected b kept false"]);
    let lines: Vec<String> = state
        .problems()
        .iter()
        .map(|problem| problem.lines[0].clone())
        .collect();
    assert!(lines[0].starts_with("a.fhir.json:1:"), "{lines:?}");
    assert!(lines[1].starts_with("b.agent.json:1:3: "), "{lines:?}");
}

#[test]
fn a_removed_pack_leaves_and_a_folder_that_cannot_be_read_removes_nothing() {
    let d = device(&["hr"]);
    let mut state = PackState::default();
    state.observe_at_start(&snapshot(&[("a", &d, None), ("b", &d, None)]), START);
    let gone = Snapshot {
        folder: Err("it does not exist".to_owned()),
        ..snapshot(&[])
    };
    assert!(state.observe(&gone, 2 * START).is_empty());
    assert!(state.observe(&gone, 3 * START).is_empty());
    assert_eq!(names(&state), ["a", "b"]);
    assert_eq!(state.problems()[0].kind, ProblemKind::Folder);
    let one = snapshot(&[("b", &d, None)]);
    state.observe(&one, 4 * START);
    assert_eq!(words(&state.observe(&one, 4 * START + QUIET_US)), ["removed a"]);
    assert_eq!(names(&state), ["b"]);
    assert!(state.problems().is_empty());
}

#[test]
fn a_half_copied_pair_waits_for_its_other_file() {
    let (old_d, old_f) = (device(&["hr", "spo2"]), fhir(&["hr", "spo2"]));
    let (new_d, new_f) = (device(&["pulse", "spo2"]), fhir(&["pulse", "spo2"]));
    let mut state = PackState::default();
    state.observe_at_start(&snapshot(&[("a", &old_d, Some(&old_f))]), START);
    let half = snapshot(&[("a", &new_d, Some(&old_f))]);
    let changed = 2 * START;
    state.observe(&half, changed);
    assert_eq!(words(&state.observe(&half, changed + QUIET_US)), ["held a pulse"]);
    assert!(state.observe(&half, changed + HOLD_US - 1).is_empty());
    assert_eq!(state.set().packs()[0].text.device, old_d);
    let problems = state.problems();
    assert_eq!(problems[0].kind, ProblemKind::Held);
    assert!(
        problems[0].lines[0].contains("pulse would lose the FHIR template"),
        "{:?}",
        problems[0].lines
    );
    // The other file comes: both are taken.
    let mut patient = PackState::default();
    patient.observe_at_start(&snapshot(&[("a", &old_d, Some(&old_f))]), START);
    patient.observe(&half, changed);
    patient.observe(&half, changed + QUIET_US);
    let whole = snapshot(&[("a", &new_d, Some(&new_f))]);
    patient.observe(&whole, changed + 30_000_000);
    assert_eq!(
        words(&patient.observe(&whole, changed + 30_000_000 + QUIET_US)),
        ["loaded a"]
    );
    assert!(patient.problems().is_empty());
    // It does not come: after a minute the operator is believed.
    assert_eq!(state.next_due(), Some(changed + HOLD_US));
    assert_eq!(words(&state.observe(&half, changed + HOLD_US)), ["loaded a"]);
    assert_eq!(state.set().packs()[0].text.device, new_d);
}

#[test]
fn one_changed_file_that_costs_no_template_is_taken_at_once() {
    let before = ("a", device(&["hr"]), Some(fhir(&["hr"])));
    let table = [
        (
            "a new expression",
            device(&["hr"]).replace(".id", ".deviceId"),
            Some(fhir(&["hr"])),
            true,
        ),
        ("a type less", device(&[]), Some(fhir(&["hr"])), true),
        (
            "a template more",
            device(&["hr"]),
            Some(fhir(&["hr", "spo2"])),
            true,
        ),
        ("a template less", device(&["hr"]), Some(fhir(&["spo2"])), false),
        ("no FHIR mapping any more", device(&["hr"]), None, false),
        (
            "a new type with its template",
            device(&["hr", "spo2"]),
            Some(fhir(&["hr", "spo2"])),
            true,
        ),
        (
            "both changed, one type without template on purpose",
            device(&["hr", "x"]),
            Some(fhir(&["hr", "y"])),
            true,
        ),
    ];
    for (name, d, f, taken) in table {
        let mut state = PackState::default();
        state.observe_at_start(&snapshot(&[(before.0, &before.1, before.2.as_deref())]), START);
        let after = snapshot(&[("a", &d, f.as_deref())]);
        state.observe(&after, 2 * START);
        let events = words(&state.observe(&after, 2 * START + QUIET_US));
        let expected = if taken { "loaded a" } else { "held a hr" };
        assert_eq!(events, [expected], "{name}");
    }
}

#[test]
fn last_good_packs_survive_a_restart_with_broken_half_copied_or_removed_files() {
    let last_good = vec![
        text("broken", &["hr"]),
        text("half", &["hr"]),
        text("removed", &["hr"]),
        text("same", &["hr"]),
    ];
    let (d, f) = (device(&["hr"]), fhir(&["hr"]));
    let folder = snapshot(&[
        ("broken", "{", Some(&f)),
        ("half", &device(&["pulse"]), Some(&f)),
        ("same", &d, Some(&f)),
    ]);
    let mut state = PackState::new(last_good);
    let events = words(&state.observe_at_start(&folder, START));
    assert_eq!(
        events,
        ["rejected broken kept true", "held half pulse", "removed removed"]
    );
    assert_eq!(names(&state), ["broken", "half", "same"]);
    assert_eq!(state.set().pack("broken").unwrap().text.device, d);
}

#[test]
fn the_type_names_of_device_and_fhir_mapping_meet() {
    let pack = Pack::load(PackText {
        fhir: Some(fhir(&["hr"])),
        ..text("a", &["hr", "spo2"])
    })
    .0
    .unwrap();
    assert_eq!(
        pack.device_types().into_iter().collect::<Vec<_>>(),
        ["hr", "spo2"]
    );
    assert_eq!(
        pack.types_without_template().into_iter().collect::<Vec<_>>(),
        ["spo2"]
    );
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// Packs are dropped, broken, repaired and removed in a real folder; each change must be seen within 2 s.
async fn live_through_a_day(notice: Notice) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.device.json", &device(&["hr"]));
    let folder = PackFolder::open(dir.path(), Vec::new());
    let (mut packs, mut problems) = (folder.packs(), folder.problems());
    assert_eq!(packs.borrow_and_update().packs().len(), 1);
    let watching = tokio::task::spawn_local(folder.watch(Worker::inline(), notice));
    let within = Duration::from_secs(2);

    let begin = Instant::now();
    write(dir.path(), "b.device.json", &device(&["spo2"]));
    packs.changed().await.unwrap();
    assert!(begin.elapsed() <= within);
    assert_eq!(packs.borrow_and_update().packs().len(), 2);

    let begin = Instant::now();
    write(dir.path(), "b.device.json", "{ \"templateType\": ");
    problems.changed().await.unwrap();
    assert!(begin.elapsed() <= within);
    assert_eq!(problems.borrow_and_update()[0].name, "b");
    assert_eq!(packs.borrow().packs().len(), 2);
    assert!(!packs.has_changed().unwrap());

    std::fs::create_dir(dir.path().join("c")).unwrap();
    Timer::after(Duration::from_millis(100)).await;
    let begin = Instant::now();
    write(&dir.path().join("c"), "devicecontent.json", &device(&["ecg"]));
    std::fs::rename(dir.path().join("a.device.json"), dir.path().join("z.device.json")).unwrap();
    packs
        .wait_for(|set| set.pack("c").is_some() && set.pack("z").is_some() && set.pack("a").is_none())
        .await
        .unwrap();
    assert!(begin.elapsed() <= within);

    drop((packs, problems));
    watching.await.unwrap();
}

#[test]
fn the_folder_is_followed_in_simulated_time() {
    crate::clock::simulate(iomt_mapping::Timestamp::MIN, live_through_a_day(Notice::Poll)).unwrap();
}

#[test]
fn the_folder_is_followed_in_real_time() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(live_through_a_day(Notice::Kernel)));
}

/// What can lie in the folder for a pack: good pairs, halves of others, broken files, nothing.
fn variants() -> Vec<Option<(String, Option<String>)>> {
    vec![
        None,
        Some((device(&["hr"]), Some(fhir(&["hr"])))),
        Some((device(&["pulse"]), Some(fhir(&["pulse"])))),
        Some((device(&["pulse"]), Some(fhir(&["hr"])))),
        Some((device(&["hr"]), None)),
        Some(("{ \"templateType\":".to_owned(), Some(fhir(&["hr"])))),
        Some((device(&["hr"]), Some("[".to_owned()))),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever happened before: a minute of quiet later each pack is what the folder holds, or the last good version where
    /// that is broken, and what is in use never changes to something that the folder did not hold.
    #[test]
    fn after_a_minute_of_quiet_the_packs_are_those_of_the_folder(
        changes in proptest::collection::vec((0_usize..2, 0_usize..7, 0_u64..1_500_000), 1..12)
    ) {
        let (variants, names) = (variants(), ["a", "b"]);
        let mut held: [Option<(String, Option<String>)>; 2] = [None, None];
        let mut seen: Vec<PackText> = Vec::new();
        let mut state = PackState::default();
        let mut now = START;
        let look = |held: &[Option<(String, Option<String>)>; 2]| {
            let packs: Vec<_> = held
                .iter()
                .zip(names)
                .filter_map(|(files, name)| files.as_ref().map(|(d, f)| (name, d.as_str(), f.as_deref())))
                .collect();
            snapshot(&packs)
        };
        let check = |state: &PackState, seen: &[PackText]| {
            for pack in state.set().packs() {
                assert!(seen.contains(&pack.text));
            }
        };
        for (pack, variant, pause) in changes {
            held[pack] = variants[variant].clone();
            seen.extend(held[pack].iter().map(|(device, fhir)| PackText {
                name: names[pack].to_owned(),
                device: device.clone(),
                fhir: fhir.clone(),
                agent: None,
            }));
            state.observe(&look(&held), now);
            now += pause;
            state.observe(&look(&held), now);
            check(&state, &seen);
        }
        let before = state.set();
        now += HOLD_US + QUIET_US;
        state.observe(&look(&held), now);
        check(&state, &seen);
        for (files, name) in held.iter().zip(names) {
            let in_use = state.set().pack(name).map(|pack| (pack.text.device.clone(), pack.text.fhir.clone()));
            let loads = files.as_ref().is_some_and(|(device, fhir)| {
                let text = PackText { name: name.to_owned(), device: device.clone(), fhir: fhir.clone(), agent: None };
                Pack::load(text).0.is_some()
            });
            if files.is_none() || loads {
                proptest::prop_assert_eq!(&in_use, files);
            } else {
                let kept = before.pack(name).map(|pack| (pack.text.device.clone(), pack.text.fhir.clone()));
                proptest::prop_assert_eq!(in_use, kept);
                proptest::prop_assert!(state.problems().iter().any(|problem| problem.name == name));
            }
        }
        proptest::prop_assert_eq!(state.next_due(), None);
    }
}
