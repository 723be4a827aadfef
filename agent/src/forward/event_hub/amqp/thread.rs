//! The thread of an AMQP destination. A connection lives between publications too (empty frames, a link that the hub ends), so
//! it has a small runtime of its own, apart from the loops; the thread starts with the first publication and ends with the
//! destination.

use super::connection::Way;
use super::link::{OpenLink, Target};
use super::{Answer, Publication, Wire, message};
use crate::config::EventHubConfig;
use crate::forward::http::{HttpError, HttpErrorKind};
use embassy_time::{Duration, with_timeout};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use tokio::sync::{mpsc, oneshot};

/// A connection that nobody needs so long is closed, before the hub does it.
const IDLE: Duration = Duration::from_secs(240);

struct Job {
    publication: Publication,
    answer: oneshot::Sender<Answer>,
}

/// Sends publications on a thread of its own.
pub(super) struct AmqpThread {
    way: Way,
    target: Target,
    jobs: RefCell<Option<mpsc::UnboundedSender<Job>>>,
}

impl AmqpThread {
    pub fn new(config: &EventHubConfig, resource: &str, gateway: &str) -> AmqpThread {
        AmqpThread {
            way: Way::new(config),
            target: Target {
                resource: resource.to_owned(),
                gateway: gateway.to_owned(),
            },
            jobs: RefCell::new(None),
        }
    }

    /// Hands a job to the thread, which is started when it is not there (any more).
    fn hand_over(&self, job: Job) -> std::io::Result<()> {
        let mut jobs = self.jobs.borrow_mut();
        let job = match jobs.as_ref() {
            Some(jobs) => match jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(job)) => job,
            },
            None => job,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sender, queue) = mpsc::unbounded_channel();
        let (way, target) = (self.way.clone(), self.target.clone());
        std::thread::Builder::new()
            .name("amqp".to_owned())
            .stack_size(1 << 20)
            .spawn(move || runtime.block_on(serve(way, target, queue)))?;
        drop(sender.send(job));
        *jobs = Some(sender);
        Ok(())
    }
}

impl Wire for AmqpThread {
    fn publish(&self, publication: Publication) -> Pin<Box<dyn Future<Output = Answer> + '_>> {
        let (answer, result) = oneshot::channel();
        let job = Job { publication, answer };
        let handed = self.hand_over(job);
        Box::pin(async move {
            let stopped = |text| Answer::NoConnection(HttpError::new(HttpErrorKind::Stopped, text));
            match handed {
                Err(error) => stopped(format!("the operating system gives no thread: {error}")),
                Ok(()) => result
                    .await
                    .unwrap_or_else(|_| stopped("the program is stopping".to_owned())),
            }
        })
    }
}

async fn serve(way: Way, target: Target, mut queue: mpsc::UnboundedReceiver<Job>) {
    let mut link: Option<OpenLink> = None;
    loop {
        let job = match &link {
            None => queue.recv().await,
            Some(_) => match with_timeout(IDLE, queue.recv()).await {
                Ok(job) => job,
                Err(_) => {
                    close(&mut link).await;
                    continue;
                }
            },
        };
        let Some(Job { publication, answer }) = job else {
            break;
        };
        drop(answer.send(publish(&way, &target, &mut link, &publication).await));
    }
    close(&mut link).await;
}

async fn close(link: &mut Option<OpenLink>) {
    if let Some(link) = link.take() {
        link.close().await;
    }
}

/// Sends over the open link, or a new one when that has ended since (invariant 2).
async fn publish(
    way: &Way,
    target: &Target,
    link: &mut Option<OpenLink>,
    publication: &Publication,
) -> Answer {
    let Some(message) = message::of_publication(publication) else {
        return Answer::Rejected(None);
    };
    let credential = &publication.credential;
    if link.as_ref().is_some_and(|link| !link.can_use(credential)) {
        close(link).await;
    }
    if let Some(mut open) = link.take() {
        let answer = match open.refresh(credential).await {
            Ok(()) => open.send(&message).await,
            Err(answer) => answer,
        };
        match answer {
            Answer::Ended { sent: false, .. } => drop(open),
            answer => return settle(link, open, answer),
        }
    }
    match OpenLink::open(way, target, credential).await {
        Ok(mut open) => {
            let answer = open.send(&message).await;
            settle(link, open, answer)
        }
        Err(answer) => answer,
    }
}

/// Keeps a link that can be used again; any other is not worth a farewell.
fn settle(link: &mut Option<OpenLink>, open: OpenLink, answer: Answer) -> Answer {
    match answer {
        Answer::Accepted | Answer::Rejected(_) | Answer::Released { .. } | Answer::TooLarge => {
            *link = Some(open);
        }
        _ => drop(open),
    }
    answer
}
