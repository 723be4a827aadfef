//! The file as a tree of values with places: finds the place of a value, and takes members out of tables.

use iomt_mapping::Place;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One step towards a value of the file.
#[derive(Clone, Copy)]
pub(super) enum Step<'s> {
    /// The member of a table.
    Member(&'s str),
    /// The item of an array, from 0.
    Item(usize),
}

/// The whole file, to find the place of a value.
pub(super) struct Tree<'t> {
    pub(super) text: &'t str,
    pub(super) root: &'t Spanned<DeTable<'t>>,
}

impl Tree<'_> {
    /// Place of the value that these steps lead to, or of the nearest table on the way that exists.
    pub(super) fn place(&self, steps: &[Step<'_>]) -> Place {
        let mut span = 0..0;
        let mut table = Some(self.root.get_ref());
        let mut value: Option<&Spanned<DeValue<'_>>> = None;
        for step in steps {
            let next = match (step, table, value.map(Spanned::get_ref)) {
                (Step::Member(name), Some(table), _) => table.get(*name),
                (Step::Item(number), _, Some(DeValue::Array(items))) => items.get(*number),
                _ => None,
            };
            let Some(next) = next else { break };
            span = next.span();
            table = next.get_ref().as_table();
            value = Some(next);
        }
        place(self.text, span)
    }
}

/// Line, column and bytes of a range of the text.
pub(super) fn place(text: &str, span: Range<usize>) -> Place {
    let start = span.start.min(text.len());
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Place {
        line: before.matches('\n').count() + 1,
        column: before
            .get(line_start..)
            .unwrap_or_default()
            .chars()
            .filter(|c| *c != '\u{feff}')
            .count()
            + 1,
        start,
        length: span.end.min(text.len()).saturating_sub(start),
    }
}

/// Takes these members out of a table, as a table of their own.
pub(super) fn part<'t>(table: &mut DeTable<'t>, names: &[&str]) -> DeValue<'t> {
    let mut taken = DeTable::new();
    for name in names {
        if let Some((name, value)) = table.remove_entry(*name) {
            taken.insert(name, value);
        }
    }
    DeValue::Table(taken)
}

/// Removes the member whose name or value has this place; returns the name.
pub(super) fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let found = table
        .iter()
        .find(|(name, value)| name.span() == *span || value.span() == *span || holds(value, span))
        .map(|(name, _)| name.get_ref().to_string())?;
    if let Some(DeValue::Table(inner)) = table.get_mut(found.as_str()).map(Spanned::get_mut)
        && let Some(taken) = take_out(inner, span)
    {
        return Some(taken);
    }
    table.remove(found.as_str());
    Some(found)
}

/// Whether something within the value has this place.
pub(super) fn holds(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    match value.get_ref() {
        DeValue::Table(table) => table
            .iter()
            .any(|(name, value)| name.span() == *span || value.span() == *span || holds(value, span)),
        DeValue::Array(items) => items.iter().any(|item| item.span() == *span || holds(item, span)),
        _ => false,
    }
}

/// Place of the name `name` in the table that has the place `span`.
pub(super) fn span_of_name(table: &DeTable<'_>, span: &Range<usize>, name: &str) -> Option<Range<usize>> {
    table.iter().find_map(|(_, value)| match value.get_ref() {
        DeValue::Table(inner) if value.span() == *span => {
            inner.get_key_value(name).map(|(name, _)| name.span())
        }
        DeValue::Table(inner) => span_of_name(inner, span, name),
        _ => None,
    })
}
