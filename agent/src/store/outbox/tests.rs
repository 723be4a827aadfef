use super::settle::retry_pause_us;
use super::*;
use crate::message::RevisionId;
use crate::message::{Message, Payload, PayloadKind, Stamp};
use iomt_mapping::Timestamp;

pub(super) fn stored(position: Position) -> Arc<StoredMessage> {
    let stamp = Stamp {
        boot: 1,
        monotonic_us: 0,
        wall: Timestamp::from_ticks(0).unwrap(),
        trusted: true,
    };
    Arc::new(StoredMessage {
        position,
        revision: RevisionId(1),
        message: Message {
            source: SourceId(1),
            stamp,
            payload: Payload::default(),
            kind: PayloadKind::Whole,
            topic: None,
            properties: Vec::new(),
            device_id: None,
            possible_repeat: false,
            record: None,
            ack: None,
        },
    })
}

fn settled(row: u64, position: Position, fate: Fate) -> Settled {
    Settled {
        row,
        position,
        match_number: 0,
        fate,
        message: Some(stored(position)),
    }
}

/// Invariant 1.
fn balance(outbox: &Outbox, destination: u32) {
    let p = &outbox.progress().destinations[&destination];
    let (due, waiting) = outbox.backlog(destination);
    assert_eq!(
        p.matches,
        p.delivered + p.superseded + p.dead + p.lost + due + waiting
    );
}

#[test]
fn a_backlog_of_a_device_is_one_row_and_every_match_is_accounted_for() {
    let mut outbox = Outbox::default();
    for position in 1..=1000 {
        outbox.add(7, 0, None, position, 5, 0);
    }
    let due = outbox.due(7, 0);
    assert_eq!(
        (due.len(), due[0].row.first, due[0].row.last, due[0].row.count),
        (1, 1, 1000, 1000)
    );
    let row = due[0].row.id;
    let mut outcomes: Vec<Settled> = (1..=400).map(|p| settled(row, p, Fate::Delivered)).collect();
    outcomes[3].fate = Fate::Dead(ErrorRecord::new(
        "InvalidQuantityFhirValueException",
        "no decimal",
    ));
    outcomes[4].fate = Fate::Waiting(ErrorRecord::new("DeviceNotFoundException", "register it"));
    outcomes[5].fate = Fate::Retry;
    outcomes[6].fate = Fate::Superseded;
    outbox.settle(7, &HashMap::from([(row, 400)]), outcomes, 0);
    balance(&outbox, 7);
    assert_eq!(outbox.backlog(7), (601, 1));
    let rest = outbox.due(7, 1_000_000);
    assert_eq!(
        rest.iter()
            .map(|p| (p.row.first, p.row.count))
            .collect::<Vec<_>>(),
        [(6, 1), (401, 600)]
    );
    // The reading that waits comes again later, and leaves when it is delivered.
    let waiting = outbox
        .due(7, u64::MAX)
        .into_iter()
        .find(|p| p.row.waiting.is_some())
        .unwrap();
    outbox.settle(
        7,
        &HashMap::new(),
        vec![settled(waiting.row.id, 5, Fate::Delivered)],
        0,
    );
    balance(&outbox, 7);
    assert_eq!(outbox.backlog(7), (601, 0));
}

#[test]
fn a_row_that_grew_during_its_delivery_keeps_what_came_meanwhile() {
    let mut outbox = Outbox::default();
    outbox.add(1, 0, Some(0), 10, 0, 0);
    let row = outbox.due(1, 0)[0].row.id;
    outbox.add(1, 0, Some(0), 11, 0, 0);
    outbox.settle(
        1,
        &HashMap::from([(row, 10)]),
        vec![settled(row, 10, Fate::Delivered)],
        0,
    );
    let due = outbox.due(1, 0);
    assert_eq!((due[0].row.first, due[0].row.last, due[0].row.count), (11, 11, 1));
    balance(&outbox, 1);
}

#[test]
fn nothing_is_settled_while_the_destination_is_away() {
    let mut outbox = Outbox::default();
    outbox.add(1, 0, None, 10, 0, 0);
    let before = outbox.due(1, 0)[0].row.clone();
    outbox.settle(
        1,
        &HashMap::from([(before.id, 10)]),
        vec![settled(before.id, 10, Fate::Retry)],
        0,
    );
    assert!(outbox.due(1, 0).is_empty(), "it rests before the next try");
    assert_eq!(outbox.due(1, retry_pause_us(1))[0].row, before);
}

#[test]
fn what_the_journal_no_longer_holds_is_lost_and_said() {
    let mut outbox = Outbox::default();
    for position in 1..=5 {
        outbox.add(1, 0, None, position, 0, 0);
    }
    let row = outbox.due(1, 0)[0].row.id;
    outbox.settle(
        1,
        &HashMap::from([(row, 5)]),
        vec![settled(row, 5, Fate::Delivered)],
        0,
    );
    balance(&outbox, 1);
    let changes = outbox.take_changes();
    assert_eq!(changes.losses[0].count, 4);
    assert_eq!(outbox.progress().destinations[&1].lost, 4);
}

#[test]
fn a_failed_commit_is_written_by_the_next_one() {
    let mut outbox = Outbox::default();
    outbox.add(1, 0, None, 1, 0, 0);
    let first = outbox.take_changes();
    outbox.not_written();
    outbox.add(1, 0, None, 2, 0, 0);
    let second = outbox.take_changes();
    assert_eq!(first.rows.len(), 1);
    assert_eq!((second.rows.len(), second.rows[0].last), (1, 2));
    outbox.written();
    assert!(!outbox.has_changes());
}

#[test]
fn runs_of_unmatched_messages_end_where_one_matches() {
    let mut outbox = Outbox::default();
    for position in [1, 2, 3] {
        outbox.note_unmatched(&stored(position), false);
    }
    outbox.note_matched(SourceId(1));
    outbox.note_unmatched(&stored(9), false);
    let runs: Vec<_> = outbox.unmatched().map(|r| (r.first, r.last, r.count)).collect();
    assert_eq!(runs, [(1, 3, 3), (9, 9, 1)]);
    assert_eq!(outbox.needed_from(&[]), 1);
}

#[test]
fn readings_of_a_device_that_is_not_registered_wait_in_few_rows() {
    let mut outbox = Outbox::default();
    for position in 1..=1200 {
        outbox.add(1, 0, None, position, 0, 0);
        let due = outbox.due(1, 0);
        let row = due.iter().find(|p| p.row.waiting.is_none()).unwrap().row.id;
        outbox.begin_pass(1, due.iter().map(|p| p.row.id).collect());
        let waits = Fate::Waiting(ErrorRecord::new("DeviceNotFoundException", "register it"));
        outbox.settle(
            1,
            &HashMap::from([(row, position)]),
            vec![settled(row, position, waits)],
            0,
        );
        balance(&outbox, 1);
    }
    assert_eq!(outbox.backlog(1), (0, 1200));
    let rows = outbox.due(1, u64::MAX);
    assert_eq!(rows.len(), 3);
    // The device is registered: all of them leave, each once.
    let ids: Vec<u64> = rows.iter().map(|p| p.row.id).collect();
    outbox.begin_pass(1, ids.iter().copied().collect());
    let delivered: Vec<Settled> = rows
        .iter()
        .flat_map(|p| {
            p.row
                .refs
                .iter()
                .flat_map(|refs| refs.iter())
                .map(|(at, _)| (p.row.id, *at))
        })
        .map(|(id, at)| settled(id, at, Fate::Delivered))
        .collect();
    assert_eq!(delivered.len(), 1200);
    outbox.settle(
        1,
        &ids.iter().map(|id| (*id, Position::MAX)).collect(),
        delivered,
        0,
    );
    balance(&outbox, 1);
    assert_eq!(outbox.backlog(1), (0, 0));
}

#[test]
fn nothing_joins_a_row_that_a_pass_has_in_its_hands() {
    let mut outbox = Outbox::default();
    let error = || ErrorRecord::new("DeviceNotFoundException", "register it");
    outbox.add_waiting(1, 0, vec![(1, 0)], None, error(), 0, 0);
    let id = outbox.due(1, u64::MAX)[0].row.id;
    outbox.begin_pass(1, HashSet::from([id]));
    outbox.add_waiting(1, 0, vec![(2, 0)], None, error(), 0, 0);
    outbox.settle(
        1,
        &HashMap::from([(id, 1)]),
        vec![settled(id, 1, Fate::Delivered)],
        0,
    );
    balance(&outbox, 1);
    assert_eq!(outbox.backlog(1), (0, 1));
}
