//! What follows the end of a connection: what the next one does otherwise, how long it waits, and what the operator reads.

use super::super::failure::is_about_time;
use super::super::link::{Failure, WIDE_PACKET_BYTES};
use super::{Mode, Source};
use crate::clock;
use crate::config::MqttProtocol;
use crate::ingest::{SourceEvent, setup_error};
use crate::telemetry::errors::{ErrorRecord, ErrorSeverity, ErrorType};
use embassy_time::{Duration, Timer};
use std::sync::Arc;

/// Connections in a row that end with the same unreadable packet, before the session is given up.
const UNREADABLE_LIMIT: u32 = 5;

/// Pause while the wall clock is the reason for the failure.
const CLOCK_PAUSE: Duration = Duration::from_secs(5);

impl Source {
    /// It failed, and the next one waits or is made in another way.
    pub(super) async fn after_failure(&mut self, failure: Failure) {
        let mut record = self.broker.record(&failure);
        if matches!(failure, Failure::Lost(_) | Failure::Timeout)
            && self.config.protocol == MqttProtocol::V5
            && !self.context.status.is_connected()
        {
            // Old brokers refuse in words that MQTT 5 does not know, or without a word.
            record
                .text
                .push_str("; a broker from before MQTT 5 needs protocol = \"3.1.1\"");
        }
        match &failure {
            Failure::TooLarge(size) if self.mode == Mode::Normal && *size <= WIDE_PACKET_BYTES => {
                // Not an error yet: the next connection takes it.
                self.mode = Mode::Wide;
                self.context.status.set_error(record, false);
                return;
            }
            Failure::TooLarge(_) | Failure::Undecodable(_) => {
                if self.is_unreadable_again(&record.text) {
                    record.severity = ErrorSeverity::Critical;
                    record.text.push_str(
                        "; after several attempts the session with the broker is ended, and what it still held for this \
                         gateway is lost",
                    );
                    tracing::error!(
                        source = &*self.context.name,
                        error = record.name,
                        "{}",
                        record.text
                    );
                    self.context.status.set_error(record.clone(), false);
                    self.unreadable = None;
                    self.given_up = Some(record);
                    self.mode = Mode::CleanStart;
                    return;
                }
            }
            Failure::Tls(error) if is_about_time(error) && !clock::is_trusted(self.context.trust) => {
                self.context.status.set_waiting_for_clock(true);
                self.report(record, false);
                self.outlet.during(Timer::after(CLOCK_PAUSE)).await;
                return;
            }
            _ => self.unreadable = None,
        }
        self.context.status.set_waiting_for_clock(false);
        if self.mode == Mode::Wide {
            self.mode = Mode::Normal;
        }
        self.report(record, false);
        self.pause_after_failure().await;
    }

    /// Counts connections in a row that end the same way; true when there were enough.
    fn is_unreadable_again(&mut self, text: &str) -> bool {
        let count = match &self.unreadable {
            Some((earlier, count)) if earlier == text => count + 1,
            _ => 1,
        };
        self.unreadable = Some((text.to_owned(), count));
        count >= UNREADABLE_LIMIT
    }

    /// The broker has dropped the session.
    pub(super) fn session_ended(&mut self) {
        self.gate.end_session();
        self.subscribed = false;
        if let Some(error) = self.given_up.take() {
            let event = SourceEvent::SessionGivenUp {
                source: self.context.id,
                error,
            };
            // Without a listener the agent is stopping.
            drop(self.context.events.send(event));
        }
    }

    /// It was closed because too much waits for its commit: until enough of that is stored.
    pub(super) async fn after_backpressure(&mut self) {
        self.context.status.closed_for_backpressure.count();
        let text = "the store is slower than the broker: the connection is closed until the messages that came are stored";
        let mut record = setup_error("BackpressureException", ErrorType::GeneralError, text.to_owned());
        record.severity = ErrorSeverity::Warning;
        self.report(record, false);
        let gate = Arc::clone(&self.gate);
        while self.outlet.bytes() + gate.uncommitted_bytes() > self.uncommitted_limit / 2
            && !self.outlet.is_closed()
        {
            tokio::select! {
                () = self.outlet.moved() => {}
                () = gate.changed.notified() => {}
            }
        }
    }

    /// Shows the error; a line in the log only when it is news.
    pub(super) fn report(&self, record: ErrorRecord, connected: bool) {
        if self.context.status.set_error(record.clone(), connected) {
            tracing::warn!(
                source = &*self.context.name,
                error = record.name,
                "{}",
                record.text
            );
        }
    }

    /// Longer from failure to failure.
    pub(super) async fn pause_after_failure(&mut self) {
        let pause = self.backoff.pause();
        self.outlet.during(Timer::after(pause)).await;
    }
}
