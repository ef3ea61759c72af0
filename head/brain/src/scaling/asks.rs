//! Wishes for a size: taken and kept, refused with what would be needed, ended, taken back.

use std::collections::BTreeSet;

use cloudtik_model::demand::{Ask, Wants};
use cloudtik_model::event::EventKind;
use cloudtik_model::spec::Spec;
use cloudtik_model::{MoneyPerHour, NodeTypeName};

use serde::{Deserialize, Serialize};

use super::launch::{Candidate, Limits, buy};
use crate::packing::{Fleet, Group, GroupId};
use crate::{Brain, Reply, Request, Wish};

/// Wishes that stand at once. More are a slip of a program.
const MOST_ASKS: usize = 10_000;
/// Pieces of work in one wish.
const MOST_BUNDLES: u64 = 1_000_000;

/// A request for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskView {
    #[serde(flatten)]
    pub ask: Ask,
    /// In words.
    #[serde(rename = "description")]
    pub wants: String,
    /// What of it has no room now, and why.
    pub unmet: Option<String>,
}

impl Brain {
    pub(crate) fn take_scale(&mut self, request: Request, wish: Wish) {
        match self.accept(wish) {
            Ok(message) => {
                self.event(None, EventKind::Request, format!("scale: {message}"));
                self.reply(request, Ok(Reply::Done { message }));
                self.scaling.rebuild = true;
                self.sync_groups();
            }
            Err(refusal) => {
                self.complain(None, EventKind::Refusal, format!("scale: {refusal}"));
                self.reply(request, Err(refusal));
            }
        }
    }

    fn accept(&mut self, wish: Wish) -> Result<String, String> {
        let Some(spec) = self.cluster.spec.clone() else { return Err("the cluster has no specification yet".to_owned()) };
        if self.cluster.stopping {
            return Err("the cluster is being taken down".to_owned());
        }
        let wall = self.clock.wall();
        if wish.until.is_some_and(|until| until <= wall) {
            return Err("it would be over before it begins".to_owned());
        }
        let mut wants = wish.wants;
        // Beside the others, a number of workers is a number of further ones.
        if let (true, Wants::Workers { node_type, count }) = (wish.additive, &wants) {
            wants = Wants::More { node_type: node_type.clone(), count: *count };
        }
        let name = match (wish.name, wish.additive, &wants) {
            (Some(name), ..) => name,
            (None, true, _) => self.free_name(),
            (None, false, Wants::Workers { node_type, .. } | Wants::More { node_type, .. }) => own_name(node_type),
            (None, false, Wants::Bundles { .. }) => "room".to_owned(),
        };
        if name.is_empty() || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(format!("{name:?} is no name for a request: letters, digits, '-', '_' and '.', at most 63"));
        }
        let ask = Ask { name: name.clone(), at: wall, until: wish.until, wants, reason: wish.reason };
        let mut asks = self.cluster.asks.clone();
        match (&ask.wants, wish.additive) {
            // A number for a type stands in the place of every earlier one, by whatever name.
            (Wants::Workers { node_type, .. }, false) => asks.retain(|other| match &other.wants {
                Wants::Workers { node_type: of, .. } | Wants::More { node_type: of, .. } => of != node_type,
                Wants::Bundles { .. } => true,
            }),
            (Wants::Bundles { .. }, false) => asks.retain(|other| !matches!(other.wants, Wants::Bundles { .. })),
            _ => {}
        }
        asks.retain(|other| other.name != name);
        if asks.len() >= MOST_ASKS {
            return Err(format!("{MOST_ASKS} requests stand already; revoke some"));
        }
        asks.push(ask.clone());
        self.check_shape(&spec, &ask.wants)?;
        let before = std::mem::replace(&mut self.cluster.asks, asks);
        if let Err(refusal) = self.check_room(&spec) {
            self.cluster.asks = before;
            return Err(refusal);
        }
        let message = match &ask.wants {
            Wants::Workers { node_type, .. } | Wants::More { node_type, .. } => {
                let after = self.base(&spec, node_type);
                let asks = std::mem::replace(&mut self.cluster.asks, before);
                let was = self.base(&spec, node_type);
                self.cluster.asks = asks;
                if after < was {
                    self.cluster.shrinking.insert(node_type.clone());
                }
                let policies = self.scaling.wanted.get(node_type).filter(|w| w.count > after.max(was)).map(|w| w.sources[0].clone());
                let others = policies.map(|p| format!("; more are there for {p}")).unwrap_or_default();
                format!("{node_type}: {was} → {after} workers{others}")
            }
            Wants::Bundles { .. } => {
                self.cluster
                    .shrinking
                    .extend(spec.workers.keys().filter(|_| before != self.cluster.asks[..self.cluster.asks.len() - 1]).cloned());
                format!("{}: {}", ask.name, ask.wants)
            }
        };
        self.store_cluster();
        Ok(message)
    }

    fn free_name(&self) -> String {
        let taken: BTreeSet<&str> = self.cluster.asks.iter().map(|a| a.name.as_str()).collect();
        (1..).map(|n| format!("ask-{n}")).find(|name| !taken.contains(name.as_str())).unwrap_or_default()
    }

    /// What no node of any type could ever do is refused.
    fn check_shape(&self, spec: &Spec, wants: &Wants) -> Result<(), String> {
        let no_type = |name: &NodeTypeName| {
            let known: Vec<_> = spec.workers.keys().map(NodeTypeName::as_str).collect();
            format!("there is no node type {name}; there is {}", known.join(", "))
        };
        match wants {
            Wants::Workers { node_type, count } => {
                let kind = spec.workers.get(node_type).ok_or_else(|| no_type(node_type))?;
                if *count < kind.min || *count > kind.max {
                    return Err(format!("{count} workers of type {node_type} are not between its min {} and max {}", kind.min, kind.max));
                }
                Ok(())
            }
            Wants::More { node_type, count } => {
                let kind = spec.workers.get(node_type).ok_or_else(|| no_type(node_type))?;
                let now = self.base(spec, node_type);
                if now.saturating_add(*count) > kind.max {
                    return Err(format!("{count} more than {now} workers of type {node_type} are above its max {}", kind.max));
                }
                Ok(())
            }
            Wants::Bundles { bundles, spread, .. } => {
                let total: u64 = bundles.iter().map(|b| u64::from(b.count)).sum();
                if total == 0 || bundles.iter().any(|b| b.bundle.is_nothing() || b.count == 0) {
                    return Err("a request for room needs bundles that ask for something".to_owned());
                }
                if total > MOST_BUNDLES {
                    return Err(format!("{total} bundles are more than {MOST_BUNDLES}"));
                }
                if *spread && total > u64::from(spec.max_workers) {
                    return Err(format!(
                        "{total} bundles, each on a node of its own, need more than the cluster's max_workers {}",
                        spec.max_workers
                    ));
                }
                for counted in bundles {
                    if let Some(unknown) = counted.bundle.resources.keys().find(|name| !self.scaling.custom.contains(name)) {
                        return Err(format!("no node type offers the resource {unknown}"));
                    }
                    let need = self.amounts_of(&counted.bundle);
                    let reasons: Vec<(NodeTypeName, Option<String>)> =
                        spec.workers.keys().map(|name| (name.clone(), self.lacks(spec, name, &need))).collect();
                    if reasons.iter().all(|(_, lack)| lack.is_some()) {
                        let why = reasons.iter().map(|(name, lack)| format!("{name} {}", lack.as_deref().unwrap_or_default()));
                        let why: Vec<String> = why.collect();
                        return Err(format!("no node type has {}: {}", counted.bundle, why.join("; ")));
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether everything that is asked for could be there at once, within every maximum and the budget.
    fn check_room(&self, spec: &Spec) -> Result<(), String> {
        let base: Vec<(&NodeTypeName, u32)> = spec.workers.keys().map(|name| (name, self.base(spec, name))).collect();
        let workers: u32 = base.iter().map(|(_, n)| *n).sum();
        let price = |name: &NodeTypeName| spec.workers[name].dearest().unwrap_or_default();
        let cost: MoneyPerHour = base.iter().map(|(name, n)| price(name).times(*n)).sum();
        let listed: Vec<String> = base.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} of type {name}")).collect();
        let listed = listed.join(" and ");
        if workers > spec.max_workers {
            return Err(format!("{listed} exceed the cluster's max_workers {}; raise it to {workers}", spec.max_workers));
        }
        if let Some(budget) = spec.budget.filter(|budget| cost > *budget) {
            return Err(format!("{listed} would bring the cluster to {cost}, its budget is {budget}"));
        }
        // On a fleet of its own: what there is just now decides nothing.
        let mut fleet = Fleet::default();
        for (name, count) in &base {
            for n in 0..*count {
                if let (Some(capacity), Ok(id)) = (self.capacity_of(name), cloudtik_model::NodeId::new(format!("{name}-{n}"))) {
                    fleet.add_node(id, capacity);
                }
            }
        }
        for (number, ask) in self.cluster.asks.iter().enumerate() {
            if let Wants::Bundles { bundles, gang, spread } = &ask.wants {
                let shapes = bundles.iter().map(|b| (self.amounts_of(&b.bundle), b.count)).collect();
                fleet.set_group(GroupId(number as u64), Group { shapes, gang: *gang, spread: *spread });
            }
        }
        let waiting: BTreeSet<GroupId> = fleet.waiting().map(|(id, _)| id).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let candidates: Vec<Candidate> = base
            .iter()
            .filter_map(|(name, n)| {
                let capacity = self.capacity_of(name)?;
                let kind = &spec.workers[*name];
                let price = kind.dearest();
                Some(Candidate::new(name, kind, capacity, price, kind.max - n, self.scaling.learned.get(*name).copied()))
            })
            .collect();
        let limits = Limits { nodes: spec.max_workers - workers, money: spec.budget.map(|b| MoneyPerHour(b.0.saturating_sub(cost.0))) };
        let bought = buy(&fleet, &waiting, &candidates, &limits);
        if bought.is_whole() {
            return Ok(());
        }
        // What it would take without the limits, to say so.
        let free: Vec<Candidate> = candidates.iter().map(|c| Candidate { most: u32::MAX / 4, ..c.clone() }).collect();
        let needed = buy(&fleet, &waiting, &free, &Limits { nodes: u32::MAX / 4, money: None });
        let parts: Vec<String> = needed.numbers(&free).into_iter().map(|(name, n)| format!("{n} more of type {name}")).collect();
        let total = workers.saturating_add(needed.nodes());
        let money = MoneyPerHour(cost.0.saturating_add(needed.money(&free).0));
        let mut limits = Vec::new();
        if total > spec.max_workers {
            limits.push(format!("max_workers is {}, {total} are needed", spec.max_workers));
        }
        if let Some(budget) = spec.budget.filter(|budget| money > *budget) {
            limits.push(format!("the budget is {budget}, {money} is needed"));
        }
        for (name, n) in needed.numbers(&free) {
            let (kind, now) = (&spec.workers[&name], self.base(spec, &name));
            if now.saturating_add(n) > kind.max {
                limits.push(format!("workers.{name}.max is {}, {} are needed", kind.max, now.saturating_add(n)));
            }
        }
        if limits.is_empty() {
            limits.push("the maxima and the budget leave no room for it".to_owned());
        }
        Err(format!("there is no room for all of it: it takes {}, but {}", parts.join(" and "), limits.join(", and ")))
    }

    /// What is asked for by hand, and what of it has no room yet.
    pub fn asks(&self) -> Vec<AskView> {
        let outlook = self.outlook();
        let view = |ask: &Ask| AskView {
            unmet: outlook.unmet.iter().find(|u| u.source == ask.name).map(|u| format!("{}: {}", u.what, u.why)),
            wants: ask.wants.to_string(),
            ask: ask.clone(),
        };
        self.cluster.asks.iter().map(view).collect()
    }

    pub(crate) fn take_revoke(&mut self, request: Request, name: String) {
        let Some(at) = self.cluster.asks.iter().position(|ask| ask.name == name) else {
            let known: Vec<&str> = self.cluster.asks.iter().map(|a| a.name.as_str()).collect();
            let known = if known.is_empty() { "nothing is asked for".to_owned() } else { format!("there is {}", known.join(", ")) };
            return self.reply(request, Err(format!("there is no request {name}; {known}")));
        };
        let ask = self.cluster.asks.remove(at);
        self.forget_ask(&ask);
        self.store_cluster();
        let message = format!("{} is not asked for any more ({})", ask.wants, ask.name);
        self.event(None, EventKind::Request, format!("revoke: {message}"));
        self.reply(request, Ok(Reply::Done { message }));
        self.scaling.rebuild = true;
        self.sync_groups();
    }

    /// What somebody takes back goes at once; what merely ends, when it is idle.
    fn forget_ask(&mut self, ask: &Ask) {
        let Some(spec) = &self.cluster.spec else { return };
        match &ask.wants {
            Wants::Workers { node_type, .. } | Wants::More { node_type, .. } => {
                self.cluster.shrinking.insert(node_type.clone());
            }
            Wants::Bundles { .. } => self.cluster.shrinking.extend(spec.workers.keys().cloned()),
        }
    }

    /// Ends asks whose time is over.
    pub(super) fn end_asks(&mut self) {
        let wall = self.clock.wall();
        let (over, kept): (Vec<Ask>, Vec<Ask>) =
            std::mem::take(&mut self.cluster.asks).into_iter().partition(|ask| ask.until.is_some_and(|until| until <= wall));
        self.cluster.asks = kept;
        if let Some(next) = self.cluster.asks.iter().filter_map(|ask| ask.until).min() {
            // The wall clock may be set meanwhile.
            self.decide_at(self.clock.now() + next.0.saturating_sub(wall.0).min(60_000));
        }
        if over.is_empty() {
            return;
        }
        for ask in &over {
            self.event(None, EventKind::Decision, format!("the request {} is over: {}", ask.name, ask.wants));
        }
        self.store_cluster();
        self.sync_groups();
        self.scaling.dirty = false;
    }

    /// Takes one off a type's number; false if policies or its minimum want it anyway.
    pub(crate) fn lower_target(&mut self, name: &NodeTypeName) -> bool {
        let Some(spec) = self.cluster.spec.clone() else { return false };
        let base = self.base(&spec, name);
        let is_lowest = spec.workers.get(name).is_none_or(|kind| base <= kind.min);
        if is_lowest || self.wanted_of(name) > base {
            return false;
        }
        let wants = Wants::Workers { node_type: name.clone(), count: base - 1 };
        self.cluster.asks.retain(|other| match &other.wants {
            Wants::Workers { node_type, .. } | Wants::More { node_type, .. } => node_type != name,
            Wants::Bundles { .. } => true,
        });
        let at = self.clock.wall();
        self.cluster.asks.push(Ask { name: own_name(name), at, until: None, wants, reason: "a node was drained".to_owned() });
        self.store_cluster();
        self.sync_groups();
        true
    }
}

/// The name of the request that says how many workers of a type there are to be.
fn own_name(node_type: &NodeTypeName) -> String {
    format!("workers-{node_type}")
}
