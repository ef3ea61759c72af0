//! Bounds of the events that agents cause: what one node repeats without end must not push out of the log what explains others.
//!
//! Each subject of a node, its connection or one of its services, has a budget of events, and the node has one for all its
//! subjects. Of what exceeds them only the latest event of each subject is kept. It is stored once the budgets allow, with the
//! number of those that were left out: the log ends with how things are.

use std::collections::BTreeMap;

use cloudtik_model::event::{Event, StateName, What};
use cloudtik_model::{NodeId, ServiceKey};

use super::budget::Budget;

/// Events of one subject within a short time. A service that crashes stays below it until its restarts are half a minute apart.
const SUBJECT_BURST: u64 = 40;
/// Milliseconds until one more is allowed.
const SUBJECT_PAUSE: u64 = 30_000;
/// Events of all subjects of a node within a short time.
const NODE_BURST: u64 = 200;
/// Milliseconds until one more is allowed.
const NODE_PAUSE: u64 = 6_000;
/// Subjects of a node with a budget of their own, at most; those beyond share one.
const MAX_SUBJECTS: usize = 256;

/// The budgets of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Repeats(BTreeMap<NodeId, OfNode>);

#[derive(Debug, Default)]
struct OfNode {
    budget: Budget,
    subjects: BTreeMap<Subject, OfSubject>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// Whether the node is connected and its services are ready.
    Presence,
    Clock,
    /// What the kernel killed that is of no service.
    Memory,
    Service(ServiceKey),
    OtherServices,
}

#[derive(Debug, Default)]
struct OfSubject {
    budget: Budget,
    /// The latest event, if it is not stored.
    withheld: Option<Box<Event>>,
    /// Events that are neither stored nor withheld.
    left_out: u64,
}

/// What an event that an agent can cause as often as it likes is about.
fn subject(event: &Event) -> Option<(NodeId, Subject)> {
    let subject = match &event.what {
        What::ServiceFailed { service, .. } | What::ServiceChanged { service, .. } => Subject::Service(service.clone()),
        What::MemoryUsedUp { kills } => kills.service.clone().map_or(Subject::Memory, Subject::Service),
        What::StateChanged { from, to, .. } if is_present(*from) && is_present(*to) => Subject::Presence,
        What::ClockOff { .. } => Subject::Clock,
        _ => return None,
    };
    Some((event.node.clone()?, subject))
}

/// A state that a node may leave and enter again without anything being made or ended.
fn is_present(state: StateName) -> bool {
    matches!(state, StateName::Preparing | StateName::Ready | StateName::Suspect)
}

impl Repeats {
    /// What is to be stored now: the event, if no budget is exceeded. One that ends what a node was follows what was withheld of
    /// that node.
    pub(crate) fn admit(&mut self, event: Event, now: u64) -> Vec<Event> {
        let Some((node, subject)) = subject(&event) else {
            let mut all = match (&event.node, &event.what) {
                (Some(node), What::StateChanged { .. }) => self.release(node, now, true),
                _ => Vec::new(),
            };
            all.push(event);
            return all;
        };
        let of = self.0.entry(node).or_default();
        of.budget.renew(now, NODE_PAUSE);
        let subject = of.with_room(subject, now);
        let entry = of.subjects.entry(subject).or_default();
        entry.budget.renew(now, SUBJECT_PAUSE);
        if of.budget.used >= NODE_BURST || entry.budget.used >= SUBJECT_BURST {
            entry.left_out += u64::from(entry.withheld.replace(Box::new(event)).is_some());
            return Vec::new();
        }
        of.budget.used += 1;
        entry.budget.used += 1;
        entry.left_out += u64::from(entry.withheld.take().is_some());
        vec![Event { more: std::mem::take(&mut entry.left_out), ..event }]
    }

    /// What was withheld of a node and may be stored now, or all of it.
    pub(crate) fn release(&mut self, node: &NodeId, now: u64, all: bool) -> Vec<Event> {
        let Some(of) = self.0.get_mut(node) else { return Vec::new() };
        let mut released = Vec::new();
        of.budget.renew(now, NODE_PAUSE);
        for entry in of.subjects.values_mut().filter(|entry| entry.withheld.is_some()) {
            entry.budget.renew(now, SUBJECT_PAUSE);
            let is_free = of.budget.used < NODE_BURST && entry.budget.used < SUBJECT_BURST;
            if (is_free || all)
                && let Some(event) = entry.withheld.take()
            {
                of.budget.used += 1;
                entry.budget.used += 1;
                released.push(Event { more: std::mem::take(&mut entry.left_out), ..*event });
            }
        }
        released
    }

    /// When something that was withheld of a node may be stored.
    pub(crate) fn next_release(&self, node: &NodeId) -> Option<u64> {
        let of = self.0.get(node)?;
        let withheld = of.subjects.values().filter(|entry| entry.withheld.is_some());
        let first = withheld.map(|entry| entry.budget.free_at(SUBJECT_BURST, SUBJECT_PAUSE)).min()?;
        Some(first.max(of.budget.free_at(NODE_BURST, NODE_PAUSE)))
    }
}

impl OfNode {
    /// A subject that has a budget or gets one; what was idle for long makes room.
    fn with_room(&mut self, subject: Subject, now: u64) -> Subject {
        if self.subjects.contains_key(&subject) || self.subjects.len() < MAX_SUBJECTS {
            return subject;
        }
        self.subjects.retain(|_, entry| {
            entry.budget.renew(now, SUBJECT_PAUSE);
            entry.budget.used > 0 || entry.withheld.is_some()
        });
        if self.subjects.len() < MAX_SUBJECTS { subject } else { Subject::OtherServices }
    }
}
