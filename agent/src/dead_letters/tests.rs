//! Over the real store, mapping engine and outbox: what fails is sent again, once, and the accounts hold.

use super::*;
use crate::forward::Fate;
use crate::message::{Message, RevisionId};
use crate::packs::PackSet;
use crate::testing::{self, WARD, destination, run};
use std::path::Path;
use std::rc::Rc;

const FHIR: u32 = 1;
const HUB: u32 = 2;
const RAW: u32 = 3;

fn packs(rate: &str) -> Arc<PackSet> {
    two_packs(rate, "$.spot")
}

fn two_packs(rate: &str, spot: &str) -> Arc<PackSet> {
    testing::packs(&[("spot", spot), ("rate", rate)], None)
}

/// A mapping whose rate template asks for a value that the messages do not have, and the repaired one.
fn broken() -> Arc<PackSet> {
    packs("$.pulse")
}

fn repaired() -> Arc<PackSet> {
    packs("$.rate")
}

struct Ward {
    pipeline: Rc<Pipeline>,
    destinations: Rc<Destinations>,
    sources: HashMap<SourceId, Arc<str>>,
}

impl Ward {
    fn open(folder: &Path, packs: Arc<PackSet>) -> Ward {
        let handles = vec![
            destination(FHIR, false),
            destination(HUB, false),
            destination(RAW, true),
        ];
        Ward {
            pipeline: Rc::new(testing::open(folder, packs, handles.clone())),
            destinations: Rc::new(Destinations(handles)),
            sources: HashMap::from([(WARD, Arc::from("ward"))]),
        }
    }

    fn letters(&self) -> DeadLetters<'_> {
        DeadLetters {
            pipeline: &self.pipeline,
            destinations: &self.destinations,
            sources: &self.sources,
        }
    }

    async fn take(&self, texts: &[&str]) {
        let pipeline = &self.pipeline;
        let revision = pipeline.packs.borrow().current(WARD);
        let batch = texts.iter().map(|text| (message(text), revision)).collect();
        testing::take(pipeline, batch, 0).await;
        // The destination for raw messages has taken all.
        let mut outbox = pipeline.outbox.borrow_mut();
        let raw = outbox.destination_mut(RAW);
        let new = pipeline.head.get() - 1 - raw.cursor;
        raw.cursor += new;
        raw.matches += new;
        raw.delivered += new;
    }

    /// Gives every due reading of a destination this fate; tells which they were: position, match number, type.
    async fn settle(&self, destination: u32, fate: Fate) -> Vec<(u64, u32, String)> {
        testing::settle(&self.pipeline, destination, None, fate).await
    }

    /// (delivered, due, dead, lost) of a destination; the equation holds.
    fn account(&self, destination: u32) -> (u64, u64, u64, u64) {
        let outbox = self.pipeline.outbox.borrow();
        let d = &outbox.progress().destinations[&destination];
        let (due, waiting) = outbox.backlog(destination);
        assert_eq!(
            d.matches,
            d.delivered + d.superseded + due + waiting + d.dead + d.lost,
            "destination {destination}"
        );
        let progress = outbox.progress();
        assert_eq!(
            progress.messages,
            progress.matched + progress.unmatched + progress.unparsable
        );
        (d.delivered, due + waiting, d.dead, d.lost)
    }
}

fn message(text: &str) -> Message {
    Message {
        topic: Some(Arc::from("wearables/canary/telemetry")),
        ..testing::message(text.to_owned(), 0)
    }
}

const BOTH: &str = r#"{"device":"canary","time":"2026-11-21T10:00:00Z","rate":60,"spot":97}"#;
const SPOT: &str = r#"{"device":"canary","time":"2026-11-21T10:00:01Z","spot":96}"#;

fn all() -> Selection {
    Selection {
        all: true,
        ..Selection::default()
    }
}

fn refused() -> Fate {
    Fate::Dead(ErrorRecord::new(
        "InvalidQuantityFhirValueException",
        "refused by the server",
    ))
}

#[test]
fn a_failed_match_is_sent_with_the_repaired_mapping_once_and_what_was_sent_before_is_not() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let ward = Ward::open(folder.path(), broken());
        ward.take(&[BOTH, SPOT]).await;
        assert_eq!(ward.account(FHIR), (0, 2, 1, 0));
        ward.settle(FHIR, Fate::Delivered).await;
        // Not repaired: it fails again, and is the same letter.
        let again = ward.letters().redrive(&all()).await.unwrap();
        assert_eq!((again.redriven, again.kept.len()), (0, 1));
        assert_eq!(ward.account(FHIR), (2, 0, 1, 0));
        drop(ward);

        let ward = Ward::open(folder.path(), repaired());
        let done = ward.letters().redrive(&all()).await.unwrap();
        assert_eq!((done.redriven, done.readings, done.kept.len()), (1, 1, 0));
        let twice = ward.letters().redrive(&all()).await.unwrap();
        assert_eq!(twice, Redriven::default(), "redriven twice is redriven once");
        assert_eq!(ward.account(FHIR), (2, 1, 0, 0));
        assert_eq!(ward.account(HUB), (0, 3, 0, 0));
        drop(ward);
        // The process ends: rows and letters are as they were.
        let ward = Ward::open(folder.path(), repaired());
        assert_eq!(ward.account(FHIR), (2, 1, 0, 0));
        let sent = ward.settle(FHIR, Fate::Delivered).await;
        let revision = ward.pipeline.packs.borrow().current(WARD);
        let number = crate::normalize::number_of_revision(1, revision);
        assert_eq!(sent, [(1, number, "rate".to_owned())]);
        assert_eq!(ward.account(FHIR), (3, 0, 0, 0));
    });
}

#[test]
fn a_repaired_template_is_redriven_while_another_of_the_same_message_still_fails_alike() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let both_broken = two_packs("$.pulse", "$.saturation");
        let ward = Ward::open(folder.path(), both_broken);
        ward.take(&[BOTH]).await;
        assert_eq!(ward.account(FHIR), (0, 0, 2, 0));
        let one_repaired = two_packs("$.rate", "$.saturation");
        ward.pipeline.packs.borrow_mut().set_current(WARD, one_repaired);
        let done = ward.letters().redrive(&all()).await.unwrap();
        assert_eq!((done.redriven, done.readings, done.kept.len()), (1, 1, 1));
        assert_eq!(ward.account(FHIR), (0, 1, 1, 0));
        let sent = ward.settle(FHIR, Fate::Delivered).await;
        assert_eq!((sent.len(), sent[0].2.as_str()), (1, "rate"));
    });
}

#[test]
fn a_refused_reading_goes_to_its_destination_again_under_its_position_and_number() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let ward = Ward::open(folder.path(), repaired());
        ward.take(&[BOTH, SPOT]).await;
        let first = ward.settle(FHIR, refused()).await;
        ward.settle(HUB, Fate::Delivered).await;
        assert_eq!(ward.account(FHIR), (0, 0, 3, 0));
        let views = ward.letters().list(&Selection::default(), true).await.unwrap();
        let ids: Vec<u64> = views[0].letters.iter().map(|l| l.id).collect();
        assert_eq!((views.len(), ids.len()), (1, 3));
        let one = Selection {
            ids: vec![ids[0]],
            ..Selection::default()
        };
        assert_eq!(ward.letters().redrive(&one).await.unwrap().redriven, 1);
        assert_eq!(ward.account(FHIR), (0, 1, 2, 0));
        assert_eq!(ward.letters().redrive(&all()).await.unwrap().redriven, 2);
        assert_eq!(ward.settle(FHIR, refused()).await, first, "the same event ids");
        assert_eq!(ward.account(FHIR), (0, 0, 3, 0));
        assert_eq!(ward.account(HUB), (3, 0, 0, 0));
        // The mapping changes; the type is found again.
        drop(ward);
        let ward = Ward::open(folder.path(), packs("$['rate']"));
        assert_eq!(
            ward.account(FHIR),
            (0, 3, 0, 0),
            "the redrive was committed, the refusal was not"
        );
        ward.settle(FHIR, refused()).await;
        assert_eq!(ward.letters().redrive(&all()).await.unwrap().readings, 3);
        let types: Vec<_> = ward
            .settle(FHIR, Fate::Delivered)
            .await
            .into_iter()
            .map(|s| (s.0, s.2))
            .collect();
        assert_eq!(
            types,
            [
                (1, "spot".to_owned()),
                (1, "rate".to_owned()),
                (2, "spot".to_owned())
            ]
        );
        assert_eq!(ward.account(FHIR), (3, 0, 0, 0));
    });
}

#[test]
fn a_message_that_the_journal_has_dropped_is_put_back_for_its_letter() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let ward = Ward::open(folder.path(), broken());
        ward.take(&[BOTH]).await;
        for destination in [FHIR, HUB] {
            ward.settle(destination, Fate::Delivered).await;
        }
        for hour in 1..4_u64 {
            let batch = vec![(message(SPOT), RevisionId(1))];
            let appended = ward
                .pipeline
                .store
                .call(move |store| store.append(&batch, &[], None, hour * 3_600_000_001, 0))
                .await;
            appended.unwrap();
        }
        ward.letters().commit().await.unwrap();
        let dropped = ward
            .pipeline
            .store
            .call(|store| store.reclaim(&[1, 2], None, None, 0))
            .await;
        dropped.unwrap();
        ward.pipeline.head.set(5);
        assert!(ward.pipeline.read(1).await.unwrap()[0].stored.position > 1);
        ward.pipeline.packs.borrow_mut().set_current(WARD, repaired());
        assert_eq!(ward.letters().redrive(&all()).await.unwrap().readings, 1);
        assert_eq!(ward.settle(FHIR, Fate::Delivered).await.len(), 1);
        assert_eq!(ward.account(FHIR), (2, 0, 0, 0));
    });
}

#[test]
fn a_raw_message_that_a_hub_did_not_take_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let ward = Ward::open(folder.path(), repaired());
        ward.take(&[BOTH]).await;
        {
            let stored = Arc::clone(&ward.pipeline.read(1).await.unwrap()[0].stored);
            let mut outbox = ward.pipeline.outbox.borrow_mut();
            let raw = outbox.destination_mut(RAW);
            (raw.delivered, raw.dead) = (0, 1);
            outbox.dead(crate::store::DeadLetter {
                destination: Some(RAW),
                match_number: None,
                stage: "forward",
                error: ErrorRecord::new("EventTooLargeException", "too large"),
                revision: stored.revision,
                counted: Arc::from([RAW]),
                message: stored,
            });
        }
        assert_eq!(ward.account(RAW), (0, 0, 1, 0));
        assert_eq!(ward.letters().redrive(&all()).await.unwrap().readings, 1);
        assert_eq!(ward.account(RAW), (0, 1, 0, 0));
        let sent = ward.settle(RAW, refused()).await;
        assert_eq!((sent.len(), sent[0].0), (1, 1));
        let view = ward.letters().list(&Selection::default(), true).await.unwrap();
        assert_eq!((view[0].letters[0].match_number, view.len()), (None, 1));
        ward.letters().redrive(&all()).await.unwrap();
        ward.settle(RAW, Fate::Delivered).await;
        assert_eq!(ward.account(RAW), (1, 0, 0, 0));
    });
}

#[test]
fn what_is_no_json_stays_a_letter_and_a_letter_that_no_template_matches_any_more_is_unmatched() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let ward = Ward::open(folder.path(), broken());
        ward.take(&[
            "no json",
            r#"{"device":"canary","time":"2026-11-21T10:00:00Z","rate":60}"#,
        ])
        .await;
        let nothing = testing::packs(&[], None);
        ward.pipeline.packs.borrow_mut().set_current(WARD, nothing);
        let done = ward.letters().redrive(&all()).await.unwrap();
        assert_eq!((done.redriven, done.unmatched, done.kept.len()), (1, 1, 1));
        assert_eq!(done.kept[0].error.name, "InvalidDataFormatException");
        assert_eq!(ward.account(FHIR), (0, 0, 0, 0));
        let runs: Vec<_> = ward.pipeline.outbox.borrow().unmatched().cloned().collect();
        assert_eq!((runs.len(), runs[0].first), (1, 2));
    });
}

#[test]
fn a_dropped_letter_is_lost_with_a_ledger_line_and_payloads_show_only_on_request() {
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let ward = Ward::open(folder.path(), broken());
        ward.take(&[BOTH]).await;
        let letters = ward.letters();
        let listed = letters
            .answer(&LetterQuestion::List {
                which: all(),
                each: true,
            })
            .await;
        let shown = letters
            .answer(&LetterQuestion::Show {
                id: 1,
                payload: false,
            })
            .await;
        for answer in [&listed, &shown] {
            assert!(
                answer.contains("IncompatibleDataException") && !answer.contains("canary"),
                "{answer}"
            );
        }
        let with = letters
            .answer(&LetterQuestion::Show { id: 1, payload: true })
            .await;
        assert!(with.contains("wearables/canary/telemetry") && with.contains("\\\"rate\\\":60"));
        assert_eq!(
            letters
                .answer(&LetterQuestion::Show { id: 9, payload: true })
                .await,
            "null"
        );
        let which = Selection {
            cause: Some("Incompatible".to_owned()),
            ..Selection::default()
        };
        assert_eq!(letters.drop(&which).await.unwrap(), 1);
        assert_eq!(letters.drop(&which).await.unwrap(), 0);
        assert_eq!(ward.account(FHIR), (0, 1, 0, 1));
        let ledger = ward.pipeline.store.call(|store| store.ledger()).await.unwrap();
        assert_eq!(ledger.len(), 2, "one for each destination");
        assert!(
            ledger[0].1.starts_with("dropped by the operator: normalize|"),
            "{ledger:?}"
        );
    });
}
