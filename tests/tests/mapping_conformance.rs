//! The acceptance vectors, as far as this room runs them.

use std::path::{Path, PathBuf};

use bedside_tests::conformance::Report;

#[test]
fn every_vector_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let published = root.join("../../shared/vectors/medtech-samples");
    let folders: Vec<PathBuf> = [root.join("vectors"), published]
        .into_iter()
        .filter(|folder| folder.is_dir())
        .collect();
    let report = Report::of(&folders).expect("the folders can be read");
    assert!(
        report.vectors() > 500,
        "only {} vectors were found",
        report.vectors()
    );
    assert!(report.failed().is_empty(), "{}", report.table());
    assert_eq!(report.not_yet(), [""; 0], "vectors that nobody runs");
}
