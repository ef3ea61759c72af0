//! How many workers there are to be, and which to make or let go. Never above a type's maximum, the cluster's maximum
//! or the budget, counting every instance that may exist. The autoscaler's demands will come in here.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::EventKind;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::spec::{Spec, WorkerType};
use cloudtik_model::{Generation, MoneyPerHour, NodeId, NodeTypeName};

use crate::{Brain, Node, Reply, Request};

impl Brain {
    pub(crate) fn take_spec(&mut self, spec: Spec) {
        if self.cluster.spec.as_ref().is_some_and(|known| known.revision >= spec.revision) {
            return;
        }
        self.event(None, EventKind::Head, format!("specification {} accepted", spec.revision));
        // What somebody asked for by hand holds, within what the file allows now.
        let known = self.cluster.spec.take();
        self.cluster.targets.retain(|name, _| spec.workers.contains_key(name));
        self.cluster.stopping = false;
        // A roll-out that is under way goes on as one, whatever the next change is about.
        let mut spec = spec;
        let is_rolling = known.as_ref().is_some_and(|known| {
            known.rolling && self.nodes.values().any(|n| n.record.revision < known.revision && !n.record.life.is_leaving())
        });
        spec.rolling |= is_rolling;
        self.cluster.spec = Some(spec);
        self.store_cluster();
        self.services_changed = false;
        self.reconsider_goals();
        self.reconsider_scale();
    }

    pub(crate) fn take_scale(&mut self, request: Request, name: NodeTypeName, workers: u32) {
        let Some(spec) = &self.cluster.spec else {
            return self.reply(request, Err("the cluster has no specification yet".to_owned()));
        };
        let Some(kind) = spec.workers.get(&name) else {
            let known: Vec<_> = spec.workers.keys().map(NodeTypeName::as_str).collect();
            let known = known.join(", ");
            return self.reply(request, Err(format!("there is no node type {name}; there is {known}")));
        };
        if workers > kind.max || workers < kind.min {
            let message = format!("{workers} workers of type {name} are not between its min {} and max {}", kind.min, kind.max);
            self.event(None, EventKind::Refusal, message.clone());
            return self.reply(request, Err(message));
        }
        let others: u32 = spec.workers.keys().filter(|other| **other != name).map(|other| self.target(spec, other)).sum();
        if others + workers > spec.max_workers {
            let message =
                format!("{workers} workers of type {name} and {others} of others exceed the cluster's max_workers {}", spec.max_workers);
            self.event(None, EventKind::Refusal, message.clone());
            return self.reply(request, Err(message));
        }
        if let Some(budget) = spec.budget {
            let cost = |(other, kind): (&NodeTypeName, &WorkerType)| {
                let count = if *other == name { workers } else { self.target(spec, other) };
                kind.price.unwrap_or(MoneyPerHour(0)).times(count)
            };
            let cost: MoneyPerHour = spec.workers.iter().map(cost).sum();
            if cost > budget {
                let message = format!("{workers} workers of type {name} would bring the cluster to {cost}, its budget is {budget}");
                self.event(None, EventKind::Refusal, message.clone());
                return self.reply(request, Err(message));
            }
        }
        let before = self.target(spec, &name);
        self.cluster.targets.insert(name.clone(), workers);
        self.store_cluster();
        let message = format!("{name}: {before} → {workers} workers");
        self.event(None, EventKind::Request, format!("scale {message}"));
        self.reply(request, Ok(Reply::Done { message }));
        self.reconsider_scale();
    }

    pub(crate) fn take_shutdown(&mut self, request: Request) {
        if !self.cluster.stopping {
            self.cluster.stopping = true;
            self.store_cluster();
            self.event(None, EventKind::Request, "down".to_owned());
        }
        self.reply(request, Ok(Reply::Done { message: "every worker is being let go".to_owned() }));
        self.reconsider_scale();
    }

    /// Takes one off a type's target; false if it is at its minimum.
    pub(crate) fn lower_target(&mut self, name: &NodeTypeName) -> bool {
        let Some(spec) = &self.cluster.spec else { return false };
        let target = self.target(spec, name);
        if spec.workers.get(name).is_none_or(|kind| target <= kind.min) {
            return false;
        }
        self.cluster.targets.insert(name.clone(), target - 1);
        self.store_cluster();
        true
    }

    /// How many workers of a type there are to be.
    pub(crate) fn target(&self, spec: &Spec, name: &NodeTypeName) -> u32 {
        if self.cluster.stopping { 0 } else { self.wanted(spec, name) }
    }

    /// How many workers of a type a specification and what somebody asked for by hand want.
    fn wanted(&self, spec: &Spec, name: &NodeTypeName) -> u32 {
        let Some(WorkerType { min, max, .. }) = spec.workers.get(name) else { return 0 };
        self.cluster.targets.get(name).copied().unwrap_or(*min).clamp(*min, *max)
    }

    /// The types of which a specification would let workers go: how many are there, and how many it wants.
    pub fn excess(&self, spec: &Spec) -> Vec<(NodeTypeName, usize, usize)> {
        let mut present: BTreeMap<&NodeTypeName, usize> = BTreeMap::new();
        for node in self.workers().filter(|n| !n.record.life.is_leaving()) {
            *present.entry(&node.record.node_type).or_default() += 1;
        }
        let with_wanted = present.into_iter().map(|(name, count)| (name.clone(), count, self.wanted(spec, name) as usize));
        with_wanted.filter(|(_, present, wanted)| present > wanted).collect()
    }

    /// Compares what is to be with what there is, and asks for or lets go of nodes.
    pub(crate) fn reconsider_scale(&mut self) {
        let Some(spec) = self.cluster.spec.clone() else { return };
        let mut names: BTreeSet<NodeTypeName> = spec.workers.keys().cloned().collect();
        // Types that the specification no longer has are wanted not at all.
        names.extend(self.workers().map(|n| n.record.node_type.clone()).filter(|t| !spec.workers.contains_key(t)));
        for name in names {
            let target = self.target(&spec, &name) as usize;
            let wanted = self.workers().filter(|n| n.record.node_type == name && !n.record.life.is_leaving()).count();
            if wanted < target {
                self.request_workers(&spec, &name, target - wanted);
            } else if wanted > target {
                self.let_go(&name, wanted - target);
            }
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.is_worker())
    }

    fn request_workers(&mut self, spec: &Spec, name: &NodeTypeName, count: usize) {
        let Some(kind) = spec.workers.get(name) else { return };
        let exist = self.workers().filter(|n| n.record.life.may_exist()).count();
        let exist_of_type = self.workers().filter(|n| n.record.life.may_exist() && n.record.node_type == *name).count();
        let room = (kind.max as usize).saturating_sub(exist_of_type).min((spec.max_workers as usize).saturating_sub(exist));
        let affordable = self.affordable(spec, kind);
        let now = self.clock.now();
        for _ in 0..count.min(room).min(affordable) {
            let Some(id) = self.free_id(name, kind.max) else { break };
            let wall = self.clock.wall();
            let generation = self.nodes.get(&id).map_or(Generation(1), |n| n.record.generation.next());
            let mut record = NodeRecord::requested(id.clone(), generation, name.clone(), wall);
            (record.revision, record.price) = (spec.revision, kind.price);
            let (failures, not_before) = self.nodes.get(&id).map_or((0, 0), |n| (n.failures, n.not_before));
            let mut node = Node::new(record, now);
            (node.failures, node.not_before) = (failures, not_before);
            self.nodes.insert(id.clone(), node);
            self.store_node(&id);
            let message = format!("request {id} (generation {generation}): {count} more of type {name} wanted");
            self.event(Some(&id), EventKind::Decision, message);
            self.drive(&id);
        }
    }

    /// How many more nodes of a type the budget allows, with everything that may exist paid for.
    fn affordable(&self, spec: &Spec, kind: &WorkerType) -> usize {
        let (Some(MoneyPerHour(budget)), Some(MoneyPerHour(price))) = (spec.budget, kind.price) else { return usize::MAX };
        // A node costs what its type cost when it was made, also after the type is gone from the description.
        let MoneyPerHour(spent) = self
            .workers()
            .filter(|n| n.record.life.may_exist())
            .filter_map(|n| n.record.price.or_else(|| spec.workers.get(&n.record.node_type)?.price))
            .sum();
        budget.saturating_sub(spent).checked_div(price).map_or(usize::MAX, |n| n as usize)
    }

    /// The lowest ordinal whose node does not exist.
    fn free_id(&self, name: &NodeTypeName, max: u32) -> Option<NodeId> {
        (1..=max.saturating_mul(2).max(max))
            .map(|ordinal| NodeId::worker(name, ordinal))
            .find(|id| self.nodes.get(id).is_none_or(|n| n.record.life == NodeState::Gone))
    }

    /// Lets the least useful nodes go: those that are not ready before those that are, the youngest first.
    fn let_go(&mut self, name: &NodeTypeName, count: usize) {
        let mut candidates: Vec<(bool, u64, NodeId)> = self
            .workers()
            .filter(|n| n.record.node_type == *name && !n.record.life.is_leaving())
            .map(|n| (n.record.life == NodeState::Ready, u64::MAX - ordinal(&n.record.id), n.record.id.clone()))
            .collect();
        candidates.sort();
        for (_, _, id) in candidates.into_iter().take(count) {
            let reason = if self.cluster.stopping { "the cluster goes down" } else { "not needed any more" };
            self.event(Some(&id), EventKind::Decision, format!("let {id} go: {reason}"));
            self.enter(&id, NodeState::Draining { reason: reason.to_owned() }, reason);
            self.drive(&id);
        }
    }
}

fn ordinal(id: &NodeId) -> u64 {
    let digits = id.as_str().rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or(0)
}
