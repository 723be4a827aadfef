//! `mapping-bench [SECONDS]`: messages per CPU-second that the mapping engine normalizes, from the bytes of the payload to
//! measurements, for several numbers of templates, shapes of messages and both languages. One JSON line comes last.
//!
//! `mapping-bench --count N SCENARIO` normalizes one scenario N times and measures nothing: for callgrind (instructions per
//! message) and memcheck (allocations per message), see `tests/bench/mapping`.

use std::collections::BTreeMap;
use std::hint::black_box;

use iomt_mapping::{DeviceMapping, Envelope, PropertyValue, Timestamp};
use serde_json::{Value, json};

/// One mapping and one payload.
struct Scenario {
    name: String,
    mapping: DeviceMapping,
    payload: Vec<u8>,
    /// Measurements that it must give.
    measurements: usize,
}

impl Scenario {
    fn new(name: &str, templates: &[Value], payload: &Value, measurements: usize) -> Scenario {
        let text = json!({ "templateType": "CollectionContent", "template": templates }).to_string();
        let (mapping, findings) = DeviceMapping::load(&text);
        let Some(mapping) = mapping else {
            fail(&format!("{name}: {findings:?}"))
        };
        Scenario {
            name: name.to_owned(),
            mapping,
            payload: payload.to_string().into_bytes(),
            measurements,
        }
    }

    /// Normalizes the payload once; the number of measurements.
    fn run(&self) -> usize {
        let envelope = Envelope {
            body: black_box(&self.payload),
            properties: &[("topic", PropertyValue::Text("wearables/bed-12/telemetry"))],
            system_properties: &[
                ("iothub-connection-device-id", PropertyValue::Text("bed-12")),
                ("iothub-enqueuedtime", PropertyValue::Time(Timestamp::MAX)),
            ],
        };
        match envelope.parse() {
            Ok(message) => black_box(self.mapping.normalize(&message)).matches.len(),
            Err(error) => fail(&error.text),
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("mapping-bench: {message}");
    std::process::exit(2)
}

fn reading(extra: Value) -> Value {
    let mut reading = json!({
        "deviceId": "bed-12-monitor", "patientId": "p-4711", "endDate": "2026-11-21T10:15:30.250Z", "heartRate": 78,
        "spo2": 97.50, "battery": 0.83, "firmware": "4.2.1", "sequence": 182_734, "ward": "ICU-3",
        "quality": { "signal": "good", "leads": [true, true, false] }, "unit": "/min",
        "note": "routine measurement of the night shift",
    });
    if let (Some(reading), Value::Object(extra)) = (reading.as_object_mut(), extra) {
        reading.extend(extra);
    }
    reading
}

fn template(type_name: &str, type_match: Value, value: Value, timestamp: &str, device: &str) -> Value {
    json!({ "templateType": "CalculatedContent", "template": {
        "typeName": type_name, "typeMatchExpression": type_match, "deviceIdExpression": device,
        "timestampExpression": timestamp, "patientIdExpression": "$.matchedToken.patientId",
        "values": [ { "valueName": "v", "valueExpression": value, "required": true } ],
    } })
}

fn jsonpath(member: &str) -> Value {
    let type_match = json!(format!("$..[?(@{member})]"));
    let value = json!(format!("$.matchedToken.{member}"));
    template(
        member,
        type_match,
        value,
        "$.matchedToken.endDate",
        "$.matchedToken.deviceId",
    )
}

fn jmespath(member: &str) -> Value {
    let language = |text: String| json!({ "value": text, "language": "JmesPath" });
    let type_match = language(format!("to_array(Body)[?{member}]"));
    template(
        member,
        type_match,
        language(format!("multiply(matchedToken.{member}, `0.5`)")),
        "$.matchedToken.endDate",
        "$.matchedToken.deviceId",
    )
}

/// `count` templates of which the last one matches.
fn templates(count: usize, of: fn(&str) -> Value) -> Vec<Value> {
    let mut templates: Vec<Value> = (1..count).map(|n| of(&format!("reading{n}"))).collect();
    templates.push(of("heartRate"));
    templates
}

fn scenarios() -> Vec<Scenario> {
    let flat = reading(json!({}));
    let nested = json!({ "gateway": { "id": "g-1", "monitors": { "bed": { "data": flat } } } });
    let array: Vec<Value> = (0..20).map(|n| reading(json!({ "sequence": n }))).collect();
    let mut scenarios = Vec::new();
    for count in [1, 10, 100, 1000] {
        scenarios.push(Scenario::new(
            &format!("jsonpath-flat-{count}"),
            &templates(count, jsonpath),
            &flat,
            1,
        ));
        scenarios.push(Scenario::new(
            &format!("jmespath-flat-{count}"),
            &templates(count, jmespath),
            &flat,
            1,
        ));
    }
    scenarios.push(Scenario::new(
        "jsonpath-nested-10",
        &templates(10, jsonpath),
        &nested,
        1,
    ));
    scenarios.push(Scenario::new(
        "jsonpath-array20-10",
        &templates(10, jsonpath),
        &json!(array),
        20,
    ));
    scenarios.push(Scenario::new(
        "jmespath-array20-10",
        &templates(10, jmespath),
        &json!(array),
        20,
    ));
    let unmatched = json!({ "deviceId": "bed-12", "steps": 7, "endDate": "2026-11-21T10:15:30.250Z" });
    scenarios.push(Scenario::new(
        "unmatched-10",
        &templates(10, jsonpath),
        &unmatched,
        0,
    ));
    scenarios
}

/// Seconds that this process was on a processor.
fn cpu_seconds() -> f64 {
    let schedule = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = schedule
        .split(' ')
        .next()
        .and_then(|field| field.parse::<f64>().ok());
    nanoseconds.unwrap_or_else(|| fail("no /proc/self/schedstat")) / 1e9
}

/// Messages per CPU-second, the best of several rounds.
fn rate(scenario: &Scenario, seconds: f64) -> f64 {
    const ROUNDS: u32 = 5;
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        let start = cpu_seconds();
        let mut messages = 0.0;
        let mut spent = 0.0;
        while spent < seconds / f64::from(ROUNDS) {
            for _ in 0..500 {
                black_box(scenario.run());
            }
            messages += 500.0;
            spent = cpu_seconds() - start;
        }
        best = best.max(messages / spent);
    }
    best
}

fn main() {
    let scenarios = scenarios();
    for scenario in &scenarios {
        let found = scenario.run();
        if found != scenario.measurements {
            fail(&format!(
                "{} gives {found} measurements, not {}",
                scenario.name, scenario.measurements
            ));
        }
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, count, name] = arguments.as_slice()
        && flag == "--count"
    {
        let scenario = scenarios.iter().find(|scenario| scenario.name == *name);
        let scenario = scenario.unwrap_or_else(|| fail("no such scenario"));
        for _ in 0..count.parse().unwrap_or(0u32) {
            black_box(scenario.run());
        }
        return;
    }
    let seconds = arguments
        .first()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(1.0);
    let mut rates = BTreeMap::new();
    for scenario in &scenarios {
        let rate = rate(scenario, seconds).round();
        println!(
            "{:<22} {:>5} bytes {rate:>10} messages per CPU-second",
            scenario.name,
            scenario.payload.len()
        );
        rates.insert(scenario.name.clone(), rate);
    }
    println!("{}", json!({ "messages_per_cpu_second": rates }));
}
