//! The local status page, its data as JSON, the metrics endpoint and a health check. Nothing there is a patient's, and nothing
//! can be changed, but for associations ([`associations`]), which need a token.

mod associations;

use crate::config::SecretRef;
use crate::control::{Inquiries, Question, ask};
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

const PAGE: &str = include_str!("page.html");
/// The page loads nothing from anywhere else, and nobody frames it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      frame-ancestors 'none'; form-action 'none'; base-uri 'none'";

/// What every answer needs.
#[derive(Clone)]
struct Desk {
    inquiries: Inquiries,
    /// What has to be known to see or change what is a patient's.
    token: Option<SecretRef>,
}

/// Serves until the process ends.
pub fn serve(listener: TcpListener, inquiries: Inquiries, token: Option<SecretRef>) {
    let routes = Router::new()
        .route("/", get(page))
        .route("/status.json", get(status))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/associations", get(associations::show).post(associations::enter))
        .layer(DefaultBodyLimit::max(16 << 10))
        .with_state(Desk { inquiries, token });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("status page: {error}");
        }
    });
}

async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response()
}

async fn status(State(desk): State<Desk>) -> Response {
    answer(ask(&desk.inquiries, Question::Status).await, "application/json")
}

async fn metrics(State(desk): State<Desk>) -> Response {
    answer(
        ask(&desk.inquiries, Question::Metrics).await,
        "text/plain; version=0.0.4",
    )
}

async fn health(State(desk): State<Desk>) -> Response {
    let status = ask(&desk.inquiries, Question::Status).await.unwrap_or_default();
    let health = serde_json::from_str::<serde_json::Value>(&status)
        .ok()
        .and_then(|s| Some(s.get("health")?.as_str()?.to_owned()))
        .unwrap_or_else(|| "stopping".to_owned());
    let code = if health == "ok" || health == "degraded" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, health).into_response()
}

fn answer(body: Option<String>, content_type: &'static str) -> Response {
    const NO_STORE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");
    match body {
        Some(body) => ([(header::CONTENT_TYPE, content_type), NO_STORE], body).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping").into_response(),
    }
}
