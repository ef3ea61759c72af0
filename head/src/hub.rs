//! The agents' links: where frames for an agent go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cloudtik_brain::Session;
use cloudtik_model::Epoch;
use cloudtik_protocol::wire::head_frame::Topic;
use cloudtik_protocol::wire::{Goodbye, HeadFrame};
use tokio::sync::mpsc;

use crate::telemetry::Telemetry;

/// Frames that wait for an agent. One that reads nothing is cut off; it will come back and be told everything anew.
const QUEUE: usize = 64;

type Frames = mpsc::Sender<Result<HeadFrame, tonic::Status>>;

/// A cheap handle.
#[derive(Clone)]
pub struct Hub {
    epoch: Epoch,
    next: Arc<AtomicU64>,
    links: Arc<Mutex<BTreeMap<Session, Frames>>>,
    telemetry: Telemetry,
}

impl Hub {
    pub fn new(epoch: Epoch, telemetry: Telemetry) -> Self {
        Self { epoch, next: Arc::default(), links: Arc::default(), telemetry }
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<Session, Frames>> {
        self.links.lock().expect("nothing panics while holding the lock")
    }

    /// A new link; its frames come out of the receiver.
    pub fn open(&self) -> (Session, mpsc::Receiver<Result<HeadFrame, tonic::Status>>) {
        let session = Session(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.links().insert(session, sender);
        self.telemetry.links(1);
        (session, receiver)
    }

    pub fn close(&self, session: Session) {
        if self.links().remove(&session).is_some() {
            self.telemetry.links(-1);
        }
    }

    /// Sends a frame; false if the link is gone or stuck, which ends it.
    pub fn send(&self, session: Session, topic: Topic) -> bool {
        let frame = HeadFrame { epoch: self.epoch.0, topic: Some(topic) };
        let sent = self.links().get(&session).is_some_and(|sender| sender.try_send(Ok(frame)).is_ok());
        if !sent {
            self.close(session);
        }
        sent
    }

    /// Ends a link with a word why.
    pub fn dismiss(&self, session: Session, reason: &str) {
        self.send(session, Topic::Goodbye(Goodbye { reason: reason.to_owned() }));
        self.close(session);
    }

    pub fn dismiss_all(&self, reason: &str) {
        let all: Vec<Session> = self.links().keys().copied().collect();
        for session in all {
            self.dismiss(session, reason);
        }
    }
}
