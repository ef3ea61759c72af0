//! What a scenario's life amounts to: machines, money, work, decisions.

use std::collections::BTreeMap;

use cloudtik_model::event::{Event, EventKind};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::simulation::{Count, Mishaps, Sample, Simulated, TypeUse};
use cloudtik_model::{ClusterName, MoneyPerHour, NodeTypeName};

use super::World;
use crate::promises::Violation;
use crate::provider::Machine;

const HOUR: f64 = 3_600_000.0;

#[derive(Debug, Default)]
pub(super) struct Accounts {
    types: BTreeMap<NodeTypeName, OfType>,
    pub mishaps: Mishaps,
    decisions: Vec<Event>,
    samples: Vec<Sample>,
}

#[derive(Debug, Default)]
struct OfType {
    launched: u64,
    alive: u32,
    most: u32,
    node_ms: u128,
    /// In millionths of the currency, times milliseconds over an hour.
    money: u128,
}

impl Accounts {
    pub fn made(&mut self, node_type: &NodeTypeName) {
        let of_type = self.types.entry(node_type.clone()).or_default();
        of_type.launched += 1;
        of_type.alive += 1;
        of_type.most = of_type.most.max(of_type.alive);
    }

    pub fn ended(&mut self, machine: &Machine, now: u64) {
        let of_type = self.types.entry(machine.node_type.clone()).or_default();
        of_type.alive = of_type.alive.saturating_sub(1);
        of_type.charge(machine, now);
    }
}

impl OfType {
    fn charge(&mut self, machine: &Machine, now: u64) {
        let lived = u128::from(now - machine.created);
        self.node_ms += lived;
        self.money += u128::from(machine.price.0) * lived;
    }

    fn cost(&self) -> f64 {
        self.money as f64 / HOUR / 1_000_000.0
    }
}

impl World {
    /// Keeps an event that says what was decided, or why not.
    pub(super) fn write_down(&mut self, mut event: Event) {
        if self.setup.scenario.is_none() || matches!(event.kind, EventKind::Service | EventKind::Node) {
            return;
        }
        event.position = self.accounts.decisions.len() as u64 + 1;
        self.accounts.decisions.push(event);
    }

    /// The record of a node changed: work may have more or fewer cores, and what waits may have its room.
    pub(super) fn node_changed(&mut self, before: Option<&NodeRecord>, after: &NodeRecord) {
        let (was, is) = (before.is_some_and(|record| record.life == NodeState::Ready), after.life == NodeState::Ready);
        if was == is || self.setup.scenario.is_none() {
            return;
        }
        self.script.look_again |= is;
        self.script.look_back |= was;
        let cores = self.spec.workers.get(&after.node_type).and_then(|kind| kind.resources).map_or(0, |r| u64::from(r.cpus) * 1_000);
        if let Some(work) = self.script.work.get_mut(&after.node_type) {
            work.advance(self.now);
            work.capacity = if is { work.capacity + cores } else { work.capacity.saturating_sub(cores) };
            self.load_moved(&after.node_type);
        }
    }

    pub(super) fn sample(&mut self) {
        let mut types: BTreeMap<NodeTypeName, Count> = self.spec.workers.keys().map(|name| (name.clone(), Count::default())).collect();
        for record in self.stored.nodes.values().filter(|record| !record.id.is_head() && record.life.may_exist()) {
            let count = types.entry(record.node_type.clone()).or_default();
            match record.life {
                NodeState::Ready => count.ready += 1,
                NodeState::Requested | NodeState::Launched | NodeState::Joined | NodeState::Preparing => count.coming += 1,
                _ => count.other += 1,
            }
        }
        let cost: MoneyPerHour = self.provider.alive().map(|machine| machine.price).sum();
        let waiting = self.script.waiting();
        self.accounts.samples.push(Sample { at_ms: self.now, types, cost, waiting });
    }

    /// Lives through the scenario and tells what came of it.
    pub fn simulate(mut self, cluster: ClusterName) -> Result<Simulated, Violation> {
        self.live()?;
        self.sample();
        let now = self.now;
        for machine in self.provider.alive().filter(|machine| !machine.instance.node.is_head()) {
            self.accounts.types.entry(machine.node_type.clone()).or_default().charge(machine, now);
        }
        let (work, worked) = self.script.work_done(now);
        let core_ms = |(name, of): (&NodeTypeName, &OfType)| {
            let cpus = self.spec.workers.get(name).and_then(|kind| kind.resources).map_or(0, |r| r.cpus);
            of.node_ms as f64 * f64::from(cpus)
        };
        let offered: f64 = self.accounts.types.iter().map(core_ms).sum();
        let types: BTreeMap<NodeTypeName, TypeUse> = self
            .accounts
            .types
            .iter()
            .map(|(name, of)| {
                let used = TypeUse { launched: of.launched, most: of.most, node_hours: of.node_ms as f64 / HOUR, cost: of.cost() };
                (name.clone(), used)
            })
            .collect();
        Ok(Simulated {
            cluster,
            seed: self.setup.seed,
            start: self.setup.start,
            length_ms: self.setup.length + self.setup.peace,
            heartbeat_ms: self.setup.config.heartbeat,
            steps: self.stats.steps,
            // From zero, since a sum of nothing is less than nothing in binary fractions.
            cost: types.values().map(|of| of.cost).fold(0.0, |sum, cost| sum + cost),
            unpriced: self.spec.workers.iter().filter(|(_, kind)| kind.price.is_none()).map(|(name, _)| name.clone()).collect(),
            used: if offered > 0.0 { (worked / offered).min(1.0) } else { 0.0 },
            types,
            samples: self.accounts.samples,
            arrivals: self.script.arrivals,
            work,
            mishaps: self.accounts.mishaps,
            decisions: self.accounts.decisions,
        })
    }
}
