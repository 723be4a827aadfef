//! What the operator entered decides whose readings are, and which visit they belong to.

use super::double::Double;
use super::moves::{held, readings, short, show, version};
use super::tests::{destination, named_group, none, simulate, standard};
use super::*;
use crate::associations::{Command, Who};
use serde_json::{Value, json};

const MINUTE: i64 = 600_000_000;

fn noon() -> i64 {
    iomt_mapping::fhir::parse_datetime("2026-09-22T00:00:00Z")
        .unwrap()
        .ticks()
}

fn enter(book: &Rc<RefCell<Book>>, command: &Command) {
    let mut book = book.borrow_mut();
    let mut planned = book.plan(command, Some(noon()), &[1]).unwrap();
    let number = book.all_entries().count() as i64 + 1;
    planned.entry.iter_mut().for_each(|entry| entry.number = number);
    book.take(&planned);
}

fn set(patient: &str, encounter: Option<&str>, from: i64, to: Option<i64>) -> Command {
    Command::Set {
        device: "a".to_owned(),
        patient: Who::parse("Patient", patient),
        encounter: encounter.map(|text| Who::parse("Encounter", text)),
        from: Some(noon() + from * MINUTE),
        to: to.map(|to| noon() + to * MINUTE),
    }
}

fn resource(kind: &str, id: &str, identifier: &str) -> Value {
    json!({"resourceType": kind, "id": id, "identifier": [{"value": identifier}]})
}

#[test]
fn an_entry_comes_before_the_link_and_before_the_message() {
    for more in ["", "resolution = \"create\"\n"] {
        let (double, http) = Double::new(&[resource("Patient", "bert", "mrn b")]);
        let mut fhir = destination(&http, more);
        let book: Rc<RefCell<Book>> = Rc::default();
        fhir.share_associations(Rc::clone(&book), 1);
        simulate(async {
            show(&double, &[version(1, -60, "anna")], true);
            enter(&book, &set("mrn b", None, 30, Some(40)));
            enter(&book, &set("mrn nobody", None, 50, Some(60)));
            let groups = || vec![readings(1, "hr", &[20, 35, 45, 55])];
            assert_eq!(short(&fhir.deliver(groups(), &none()).await), "DDDW", "{more}");
            assert_eq!(held(&double), ["anna 20", "anna 45", "bert 35"], "{more}");
            // Taken away: nobody's, whatever the message says.
            let end = Command::End {
                device: "a".to_owned(),
                at: Some(noon() + 70 * MINUTE),
            };
            enter(&book, &end);
            let pack = standard();
            let named = [Some("a"), Some("mrn b"), None];
            let mut group = named_group(&pack, named, "hr", 9, &[(36, "hr", "36"), (80, "hr", "80")]);
            for reading in &mut group.readings {
                reading.received.wall = reading.measurement.occurrence_time;
            }
            assert_eq!(short(&fhir.deliver(vec![group], &none()).await), "DW", "{more}");
            assert_eq!(
                held(&double),
                ["anna 20", "anna 45", "bert 35", "bert 36"],
                "{more}"
            );
        });
    }
}

#[test]
fn within_one_hour_each_reading_goes_to_the_encounter_of_its_time() {
    let visits = [
        resource("Encounter", "e1", "visit 1"),
        resource("Encounter", "e2", "visit 2"),
    ];
    let (double, http) = Double::new(&visits);
    let mut fhir = destination(&http, "resolution = \"lookup-with-encounter\"\n");
    let book: Rc<RefCell<Book>> = Rc::default();
    fhir.share_associations(Rc::clone(&book), 1);
    simulate(async {
        show(&double, &[version(1, -60, "anna")], true);
        enter(&book, &set("Patient/anna", Some("visit 1"), 0, Some(30)));
        enter(&book, &set("Patient/anna", Some("Encounter/e2"), 30, Some(50)));
        // Late ones of the first visit come after those of the second.
        let first = vec![readings(1, "hourly", &[35, 45])];
        assert_eq!(short(&fhir.deliver(first, &none()).await), "DD");
        let second = vec![readings(3, "hourly", &[5, 40, 15, 55])];
        assert_eq!(short(&fhir.deliver(second, &none()).await), "D?DW");
        let mut lines: Vec<String> = double
            .of_type("Observation")
            .iter()
            .map(|one| {
                let visit = one["encounter"]["reference"].as_str().unwrap();
                format!("{visit} {}", one["valueSampledData"]["data"].as_str().unwrap())
            })
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            ["Encounter/e1 5 15 E E E E", "Encounter/e2 E E E 35 45 E"],
            "40 and 45 are of one slot"
        );
    });
}
