//! The way in for questions: control socket and status page. They open as soon as they can, also while the agent still waits
//! for the disk of its store, and stay open when it goes on.

use super::{Agent, Waiting, report};
use crate::config::Config;
use crate::control::{self, Inquiries, Inquiry, Question};
use crate::telemetry::metrics;
use crate::web;
use anyhow::Context as _;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_local};

type Questions = mpsc::Receiver<Inquiry>;

/// Control socket and status page, open or not.
pub struct Door {
    inquiries: Inquiries,
    answering: Answering,
    has_socket: bool,
    page: Option<SocketAddr>,
}

enum Answering {
    Nobody(Option<Questions>),
    Waiting(Arc<Notify>, JoinHandle<Questions>),
}

impl Default for Door {
    fn default() -> Self {
        let (inquiries, questions) = mpsc::channel(16);
        Door {
            inquiries,
            answering: Answering::Nobody(Some(questions)),
            has_socket: false,
            page: None,
        }
    }
}

impl Door {
    /// Answers for an agent that waits for its disk. What cannot be opened now (a socket on the disk that does not work) is
    /// opened later.
    pub async fn answer_waiting(&mut self, waiting: &Rc<Waiting>) {
        if let Answering::Nobody(questions) = &mut self.answering
            && let Some(questions) = questions.take()
        {
            let over = Arc::new(Notify::new());
            let answering = spawn_local(answer(Rc::clone(waiting), questions, Arc::clone(&over)));
            self.answering = Answering::Waiting(over, answering);
        }
        if let Err(error) = self.open(&waiting.config, &waiting.folder).await {
            tracing::debug!("{error:#}");
        }
    }

    /// Answers for the running agent; gives the addresses of the status page.
    ///
    /// # Errors
    /// When an address is taken.
    pub async fn answer_for(&mut self, agent: &Rc<Agent>) -> anyhow::Result<Vec<SocketAddr>> {
        let questions = match std::mem::replace(&mut self.answering, Answering::Nobody(None)) {
            Answering::Nobody(questions) => questions,
            Answering::Waiting(over, answering) => {
                over.notify_one();
                answering.await.ok()
            }
        };
        if let Some(questions) = questions {
            spawn_local(report::answer(Rc::clone(agent), questions));
        }
        self.open(&agent.config, &agent.store_folder).await?;
        Ok(self.page.into_iter().collect())
    }

    async fn open(&mut self, config: &Config, folder: &Path) -> anyhow::Result<()> {
        if !self.has_socket {
            let path = control::socket_path(folder);
            let opened = control::listen(&path, self.inquiries.clone());
            self.has_socket = opened.is_ok();
            // The page is wanted all the more then.
            let page = self.open_page(config).await;
            opened.with_context(|| format!("control socket {}", path.display()))?;
            return page;
        }
        self.open_page(config).await
    }

    async fn open_page(&mut self, config: &Config) -> anyhow::Result<()> {
        if let Some(listen) = config.web.listen.as_ref().filter(|_| self.page.is_none()) {
            let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| {
                format!("status page: cannot listen on {listen}; choose another address in [web] listen")
            })?;
            self.page = Some(listener.local_addr()?);
            web::serve(listener, self.inquiries.clone(), config.web.token.clone());
        }
        Ok(())
    }
}

/// Answers until it is over; gives the questions back.
async fn answer(waiting: Rc<Waiting>, mut questions: Questions, over: Arc<Notify>) -> Questions {
    loop {
        let inquiry = tokio::select! {
            () = over.notified() => return questions,
            inquiry = questions.recv() => inquiry,
        };
        let Some(Inquiry { question, answer }) = inquiry else {
            return questions;
        };
        let status = waiting.status();
        let text = match question {
            Question::Status => serde_json::to_string(&status).unwrap_or_default(),
            Question::Metrics => metrics::render(&status),
            _ => serde_json::json!({ "error": waiting.text() }).to_string(),
        };
        // Who asked may have gone.
        let _ = answer.send(text);
    }
}
