//! What is no message, and what is too much.

use super::*;

#[test]
fn topics_are_read() {
    let read = |text| Topic::read(text).map(|t| (t.kind, t.group, t.node, t.device));
    assert_eq!(read(DDATA), Some((Kind::Data, "ward3", "gw7", Some("oxi7"))));
    assert_eq!(read(NBIRTH), Some((Kind::Birth, "ward3", "gw7", None)));
    assert_eq!(
        read("spBv1.0/g/DCMD/n/d"),
        Some((Kind::Command, "g", "n", Some("d")))
    );
    for other in [
        "spBv1.0/STATE/host",
        "spBv1.0/g/NDATA/n/d",
        "spBv1.0/g/DDATA/n",
        "spBv1.0/g/XDATA/n",
        "spAv1.0/g/NDATA/n",
        "spBv1.0/g/DDATA/n/d/e",
        "spBv1.0/g/é/n",
        "",
    ] {
        assert_eq!(read(other), None, "{other}");
    }
}

#[test]
fn what_is_no_message_is_refused_with_the_reason() {
    let many = payload(0, &vec![Metric::default(); 20_001]);
    let mut deep = Template::default();
    for _ in 0..12 {
        let inner = metric("t", 19, |m| m.template_value = Some(bytes(&deep)));
        deep = Template {
            metrics: vec![bytes(&inner)],
            ..Template::default()
        };
    }
    let deep = payload(0, &[metric("t", 19, |m| m.template_value = Some(bytes(&deep)))]);
    let late = bytes(&Payload {
        timestamp: Some(u64::MAX),
        ..Payload::default()
    });
    for (payload, why) in [
        (Bytes::from_static(b"{\"hr\":72}"), "no Sparkplug B message"),
        (Bytes::from_static(&[0x12, 0x05, 0x01]), "no Sparkplug B message"),
        (Bytes::from_static(&[0x12, 0x01, 0xFF]), "no Sparkplug B message"),
        (many, "more than 20000 values"),
        (deep, "deep within templates"),
        (late, "beyond the year 9999"),
    ] {
        let error = decode_parts(Some("sparkplug-b"), None, DDATA, &payload).unwrap_err();
        assert_eq!(error.name, "InvalidDataFormatException");
        assert!(
            error.text.contains(why) && error.text.contains("\"sparkplug-b\""),
            "{}",
            error.text
        );
    }
    // The state of a host is JSON on another topic.
    let state = Bytes::from_static(b"{\"online\":true,\"timestamp\":1}");
    let body = decode_parts(Some("sparkplug-b"), None, "spBv1.0/STATE/host", &state).unwrap();
    assert_eq!(body.bytes(), &state[..]);
}

#[test]
fn a_flood_of_nodes_and_names_is_bounded() {
    let mut births = Births::default();
    for node in 0..1100 {
        births.observe(
            &topic(&format!("spBv1.0/g/DBIRTH/n{node}/d")),
            &payload(0, &[born("hr", 1)]),
        );
    }
    let beyond = readings(
        &mut births,
        "spBv1.0/g/DDATA/n1099/d",
        &payload(1, &[aliased(1, 73)]),
    );
    assert!(
        beyond[0].contains("more metrics than are remembered"),
        "{beyond:?}"
    );
    assert_eq!(
        readings(
            &mut births,
            "spBv1.0/g/DDATA/n3/d",
            &payload(1, &[aliased(1, 73)])
        ),
        ["hr=73"]
    );
    let mut births = Births::default();
    let large: Vec<Metric> = (0..30_000).map(|alias| born("m", alias)).collect();
    births.observe(&topic(DBIRTH), &payload(0, &large));
    births.observe(&topic("spBv1.0/ward3/DBIRTH/gw7/two"), &payload(1, &large));
    let beyond = readings(
        &mut births,
        "spBv1.0/ward3/DDATA/gw7/two",
        &payload(2, &[aliased(1, 73)]),
    );
    assert!(
        beyond[0].contains("more metrics than are remembered"),
        "{beyond:?}"
    );
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    let message = payload(
        1,
        &[
            born("hr", 1),
            metric("l", 33, |m| m.bytes_value = Some(Bytes::from_static(b"a\0"))),
            metric("s", 16, |m| {
                m.dataset_value = Some(bytes(&DataSet {
                    columns: vec!["a".to_owned()],
                    types: vec![3],
                    ..DataSet::default()
                }))
            }),
        ],
    );
    let mut births = Births::default();
    for end in 0..=message.len() {
        for flip in 0..=255_u8 {
            let mut broken = message[..end].to_vec();
            if let Some(last) = broken.last_mut() {
                *last ^= flip;
            }
            let broken = Bytes::from(broken);
            births.observe(&topic(DBIRTH), &broken);
            drop(decode_parts(Some("sparkplug-b"), None, DBIRTH, &broken));
            drop(decode_parts(Some("kura"), None, "a/b/c", &broken));
        }
    }
}
