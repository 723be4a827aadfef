//! A JSON document as one list of nodes in document order.

use std::borrow::Cow;

use crate::message::Token;

/// What a node is; containers own the nodes that follow them, up to their end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    /// As it is spelled.
    Number(Cow<'a, str>),
    /// Escapes decoded.
    Text(Cow<'a, str>),
    Array,
    Object,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node<'a> {
    /// Name within the object that holds this node; none for elements and the root.
    pub(super) name: Option<Cow<'a, str>>,
    pub(super) value: Value<'a>,
    /// Index of the node after this one and all that it holds.
    pub(super) end: u32,
}

/// A JSON document; never empty.
///
/// ```
/// use iomt_mapping::message::parse;
///
/// let tree = parse(br#"{"temperature": 36.50}"#).unwrap();
/// let temperature = tree.root().member("temperature").unwrap();
/// assert_eq!(temperature.number(), Some("36.50"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tree<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

impl<'a> Tree<'a> {
    /// The outermost value.
    pub fn root(&self) -> Token<'_> {
        Token::Node { tree: self, at: 0 }
    }

    /// Number of values in the document.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: a document has a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The name and the text of each node, in document order.
    pub(crate) fn names_and_texts(&self) -> impl Iterator<Item = (Option<&str>, Option<&str>)> {
        self.nodes.iter().map(|node| {
            let text = match &node.value {
                Value::Text(text) => Some(&**text),
                _ => None,
            };
            (node.name.as_deref(), text)
        })
    }

    /// A copy that borrows nothing.
    pub fn into_owned(self) -> Tree<'static> {
        let own = |text: Cow<'a, str>| Cow::Owned(text.into_owned());
        let nodes = self.nodes.into_iter().map(|node| Node {
            name: node.name.map(own),
            value: match node.value {
                Value::Null => Value::Null,
                Value::Bool(flag) => Value::Bool(flag),
                Value::Number(spelling) => Value::Number(own(spelling)),
                Value::Text(text) => Value::Text(own(text)),
                Value::Array => Value::Array,
                Value::Object => Value::Object,
            },
            end: node.end,
        });
        Tree {
            nodes: nodes.collect(),
        }
    }
}

/// The name of a member; none for an element and the root.
pub(crate) type Name<'a> = Option<Cow<'a, str>>;

/// A borrowed name.
pub(crate) fn named(name: &str) -> Name<'_> {
    Some(Cow::Borrowed(name))
}

/// Writes a [`Tree`] node by node: every `begin_*` is closed by an `end` with the mark that it gave.
#[derive(Debug, Default)]
pub(crate) struct TreeBuilder<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

impl<'a> TreeBuilder<'a> {
    /// With room for `nodes` nodes.
    pub(crate) fn with_capacity(nodes: usize) -> TreeBuilder<'a> {
        TreeBuilder {
            nodes: Vec::with_capacity(nodes),
        }
    }

    pub(super) fn push(&mut self, name: Name<'a>, value: Value<'a>) -> u32 {
        let at = index(self.nodes.len());
        self.nodes.push(Node {
            name,
            value,
            end: at.saturating_add(1),
        });
        at
    }

    /// A member or element that is `null`.
    pub(crate) fn null(&mut self, name: Name<'a>) {
        self.push(name, Value::Null);
    }

    /// A member or element that is a boolean.
    pub(crate) fn bool(&mut self, name: Name<'a>, value: bool) {
        self.push(name, Value::Bool(value));
    }

    /// A member or element that is a number, as it is spelled.
    pub(crate) fn number(&mut self, name: Name<'a>, spelling: Cow<'a, str>) {
        self.push(name, Value::Number(spelling));
    }

    /// A member or element that is a text.
    pub(crate) fn text(&mut self, name: Name<'a>, text: Cow<'a, str>) {
        self.push(name, Value::Text(text));
    }

    /// A member or element that is an array; what follows is in it until [`TreeBuilder::end`].
    pub(crate) fn begin_array(&mut self, name: Name<'a>) -> u32 {
        self.push(name, Value::Array)
    }

    /// A member or element that is an object; what follows is in it until [`TreeBuilder::end`].
    pub(crate) fn begin_object(&mut self, name: Name<'a>) -> u32 {
        self.push(name, Value::Object)
    }

    /// Closes the array or object of that mark.
    pub(crate) fn end(&mut self, mark: u32) {
        let end = index(self.nodes.len());
        if let Some(node) = self.nodes.get_mut(mark as usize) {
            node.end = end;
        }
    }

    /// A member or element that is a copy of `value`, its numbers as they are spelled.
    pub(crate) fn value(&mut self, name: Name<'a>, value: &'a serde_json::Value) {
        match value {
            serde_json::Value::Null => self.null(name),
            serde_json::Value::Bool(flag) => self.bool(name, *flag),
            serde_json::Value::Number(number) => self.number(name, number.to_string().into()),
            serde_json::Value::String(text) => self.text(name, text.as_str().into()),
            serde_json::Value::Array(elements) => {
                let mark = self.begin_array(name);
                elements.iter().for_each(|element| self.value(None, element));
                self.end(mark);
            }
            serde_json::Value::Object(members) => {
                let mark = self.begin_object(name);
                members
                    .iter()
                    .for_each(|(name, member)| self.value(named(name), member));
                self.end(mark);
            }
        }
    }

    /// The document; `null` when nothing was written.
    pub(crate) fn build(mut self) -> Tree<'a> {
        if self.nodes.is_empty() {
            self.null(None);
        }
        Tree { nodes: self.nodes }
    }
}

impl<'a> From<&'a serde_json::Value> for Tree<'a> {
    fn from(value: &'a serde_json::Value) -> Tree<'a> {
        let mut builder = TreeBuilder::default();
        builder.value(None, value);
        builder.build()
    }
}

/// A document of more than 4,294,967,295 values does not fit the address space of a gateway; it would be cut here.
fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX - 1)
}
