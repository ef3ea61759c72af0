//! How many workers there are to be, and which to make or end. Never above a type's maximum, the cluster's maximum
//! or the budget, counting every instance that may exist.
//!
//! A decision is made whenever something changed that it depends on, at the end of the step that changed it:
//! what is wanted by number (`wants`), what needs room (`requests`, on the fleet of [`crate::packing`]), what to make for it
//! (`launch`), and what is not wanted any more (`shrink`).
//!
//! | module | decides |
//! |---|---|
//! | `requests` | which requests are granted, kept, ended and revoked |
//! | `table` | nothing: the requests that stand |
//! | `conflicts` | which requests another description would end or leave without room |
//! | `usage` | nothing: whether a node does something |
//! | `room` | whether what is asked for could be had, and what it would take |
//! | `wants` | how many workers of each type are wanted, and by whom |
//! | `policies` | what load, schedules and signals ask for, and how fast they may change their mind |
//! | `hours` | when a schedule begins and ends |
//! | `shapes` | what machines of a type are taken to have |
//! | `tally` | what there is and what it costs |
//! | `history` | nothing: how busy nodes were |
//! | `buy` | what to buy for what has no room |
//! | `exchange` | what makes room on machines that have something rare, as GPUs |
//! | `layout` | on which of the nodes that are there demands are planned |
//! | `plan` | nothing: how that is stored, and taken back |
//! | `gangs` | which gangs hold nothing for now |
//! | `launch` | which machines to ask for, from which offer |
//! | `offers` | which offers and types are left alone for now |
//! | `pace` | how fast the provider is called |
//! | `reasons` | nothing: why it was so decided |
//! | `shrink` | which workers to end, and when |

mod buy;
mod conflicts;
mod exchange;
mod gangs;
mod history;
mod hours;
mod launch;
mod layout;
mod offers;
mod pace;
mod plan;
mod policies;
mod reasons;
mod requests;
mod room;
mod shapes;
mod shrink;
mod table;
mod tally;
mod usage;
mod wants;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::answer::Answer;
use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};
use cloudtik_model::event::{Scale, What};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::{Blocked, Outlook, TypeOutlook};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::spec::Spec;
use cloudtik_model::{Actor, NodeId, NodeTypeName};

use self::gangs::GangPause;
use self::launch::Tried;
use self::offers::Launching;
use self::plan::TentativePlan;
use self::policies::PolicyState;
pub(crate) use self::policies::SETTLE;
use self::tally::Tally;
use self::wants::Wanted;
use crate::packing::{DIMENSIONS, Fleet, GroupId};
use crate::{Brain, ClusterRecord, Learned, Node, Pause, Planned, PolicyWant, Record, Request};

use self::hours::begins_or_ends;
use self::table::RequestTable;
pub(crate) use self::usage::Usage;

/// An outlook of which only the words changed is stored at most once in so many milliseconds.
const OUTLOOK_PAUSE: u64 = 60_000;

/// What the autoscaler remembers between two decisions. Of that, another head knows what is stored, and what nodes and the provider say
/// again: it forgets shortages, pauses of gangs, and what a plan counts on.
#[derive(Debug, Default)]
pub(crate) struct Autoscaler {
    stored: Stored,
    /// The requests that stand.
    requests: RequestTable,
    /// Requests that were granted in this step: the answer is given when it was decided what becomes of them.
    granted: Vec<(Request, String, Scale)>,
    /// A new description came.
    limits_changed: bool,
    /// Something changed that a decision depends on.
    dirty: bool,
    /// Demands went away: what is left may fit on fewer nodes.
    rebuild: bool,
    /// When to decide again though nothing changes.
    due: Option<u64>,
    tally: Tally,
    launching: Launching,
    fleet: Fleet,
    /// Workers that count and of which it is not known what they offer.
    shapeless: BTreeSet<NodeId>,
    /// The names of the resources beyond cores, memory and GPUs, by dimension.
    custom: Vec<String>,
    /// The names of the requests that have room on the fleet or are to have it, by their numbers.
    groups: BTreeMap<GroupId, String>,
    /// Of every node, what is stored as planned on it.
    stored_plan: BTreeMap<NodeId, Vec<Planned>>,
    /// Another plan was taken as a whole.
    is_plan_new: bool,
    /// In this step it was planned anew where everything lies.
    is_laid_out: bool,
    tentative: Option<TentativePlan>,
    policies: BTreeMap<String, PolicyState>,
    wanted: BTreeMap<NodeTypeName, Wanted>,
    outlook: Outlook,
    /// When that was stored last.
    outlook_stored: u64,
    /// What the last purchase was tried with, if it left something over: the same again would do the same.
    tried: Option<Tried>,
    /// Gangs of which too little was to be had.
    gangs: BTreeMap<GroupId, GangPause>,
    /// What was refused since anything changed that promises depend on, and why: the same again is refused at once.
    refused: Vec<(RequestedCapacity, Refusal)>,
    /// Whether all that is asked for would have room on other machines within the limits; until the same changes.
    would_fit: OnceCell<bool>,
    /// Grows with every change of what is asked for.
    request_changes: u64,
    /// The number of the last machine that was asked for.
    launched: u64,
    /// Purchases in a row by which nothing was bought, and when the next may be tried.
    fruitless: u32,
    retry_at: u64,
    /// When a request for a number of a type last ended.
    released: BTreeMap<NodeTypeName, u64>,
    /// When a worker of a type left last.
    left: BTreeMap<NodeTypeName, u64>,
    /// When it may be planned anew where everything lies, for what waits and to make it cheaper.
    repack_not_before: u64,
    /// It was not time for that when something waited.
    repack_postponed: bool,
    tighten_not_before: u64,
    /// It may be cheaper otherwise, which was not looked at yet.
    is_loose: bool,
    /// The fleet was filled anew from what is stored: what was planned may not fit any more.
    is_refilled: bool,
    /// Grows with everything that a purchase depends on.
    changes: u64,
}

/// What of the autoscaler is stored with the cluster's record: see [`ClusterRecord`] for what each says.
#[derive(Debug, Default)]
struct Stored {
    paused: BTreeMap<NodeTypeName, Pause>,
    immediate: BTreeMap<NodeTypeName, u32>,
    when_idle: BTreeSet<NodeTypeName>,
    former_drains: BTreeMap<NodeTypeName, u64>,
    policy_wants: BTreeMap<String, PolicyWant>,
    learned: BTreeMap<NodeTypeName, Learned>,
}

impl Autoscaler {
    /// From what is stored. What an earlier head saw last is not news.
    pub(crate) fn restore(
        cluster: &ClusterRecord,
        requests: Vec<ResourceRequest>,
        outlook: Outlook,
        plan: BTreeMap<NodeId, Vec<Planned>>,
        launched: u64,
    ) -> Self {
        let ClusterRecord { paused, immediate, when_idle, former_drains, policy_wants, learned, .. } = cluster.clone();
        let stored = Stored { paused, immediate, when_idle, former_drains, policy_wants, learned };
        let requests = RequestTable::new(requests);
        let mut autoscaler = Self { stored, requests, outlook, stored_plan: plan, launched, ..Self::default() };
        autoscaler.launching.remember(&autoscaler.stored.paused);
        autoscaler
    }

    /// Its part of what is stored of the cluster.
    pub(crate) fn fill_in(&self, record: ClusterRecord) -> ClusterRecord {
        let Stored { paused, immediate, when_idle, former_drains, policy_wants, learned } = &self.stored;
        ClusterRecord {
            paused: paused.clone(),
            immediate: immediate.clone(),
            when_idle: when_idle.clone(),
            former_drains: former_drains.clone(),
            policy_wants: policy_wants.clone(),
            learned: learned.clone(),
            ..record
        }
    }

    /// What there was too little of may be to be had.
    fn forget_shortages(&mut self) {
        self.launching.forget_shortages();
        self.gangs.clear();
    }

    /// Somebody says that it is worth trying again; the types of which the creation was paused.
    pub(crate) fn resume(&mut self) -> Vec<NodeTypeName> {
        let paused = std::mem::take(&mut self.stored.paused);
        self.forget_shortages();
        self.launching.forget_failures();
        paused.into_keys().collect()
    }

    /// Types of which nothing is made for now.
    pub(crate) fn paused(&self) -> &BTreeMap<NodeTypeName, Pause> {
        &self.stored.paused
    }

    /// How long services may take to let their work go on workers of a type that the description no longer has.
    pub(crate) fn former_drain(&self, name: &NodeTypeName) -> Option<u64> {
        self.stored.former_drains.get(name).copied()
    }

    /// A node entered the state that its record says.
    pub(crate) fn on_state_entered(&mut self, record: &NodeRecord, was_leaving: bool, now: u64) {
        self.note_tentative(&record.id, &record.life);
        if record.life == NodeState::Gone {
            self.launching.freed(&record.node_type);
        }
        let ends_unplanned = matches!(record.life, NodeState::Terminating { .. } | NodeState::Failed { .. });
        if ends_unplanned && !was_leaving && !record.id.is_head() {
            self.launching.lost(&record.node_type, &record.id, record.generation, now);
        }
        if record.life.is_leaving() && !was_leaving {
            self.left.insert(record.node_type.clone(), now);
        }
    }

    /// A new description came: what is due now may not be allowed any more.
    pub(crate) fn take_limits_changed(&mut self) -> bool {
        std::mem::take(&mut self.limits_changed)
    }
}

impl Brain {
    /// Something changed that the cluster's size depends on: decides at the end of this step.
    pub(crate) fn reconsider_scale(&mut self) {
        self.autoscaler.dirty = true;
    }

    /// What could not be bought is worth another try.
    pub(crate) fn scaling_changed(&mut self) {
        self.autoscaler.changes += 1;
        self.reconsider_scale();
    }

    pub(crate) fn scaling_due(&self) -> Option<u64> {
        self.autoscaler.due
    }

    /// Takes in what became of a node, for counting and for the fleet.
    pub(crate) fn recount(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id).filter(|n| n.is_worker()) else { return };
        self.autoscaler.changes += 1;
        self.autoscaler.tally.set(&node.record);
        if !node.record.life.is_counted() {
            self.autoscaler.fleet.remove_node(id);
            self.autoscaler.shapeless.remove(id);
        } else if !self.autoscaler.fleet.has(id) {
            match self.capacity_of_node(node) {
                Some(capacity) => {
                    self.autoscaler.fleet.add_node(id.clone(), capacity);
                    // What waits and was given up may have room now, and what is elsewhere may be cheaper here.
                    self.autoscaler.tried = None;
                    self.autoscaler.is_loose = true;
                }
                None => drop(self.autoscaler.shapeless.insert(id.clone())),
            }
        }
    }

    /// Begins with an empty fleet: after a restart, and when types changed. What was planned stays as far as it fits.
    pub(crate) fn refill_fleet(&mut self) {
        let custom = self.cluster.spec.iter().flat_map(|s| s.workers.values()).flat_map(|w| w.custom.keys().cloned());
        let names: BTreeSet<String> = custom.collect();
        self.autoscaler.custom = names.into_iter().take(DIMENSIONS - 3).collect();
        self.autoscaler.fleet = Fleet::default();
        self.autoscaler.shapeless.clear();
        self.autoscaler.groups.clear();
        self.learn_from_found();
        for id in self.nodes.ids() {
            self.recount(&id);
        }
        self.place_requests();
        (self.autoscaler.rebuild, self.autoscaler.is_refilled, self.autoscaler.is_plan_new) = (true, true, true);
        self.reconsider_scale();
    }

    /// Refusals hold as long as what is stored of the cluster and of its requests.
    pub(crate) fn forget_refusals(&mut self) {
        let is_news =
            |record: &Record| matches!(record, Record::Cluster(_) | Record::ResourceRequest(_) | Record::ResourceRequestGone { .. });
        if self.effects.records().iter().any(is_news) {
            self.autoscaler.refused.clear();
            self.autoscaler.would_fit.take();
        }
    }

    pub(crate) fn take_spec(&mut self, spec: Spec, actor: &Actor) {
        if self.cluster.spec.as_ref().is_some_and(|known| known.revision >= spec.revision) {
            return;
        }
        self.requested(actor, None, What::SpecificationAccepted { revision: spec.revision });
        let known = self.cluster.take_spec();
        // What somebody asked for by hand holds, within what the file allows now.
        self.end_requests_of_missing_types(&spec);
        self.autoscaler.stored.paused.retain(|name, _| spec.workers.contains_key(name));
        self.autoscaler.stored.learned.retain(|name, _| spec.workers.contains_key(name));
        if let Some(known) = &known {
            let less = |name: &NodeTypeName| self.base(known, name).saturating_sub(self.base(&spec, name));
            let lowered: Vec<(NodeTypeName, u32)> = known.workers.keys().map(|name| (name.clone(), less(name))).collect();
            self.revoke_numbers(lowered);
        }
        self.remember_drains(known.as_ref(), &spec);
        // A roll-out that is under way goes on as one, whatever the next change is about.
        let mut spec = spec;
        let is_new_try = spec.is_stepwise();
        let is_behind = |known: &Spec| self.nodes.values().any(|n| n.record.revision < known.revision && !n.record.life.is_leaving());
        if let Some(known) =
            known.as_ref().filter(|known| known.is_stepwise() && (self.placement.current_rollout().is_some() || is_behind(known)))
        {
            spec.rolling |= known.rolling;
            for (name, span) in &known.trials {
                let longest = spec.trials.entry(name.clone()).or_default();
                *longest = (*longest).max(*span);
            }
        }
        let same_shapes = known.as_ref().is_some_and(|known| known.workers == spec.workers);
        self.autoscaler.policies.retain(|name, _| spec.policies.iter().any(|p| p.name == *name));
        self.autoscaler.stored.policy_wants.retain(|name, _| spec.policies.iter().any(|p| p.name == *name));
        self.begin_rollout(known.as_ref(), &spec, is_new_try);
        self.cluster.put_spec(spec);
        self.placement.note_specified(self.clock.now());
        self.store_cluster();
        self.reconsider_all_goals();
        self.autoscaler.forget_shortages();
        self.autoscaler.limits_changed = true;
        self.price_requested_anew();
        if same_shapes { self.reconsider_scale() } else { self.refill_fleet() }
    }

    /// Workers of types that go drain as their services said.
    fn remember_drains(&mut self, known: Option<&Spec>, spec: &Spec) {
        let Self { autoscaler, nodes, .. } = self;
        let former_drains = &mut autoscaler.stored.former_drains;
        let is_there = |name: &NodeTypeName| nodes.values().any(|n| n.record.node_type == *name && n.record.life != NodeState::Gone);
        former_drains.retain(|name, _| !spec.workers.contains_key(name) && is_there(name));
        let Some(known) = known else { return };
        for name in known.workers.keys().filter(|name| !spec.workers.contains_key(name) && is_there(name)) {
            let longest = known.services_on(name).map(|placement| placement.drain_ms).max().unwrap_or(0);
            former_drains.insert(name.clone(), longest);
        }
    }

    /// What was decided and not asked for yet will cost what it costs now.
    fn price_requested_anew(&mut self) {
        let waits = |n: &&Node| n.record.life == NodeState::Requested && !n.in_flight;
        let requested: Vec<NodeId> = self.nodes.values().filter(waits).map(|n| n.record.id.clone()).collect();
        for id in requested {
            self.price_anew(&id);
        }
    }

    /// A node that will be asked for costs what its offer costs when it is.
    pub(crate) fn price_anew(&mut self, id: &NodeId) {
        let (Some(spec), Some(node)) = (&self.cluster.spec, self.nodes.get(id)) else { return };
        let offers = spec.workers.get(&node.record.node_type).map(|kind| kind.offers()).unwrap_or_default();
        let Some((_, price)) = offers.into_iter().find(|(offer, _)| *offer == node.record.offer) else { return };
        // A call that had no answer may have made it at the price before.
        let price = if node.uncertain.is_some() { price.max(node.record.price) } else { price };
        if price != node.record.price {
            let offer = node.record.offer.clone();
            self.nodes.set_offer(id, offer, price);
            self.store_node(id);
            self.recount(id);
            // It may be too much now, or leave room for others.
            self.reconsider_scale();
        }
    }

    pub(crate) fn take_shutdown(&mut self, request: Request) {
        if !self.cluster.stopping {
            self.cluster.stop();
            self.store_cluster();
            self.requested(&request.actor, None, What::Down);
        }
        self.done(request, Answer::ShuttingDown);
        self.reconsider_scale();
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.is_worker())
    }

    /// Compares what is to be with what there is, and asks for or ends nodes.
    pub(crate) fn decide(&mut self) {
        let now = self.clock.now();
        if !self.autoscaler.dirty && self.autoscaler.due.is_none_or(|due| now < due) {
            return;
        }
        self.autoscaler.dirty = false;
        self.autoscaler.due = None;
        self.autoscaler.is_laid_out = false;
        let Some(spec) = self.cluster.spec.clone() else { return };
        self.end_requests();
        self.end_pauses();
        let mut outlook = Outlook::default();
        let wanted = self.wants(&spec, &mut outlook);
        self.note_new_numbers(wanted);
        if self.cluster.stopping {
            self.scale_in_all();
        } else {
            self.lay_out();
            outlook.held = self.cluster.held.as_ref().map(|hold| Blocked::OnHold { reason: hold.reason.clone() });
            if let Some(held) = &outlook.held {
                let nobody = spec.workers.keys().map(|name| (name.clone(), held.clone())).collect();
                // Half a gang is in nobody's way.
                gangs::park_halves(&mut self.autoscaler.fleet);
                self.note_unmet(&spec, &mut outlook, &[], &nobody);
            } else {
                // Where limits leave too little for all, minima come first, and policies last.
                self.launch_wanted(&spec, &mut outlook, |_, kind, _| kind.min);
                self.launch_wanted(&spec, &mut outlook, |brain, _, name| brain.base(&spec, name));
                self.launch_for_requests(&spec, &mut outlook);
                self.launch_wanted(&spec, &mut outlook, |brain, _, name| brain.wanted_of(name));
                self.shrink(&spec, &mut outlook);
            }
        }
        for (name, wanted) in &self.autoscaler.wanted {
            let of_type = outlook.types.entry(name.clone()).or_default();
            of_type.wanted = wanted.count;
            of_type.sources.clone_from(&wanted.sources);
            of_type.present = self.autoscaler.tally.counted(name);
        }
        self.note_last_errors(&mut outlook);
        outlook.cost = self.autoscaler.tally.spent(&spec);
        self.store_outlook(outlook);
    }

    /// Decides again at the latest then.
    fn decide_at(&mut self, at: u64) {
        let at = at.max(self.clock.now() + 1);
        self.autoscaler.due = Some(self.autoscaler.due.map_or(at, |due| due.min(at)));
    }

    /// Stores what is seen, if it differs from what was.
    fn store_outlook(&mut self, mut outlook: Outlook) {
        outlook.at = self.autoscaler.outlook.at;
        if outlook == self.autoscaler.outlook {
            return;
        }
        // That a percentage moved is worth a look, but no write to the disk each second.
        let is_news = essence(&outlook) != essence(&self.autoscaler.outlook);
        let now = self.clock.now();
        if is_news {
            outlook.at = self.clock.wall();
        }
        self.autoscaler.outlook = outlook.clone();
        if is_news || now >= self.autoscaler.outlook_stored + OUTLOOK_PAUSE {
            self.autoscaler.outlook_stored = now;
            self.effects.record(Record::Outlook(outlook));
        }
    }

    pub fn outlook(&self) -> &Outlook {
        &self.autoscaler.outlook
    }

    /// How many workers of a type are wanted by number.
    pub(crate) fn wanted_of(&self, name: &NodeTypeName) -> u32 {
        self.autoscaler.wanted.get(name).map_or(0, |w| w.count)
    }
}

/// What of an outlook is more than words about numbers that move all the time.
fn essence(outlook: &Outlook) -> Outlook {
    let mut essence = outlook.clone();
    essence.policies.clear();
    essence.types.values_mut().for_each(|of_type| of_type.sources.clear());
    essence
}

fn note_blocked(outlook: &mut Outlook, name: &NodeTypeName, why: Blocked) {
    let of_type: &mut TypeOutlook = outlook.types.entry(name.clone()).or_default();
    if !of_type.blocked.contains(&why) {
        of_type.blocked.push(why);
    }
}
