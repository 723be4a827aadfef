//! Dead letters of a store that cannot be read while they are settled: the files are really away, or really damaged.

use super::super::context::Context;
use super::super::link::LinkState;
use super::super::pass::{Readings, pass};
use super::super::{Delivery, Fate, Group, Link};
use crate::message::{Message, Position, RevisionId};
use crate::pipeline::Pipeline;
use crate::store::Trouble;
use crate::telemetry::errors::ErrorRecord;
use crate::testing::{self, destination, run};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const SERVER: u32 = 1;
const MESSAGES: u64 = 3;

/// A server that refuses the readings of some messages for good, and during whose first answer the disk goes away.
struct Server {
    refuses: &'static [Position],
    goes_away: Option<(Rc<Pipeline>, PathBuf)>,
    asked: usize,
}

impl Readings for Server {
    async fn deliver(&mut self, groups: Vec<Group>) -> Delivery {
        let fate = |at: Position| match self.refuses.contains(&at) {
            true => Fate::Dead(ErrorRecord::new("Refused", "by the server")),
            false => Fate::Delivered,
        };
        let fates: Vec<Vec<Fate>> = groups
            .iter()
            .map(|group| group.readings.iter().map(|one| fate(one.position)).collect())
            .collect();
        self.asked += fates.iter().map(Vec::len).sum::<usize>();
        if let Some((pipeline, folder)) = self.goes_away.take() {
            let closed = pipeline.store.call(|store| store.close_files(Trouble::Failing));
            closed.await.unwrap();
            std::fs::rename(folder.join("store.db"), folder.join("away")).unwrap();
        }
        Delivery {
            fates,
            sent_periods: Vec::new(),
            link: Link::Up,
            written: 0,
        }
    }
}

fn bring_back(folder: &Path) {
    std::fs::rename(folder.join("away"), folder.join("store.db")).unwrap();
}

/// Readings of one device in one row, and one pass during which the disk goes away.
async fn first_pass(folder: &Path, refuses: &'static [Position]) -> (Context, Server) {
    let packs = testing::packs(&[("hr", "$.hr")], None);
    let pipeline = Rc::new(testing::open(folder, packs, vec![destination(SERVER, false)]));
    let batch: Vec<(Message, RevisionId)> = (1..=MESSAGES)
        .map(|n| {
            let text = format!(r#"{{"device":"d1","time":"2026-09-21T14:13:2{n}Z","hr":{n}}}"#);
            (testing::message(text, 0), RevisionId(1))
        })
        .collect();
    testing::take(&pipeline, batch, 0).await;
    let (_, stop) = tokio::sync::watch::channel(false);
    let context = Context {
        pipeline: Rc::clone(&pipeline),
        handle: destination(SERVER, false),
        link: Rc::new(LinkState::default().into()),
        sources: Rc::new(HashMap::new()),
        max_wait: i64::MAX,
        stop,
    };
    let mut server = Server {
        refuses,
        goes_away: Some((pipeline, folder.to_owned())),
        asked: 0,
    };
    assert_eq!(again(&context, &mut server).await, Link::Up);
    assert_eq!(server.asked, 3);
    (context, server)
}

/// One more pass over everything that is unsent.
async fn again(context: &Context, server: &mut Server) -> Link {
    let due = context.pipeline.outbox.borrow().due(SERVER, u64::MAX);
    pass(context, server, &due).await.unwrap()
}

/// Delivered, dead, lost, and unsent.
fn counted(context: &Context) -> (u64, u64, u64, u64) {
    let outbox = context.pipeline.outbox.borrow();
    let of_server = &outbox.progress().destinations[&SERVER];
    let unsent = outbox.backlog(SERVER).0;
    let counts = (of_server.delivered, of_server.dead, of_server.lost, unsent);
    assert_eq!(of_server.matches, counts.0 + counts.1 + counts.2 + counts.3);
    counts
}

#[test]
fn a_dead_letter_whose_message_cannot_be_read_now_is_tried_again_with_it() {
    for refuses in [&[1, 2, 3][..], &[2]] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let (context, mut server) = first_pass(folder.path(), refuses).await;
            let dead = refuses.len() as u64;
            // The others are accounted for, whatever the disk does.
            assert_eq!(counted(&context), (MESSAGES - dead, 0, 0, dead));
            // What became of none of it is still one range, and not named reading by reading.
            let due = context.pipeline.outbox.borrow().due(SERVER, u64::MAX);
            assert_eq!(due.len(), 1);
            assert_eq!(due[0].row.refs.is_none(), dead == MESSAGES, "{:?}", due[0].row);
            assert!(due[0].tries > 0, "after a pause");

            bring_back(folder.path());
            assert_eq!(again(&context, &mut server).await, Link::Up);
            assert_eq!(counted(&context), (MESSAGES - dead, dead, 0, 0));
            let changes = context.pipeline.outbox.borrow_mut().take_changes();
            let letters = changes.dead_letters.iter().map(|(_, letter)| &letter.message);
            let letters: Vec<_> = letters
                .map(|stored| (stored.position, stored.message.payload.bytes().to_vec()))
                .collect();
            let expected = refuses.iter().map(|n| {
                let text = format!(r#"{{"device":"d1","time":"2026-09-21T14:13:2{n}Z","hr":{n}}}"#);
                (*n, text.into_bytes())
            });
            assert_eq!(letters, expected.collect::<Vec<_>>());
        });
    }
}

#[test]
fn a_dead_letter_whose_message_is_gone_for_good_is_lost_and_said_by_the_next_pass() {
    for refuses in [&[1, 2, 3][..], &[2]] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let (context, mut server) = first_pass(folder.path(), refuses).await;
            let dead = refuses.len() as u64;
            bring_back(folder.path());
            let raw = rusqlite::Connection::open(folder.path().join("store.db")).unwrap();
            let damage = "UPDATE journal_1 SET batch = zeroblob(length(batch))";
            assert_eq!(raw.execute(damage, []).unwrap(), 1);
            drop(raw);

            assert_eq!(again(&context, &mut server).await, Link::Up);
            assert_eq!(counted(&context), (MESSAGES - dead, 0, dead, 0));
            assert_eq!(server.asked, 3, "nothing is left that could be sent");
            let changes = context.pipeline.outbox.borrow_mut().take_changes();
            let losses: Vec<_> = changes
                .losses
                .iter()
                .map(|loss| (loss.count, &*loss.reason))
                .collect();
            assert_eq!(losses, [(dead, "damaged in the journal")]);
        });
    }
}
