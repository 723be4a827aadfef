//! What the payload format of a source adds.

use super::*;

#[test]
fn an_edge_node_is_asked_for_its_births_only_when_the_site_wants_it() {
    run(async {
        for (config, asks) in [("", false), ("request_rebirth = true", true)] {
            let mut rig = Rig::start(&format!("format = 'sparkplug-b'\n{config}")).await;
            let mut peer = rig.broker.session(false).await;
            for _ in 0..3 {
                peer.publish_on("spBv1.0/ward3/DDATA/gw7/oxi7", hex(DDATA), &[])
                    .await;
                let message = rig.message().await;
                assert_eq!(message.payload.bytes(), hex(DDATA));
                assert!(message.properties.iter().any(|(name, _)| name == NAMES_PROPERTY));
            }
            if asks {
                let Some(Packet::Publish(request)) = peer.next().await else {
                    panic!("no request")
                };
                assert_eq!(request.topic, "spBv1.0/ward3/NCMD/gw7");
                assert!(!request.retain && request.qos == QoS::AtMostOnce);
                let name = b"Node Control/Rebirth";
                assert!(request.payload.windows(name.len()).any(|part| part == name));
            }
            // Once, not for every message.
            peer.silence().await;
        }
    });
}

#[test]
fn nobody_else_says_what_a_payload_means() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        let forged = [
            (FORMAT_PROPERTY, "sparkplug-b"),
            ("ward", "7"),
            (NAMES_PROPERTY, "{}"),
        ];
        peer.publish_on("wearables/d1/telemetry", "{}", &forged).await;
        assert_eq!(
            rig.message().await.properties,
            [("ward".to_owned(), "7".to_owned())]
        );
    });
}

#[test]
fn a_device_that_says_goodbye_is_shown_as_away() {
    run(async {
        let mut rig = Rig::start("").await;
        let mut peer = rig.broker.session(false).await;
        for (payload, away) in [("Offline", vec!["tele/bed7".to_owned()]), ("Online", vec![])] {
            peer.publish_on("tele/bed7/LWT", payload, &[]).await;
            rig.message().await;
            assert_eq!(rig.status.away(), away);
        }
    });
}
