//! TOML to configuration, section by section, so that every error is found at once and has its place. A member that is
//! wrong is reported and taken out, and its section is read again without it.

use super::error::SECRET_MEMBERS;
use super::secret::SecretRef;
use super::tree::{Tree, part, place, span_of_name, take_out};
use super::trouble::{Trouble, members_of, missing_member, sentence, unknown_member};
use super::{Config, DestinationConfig, DestinationKind, SerialConfig, SourceConfig, SourceKind, validate};
use crate::ingest::serial::drivers::PortSettings;
use crate::ingest::serial::framing::FramingConfig;
use crate::ingest::serial::port_name::PortName;
use iomt_mapping::Finding;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A file with more syntax errors than these is repaired from the top.
const SYNTAX_ERRORS_SHOWN: usize = 3;

/// Reads and validates the whole text.
pub(super) fn read(text: &str) -> (Option<Config>, Vec<Finding>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        text,
        findings: Vec::new(),
    };
    if !errors.is_empty() {
        for error in errors.iter().take(SYNTAX_ERRORS_SHOWN) {
            let mut finding = Finding::error("InvalidToml", sentence(error.message()));
            if error.message().starts_with("duplicate key") {
                finding = finding.suggest(
                    "A name stands once in a section; [[source]] and [[destination]] have two brackets, so that there can be \
                     several.",
                );
            }
            reader.report(finding, error.span().unwrap_or_default());
        }
        return (None, reader.findings);
    }
    let mut table = tree.get_ref().clone();
    reader.replace_inline_secrets(&mut table);
    let draft = reader.sections(table);
    let findings = validate::validate(&draft, &Tree { text, root: &tree });
    reader.findings.extend(findings);
    (draft.complete(), reader.findings)
}

/// The sections that could be read, each source and destination with its number in the file.
pub(super) struct Draft {
    pub gateway: Option<super::GatewayConfig>,
    pub mappings: Option<super::MappingsConfig>,
    pub associations: Option<super::AssociationsConfig>,
    pub sources: Vec<(usize, SourceConfig)>,
    pub destinations: Vec<(usize, DestinationConfig)>,
    pub store: Option<super::StoreConfig>,
    pub web: Option<super::WebConfig>,
    pub clock: Option<super::ClockConfig>,
}

impl Draft {
    fn complete(self) -> Option<Config> {
        let mut config = Config {
            gateway: self.gateway?,
            mappings: self.mappings?,
            associations: self.associations?,
            sources: self.sources.into_iter().map(|(_, source)| source).collect(),
            destinations: self.destinations.into_iter().map(|(_, one)| one).collect(),
            store: self.store?,
            web: self.web?,
            clock: self.clock?,
        };
        for destination in &mut config.destinations {
            if let DestinationKind::Fhir(fhir) = &mut destination.kind
                && let Ok(address) = validate::fhir_base(fhir)
            {
                fhir.url = address;
            }
        }
        Some(config)
    }
}

/// Members that every source has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceHead {
    name: String,
    kind: SourceWord,
    #[serde(default)]
    packs: Option<Vec<String>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SourceWord {
    Mqtt,
    Serial,
}

/// Members that every destination has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationHead {
    name: String,
    kind: DestinationWord,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum DestinationWord {
    Fhir,
    EventHub,
}

/// The members of a serial source that have a type of their own; the others are [`FramingConfig`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialHead {
    port: PortName,
    #[serde(default)]
    driver: Option<String>,
    #[serde(default)]
    settings: Option<PortSettings>,
    #[serde(default)]
    device_id: Option<String>,
}

struct Reader<'t> {
    text: &'t str,
    findings: Vec<Finding>,
}

impl<'t> Reader<'t> {
    fn report(&mut self, finding: Finding, span: Range<usize>) {
        self.findings.push(finding.at(place(self.text, span)));
    }

    fn sections(&mut self, mut root: DeTable<'t>) -> Draft {
        let gateway = match root.remove("gateway") {
            Some(value) => self.section("[gateway]", value),
            None => {
                let finding = Finding::error("MissingMember", "The section [gateway] is missing.")
                    .suggest("Write [gateway] and below it id = \"NAME\", unique in the fleet.");
                self.report(finding, 0..0);
                None
            }
        };
        let sources = self.list(&mut root, "source", Reader::source);
        let destinations = self.list(&mut root, "destination", Reader::destination);
        let draft = Draft {
            gateway,
            mappings: self.optional(&mut root, "mappings"),
            associations: self.optional(&mut root, "associations"),
            sources,
            destinations,
            store: self.optional(&mut root, "store"),
            web: self.optional(&mut root, "web"),
            clock: self.optional(&mut root, "clock"),
        };
        let known = [
            "gateway",
            "mappings",
            "associations",
            "source",
            "destination",
            "store",
            "web",
            "clock",
        ];
        for (name, _) in root.iter() {
            let finding = unknown_member("agent.toml", name.get_ref(), &known);
            self.report(finding, name.span());
        }
        draft
    }

    fn optional<T: DeserializeOwned + Default>(&mut self, root: &mut DeTable<'t>, name: &str) -> Option<T> {
        match root.remove(name) {
            Some(value) => self.section(&format!("[{name}]"), value),
            None => Some(T::default()),
        }
    }

    fn list<T>(
        &mut self,
        root: &mut DeTable<'t>,
        name: &str,
        read: fn(&mut Reader<'t>, DeTable<'t>, Range<usize>) -> Option<T>,
    ) -> Vec<(usize, T)> {
        let Some(value) = root.remove(name) else {
            return Vec::new();
        };
        let span = value.span();
        let items = match value.into_inner() {
            DeValue::Array(items) => items,
            _ => {
                let finding = Finding::error("WrongType", format!("There may be several of {name}."))
                    .suggest(format!("Write [[{name}]] with two brackets, once for each."));
                self.report(finding, span);
                return Vec::new();
            }
        };
        let mut list = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            let span = item.span();
            if let DeValue::Table(table) = item.into_inner() {
                list.extend(read(self, table, span).map(|read| (number, read)));
            } else {
                let finding = Finding::error("WrongType", format!("A {name} is a table."))
                    .suggest(format!("Write [[{name}]] and its members below it."));
                self.report(finding, span);
            }
        }
        list
    }

    fn source(&mut self, mut table: DeTable<'t>, span: Range<usize>) -> Option<SourceConfig> {
        let head = part(&mut table, &["name", "kind", "packs"]);
        let head: SourceHead = self.section("[[source]]", Spanned::new(span.clone(), head))?;
        let kind = match head.kind {
            SourceWord::Mqtt => {
                let rest = Spanned::new(span, DeValue::Table(table));
                SourceKind::Mqtt(self.section("[[source]] of kind \"mqtt\"", rest)?)
            }
            SourceWord::Serial => SourceKind::Serial(self.serial(table, span)?),
        };
        Some(SourceConfig {
            name: head.name,
            packs: head.packs,
            kind,
        })
    }

    fn serial(&mut self, mut table: DeTable<'t>, span: Range<usize>) -> Option<SerialConfig> {
        let what = "[[source]] of kind \"serial\"";
        let own = part(&mut table, &["port", "driver", "settings", "device_id"]);
        let own: Option<SerialHead> = self.section(what, Spanned::new(span.clone(), own));
        let known = members_of::<FramingConfig>();
        let unknown: Vec<_> = table
            .iter()
            .filter(|(name, _)| !known.contains(&name.get_ref().as_ref()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &unknown {
            let own_members = ["name", "kind", "packs", "port", "driver", "settings", "device_id"];
            let finding = unknown_member(what, name.get_ref(), &[&own_members, known].concat());
            self.report(finding, name.span());
            table.remove(name.get_ref().as_ref());
        }
        let rest = Spanned::new(span, DeValue::Table(table));
        let framing = toml::Table::deserialize(ValueDeserializer::from(rest.clone())).ok();
        let typed: Option<FramingConfig> = self.section(what, rest);
        let (own, framing, _) = (own?, framing?, typed?);
        Some(SerialConfig {
            port: own.port,
            driver: own.driver,
            settings: own.settings,
            framing,
            device_id: own.device_id,
        })
    }

    fn destination(&mut self, mut table: DeTable<'t>, span: Range<usize>) -> Option<DestinationConfig> {
        let head = part(&mut table, &["name", "kind"]);
        let head: DestinationHead = self.section("[[destination]]", Spanned::new(span.clone(), head))?;
        let rest = Spanned::new(span, DeValue::Table(table));
        let kind = match head.kind {
            DestinationWord::Fhir => {
                DestinationKind::Fhir(self.section("[[destination]] of kind \"fhir\"", rest)?)
            }
            DestinationWord::EventHub => {
                DestinationKind::EventHub(self.section("[[destination]] of kind \"event-hub\"", rest)?)
            }
        };
        Some(DestinationConfig {
            name: head.name,
            kind,
        })
    }

    /// Reads a section; each wrong member is reported and taken out, until the rest can be read or nothing more is known.
    fn section<T: DeserializeOwned>(&mut self, what: &str, mut value: Spanned<DeValue<'t>>) -> Option<T> {
        let mut wrong: Vec<(String, Range<usize>)> = Vec::new();
        let mut good = true;
        loop {
            let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(section) => return good.then_some(section),
                Err(error) => error,
            };
            good = false;
            let span = error.span().unwrap_or_else(|| value.span());
            let whole = span == value.span();
            let DeValue::Table(table) = value.get_mut() else {
                let finding = Finding::error("WrongType", format!("{what} is a table."));
                self.report(finding, span);
                return None;
            };
            match Trouble::of(error.message()) {
                Trouble::Missing(name) if whole => {
                    if table.contains_key(name) {
                        return None;
                    }
                    if !wrong.iter().any(|(known, _)| known == name) {
                        self.report(missing_member(what, name), span);
                    }
                    // A text stands in, so that what else is missing is found too; the section is refused all the same.
                    let name = Spanned::new(0..0, Cow::Owned(name.to_owned()));
                    table.insert(name, Spanned::new(0..0, DeValue::String(Cow::Borrowed(""))));
                }
                trouble => {
                    // Places inside a table that is told by its kind are lost; the name finds them again.
                    let precise = match trouble {
                        Trouble::Unknown(name, _) => span_of_name(table, &span, name).unwrap_or(span.clone()),
                        _ => span.clone(),
                    };
                    // What stands in for a missing member is of the wrong type here: that it is missing was said. What is
                    // missing where something wrong was taken out may be just that.
                    let stands_in = span == (0..0);
                    let taken_before = wrong
                        .iter()
                        .any(|(_, at)| span.start <= at.start && at.end <= span.end);
                    if !(stands_in || taken_before && matches!(trouble, Trouble::Missing(_))) {
                        self.report(trouble.finding(what), precise.clone());
                    }
                    // Errors in a table that is told by its kind come with the place of the whole: look for the member.
                    let taken = take_out(table, &precise).or_else(|| take_out(table, &span));
                    match taken {
                        Some(name) if !stands_in => wrong.push((name, precise)),
                        _ => return None,
                    }
                }
            }
        }
    }

    /// Secrets that were written into the file are reported, and replaced, so that no later message can repeat them.
    fn replace_inline_secrets(&mut self, table: &mut DeTable<'t>) {
        for (name, value) in table.iter_mut() {
            let span = value.span();
            let is_secret = SECRET_MEMBERS.contains(&name.get_ref().as_ref());
            match value.get_mut() {
                DeValue::Table(inner) => self.replace_inline_secrets(inner),
                DeValue::Array(items) => {
                    for item in items.iter_mut() {
                        if let DeValue::Table(inner) = item.get_mut() {
                            self.replace_inline_secrets(inner);
                        }
                    }
                }
                DeValue::String(text) if is_secret && SecretRef::try_from(text.to_string()).is_ok() => {}
                other if is_secret => {
                    *other = DeValue::String(Cow::Borrowed("credential:refused"));
                    let finding = Finding::error("InlineSecret", "A secret is never written into agent.toml.")
                        .suggest(
                            "Write \"credential:NAME\" (systemd credential), \"file:PATH\" or \"env:NAME\", and change the \
                             secret if this file has been seen by others.",
                        );
                    self.report(finding, span);
                }
                _ => {}
            }
        }
    }
}
