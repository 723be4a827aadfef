//! The way to the hub: TCP, a proxy where the configuration names one, TLS, and WebSockets where it wants them.

use crate::config::{EventHubConfig, TlsConfig, Transport};
use crate::forward::http::{HttpError, HttpErrorKind, explain_io};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use embassy_time::{Duration, with_timeout};
use fe2o3_amqp_ws::WebSocketStream;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use ureq::http::Uri;

/// Longest time for each step of a connection.
pub(super) const STEP_TIME: Duration = Duration::from_secs(20);

/// Largest answer of a proxy.
const MAX_PROXY_ANSWER: usize = 8192;

/// A connection, whatever it is made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin> Stream for T {}

/// Where the hub is and how it is reached.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// Host name of the namespace, in lower case: in the certificate, and what we ask for.
    pub host: String,
    websocket: bool,
    endpoint: Option<String>,
    proxy: Option<String>,
    tls: TlsConfig,
}

impl Way {
    pub fn new(config: &EventHubConfig) -> Way {
        Way {
            host: config.namespace.to_ascii_lowercase(),
            websocket: config.transport == Transport::AmqpWebsocket,
            endpoint: config.endpoint.clone(),
            proxy: config.proxy.clone(),
            tls: config.tls.clone(),
        }
    }

    /// `host:port` to connect to.
    fn target(&self) -> String {
        let port = if self.websocket { 443 } else { 5671 };
        self.endpoint
            .clone()
            .unwrap_or_else(|| format!("{}:{port}", self.host))
    }

    /// The address as errors name it.
    fn shown(&self) -> String {
        format!("https://{}", self.target())
    }

    /// A connection that AMQP can be spoken on.
    ///
    /// # Errors
    /// Why there is none, in the words of the HTTPS transport.
    pub async fn connect(&self) -> Result<Box<dyn Stream>, HttpError> {
        let tls = crate::ingest::mqtt::tls_client_config(&self.tls)
            .map_err(|error| HttpError::new(HttpErrorKind::Setup, error.text))?;
        let socket = match &self.proxy {
            None => self.step("connection", self.tcp(&self.target())).await?,
            Some(proxy) => self.step("proxy", self.through(proxy)).await?,
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| HttpError::new(HttpErrorKind::Setup, "the namespace is no host name"))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let encrypted = async {
            let stream = connector.connect(name, socket).await;
            stream.map_err(|error| explain_io(&error, &self.shown()))
        };
        let stream = self.step("TLS", encrypted).await?;
        if !self.websocket {
            return Ok(Box::new(stream));
        }
        let address = format!("wss://{}/$servicebus/websocket", self.host);
        let upgraded = async {
            let upgraded = WebSocketStream::connect_with_stream(address, stream).await;
            upgraded.map_err(|error| self.no_websocket(&error))
        };
        Ok(Box::new(self.step("WebSocket", upgraded).await?))
    }

    async fn step<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        with_timeout(STEP_TIME, work).await.unwrap_or_else(|_| {
            Err(HttpError::new(
                HttpErrorKind::Connect,
                format!("{} did not answer in time ({name})", self.target()),
            ))
        })
    }

    async fn tcp(&self, target: &str) -> Result<TcpStream, HttpError> {
        let socket = TcpStream::connect(target).await.map_err(|error| {
            let refused = explain_io(&error, &self.shown());
            match refused.kind {
                HttpErrorKind::Reset => HttpError::new(
                    HttpErrorKind::Connect,
                    format!("the name of {target} cannot be resolved: check the address and the DNS of this gateway"),
                ),
                _ => refused,
            }
        })?;
        // Small frames must not wait for each other.
        let _ = socket.set_nodelay(true);
        Ok(socket)
    }

    /// A connection that an HTTP proxy makes for us (`CONNECT`).
    async fn through(&self, proxy: &str) -> Result<TcpStream, HttpError> {
        let setup = || {
            HttpError::new(
                HttpErrorKind::Setup,
                "the address of the proxy is wrong: write it as \"http://proxy:3128\"",
            )
        };
        let uri: Uri = proxy.parse().map_err(|_| setup())?;
        let authority = uri.authority().ok_or_else(setup)?;
        let port = authority.port_u16().unwrap_or(80);
        let mut socket = self.tcp(&format!("{}:{port}", authority.host())).await?;
        let target = self.target();
        let user = match authority.as_str().rsplit_once('@') {
            Some((user, _)) => format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(user)),
            None => String::new(),
        };
        let ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{user}\r\n");
        let broken = |error: std::io::Error| explain_io(&error, proxy);
        socket.write_all(ask.as_bytes()).await.map_err(broken)?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the head belongs to TLS.
        while !answer.ends_with(b"\r\n\r\n") && answer.len() < MAX_PROXY_ANSWER {
            answer.push(socket.read_u8().await.map_err(broken)?);
        }
        let first = String::from_utf8_lossy(&answer);
        let first: String = first
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(120)
            .collect();
        match first.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(socket),
            _ => Err(HttpError::new(
                HttpErrorKind::Proxy,
                format!("the proxy refused to connect to {target}: {first}"),
            )),
        }
    }

    fn no_websocket(&self, error: &fe2o3_amqp_ws::Error) -> HttpError {
        use fe2o3_amqp_ws::tungstenite::Error as E;
        if let fe2o3_amqp_ws::Error::Tungstenite(E::Io(error)) = error {
            return explain_io(error, &self.shown());
        }
        let status = match error {
            fe2o3_amqp_ws::Error::Tungstenite(E::Http(answer)) => format!(" ({})", answer.status().as_u16()),
            _ => String::new(),
        };
        HttpError::new(
            HttpErrorKind::Protocol,
            format!(
                "{} does not take AMQP over WebSockets{status}: check namespace, endpoint and proxy, or use another transport",
                self.target()
            ),
        )
    }
}
