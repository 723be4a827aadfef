//! The tables of a store that was set aside, found by the schema or without it.
//!
//! The schema is a table itself, whose root is the first page. Where that is gone the pointer maps lead to the pages below it;
//! where they are gone too (they begin with the second page, and a block of flash holds several pages), what looks like a
//! part of the schema is believed when together it names the roots one behind the other, without a gap and none twice. A table whose entry is
//! gone is known by the look of its rows (`shapes.rs`).

use super::pages::Pages;
use super::pointers::Owner;
use super::record::{Row, Value};
use super::shapes;
use super::walk::Numbers;
use std::collections::HashMap;

/// Pages of a table that are looked at to know which one it is.
const LOOK: u32 = 8;

/// The tables with their roots.
pub(super) struct Tables<'a> {
    pub(super) pages: &'a Pages,
    pub(super) roots: HashMap<String, u32>,
    /// No table is missing in `roots`.
    pub(super) whole: bool,
}

/// What was found of a table.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
    /// Numbers that rows may have had that could not be read: nothing when all were.
    pub(super) lost: Vec<Numbers>,
}

/// An entry of the schema: type, name and root.
type Entry = (String, String, u32);

fn entry(row: &[Value]) -> Option<Entry> {
    let [kind, name, table, root, sql] = row else {
        return None;
    };
    let kind = kind
        .text()
        .filter(|kind| ["table", "index", "trigger", "view"].contains(kind))?;
    let sql_fits = match sql {
        Value::Null => kind == "index",
        sql => sql.text()?.starts_with("CREATE "),
    };
    let root = u32::try_from(root.integer()?).ok()?;
    (sql_fits && table.text().is_some())
        .then(|| (kind.to_owned(), name.text().unwrap_or_default().to_owned(), root))
}

impl<'a> Tables<'a> {
    /// The tables of a database.
    pub(super) fn find(pages: &'a Pages) -> Tables<'a> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut fits = true;
        let lost = pages.walk(1, &mut |(_, row), _| match entry(&row) {
            Some(entry) => entries.push(entry),
            None => fits = false,
        });
        let mut whole = lost.is_empty() && fits;
        if !whole {
            let mut all = entries.clone();
            all.extend(doubtful_entries(pages));
            let mut roots: Vec<u32> = all
                .iter()
                .map(|(.., root)| *root)
                .filter(|root| *root > 0)
                .collect();
            if pages.are_first_roots(&mut roots) {
                entries = all;
                // Roots behind the last one would be of tables that no entry names.
                let next = roots.last().and_then(|last| pages.owner(last + 1));
                whole = next.is_some_and(|owner| owner != Owner::Root);
            }
        }
        let mut tables = Tables {
            pages,
            roots: HashMap::new(),
            whole,
        };
        for (_, name, root) in entries.into_iter().filter(|(kind, ..)| kind == "table") {
            match pages.owner(root) {
                None | Some(Owner::Root) => drop(tables.roots.insert(name, root)),
                Some(_) => tables.whole = false,
            }
        }
        if !tables.whole {
            tables.find_by_rows();
        }
        tables
    }

    /// Names the roots that no entry of the schema names, as far as their rows tell which table they are.
    fn find_by_rows(&mut self) {
        for root in self.pages.roots().unwrap_or_default() {
            if self.roots.values().any(|known| *known == root) {
                continue;
            }
            let mut rows = Vec::new();
            self.pages
                .walk_some(root, LOOK, &mut |(_, row), _| rows.push(row));
            let like: Vec<&str> = shapes::tables_like(&rows)
                .filter(|name| !self.roots.contains_key(*name))
                .collect();
            if let [name] = *like.as_slice() {
                self.roots.insert(name.to_owned(), root);
            }
        }
    }

    /// A table as far as it can be read; none when it is not found.
    pub(super) fn table(&self, name: &str) -> Option<Table> {
        let mut table = Table::default();
        let root = *self.roots.get(name)?;
        let rows = &mut table.rows;
        table.lost = self.pages.walk(root, &mut |row, _| rows.push(row));
        // Around a page that is gone rows may come in another order, and one number from two pages: neither is believed.
        if !table.lost.is_empty() {
            let mut times: HashMap<i64, u32> = HashMap::new();
            for (number, _) in &table.rows {
                *times.entry(*number).or_default() += 1;
            }
            let twice = |number: i64| number != 0 && times.get(&number).is_some_and(|times| *times > 1);
            table.lost.extend(
                times
                    .keys()
                    .filter(|number| twice(**number))
                    .map(|number| (*number, *number)),
            );
            table.rows.retain(|(number, _)| !twice(*number));
        }
        Some(table)
    }

    /// All rows of a table; none when not all could be read.
    pub(super) fn rows(&self, name: &str) -> Option<Vec<Row>> {
        let table = self.table(name)?;
        table.lost.is_empty().then_some(table.rows)
    }
}

/// Entries of the schema on pages of which no map says what they are. A page counts when all of it looks so.
fn doubtful_entries(pages: &Pages) -> Vec<Entry> {
    let mut found = Vec::new();
    for page in pages.children(1).doubtful {
        let mut entries = Vec::new();
        let mut is_schema = true;
        let lost = pages.walk_some(page, 1, &mut |(_, row), _| match entry(&row) {
            Some(entry) => entries.push(entry),
            None => is_schema = false,
        });
        if is_schema && lost.is_empty() {
            found.extend(entries);
        }
    }
    found
}
