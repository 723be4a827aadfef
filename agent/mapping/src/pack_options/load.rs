//! Loads the third file: every error at once, with its place.

use super::{
    Interpretation, PackOptions, Priority, ReferenceRange, TypeOptions, ValueOptions, ticks_of_seconds,
};
use crate::document::{Document, Member, Node, Shape};
use crate::fhir::{Coding, Concept, decimal};
use crate::finding::{Finding, nearest};

const ROOT_MEMBERS: [&str; 3] = ["$schema", "clockCorrection", "types"];
const TYPE_MEMBERS: [&str; 10] = [
    "priority",
    "profile",
    "effective",
    "mdcCode",
    "bodySite",
    "method",
    "performer",
    "note",
    "clockCorrection",
    "values",
];
const VALUE_MEMBERS: [&str; 6] = [
    "system",
    "code",
    "mdcCode",
    "referenceRange",
    "interpretation",
    "dataAbsentReason",
];

impl PackOptions {
    /// Loads the text of a third file; `None` with at least one error. Findings have no template index, the field
    /// tells the member.
    ///
    /// ```
    /// use iomt_mapping::pack_options::{PackOptions, Priority};
    ///
    /// let (options, findings) = PackOptions::load(r#"{ "types": { "ecg": { "priority": "waveform" } } }"#);
    /// assert!(findings.is_empty());
    /// assert_eq!(options.unwrap().priority("ECG"), Priority::Waveform);
    /// ```
    pub fn load(text: &str) -> (Option<PackOptions>, Vec<Finding>) {
        let document = match Document::parse(text) {
            Ok(document) => document,
            Err(finding) => return (None, vec![finding]),
        };
        let mut loader = Loader {
            document: &document,
            findings: Vec::new(),
        };
        let options = loader.root();
        let options = loader.findings.is_empty().then_some(options);
        (options, loader.findings)
    }
}

struct Loader<'d, 't> {
    document: &'d Document<'t>,
    findings: Vec<Finding>,
}

impl Loader<'_, '_> {
    fn root(&mut self) -> PackOptions {
        let root = &self.document.root;
        if !self.is_object(root, "types") {
            return PackOptions::default();
        }
        self.unknown(root, &ROOT_MEMBERS, "agent options");
        let mut options = PackOptions {
            clock_correction: self.clock_correction(root),
            types: Vec::new(),
        };
        for member in self.object_members(root, "types") {
            let name = member.name.to_lowercase();
            if options.types.iter().any(|(known, _)| *known == name) {
                let message = format!(
                    "The type '{}' stands twice; letter case does not count.",
                    member.name
                );
                self.findings.push(
                    self.document
                        .error("DuplicateTypeName", member.name_span, message)
                        .field("types"),
                );
                continue;
            }
            if self.is_object(&member.value, "types") {
                let of_type = self.of_type(member);
                options.types.push((name, of_type));
            }
        }
        options
    }

    fn of_type(&mut self, member: &Member<'_>) -> TypeOptions {
        let node = &member.value;
        self.unknown(node, &TYPE_MEMBERS, "type options");
        let priority = self.choice(node, "priority", &Priority::ALL.map(|p| (p.name(), p)));
        let effective = self.choice(node, "effective", &[("dateTime", true), ("Period", false)]);
        let mut options = TypeOptions {
            place: Some(self.document.place(member.name_span)),
            priority,
            profile: self.texts(node, "profile"),
            effective_date_time: effective.unwrap_or(false),
            mdc_code: self.mdc_code(node),
            body_site: self.concept(node, "bodySite"),
            method: self.concept(node, "method"),
            performer: self.texts(node, "performer"),
            note: self.texts(node, "note"),
            clock_correction: self.clock_correction(node),
            values: Vec::new(),
        };
        for value in self.object_members(node, "values") {
            if self.is_object(&value.value, "values") {
                let of_value = self.of_value(value);
                options.values.push((value.name.to_string(), of_value));
            }
        }
        options
    }

    fn of_value(&mut self, member: &Member<'_>) -> ValueOptions {
        let node = &member.value;
        self.unknown(node, &VALUE_MEMBERS, "value options");
        let mut options = ValueOptions {
            place: Some(self.document.place(member.name_span)),
            system: self.text(node, "system"),
            code: self.text(node, "code"),
            mdc_code: self.mdc_code(node),
            ..ValueOptions::default()
        };
        for range in self.list(node, "referenceRange") {
            self.unknown(range, &["low", "high", "text"], "reference range");
            options.reference_range.push(ReferenceRange {
                low: self.number(range, "low"),
                high: self.number(range, "high"),
                text: self.text(range, "text"),
            });
        }
        for rule in self.list(node, "interpretation") {
            self.unknown(
                rule,
                &["below", "above", "code", "system", "display"],
                "interpretation rule",
            );
            let rule = Interpretation {
                below: self.number(rule, "below"),
                above: self.number(rule, "above"),
                code: self.text(rule, "code").unwrap_or_else(|| {
                    self.error("MissingMember", rule, "code", "The rule has no code.".to_owned());
                    String::new()
                }),
                system: self.text(rule, "system"),
                display: self.text(rule, "display"),
            };
            options.interpretation.push(rule);
        }
        for missing in self.object_members(node, "dataAbsentReason") {
            if let Shape::Text(reason) = &missing.value.shape
                && !reason.trim().is_empty()
            {
                options
                    .data_absent_reason
                    .push((missing.name.trim().to_owned(), reason.to_string()));
            } else {
                let message = "Expected the code of a data absent reason, for example \"error\".".to_owned();
                self.error("WrongType", &missing.value, "dataAbsentReason", message);
            }
        }
        options
    }

    fn clock_correction(&mut self, node: &Node<'_>) -> Option<i64> {
        let seconds = self.number(node, "clockCorrection")?;
        let ticks = ticks_of_seconds(&seconds);
        if ticks.is_none() {
            let at = node.member("clockCorrection").unwrap_or(node);
            let message = "Expected seconds to add to the device's time, at most ten years.".to_owned();
            self.error("WrongType", at, "clockCorrection", message);
        }
        ticks
    }

    fn mdc_code(&mut self, node: &Node<'_>) -> Option<String> {
        let member = node.member("mdcCode")?;
        let code = match &member.shape {
            Shape::Text(text) => text.to_string(),
            Shape::Number(number) => (*number).to_owned(),
            _ => String::new(),
        };
        if code.is_empty() || !code.bytes().all(|b| b.is_ascii_digit()) {
            let message = "Expected an IEEE 11073-10101 code as digits, for example \"147842\".".to_owned();
            self.error("WrongType", member, "mdcCode", message);
            return None;
        }
        Some(code)
    }

    fn concept(&mut self, node: &Node<'_>, name: &'static str) -> Option<Concept> {
        let member = node.member(name)?;
        if !self.is_object(member, name) {
            return None;
        }
        self.unknown(member, &["text", "codes"], name);
        let mut concept = Concept {
            text: self.text(member, "text"),
            codes: Vec::new(),
        };
        for code in self.list(member, "codes") {
            self.unknown(code, &["code", "system", "display"], "code");
            concept.codes.push(Coding {
                code: self.text(code, "code"),
                system: self.text(code, "system"),
                display: self.text(code, "display"),
                place: Some(self.document.place(code.span)),
            });
        }
        Some(concept)
    }

    // The parts that every object shares.

    /// The objects of an array; a single object counts as an array of one.
    fn list<'n, 't>(&mut self, node: &'n Node<'t>, name: &'static str) -> Vec<&'n Node<'t>> {
        let Some(member) = node.member(name) else {
            return Vec::new();
        };
        let elements = member.elements().unwrap_or(std::slice::from_ref(member));
        elements
            .iter()
            .filter(|element| self.is_object(element, name))
            .collect()
    }

    /// Texts of an array; a single text counts as an array of one.
    fn texts(&mut self, node: &Node<'_>, name: &'static str) -> Vec<String> {
        let Some(member) = node.member(name) else {
            return Vec::new();
        };
        let elements = member.elements().unwrap_or(std::slice::from_ref(member));
        let mut texts = Vec::new();
        for element in elements {
            match element.text().filter(|text| !text.trim().is_empty()) {
                Some(text) => texts.push(text.to_owned()),
                None => self.wrong_type(element, name, "a text"),
            }
        }
        texts
    }

    fn text(&mut self, node: &Node<'_>, name: &'static str) -> Option<String> {
        let member = node.member(name)?;
        let text = member.text().filter(|text| !text.trim().is_empty());
        if text.is_none() {
            self.wrong_type(member, name, "a text that is not blank");
        }
        text.map(str::to_owned)
    }

    fn number(&mut self, node: &Node<'_>, name: &'static str) -> Option<String> {
        let member = node.member(name)?;
        let number = match &member.shape {
            Shape::Number(number) => decimal(number),
            Shape::Text(text) => decimal(text),
            _ => None,
        };
        if number.is_none() {
            self.wrong_type(member, name, "a decimal number");
        }
        number
    }

    fn choice<T: Copy>(
        &mut self,
        node: &Node<'_>,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let member = node.member(name)?;
        let text = member.text().unwrap_or_default();
        let found = choices.iter().find(|(known, _)| known.eq_ignore_ascii_case(text));
        if found.is_none() {
            let known = choices.iter().map(|(known, _)| *known);
            let all = known.clone().collect::<Vec<_>>().join(", ");
            self.error("WrongType", member, name, format!("Expected one of {all}."));
            if let (Some(near), Some(finding)) = (nearest(text, known), self.findings.last_mut()) {
                finding.suggestion = Some(format!("Did you mean \"{near}\"?"));
            }
        }
        found.map(|(_, value)| *value)
    }

    fn object_members<'n, 't>(&mut self, node: &'n Node<'t>, name: &'static str) -> &'n [Member<'t>] {
        match node.member(name) {
            Some(member) if self.is_object(member, name) => member.members(),
            _ => &[],
        }
    }

    fn is_object(&mut self, node: &Node<'_>, field: &'static str) -> bool {
        if !node.is_object() {
            self.wrong_type(node, field, "an object");
        }
        node.is_object()
    }

    fn unknown(&mut self, node: &Node<'_>, known: &[&str], type_name: &str) {
        let unknown = self.document.unknown_members(node, known, type_name);
        self.findings.extend(unknown);
    }

    fn wrong_type(&mut self, node: &Node<'_>, field: &'static str, expected: &str) {
        let message = format!("Expected {expected}, found {}.", node.kind_name());
        self.error("WrongType", node, field, message);
    }

    fn error(&mut self, kind: &'static str, node: &Node<'_>, field: &'static str, message: String) {
        let finding = self.document.error(kind, node.span, message).field(field);
        self.findings.push(finding);
    }
}
