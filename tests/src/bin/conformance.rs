//! `conformance FOLDER...`: runs every vector file below the folders, prints a table and one JSON line, and fails when a
//! vector fails.

use std::path::PathBuf;
use std::process::ExitCode;

use bedside_tests::conformance::Report;

fn main() -> ExitCode {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        eprintln!("usage: conformance FOLDER...");
        return ExitCode::from(2);
    }
    match Report::of(&folders) {
        Ok(report) => {
            print!("{}", report.table());
            println!("{}", report.json());
            if report.failed().is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::from(2)
        }
    }
}
