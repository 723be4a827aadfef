//! What the members of all three files are made of: texts, numbers, choices.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// Types of which the schema is written out here, and stands where they are used.
macro_rules! leaves {
    ($($(#[$doc:meta])* $name:ident => $schema:expr;)+) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }

            fn inline_schema() -> bool {
                true
            }
        }
    )+};
}

/// Texts that stand for a choice.
macro_rules! choices {
    ($($name:ident = [$($choice:literal),+];)+) => {
        $crate::schema::leaf::leaves! { $($name => $crate::schema::leaf::choice(&[$($choice),+]);)+ }
    };
}

pub(super) use {choices, leaves};

/// A text that is one of `choices` in any letter case; the choices are listed for editors.
pub(super) fn choice(choices: &[&str]) -> Schema {
    let patterns: Vec<String> = choices
        .iter()
        .map(|choice| {
            choice
                .chars()
                .map(|c| {
                    if c.is_ascii_alphabetic() {
                        format!("[{}{}]", c.to_ascii_lowercase(), c.to_ascii_uppercase())
                    } else {
                        c.to_string()
                    }
                })
                .collect()
        })
        .collect();
    json_schema!({
        "type": "string",
        "anyOf": [ { "enum": choices }, { "pattern": format!("^({})$", patterns.join("|")) } ]
    })
}

leaves! {
    /// A text that is not blank.
    NotBlank => json_schema!({ "type": "string", "pattern": "\\S" });
    /// Milliseconds above zero, as number or text.
    Milliseconds => json_schema!({
        "anyOf": [
            { "type": "number", "exclusiveMinimum": 0 },
            { "type": "string", "pattern": "^\\s*[+]?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?\\s*$" }
        ]
    });
}

/// A text; numbers and booleans are taken as text.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the derive only")]
pub(super) enum Text {
    Quoted(String),
    Number(f64),
    Boolean(bool),
}

/// A decimal, as number or text.
pub(super) struct Decimal;

impl JsonSchema for Decimal {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Decimal".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "number" },
                { "type": "string", "pattern": "^\\s*[+-]?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?\\s*$" }
            ]
        })
    }
}
