//! Values of Sparkplug B as JSON: what the declared type makes of the field in which the value came.
//!
//! A type and a field that do not fit are an error, never a number: the value may be of another metric. Integers are two's
//! complement in unsigned fields, sign-extended or not, and come in the short or the long field, as encoders differ there.

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use iomt_mapping::Timestamp;
use serde_json::Value;

/// The fields of which one holds the value.
#[derive(Default)]
pub(super) struct Fields {
    pub(super) int: Option<u32>,
    pub(super) long: Option<u64>,
    pub(super) float: Option<f32>,
    pub(super) double: Option<f64>,
    pub(super) boolean: Option<bool>,
    pub(super) string: Option<String>,
    pub(super) bytes: Option<Bytes>,
}

impl Fields {
    fn integer(&self) -> Option<u64> {
        self.long.or(self.int.map(u64::from))
    }

    fn is_empty(&self) -> bool {
        self.integer().is_none()
            && self.float.is_none()
            && self.double.is_none()
            && self.boolean.is_none()
            && self.string.is_none()
            && self.bytes.is_none()
    }
}

/// Name of a type; none for a number that is no type.
pub(super) fn type_name(datatype: u32) -> Option<&'static str> {
    const NAMES: [&str; 34] = [
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "UInt8",
        "UInt16",
        "UInt32",
        "UInt64",
        "Float",
        "Double",
        "Boolean",
        "String",
        "DateTime",
        "Text",
        "UUID",
        "DataSet",
        "Bytes",
        "File",
        "Template",
        "PropertySet",
        "PropertySetList",
        "Int8Array",
        "Int16Array",
        "Int32Array",
        "Int64Array",
        "UInt8Array",
        "UInt16Array",
        "UInt32Array",
        "UInt64Array",
        "FloatArray",
        "DoubleArray",
        "BooleanArray",
        "StringArray",
        "DateTimeArray",
    ];
    let index = usize::try_from(datatype).ok()?.checked_sub(1)?;
    NAMES.get(index).copied()
}

/// The value as JSON; null when there is none.
///
/// # Errors
/// What is wrong with it; no value is in the text.
pub(super) fn json(datatype: u32, fields: &Fields) -> Result<Value, &'static str> {
    if fields.is_empty() {
        return Ok(Value::Null);
    }
    let no_field = "the value is not in the field that its type has";
    match datatype {
        1 => signed(fields.integer().ok_or(no_field)?, 8),
        2 => signed(fields.integer().ok_or(no_field)?, 16),
        3 => signed(fields.integer().ok_or(no_field)?, 32),
        4 => signed(fields.integer().ok_or(no_field)?, 64),
        5 => unsigned(fields.integer().ok_or(no_field)?, 8),
        6 => unsigned(fields.integer().ok_or(no_field)?, 16),
        7 => unsigned(fields.integer().ok_or(no_field)?, 32),
        8 => unsigned(fields.integer().ok_or(no_field)?, 64),
        9 | 10 => match (fields.float, fields.double) {
            (Some(float), _) => Ok(float_json(float)),
            (None, Some(double)) => Ok(double_json(double)),
            (None, None) => Err(no_field),
        },
        11 => fields.boolean.map(Value::Bool).ok_or(no_field),
        12 | 14 | 15 => text(fields).ok_or(no_field),
        13 => date_time(fields.integer().ok_or(no_field)?),
        17 | 18 => match &fields.bytes {
            Some(bytes) => Ok(BASE64_STANDARD.encode(bytes).into()),
            None => Err(no_field),
        },
        22..=34 => array(datatype, fields.bytes.as_ref().ok_or(no_field)?),
        _ => Err("its type is none of Sparkplug B"),
    }
}

/// The value of a metric that nobody declared: an integer is signed, so that -1 does not become four thousand million.
pub(super) fn undeclared(fields: &Fields) -> Result<Value, &'static str> {
    let datatype = if fields.long.is_some() {
        4
    } else if fields.int.is_some() {
        3
    } else if fields.float.is_some() || fields.double.is_some() {
        10
    } else if fields.boolean.is_some() {
        11
    } else if fields.string.is_some() {
        12
    } else {
        17
    };
    json(datatype, fields)
}

fn text(fields: &Fields) -> Option<Value> {
    fields.string.clone().map(Value::String)
}

/// Two's complement of `bits` in a longer field.
fn signed(value: u64, bits: u32) -> Result<Value, &'static str> {
    let out = "the value is out of the range of its type";
    let shift = 64 - bits;
    let extended = ((value << shift) as i64) >> shift;
    // Above the bits of the type: nothing, or the sign once more (up to 32 or up to 64 bits).
    let above = if bits == 64 { 0 } else { value >> bits };
    let sign_32 = if bits < 32 { (1_u64 << (32 - bits)) - 1 } else { 0 };
    let sign_64 = if bits < 64 { u64::MAX >> bits } else { 0 };
    let extends = above == 0 || extended < 0 && (above == sign_32 || above == sign_64);
    if extends { Ok(extended.into()) } else { Err(out) }
}

fn unsigned(value: u64, bits: u32) -> Result<Value, &'static str> {
    if bits < 64 && value >> bits != 0 {
        return Err("the value is out of the range of its type");
    }
    Ok(value.into())
}

/// The shortest decimal that is this number: 36.8 as a float is 36.8, not 36.79999923706055. Not-a-number and infinity are no
/// values.
pub(in crate::ingest::payload) fn float_json(value: f32) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    serde_json::from_str(&format!("{value:?}")).unwrap_or(Value::Null)
}

/// As [`float_json`].
pub(in crate::ingest::payload) fn double_json(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// A time in milliseconds since 1970 as ISO 8601 in UTC.
pub(in crate::ingest::payload) fn time(milliseconds: u64) -> Option<String> {
    let ticks = i64::try_from(milliseconds).ok()?.checked_mul(10_000)?;
    Some(Timestamp::from_ticks(ticks)?.to_string())
}

fn date_time(milliseconds: u64) -> Result<Value, &'static str> {
    time(milliseconds)
        .map(Value::String)
        .ok_or("the time is beyond the year 9999")
}

/// Arrays of numbers are packed, low byte first; booleans follow their number, high bit first; texts end with a zero.
fn array(datatype: u32, bytes: &Bytes) -> Result<Value, &'static str> {
    let cut = "the array does not end with an element";
    match datatype {
        33 => match bytes.strip_suffix(&[0]) {
            Some(texts) => texts
                .split(|byte| *byte == 0)
                .map(|text| std::str::from_utf8(text).map(Value::from))
                .collect::<Result<_, _>>()
                .map_err(|_| "a text of the array is no UTF-8"),
            None if bytes.is_empty() => Ok(Value::Array(Vec::new())),
            None => Err(cut),
        },
        32 => {
            let (count, bits) = bytes.split_first_chunk::<4>().ok_or(cut)?;
            let count = u32::from_le_bytes(*count) as usize;
            if bits.len() != count.div_ceil(8) {
                return Err("the array has not as many bits as it says");
            }
            let bit = |n: usize| bits.get(n / 8).is_some_and(|byte| byte >> (7 - n % 8) & 1 == 1);
            Ok((0..count).map(bit).collect())
        }
        22 | 26 => elements::<1>(datatype, bytes),
        23 | 27 => elements::<2>(datatype, bytes),
        24 | 28 | 30 => elements::<4>(datatype, bytes),
        _ => elements::<8>(datatype, bytes),
    }
}

fn elements<const SIZE: usize>(datatype: u32, bytes: &[u8]) -> Result<Value, &'static str> {
    let (chunks, rest) = bytes.as_chunks::<SIZE>();
    if !rest.is_empty() {
        return Err("the array does not end with an element");
    }
    let element = |chunk: &[u8; SIZE]| {
        let value = (chunk.iter().rev()).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        match datatype {
            22..=25 => signed(value, SIZE as u32 * 8),
            30 => Ok(float_json(f32::from_bits(value as u32))),
            31 => Ok(double_json(f64::from_bits(value))),
            34 => date_time(value),
            _ => Ok(value.into()),
        }
    };
    chunks.iter().map(element).collect()
}
