//! The thread on which the brain runs. Inputs are handled in the order of their arrival and at the moment of it, in batches;
//! each batch is one commit; only then are its effects handed to the driver and its queries answered.
//!
//! The thread waits for nobody: effects go to a queue without a limit of its own ([`effects`]), heartbeats come through a
//! lane that keeps the latest of each connection ([`heartbeats`]), and other senders wait while the inbox is full.

pub mod effects;
mod heartbeats;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cloudtik_brain::{Action, Brain, Input, Record, Reply, Request, Session};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::Load;
use cloudtik_model::{Actor, Moment, NodeId, Timestamp};
use cloudtik_protocol::logging::chain;
use tokio::sync::{mpsc, oneshot, watch};

use crate::recorder::Recorder;
use crate::store::Store;
use crate::telemetry::Telemetry;
use effects::{Effect, EffectQueue};
use heartbeats::HeartbeatLane;

/// Inputs that wait. Beyond this, senders wait.
const QUEUE: usize = 8192;
/// Inputs that are handled in one commit, at most.
const MAX_BATCH: usize = 512;
/// A commit that has so many records takes no further input: what a full inbox leads to is not one huge transaction.
const MAX_RECORDS: usize = 256;

type Query = Box<dyn FnOnce(&Brain) + Send>;
/// The head's clock.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

enum Message {
    Input(Moment, Box<Input>),
    Query(Query),
}

/// A cheap handle on the running brain.
#[derive(Clone)]
pub struct BrainHandle {
    messages: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// What the handles share with the runner.
struct Shared {
    clock: Clock,
    heartbeats: HeartbeatLane,
    waiting: Mutex<Waiting>,
    /// Grows whenever something changed that people may look at.
    changes: watch::Sender<u64>,
    /// The position of the last event.
    events: watch::Sender<u64>,
    /// Why the store failed, which ends the runner.
    failure: OnceLock<String>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    answers: BTreeMap<u64, oneshot::Sender<Result<Reply, Refusal>>>,
}

/// The runner has ended.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("the head is stopping")]
    Shutdown,
    #[error("nothing was changed, because the head cannot store it: {0}")]
    CannotStore(String),
}

/// Milliseconds since the head started, and the wall clock.
pub fn system_clock() -> Clock {
    let started = Instant::now();
    Arc::new(move || Moment {
        mono: started.elapsed().as_millis() as u64,
        wall: Timestamp(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)),
    })
}

/// Runs one brain on a thread of its own.
pub struct BrainRunner {
    store: Arc<dyn Store>,
    recorder: Option<Recorder>,
    effects: EffectQueue,
    telemetry: Telemetry,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    /// Taken from the inbox for a commit that had no room for them.
    deferred: VecDeque<Message>,
}

impl BrainRunner {
    /// Starts the thread. Effects go to `effects`; the receiver gets the error if the store fails, which ends the head.
    pub fn start(
        make: impl FnOnce(Moment, Option<&mut Recorder>) -> Brain + Send + 'static,
        recorder: Option<Recorder>,
        store: Arc<dyn Store>,
        effects: EffectQueue,
        telemetry: Telemetry,
        clock: Clock,
    ) -> (BrainHandle, oneshot::Receiver<crate::store::Error>) {
        let (messages, inbox) = mpsc::channel(QUEUE);
        let (failed, failure) = oneshot::channel();
        let shared = Arc::new(Shared {
            clock,
            heartbeats: HeartbeatLane::default(),
            waiting: Mutex::default(),
            changes: watch::Sender::new(0),
            events: watch::Sender::new(0),
            failure: OnceLock::new(),
        });
        let runner = Self { store, recorder, effects, telemetry, shared: shared.clone(), inbox, deferred: VecDeque::new() };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("brain".to_owned())
            .spawn(move || {
                let effects = runner.effects.clone();
                if let Err(error) = runner.run(make, &runtime) {
                    let _ = failed.send(error);
                }
                effects.close();
            })
            .expect("a thread can be started");
        (BrainHandle { messages, shared }, failure)
    }

    fn run(
        mut self,
        make: impl FnOnce(Moment, Option<&mut Recorder>) -> Brain,
        runtime: &tokio::runtime::Handle,
    ) -> Result<(), crate::store::Error> {
        let shared = self.shared.clone();
        let mut brain = make((shared.clock)(), self.recorder.as_mut());
        loop {
            let pause = Duration::from_millis(brain.next_wake().saturating_sub((shared.clock)().mono));
            if self.deferred.is_empty() {
                let first = runtime.block_on(async {
                    tokio::select! {
                        biased;
                        message = self.inbox.recv() => message.map(Some),
                        () = shared.heartbeats.due() => Some(None),
                        () = tokio::time::sleep(pause) => Some(None),
                    }
                });
                let Some(first) = first else { return Ok(()) };
                self.deferred.extend(first);
            }
            let begun = Instant::now();
            let mut messages = std::mem::take(&mut self.deferred);
            // Whatever arrived by then is handled before time passes it.
            let until = (shared.clock)();
            while messages.len() < MAX_BATCH
                && let Ok(message) = self.inbox.try_recv()
            {
                messages.push_back(message);
            }
            let batch = self.handle_batch(&mut brain, messages, until);
            let stored = !batch.records.is_empty();
            if stored {
                // The same node may have changed several times in the batch: only how it is now is stored.
                let last = self.store.commit(&latest(batch.records)).inspect_err(|error| shared.fail(error))?;
                shared.stored_event(last);
                self.telemetry.committed();
            }
            self.telemetry.stepped(begun.elapsed());
            for action in batch.actions {
                self.carry_out(&brain, action);
            }
            for query in batch.queries {
                query(&brain);
            }
            if stored || batch.is_notable {
                shared.changed();
            }
        }
    }

    fn handle_batch(&mut self, brain: &mut Brain, mut messages: VecDeque<Message>, until: Moment) -> Batch {
        let mut batch = Batch::default();
        let received = self.shared.heartbeats.take();
        let first = messages.iter().find_map(|message| match message {
            Message::Input(at, _) => Some(*at),
            Message::Query(_) => None,
        });
        // Heartbeats and time passing are not shown.
        batch.is_notable = first.is_some();
        if !received.is_empty() {
            // Before the inputs, at the moment of the first of them: time must not pass a heartbeat that has arrived.
            let arrivals: Vec<u64> = received.iter().map(|heartbeat| heartbeat.at).collect();
            self.handle_input(brain, first.unwrap_or(until), Input::Heartbeats { received }, &mut batch);
            let now = (self.shared.clock)().mono;
            self.telemetry.heartbeats_waited(arrivals.into_iter().map(|at| Duration::from_millis(now.saturating_sub(at))));
        } else if messages.is_empty() {
            self.handle_input(brain, until, Input::Tick, &mut batch);
        }
        while batch.records.len() < MAX_RECORDS
            && let Some(message) = messages.pop_front()
        {
            match message {
                Message::Input(at, input) => self.handle_input(brain, at, *input, &mut batch),
                Message::Query(query) => batch.queries.push(query),
            }
        }
        self.deferred = messages;
        if let Some(recorder) = &mut self.recorder {
            recorder.flush();
        }
        batch
    }

    fn handle_input(&mut self, brain: &mut Brain, moment: Moment, input: Input, batch: &mut Batch) {
        let copy = self.recorder.as_ref().map(|_| input.clone());
        let step = brain.handle(moment, input);
        if let (Some(recorder), Some(input)) = (&mut self.recorder, copy) {
            recorder.note(moment, input, &step);
        }
        batch.records.extend(step.records);
        batch.actions.extend(step.actions);
    }

    fn carry_out(&self, brain: &Brain, action: Action) {
        if let Action::Reply { request, result } = action {
            return self.shared.answer(request, result);
        }
        let node = match &action {
            Action::SendGoal { node, .. } | Action::SendJobs { node, .. } => brain.node(node).map(Box::new),
            _ => None,
        };
        self.effects.push(Effect { action, node });
    }
}

/// What a batch of inputs led to.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    actions: Vec<Action>,
    queries: Vec<Query>,
    /// The status may differ although nothing is stored.
    is_notable: bool,
}

impl BrainHandle {
    /// Gives the brain an input that arrives now; waits while the inbox is full.
    pub async fn send(&self, input: Input) {
        // An error means that the head stops, where the input has no effect any more.
        let _ = self.messages.send(Message::Input((self.shared.clock)(), Box::new(input))).await;
    }

    /// Takes a heartbeat that arrives now. It never waits: of one connection the latest counts.
    pub fn heartbeat(&self, session: Session, node: &NodeId, load: Option<Load>) {
        self.shared.heartbeats.put(session, node, (self.shared.clock)().mono, load);
    }

    /// Sends an input that is answered, after what it led to is stored.
    pub async fn request(&self, actor: Actor, input: impl FnOnce(Request) -> Input) -> Result<Result<Reply, Refusal>, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let request = {
            let mut waiting = self.shared.waiting.lock().expect("nothing panics while holding the lock");
            // After the store has failed there is no answer.
            if self.shared.failure.get().is_some() {
                return Err(self.stopped());
            }
            waiting.next += 1;
            let number = waiting.next;
            waiting.answers.insert(number, sender);
            Request::new(number, actor)
        };
        let sent = self.messages.send(Message::Input((self.shared.clock)(), Box::new(input(request)))).await;
        if sent.is_err() {
            return Err(self.stopped());
        }
        receiver.await.map_err(|_| self.stopped())
    }

    fn stopped(&self) -> Stopped {
        self.shared.failure.get().map_or(Stopped::Shutdown, |why| Stopped::CannotStore(why.clone()))
    }

    /// Looks at the brain, after everything sent before is stored.
    pub async fn query<T: Send + 'static>(&self, look: impl FnOnce(&Brain) -> T + Send + 'static) -> Result<T, Stopped> {
        let (sender, receiver) = oneshot::channel();
        let query: Query = Box::new(move |brain| {
            let _ = sender.send(look(brain));
        });
        self.messages.send(Message::Query(query)).await.map_err(|_| self.stopped())?;
        receiver.await.map_err(|_| self.stopped())
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Announces that an event was stored by somebody else than the runner, at this position.
    pub fn stored_event(&self, position: u64) {
        self.shared.stored_event(position);
    }

    pub fn events(&self) -> watch::Receiver<u64> {
        self.shared.events.subscribe()
    }
}

impl Shared {
    /// The store failed: every request that waits for an answer ends with the reason.
    fn fail(&self, error: &crate::store::Error) {
        let _ = self.failure.set(chain(error));
        self.waiting.lock().expect("nothing panics while holding the lock").answers.clear();
    }

    fn answer(&self, request: u64, result: Result<Reply, Refusal>) {
        let waiting = self.waiting.lock().expect("nothing panics while holding the lock").answers.remove(&request);
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }

    /// Commits of others may be announced in another order than they were made.
    fn stored_event(&self, last: u64) {
        self.events.send_if_modified(|position| {
            let is_later = last > *position;
            *position = last.max(*position);
            is_later
        });
    }

    /// Announces that something changed that people may look at.
    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}

/// Of records that replace each other, the last; every event.
fn latest(records: Vec<Record>) -> Vec<Record> {
    let mut kept: Vec<Record> = Vec::with_capacity(records.len());
    let (mut nodes, mut plans, mut jobs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut cluster, mut outlook) = (false, false);
    for record in records.into_iter().rev() {
        let keep = match &record {
            Record::Node(node) => nodes.insert(node.id.clone()),
            Record::Cluster(_) => !std::mem::replace(&mut cluster, true),
            Record::Outlook(_) => !std::mem::replace(&mut outlook, true),
            // The last record of a request counts, and both are cheap.
            Record::Plan { node, .. } => plans.insert(node.clone()),
            Record::Job(job) => jobs.insert(job.id),
            Record::ResourceRequest(_)
            | Record::ResourceRequestGone { .. }
            | Record::Event(_)
            | Record::Grant(_)
            | Record::GrantGone { .. }
            | Record::JobGone { .. } => true,
        };
        if keep {
            kept.push(record);
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests;
