//! Simulated wearables that publish to a broker at quality of service 1.
//!
//! Invariants:
//! 1. Never more publishes are unacknowledged than the window; a slow broker slows the wearables down.
//! 2. What was taken is repeated over reconnects until the broker has acknowledged it.

use super::wearable::Wearable;
use crate::clock;
use crate::config::MqttConfig;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shortest pause between bursts: at high rates several messages go out at once.
const BURST: Duration = Duration::from_millis(2);

/// How long the last acknowledgements are awaited.
const LAST_ACKNOWLEDGEMENTS: Duration = Duration::from_secs(10);

/// Pause before a new connection.
const RECONNECT: Duration = Duration::from_secs(1);

/// What is published where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The broker: `mqtt://HOST:PORT`.
    pub url: String,
    /// Topic; `{device}` stands for the device id.
    pub topic: String,
    /// MQTT client identifier.
    pub client_id: String,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// Messages a second of each wearable.
    pub rate: f64,
    /// Publishes that may be unacknowledged at a time.
    pub window: u16,
    /// When to stop; never when absent.
    pub duration: Option<Duration>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Messages handed to the client.
    pub sent: u64,
    /// Messages that the broker acknowledged.
    pub acknowledged: u64,
}

/// Why nothing can be published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The address is wrong.
    #[error("{0} is no address of a broker: {1}")]
    Address(String, &'static str),
    /// TLS is for the agent; a simulation runs beside its broker.
    #[error("simulated wearables speak plain MQTT: write mqtt://HOST:PORT")]
    Tls,
    /// The rate is not a positive number.
    #[error("the rate must be more than 0 messages a second")]
    Rate,
}

/// Publishes readings of `wearables` until the plan's time is over or `stop` is ready, then waits for the last
/// acknowledgements. `observe` sees every message with its device id once the client has taken it.
///
/// # Errors
/// When the plan cannot be carried out; a broker that is away is waited for.
pub async fn publish(
    plan: &Plan,
    mut wearables: Vec<Wearable>,
    stop: impl Future<Output = ()>,
    mut observe: impl FnMut(&str, &str),
) -> Result<Published, PublishError> {
    let options = options(plan)?;
    let all = plan.rate * f64::from(u32::try_from(wearables.len()).unwrap_or(u32::MAX));
    if !(all > 0.0 && all.is_finite()) {
        return Err(PublishError::Rate);
    }
    let (client, events) = AsyncClient::new(options, usize::from(plan.window).max(1));
    let (sent, acknowledged, stopping) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let publishing = async {
        let begin = Instant::now();
        let mut stop = std::pin::pin!(stop);
        let devices = wearables.len();
        'publishing: loop {
            let elapsed = begin.elapsed();
            if plan.duration.is_some_and(|limit| elapsed >= limit) {
                break;
            }
            while sent.load(Ordering::Relaxed) < due(all, elapsed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let index = usize::try_from(number).unwrap_or(0) % devices;
                let Some(wearable) = wearables.get_mut(index) else {
                    break 'publishing;
                };
                let text = wearable.json(clock::wall());
                let topic = plan.topic.replace("{device}", wearable.device_id());
                tokio::select! {
                    biased;
                    published = client.publish(topic, QoS::AtLeastOnce, false, text.clone()) => {
                        if published.is_err() {
                            break 'publishing;
                        }
                        observe(wearable.device_id(), &text);
                    }
                    // Cancelled before the client took it.
                    () = &mut stop => {
                        sent.fetch_sub(1, Ordering::Relaxed);
                        break 'publishing;
                    }
                }
            }
            let next = begin + at(all, sent.load(Ordering::Relaxed) + 1);
            tokio::select! {
                () = Timer::at(next.max(Instant::now() + BURST)) => {}
                () = &mut stop => break,
            }
        }
        stopping.store(true, Ordering::Relaxed);
        let all_acknowledged = async {
            while acknowledged.load(Ordering::Relaxed) < sent.load(Ordering::Relaxed) {
                Timer::after_millis(5).await;
            }
        };
        // A broker that is gone for good: the caller sees the difference.
        let _ = with_timeout(LAST_ACKNOWLEDGEMENTS, all_acknowledged).await;
        let _ = client.disconnect().await;
    };
    tokio::select! {
        () = publishing => {}
        () = poll(events, &acknowledged, &stopping) => {}
    }
    // Best effort: a broker that is away keeps the session.
    let _ = with_timeout(Duration::from_secs(2), end_session(plan)).await;
    Ok(Published {
        sent: sent.into_inner(),
        acknowledged: acknowledged.into_inner(),
    })
}

/// Messages that are due `elapsed` after the begin.
fn due(rate: f64, elapsed: Duration) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of messages, never negative"
    )]
    let due = (elapsed.as_micros() as f64 * rate / 1e6) as u64 + 1;
    due
}

/// When message `number` (from 1) is due after the begin.
fn at(rate: f64, number: u64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "microseconds of a simulation, never negative"
    )]
    let micros = (number.saturating_sub(1) as f64 / rate * 1e6).ceil() as u64;
    Duration::from_micros(micros)
}

fn options(plan: &Plan) -> Result<MqttOptions, PublishError> {
    let wrong = |text| PublishError::Address(plan.url.clone(), text);
    let config: MqttConfig = serde_json::from_value(serde_json::json!({ "url": plan.url, "topics": ["#"] }))
        .map_err(|_| wrong("write mqtt://HOST:PORT"))?;
    let broker = config.broker().map_err(wrong)?;
    if broker.tls {
        return Err(PublishError::Tls);
    }
    let mut options = MqttOptions::new(plan.client_id.clone(), broker.host, broker.port);
    options.set_inflight(plan.window.max(1));
    // Kept by the broker, so that a publish whose PUBACK was lost is still known to the client's queue.
    options.set_clean_session(false);
    if let Some((username, password)) = &plan.credentials {
        options.set_credentials(username, password);
    }
    Ok(options)
}

/// Connects once more to take the session off the broker, which would keep it for ever.
async fn end_session(plan: &Plan) {
    let Ok(mut options) = options(plan) else {
        return;
    };
    options.set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 1);
    while let Ok(event) = events.poll().await {
        match event {
            Event::Incoming(Packet::ConnAck(_)) if client.try_disconnect().is_err() => return,
            Event::Outgoing(rumqttc::Outgoing::Disconnect) => return,
            _ => {}
        }
    }
}

/// Drives the connection, and counts acknowledgements.
async fn poll(mut events: EventLoop, acknowledged: &AtomicU64, stopping: &AtomicBool) {
    let mut said = false;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Event::Incoming(Packet::ConnAck(_))) => said = false,
            Ok(_) => {}
            Err(error) => {
                if !said && !stopping.load(Ordering::Relaxed) {
                    tracing::warn!(%error, "simulated wearables wait for the broker");
                    said = true;
                }
                Timer::after(RECONNECT).await;
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "demo")]
mod tests {
    use super::*;
    use crate::demo::broker::{Broker, Options};
    use tokio::net::TcpListener;

    async fn broker(options: Options) -> Broker {
        Broker::start(TcpListener::bind("127.0.0.1:0").await.unwrap(), options).unwrap()
    }

    fn plan(broker: &Broker) -> Plan {
        Plan {
            url: broker.url(),
            topic: "wearables/{device}/telemetry".to_owned(),
            client_id: "simulated".to_owned(),
            credentials: None,
            rate: 100.0,
            window: 10,
            duration: Some(Duration::from_millis(500)),
        }
    }

    #[tokio::test]
    async fn wearables_keep_their_rate_and_everything_is_acknowledged() {
        let broker = broker(Options::default()).await;
        let mut seen = std::collections::BTreeMap::new();
        let published = publish(
            &plan(&broker),
            Wearable::ward(4, 1),
            std::future::pending(),
            |device, text| {
                assert!(text.contains(device));
                *seen.entry(device.to_owned()).or_insert(0_u64) += 1;
            },
        )
        .await
        .unwrap();
        assert_eq!(published.sent, published.acknowledged);
        assert_eq!(broker.statistics().published, published.sent);
        Timer::after_millis(50).await;
        assert_eq!(broker.depth("simulated"), None, "no session is left behind");
        assert!((150..=204).contains(&published.sent), "{published:?}");
        assert_eq!(seen.len(), 4);
        assert_eq!(seen.values().sum::<u64>(), published.sent);
    }

    #[tokio::test]
    async fn a_cut_costs_no_message() {
        let broker = broker(Options::default()).await;
        let cutting = broker.clone();
        let cut = async {
            Timer::after_millis(200).await;
            assert!(cutting.cut("simulated"));
            Timer::after_millis(200).await;
        };
        let mut plan = plan(&broker);
        plan.duration = None;
        let published = publish(&plan, Wearable::ward(2, 1), cut, |_, _| {})
            .await
            .unwrap();
        assert_eq!(published.sent, published.acknowledged);
        assert!(broker.statistics().published >= published.sent);
        assert_eq!(
            broker.statistics().connections,
            3,
            "one is for taking the session away"
        );
    }

    #[tokio::test]
    async fn a_plan_that_cannot_work_is_refused() {
        let broker = broker(Options::default()).await;
        let refused = |change: fn(&mut Plan)| {
            let mut plan = plan(&broker);
            change(&mut plan);
            async move {
                publish(&plan, Wearable::ward(1, 1), std::future::pending(), |_, _| {})
                    .await
                    .unwrap_err()
            }
        };
        assert_eq!(refused(|plan| plan.rate = 0.0).await, PublishError::Rate);
        assert_eq!(
            refused(|plan| plan.url = "mqtts://broker".to_owned()).await,
            PublishError::Tls
        );
        assert!(matches!(
            refused(|plan| plan.url = "broker".to_owned()).await,
            PublishError::Address(..)
        ));
    }
}
