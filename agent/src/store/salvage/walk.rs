//! A walk from the root of a tree to its rows, around pages that cannot be read.
//!
//! A page counts as part of a tree when a page of the tree leads to it and the pointer maps do not say otherwise, or when they
//! say so where the page above is gone. So no row of another tree, or of another time, gets in.

use super::pages::{Node, Pages, Place, TABLE_INNER};
use super::pointers::Owner;
use super::record::Row;

/// No tree is deeper.
const DEEPEST: u32 = 24;

/// First and last number that a row may have.
pub(super) type Numbers = (i64, i64);

/// Of rows without a number, or of all.
const ANY: Numbers = (i64::MIN, i64::MAX);

struct Walk<'a> {
    pages: &'a Pages,
    /// Pages that are looked at yet: one that leads back to a page above it would never end.
    left: u32,
    lost: Vec<Numbers>,
    visit: &'a mut dyn FnMut(Row, Place),
}

impl Pages {
    /// Gives each row of a tree to `visit`, in order where nothing is damaged. Returns which numbers rows may have had that
    /// could not be read: nothing when all were.
    pub(super) fn walk(&self, root: u32, visit: &mut dyn FnMut(Row, Place)) -> Vec<Numbers> {
        self.walk_some(root, self.count(), visit)
    }

    /// As [`Pages::walk`], of so many pages at most.
    pub(super) fn walk_some(&self, root: u32, pages: u32, visit: &mut dyn FnMut(Row, Place)) -> Vec<Numbers> {
        let mut walk = Walk {
            pages: self,
            left: pages,
            lost: Vec::new(),
            visit,
        };
        walk.page(root, ANY, 0);
        walk.lost
    }
}

impl Walk<'_> {
    fn page(&mut self, page: u32, numbers: Numbers, depth: u32) {
        if page == 0 || page > self.pages.count() || depth > DEEPEST || self.left == 0 {
            self.lost.push(numbers);
            return;
        }
        self.left -= 1;
        let bytes = self.pages.read(page);
        match bytes.as_ref().and_then(|bytes| Node::of(bytes, page)) {
            Some(node) if node.right.is_some() => self.inner(&node, page, numbers, depth),
            Some(node) => self.leaf(&node, page, numbers),
            None => self.without(page, numbers, depth),
        }
    }

    fn leaf(&mut self, node: &Node<'_>, page: u32, numbers: Numbers) {
        let mut next = numbers.0;
        let mut whole = true;
        for cell in 0..node.cells {
            let row = node.cell(cell).and_then(|at| self.pages.row(node, at));
            match row {
                Some((number, columns)) if !node.is_of_table() || (next..=numbers.1).contains(&number) => {
                    next = number.saturating_add(1);
                    (self.visit)((number, columns), Place { page, cell });
                }
                _ => whole = false,
            }
        }
        if !whole {
            self.lost.push(numbers);
        }
    }

    fn inner(&mut self, node: &Node<'_>, page: u32, numbers: Numbers, depth: u32) {
        let mut next = numbers.0;
        let mut children = Vec::new();
        let mut whole = true;
        let cells = (0..node.cells).map(|cell| (Some(cell), node.cell(cell)));
        for (cell, at) in cells.chain([(None, None)]) {
            let last = match (cell, node.kind) {
                (Some(_), TABLE_INNER) => at.and_then(|at| node.largest(at)),
                _ => Some(numbers.1),
            };
            let child = match cell {
                Some(_) => at.and_then(|at| node.child(at)),
                None => node.right,
            };
            let of_page = |child: &u32| {
                let owner = self.pages.owner(*child);
                owner.is_none_or(|owner| owner == Owner::Below(page))
            };
            match (
                child.filter(of_page),
                last.filter(|last| (next..=numbers.1).contains(last)),
            ) {
                (Some(child), Some(last)) => {
                    let below = if node.is_of_table() { (next, last) } else { ANY };
                    children.push((child, below, cell.zip(at)));
                    if node.is_of_table() {
                        next = last.saturating_add(1);
                    }
                }
                _ => whole = false,
            }
        }
        if !whole && self.pages.children(page).doubtful.is_empty() {
            return self.without(page, numbers, depth);
        }
        for (child, below, row) in children {
            self.page(child, below, depth + 1);
            if let Some((cell, at)) = row.filter(|_| !node.is_of_table()) {
                match self.pages.row(node, at) {
                    Some(row) => (self.visit)(row, Place { page, cell }),
                    None => whole = false,
                }
            }
        }
        if !whole {
            self.lost.push(numbers);
        }
    }

    /// What is below a page that cannot be read, as the pointer maps tell.
    fn without(&mut self, page: u32, numbers: Numbers, depth: u32) {
        let below = self.pages.children(page);
        // An inner page of a tree whose rows have numbers has no rows itself.
        let mut has_no_rows = !below.certain.is_empty();
        for child in &below.certain {
            let bytes = self.pages.read(*child);
            let node = bytes.as_ref().and_then(|bytes| Node::of(bytes, *child));
            has_no_rows &= node.is_some_and(|node| node.is_of_table());
            self.page(*child, numbers, depth + 1);
        }
        if !has_no_rows || !below.doubtful.is_empty() {
            self.lost.push(numbers);
        }
    }
}
