//! The door for simulated time.

use super::server::{ChaosServer, Reply};
use bedside_agent::clock;
use bedside_agent::forward::http::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use bedside_agent::message::Payload;

/// Now, in microseconds: the wall clock goes on through the restarts of a simulated agent.
pub fn now_us() -> u64 {
    u64::try_from(clock::wall().ticks() / 10).unwrap_or(0)
}

/// A server within the process: the address is ignored, only what follows `base` counts.
pub struct InProcess {
    /// The server.
    pub server: ChaosServer,
    /// Its base address.
    pub base: String,
}

impl HttpClient for InProcess {
    fn execute(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let path = request.url.strip_prefix(&self.base).unwrap_or_default();
        let headers: Vec<(String, String)> = request
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let reply = self.server.request(
            request.method.name(),
            path,
            &headers,
            request.body.bytes(),
            now_us(),
        );
        let (answer, length) = match reply {
            Reply::Broken => return Err(HttpError::new(HttpErrorKind::Reset, "the connection broke")),
            Reply::Answer(answer, _) => {
                let length = answer.body.len();
                (answer, length)
            }
            Reply::Half(answer) => {
                let length = answer.body.len() / 2;
                (answer, length)
            }
        };
        Ok(HttpResponse {
            status: answer.status,
            headers: answer
                .headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            body: Payload(answer.body[..length].to_vec().into()),
        })
    }
}
