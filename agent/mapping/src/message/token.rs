//! A place in a message: a value with all that it holds.

use std::fmt;

use crate::message::tree::{Name, Node, Tree, TreeBuilder, Value, named};
use std::borrow::Cow;

/// The name of the member that a match adds to the envelope.
pub(crate) const MATCHED_TOKEN: &str = "matchedToken";

/// The envelope with a member `matchedToken`: what the expressions of a CalculatedContent template see.
#[derive(Clone, Copy, Debug)]
pub struct Enriched<'t> {
    root: Token<'t>,
    matched: Token<'t>,
}

impl<'t> Enriched<'t> {
    /// `root`, an object of a tree, with `matched` as its member `matchedToken` (in place of one that it has).
    pub fn new(root: Token<'t>, matched: Token<'t>) -> Enriched<'t> {
        Enriched { root, matched }
    }
}

/// A value in a message.
#[derive(Clone, Copy, Debug)]
pub enum Token<'t> {
    /// A node of a tree.
    Node {
        /// The document.
        tree: &'t Tree<'t>,
        /// Index of the node.
        at: u32,
    },
    /// The root of the message with the match added.
    Enriched(&'t Enriched<'t>),
}

/// What a value is, in the words of the reference's token types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Boolean,
    /// A number without fraction and exponent.
    Integer,
    /// Any other number.
    Float,
    /// A text.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

impl<'t> Token<'t> {
    fn node(self) -> Option<&'t Node<'t>> {
        match self {
            Token::Node { tree, at } => tree.nodes.get(at as usize),
            Token::Enriched(_) => None,
        }
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        match self.node().map(|node| &node.value) {
            None | Some(Value::Object) => Kind::Object,
            Some(Value::Null) => Kind::Null,
            Some(Value::Bool(_)) => Kind::Boolean,
            Some(Value::Number(spelling)) if is_integer(spelling) => Kind::Integer,
            Some(Value::Number(_)) => Kind::Float,
            Some(Value::Text(_)) => Kind::String,
            Some(Value::Array) => Kind::Array,
        }
    }

    /// Whether it is an object.
    pub fn is_object(self) -> bool {
        self.node().is_none_or(|node| matches!(node.value, Value::Object))
    }

    /// Whether it is an array.
    pub fn is_array(self) -> bool {
        self.node().is_some_and(|node| matches!(node.value, Value::Array))
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.node().is_some_and(|node| matches!(node.value, Value::Null))
    }

    /// The boolean.
    pub fn bool(self) -> Option<bool> {
        match self.node()?.value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// The number as it is spelled.
    pub fn number(self) -> Option<&'t str> {
        match &self.node()?.value {
            Value::Number(spelling) => Some(spelling),
            _ => None,
        }
    }

    /// The text.
    pub fn text(self) -> Option<&'t str> {
        match &self.node()?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The member of that name, in this letter case.
    #[inline]
    pub fn member(self, name: &str) -> Option<Token<'t>> {
        match self {
            Token::Enriched(enriched) if name == MATCHED_TOKEN => Some(enriched.matched),
            Token::Enriched(enriched) => enriched.root.member(name),
            Token::Node { tree, at } => {
                let node = tree.nodes.get(at as usize)?;
                if !matches!(node.value, Value::Object) {
                    return None;
                }
                let mut child = at + 1;
                while child < node.end {
                    let member = tree.nodes.get(child as usize)?;
                    if member.name.as_deref() == Some(name) {
                        return Some(Token::Node { tree, at: child });
                    }
                    child = member.end;
                }
                None
            }
        }
    }

    /// The members of an object in document order; nothing for anything else.
    pub fn members(self) -> Members<'t> {
        let (children, matched) = match self {
            Token::Enriched(enriched) => (enriched.root.children(), Some(enriched.matched)),
            Token::Node { .. } if self.is_object() => (self.children(), None),
            Token::Node { .. } => (Children::default(), None),
        };
        Members { children, matched }
    }

    /// The elements of an array; nothing for anything else.
    pub fn elements(self) -> Children<'t> {
        if self.is_array() {
            self.children()
        } else {
            Children::default()
        }
    }

    /// The element at that index.
    pub fn element(self, index: usize) -> Option<Token<'t>> {
        self.elements().nth(index).map(|(_, element)| element)
    }

    /// The member or element that is `inner` or holds it; `None` when this value does not, or is it.
    pub(crate) fn child_that_holds(self, inner: Token<'_>) -> Option<Token<'t>> {
        let (
            Token::Node { tree, .. },
            Token::Node {
                tree: inner_tree,
                at: inner,
            },
        ) = (self, inner)
        else {
            return None;
        };
        let holds = |child: &Token<'_>| match *child {
            Token::Node { tree, at } => {
                at <= inner && tree.nodes.get(at as usize).is_some_and(|node| inner < node.end)
            }
            Token::Enriched(_) => false,
        };
        let same_tree = std::ptr::eq(
            tree.nodes.as_ptr().cast::<u8>(),
            inner_tree.nodes.as_ptr().cast::<u8>(),
        );
        self.children()
            .map(|(_, child)| child)
            .find(holds)
            .filter(|_| same_tree)
    }

    fn children(self) -> Children<'t> {
        match self {
            Token::Node { tree, at } => {
                let end = tree.nodes.get(at as usize).map_or(at, |node| node.end);
                Children {
                    tree: Some(tree),
                    at: at + 1,
                    end,
                }
            }
            Token::Enriched(enriched) => enriched.root.children(),
        }
    }

    /// This value and all that it holds, in document order, each with its name as a member (none for elements and for this one).
    #[inline]
    pub fn with_descendants(self) -> Descendants<'t> {
        let Token::Enriched(enriched) = self else {
            let Token::Node { tree, at } = self else {
                return Descendants::default();
            };
            let end = tree.nodes.get(at as usize).map_or(at, |node| node.end);
            return Descendants {
                head: None,
                run: Run {
                    tree: Some(tree),
                    at,
                    end,
                    first: true,
                },
                rest: Vec::new(),
            };
        };
        // The enriched root, then each member's subtree; the match under its own name.
        let mut rest = Vec::new();
        for (name, member) in self.members() {
            let mut subtree = member.with_descendants();
            subtree.run.first = false;
            rest.push(((name == MATCHED_TOKEN).then_some(name), subtree.run));
        }
        rest.reverse();
        Descendants {
            head: Some(Token::Enriched(enriched)),
            run: Run::default(),
            rest,
        }
    }

    /// The value as serde_json has it, numbers with their spelling (but `e` for `E`).
    pub fn to_value(self) -> serde_json::Value {
        match self.node().map(|node| &node.value) {
            Some(Value::Null) => serde_json::Value::Null,
            Some(Value::Bool(flag)) => serde_json::Value::Bool(*flag),
            Some(Value::Number(spelling)) => serde_json::from_str(spelling).unwrap_or_default(),
            Some(Value::Text(text)) => serde_json::Value::String(text.to_string()),
            Some(Value::Array) => self.elements().map(|(_, element)| element.to_value()).collect(),
            None | Some(Value::Object) => self
                .members()
                .map(|(name, member)| (name.to_owned(), member.to_value()))
                .collect(),
        }
    }

    /// Writes a copy into another tree.
    pub(crate) fn copy_to<'a>(self, name: Name<'a>, builder: &mut TreeBuilder<'a>)
    where
        't: 'a,
    {
        match self.node().map(|node| &node.value) {
            Some(Value::Null) => builder.null(name),
            Some(Value::Bool(flag)) => builder.bool(name, *flag),
            Some(Value::Number(spelling)) => builder.number(name, Cow::Borrowed(spelling)),
            Some(Value::Text(text)) => builder.text(name, Cow::Borrowed(text)),
            Some(Value::Array) => {
                let mark = builder.begin_array(name);
                self.elements()
                    .for_each(|(_, element)| element.copy_to(None, builder));
                builder.end(mark);
            }
            None | Some(Value::Object) => {
                let mark = builder.begin_object(name);
                self.members()
                    .for_each(|(name, member)| member.copy_to(named(name), builder));
                builder.end(mark);
            }
        }
    }
}

/// Compact JSON, numbers with their spelling.
impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node().map(|node| &node.value) {
            Some(Value::Null) => f.write_str("null"),
            Some(Value::Bool(flag)) => write!(f, "{flag}"),
            Some(Value::Number(spelling)) => f.write_str(spelling),
            Some(Value::Text(text)) => write_text(f, text),
            Some(Value::Array) => {
                f.write_str("[")?;
                for (n, (_, element)) in self.elements().enumerate() {
                    let comma = if n == 0 { "" } else { "," };
                    write!(f, "{comma}{element}")?;
                }
                f.write_str("]")
            }
            None | Some(Value::Object) => {
                f.write_str("{")?;
                for (n, (name, member)) in self.members().enumerate() {
                    f.write_str(if n == 0 { "" } else { "," })?;
                    write_text(f, name)?;
                    write!(f, ":{member}")?;
                }
                f.write_str("}")
            }
        }
    }
}

/// A text as JSON, in quotes.
pub(crate) fn write_text(f: &mut impl fmt::Write, text: &str) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).unwrap_or_default())
}

/// Whether a JSON number has neither fraction nor exponent.
pub(crate) fn is_integer(spelling: &str) -> bool {
    !spelling.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
}

/// Iterator over what a container holds, with the names of members.
#[derive(Clone, Debug, Default)]
pub struct Children<'t> {
    tree: Option<&'t Tree<'t>>,
    at: u32,
    end: u32,
}

impl<'t> Iterator for Children<'t> {
    type Item = (&'t str, Token<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        let tree = self.tree?;
        if self.at >= self.end {
            return None;
        }
        let node = tree.nodes.get(self.at as usize)?;
        let token = Token::Node { tree, at: self.at };
        self.at = node.end;
        Some((node.name.as_deref().unwrap_or_default(), token))
    }
}

/// Iterator over the members of an object.
#[derive(Clone, Debug)]
pub struct Members<'t> {
    children: Children<'t>,
    matched: Option<Token<'t>>,
}

impl<'t> Iterator for Members<'t> {
    type Item = (&'t str, Token<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        match self.children.next() {
            Some((MATCHED_TOKEN, own)) => Some((MATCHED_TOKEN, self.matched.take().unwrap_or(own))),
            Some(member) => Some(member),
            None => self.matched.take().map(|matched| (MATCHED_TOKEN, matched)),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Run<'t> {
    tree: Option<&'t Tree<'t>>,
    at: u32,
    end: u32,
    /// The node at `at` is where the walk began: its name does not count.
    first: bool,
}

/// Iterator over a value and all that it holds.
#[derive(Clone, Debug, Default)]
pub struct Descendants<'t> {
    head: Option<Token<'t>>,
    run: Run<'t>,
    rest: Vec<(Option<&'t str>, Run<'t>)>,
}

impl<'t> Iterator for Descendants<'t> {
    type Item = (Option<&'t str>, Token<'t>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(head) = self.head.take() {
            return Some((None, head));
        }
        loop {
            let run = &mut self.run;
            if let Some(tree) = run.tree
                && run.at < run.end
            {
                let node = tree.nodes.get(run.at as usize)?;
                let token = Token::Node { tree, at: run.at };
                let name = if run.first { None } else { node.name.as_deref() };
                run.first = false;
                run.at += 1;
                return Some((name, token));
            }
            let (name, next) = self.rest.pop()?;
            self.run = next;
            if let Some(name) = name {
                // The match goes by the name that it has in the enriched envelope.
                let tree = self.run.tree?;
                let token = Token::Node {
                    tree,
                    at: self.run.at,
                };
                self.run.at += 1;
                return Some((Some(name), token));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::parse;

    fn names(token: Token<'_>) -> Vec<String> {
        token
            .with_descendants()
            .map(|(name, token)| format!("{}={token}", name.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn descendants_come_in_document_order() {
        let tree = parse(br#"{"a":{"b":1},"c":[2]}"#).unwrap();
        assert_eq!(
            names(tree.root()),
            [r#"={"a":{"b":1},"c":[2]}"#, r#"a={"b":1}"#, "b=1", "c=[2]", "=2"]
        );
        assert_eq!(names(tree.root().member("a").unwrap()), [r#"={"b":1}"#, "b=1"]);
    }

    #[test]
    fn enriched_root_has_the_match_as_its_last_member_or_in_place_of_its_own() {
        let tree = parse(br#"{"a":{"b":1}}"#).unwrap();
        let enriched = Enriched::new(tree.root(), tree.root().member("a").unwrap());
        let token = Token::Enriched(&enriched);
        assert_eq!(token.to_string(), r#"{"a":{"b":1},"matchedToken":{"b":1}}"#);
        assert_eq!(
            names(token)[1..],
            [r#"a={"b":1}"#, "b=1", r#"matchedToken={"b":1}"#, "b=1"]
        );

        let tree = parse(br#"{"matchedToken":0,"a":1}"#).unwrap();
        let enriched = Enriched::new(tree.root(), tree.root().member("a").unwrap());
        let token = Token::Enriched(&enriched);
        assert_eq!(token.to_string(), r#"{"matchedToken":1,"a":1}"#);
        assert_eq!(names(token)[1..], ["matchedToken=1", "a=1"]);
        assert_eq!(token.member("matchedToken").unwrap().number(), Some("1"));
    }

    #[test]
    fn a_match_of_the_whole_envelope_does_not_hold_itself() {
        let tree = parse(br#"{"a":1}"#).unwrap();
        let enriched = Enriched::new(tree.root(), tree.root());
        assert_eq!(
            Token::Enriched(&enriched).to_string(),
            r#"{"a":1,"matchedToken":{"a":1}}"#
        );
    }

    #[test]
    fn values_keep_the_spelling_of_numbers_both_ways() {
        let text = r#"{"a":[36.50,1e+2],"b":null,"c":"x\ny","d":true}"#;
        let tree = parse(text.as_bytes()).unwrap();
        let value = tree.root().to_value();
        assert_eq!(serde_json::to_string(&value).unwrap(), tree.root().to_string());
        assert_eq!(Tree::from(&value).root().to_string(), text);
    }
}
