//! How many workers there are to be, and which to make or let go. Never above a type's maximum, the cluster's maximum
//! or the budget, counting every instance that may exist.
//!
//! A decision is made whenever something changed that it depends on, at the end of the step that changed it:
//! what is wanted by number (`wants`), what needs room (`asks`, on the fleet of [`crate::packing`]), what to make for it
//! (`launch`), and what nobody wants any more (`shrink`).
//!
//! | module | decides |
//! |---|---|
//! | `asks` | which wishes are taken, kept, ended and taken back |
//! | `standing` | nothing: the requests that stand |
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
//! | `shrink` | which workers to let go, and when |

mod asks;
mod buy;
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
mod room;
mod shapes;
mod shrink;
mod standing;
mod tally;
mod wants;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::answer::Answer;
use cloudtik_model::demand::Wants;
use cloudtik_model::event::What;
use cloudtik_model::node::NodeState;
use cloudtik_model::outlook::{Blocked, Outlook, TypeOutlook};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::spec::Spec;
use cloudtik_model::{Actor, NodeId, NodeTypeName};

use self::gangs::GangPause;
pub(crate) use self::history::History;
use self::launch::Tried;
use self::offers::Launching;
use self::plan::Hope;
use self::policies::PolicyState;
pub(crate) use self::policies::SETTLE;
use self::tally::Tally;
pub(crate) use self::wants::Wanted;
use crate::packing::{DIMENSIONS, Fleet, GroupId};
use crate::{Brain, Node, Planned, Record, Request};

use self::hours::begins_or_ends;
pub(crate) use self::standing::Asks;

/// An outlook of which only the words changed is stored at most once in so many milliseconds.
const OUTLOOK_PAUSE: u64 = 60_000;

/// What scaling remembers between two decisions. Of that, another head knows what is stored, and what nodes and the provider say
/// again: it forgets shortages, pauses of gangs, and what a plan counts on.
#[derive(Debug, Default)]
pub(crate) struct Scaling {
    /// Something changed that a decision depends on.
    pub(crate) dirty: bool,
    /// Demands went away: what is left may fit on fewer nodes.
    pub(crate) rebuild: bool,
    /// When to decide again though nothing changes.
    due: Option<u64>,
    pub(crate) tally: Tally,
    pub(crate) launching: Launching,
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
    hope: Option<Hope>,
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
    refused: Vec<(Wants, Refusal)>,
    /// Whether all that is asked for would have room on other machines within the limits; until the same changes.
    would_fit: OnceCell<bool>,
    /// Grows with every change of what is asked for.
    ask_changes: u64,
    /// The number of the last machine that was asked for.
    pub(crate) launched: u64,
    /// Purchases in a row by which nothing was bought, and when the next may be tried.
    fruitless: u32,
    retry_at: u64,
    /// When a request for a number of a type last ended.
    released: BTreeMap<NodeTypeName, u64>,
    /// When a worker of a type left last.
    pub(crate) left: BTreeMap<NodeTypeName, u64>,
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

impl Scaling {
    /// What an earlier head saw last is not news.
    pub(crate) fn with(outlook: Outlook, plan: BTreeMap<NodeId, Vec<Planned>>) -> Self {
        Self { outlook, stored_plan: plan, ..Self::default() }
    }

    /// What there was too little of may be to be had.
    pub(crate) fn forget_shortages(&mut self) {
        self.launching.forget_shortages();
        self.gangs.clear();
    }
}

impl Brain {
    /// Something changed that the cluster's size depends on: decides at the end of this step.
    pub(crate) fn reconsider_scale(&mut self) {
        self.scaling.dirty = true;
    }

    /// What could not be bought is worth another try.
    pub(crate) fn scaling_changed(&mut self) {
        self.scaling.changes += 1;
        self.reconsider_scale();
    }

    pub(crate) fn scaling_due(&self) -> Option<u64> {
        self.scaling.due
    }

    /// Takes in what became of a node, for counting and for the fleet.
    pub(crate) fn recount(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id).filter(|n| n.is_worker()) else { return };
        self.scaling.changes += 1;
        self.scaling.tally.set(&node.record);
        if !node.record.life.is_counted() {
            self.scaling.fleet.remove_node(id);
            self.scaling.shapeless.remove(id);
        } else if !self.scaling.fleet.has(id) {
            match self.capacity_of_node(node) {
                Some(capacity) => {
                    self.scaling.fleet.add_node(id.clone(), capacity);
                    // What waits and was given up may have room now, and what is elsewhere may be cheaper here.
                    self.scaling.tried = None;
                    self.scaling.is_loose = true;
                }
                None => drop(self.scaling.shapeless.insert(id.clone())),
            }
        }
    }

    /// Begins with an empty fleet: after a restart, and when types changed. What was planned stays as far as it fits.
    pub(crate) fn refill_fleet(&mut self) {
        let custom = self.cluster.spec.iter().flat_map(|s| s.workers.values()).flat_map(|w| w.custom.keys().cloned());
        let names: BTreeSet<String> = custom.collect();
        self.scaling.custom = names.into_iter().take(DIMENSIONS - 3).collect();
        self.scaling.fleet = Fleet::default();
        self.scaling.shapeless.clear();
        self.scaling.groups.clear();
        self.learn_from_found();
        for id in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.recount(&id);
        }
        self.place_asks();
        (self.scaling.rebuild, self.scaling.is_refilled, self.scaling.is_plan_new) = (true, true, true);
        self.reconsider_scale();
    }

    /// Refusals hold as long as what is stored of the cluster and of its requests.
    pub(crate) fn forget_refusals(&mut self) {
        let is_news = |record: &Record| matches!(record, Record::Cluster(_) | Record::Ask(_) | Record::AskGone { .. });
        if self.step.records.iter().any(is_news) {
            self.scaling.refused.clear();
            self.scaling.would_fit.take();
        }
    }

    pub(crate) fn take_spec(&mut self, spec: Spec, actor: &Actor) {
        if self.cluster.spec.as_ref().is_some_and(|known| known.revision >= spec.revision) {
            return;
        }
        self.requested(actor, None, What::SpecificationAccepted { revision: spec.revision });
        let known = self.cluster.spec.take();
        // What somebody asked for by hand holds, within what the file allows now.
        self.end_asks_of_missing_types(&spec);
        self.cluster.paused.retain(|name, _| spec.workers.contains_key(name));
        self.cluster.learned.retain(|name, _| spec.workers.contains_key(name));
        self.cluster.stopping = false;
        if let Some(known) = &known {
            let less = |name: &NodeTypeName| self.base(known, name).saturating_sub(self.base(&spec, name));
            let lowered: Vec<(NodeTypeName, u32)> = known.workers.keys().map(|name| (name.clone(), less(name))).collect();
            self.take_back(lowered);
        }
        self.remember_drains(known.as_ref(), &spec);
        // A roll-out that is under way goes on as one, whatever the next change is about.
        let mut spec = spec;
        let is_new_try = spec.is_stepwise();
        let is_behind = |known: &Spec| self.nodes.values().any(|n| n.record.revision < known.revision && !n.record.life.is_leaving());
        if let Some(known) = known.as_ref().filter(|known| known.is_stepwise() && (self.cluster.rollout.is_some() || is_behind(known))) {
            spec.rolling |= known.rolling;
            for (name, span) in &known.trials {
                let longest = spec.trials.entry(name.clone()).or_default();
                *longest = (*longest).max(*span);
            }
        }
        let same_shapes = known.as_ref().is_some_and(|known| known.workers == spec.workers);
        self.scaling.policies.retain(|name, _| spec.policies.iter().any(|p| p.name == *name));
        self.cluster.policy_wants.retain(|name, _| spec.policies.iter().any(|p| p.name == *name));
        self.begin_rollout(known.as_ref(), &spec, is_new_try);
        self.cluster.spec = Some(spec);
        self.specified_at = self.clock.now();
        self.store_cluster();
        self.services_changed = false;
        self.reconsider_all_goals();
        self.scaling.forget_shortages();
        self.limits_changed = true;
        self.price_requested_anew();
        if same_shapes { self.reconsider_scale() } else { self.refill_fleet() }
    }

    /// Workers of types that go drain as their services said.
    fn remember_drains(&mut self, known: Option<&Spec>, spec: &Spec) {
        let Self { cluster, nodes, .. } = self;
        let is_there = |name: &NodeTypeName| nodes.values().any(|n| n.record.node_type == *name && n.record.life != NodeState::Gone);
        cluster.former_drains.retain(|name, _| !spec.workers.contains_key(name) && is_there(name));
        let Some(known) = known else { return };
        for name in known.workers.keys().filter(|name| !spec.workers.contains_key(name) && is_there(name)) {
            let longest = known.services_on(name).map(|placement| placement.drain_ms).max().unwrap_or(0);
            cluster.former_drains.insert(name.clone(), longest);
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
        let (Some(spec), Some(node)) = (&self.cluster.spec, self.nodes.get_mut(id)) else { return };
        let offers = spec.workers.get(&node.record.node_type).map(|kind| kind.offers()).unwrap_or_default();
        let Some((_, price)) = offers.into_iter().find(|(offer, _)| *offer == node.record.offer) else { return };
        // A call that had no answer may have made it at the price before.
        let price = if node.uncertain.is_some() { price.max(node.record.price) } else { price };
        if price != node.record.price {
            node.record.price = price;
            self.store_node(id);
            self.recount(id);
            // It may be too much now, or leave room for others.
            self.reconsider_scale();
        }
    }

    pub(crate) fn take_shutdown(&mut self, request: Request) {
        if !self.cluster.stopping {
            self.cluster.stopping = true;
            self.store_cluster();
            self.requested(&request.actor, None, What::Down);
        }
        self.done(request, Answer::ShuttingDown);
        self.reconsider_scale();
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.is_worker())
    }

    /// Compares what is to be with what there is, and asks for or lets go of nodes.
    pub(crate) fn decide(&mut self) {
        let now = self.clock.now();
        if !self.scaling.dirty && self.scaling.due.is_none_or(|due| now < due) {
            return;
        }
        self.scaling.dirty = false;
        self.scaling.due = None;
        self.scaling.is_laid_out = false;
        let Some(spec) = self.cluster.spec.clone() else { return };
        self.end_asks();
        self.end_pauses();
        let mut outlook = Outlook::default();
        let wanted = self.wants(&spec, &mut outlook);
        self.note_new_numbers(wanted);
        if self.cluster.stopping {
            self.let_everything_go();
        } else {
            self.lay_out();
            outlook.held = self.cluster.held.as_ref().map(|hold| Blocked::OnHold { reason: hold.reason.clone() });
            if let Some(held) = &outlook.held {
                let nobody = spec.workers.keys().map(|name| (name.clone(), held.clone())).collect();
                // Half a gang is in nobody's way.
                gangs::park_halves(&mut self.scaling.fleet);
                self.tell_unmet(&spec, &mut outlook, &[], &nobody);
            } else {
                // Where limits leave too little for all, minima come first, and policies last.
                self.launch_wanted(&spec, &mut outlook, |_, kind, _| kind.min);
                self.launch_wanted(&spec, &mut outlook, |brain, _, name| brain.base(&spec, name));
                self.launch_for_asks(&spec, &mut outlook);
                self.launch_wanted(&spec, &mut outlook, |brain, _, name| brain.wanted_of(name));
                self.shrink(&spec, &mut outlook);
            }
        }
        for (name, wanted) in &self.scaling.wanted {
            let of_type = outlook.types.entry(name.clone()).or_default();
            of_type.wanted = wanted.count;
            of_type.sources.clone_from(&wanted.sources);
            of_type.present = self.scaling.tally.counted(name);
        }
        self.tell_troubles(&mut outlook);
        outlook.cost = self.scaling.tally.spent(&spec);
        self.store_outlook(outlook);
    }

    /// Decides again at the latest then.
    fn decide_at(&mut self, at: u64) {
        let at = at.max(self.clock.now() + 1);
        self.scaling.due = Some(self.scaling.due.map_or(at, |due| due.min(at)));
    }

    /// Stores what is seen, if it differs from what was.
    fn store_outlook(&mut self, mut outlook: Outlook) {
        outlook.at = self.scaling.outlook.at;
        if outlook == self.scaling.outlook {
            return;
        }
        // That a percentage moved is worth a look, but no write to the disk each second.
        let is_news = essence(&outlook) != essence(&self.scaling.outlook);
        let now = self.clock.now();
        if is_news {
            outlook.at = self.clock.wall();
        }
        self.scaling.outlook = outlook.clone();
        if is_news || now >= self.scaling.outlook_stored + OUTLOOK_PAUSE {
            self.scaling.outlook_stored = now;
            self.step.records.push(Record::Outlook(outlook));
        }
    }

    pub fn outlook(&self) -> &Outlook {
        &self.scaling.outlook
    }

    /// How many workers of a type are wanted by number.
    pub(crate) fn wanted_of(&self, name: &NodeTypeName) -> u32 {
        self.scaling.wanted.get(name).map_or(0, |w| w.count)
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
