//! How the command line and the web page reach the running agent: inquiries answered by the agent's own thread, over a
//! channel inside the process and over a Unix socket from outside. One line of JSON each way; who may ask is checked by
//! the credentials of the peer.

use crate::associations::Command;
use crate::dead_letters::LetterQuestion;
use crate::destinations::DestinationQuestion;
use crate::timekeeping::undated::ClockCommand;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Question {
    /// The status as JSON.
    Status,
    /// The metrics page.
    Metrics,
    /// Dead letters.
    DeadLetters(LetterQuestion),
    /// Destinations, also those that were removed.
    Destinations(DestinationQuestion),
    /// The entries of the operator, and whose each device is now.
    Associations,
    /// An entry of the operator about a device.
    Associate {
        /// What is entered.
        entry: Command,
    },
    /// Readings that nobody can date without the operator.
    Clock {
        /// What is asked or said about them.
        entry: ClockCommand,
    },
}

/// A question with the way back for its answer.
pub struct Inquiry {
    /// The question.
    pub question: Question,
    /// Where the answer goes.
    pub answer: oneshot::Sender<String>,
}

/// Where inquiries go.
pub type Inquiries = mpsc::Sender<Inquiry>;

/// Asks the agent from inside the process; `None` when it is stopping.
pub async fn ask(inquiries: &Inquiries, question: Question) -> Option<String> {
    let (answer, result) = oneshot::channel();
    inquiries.send(Inquiry { question, answer }).await.ok()?;
    result.await.ok()
}

/// The socket of the agent whose store is in `store`: below `$RUNTIME_DIRECTORY` for the service, else in the store.
pub fn socket_path(store: &Path) -> PathBuf {
    std::env::var_os("RUNTIME_DIRECTORY").map_or_else(
        || store.join("control.sock"),
        |dir| PathBuf::from(dir).join("control.sock"),
    )
}

/// Listens on `path` until the process ends.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path, inquiries: Inquiries) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // The store's lock says that no other agent lives: a socket that is there is left over.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, inquiries.clone()));
        }
    });
    Ok(())
}

async fn serve(stream: UnixStream, inquiries: Inquiries) {
    let allowed = stream.peer_cred().is_ok_and(|peer| {
        let own = rustix::process::getuid().as_raw();
        peer.uid() == 0 || peer.uid() == own || peer.gid() == rustix::process::getgid().as_raw()
    });
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut limited = BufReader::new(read.take(64 * 1024));
    if limited.read_line(&mut line).await.is_err() {
        return;
    }
    let answer = if !allowed {
        r#"{"error":"not allowed: ask as root or as the user of the service"}"#.to_owned()
    } else {
        match serde_json::from_str(&line) {
            Ok(question) => ask(&inquiries, question).await.unwrap_or_default(),
            Err(error) => serde_json::json!({ "error": format!("unknown question: {error}") }).to_string(),
        }
    };
    // A peer that has gone needs no answer.
    let _ = write.write_all(answer.as_bytes()).await;
}

/// Asks a running agent over its socket.
///
/// # Errors
/// When no agent answers there.
pub async fn ask_socket(path: &Path, question: &Question) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path).await?;
    let line = format!("{}\n", serde_json::to_string(question)?);
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_question_over_the_socket_gets_its_answer_and_nonsense_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let (inquiries, mut questions) = mpsc::channel::<Inquiry>(4);
        listen(&path, inquiries).unwrap();
        tokio::spawn(async move {
            while let Some(inquiry) = questions.recv().await {
                inquiry.answer.send(format!("{:?}", inquiry.question)).unwrap();
            }
        });
        assert_eq!(ask_socket(&path, &Question::Status).await.unwrap(), "Status");
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"command\":\"launch\"}\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("unknown question"));
    }
}
