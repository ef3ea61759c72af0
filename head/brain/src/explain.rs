//! What the cluster is, as the brain sees it: for `status`, for the planner and for what `ready` waits for.

use std::collections::BTreeMap;

use cloudtik_model::demand::Ask;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::report::{Facts, ServiceReport, ServiceState};
use cloudtik_model::spec::{Spec, WorkerType};
use cloudtik_model::status::Phase;
use cloudtik_model::{Epoch, Generation, Moment, NodeId, NodeTypeName, ServiceKey};

use crate::scaling::Asks;
use crate::{Brain, ClusterRecord, Memory, Node, Session};

/// Of requests that another description leaves no room for, so many are named.
const MOST_ODDS: usize = 5;
/// Where more requests stand than this, it is not looked at which of them are too many.
const MOST_LOOKS: usize = 200;

/// Everything that is known, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub epoch: Epoch,
    pub phase: Phase,
    pub cluster: ClusterRecord,
    pub outlook: Outlook,
    pub nodes: Vec<NodeView>,
    /// What `ready` waits for, by name.
    pub waiting_for: Vec<String>,
    /// It waits for what is wanted beyond the description's minima and is not to be had just now, and for nothing else.
    pub lacks_only_room: bool,
    pub alarms: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    pub record: NodeRecord,
    pub link: Option<Session>,
    pub facts: Option<Facts>,
    pub services: BTreeMap<ServiceKey, ServiceReport>,
    /// Milliseconds since the agent was last heard; absent if it never was in this head's life.
    pub silent_for: Option<u64>,
    /// Why it could not be deleted when that was tried last; it is tried again.
    pub undeletable: Option<String>,
}

impl Brain {
    pub fn snapshot(&self) -> Snapshot {
        let (waiting_for, beyond_the_file) = self.waiting_for();
        Snapshot {
            epoch: self.epoch,
            phase: self.phase(&waiting_for),
            lacks_only_room: !waiting_for.is_empty() && waiting_for.len() == beyond_the_file,
            cluster: self.cluster.clone(),
            outlook: self.outlook().clone(),
            nodes: self.nodes.values().map(|n| self.view(n)).collect(),
            waiting_for,
            alarms: self.alarms(),
        }
    }

    fn alarms(&self) -> Vec<String> {
        let mut alarms = Vec::new();
        if self.is_braking() {
            alarms.push("many workers stopped sending heartbeats at once; terminations are on hold".to_owned());
        }
        alarms.extend(
            self.cluster
                .held
                .as_ref()
                .map(|hold| format!("{}; no node is created, replaced or removed until `cloudtik resume`", hold.reason)),
        );
        alarms.extend(self.cluster.paused.iter().map(|(name, pause)| format!("creation of node type {name} is paused: {}", pause.reason)));
        alarms.extend(self.rollout_alarm());
        alarms.extend(self.policy_alarms());
        // Why, and what to do, is said once: with the node.
        let undeletable = self.nodes.values().filter(|node| node.undeletable.is_some()).map(|node| &node.record.id);
        alarms.extend(undeletable.map(|id| format!("{id} cannot be deleted; `cloudtik nodes` says why")));
        alarms
    }

    fn view(&self, node: &Node) -> NodeView {
        NodeView {
            record: node.record.clone(),
            link: node.link,
            facts: node.facts.clone(),
            services: node.services.clone(),
            undeletable: node.undeletable.clone(),
            silent_for: node.facts.as_ref().map(|_| self.clock.now().saturating_sub(node.watch.last_heard())),
        }
    }

    pub fn node(&self, id: &NodeId) -> Option<NodeView> {
        self.nodes.get(id).map(|n| self.view(n))
    }

    /// Whether this generation of a node is the present one and exists.
    pub fn is_member(&self, id: &NodeId, generation: Generation) -> bool {
        self.nodes.get(id).is_some_and(|n| n.record.generation == generation && n.record.life.may_exist())
    }

    /// The requests that another description would end, or leave without room, and why.
    pub fn requests_at_odds(&self, spec: &Spec) -> Vec<(String, String)> {
        let is_of_type = |ask: &&Ask| ask.wants.node_type().is_none_or(|name| spec.workers.contains_key(name));
        let (stay, end): (Vec<&Ask>, Vec<&Ask>) = self.asks.iter().partition(is_of_type);
        let mut odds: Vec<(String, String)> =
            end.into_iter().map(|ask| (ask.name.clone(), "ends: its node type was removed".to_owned())).collect();
        // What another head would say that knows nothing else.
        let cluster = ClusterRecord { spec: Some(spec.clone()), learned: self.cluster.learned.clone(), ..ClusterRecord::default() };
        let memory = Memory { cluster, asks: stay.iter().map(|ask| (*ask).clone()).collect(), ..Memory::default() };
        let moment = Moment { mono: self.clock.monotonic(), wall: self.clock.wall() };
        let other = Self::restore(self.config.clone(), self.epoch, memory, moment);
        let misfit = |ask: &&Ask| Some((ask.name.clone(), format!("no longer fits: {}", other.misfit(spec, ask)?)));
        odds.extend(stay.iter().filter_map(misfit));
        odds.extend(other.beyond_types(spec));
        odds.extend(other.too_many(spec));
        odds
    }

    /// Requests for numbers of which a type's maximum leaves too little, and why.
    fn beyond_types(&self, spec: &Spec) -> Vec<(String, String)> {
        let of_type = |(name, kind): (&NodeTypeName, &WorkerType)| {
            let raw = self.raw_base(spec, name);
            let names: Vec<&str> =
                self.asks.numbers().filter(|ask| ask.wants.node_type() == Some(name)).map(|ask| ask.name.as_str()).collect();
            (raw > kind.max).then(|| (names.join(", "), format!("{raw} workers of type {name} are above its max {}", kind.max)))
        };
        spec.workers.iter().filter_map(of_type).collect()
    }

    /// Of the requests that stand, those for which there is no room beside those that came before, and why; a few of them.
    fn too_many(mut self, spec: &Spec) -> Vec<(String, String)> {
        let mut order: Vec<Ask> = self.asks.iter().cloned().collect();
        order.sort_by_key(|ask| ask.number);
        let mut odds = Vec::new();
        if order.len() > MOST_LOOKS {
            let names: Vec<&str> = order.iter().take(MOST_ODDS).map(|ask| ask.name.as_str()).collect();
            let some = format!("{} and {} more", names.join(", "), order.len() - names.len());
            return self.check_room(spec, None).err().map(|why| (some, why)).into_iter().collect();
        }
        while odds.len() < MOST_ODDS
            && !order.is_empty()
            && let Err(all) = self.check_room(spec, None)
        {
            // The first that does not fit beside those before it.
            let (mut fits, mut fails) = (0, order.len());
            let mut why = all;
            while fits + 1 < fails {
                let middle = fits + (fails - fits) / 2;
                self.asks = Asks::new(order[..middle].to_vec());
                match self.check_room(spec, None) {
                    Ok(()) => fits = middle,
                    Err(said) => (fails, why) = (middle, said),
                }
            }
            odds.push((order.remove(fails - 1).name, why));
            self.asks = Asks::new(order.clone());
        }
        odds
    }

    /// What is known of the cluster as a whole, all of which is stored.
    pub fn cluster(&self) -> &ClusterRecord {
        &self.cluster
    }

    /// The requests that stand, all of which are stored.
    pub fn requests(&self) -> impl Iterator<Item = &Ask> {
        self.asks.iter()
    }

    pub fn spec(&self) -> Option<&Spec> {
        self.cluster.spec.as_ref()
    }

    fn phase(&self, waiting_for: &[String]) -> Phase {
        let workers_exist = self.nodes.values().any(|n| n.is_worker() && n.record.life.may_exist());
        match (&self.cluster.spec, self.cluster.stopping) {
            (None, _) => Phase::Empty,
            (Some(_), true) if workers_exist => Phase::Stopping,
            (Some(_), true) => Phase::Stopped,
            (Some(_), false) if waiting_for.is_empty() => Phase::Ready,
            (Some(_), false) => Phase::Converging,
        }
    }

    /// What is waited for, and how much of it is what nobody says can be had: room, and workers beyond minima.
    fn waiting_for(&self) -> (Vec<String>, usize) {
        let Some(spec) = &self.cluster.spec else { return (vec!["a specification".to_owned()], 0) };
        let (mut waits, mut beyond) = (Vec::new(), 0);
        for (name, kind) in &spec.workers {
            let target = if self.cluster.stopping { 0 } else { self.wanted_of(name) as usize };
            let of_type = || self.nodes.values().filter(|n| n.record.node_type == *name && n.is_worker());
            let wanted = of_type().filter(|n| n.record.life.is_counted()).count();
            if wanted < target {
                let leaving = of_type().filter(|n| n.record.life.is_leaving() && n.record.life.may_exist()).count();
                let blocked = self.outlook().types.get(name).and_then(|t| t.blocked.first());
                let why = match blocked {
                    _ if self.is_held() => " (the cluster is on hold: `cloudtik resume`)".to_owned(),
                    _ if leaving > 0 => format!(" ({leaving} still leaving)"),
                    Some(why) => format!(" ({why})"),
                    None => String::new(),
                };
                waits.push(format!("{} more {} of type {name}{why}", target - wanted, plural(target - wanted, "worker")));
                beyond += usize::from(wanted >= kind.min as usize && leaving == 0);
            }
        }
        for node in self.nodes.values().filter(|n| n.is_worker() && n.record.life.is_counted()) {
            if !spec.workers.contains_key(&node.record.node_type) {
                let why = self.may_be_spared(&node.record.id).err().map(|why| format!(": {why}")).unwrap_or_default();
                waits.push(format!("removal of {}, whose node type was removed{why}", node.record.id));
            }
        }
        if !self.cluster.stopping {
            beyond += self.outlook().unmet.len();
            waits.extend(self.outlook().unmet.iter().map(|unmet| format!("room for {} ({}): {}", unmet.what, unmet.source, unmet.why)));
        }
        for node in self.nodes.values() {
            let id = &node.record.id;
            let before = waits.len();
            match &node.record.life {
                NodeState::Gone => continue,
                // The store says so; it has not been seen since the head started.
                NodeState::Ready | NodeState::Preparing if node.link.is_none() => waits.push(format!("a heartbeat from {id}")),
                // What it prepares is said below.
                NodeState::Ready | NodeState::Preparing => {}
                life if life.is_leaving() => {
                    let why = if node.undeletable.is_some() { "; it cannot be deleted" } else { "" };
                    waits.push(format!("{id} to be gone ({}{why})", life.name()));
                    continue;
                }
                // It counts for nothing.
                NodeState::Quarantined { .. } => continue,
                life => waits.push(format!("{id} ({})", life.name())),
            }
            for placement in spec.services_on(&node.record.node_type) {
                let report = node.services.get(&placement.key);
                if node.link.is_some() && report.is_none_or(|r| r.state != ServiceState::Ready) {
                    let state = report.map_or_else(|| "no report yet".to_owned(), ServiceReport::describe);
                    waits.push(format!("{} on {id}: {state}", placement.key));
                }
            }
            let placed = |key: &ServiceKey| spec.services_on(&node.record.node_type).any(|p| p.key == *key);
            for left in node.services.values().filter(|s| s.state != ServiceState::Stopped && !s.key.runtime.is_own()) {
                if !placed(&left.key) {
                    waits.push(format!("{} on {id} to stop ({})", left.key, left.state.name()));
                }
            }
            if node.record.revision < spec.revision && (!node.is_worker() || spec.workers.contains_key(&node.record.node_type)) {
                let held = self.is_rollout_held().then(|| "its roll-out is held".to_owned());
                let why = held.or_else(|| self.may_restart(id).err().filter(|_| spec.rolling));
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                waits.push(format!("{id} to apply revision {}{why}", spec.revision));
            }
            if node.record.life == NodeState::Preparing && waits.len() == before {
                waits.push(format!("{id} to apply its goal"));
            }
        }
        (waits, beyond)
    }
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}
