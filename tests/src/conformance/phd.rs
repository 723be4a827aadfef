//! `phd/float-vectors.json`: bytes of IEEE 11073 numbers -> decimal text, digits after the point count; and codes that
//! are no number.

use iomt_mapping::phd::{NotANumber, float32, sfloat16};
use serde_json::Value;

/// Whether a vector is one of numbers.
pub fn is_float_vector(vector: &Value) -> bool {
    vector.get("float32").is_some() && vector.get("sfloat16").is_some()
}

/// All numbers of the vector; the first difference.
pub fn run(vector: &Value) -> Result<(), String> {
    for (name, decode) in [
        ("float32", float as fn(&str) -> Result<String, String>),
        ("sfloat16", short_float),
    ] {
        for row in rows(vector, name) {
            let hex = text(row, "hex");
            let made = decode(hex)?;
            if made != text(row, "fhir") {
                return Err(format!("{name} {hex} is {made}, not {}", text(row, "fhir")));
            }
        }
    }
    for row in rows(vector, "special") {
        let reason = text(row, "dataAbsentReason");
        // The short form has exponent 0 before its 12 bits.
        for (hex, made) in [
            (text(row, "float32"), float(text(row, "float32"))),
            (text(row, "sfloat12"), short_float(text(row, "sfloat12"))),
        ] {
            if made.as_ref().err().map(String::as_str) != Some(reason) {
                return Err(format!("{hex} is {made:?}, not {reason}"));
            }
        }
    }
    Ok(())
}

fn rows<'v>(vector: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    vector.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'v>(row: &'v Value, name: &str) -> &'v str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn reason(special: NotANumber) -> String {
    special.data_absent_reason().to_owned()
}

fn float(hex: &str) -> Result<String, String> {
    let bits = u32::from_str_radix(hex, 16).map_err(|error| format!("{hex}: {error}"))?;
    float32(bits).map_err(reason)
}

fn short_float(hex: &str) -> Result<String, String> {
    let bits = u16::from_str_radix(hex, 16).map_err(|error| format!("{hex}: {error}"))?;
    sfloat16(bits).map_err(reason)
}
