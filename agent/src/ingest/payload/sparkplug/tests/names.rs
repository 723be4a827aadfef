//! Which birth gives a metric its name.

use super::*;

#[test]
fn aliases_are_those_of_the_last_birth_of_the_same_device() {
    let mut births = Births::default();
    let data = |seq, value| payload(seq, &[aliased(1, value)]);
    let no_birth = readings(&mut births, DDATA, &data(9, 70));
    assert!(
        no_birth[0].starts_with("AliasNotDefinedException: metric 1 of") && no_birth[0].contains("no birth"),
        "{no_birth:?}"
    );
    assert_eq!(
        readings(&mut births, NBIRTH, &payload(0, &[session(1), born("load", 1)])),
        ["bdSeq=1", "load=72"]
    );
    assert_eq!(
        readings(
            &mut births,
            DBIRTH,
            &payload(1, &[born("hr", 1), born("spo2", 2)])
        ),
        ["hr=72", "spo2=72"]
    );
    assert_eq!(readings(&mut births, DDATA, &data(2, 73)), ["hr=73"]);
    assert_eq!(readings(&mut births, NDATA, &data(3, 5)), ["load=5"]);
    let other = readings(&mut births, "spBv1.0/ward3/DDATA/gw7/therm1", &data(4, 36));
    assert!(other[0].contains("no birth"), "{other:?}");
    // Born again, with other numbers.
    readings(
        &mut births,
        DBIRTH,
        &payload(5, &[born("spo2", 1), born("hr", 2)]),
    );
    assert_eq!(readings(&mut births, DDATA, &data(6, 97)), ["spo2=97"]);
    // The node is born again: its devices have to be, too.
    readings(&mut births, NBIRTH, &payload(0, &[session(2), born("load", 1)]));
    assert!(readings(&mut births, DDATA, &data(1, 97))[0].contains("no birth"));
    // Another node with the same device is another device.
    assert!(readings(&mut births, "spBv1.0/ward3/DDATA/gw8/oxi7", &data(1, 97))[0].contains("no birth"));
}

#[test]
fn a_missing_message_may_have_been_a_birth() {
    let mut births = Births::default();
    readings(&mut births, DBIRTH, &payload(254, &[born("hr", 1)]));
    let data = |seq| {
        payload(
            seq,
            &[aliased(1, 73), metric("name", 3, |m| m.int_value = Some(1))],
        )
    };
    for seq in [255, 0, 0, 1] {
        assert_eq!(
            readings(&mut births, DDATA, &data(seq)),
            ["hr=73", "name=1"],
            "{seq}"
        );
    }
    let lost = readings(&mut births, DDATA, &data(3));
    assert_eq!(lost[0], "name=1");
    assert!(lost[1].contains("a sequence number is missing"), "{lost:?}");
    assert!(readings(&mut births, DDATA, &data(4))[1].contains("a sequence number is missing"));
    readings(&mut births, DBIRTH, &payload(5, &[born("hr", 1)]));
    assert_eq!(readings(&mut births, DDATA, &data(6)), ["hr=73", "name=1"]);
    // A message that cannot be read may have been one as well.
    births.observe(&topic(DBIRTH), &Bytes::from_static(&[0xFF]));
    assert!(readings(&mut births, DDATA, &data(7))[1].contains("a sequence number is missing"));
    // Nothing is missing where nobody counts.
    let mut births = Births::default();
    let uncounted = |metrics: &[Metric]| {
        bytes(&Payload {
            metrics: metrics.iter().map(bytes).collect(),
            ..Payload::default()
        })
    };
    readings(&mut births, DBIRTH, &uncounted(&[born("hr", 1)]));
    assert_eq!(
        readings(&mut births, DDATA, &uncounted(&[aliased(1, 73)])),
        ["hr=73"]
    );
}

#[test]
fn deaths_end_names_but_not_those_of_a_later_session() {
    let mut births = Births::default();
    readings(&mut births, NBIRTH, &payload(0, &[session(5)]));
    readings(&mut births, DBIRTH, &payload(1, &[born("hr", 1)]));
    let data = |seq| payload(seq, &[aliased(1, 73)]);
    let death = |number| {
        bytes(&Payload {
            metrics: vec![bytes(&session(number))],
            ..Payload::default()
        })
    };
    // The will of the session before comes late.
    assert_eq!(births.observe(&topic(NDEATH), &death(4)), Observed::default());
    assert_eq!(readings(&mut births, DDATA, &data(2)), ["hr=73"]);
    births.observe(&topic(DDEATH), &payload(3, &[]));
    assert!(readings(&mut births, DDATA, &data(4))[0].contains("has died"));
    readings(&mut births, DBIRTH, &payload(5, &[born("hr", 1)]));
    assert_eq!(readings(&mut births, DDATA, &data(6)), ["hr=73"]);
    let (body, _) = decoded(&mut births, NDEATH, &death(5));
    assert_eq!(body["available"], false);
    assert!(readings(&mut births, DDATA, &data(7))[0].contains("has died"));
}

#[test]
fn an_alias_that_may_mean_something_else_is_refused() {
    let mut births = Births::default();
    readings(
        &mut births,
        DBIRTH,
        &payload(
            0,
            &[born("hr", 1), born("rr", 1), born("spo2", 2), born("spo2", 2)],
        ),
    );
    let twice = readings(&mut births, DDATA, &payload(1, &[aliased(1, 14)]));
    assert!(twice[0].contains("gives it to two metrics"), "{twice:?}");
    assert_eq!(
        readings(&mut births, DDATA, &payload(2, &[aliased(2, 97)])),
        ["spo2=97"]
    );
    let float = metric("", 9, |m| (m.alias, m.float_value) = (Some(2), Some(36.8)));
    let other = readings(&mut births, DDATA, &payload(3, &[float]));
    assert!(
        other[0].starts_with("AliasNotDefinedException") && other[0].contains("not that of the birth"),
        "{other:?}"
    );
    let nameless = readings(&mut births, DBIRTH, &payload(4, &[aliased(3, 1)]));
    assert!(nameless[0].contains("a birth must name"), "{nameless:?}");
}

#[test]
fn names_outlive_a_restart_only_without_a_gap() {
    let mut births = Births::default();
    let birth = births.observe(&topic(DBIRTH), &payload(5, &[born("hr", 1)]));
    let (key, text) = birth.remember.unwrap();
    assert!(!text.contains("72"), "values are not written down: {text}");
    assert_eq!(
        births
            .observe(&topic(DDATA), &payload(6, &[aliased(1, 73)]))
            .remember,
        None
    );
    let restarted = |last: Option<u64>| {
        let mut births = Births::default();
        births.recall(&key, &text);
        if let Some(last) = last {
            births.recall_last(&topic(DDATA), &payload(last, &[]));
        }
        births
    };
    let next = payload(7, &[aliased(1, 74)]);
    assert_eq!(readings(&mut restarted(Some(6)), DDATA, &next), ["hr=74"]);
    for last in [Some(5), Some(200), None] {
        let mut births = restarted(last);
        let observed = births.observe(&topic(DDATA), &next);
        assert!(observed.incomplete && observed.remember.is_some(), "{last:?}");
        assert!(
            readings(&mut births, DDATA, &next)[0].contains("were missed while the agent"),
            "{last:?}"
        );
    }
    // What was forgotten stays forgotten, and says why.
    let forgotten = restarted(None).observe(&topic(DDATA), &next).remember.unwrap();
    let mut births = Births::default();
    births.recall(&forgotten.0, &forgotten.1);
    births.recall_last(&topic(DDATA), &next);
    assert!(readings(&mut births, DDATA, &payload(8, &[aliased(1, 74)]))[0].contains("were missed"));
}

#[test]
fn the_message_means_the_same_whenever_it_is_read() {
    let mut births = Births::default();
    births.observe(&topic(DBIRTH), &payload(0, &[born("hr", 1)]));
    let data = payload(1, &[aliased(1, 73)]);
    let names = births.observe(&topic(DDATA), &data).names.unwrap();
    let names = serde_json::to_string(&names).unwrap();
    births.observe(&topic(DBIRTH), &payload(2, &[born("spo2", 1)]));
    let body = decode_parts(Some("sparkplug-b"), Some(&names), DDATA, &data).unwrap();
    assert!(
        std::str::from_utf8(body.bytes())
            .unwrap()
            .contains("\"name\":\"hr\"")
    );
}
