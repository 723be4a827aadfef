//! One connection to the hub with its session, its `$cbs` node and its sending link (invariants of the parent).

use super::connection::{STEP_TIME, Way};
use super::{Answer, Condition, Credential};
use crate::forward::http::{HttpError, HttpErrorKind, explain_io};
use embassy_time::{Duration, with_timeout};
use fe2o3_amqp::connection::{ConnectionHandle, ConnectionStopReason, Error as ConnectionError, OpenError};
use fe2o3_amqp::link::{DetachError, LinkStateError, SendError, SenderAttachError, SessionStopReason};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::{BeginError, SessionHandle};
use fe2o3_amqp::types::definitions::{self, ErrorCondition, SenderSettleMode};
use fe2o3_amqp::types::messaging::{Batch, Data, Outcome, Target as MessagingTarget, TerminusDurability};
use fe2o3_amqp::types::primitives::{Symbol, Timestamp};
use fe2o3_amqp::{Connection, Sendable, Sender, Session};
use fe2o3_amqp_cbs::client::CbsClient;
use fe2o3_amqp_cbs::token::CbsToken;
use fe2o3_amqp_management::error::{AttachError, Error as ManagementError};

/// How long the hub may withhold credit, and how long it may think about a publication.
const CREDIT_TIME: Duration = Duration::from_secs(30);
const DISPOSITION_TIME: Duration = Duration::from_secs(60);

/// How long an orderly end may take.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// A connection on which nothing is heard so long is dead: milliseconds. The peer sends empty frames before.
const IDLE_TIME_OUT: u32 = 60_000;

/// An open link with what carries it. What is dropped ends at once.
pub(super) struct OpenLink {
    sender: Sender,
    cbs: Option<CbsClient>,
    session: SessionHandle<()>,
    connection: ConnectionHandle<()>,
    credential: Credential,
    audience: String,
}

/// What is attached to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Hub, or publisher of it.
    pub resource: String,
    /// Name of this gateway, for the hub's own records.
    pub gateway: String,
}

impl OpenLink {
    /// Connects, proves who we are, and attaches.
    pub async fn open(way: &Way, target: &Target, credential: &Credential) -> Result<OpenLink, Answer> {
        let stream = way.connect().await.map_err(Answer::NoConnection)?;
        let profile = match credential {
            Credential::Token { .. } => SaslProfile::Anonymous,
            Credential::Password { username, password } => SaslProfile::Plain {
                username: username.clone(),
                password: password.clone(),
            },
        };
        let connection = Connection::builder()
            .container_id(target.gateway.as_str())
            .hostname(way.host.as_str())
            .idle_time_out(IDLE_TIME_OUT)
            .sasl_profile(profile)
            .open_with_stream(stream);
        let mut connection = within(way, connection)
            .await?
            .map_err(|error| of_open(&error, way))?;
        let session = within(way, Session::begin(&mut connection)).await?;
        let mut session = session.map_err(of_begin)?;
        let audience = format!("amqps://{}/{}", way.host, target.resource);
        let mut cbs = None;
        if let Credential::Token { .. } = credential {
            let attached = within(way, CbsClient::attach(&mut session)).await?;
            let mut client = attached.map_err(of_cbs_attach)?;
            put_token(&mut client, &audience, credential).await?;
            cbs = Some(client);
        }
        // A name of its own for each link: the hub may not have noticed yet that the last one is gone.
        let name = format!("{}-{:016x}", target.gateway, crate::random::below(u64::MAX));
        let terminus = MessagingTarget::builder().address(target.resource.as_str());
        let terminus = match credential {
            Credential::Token { .. } => terminus,
            // RabbitMQ declares a queue for it, and compares with the one that is there: it has to outlive a restart.
            Credential::Password { .. } => terminus.durable(TerminusDurability::UnsettledState),
        };
        let sender = Sender::builder()
            .name(name)
            .target(terminus.build())
            .sender_settle_mode(SenderSettleMode::Unsettled)
            .attach(&mut session);
        let sender = within(way, sender).await?.map_err(of_attach)?;
        Ok(OpenLink {
            sender,
            cbs,
            session,
            connection,
            credential: credential.clone(),
            audience,
        })
    }

    /// Whether this link still stands for the credential; a token can be renewed on it, a password cannot.
    pub fn can_use(&self, credential: &Credential) -> bool {
        *credential == self.credential || matches!(credential, Credential::Token { .. })
    }

    /// Puts the token if it is another one than the hub has.
    pub async fn refresh(&mut self, credential: &Credential) -> Result<(), Answer> {
        if *credential == self.credential {
            return Ok(());
        }
        if let Some(cbs) = &mut self.cbs {
            tokio::select! {
                biased;
                put = put_token(cbs, &self.audience, credential) => put?,
                end = self.connection.on_close() => return Err(of_end(end, false)),
            }
        }
        self.credential = credential.clone();
        Ok(())
    }

    /// Transfers a message when there is credit, and waits for its disposition. What waits in the link is not told when the
    /// connection ends, so that is looked at too.
    pub async fn send(&mut self, message: &Sendable<Batch<Data>>) -> Answer {
        let transfer = tokio::select! {
            biased;
            transfer = with_timeout(CREDIT_TIME, self.sender.send_batchable_ref(message)) => transfer,
            end = self.connection.on_close() => return of_end(end, false),
        };
        let disposition = match transfer {
            Err(_) => return Answer::NoCredit,
            Ok(Err(error)) => return of_send(error, false),
            Ok(Ok(disposition)) => disposition,
        };
        let disposition = tokio::select! {
            biased;
            disposition = with_timeout(DISPOSITION_TIME, disposition) => disposition,
            end = self.connection.on_close() => return of_end(end, true),
        };
        match disposition {
            Err(_) => Answer::NoDisposition,
            Ok(Err(error)) => of_send(error, true),
            Ok(Ok(Outcome::Accepted(_))) => Answer::Accepted,
            Ok(Ok(Outcome::Rejected(rejected))) => Answer::Rejected(rejected.error.map(condition)),
            Ok(Ok(Outcome::Released(_))) => Answer::Released { not_here: false },
            Ok(Ok(Outcome::Modified(modified))) => Answer::Released {
                not_here: modified.undeliverable_here == Some(true),
            },
        }
    }

    /// Ends in order; whether the hub still answers does not matter.
    pub async fn close(mut self) {
        let end = async {
            let _ = self.sender.close().await;
            let _ = self.session.end().await;
            let _ = self.connection.close().await;
        };
        let _ = with_timeout(CLOSE_TIME, end).await;
    }
}

async fn within<T>(way: &Way, work: impl Future<Output = T>) -> Result<T, Answer> {
    with_timeout(STEP_TIME, work).await.map_err(|_| {
        let text = format!("{} did not answer in time (AMQP)", way.host);
        Answer::NoConnection(HttpError::new(HttpErrorKind::Timeout, text))
    })
}

async fn put_token(cbs: &mut CbsClient, audience: &str, credential: &Credential) -> Result<(), Answer> {
    let Credential::Token { kind, text, expires } = credential else {
        return Ok(());
    };
    let expires = expires.map(|seconds| Timestamp::from_milliseconds(seconds.saturating_mul(1000)));
    let token = CbsToken::new(text.as_str(), *kind, expires);
    let put = with_timeout(STEP_TIME, cbs.put_token(audience, token)).await;
    match put {
        Err(_) => Err(Answer::TokenRefused {
            status: 504,
            description: "$cbs did not answer in time".to_owned(),
        }),
        Ok(Ok(())) => Ok(()),
        Ok(Err(ManagementError::Status(status))) => match status.code.0.get() {
            200..=299 => Ok(()),
            code => Err(Answer::TokenRefused {
                status: code,
                description: status.description.unwrap_or_default(),
            }),
        },
        Ok(Err(ManagementError::NotAccepted(Outcome::Rejected(rejected)))) => {
            Err(ended(rejected.error, false))
        }
        Ok(Err(ManagementError::Send(error))) => Err(of_send(error, false)),
        Ok(Err(_)) => Err(Answer::Ended {
            condition: None,
            sent: false,
        }),
    }
}

fn condition(error: definitions::Error) -> Condition {
    let name = match &error.condition {
        ErrorCondition::AmqpError(name) => Symbol::from(name),
        ErrorCondition::ConnectionError(name) => Symbol::from(name),
        ErrorCondition::SessionError(name) => Symbol::from(name),
        ErrorCondition::LinkError(name) => Symbol::from(name),
        ErrorCondition::Custom(name) => name.clone(),
    };
    Condition {
        name: name.to_string(),
        description: error.description.unwrap_or_default(),
    }
}

fn ended(error: Option<definitions::Error>, sent: bool) -> Answer {
    Answer::Ended {
        condition: error.map(condition),
        sent,
    }
}

fn of_end(end: Result<(), ConnectionError>, sent: bool) -> Answer {
    match end {
        Err(ConnectionError::RemoteClosedWithError(error)) => ended(Some(error), sent),
        _ => ended(None, sent),
    }
}

fn of_open(error: &OpenError, way: &Way) -> Answer {
    match error {
        OpenError::Io(error) => Answer::NoConnection(explain_io(error, &format!("https://{}", way.host))),
        OpenError::SaslError { .. } => Answer::TokenRefused {
            status: 401,
            description: "user name or password".to_owned(),
        },
        OpenError::RemoteClosedWithError(error) => ended(Some(error.clone()), false),
        OpenError::RemoteClosed | OpenError::TransportError(_) => ended(None, false),
        other => Answer::NoConnection(HttpError::new(
            HttpErrorKind::Protocol,
            format!("{} does not speak AMQP 1.0 as it should: {other}", way.host),
        )),
    }
}

fn of_begin(error: BeginError) -> Answer {
    match error {
        BeginError::RemoteEndedWithError(error) => ended(Some(error), false),
        BeginError::ConnectionStopped(reason) => ended(of_connection(reason), false),
        _ => ended(None, false),
    }
}

fn of_cbs_attach(error: AttachError) -> Answer {
    use fe2o3_amqp::link::ReceiverAttachError as R;
    let error = match error {
        AttachError::Sender(error) => return of_attach(error),
        AttachError::Receiver(R::RemoteClosedWithError(error)) => Some(error),
        AttachError::Receiver(R::SessionStopped(reason)) => of_session(reason),
        AttachError::Receiver(_) => None,
    };
    ended(error, false)
}

fn of_attach(error: SenderAttachError) -> Answer {
    match error {
        SenderAttachError::RemoteClosedWithError(error) => ended(Some(error), false),
        SenderAttachError::SessionStopped(reason) => ended(of_session(reason), false),
        _ => ended(None, false),
    }
}

fn of_send(error: SendError, sent: bool) -> Answer {
    match error {
        SendError::MessageSizeExceeded(_) => Answer::TooLarge,
        SendError::MessageEncodeError => Answer::Rejected(None),
        SendError::LinkStateError(error) => match error {
            LinkStateError::RemoteDetachedWithError(error) | LinkStateError::RemoteClosedWithError(error) => {
                ended(Some(error), sent)
            }
            LinkStateError::SessionStopped(reason) => ended(of_session(reason), sent),
            _ => ended(None, sent),
        },
        SendError::Detached(error) => match error {
            DetachError::RemoteDetachedWithError(error) | DetachError::RemoteClosedWithError(error) => {
                ended(Some(error), sent)
            }
            DetachError::SessionStopped(reason) => ended(of_session(reason), sent),
            _ => ended(None, sent),
        },
        SendError::NonTerminalDeliveryState | SendError::IllegalDeliveryState => ended(None, sent),
    }
}

fn of_session(reason: SessionStopReason) -> Option<definitions::Error> {
    match reason {
        SessionStopReason::EndedWithError(error) | SessionStopReason::RemoteEndedWithError(error) => {
            Some(error)
        }
        SessionStopReason::ConnectionStopped(reason) => of_connection(reason),
        SessionStopReason::Ended | SessionStopReason::RemoteEnded => None,
    }
}

fn of_connection(reason: ConnectionStopReason) -> Option<definitions::Error> {
    match reason {
        ConnectionStopReason::ClosedWithError(_)
        | ConnectionStopReason::Closed
        | ConnectionStopReason::RemoteClosed => None,
        ConnectionStopReason::RemoteClosedWithError(error) => Some(error),
    }
}
