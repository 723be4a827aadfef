use super::*;
use crate::packs::{Form, PackText};
use std::os::unix::fs::{PermissionsExt, symlink};

fn ready() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(IN_SOURCES)
}

fn folders(dir: &Path) -> Folders {
    Folders {
        config: None,
        dir: Some(dir.to_owned()),
        from: Some(ready()),
    }
}

fn add(name: &str, dir: &Path, force: bool) -> Result<String, String> {
    let add = Add {
        name: name.to_owned(),
        folders: folders(dir),
        force,
    };
    add.add().map_err(|error| format!("{error:#}"))
}

fn states(dir: &Path) -> Vec<(String, list::State)> {
    let (ready, installed) = (locate(&ready()).unwrap(), folder_of_packs(dir).unwrap());
    let listed = list::listed(Some(&ready), Some(&installed));
    let there = listed
        .packs
        .into_iter()
        .filter(|pack| pack.state != list::State::Ready);
    there.map(|pack| (pack.name, pack.state)).collect()
}

/// All names in a folder, hidden ones too.
fn entries(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn same_as_ready(dir: &Path, name: &str) -> bool {
    let text = |dir: &Path| PackFiles::read(dir, name, Form::Folder).text(name).unwrap();
    text(dir) == text(&ready())
}

#[test]
fn every_ready_pack_can_be_added_and_is_then_as_the_ready_one() {
    let dir = tempfile::tempdir().unwrap();
    let all = locate(&ready()).unwrap().packs;
    assert!(all.len() >= 15, "{}", all.len());
    for (name, _) in &all {
        let said = add(name, dir.path(), false).unwrap();
        assert!(said.starts_with(&format!("installed {name} in ")), "{said}");
        assert!(
            said.lines()
                .any(|line| line.starts_with(&format!("{name}  installed "))),
            "{said}"
        );
        assert!(same_as_ready(dir.path(), name), "{name}");
    }
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(entries(dir.path()), names, "nothing but the packs is left");
    assert_eq!(
        entries(&dir.path().join("nonin")),
        ["agent.json", "devicecontent.json", "fhirmapping.json"]
    );
    assert!(
        states(dir.path())
            .iter()
            .all(|(_, state)| *state == list::State::Installed)
    );
    assert!(
        add("nonin", dir.path(), false)
            .unwrap()
            .contains("already and is as the ready pack")
    );
}

#[test]
fn the_user_of_the_service_can_read_what_was_added() {
    let dir = tempfile::tempdir().unwrap();
    add("nonin", dir.path(), false).unwrap();
    let mode = |path: &str| {
        std::fs::metadata(dir.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("nonin"), 0o755);
    assert_eq!(mode("nonin/devicecontent.json"), 0o644);
}

#[test]
fn a_changed_pack_is_overwritten_with_force_only_and_other_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    add("heart-rate", dir.path(), false).unwrap();
    std::fs::write(at("heart-rate/fhirmapping.json"), "{}").unwrap();
    std::fs::write(at("heart-rate/agent.json"), "{}").unwrap();
    std::fs::write(at("heart-rate/notes.md"), "ours").unwrap();
    assert_eq!(
        states(dir.path()),
        [("heart-rate".to_owned(), list::State::Changed)]
    );
    let refused = add("heart-rate", dir.path(), false).unwrap_err();
    assert!(
        refused.contains("differs from the ready pack") && refused.contains("--force"),
        "{refused}"
    );
    assert_eq!(
        std::fs::read_to_string(at("heart-rate/fhirmapping.json")).unwrap(),
        "{}"
    );
    assert!(
        add("heart-rate", dir.path(), true)
            .unwrap()
            .starts_with("replaced heart-rate")
    );
    assert!(same_as_ready(dir.path(), "heart-rate"));
    assert_eq!(entries(dir.path()), ["heart-rate"]);
    assert_eq!(
        entries(&at("heart-rate")),
        ["devicecontent.json", "fhirmapping.json", "notes.md"],
        "the ready pack has no third file"
    );
}

#[test]
fn a_pack_of_flat_files_or_behind_a_link_is_replaced_in_its_form() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("nonin.device.json"), "{}").unwrap();
    add("nonin", dir.path(), false).unwrap_err();
    add("nonin", dir.path(), true).unwrap();
    assert_eq!(
        entries(dir.path()),
        ["nonin.agent.json", "nonin.device.json", "nonin.fhir.json"]
    );
    assert_eq!(states(dir.path()), [("nonin".to_owned(), list::State::Installed)]);

    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("devicecontent.json"), "{}").unwrap();
    symlink(elsewhere.path(), at("heart-rate")).unwrap();
    add("heart-rate", dir.path(), true).unwrap();
    assert!(at("heart-rate").is_symlink());
    assert!(same_as_ready(dir.path(), "heart-rate"));
}

#[test]
fn a_pack_whose_files_were_on_their_way_when_the_power_went_is_the_new_one_whole() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for role in ["device", "fhir", "agent"] {
        std::fs::write(at(&format!("nonin.{role}.json")), "{\"old\":true}").unwrap();
    }
    std::fs::create_dir(at(".nonin.exchange")).unwrap();
    let new = PackFiles::read(&ready(), "nonin", Form::Folder)
        .text("nonin")
        .unwrap();
    // The FHIR mapping is in its place already, the device mapping not; the new pack has no third file.
    std::fs::write(at("nonin.fhir.json"), new.fhir.as_ref().unwrap()).unwrap();
    std::fs::write(at(".nonin.exchange/devicecontent.json"), &new.device).unwrap();
    std::fs::write(at(".nonin.exchange/agent.json.removed"), "").unwrap();
    let expected = PackText { agent: None, ..new };
    let watched = &folder_of_packs(dir.path()).unwrap();
    assert_eq!(
        files_of(watched, "nonin").unwrap().text("nonin").unwrap(),
        expected
    );
    let read = PackFiles::read(dir.path(), "nonin", Form::Files);
    assert_eq!(read.text("nonin").unwrap(), expected);
    add("nonin", dir.path(), true).unwrap();
    assert_eq!(
        entries(dir.path()),
        ["nonin.agent.json", "nonin.device.json", "nonin.fhir.json"]
    );
    assert_eq!(states(dir.path()), [("nonin".to_owned(), list::State::Installed)]);
}

#[test]
fn a_folder_of_this_name_that_is_no_pack_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("nonin")).unwrap();
    std::fs::write(dir.path().join("nonin/notes.md"), "ours").unwrap();
    let refused = add("nonin", dir.path(), true).unwrap_err();
    assert!(refused.contains("the pack cannot be written to"), "{refused}");
    assert_eq!(entries(dir.path()), ["nonin"]);
    assert_eq!(entries(&dir.path().join("nonin")), ["notes.md"]);
}

#[test]
fn a_ready_pack_with_an_error_is_shown_and_not_copied() {
    let (from, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(
        from.path().join("bad.device.json"),
        "{ \"templateType\": \"CollectionContent\" ",
    )
    .unwrap();
    let add = Add {
        name: "bad".to_owned(),
        folders: Folders {
            from: Some(from.path().to_owned()),
            ..folders(dir.path())
        },
        force: true,
    };
    let refused = add.add().unwrap_err().to_string();
    assert!(refused.contains("bad.device.json:1:"), "{refused}");
    assert!(refused.contains("nothing was copied"), "{refused}");
    assert_eq!(entries(dir.path()), Vec::<String>::new());
}

#[test]
fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (name, advice) in [
        ("nonnin", "did you mean nonin?"),
        ("Nonin", "did you mean nonin?"),
        ("berry", "did you mean berry-bci, berry-pm6750?"),
        ("../nonin", "nonin"),
        ("quite-unknown", "`bedside-agent mappings list` shows all"),
    ] {
        let refused = add(name, dir.path(), false).unwrap_err();
        assert!(refused.starts_with("there is no ready pack"), "{refused}");
        assert!(refused.contains(advice), "{refused}");
    }
    let refused = add("nonin", &dir.path().join("absent"), false).unwrap_err();
    assert!(refused.contains("it does not exist; create it"), "{refused}");
    let refused = ready_folder(&dir.path().join("absent"), dir.path()).unwrap_err();
    assert!(refused.to_string().contains("--from DIR"), "{refused}");
}

#[test]
fn ready_packs_are_found_with_the_program_else_above_the_current_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (installed, deep) = (dir.path().join("share"), dir.path().join("sources/agent/src"));
    let in_sources = dir.path().join("sources").join(IN_SOURCES);
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::create_dir_all(&in_sources).unwrap();
    assert_eq!(ready_folder(&installed, &deep).unwrap(), in_sources);
    std::fs::create_dir(&installed).unwrap();
    assert_eq!(ready_folder(&installed, &deep).unwrap(), installed);
}

#[test]
fn the_drop_in_folder_is_that_of_the_configuration_and_a_source_that_leaves_the_pack_out_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mappings.d")).unwrap();
    let path = dir.path().join("agent.toml");
    let write = |packs: &str| {
        let text = format!(
            "[gateway]\nid = \"bed-12\"\n[mappings]\ndir = \"mappings.d\"\n[[source]]\nname = \"ward\"\nkind = \"mqtt\"\n\
             url = \"mqtts://broker\"\ntopics = [\"a\"]\n{packs}\n[[destination]]\nname = \"ehr\"\nkind = \"fhir\"\n\
             url = \"https://fhir.example/r4\"\n"
        );
        std::fs::write(&path, text).unwrap();
    };
    let add = |name: &str| {
        let add = Add {
            name: name.to_owned(),
            folders: Folders {
                config: Some(path.clone()),
                dir: None,
                from: Some(ready()),
            },
            force: false,
        };
        add.add().map_err(|error| format!("{error:#}"))
    };
    write("packs = [\"nonin\"]");
    assert!(add("nonin").unwrap().contains("within two seconds"));
    assert!(
        add("zephyr")
            .unwrap()
            .contains("no source uses it: add \"zephyr\"")
    );
    write("");
    assert!(add("tasmota").unwrap().contains("within two seconds"));
    assert_eq!(
        entries(&dir.path().join("mappings.d")),
        ["nonin", "tasmota", "zephyr"]
    );
    write("nonsense = 1");
    let refused = add("theengs").unwrap_err();
    assert!(refused.contains("bedside-agent check --config"), "{refused}");
}

#[test]
fn the_list_shows_state_types_and_codes() {
    let dir = tempfile::tempdir().unwrap();
    add("pulse-oximeter", dir.path(), false).unwrap();
    std::fs::write(dir.path().join("mine.device.json"), "{").unwrap();
    let (ready, installed) = (locate(&ready()).unwrap(), folder_of_packs(dir.path()).unwrap());
    let listed = list::listed(Some(&ready), Some(&installed));
    let text = list::text(&listed);
    let line = |name: &str| {
        text.lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap()
    };
    assert!(line("pulse-oximeter").contains(" installed "), "{text}");
    assert!(line("pulse-oximeter").contains("2708-6 59408-5"), "{text}");
    assert!(line("blood-pressure").contains("85354-9 8480-6 8462-4"), "{text}");
    assert!(
        line("mine").contains(" own ") && line("mine").contains("does not load: "),
        "{text}"
    );
    let json = serde_json::to_value(&listed).unwrap();
    let packs = json["packs"].as_array().unwrap();
    let heart = packs.iter().find(|pack| pack["name"] == "heart-rate").unwrap();
    assert_eq!(heart["state"], "ready");
    assert_eq!(heart["types"][0]["codes"][0]["code"], "8867-4");
    assert_eq!(heart["types"][0]["codes"][0]["system"], "http://loinc.org");
}
