//! What a step leads to: records to be stored, events that say why, and actions.

mod budget;
mod repeats;

use std::collections::BTreeMap;

use cloudtik_model::answer::Answer;
use cloudtik_model::event::{Event, What};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::{Actor, NodeId};

use budget::Budget;
use repeats::Repeats;

use crate::{Action, Brain, Record, Reply, Request, Step};

/// Complaints that are alike are stored once in so many milliseconds, with their number; the body counts all refusals.
const COMPLAINT_PAUSE: u64 = 600_000;
/// Complaints that differ are stored at most this often in the long run, in milliseconds: who is refused may try again at will.
const REFUSAL_PAUSE: u64 = 30_000;
/// So many that differ are stored all the same.
const BURST: u64 = 20;

/// The sink of all components: what the step leads to, in order.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    step: Step,
    /// What was said last of each node, or of none, and how often since: the same again is no news.
    said: BTreeMap<Option<NodeId>, Said>,
    repeats: Repeats,
}

#[derive(Debug, Default)]
struct Said {
    at: Option<u64>,
    what: Option<What>,
    /// Complaints that were not stored since.
    since: u64,
    /// How many that differ were stored lately.
    budget: Budget,
}

impl Effects {
    pub(crate) fn record(&mut self, record: Record) {
        self.step.records.push(record);
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.step.actions.push(action);
    }

    /// What this step stores so far.
    pub(crate) fn records(&self) -> &[Record] {
        &self.step.records
    }

    /// What the step led to; the next one begins.
    pub(crate) fn take(&mut self) -> Step {
        std::mem::take(&mut self.step)
    }

    fn event(&mut self, event: Event, now: u64) {
        self.step.records.extend(self.repeats.admit(event, now).into_iter().map(Record::Event));
    }

    /// Whether a complaint is to be stored, and how many that were alike were not since the last.
    fn admit(&mut self, node: Option<&NodeId>, what: &What, now: u64) -> Option<u64> {
        let said = self.said.entry(node.cloned()).or_default();
        let passed = said.at.map_or(u64::MAX, |at| now.saturating_sub(at));
        said.budget.renew(now, REFUSAL_PAUSE);
        let is_known = said.what.as_ref() == Some(what) && passed < COMPLAINT_PAUSE;
        if is_known || said.budget.used >= BURST {
            said.since += 1;
            return None;
        }
        said.budget.used += 1;
        (said.at, said.what) = (Some(now), Some(what.clone()));
        Some(std::mem::take(&mut said.since))
    }
}

impl Brain {
    pub(crate) fn event(&mut self, node: Option<&NodeId>, what: What) {
        self.push_event(None, node, what, 0, Vec::new());
    }

    /// Stores an event with the last lines of a service's log.
    pub(crate) fn event_with_log(&mut self, node: Option<&NodeId>, what: What, log: Vec<String>) {
        self.push_event(None, node, what, 0, log);
    }

    /// Stores an event that an actor caused.
    pub(crate) fn requested(&mut self, actor: &Actor, node: Option<&NodeId>, what: What) {
        self.push_event(Some(actor), node, what, 0, Vec::new());
    }

    fn push_event(&mut self, actor: Option<&Actor>, node: Option<&NodeId>, what: What, more: u64, log: Vec<String>) {
        let generation = node.and_then(|id| self.nodes.get(id)).map(|n| n.record.generation);
        let actor = actor.cloned();
        let event = Event { node: node.cloned(), generation, actor, more, log, ..Event::new(self.clock.wall(), what) };
        self.effects.event(event, self.clock.now());
    }

    /// Stores a refusal of what somebody asked for; it is about a node if there is one of that name.
    pub(crate) fn refuse(&mut self, actor: &Actor, id: &NodeId, what: What) {
        let node = self.nodes.contains_key(id).then(|| id.clone());
        self.complain_of(Some(actor), node.as_ref(), what);
    }

    /// Stores what may come again and again, but no flood of it: an event that explains something must not be pushed out
    /// of the log by what only repeats itself.
    pub(crate) fn complain(&mut self, node: Option<&NodeId>, what: What) {
        self.complain_of(None, node, what);
    }

    /// The same for a request, whose actor is named in the event.
    pub(crate) fn complain_of(&mut self, actor: Option<&Actor>, node: Option<&NodeId>, what: What) {
        let Some(more) = self.effects.admit(node, &what, self.clock.now()) else { return };
        self.push_event(actor, node, what, more, Vec::new());
    }

    pub(crate) fn store_cluster(&mut self) {
        let record = self.cluster();
        self.effects.record(Record::Cluster(record));
    }

    /// Stores what was withheld of a node's events, as far as that is allowed by now.
    pub(crate) fn release_events(&mut self, id: &NodeId) {
        let now = self.clock.now();
        let Effects { step, repeats, .. } = &mut self.effects;
        step.records.extend(repeats.release(id, now, false).into_iter().map(Record::Event));
        if let Some(at) = repeats.next_release(id) {
            self.wake_at(id, at);
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.effects.act(action);
    }

    /// Answers a request that was granted.
    pub(crate) fn done(&mut self, request: Request, answer: Answer) {
        self.reply(request, Ok(Reply::Done { answer }));
    }

    pub(crate) fn reply(&mut self, request: Request, result: Result<Reply, Refusal>) {
        self.act(Action::Reply { request: request.number, result });
    }
}
