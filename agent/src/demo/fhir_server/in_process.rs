//! The server without a socket: an HTTP client that answers at once, for simulated time.

use super::{FhirServer, Shared, answer};
use crate::forward::http::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use crate::message::Payload;
use axum::body::{Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderName, Method, Uri};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

struct Client(Arc<Shared>);

impl FhirServer {
    /// A client whose every request this server answers.
    pub fn client(&self) -> Arc<dyn HttpClient> {
        Arc::new(Client(Arc::clone(&self.shared)))
    }
}

impl HttpClient for Client {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let unreadable = |_| HttpError::new(HttpErrorKind::Connect, "the address cannot be read");
        let uri: Uri = request.url.parse().map_err(|_| unreadable(()))?;
        let method = Method::from_bytes(request.method.name().as_bytes()).map_err(|_| unreadable(()))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
                headers.insert(name, value);
            }
        }
        let response = answer(&self.0, &method, &uri, &headers, &request.body.0);
        let fault = self.0.inner().fault;
        if fault.is_some_and(|fault| fault.loses(&request.body.0)) {
            return Err(HttpError::new(
                HttpErrorKind::Reset,
                "the connection broke before the answer",
            ));
        }
        let (parts, body) = response.into_parts();
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str().to_owned(),
                    value.to_str().unwrap_or_default().to_owned(),
                )
            })
            .collect();
        Ok(HttpResponse {
            status: parts.status.as_u16(),
            headers,
            body: Payload(collect(body)),
        })
    }
}

/// All bytes of a body that is in memory already.
fn collect(mut body: axum::body::Body) -> Bytes {
    let mut bytes = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    bytes.into()
}
