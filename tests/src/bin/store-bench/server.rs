//! A FHIR server, as a process of its own, that answers every batch at once and keeps nothing.

use bedside_tests::batch_server::{Batch, Entry, answer_all, batch_response, device_of_somebody, found};
use std::net::TcpListener;

/// The server on `port`, until the process is ended.
pub fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("listening");
    answer_all(&listener, |_, body| {
        Ok((200, answer(&serde_json::from_slice(body)?)))
    })
}

/// Every device is known and belongs to somebody, no Observation is there yet, and each one is taken.
fn answer(batch: &Batch<'_>) -> String {
    let nothing = found(&[]);
    let answers = batch.entry.iter().map(|Entry { request, .. }| {
        match (request.method, request.url.split_once("?identifier=")) {
            ("GET", Some(("Device", identifier))) => device_of_somebody(identifier),
            ("GET", Some(_)) => nothing.clone(),
            ("PUT", _) => r#"{"response":{"status":"201","etag":"W/\"1\""}}"#.to_owned(),
            _ => r#"{"response":{"status":"404"}}"#.to_owned(),
        }
    });
    batch_response(&answers.collect::<Vec<_>>())
}
