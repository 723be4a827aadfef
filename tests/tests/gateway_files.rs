//! What ships beside the program is right: each board's configuration is accepted as it stands.

use std::path::{Path, PathBuf};

fn board_configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../board-configs")
}

#[test]
fn each_boards_configuration_is_accepted_without_a_remark() {
    let mut seen = 0;
    for board in std::fs::read_dir(board_configs()).unwrap() {
        let file = board.unwrap().path().join("agent.toml");
        if !file.exists() {
            continue;
        }
        let checked = bedside_agent::config::check(&file).unwrap();
        assert_eq!(checked.render(), "", "{}", file.display());
        seen += 1;
    }
    assert!(seen >= 1, "no board has an agent.toml");
}
