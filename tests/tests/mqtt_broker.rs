//! The MQTT source against a real mosquitto: cut links, restarts of the source and of the broker, messages of all sizes. Judged by what the publisher sent: nothing lost, and what comes twice is marked.
#![allow(clippy::disallowed_methods, reason = "the tests live in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

use bedside_agent::ingest::StoredPacket;
use bedside_agent::message::PayloadKind;
use bedside_tests::real::intake::{Intake, broker, numbered, publish, run, until};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Passes connections on to `port` and cuts them, without a word, every `pause` while it is not zero.
async fn cutting_proxy(port: u16, pause: Rc<Cell<Duration>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    tokio::task::spawn_local(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let Ok(mut broker) = TcpStream::connect(("127.0.0.1", port)).await else {
                continue;
            };
            let pause = Rc::clone(&pause);
            tokio::task::spawn_local(async move {
                let cut = async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    while pause.get().is_zero() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    tokio::time::sleep(pause.get()).await;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut broker) => {}
                    () = cut => {}
                }
            });
        }
    });
    url
}

#[test]
fn a_link_that_is_cut_again_and_again_loses_nothing() {
    // The window of the gateway's own configuration, and none at all (mosquitto then takes no heed of ours either).
    for (protocol, in_flight) in [("5", 500), ("3.1.1", 500), ("5", 0)] {
        run(async {
            const COUNT: usize = 20_000;
            let broker = broker(&format!("max_inflight_messages {in_flight}"));
            let pause = Rc::new(Cell::new(Duration::ZERO));
            let url = cutting_proxy(broker.port, Rc::clone(&pause)).await;
            let mut rig = Intake::start(&url, &format!("protocol = '{protocol}'"), Vec::new());
            rig.connected().await;
            // Let it be seen that this broker counts its packet ids up.
            let warm_up = publish(&broker, numbered(0..1000), &[]);
            rig.store_all(1000).await;
            warm_up.join().unwrap();
            pause.set(Duration::from_millis(60));
            let publisher = publish(&broker, numbered(1000..COUNT), &[]);
            let cuts = Rc::clone(&pause);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                cuts.set(Duration::ZERO);
            });
            rig.store_all(COUNT).await;
            publisher.join().unwrap();
            let reconnects = rig.status.reconnects.get();
            println!(
                "MQTT {protocol}, {in_flight} in flight: {reconnects} reconnects, {} redeliveries recognised, {} stored again",
                rig.status.repeats.get(),
                rig.repeats_stored()
            );
            assert!(reconnects >= 5, "{reconnects}");
            rig.assert_all(COUNT);
            // This broker counts its ids up; in doubt are only acknowledgements lost on the way long ago.
            assert!(rig.repeats_stored() < COUNT / 10, "{}", rig.repeats_stored());
        });
    }
}

#[test]
fn a_restarted_source_recognises_what_was_stored_but_not_acknowledged() {
    run(async {
        const COUNT: usize = 10_000;
        let broker = broker("");
        let url = format!("mqtt://127.0.0.1:{}", broker.port);
        let mut rig = Intake::start(&url, "", Vec::new());
        rig.connected().await;
        let publisher = publish(&broker, numbered(0..COUNT), &[]);
        while rig.stored.len() < 3000 {
            rig.commit_batch().await;
        }
        // Stored, and then the process dies before any of these acknowledgements leaves.
        let before = rig.stored.len();
        while rig.stored.len() < before + 50 {
            rig.messages.recv_many(&mut rig.stored, 50).await;
        }
        rig.source.abort();
        let stored = std::mem::take(&mut rig.stored);
        let resume: Vec<_> = stored.iter().filter_map(StoredPacket::of).collect();
        let mut rig = Intake::start(&url, "", resume);
        rig.stored = stored;
        rig.store_all(COUNT).await;
        publisher.join().unwrap();
        rig.assert_all(COUNT);
        assert_eq!(rig.repeats_stored(), 0);
        assert!(rig.status.repeats.get() >= 50, "{}", rig.status.repeats.get());
    });
}

#[test]
fn a_broker_that_lost_everything_is_subscribed_again_in_a_new_session() {
    run(async {
        let mut broker = broker("");
        let mut rig = Intake::start(&format!("mqtt://127.0.0.1:{}", broker.port), "", Vec::new());
        rig.connected().await;
        publish(&broker, numbered(0..10), &[]).join().unwrap();
        rig.store_all(10).await;
        broker.lose_everything();
        until("connected again", || rig.status.reconnects.get() == 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        publish(&broker, numbered(10..20), &[]).join().unwrap();
        rig.store_all(20).await;
        rig.assert_all(20);
        let sessions: Vec<u32> = rig
            .stored
            .iter()
            .map(|message| message.ack.unwrap().session)
            .collect();
        assert!(sessions[..10].iter().all(|session| *session == sessions[0]));
        assert!(
            sessions[10..].iter().all(|session| *session == sessions[0] + 1),
            "{sessions:?}"
        );
    });
}

#[test]
fn messages_of_all_sizes_come_and_large_ones_as_their_head() {
    for protocol in ["5", "3.1.1"] {
        run(async {
            let broker = broker("");
            let url = format!("mqtt://127.0.0.1:{}", broker.port);
            let mut rig = Intake::start(&url, &format!("protocol = '{protocol}'"), Vec::new());
            rig.connected().await;
            let sizes = [1, 100, 20_000, 262_144, 262_145, 3_000_000, 50];
            for size in sizes {
                publish(&broker, format!("{}\n", "x".repeat(size)), &[])
                    .join()
                    .unwrap();
            }
            while rig.stored.len() < sizes.len() {
                rig.commit_batch().await;
            }
            let seen: Vec<u64> = rig
                .stored
                .iter()
                .map(|message| match message.kind {
                    PayloadKind::Whole => message.payload.len() as u64,
                    PayloadKind::Truncated { length, .. } => {
                        assert_eq!(message.payload.len(), 4096);
                        length
                    }
                })
                .collect();
            assert_eq!(seen, sizes.map(|size| size as u64));
            assert_eq!(rig.status.oversize.get(), 2);
        });
    }
}

#[test]
fn a_backlog_far_above_the_window_is_taken_without_losing_the_connection() {
    for protocol in ["5", "3.1.1"] {
        run(async {
            const COUNT: usize = 40_000;
            let broker = broker("max_inflight_messages 500");
            let url = format!("mqtt://127.0.0.1:{}", broker.port);
            let members = format!("protocol = '{protocol}'");
            let rig = Intake::start(&url, &members, Vec::new());
            rig.connected().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            rig.source.abort();
            let pad = "x".repeat(250);
            let backlog = (0..COUNT).map(|number| format!("{{\"number\":{number},\"pad\":\"{pad}\"}}\n"));
            publish(&broker, backlog.collect(), &[]).join().unwrap();
            let mut rig = Intake::start(&url, &members, Vec::new());
            rig.store_all(COUNT).await;
            rig.assert_all(COUNT);
            assert_eq!(rig.repeats_stored(), 0);
            let status = &rig.status;
            assert_eq!(
                (status.reconnects.get(), status.closed_for_backpressure.get()),
                (0, 0)
            );
        });
    }
}
