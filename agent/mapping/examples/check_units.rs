//! Reads units, one a line, and says for each whether it is UCUM: `echo mmHg | cargo run --example check_units`.

use std::io::BufRead as _;

use iomt_mapping::check::{check_ucum, suggest_ucum};

fn main() -> std::io::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let unit = line?;
        match (check_ucum(&unit), suggest_ucum(&unit)) {
            (Ok(()), _) => println!("valid\t{unit}"),
            (Err(error), None) => println!("invalid\t{unit}\t{}", error.message),
            (Err(error), Some(right)) => {
                println!("invalid\t{unit}\t{}; did you mean {right}?", error.message)
            }
        }
    }
    Ok(())
}
