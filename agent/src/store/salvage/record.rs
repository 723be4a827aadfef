//! Rows as SQLite writes them: numbers, kinds of columns, values (SQLite's file format, sections 1.6 and 2.1).

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Real,
    Text(String),
    Blob(Vec<u8>),
}

impl Value {
    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn blob(&self) -> Option<&[u8]> {
        match self {
            Value::Blob(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// A row: its number (0 for tables without one) and its columns.
pub(super) type Row = (i64, Vec<Value>);

/// SQLite's number of one to nine bytes.
pub(super) fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..9 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        if place == 8 {
            return Some((value << 8) | u64::from(*byte));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Kinds of the columns of a record, and what follows them.
pub(super) fn kinds(payload: &[u8]) -> Option<(Vec<u64>, &[u8])> {
    let mut rest = payload;
    let length = usize::try_from(number(&mut rest)?).ok()?;
    let mut head = payload.get(payload.len() - rest.len()..length)?;
    let mut kinds = Vec::new();
    while !head.is_empty() {
        kinds.push(number(&mut head)?);
    }
    Some((kinds, payload.get(length..)?))
}

/// The columns of a record.
pub(super) fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let (kinds, mut body) = kinds(payload)?;
    let mut take = |length: u64| {
        let (taken, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
        body = rest;
        Some(taken)
    };
    let mut values = Vec::with_capacity(kinds.len());
    for kind in kinds {
        values.push(match kind {
            0 => Value::Null,
            1..=6 => Value::Integer(integer(take(match kind {
                5 => 6,
                6 => 8,
                short => short,
            })?)),
            7 => {
                take(8)?;
                Value::Real
            }
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            10 | 11 => return None,
            kind if kind % 2 == 0 => Value::Blob(take((kind - 12) / 2)?.to_vec()),
            kind => Value::Text(String::from_utf8(take((kind - 13) / 2)?.to_vec()).ok()?),
        });
    }
    Some(values)
}

/// A big-endian number with its sign.
pub(super) fn integer(bytes: &[u8]) -> i64 {
    let begin = bytes.first().map_or(0, |first| i64::from(*first as i8) >> 7);
    bytes
        .iter()
        .fold(begin, |value, byte| (value << 8) | i64::from(*byte))
}
