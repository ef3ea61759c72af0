//! What the provider's list means: an instance that a launch left behind is adopted, one that nobody knows is deleted,
//! one that is missing is lost, but only once "not visible yet" is no explanation any more.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::What;
use cloudtik_model::node::{Instance, InstanceState, NodeState};
use cloudtik_model::reason::{InstanceReport, Reason};
use cloudtik_model::{InstanceId, NodeId};

use crate::nodes::pause;
use crate::{Action, Brain, Failure, FailureKind};

/// The least time between two lists, in milliseconds.
const LIST_PAUSE: u64 = 1_000;
/// A list that has not come back after this, in milliseconds, is asked for again.
const LIST_LOST_AFTER: u64 = 60_000;
/// A deletion that has not come back after this, in milliseconds, is asked for again.
const CALL_LOST_AFTER: u64 = 60_000;

#[derive(Debug, Default)]
pub(crate) struct Reconcile {
    in_flight: bool,
    /// Of the last question.
    number: u64,
    /// When the list in flight was asked for.
    asked: u64,
    next: u64,
    wanted_now: bool,
    /// Not before this is the next list asked for: the provider said that there were too many calls.
    not_before: u64,
    /// Lists that were throttled in a row.
    throttled: u32,
    /// Orphans that the last list showed: a second look confirms them.
    suspects: BTreeSet<InstanceId>,
    /// Orphans that were asked to be deleted.
    swept: BTreeMap<InstanceId, Swept>,
}

/// What became of an orphan's deletion.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// Since when a call has not come back.
    in_flight: Option<u64>,
    /// Not before this is the next call made.
    not_before: u64,
    failures: u32,
}

impl Reconcile {
    /// Something suggests that the provider's list is worth a look: it is asked for as soon as that may be.
    pub(crate) fn request_list(&mut self) {
        self.wanted_now = true;
    }
}

impl Brain {
    pub(crate) fn listing_due(&self) -> Option<u64> {
        let listing = &self.reconcile;
        Some(if listing.in_flight {
            listing.asked + LIST_LOST_AFTER
        } else if listing.wanted_now {
            listing.next.saturating_sub(self.config.list_every.saturating_sub(LIST_PAUSE)).max(listing.not_before)
        } else {
            listing.next.max(listing.not_before)
        })
    }

    pub(crate) fn look_at_list(&mut self) {
        let now = self.clock.now();
        if self.listing_due().is_some_and(|due| due <= now) {
            self.reconcile.in_flight = true;
            self.reconcile.wanted_now = false;
            self.reconcile.asked = now;
            self.reconcile.next = now + self.config.list_every;
            self.reconcile.number += 1;
            let number = self.reconcile.number;
            self.act(Action::ListInstances { number });
        }
    }

    pub(crate) fn take_list(&mut self, number: u64, result: Result<Vec<Instance>, Failure>) {
        // One that was given up: it may be older than what it would be compared with.
        if number != self.reconcile.number || !self.reconcile.in_flight {
            return;
        }
        let asked = self.reconcile.asked;
        self.reconcile.in_flight = false;
        let instances = match result {
            Ok(instances) => {
                (self.reconcile.not_before, self.reconcile.throttled) = (0, 0);
                instances
            }
            Err(failure) if failure.kind == FailureKind::Throttled => {
                self.reconcile.throttled = self.reconcile.throttled.saturating_add(1);
                self.reconcile.not_before = self.clock.now() + pause(self.reconcile.throttled, &failure);
                self.take_throttling(&failure);
                return;
            }
            Err(failure) => {
                // Unknown is not gone: nothing follows from a list that failed.
                self.complain(None, What::ListFailed { error: failure.message });
                return;
            }
        };
        let mut orphans = BTreeSet::new();
        let mut listed: BTreeMap<NodeId, Instance> = BTreeMap::new();
        for instance in instances {
            if instance.state == InstanceState::Terminated {
                continue;
            }
            match self.nodes.get(&instance.node) {
                Some(n) if n.record.generation == instance.generation && n.record.life != NodeState::Gone => match &n.record.instance {
                    Some(known) if *known != instance.id => {
                        orphans.insert(instance.id.clone());
                        self.sweep(&instance);
                    }
                    _ => {
                        listed.insert(instance.node.clone(), instance);
                    }
                },
                // A generation that this head never made up cannot be: the store is ahead of every launch.
                _ => {
                    orphans.insert(instance.id.clone());
                    self.sweep(&instance);
                }
            }
        }
        self.reconcile.swept.retain(|id, _| orphans.contains(id));
        self.reconcile.suspects = orphans;
        if !self.reconcile.suspects.is_empty() && !self.is_held() {
            self.reconcile.request_list();
        }
        for id in self.nodes.ids() {
            self.compare(&id, listed.remove(&id), asked);
            self.look_at(&id);
        }
    }

    /// An instance that no node of ours has. The head's own node is never swept: its maker is the launcher.
    fn sweep(&mut self, instance: &Instance) {
        // Without a specification the store holds nothing yet: it can call nobody a stranger.
        if instance.node.is_head() || self.cluster.spec.is_none() {
            return;
        }
        if !self.reconcile.suspects.contains(&instance.id) || self.is_held() {
            return;
        }
        let now = self.clock.now();
        if let Some(swept) = self.reconcile.swept.get(&instance.id) {
            let is_under_way = swept.in_flight.is_some_and(|since| now < since + CALL_LOST_AFTER);
            if is_under_way || now < swept.not_before {
                return;
            }
        } else {
            let what = What::DeleteOrphan { instance: instance.id.clone(), owner: instance.node.clone(), of: instance.generation };
            let node = self.nodes.contains_key(&instance.node).then_some(&instance.node);
            self.event(node, what);
        }
        let is_free = self.pace().take(now).is_ok();
        let swept = self.reconcile.swept.entry(instance.id.clone()).or_default();
        if !is_free {
            // Lists go on as long as there are orphans: its turn comes.
            return;
        }
        swept.in_flight = Some(now);
        self.act(Action::Delete { node: instance.node.clone(), generation: instance.generation, instance: instance.id.clone() });
    }

    /// The answer to an orphan's deletion.
    pub(crate) fn take_swept(&mut self, instance: &InstanceId, result: Result<(), Failure>) {
        let now = self.clock.now();
        // It may be listed for a while after it is gone.
        let visibility = self.config.visibility;
        let Some(swept) = self.reconcile.swept.get_mut(instance) else { return };
        swept.in_flight = None;
        match result {
            Ok(()) => {
                swept.not_before = now + visibility;
                self.pace().worked(now);
            }
            Err(failure) if failure.kind == FailureKind::Throttled => {
                swept.not_before = now + failure.wait();
                self.take_throttling(&failure);
            }
            Err(failure) => {
                swept.failures += 1;
                swept.not_before = now + pause(swept.failures, &failure);
                self.complain(None, What::OrphanDeleteFailed { instance: instance.clone(), error: failure.message });
            }
        }
    }

    /// What a list that was asked for at `asked` says of one node.
    fn compare(&mut self, id: &NodeId, listed: Option<Instance>, asked: u64) {
        let visibility = self.config.visibility;
        let Some(node) = self.nodes.get(id) else { return };
        match listed {
            Some(instance) => {
                let running = matches!(instance.state, InstanceState::Running | InstanceState::Starting);
                let state = instance.state;
                let is_unknown = node.record.instance.is_none();
                let is_news = self.nodes.note_listed(id, instance.address.clone());
                if is_unknown {
                    self.adopt(id, instance, |instance| Reason::Found { instance });
                } else if is_news {
                    self.store_node(id);
                }
                let node = &self.nodes[id];
                let is_left_alone = node.record.life.is_leaving() || matches!(node.record.life, NodeState::Quarantined { .. });
                if running || !node.is_worker() || is_left_alone || node.entered >= asked {
                    return;
                }
                // A list may be of the past: whoever is heard runs.
                if self.is_heard(id) || self.is_rebooting(id) {
                    return;
                }
                // A machine that only stands still has its disks.
                if let Err(why) = self.may_be_replaced(id) {
                    return self.complain(Some(id), What::LossNotReplaced { instance: state.into(), why });
                }
                self.provider_says_lost(id, state.into());
            }
            None if !node.record.life.may_exist() || id.is_head() => {}
            // A call that may still make it: its answer comes, or its deadline.
            None if node.in_flight => {}
            None => {
                if node.entered.max(node.adopted) >= asked {
                    // The list is older than what it would be compared with.
                    return;
                }
                // Missing, in lists asked for since it entered its state, for as long as the provider may hide it.
                let since = self.nodes.note_unlisted(id, asked);
                let Some(node) = self.nodes.get(id) else { return };
                // A launch that may still be under way shows nothing before it had its effect.
                let launching = node.uncertain.filter(|_| node.record.instance.is_none() && visibility > 0);
                let since = launching.map_or(since, |at| since.max(at + self.config.call_limit));
                let silent = node.link.is_none();
                let sure = asked.saturating_sub(since) >= visibility;
                if !sure || !silent {
                    return;
                }
                match &node.record.life {
                    NodeState::Terminating { .. } => self.forget(id, Reason::NotListed),
                    NodeState::Launched | NodeState::Joined | NodeState::Down { .. } | NodeState::Suspect { .. } => {
                        self.provider_says_lost(id, InstanceReport::NotListed);
                    }
                    _ => {}
                }
            }
        }
    }

    /// A launch whose outcome is unknown is over when the provider, asked for long enough, lists nothing of it.
    pub(crate) fn drive_unknown_launch(&mut self, id: &NodeId) {
        let now = self.clock.now();
        self.reconcile.request_list();
        let Some(node) = self.nodes.get(id) else { return };
        let since = node.unlisted_since.unwrap_or(now);
        if self.config.visibility == 0 && node.unlisted_since.is_some_and(|since| since > node.entered) {
            return self.forget(id, Reason::NotListed);
        }
        self.wake_at(id, (since + self.config.visibility).max(now + LIST_PAUSE));
    }
}
