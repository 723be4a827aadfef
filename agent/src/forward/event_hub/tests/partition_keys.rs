//! Order and concurrency by partition key.

use super::*;

#[test]
fn with_the_device_as_partition_key_every_device_keeps_its_order() {
    let mut bench = Bench::new(
        |config| config.partition_key = PartitionKey::Device,
        |_| response(201),
    );
    let messages = (0..6)
        .map(|n| message(n, n.to_string().as_bytes(), ["a", "b"][n as usize % 2]))
        .collect();
    assert_eq!(bench.deliver(messages).fates, vec![Fate::Delivered; 6]);
    let seen = bench.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(bodies(&seen[0]), ["0", "2", "4"]);
    assert_eq!(bodies(&seen[1]), ["1", "3", "5"]);
    assert!(
        seen[1]
            .headers
            .contains(&("brokerproperties", "{\"PartitionKey\":\"b\"}".to_owned()))
    );
}

/// Answers after a pause; notes how many were open, of each key and of all.
struct Slow(Mutex<(HashMap<String, usize>, usize, usize, usize)>);

#[allow(clippy::disallowed_methods, reason = "an answer that takes its time")]
impl HttpClient for Slow {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let key = request
            .headers
            .iter()
            .find(|(name, _)| *name == "brokerproperties");
        let key = key.map(|(_, value)| value.clone()).unwrap_or_default();
        {
            let mut open = self.0.lock().unwrap();
            let of_key = open.0.entry(key.clone()).or_default();
            *of_key += 1;
            open.2 = open.2.max(open.0[&key]);
            open.1 += 1;
            open.3 = open.3.max(open.1);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut open = self.0.lock().unwrap();
        open.1 -= 1;
        *open.0.get_mut(&key).unwrap() -= 1;
        response(201)
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "threads that wait in real time")]
fn several_devices_are_sent_at_the_same_time_and_each_has_one_request_in_flight() {
    let (mut config, _key) = configuration();
    config.partition_key = PartitionKey::Device;
    config.max_batch_bytes = 3000;
    let slow = Arc::new(Slow(Mutex::default()));
    let http = Http {
        client: Arc::clone(&slow) as Arc<dyn HttpClient>,
        ..http_of("test", &config).unwrap()
    };
    let hub =
        EventHubDestination::new(&config, origin(), ClockTrust::Always, http.clone(), http, None).unwrap();
    let messages: Vec<RawMessage> = (0..60)
        .map(|n| message(n, &[b'x'; 200], ["a", "b", "c", "d", "e", "f"][n as usize % 6]))
        .collect();
    let delivery = block_on(hub.deliver_messages(messages));
    assert_eq!(delivery.fates, vec![Fate::Delivered; 60]);
    let open = slow.0.lock().unwrap();
    assert_eq!((open.2, open.3), (1, KEYS_AT_ONCE), "of one key, of all");
}

#[test]
fn a_device_that_cannot_be_reached_leaves_what_other_devices_have_sent() {
    let mut bench = Bench::new(
        |config| config.partition_key = PartitionKey::Device,
        |request| response(if bodies(request)[0] == "1" { 503 } else { 201 }),
    );
    let messages = (0..6)
        .map(|n| message(n, n.to_string().as_bytes(), ["a", "b", "c"][n as usize % 3]))
        .collect();
    let delivery = bench.deliver(messages);
    assert!(matches!(delivery.link, Link::Down { .. }));
    assert_eq!(delivery.fates[0], Fate::Delivered);
    assert_eq!([&delivery.fates[1], &delivery.fates[4]], [&Fate::Retry; 2]);
}

#[test]
fn a_publisher_is_in_address_and_signature_and_no_other_partition_key_is_named() {
    let mut bench = Bench::new(
        |config| config.publisher = Some("bed-12".to_owned()),
        |_| response(201),
    );
    assert_eq!(bench.deliver(numbered(2)).link, Link::Up);
    let seen = bench.seen();
    assert_eq!(
        seen[0].url,
        "https://ward.servicebus.windows.net/devicedata/publishers/bed-12/messages?timeout=60&api-version=2014-01"
    );
    let token = seen[0].authorization.as_ref().unwrap();
    assert!(
        token.contains("sr=https%3A%2F%2Fward.servicebus.windows.net%2Fdevicedata%2Fpublishers%2Fbed-12&")
    );
    assert!(
        seen[0]
            .headers
            .iter()
            .all(|(name, _)| *name != "brokerproperties")
    );
}
