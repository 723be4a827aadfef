//! What the rows of a table look like: a row that looks otherwise is damaged, and a table whose entry in the schema is gone is
//! known by its rows.

use super::record::Value;

/// What a column holds.
#[derive(Clone, Copy, Debug)]
enum Is {
    /// The number of the row stands for it.
    Null,
    Number,
    Text,
    Bytes,
    /// Also nothing, or no column: one that later versions added is missing in older rows.
    NumberOrNone,
    TextOrNone,
}

use Is::{Bytes, Null, Number, NumberOrNone, Text, TextOrNone};

/// Tables that are copied, and those that are needed for it.
const SHAPES: &[(&str, &[Is])] = &[
    (
        "association",
        &[
            Null,
            Text,
            TextOrNone,
            TextOrNone,
            NumberOrNone,
            NumberOrNone,
            Text,
            Number,
            NumberOrNone,
        ],
    ),
    (
        "correction",
        &[
            Null,
            Number,
            Text,
            NumberOrNone,
            NumberOrNone,
            TextOrNone,
            TextOrNone,
            Text,
            NumberOrNone,
        ],
    ),
    ("sighting", &[Number, Text, Text, NumberOrNone]),
    (
        "ledger",
        &[
            Null,
            NumberOrNone,
            NumberOrNone,
            TextOrNone,
            TextOrNone,
            NumberOrNone,
            NumberOrNone,
            Number,
            Text,
            Number,
        ],
    ),
    ("sent_record", &[Number, Number, Number, NumberOrNone]),
    ("sent_period", &[Number, Text, Bytes, Number]),
    ("device_clock", &[Text, Text, NumberOrNone]),
    (
        "dead_letter",
        &[
            Null,
            NumberOrNone,
            Number,
            NumberOrNone,
            Number,
            Text,
            Text,
            Text,
            Number,
            Number,
            Bytes,
            TextOrNone,
        ],
    ),
];

impl Is {
    fn fits(self, value: Option<&Value>) -> bool {
        matches!(
            (self, value),
            (Is::Null, Some(Value::Null))
                | (Is::Number | Is::NumberOrNone, Some(Value::Integer(_)))
                | (Is::Text | Is::TextOrNone, Some(Value::Text(_)))
                | (Is::Bytes, Some(Value::Blob(_)))
                | (Is::NumberOrNone | Is::TextOrNone, Some(Value::Null) | None)
        )
    }
}

/// Whether a row looks like one of this table.
pub(super) fn fits(table: &str, row: &[Value]) -> bool {
    let shape = SHAPES.iter().find(|(name, _)| *name == table);
    shape.is_some_and(|(_, shape)| is_like(shape, row))
}

fn is_like(shape: &[Is], row: &[Value]) -> bool {
    let mut columns = shape.iter().enumerate();
    row.len() <= shape.len() && columns.all(|(at, is)| is.fits(row.get(at)))
}

/// The tables that rows look like.
pub(super) fn tables_like<'a>(rows: &'a [Vec<Value>]) -> impl Iterator<Item = &'static str> + 'a {
    let like = |shape: &[Is]| !rows.is_empty() && rows.iter().all(|row| is_like(shape, row));
    SHAPES
        .iter()
        .filter(move |(_, shape)| like(shape))
        .map(|(name, _)| *name)
}
