//! Wishes for a size: taken and kept, refused with what would be needed, ended, taken back.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::NodeTypeName;
use cloudtik_model::demand::{Ask, AskView, Wants};
use cloudtik_model::event::EventKind;
use cloudtik_model::node::NodeState;
use cloudtik_model::spec::Spec;

use super::plan::put_back;
use crate::packing::{Group, GroupId};
use crate::steering::on_one_line;
use crate::{Brain, Record, Refusal, Reply, Request, Wish};

/// Wishes that stand at once. More are a slip of a program.
const MOST_ASKS: usize = 10_000;
/// Refusals that are remembered.
const MOST_REFUSALS: usize = 100;
/// So many requests are named where many have room.
const MOST_NAMED: usize = 5;
/// Pieces of work in one wish.
const MOST_BUNDLES: u64 = 1_000_000;

/// Workers that are wanted by number, by type.
type Numbers = BTreeMap<NodeTypeName, u32>;

impl Brain {
    pub(crate) fn take_scale(&mut self, request: Request, wish: Wish) {
        match self.accept(wish) {
            Ok((name, message)) => {
                let details = self.asks.get(&name).map(|ask| self.details_of(ask)).unwrap_or_default();
                self.requested_with(&request.actor, None, format!("scale: {message}"), details);
                self.granted.push((request, name, message));
                self.scaling_changed();
            }
            Err(refusal) => {
                self.complain_of(Some(&request.actor), None, EventKind::Refusal, format!("scale: {}", refusal.message()));
                self.reply(request, Err(refusal));
            }
        }
    }

    /// What is told of a request beside what became of it.
    fn details_of(&self, ask: &Ask) -> BTreeMap<String, String> {
        let mut details = BTreeMap::from([("request".to_owned(), ask.name.clone()), ("wants".to_owned(), ask.wants.to_string())]);
        if !ask.reason.is_empty() {
            details.insert("reason".to_owned(), ask.reason.clone());
        }
        if let Some(until) = ask.until {
            let seconds = until.0.saturating_sub(self.clock.wall().0) / 1_000;
            details.insert("ends".to_owned(), format!("{seconds} s later"));
        }
        details
    }

    /// Says what was granted, and what of it has to wait.
    pub(crate) fn answer_wishes(&mut self) {
        for (request, name, mut message) in std::mem::take(&mut self.granted) {
            let waits = self.asks.get(&name).and_then(|ask| self.unmet(ask));
            if let (Some(hold), true) = (&self.cluster.held, waits.is_some()) {
                message.push_str(&format!("; no node is created for it until `cloudtik resume` ({})", hold.reason));
            } else if let Some(waits) = waits {
                message.push_str(&format!("; it waits: {waits}"));
            }
            self.reply(request, Ok(Reply::Done { message }));
        }
    }

    fn accept(&mut self, wish: Wish) -> Result<(String, String), Refusal> {
        let Some(spec) = self.cluster.spec.clone() else { return Err("the cluster has no specification yet".to_owned().into()) };
        if self.cluster.stopping {
            return Err("the cluster is being taken down".to_owned().into());
        }
        let wall = self.clock.wall();
        if wish.until.is_some_and(|until| until <= wall) {
            return Err(Refusal::Malformed("it would end before it starts".to_owned()));
        }
        let mut wants = wish.wants;
        // Beside the others, a number of workers is a number of further ones.
        if let (true, Wants::Workers { node_type, count }) = (wish.additive, &wants) {
            wants = Wants::More { node_type: node_type.clone(), count: *count };
        }
        let name = match (wish.name, wish.additive, &wants) {
            (Some(name), ..) => name,
            (None, true, _) => self.asks.free_name(),
            (None, false, Wants::Workers { node_type, .. } | Wants::More { node_type, .. }) => own_name(node_type),
            (None, false, Wants::Bundles { .. }) => "room".to_owned(),
        };
        if name.is_empty() || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            let message = format!("{name:?} is not a valid request name: use letters, digits, '-', '_' and '.', at most 63");
            return Err(Refusal::Malformed(message));
        }
        self.check_shape(&spec, &wants)?;
        let replaced = self.asks.replaced_by(&name, &wants, wish.additive);
        if self.asks.len() - replaced.len() >= MOST_ASKS {
            return Err(format!("{MOST_ASKS} requests exist already; revoke some").into());
        }
        let before = self.numbers(&spec);
        // What is asked for again keeps its place and what it has; how long it stands, and why, may be new.
        if let Some(known) = self.asks.get(&name).filter(|known| known.wants == wants && replaced.iter().all(|old| *old == known.name)) {
            let reason = if wish.reason.is_empty() { known.reason.clone() } else { on_one_line(&wish.reason) };
            let was_until = known.until;
            let ask = Ask { name, number: known.number, at: known.at, until: wish.until, wants, reason };
            self.asks.remove(&ask.name);
            self.asks.insert(ask.clone());
            self.step.records.push(Record::Ask(ask.clone()));
            let mut message = self.granted(&ask, &[], &before, &before);
            message.push_str(match (was_until, ask.until) {
                (Some(_), None) => "; it now lasts until it is revoked",
                (was, is) if was != is => "; its end was changed",
                _ => "; the same request existed already",
            });
            return Ok((ask.name, message));
        }
        let number = self.asks.next_number();
        let ask = Ask { name, number, at: wall, until: wish.until, wants, reason: on_one_line(&wish.reason) };
        let ends: Vec<(String, u64)> = replaced.iter().filter_map(|name| Some((name.clone(), *self.asks.ends.get(name)?))).collect();
        let gone: Vec<Ask> = replaced.iter().filter_map(|name| self.asks.remove(name)).collect();
        self.asks.insert(ask.clone());
        let after = self.numbers(&spec);
        let checked = self.check_new(&spec, &ask, gone.is_empty(), &before, &after);
        if let Err(refusal) = checked {
            self.asks.remove(&ask.name);
            gone.into_iter().for_each(|ask| self.asks.insert(ask));
            self.asks.ends.extend(ends);
            return Err(refusal.into());
        }
        for old in gone.iter().filter(|old| old.name != ask.name) {
            self.step.records.push(Record::AskGone { name: old.name.clone() });
        }
        self.step.records.push(Record::Ask(ask.clone()));
        self.forget_asks(&gone, false);
        // A smaller number says itself that so many are too many.
        self.take_back(lessened(&before, &after));
        self.place_ask(&ask);
        let message = self.granted(&ask, &gone, &before, &after);
        Ok((ask.name, message))
    }

    /// How many workers of each type there are by number.
    fn numbers(&self, spec: &Spec) -> Numbers {
        spec.workers.keys().map(|of| (of.clone(), self.base(spec, of))).collect()
    }

    /// Whether an ask that was just taken in may stand. `is_first`: it stands in nobody's place.
    fn check_new(&mut self, spec: &Spec, ask: &Ask, is_first: bool, before: &Numbers, after: &Numbers) -> Result<(), String> {
        // What is already promised to others and not there yet is not free: then all of it is looked at.
        let is_settled = self.cluster.held.is_none()
            && self.scaling.fleet.waiting_or_parked().is_empty()
            && spec.workers.keys().all(|of| self.wanted_of(of) <= self.scaling.tally.counted(of));
        let is_alone = is_settled && is_first && ask.wants.node_type().is_none();
        // Less is always to be had, whatever else stands.
        let is_less = ask.wants.node_type().is_some() && after.iter().all(|(of, n)| *n <= before[of]);
        if let Some(of) = ask.wants.node_type().filter(|of| self.raw_base(spec, of) > spec.workers[*of].max) {
            return Err(format!("that would be {} workers of type {of}, above its max {}", self.raw_base(spec, of), spec.workers[of].max));
        }
        if is_less || (is_alone && self.has_room_now(spec, ask)) {
            return Ok(());
        }
        let known = self.scaling.refused.iter().find(|(wants, _)| is_first && *wants == ask.wants);
        if let Some((_, refusal)) = known {
            return Err(refusal.clone());
        }
        let checked = self.check_room(spec, Some(ask));
        if let (Err(refusal), true) = (&checked, is_first && self.scaling.refused.len() < MOST_REFUSALS) {
            self.scaling.refused.push((ask.wants.clone(), refusal.clone()));
        }
        checked
    }

    /// What was granted, in words.
    fn granted(&self, ask: &Ask, gone: &[Ask], before: &Numbers, after: &Numbers) -> String {
        let others: Vec<&str> = gone.iter().map(|old| old.name.as_str()).filter(|name| *name != ask.name).collect();
        let mut in_place = if others.is_empty() { String::new() } else { format!(", replacing {}", others.join(", ")) };
        if let Some(old) = gone.iter().find(|old| old.name == ask.name && old.wants != ask.wants) {
            in_place.push_str(&format!(", instead of {}", old.wants));
        }
        match &ask.wants {
            Wants::Workers { node_type, .. } | Wants::More { node_type, .. } => {
                let (was, now) = (before[node_type], after[node_type]);
                let others = self.scaling.wanted.get(node_type).filter(|w| w.count > now).map(|w| w.sources[0].clone());
                let others = others.map(|source| format!("; there are more, because of {source}")).unwrap_or_default();
                format!("{node_type}: {was} → {now} workers{in_place}{others}")
            }
            Wants::Bundles { .. } => format!("{}: {}{in_place}", ask.name, ask.wants),
        }
    }

    /// Takes asks that stand no more out of the fleet. Workers that are free of room wait as every idle worker does, unless it
    /// was said that they go now: the same may be asked for again in a moment.
    fn forget_asks(&mut self, gone: &[Ask], now: bool) {
        let Some(spec) = &self.cluster.spec else { return };
        if gone.iter().any(|ask| ask.wants.node_type().is_none()) {
            let names: Vec<NodeTypeName> = spec.workers.keys().cloned().collect();
            // Which nodes work for what had room is not known: those that are idle go.
            if now {
                self.cluster.hurried.extend(names.iter().cloned());
                self.store_cluster();
            }
            names.iter().for_each(|name| self.forgive_losses(name, u32::MAX));
        }
        for ask in gone {
            self.unplace_ask(ask);
        }
        self.scaling.rebuild |= !gone.is_empty();
    }

    /// So many fewer of a type are asked for, and they go when they have been idle for long enough from now on.
    fn release_number(&mut self, name: &NodeTypeName, n: u32) {
        if n > 0 {
            self.forgive_losses(name, n);
            self.scaling.released.insert(name.clone(), self.clock.now());
        }
    }

    /// Why no node of any type could ever do for a request for room.
    pub(crate) fn misfit(&self, spec: &Spec, ask: &Ask) -> Option<String> {
        let checked = if ask.wants.node_type().is_none() { self.check_shape(spec, &ask.wants) } else { Ok(()) };
        checked.err().map(|refusal| refusal.message().to_owned())
    }

    /// What no node of any type could ever do is refused.
    fn check_shape(&self, spec: &Spec, wants: &Wants) -> Result<(), Refusal> {
        let no_type = |name: &NodeTypeName| {
            let known: Vec<_> = spec.workers.keys().map(NodeTypeName::as_str).collect();
            Refusal::Unknown(format!("there is no node type {name}; there is {}", known.join(", ")))
        };
        match wants {
            Wants::Workers { node_type, count } => {
                let kind = spec.workers.get(node_type).ok_or_else(|| no_type(node_type))?;
                if *count < kind.min || *count > kind.max {
                    let message = format!("{count} workers of type {node_type} are not between its min {} and max {}", kind.min, kind.max);
                    return Err(message.into());
                }
                Ok(())
            }
            Wants::More { node_type, count } => {
                // Whether it is within the maximum shows beside the others.
                spec.workers.get(node_type).map(|_| ()).ok_or_else(|| no_type(node_type)).and_then(|()| match count {
                    0 => Err(Refusal::Malformed("a request for 0 more workers has no effect".to_owned())),
                    _ => Ok(()),
                })
            }
            Wants::Bundles { bundles, spread, .. } => {
                let total: u64 = bundles.iter().map(|b| u64::from(b.count)).sum();
                if total == 0 || bundles.iter().any(|b| b.bundle.is_nothing() || b.count == 0) {
                    return Err(Refusal::Malformed("a request for capacity needs at least one bundle that is not empty".to_owned()));
                }
                if total > MOST_BUNDLES {
                    return Err(Refusal::Malformed(format!("{total} bundles are more than {MOST_BUNDLES}")));
                }
                if *spread && total > u64::from(spec.max_workers) {
                    let most = spec.max_workers;
                    let message = format!("{total} bundles, each on a node of its own, need more than the cluster's max_workers {most}");
                    return Err(message.into());
                }
                for counted in bundles {
                    if let Some(unknown) = counted.bundle.resources.keys().find(|name| !self.scaling.custom.contains(name)) {
                        let known = self.scaling.custom.join(", ");
                        let known = if known.is_empty() {
                            "no node type declares custom resources".to_owned()
                        } else {
                            format!("there is {known}")
                        };
                        return Err(Refusal::Unknown(format!("no node type offers the resource {unknown}; {known}")));
                    }
                    let need = self.amounts_of(&counted.bundle);
                    let reasons: Vec<(NodeTypeName, Option<String>)> =
                        spec.workers.keys().map(|name| (name.clone(), self.lacks(spec, name, &need))).collect();
                    if reasons.iter().all(|(_, lack)| lack.is_some()) {
                        let why = reasons.iter().map(|(name, lack)| format!("{name} {}", lack.as_deref().unwrap_or_default()));
                        let why: Vec<String> = why.collect();
                        return Err(format!("no node type has {}: {}", counted.bundle, why.join("; ")).into());
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) fn group_of(&self, ask: &Ask) -> Group {
        match &ask.wants {
            Wants::Bundles { bundles, gang, spread } => {
                let shapes = bundles.iter().map(|b| (self.amounts_of(&b.bundle), b.count)).collect();
                Group { shapes, gang: *gang, spread: *spread }
            }
            _ => Group::default(),
        }
    }

    /// Gives an ask its place on the fleet.
    pub(super) fn place_ask(&mut self, ask: &Ask) -> GroupId {
        let id = GroupId(ask.number);
        if matches!(ask.wants, Wants::Bundles { .. }) {
            self.scaling.groups.insert(id, ask.name.clone());
            let group = self.group_of(ask);
            self.scaling.fleet.set_group(id, group);
            self.scaling.changes += 1;
            self.scaling.ask_changes += 1;
        }
        id
    }

    pub(super) fn unplace_ask(&mut self, ask: &Ask) {
        let id = GroupId(ask.number);
        // What comes under the same name is another gang.
        self.scaling.gangs.remove(&id);
        if self.scaling.groups.remove(&id).is_some() {
            self.scaling.fleet.set_group(id, Group::default());
            self.scaling.changes += 1;
            self.scaling.ask_changes += 1;
        }
    }

    /// Takes every ask into a fleet that is new, and plans it where it was planned before, as far as it fits there. The
    /// decision that follows places the rest.
    pub(super) fn place_asks(&mut self) {
        for ask in self.asks.room.values() {
            let (id, group) = (GroupId(ask.number), self.group_of(ask));
            self.scaling.fleet.enlist(id, group);
            self.scaling.groups.insert(id, ask.name.clone());
        }
        put_back(&mut self.scaling.fleet, &self.scaling.stored_plan);
    }

    /// What is asked for by hand, and what of it has no room yet.
    pub fn asks(&self) -> Vec<AskView> {
        let view = |ask: &Ask| AskView {
            unmet: self.unmet(ask),
            wants: ask.wants.to_string(),
            ready: self.is_there(ask),
            nodes: self.scaling.fleet.nodes_of(GroupId(ask.number)).cloned().collect(),
            ask: ask.clone(),
        };
        let mut all: Vec<AskView> = self.asks.iter().map(view).collect();
        all.sort_by_key(|view| view.ask.number);
        all
    }

    /// The requests of which something is planned on workers of a type; a few of them.
    pub fn requests_on(&self, name: &NodeTypeName) -> Vec<String> {
        let of_type = self.scaling.fleet.nodes().filter(|id| self.nodes[*id].record.node_type == *name);
        let groups: BTreeSet<GroupId> = of_type.flat_map(|id| self.scaling.fleet.groups_on(id)).collect();
        groups.iter().filter_map(|id| self.scaling.groups.get(id).cloned()).take(MOST_NAMED).collect()
    }

    /// What of a request has no room, or is not there or coming, and why.
    fn unmet(&self, ask: &Ask) -> Option<String> {
        let outlook = self.outlook();
        if let Some(unmet) = outlook.unmet.iter().find(|u| u.source == ask.name) {
            return Some(format!("{}: {}", unmet.what, unmet.why));
        }
        let of = ask.wants.node_type()?;
        let spec = self.cluster.spec.as_ref()?;
        let (wanted, there) = (self.base(spec, of), self.scaling.tally.counted(of));
        let (raw, most) = (self.raw_base(spec, of), spec.workers.get(of).map_or(0, |kind| kind.max));
        if raw > most {
            return Some(format!("{} of {raw} running or starting: workers.{of}.max is {most}", there.min(most)));
        }
        let blocked = outlook.types.get(of).and_then(|t| t.blocked.first());
        let why = outlook.held.as_ref().or(blocked).map(|why| format!(": {why}")).unwrap_or_default();
        (there < wanted).then(|| format!("{there} of {wanted} running or starting{why}"))
    }

    /// Whether everything that a request wants is there, on nodes that are ready. False if there is no such request.
    pub fn is_ready(&self, request: &str) -> bool {
        self.asks.get(request).is_some_and(|ask| self.is_there(ask))
    }

    fn is_there(&self, ask: &Ask) -> bool {
        let is_ready = |node: &crate::Node| node.record.life == NodeState::Ready;
        if let Some(of) = ask.wants.node_type() {
            // Those that came later have their workers later.
            let wanted = self.cluster.spec.as_ref().map_or(0, |spec| self.raw_base_by(spec, of, ask));
            let ready = self.workers().filter(|n| n.record.node_type == *of && is_ready(n)).count();
            return ready >= wanted as usize;
        }
        let (id, fleet) = (GroupId(ask.number), &self.scaling.fleet);
        !fleet.is_waiting(id) && fleet.nodes_of(id).all(|node| self.nodes.get(node).is_some_and(is_ready))
    }

    pub(crate) fn take_revoke(&mut self, request: Request, name: String, now: bool) {
        let before = self.cluster.spec.as_ref().map(|spec| self.numbers(spec)).unwrap_or_default();
        let Some(ask) = self.asks.remove(&name) else {
            let known: Vec<&str> = self.asks.iter().map(|a| a.name.as_str()).take(20).collect();
            let known = if known.is_empty() { "there are no requests".to_owned() } else { format!("there is {}", known.join(", ")) };
            let refusal = format!("there is no request {name}; {known}");
            self.complain_of(Some(&request.actor), None, EventKind::Refusal, format!("revoke: {refusal}"));
            return self.reply(request, Err(Refusal::Unknown(refusal)));
        };
        self.step.records.push(Record::AskGone { name });
        let message = format!("{} was revoked ({})", ask.wants, ask.name);
        let details = self.details_of(&ask);
        self.requested_with(&request.actor, None, format!("revoke: {message}"), details);
        self.reply(request, Ok(Reply::Done { message }));
        let after = self.cluster.spec.as_ref().map(|spec| self.numbers(spec)).unwrap_or_default();
        self.forget_asks(&[ask], now);
        let less = lessened(&before, &after);
        if now {
            self.take_back(less);
        } else {
            less.iter().for_each(|(name, n)| self.release_number(name, *n));
        }
        self.scaling_changed();
    }

    /// Ends asks whose time is over. What they held goes when it is idle: nobody said that it should go now.
    pub(super) fn end_asks(&mut self) {
        // A wall clock that is set ends nothing: how long a request stands is measured once in a head's life.
        // That of which the head sleeps is measured too.
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        let is_new = |ask: &&Ask| ask.until.is_some() && !self.asks.ends.contains_key(&ask.name);
        let new = self.asks.iter().filter(is_new);
        let ends: Vec<(String, u64)> = new.filter_map(|ask| Some((ask.name.clone(), now + ask.until?.0.saturating_sub(wall.0)))).collect();
        self.asks.ends.extend(ends);
        let over: Vec<String> = self.asks.ends.iter().filter(|(_, ends)| **ends <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            let Some(ask) = self.asks.remove(&name) else { continue };
            self.event(None, EventKind::Decision, format!("the request {name} ended: {}", ask.wants));
            self.unplace_ask(&ask);
            if let Some(of) = ask.wants.node_type() {
                self.scaling.released.insert(of.clone(), self.clock.now());
            }
            self.step.records.push(Record::AskGone { name });
            self.scaling.rebuild = true;
        }
        if let Some(next) = self.asks.ends.values().min() {
            self.decide_at(self.clock.now().saturating_add(next - now));
        }
    }

    /// Ends asks for types that there are no more.
    pub(super) fn end_asks_of_missing_types(&mut self, spec: &Spec) {
        let missing = |ask: &&Ask| ask.wants.node_type().is_some_and(|name| !spec.workers.contains_key(name));
        let over: Vec<String> = self.asks.iter().filter(missing).map(|a| a.name.clone()).collect();
        for name in over {
            self.asks.remove(&name);
            self.event(None, EventKind::Decision, format!("the request {name} ended: its node type was removed"));
            self.step.records.push(Record::AskGone { name });
        }
    }

    /// Takes one off a type's number, and says which requests became smaller; none if policies or its minimum want it anyway.
    pub(crate) fn lower_target(&mut self, name: &NodeTypeName) -> Vec<String> {
        let Some(spec) = self.cluster.spec.clone() else { return Vec::new() };
        let mut changed = Vec::new();
        let base = self.base(&spec, name);
        let is_lowest = spec.workers.get(name).is_none_or(|kind| base <= kind.min);
        if is_lowest || self.wanted_of(name) > base {
            return changed;
        }
        // The youngest of the requests that make it so large become smaller; they end when they would have ended. What they
        // ask for beyond the type's bounds is no worker.
        let mut left = self.raw_base(&spec, name) - base + 1;
        let mut of_type: Vec<Ask> = self.asks.numbers().filter(|ask| ask.wants.node_type() == Some(name)).cloned().collect();
        of_type.sort_by_key(|ask| std::cmp::Reverse(ask.number));
        let least = spec.workers.get(name).map_or(0, |kind| kind.min);
        for mut ask in of_type {
            let (count, least) = match &mut ask.wants {
                Wants::Workers { count, .. } => (count, least),
                Wants::More { count, .. } => (count, 0),
                Wants::Bundles { .. } => continue,
            };
            let taken = left.min(count.saturating_sub(least));
            *count -= taken;
            left -= taken;
            if taken > 0 {
                changed.push(ask.name.clone());
            }
            if taken > 0 && ask.wants.is_nothing() {
                self.asks.remove(&ask.name);
                self.step.records.push(Record::AskGone { name: ask.name });
            } else if taken > 0 {
                self.step.records.push(Record::Ask(ask.clone()));
                self.asks.insert(ask);
            }
            if left == 0 {
                break;
            }
        }
        self.scaling_changed();
        if left == 0 { changed } else { Vec::new() }
    }
}

/// By how much numbers became smaller.
fn lessened(before: &Numbers, after: &Numbers) -> Vec<(NodeTypeName, u32)> {
    let less = |(name, was): (&NodeTypeName, &u32)| (name.clone(), was.saturating_sub(after.get(name).copied().unwrap_or(0)));
    before.iter().map(less).collect()
}

/// The name of the request that says how many workers of a type there are to be.
fn own_name(node_type: &NodeTypeName) -> String {
    format!("workers-{node_type}")
}
