//! Entries about who has which device, on the status page.
//!
//! Invariants:
//! 1. Nothing is shown or taken without the token of `[web]`, also on loopback; without a token in the configuration nothing is.
//! 2. The token comes as a header and in no other way, so that no page of somebody else can use it; a request that a browser
//!    sends for another page is refused all the same.
//! 3. An entry takes the way of `association set`: when it is answered with success it is on the disk.

use super::Desk;
use crate::associations::dropped;
use crate::control::{Question, ask};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use embassy_time::Timer;
use serde_json::{Value, json};

/// All entries, and whose each device is now.
pub(super) async fn show(State(desk): State<Desk>, headers: HeaderMap) -> Response {
    match allowed(&desk, &headers).await {
        Ok(()) => answer(ask(&desk.inquiries, Question::Associations).await),
        Err(refusal) => refusal,
    }
}

/// Takes an entry.
pub(super) async fn enter(State(desk): State<Desk>, headers: HeaderMap, body: String) -> Response {
    if let Err(refusal) = allowed(&desk, &headers).await {
        return refusal;
    }
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json");
    }
    match dropped::entry(&body) {
        Ok(entry) => answer(ask(&desk.inquiries, Question::Associate { entry }).await),
        Err(wrong) => refused(StatusCode::BAD_REQUEST, &wrong),
    }
}

async fn allowed(desk: &Desk, headers: &HeaderMap) -> Result<(), Response> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let foreign = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"))
        || text("origin").is_some_and(|origin| {
            let of_origin = origin.split_once("://").map(|(_, host)| host);
            of_origin != text("host")
        });
    if foreign {
        return Err(refused(StatusCode::FORBIDDEN, "this comes from another page"));
    }
    let Some(token) = &desk.token else {
        let text = "no token is configured: set [web] token, for example \"credential:web-token\"";
        return Err(refused(StatusCode::FORBIDDEN, text));
    };
    let token = match token.read() {
        Ok(token) => token,
        Err(error) => return Err(refused(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())),
    };
    let given = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    if given.is_some_and(|given| same(given.as_bytes(), token.reveal().as_bytes())) {
        return Ok(());
    }
    // Whoever tries many has to wait for each.
    Timer::after_secs(1).await;
    Err(refused(
        StatusCode::UNAUTHORIZED,
        "this is not the token of [web]",
    ))
}

/// Whether two texts are the same; how long it takes does not tell where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn answer(body: Option<String>) -> Response {
    let Some(body) = body else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping");
    };
    let wrong = serde_json::from_str::<Value>(&body).is_ok_and(|body| body.get("error").is_some());
    let status = if wrong {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    };
    (status, JSON, body).into_response()
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, JSON, json!({ "error": why }).to_string()).into_response()
}

const JSON: [(header::HeaderName, &str); 2] = [
    (header::CONTENT_TYPE, "application/json"),
    (header::CACHE_CONTROL, "no-store"),
];

#[cfg(test)]
mod tests {
    use super::super::serve;
    use crate::config::SecretRef;
    use crate::control::{Inquiries, Inquiry};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    async fn started(token: Option<SecretRef>) -> std::net::SocketAddr {
        let (inquiries, mut questions): (Inquiries, _) = mpsc::channel::<Inquiry>(4);
        tokio::spawn(async move {
            while let Some(inquiry) = questions.recv().await {
                let text = format!("{:?}", inquiry.question);
                let answer = match text.contains("bad") {
                    true => r#"{"error":"the clock"}"#.to_owned(),
                    false => serde_json::json!({ "asked": text }).to_string(),
                };
                inquiry.answer.send(answer).unwrap();
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        serve(listener, inquiries, token);
        address
    }

    async fn send(
        address: std::net::SocketAddr,
        method: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut text = format!("{method} /associations HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        for header in headers {
            text.push_str(&format!("{header}\r\n"));
        }
        text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_entry_needs_the_token_and_comes_from_this_page() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "t0ken\n").unwrap();
        let address = started(Some(SecretRef::File(path))).await;
        let (token, json) = ("authorization: Bearer t0ken", "content-type: application/json");
        let own = format!("origin: http://{address}");
        let body = r#"{"device": "band-7", "patient": "MRN 1"}"#;
        for (headers, body, expected) in [
            (vec![token, json], body, 200),
            (vec![token, json, &own, "sec-fetch-site: same-origin"], body, 200),
            (vec![json], body, 401),
            (vec!["authorization: Bearer t0ke", json], body, 401),
            (vec!["authorization: Basic t0ken", json], body, 401),
            (vec![token, json, "origin: http://evil.example"], body, 403),
            (vec![token, json, "sec-fetch-site: cross-site"], body, 403),
            (vec![token, "content-type: text/plain"], body, 415),
            (vec![token, json], r#"{"patient": "MRN 1"}"#, 400),
            (vec![token, json], r#"{"device": "bad"}"#, 400),
        ] {
            let (status, answer) = send(address, "POST", &headers, body).await;
            assert_eq!(status, expected, "{headers:?} {answer}");
            assert_eq!(status == 200, answer.contains("Associate"), "{answer}");
        }
        assert_eq!(send(address, "GET", &[token], "").await.0, 200);
        assert_eq!(send(address, "GET", &[], "").await.0, 401);
        let closed = started(None).await;
        let (status, answer) = send(closed, "POST", &[token, json], body).await;
        assert!(status == 403 && answer.contains("[web] token"), "{answer}");
    }
}
