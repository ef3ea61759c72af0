//! The thread on which the brain runs. Inputs are taken as they come, in batches; each batch is one commit; only then are
//! its actions handed to the driver and its questions answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cloudtik_brain::{Action, Brain, Input, NodeView, Record, Refusal, Reply, Request};
use cloudtik_model::{Moment, Timestamp};
use cloudtik_protocol::logging::chain;
use tokio::sync::{mpsc, oneshot, watch};

use crate::recorder::Recorder;
use crate::store::Store;
use crate::telemetry::Telemetry;

/// Inputs that wait. Beyond this, senders wait; heartbeats are dropped, since the next one says the same.
const QUEUE: usize = 8192;
/// Inputs that are handled in one commit, at most.
const BATCH: usize = 512;

type Question = Box<dyn FnOnce(&Brain) + Send>;

enum Message {
    Input(Box<Input>),
    Ask(Question),
}

/// An action, with what the driver needs to know for it.
#[derive(Debug)]
pub struct Deed {
    pub action: Action,
    pub node: Option<Box<NodeView>>,
}

/// A cheap handle on the mind.
#[derive(Clone)]
pub struct Mind {
    messages: mpsc::Sender<Message>,
    waiting: Arc<Mutex<Waiting>>,
    /// Grows whenever something changed that people may look at.
    changes: watch::Sender<u64>,
    /// The position of the last event.
    events: watch::Sender<u64>,
    telemetry: Telemetry,
    /// Why the store failed, which ends the mind.
    failure: Arc<OnceLock<String>>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    answers: BTreeMap<Request, oneshot::Sender<Result<Reply, Refusal>>>,
}

/// The head stops, and why if it is not because it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("the head is stopping")]
    Told,
    #[error("nothing was changed, because the head cannot store it: {0}")]
    CannotStore(String),
}

impl Mind {
    /// Starts the thread. Deeds go to `deeds`; the receiver hears if the store fails, which ends the head.
    pub fn start(
        brain: impl FnOnce(Moment, Option<&mut Recorder>) -> Brain + Send + 'static,
        recorder: Option<Recorder>,
        store: Arc<Store>,
        deeds: mpsc::Sender<Deed>,
        telemetry: Telemetry,
    ) -> (Self, oneshot::Receiver<crate::store::Error>) {
        let (messages, inbox) = mpsc::channel(QUEUE);
        let (failed, failure) = oneshot::channel();
        let mind = Self {
            messages,
            waiting: Arc::default(),
            changes: watch::Sender::new(0),
            events: watch::Sender::new(0),
            telemetry,
            failure: Arc::default(),
        };
        let (own, runtime) = (mind.clone(), tokio::runtime::Handle::current());
        std::thread::Builder::new()
            .name("mind".to_owned())
            .spawn(move || {
                if let Err(error) = think(brain, recorder, &store, inbox, &deeds, &own, &runtime) {
                    let _ = failed.send(error);
                }
            })
            .expect("a thread can be started");
        (mind, failure)
    }

    pub async fn tell(&self, input: Input) {
        // An error means that the head stops: nobody needs to hear it any more.
        let _ = self.messages.send(Message::Input(Box::new(input))).await;
    }

    /// For what says the same again soon: dropped, and counted, if the mind is behind.
    pub fn tell_if_idle(&self, input: Input) {
        if self.messages.try_send(Message::Input(Box::new(input))).is_err() {
            self.telemetry.dropped_heartbeat();
        }
    }

    /// Tells something that is answered, after what it led to is stored.
    pub async fn request(&self, input: impl FnOnce(Request) -> Input) -> Result<Result<Reply, Refusal>, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let request = {
            let mut waiting = self.waiting.lock().expect("nothing panics while holding the lock");
            waiting.next += 1;
            let request = Request(waiting.next);
            waiting.answers.insert(request, sender);
            request
        };
        let told = self.messages.send(Message::Input(Box::new(input(request)))).await;
        if told.is_err() {
            return Err(self.stopped());
        }
        receiver.await.map_err(|_| self.stopped())
    }

    fn stopped(&self) -> Stopped {
        self.failure.get().map_or(Stopped::Told, |why| Stopped::CannotStore(why.clone()))
    }

    /// The store failed: whoever waits for an answer hears why, since none will come.
    fn fail(&self, error: &crate::store::Error) {
        let _ = self.failure.set(chain(error));
        self.waiting.lock().expect("nothing panics while holding the lock").answers.clear();
    }

    /// Looks at the brain, after everything told before is stored.
    pub async fn ask<T: Send + 'static>(&self, look: impl FnOnce(&Brain) -> T + Send + 'static) -> Result<T, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let question: Question = Box::new(move |brain| {
            let _ = sender.send(look(brain));
        });
        self.messages.send(Message::Ask(question)).await.map_err(|_| self.stopped())?;
        receiver.await.map_err(|_| self.stopped())
    }

    pub fn answer(&self, request: Request, result: Result<Reply, Refusal>) {
        let waiting = self.waiting.lock().expect("nothing panics while holding the lock").answers.remove(&request);
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn events(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    /// Says that something changed that people may look at.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}

fn think(
    make: impl FnOnce(Moment, Option<&mut Recorder>) -> Brain,
    mut recorder: Option<Recorder>,
    store: &Store,
    mut inbox: mpsc::Receiver<Message>,
    deeds: &mpsc::Sender<Deed>,
    mind: &Mind,
    runtime: &tokio::runtime::Handle,
) -> Result<(), crate::store::Error> {
    let started = Instant::now();
    let now = || Moment {
        mono: started.elapsed().as_millis() as u64,
        wall: Timestamp(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)),
    };
    let mut brain = make(now(), recorder.as_mut());
    loop {
        let wake = Duration::from_millis(brain.next_wake()).saturating_sub(started.elapsed());
        let first = match runtime.block_on(async { tokio::time::timeout(wake, inbox.recv()).await }) {
            Ok(Some(message)) => Some(message),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        let begun = Instant::now();
        let (mut records, mut actions, mut questions, mut interesting) = (Vec::new(), Vec::new(), Vec::new(), false);
        let mut take = |input: Input, brain: &mut Brain| {
            interesting |= !matches!(input, Input::Heartbeat { .. } | Input::Tick);
            let (moment, copy) = (now(), recorder.as_ref().map(|_| input.clone()));
            let step = brain.handle(moment, input);
            if let (Some(recorder), Some(input)) = (&mut recorder, copy) {
                recorder.note(moment, input, &step);
            }
            records.extend(step.records);
            actions.extend(step.actions);
        };
        match first {
            None => take(Input::Tick, &mut brain),
            Some(Message::Input(input)) => take(*input, &mut brain),
            Some(Message::Ask(question)) => questions.push(question),
        }
        for _ in 1..BATCH {
            match inbox.try_recv() {
                Ok(Message::Input(input)) => take(*input, &mut brain),
                Ok(Message::Ask(question)) => questions.push(question),
                Err(_) => break,
            }
        }
        if let Some(recorder) = &mut recorder {
            recorder.flush();
        }
        // The same node may have changed several times in the batch: only how it is now is stored.
        if !records.is_empty() {
            let last = store.commit(&latest(records)).inspect_err(|error| mind.fail(error))?;
            mind.events.send_if_modified(|position| std::mem::replace(position, last) != last);
            mind.telemetry.committed();
            interesting = true;
        }
        mind.telemetry.stepped(begun.elapsed());
        for action in actions {
            if let Action::Reply { request, result } = action {
                mind.answer(request, result);
                continue;
            }
            let node = match &action {
                Action::SendGoal { node, .. } => brain.node(node).map(Box::new),
                _ => None,
            };
            if deeds.blocking_send(Deed { action, node }).is_err() {
                return Ok(());
            }
        }
        for question in questions {
            question(&brain);
        }
        if interesting {
            mind.changed();
        }
    }
}

/// Of records that replace each other, the last; every event.
fn latest(records: Vec<Record>) -> Vec<Record> {
    let mut kept: Vec<Record> = Vec::with_capacity(records.len());
    let (mut nodes, mut plans, mut cluster, mut outlook) = (BTreeSet::new(), BTreeSet::new(), false, false);
    for record in records.into_iter().rev() {
        let keep = match &record {
            Record::Node(node) => nodes.insert(node.id.clone()),
            Record::Cluster(_) => !std::mem::replace(&mut cluster, true),
            Record::Outlook(_) => !std::mem::replace(&mut outlook, true),
            // The last word on an ask is what counts, and both are cheap.
            Record::Plan { node, .. } => plans.insert(node.clone()),
            Record::Ask(_) | Record::AskGone { .. } | Record::Event(_) => true,
        };
        if keep {
            kept.push(record);
        }
    }
    kept.reverse();
    kept
}
