//! The dialect's expressions as queries of RFC 9535, where the two mean the same.

use jsonpath_rust::parser::model::{
    Comparable, Comparison, Filter as RfcFilter, FilterAtom, JpQuery, Literal as RfcLiteral, Segment,
    Selector, SingularQuery, SingularQuerySegment, Test,
};

use crate::jsonpath::{Filter, JsonPath, Literal, Operand, Operator, Step};

impl JsonPath {
    /// The expression as a query of RFC 9535, `None` where it means something else there or cannot be said. A filter means
    /// the same on arrays only: on an object the RFC tests the members, and this dialect finds nothing.
    ///
    /// ```
    /// use iomt_mapping::jsonpath::JsonPath;
    ///
    /// let portable = |text: &str| JsonPath::parse(text).unwrap().to_rfc9535().is_some();
    /// assert!(portable("$.Body.readings[0]['heart rate']"));
    /// assert!(!portable("$..[?(@.heartRate)]"), "here the root is tested too");
    /// ```
    pub fn to_rfc9535(&self) -> Option<JpQuery> {
        segments(self.steps()).map(JpQuery::new)
    }
}

fn segments(steps: &[Step]) -> Option<Vec<Segment>> {
    steps.iter().map(segment).collect()
}

fn segment(step: &Step) -> Option<Segment> {
    Some(match step {
        Step::Member(name) => Segment::Selector(Selector::Name(name.to_string())),
        Step::Members(names) => Segment::Selectors(
            names
                .iter()
                .map(|name| Selector::Name(name.to_string()))
                .collect(),
        ),
        Step::Index(index) => Segment::Selector(Selector::Index(i64::from(*index))),
        Step::Indexes(indexes) => Segment::Selectors(
            indexes
                .iter()
                .map(|index| Selector::Index(i64::from(*index)))
                .collect(),
        ),
        Step::Slice(start, end, step) => Segment::Selector(Selector::Slice(
            start.map(i64::from),
            end.map(i64::from),
            Some(i64::from(*step)),
        )),
        Step::Descend(name) => {
            Segment::Descendant(Box::new(Segment::Selector(Selector::Name(name.to_string()))))
        }
        Step::Filter(filter) => Segment::Selector(Selector::Filter(condition(filter)?)),
        // `.*` and `[*]` are for one kind of container each; `..*`, `..[?()]` include the token itself; no root inside.
        Step::AnyMember
        | Step::AnyElement
        | Step::DescendMembers(_)
        | Step::DescendAll
        | Step::DescendFilter(_)
        | Step::Root => return None,
    })
}

fn condition(filter: &Filter) -> Option<RfcFilter> {
    Some(match filter {
        Filter::And(all) => RfcFilter::And(all.iter().map(condition).collect::<Option<_>>()?),
        Filter::Or(any) => RfcFilter::Or(any.iter().map(condition).collect::<Option<_>>()?),
        Filter::Exists(Operand::Path(steps)) if !steps.is_empty() => {
            let test = Box::new(Test::RelQuery(segments(steps)?));
            RfcFilter::Atom(FilterAtom::Test {
                expr: test,
                not: false,
            })
        }
        Filter::Exists(_) => return None,
        Filter::Compare(left, operator, right) => {
            if let (Operand::Path(_), Operand::Path(_)) = (left, right) {
                // Two missing members are equal there.
                return None;
            }
            let (left, right) = (comparable(left)?, comparable(right)?);
            let comparison = match operator {
                Operator::Equal | Operator::StrictEqual => Comparison::Eq(left, right),
                // A missing member differs from everything there and from nothing here; order knows no text as number there.
                _ => return None,
            };
            RfcFilter::Atom(FilterAtom::Comparison(Box::new(comparison)))
        }
    })
}

fn comparable(operand: &Operand) -> Option<Comparable> {
    Some(match operand {
        Operand::Path(steps) => {
            let singular = steps.iter().map(|step| match step {
                Step::Member(name) => Some(SingularQuerySegment::Name(name.to_string())),
                Step::Index(index) => Some(SingularQuerySegment::Index(i64::from(*index))),
                _ => None,
            });
            Comparable::SingularQuery(SingularQuery::Current(singular.collect::<Option<_>>()?))
        }
        Operand::Literal(Literal::Bool(flag)) => Comparable::Literal(RfcLiteral::Bool(*flag)),
        Operand::Literal(Literal::Integer(integer)) => Comparable::Literal(RfcLiteral::Int(*integer)),
        Operand::Literal(Literal::Text(text)) => Comparable::Literal(RfcLiteral::String(text.to_string())),
        // Null and floats compare in ways of their own.
        Operand::Literal(Literal::Null | Literal::Float(_) | Literal::Regex(..)) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Tree;
    use proptest::prelude::*;

    fn documents() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            (-3i64..4).prop_map(Into::into),
            "[a-c]{0,2}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
                prop::collection::vec(("[abc]", inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn paths() -> impl Strategy<Value = String> {
        let step = prop_oneof![
            4 => "\\.[abc]",
            1 => "\\['[abc]'\\]",
            1 => "\\['[ab]','[bc]'\\]",
            2 => "\\.\\.[abc]",
            2 => (-3..4i32).prop_map(|index| format!("[{index}]")),
            1 => (0..3i32, -2..3i32).prop_map(|(a, b)| format!("[{a},{b}]")),
            2 => (prop::option::of(-3..4i32), prop::option::of(-3..4i32), prop::option::of(prop_oneof![-2..0i32, 1..3i32]))
                .prop_map(|(start, end, step)| {
                    let text = |part: Option<i32>| part.map(|part| part.to_string()).unwrap_or_default();
                    format!("[{}:{}{}]", text(start), text(end), step.map(|step| format!(":{step}")).unwrap_or_default())
                }),
            1 => "\\[\\?\\(@\\.[abc]( && @\\.[abc])?\\)\\]",
            1 => "\\[\\?\\(@\\.[abc] == ('[a-c]'|[0-2]|true) (\\|\\| @\\.[abc] )?\\)\\]",
        ];
        prop::collection::vec(step, 0..4).prop_map(|steps| format!("${}", steps.concat()))
    }

    /// Whether a filter meets an object on the way.
    fn filters_an_object(path: &JsonPath, root: crate::message::Token<'_>) -> bool {
        path.steps()
            .iter()
            .enumerate()
            .filter(|(_, step)| matches!(step, Step::Filter(_)))
            .any(|(n, _)| {
                let before = JsonPath {
                    text: String::new(),
                    steps: path.steps()[..n].to_vec(),
                    mixes_operators: false,
                };
                before
                    .select_all(root)
                    .unwrap()
                    .iter()
                    .any(|token| token.is_object())
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// jsonpath-rust is the oracle: where an expression means the same there, it finds the same values. Its order after `..`
        /// and after several names or indexes is not that of the RFC, so values are compared as a set there.
        #[test]
        fn agrees_with_jsonpath_rust(document in documents(), text in paths()) {
            let path = JsonPath::parse(&text).unwrap();
            let tree = Tree::from(&document);
            let Some(query) = path.to_rfc9535() else { return Ok(()) };
            prop_assume!(!filters_an_object(&path, tree.root()));
            let theirs = jsonpath_rust::query::js_path_process(&query, &document).unwrap();
            let mut theirs: Vec<String> = theirs.into_iter().map(|found| found.val().to_string()).collect();
            let mut ours: Vec<String> = path.select_all(tree.root()).unwrap().iter().map(|t| t.to_string()).collect();
            if text.contains("..") || text.contains(',') {
                theirs.sort();
                ours.sort();
            }
            prop_assert_eq!(ours, theirs, "{} on {}", text, document);
        }
    }
}
