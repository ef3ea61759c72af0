//! Resource requests: granted, refused with what would be needed, replaced, ended, revoked.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::NodeTypeName;
use cloudtik_model::answer::Answer;
use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};
use cloudtik_model::event::{Again, RequestDetails, Scale, What};
use cloudtik_model::node::NodeState;
use cloudtik_model::outlook::{RequestView, Shortfall};
use cloudtik_model::refusal::{Lack, Refusal};
use cloudtik_model::spec::Spec;

use super::plan::put_back;
use crate::packing::{Group, GroupId};
use crate::steering::on_one_line;
use crate::{Brain, NewRequest, Record, Request};

/// Requests that stand at once. More are a mistake of a program.
const MAX_REQUESTS: usize = 10_000;
/// Refusals that are remembered.
const MAX_REFUSALS: usize = 100;
/// So many requests are named where many have room.
const MAX_NAMED: usize = 5;
/// Pieces of work in one request.
const MAX_BUNDLES: u64 = 1_000_000;

/// Workers that are wanted by number, by type.
type Numbers = BTreeMap<NodeTypeName, u32>;

impl Brain {
    pub(crate) fn take_scale(&mut self, question: Request, asked: NewRequest) {
        match self.accept(asked) {
            Ok((name, scale)) => {
                self.requested(&question.actor, None, What::Scale(Box::new(scale.clone())));
                self.autoscaler.granted.push((question, name, scale));
                self.scaling_changed();
            }
            Err(refusal) => {
                self.complain_of(Some(&question.actor), None, What::ScaleRefused { refusal: refusal.clone() });
                self.reply(question, Err(refusal));
            }
        }
    }

    /// A request as it is told of.
    fn details_of(&self, request: &ResourceRequest) -> RequestDetails {
        let ends_in_s = request.until.map(|until| until.0.saturating_sub(self.clock.wall().0) / 1_000);
        RequestDetails { name: request.name.clone(), wants: request.wants.clone(), reason: request.reason.clone(), ends_in_s }
    }

    /// Says what was granted, and what of it has to wait.
    pub(crate) fn answer_granted(&mut self) {
        for (question, name, scale) in std::mem::take(&mut self.autoscaler.granted) {
            let waits = self.autoscaler.requests.get(&name).and_then(|request| self.unmet(request));
            let on_hold = self.cluster.held.as_ref().map(|hold| hold.reason.clone());
            self.done(question, Answer::Scaled { scale: Box::new(scale), waits, on_hold });
        }
    }

    fn accept(&mut self, asked: NewRequest) -> Result<(String, Scale), Refusal> {
        let Some(spec) = self.cluster.spec.clone() else { return Err(Refusal::NoSpecification) };
        if self.cluster.stopping {
            return Err(Refusal::ClusterTakenDown);
        }
        let wall = self.clock.wall();
        if asked.until.is_some_and(|until| until <= wall) {
            return Err(Refusal::EndsBeforeStart);
        }
        let mut wants = asked.wants;
        // Beside the others, a number of workers is a number of further ones.
        if let (true, RequestedCapacity::Workers { node_type, count }) = (asked.additive, &wants) {
            wants = RequestedCapacity::More { node_type: node_type.clone(), count: *count };
        }
        let name = match (asked.name, asked.additive, &wants) {
            (Some(name), ..) => name,
            (None, true, _) => self.autoscaler.requests.free_name(),
            (None, false, RequestedCapacity::Workers { node_type, .. } | RequestedCapacity::More { node_type, .. }) => own_name(node_type),
            (None, false, RequestedCapacity::Bundles { .. }) => "room".to_owned(),
        };
        if name.is_empty() || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(Refusal::InvalidRequestName { name });
        }
        self.check_shape(&spec, &wants)?;
        let replaced = self.autoscaler.requests.replaced_by(&name, &wants, asked.additive);
        if self.autoscaler.requests.len() - replaced.len() >= MAX_REQUESTS {
            return Err(Refusal::TooManyRequests { max: MAX_REQUESTS as u32 });
        }
        let before = self.numbers(&spec);
        // What is asked for again keeps its place and what it has; how long it stands, and why, may be new.
        if let Some(known) =
            self.autoscaler.requests.get(&name).filter(|known| known.wants == wants && replaced.iter().all(|old| *old == known.name))
        {
            let reason = if asked.reason.is_empty() { known.reason.clone() } else { on_one_line(&asked.reason) };
            let was_until = known.until;
            let request = ResourceRequest { name, number: known.number, at: known.at, until: asked.until, wants, reason };
            self.autoscaler.requests.remove(&request.name);
            self.autoscaler.requests.insert(request.clone());
            self.effects.record(Record::ResourceRequest(request.clone()));
            let again = match (was_until, request.until) {
                (Some(_), None) => Again::Lasts,
                (was, is) if was != is => Again::EndChanged,
                _ => Again::Same,
            };
            let scale = Scale { again: Some(again), ..self.granted(&request, &[], &before, &before) };
            return Ok((request.name, scale));
        }
        let number = self.autoscaler.requests.next_number();
        let request = ResourceRequest { name, number, at: wall, until: asked.until, wants, reason: on_one_line(&asked.reason) };
        let ends: Vec<(String, u64)> =
            replaced.iter().filter_map(|name| Some((name.clone(), *self.autoscaler.requests.ends.get(name)?))).collect();
        let gone: Vec<ResourceRequest> = replaced.iter().filter_map(|name| self.autoscaler.requests.remove(name)).collect();
        self.autoscaler.requests.insert(request.clone());
        let after = self.numbers(&spec);
        let checked = self.check_new(&spec, &request, gone.is_empty(), &before, &after);
        if let Err(refusal) = checked {
            self.autoscaler.requests.remove(&request.name);
            gone.into_iter().for_each(|request| self.autoscaler.requests.insert(request));
            self.autoscaler.requests.ends.extend(ends);
            return Err(refusal);
        }
        for old in gone.iter().filter(|old| old.name != request.name) {
            self.effects.record(Record::ResourceRequestGone { name: old.name.clone() });
        }
        self.effects.record(Record::ResourceRequest(request.clone()));
        self.forget_requests(&gone, false);
        // A smaller number says itself that so many are too many.
        self.revoke_numbers(lessened(&before, &after));
        self.place_request(&request);
        let scale = self.granted(&request, &gone, &before, &after);
        Ok((request.name, scale))
    }

    /// How many workers of each type there are by number.
    fn numbers(&self, spec: &Spec) -> Numbers {
        spec.workers.keys().map(|of| (of.clone(), self.base(spec, of))).collect()
    }

    /// Whether an ask that was just taken in may stand. `is_first`: it stands in nobody's place.
    fn check_new(
        &mut self,
        spec: &Spec,
        request: &ResourceRequest,
        is_first: bool,
        before: &Numbers,
        after: &Numbers,
    ) -> Result<(), Refusal> {
        // What is already promised to others and not there yet is not free: then all of it is looked at.
        let is_settled = self.cluster.held.is_none()
            && self.autoscaler.fleet.waiting_or_parked().is_empty()
            && spec.workers.keys().all(|of| self.wanted_of(of) <= self.autoscaler.tally.counted(of));
        let is_alone = is_settled && is_first && request.wants.node_type().is_none();
        // Less is always to be had, whatever else stands.
        let is_less = request.wants.node_type().is_some() && after.iter().all(|(of, n)| *n <= before[of]);
        if let Some(of) = request.wants.node_type().filter(|of| self.raw_base(spec, of) > spec.workers[*of].max) {
            return Err(Refusal::AboveTypeMaximum { node_type: of.clone(), count: self.raw_base(spec, of), max: spec.workers[of].max });
        }
        if is_less || (is_alone && self.has_room_now(spec, request)) {
            return Ok(());
        }
        let known = self.autoscaler.refused.iter().find(|(wants, _)| is_first && *wants == request.wants);
        if let Some((_, refusal)) = known {
            return Err(refusal.clone());
        }
        let checked = self.check_room(spec, Some(request)).map_err(|why| Refusal::NoRoom { why });
        if let (Err(refusal), true) = (&checked, is_first && self.autoscaler.refused.len() < MAX_REFUSALS) {
            self.autoscaler.refused.push((request.wants.clone(), refusal.clone()));
        }
        checked
    }

    /// What was granted.
    fn granted(&self, request: &ResourceRequest, gone: &[ResourceRequest], before: &Numbers, after: &Numbers) -> Scale {
        let numbers = request.wants.node_type().map(|of| (before[of], after[of]));
        let more = |of: &NodeTypeName| self.autoscaler.wanted.get(of).filter(|wanted| wanted.count > after[of]);
        Scale {
            request: self.details_of(request),
            numbers,
            replaced: gone.iter().map(|old| old.name.clone()).filter(|name| *name != request.name).collect(),
            instead_of: gone.iter().find(|old| old.name == request.name && old.wants != request.wants).map(|old| old.wants.clone()),
            more_because: request.wants.node_type().and_then(more).and_then(|wanted| wanted.sources.first().cloned()),
            again: None,
        }
    }

    /// Takes asks that stand no more out of the fleet. Workers that are free of room wait as every idle worker does, unless it
    /// was said that they go now: the same may be asked for again in a moment.
    fn forget_requests(&mut self, gone: &[ResourceRequest], now: bool) {
        let Some(spec) = &self.cluster.spec else { return };
        if gone.iter().any(|request| request.wants.node_type().is_none()) {
            let names: Vec<NodeTypeName> = spec.workers.keys().cloned().collect();
            // Which nodes work for what had room is not known: those that are idle go.
            if now {
                self.autoscaler.stored.when_idle.extend(names.iter().cloned());
                self.store_cluster();
            }
            names.iter().for_each(|name| self.clear_lost_members(name, u32::MAX));
        }
        for request in gone {
            self.unplace_request(request);
        }
        self.autoscaler.rebuild |= !gone.is_empty();
    }

    /// So many fewer of a type are asked for, and they go when they have been idle for long enough from now on.
    fn release_number(&mut self, name: &NodeTypeName, n: u32) {
        if n > 0 {
            self.clear_lost_members(name, n);
            self.autoscaler.released.insert(name.clone(), self.clock.now());
        }
    }

    /// Why no node of any type could ever do for a request for room.
    pub(crate) fn misfit(&self, spec: &Spec, request: &ResourceRequest) -> Option<Refusal> {
        let checked = if request.wants.node_type().is_none() { self.check_shape(spec, &request.wants) } else { Ok(()) };
        checked.err()
    }

    /// What no node of any type could ever do is refused.
    fn check_shape(&self, spec: &Spec, wants: &RequestedCapacity) -> Result<(), Refusal> {
        let no_type =
            |name: &NodeTypeName| Refusal::UnknownNodeType { node_type: name.clone(), known: spec.workers.keys().cloned().collect() };
        match wants {
            RequestedCapacity::Workers { node_type, count } => {
                let kind = spec.workers.get(node_type).ok_or_else(|| no_type(node_type))?;
                if *count < kind.min || *count > kind.max {
                    return Err(Refusal::OutOfBounds { node_type: node_type.clone(), count: *count, min: kind.min, max: kind.max });
                }
                Ok(())
            }
            RequestedCapacity::More { node_type, count } => {
                // Whether it is within the maximum shows beside the others.
                match count {
                    _ if !spec.workers.contains_key(node_type) => Err(no_type(node_type)),
                    0 => Err(Refusal::NoMoreWorkers),
                    _ => Ok(()),
                }
            }
            RequestedCapacity::Bundles { bundles, spread, .. } => {
                let total: u64 = bundles.iter().map(|b| u64::from(b.count)).sum();
                if total == 0 || bundles.iter().any(|b| b.bundle.is_nothing() || b.count == 0) {
                    return Err(Refusal::EmptyBundle);
                }
                if total > MAX_BUNDLES {
                    return Err(Refusal::TooManyBundles { count: total, max: MAX_BUNDLES });
                }
                if *spread && total > u64::from(spec.max_workers) {
                    return Err(Refusal::TooManyForSpread { count: total, max_workers: spec.max_workers });
                }
                for counted in bundles {
                    if let Some(unknown) = counted.bundle.resources.keys().find(|name| !self.autoscaler.custom.contains(name)) {
                        return Err(Refusal::UnknownResource { resource: unknown.clone(), known: self.autoscaler.custom.clone() });
                    }
                    let need = self.amounts_of(&counted.bundle);
                    let lack = |name: &NodeTypeName| Some((name.clone(), self.lacks(spec, name, &need)?));
                    let lacks: BTreeMap<NodeTypeName, Lack> = spec.workers.keys().filter_map(lack).collect();
                    if lacks.len() == spec.workers.len() {
                        return Err(Refusal::NoTypeFits { bundle: counted.bundle.clone(), lacks });
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) fn group_of(&self, request: &ResourceRequest) -> Group {
        match &request.wants {
            RequestedCapacity::Bundles { bundles, gang, spread } => {
                let shapes = bundles.iter().map(|b| (self.amounts_of(&b.bundle), b.count)).collect();
                Group { shapes, gang: *gang, spread: *spread }
            }
            _ => Group::default(),
        }
    }

    /// Gives an ask its place on the fleet.
    pub(super) fn place_request(&mut self, request: &ResourceRequest) -> GroupId {
        let id = GroupId(request.number);
        if matches!(request.wants, RequestedCapacity::Bundles { .. }) {
            self.autoscaler.groups.insert(id, request.name.clone());
            let group = self.group_of(request);
            self.autoscaler.fleet.set_group(id, group);
            self.autoscaler.changes += 1;
            self.autoscaler.request_changes += 1;
        }
        id
    }

    pub(super) fn unplace_request(&mut self, request: &ResourceRequest) {
        let id = GroupId(request.number);
        // What comes under the same name is another gang.
        self.autoscaler.gangs.remove(&id);
        if self.autoscaler.groups.remove(&id).is_some() {
            self.autoscaler.fleet.set_group(id, Group::default());
            self.autoscaler.changes += 1;
            self.autoscaler.request_changes += 1;
        }
    }

    /// Takes every ask into a fleet that is new, and plans it where it was planned before, as far as it fits there. The
    /// decision that follows places the rest.
    pub(super) fn place_requests(&mut self) {
        for request in self.autoscaler.requests.room.values() {
            let (id, group) = (GroupId(request.number), self.group_of(request));
            self.autoscaler.fleet.enlist(id, group);
            self.autoscaler.groups.insert(id, request.name.clone());
        }
        put_back(&mut self.autoscaler.fleet, &self.autoscaler.stored_plan);
    }

    /// What is asked for by hand, and what of it has no room yet.
    pub fn request_views(&self) -> Vec<RequestView> {
        let view = |request: &ResourceRequest| RequestView {
            unmet: self.unmet(request),
            ready: self.is_there(request),
            nodes: self.autoscaler.fleet.nodes_of(GroupId(request.number)).cloned().collect(),
            request: request.clone(),
        };
        let mut all: Vec<RequestView> = self.autoscaler.requests.iter().map(view).collect();
        all.sort_by_key(|view| view.request.number);
        all
    }

    /// The requests of which something is planned on workers of a type; a few of them.
    pub fn requests_on(&self, name: &NodeTypeName) -> Vec<String> {
        let of_type = self.autoscaler.fleet.nodes().filter(|id| self.nodes[*id].record.node_type == *name);
        let groups: BTreeSet<GroupId> = of_type.flat_map(|id| self.autoscaler.fleet.groups_on(id)).collect();
        groups.iter().filter_map(|id| self.autoscaler.groups.get(id).cloned()).take(MAX_NAMED).collect()
    }

    /// What of a request has no room, or is not there or coming, and why.
    fn unmet(&self, request: &ResourceRequest) -> Option<Shortfall> {
        let outlook = self.outlook();
        if let Some(unmet) = outlook.unmet.iter().find(|u| u.source == request.name) {
            return Some(Shortfall::NoRoom { what: unmet.what.clone(), why: unmet.why.clone() });
        }
        let of = request.wants.node_type()?;
        let spec = self.cluster.spec.as_ref()?;
        let (wanted, there) = (self.base(spec, of), self.autoscaler.tally.counted(of));
        let (raw, most) = (self.raw_base(spec, of), spec.workers.get(of).map_or(0, |kind| kind.max));
        if raw > most {
            return Some(Shortfall::AboveTypeMaximum { present: there.min(most), wanted: raw, node_type: of.clone(), max: most });
        }
        let blocked = outlook.types.get(of).and_then(|t| t.blocked.first());
        let why = outlook.held.as_ref().or(blocked).cloned();
        (there < wanted).then_some(Shortfall::Missing { present: there, wanted, why })
    }

    /// Whether everything that a request wants is there, on nodes that are ready. False if there is no such request.
    pub fn is_ready(&self, request: &str) -> bool {
        self.autoscaler.requests.get(request).is_some_and(|request| self.is_there(request))
    }

    fn is_there(&self, request: &ResourceRequest) -> bool {
        let is_ready = |node: &crate::Node| node.record.life == NodeState::Ready;
        if let Some(of) = request.wants.node_type() {
            // Those that came later have their workers later.
            let wanted = self.cluster.spec.as_ref().map_or(0, |spec| self.raw_base_by(spec, of, request));
            let ready = self.workers().filter(|n| n.record.node_type == *of && is_ready(n)).count();
            return ready >= wanted as usize;
        }
        let (id, fleet) = (GroupId(request.number), &self.autoscaler.fleet);
        !fleet.is_waiting(id) && fleet.nodes_of(id).all(|node| self.nodes.get(node).is_some_and(is_ready))
    }

    pub(crate) fn take_revoke(&mut self, question: Request, name: String, now: bool) {
        let before = self.cluster.spec.as_ref().map(|spec| self.numbers(spec)).unwrap_or_default();
        let Some(request) = self.autoscaler.requests.remove(&name) else {
            let refusal = Refusal::UnknownRequest {
                name,
                known: self.autoscaler.requests.iter().map(|request| request.name.clone()).take(20).collect(),
            };
            self.complain_of(Some(&question.actor), None, What::RevokeRefused { refusal: refusal.clone() });
            return self.reply(question, Err(refusal));
        };
        self.effects.record(Record::ResourceRequestGone { name });
        let revoked = self.details_of(&request);
        self.requested(&question.actor, None, What::Revoke { request: revoked.clone() });
        self.done(question, Answer::Revoked { request: revoked });
        let after = self.cluster.spec.as_ref().map(|spec| self.numbers(spec)).unwrap_or_default();
        self.forget_requests(&[request], now);
        let less = lessened(&before, &after);
        if now {
            self.revoke_numbers(less);
        } else {
            less.iter().for_each(|(name, n)| self.release_number(name, *n));
        }
        self.scaling_changed();
    }

    /// Ends asks whose time is over. What they held goes when it is idle: nobody said that it should go now.
    pub(super) fn end_requests(&mut self) {
        // A wall clock that is set ends nothing: how long a request stands is measured once in a head's life.
        // That of which the head sleeps is measured too.
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        let is_new = |request: &&ResourceRequest| request.until.is_some() && !self.autoscaler.requests.ends.contains_key(&request.name);
        let new = self.autoscaler.requests.iter().filter(is_new);
        let ends: Vec<(String, u64)> =
            new.filter_map(|request| Some((request.name.clone(), now + request.until?.0.saturating_sub(wall.0)))).collect();
        self.autoscaler.requests.ends.extend(ends);
        let over: Vec<String> =
            self.autoscaler.requests.ends.iter().filter(|(_, ends)| **ends <= now).map(|(name, _)| name.clone()).collect();
        for name in over {
            let Some(request) = self.autoscaler.requests.remove(&name) else { continue };
            self.event(None, What::RequestEnded { request: name.clone(), wants: request.wants.clone() });
            self.unplace_request(&request);
            if let Some(of) = request.wants.node_type() {
                self.autoscaler.released.insert(of.clone(), self.clock.now());
            }
            self.effects.record(Record::ResourceRequestGone { name });
            self.autoscaler.rebuild = true;
        }
        if let Some(next) = self.autoscaler.requests.ends.values().min() {
            self.decide_at(self.clock.now().saturating_add(next - now));
        }
    }

    /// Ends asks for types that there are no more.
    pub(super) fn end_requests_of_missing_types(&mut self, spec: &Spec) {
        let missing = |request: &&ResourceRequest| request.wants.node_type().is_some_and(|name| !spec.workers.contains_key(name));
        let over: Vec<String> = self.autoscaler.requests.iter().filter(missing).map(|a| a.name.clone()).collect();
        for name in over {
            self.autoscaler.requests.remove(&name);
            self.event(None, What::RequestWithoutType { request: name.clone() });
            self.effects.record(Record::ResourceRequestGone { name });
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
        // The newest of the requests that make it so large become smaller; they end when they would have ended. What they
        // ask for beyond the type's bounds is no worker.
        let mut left = self.raw_base(&spec, name) - base + 1;
        let mut of_type: Vec<ResourceRequest> =
            self.autoscaler.requests.numbers().filter(|request| request.wants.node_type() == Some(name)).cloned().collect();
        of_type.sort_by_key(|request| std::cmp::Reverse(request.number));
        let least = spec.workers.get(name).map_or(0, |kind| kind.min);
        for mut request in of_type {
            let (count, least) = match &mut request.wants {
                RequestedCapacity::Workers { count, .. } => (count, least),
                RequestedCapacity::More { count, .. } => (count, 0),
                RequestedCapacity::Bundles { .. } => continue,
            };
            let taken = left.min(count.saturating_sub(least));
            *count -= taken;
            left -= taken;
            if taken > 0 {
                changed.push(request.name.clone());
            }
            if taken > 0 && request.wants.is_nothing() {
                self.autoscaler.requests.remove(&request.name);
                self.effects.record(Record::ResourceRequestGone { name: request.name });
            } else if taken > 0 {
                self.effects.record(Record::ResourceRequest(request.clone()));
                self.autoscaler.requests.insert(request);
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
