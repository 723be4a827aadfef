//! The same destination over a scripted wire of AMQP.

use super::*;

/// A wire that answers what it is told, one after the other, and keeps what it got.
struct ScriptedWire {
    answers: RefCell<Vec<amqp::Answer>>,
    seen: Rc<RefCell<Vec<amqp::Publication>>>,
}

impl amqp::Wire for ScriptedWire {
    fn publish(
        &self,
        publication: amqp::Publication,
    ) -> std::pin::Pin<Box<dyn Future<Output = amqp::Answer> + '_>> {
        self.seen.borrow_mut().push(publication);
        let mut answers = self.answers.borrow_mut();
        let answer = match answers.is_empty() {
            true => amqp::Answer::Accepted,
            false => answers.remove(0),
        };
        Box::pin(std::future::ready(answer))
    }
}

#[test]
fn over_amqp_the_same_events_leave_and_the_refused_one_is_found() {
    let mut bench = Bench::new(|_| {}, |_| panic!("nothing goes over HTTPS"));
    let seen = Rc::default();
    let refused = || amqp::Answer::Rejected(None);
    *bench.destination.sender.wire_mut() = Some(Box::new(ScriptedWire {
        // Four events, the first two, the first alone; then the second is the one.
        answers: RefCell::new(vec![
            amqp::Answer::Accepted,
            refused(),
            refused(),
            amqp::Answer::Accepted,
            refused(),
        ]),
        seen: Rc::clone(&seen),
    }));
    bench.deliver(numbered(1));
    let delivery = bench.deliver(numbered(4));
    assert_eq!(dead(&delivery.fates), [1]);
    assert_eq!(delivery.link, Link::Up);
    let bodies: Vec<Vec<String>> = seen
        .borrow()
        .iter()
        .map(|publication| {
            let elements: Vec<Value> = serde_json::from_slice(&publication.body).unwrap();
            assert_eq!(publication.partition_key.as_deref(), Some("bed-12"));
            elements
                .iter()
                .map(|e| e["Body"].as_str().unwrap().to_owned())
                .collect()
        })
        .collect();
    assert_eq!(
        bodies,
        [
            vec!["1"],
            vec!["1", "2", "3", "4"],
            vec!["1", "2"],
            vec!["1"],
            vec!["2"],
            vec!["3", "4"]
        ]
    );
}

#[test]
fn a_token_that_cbs_refuses_is_renewed_once() {
    let mut bench = Bench::new(|_| {}, |_| panic!("nothing goes over HTTPS"));
    let seen = Rc::default();
    let refused = || amqp::Answer::TokenRefused {
        status: 401,
        description: "InvalidSignature".to_owned(),
    };
    *bench.destination.sender.wire_mut() = Some(Box::new(ScriptedWire {
        answers: RefCell::new(vec![refused(), refused()]),
        seen: Rc::clone(&seen),
    }));
    clock::simulate(stamp().wall, async move {
        // The same key gives the same token: it is not tried again.
        let delivery = bench.destination.deliver_messages(numbered(1)).await;
        assert_eq!(seen.borrow().len(), 1);
        assert!(matches!(delivery.link, Link::Down { error, .. } if error.text.contains("InvalidSignature")));
        // Another key does, once.
        std::fs::write(bench.key.path(), "new").unwrap();
        let delivery = bench.destination.deliver_messages(numbered(1)).await;
        assert_eq!((delivery.link, seen.borrow().len()), (Link::Up, 3));
    })
    .unwrap();
}
