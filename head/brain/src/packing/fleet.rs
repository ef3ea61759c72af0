//! Demands on nodes that exist or are being made. Each change costs what it touches, not the size of the fleet.
//!
//! A demand keeps its node as long as both are there. Where demands lie is a plan only: it says how many nodes are needed
//! and which, and tells nobody where to run anything.

mod exchange;
mod purchases;
mod undo;

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::NodeId;

use super::tree::FreeTree;
use super::{Amounts, GPUS, devices};
pub use exchange::Exchange;
pub use purchases::{Members, take_members};
pub use undo::Before;

/// A demand's number, unique within a fleet; smaller ones are served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// Demands that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// What is needed, and how often.
    pub shapes: Vec<(Amounts, u32)>,
    /// All of it or nothing.
    pub gang: bool,
    /// No two on one node.
    pub spread: bool,
}

#[derive(Debug, Clone)]
struct Placed {
    group: Group,
    /// By shape, how many have no node.
    waiting: Vec<u32>,
    /// Shapes of which some have no node.
    waiting_shapes: usize,
    /// Which nodes have some.
    slots: BTreeSet<usize>,
}

impl Placed {
    fn new(group: Group) -> Self {
        let mut placed = Self { group, waiting: Vec::new(), waiting_shapes: 0, slots: BTreeSet::new() };
        placed.take_off();
        placed
    }

    fn waits(&self) -> bool {
        self.waiting_shapes > 0
    }

    /// All of it waits.
    fn take_off(&mut self) {
        self.waiting = self.group.shapes.iter().map(|(_, n)| *n).collect();
        self.waiting_shapes = self.waiting.iter().filter(|n| **n > 0).count();
    }

    fn wait_for(&mut self, shape: usize, count: u32) {
        self.waiting_shapes += usize::from(self.waiting[shape] == 0 && count > 0);
        self.waiting[shape] += count;
    }

    fn serve(&mut self, shape: usize, count: u32) {
        self.waiting_shapes -= usize::from(self.waiting[shape] == count && count > 0);
        self.waiting[shape] -= count;
    }
}

#[derive(Debug, Clone)]
struct Slot {
    node: NodeId,
    capacity: Amounts,
    /// Group, place in its list of shapes, how many.
    holds: Vec<(GroupId, usize, u32)>,
    /// It is among those that changed.
    is_touched: bool,
}

/// Nodes and what is placed on them.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    slots: Vec<Option<Slot>>,
    /// Slots of nodes that are gone.
    vacant: Vec<usize>,
    /// Room by slot: of nodes without GPUs, and of nodes with. A slot has room in one of them.
    plain: FreeTree,
    with_gpus: FreeTree,
    by_node: BTreeMap<NodeId, usize>,
    /// Slots in which nothing lies.
    unused: BTreeSet<usize>,
    groups: BTreeMap<GroupId, Placed>,
    waiting: BTreeSet<GroupId>,
    /// By need, and by whether nodes with GPUs are meant: no slot before this one has room for it. Holds as long as no room
    /// comes back.
    frontiers: BTreeMap<(Amounts, bool), usize>,
    /// Gangs that could not be served whole: they hold nothing until something changes.
    parked: BTreeSet<GroupId>,
    /// Slots in which something else lies than when that was last asked, and nodes that are gone since.
    touched: Vec<usize>,
    gone: Vec<NodeId>,
}

impl Fleet {
    pub fn has(&self, node: &NodeId) -> bool {
        self.by_node.contains_key(node)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.by_node.keys()
    }

    /// Takes a node in; demands that wait are placed on it as far as they fit.
    pub fn add_node(&mut self, node: NodeId, capacity: Amounts) {
        self.insert(node, capacity);
        if !self.waiting.is_empty() {
            self.settle();
        }
    }

    fn insert(&mut self, node: NodeId, capacity: Amounts) -> usize {
        if let Some(slot) = self.by_node.get(&node) {
            return *slot;
        }
        let slot = self.vacant.pop().unwrap_or(self.slots.len());
        self.by_node.insert(node.clone(), slot);
        self.unused.insert(slot);
        let taken = Slot { node, capacity, holds: Vec::new(), is_touched: false };
        let (plain, gpus) = if capacity.0[GPUS] > 0 { (Amounts::default(), capacity) } else { (capacity, Amounts::default()) };
        match self.slots.get_mut(slot) {
            Some(vacant) => {
                *vacant = Some(taken);
                self.plain.set(slot, plain);
                self.with_gpus.set(slot, gpus);
                self.frontiers.values_mut().for_each(|frontier| *frontier = (*frontier).min(slot));
            }
            None => {
                self.slots.push(Some(taken));
                self.plain.push(plain);
                self.with_gpus.push(gpus);
            }
        }
        slot
    }

    /// Takes a node out; what was on it goes elsewhere, or waits.
    pub fn remove_node(&mut self, node: &NodeId) {
        let Some(slot) = self.by_node.remove(node) else { return };
        self.unused.remove(&slot);
        let Some(gone) = self.slots[slot].take() else { return };
        self.gone.push(gone.node);
        self.vacant.push(slot);
        self.plain.set(slot, Amounts::default());
        self.with_gpus.set(slot, Amounts::default());
        let mut touched = BTreeSet::new();
        for (id, shape, n) in gone.holds {
            // What waits is looked for a place below, and bought for if there is none.
            if let Some(placed) = self.groups.get_mut(&id) {
                placed.wait_for(shape, n);
                placed.slots.remove(&slot);
                touched.insert(id);
            }
        }
        for id in touched {
            self.waiting.insert(id);
            self.place(id);
        }
    }

    /// Replaces what is demanded under a number; an empty group ends it.
    pub fn set_group(&mut self, id: GroupId, group: Group) {
        if self.groups.get(&id).is_some_and(|known| known.group == group) {
            return;
        }
        if self.groups.contains_key(&id) {
            self.release(id);
            self.groups.remove(&id);
            self.waiting.remove(&id);
            self.parked.remove(&id);
        }
        if group.shapes.iter().all(|(_, n)| *n == 0) {
            return;
        }
        self.enlist(id, group);
        self.place(id);
    }

    /// Takes a group in without looking for places: [`Fleet::settle`] does.
    pub fn enlist(&mut self, id: GroupId, group: Group) {
        self.groups.insert(id, Placed::new(group));
        self.waiting.insert(id);
    }

    /// Whether anything is placed on a node.
    pub fn is_used(&self, node: &NodeId) -> bool {
        self.by_node.get(node).and_then(|s| self.slots[*s].as_ref()).is_some_and(|s| !s.holds.is_empty())
    }

    /// The nodes on which nothing is placed.
    pub fn unused(&self) -> impl Iterator<Item = &NodeId> {
        self.unused.iter().filter_map(|slot| self.slots[*slot].as_ref()).map(|slot| &slot.node)
    }

    /// The nodes on which something of a group is placed.
    pub fn nodes_of(&self, id: GroupId) -> impl Iterator<Item = &NodeId> {
        let slots = self.groups.get(&id).into_iter().flat_map(|placed| &placed.slots);
        slots.filter_map(|slot| self.slots[*slot].as_ref()).map(|slot| &slot.node)
    }

    /// What has no node, by group: shape and number.
    pub fn waiting(&self) -> impl Iterator<Item = (GroupId, Vec<(Amounts, u32)>)> {
        self.waiting.iter().filter_map(|id| {
            let placed = self.groups.get(id)?;
            let shapes = placed.group.shapes.iter().zip(&placed.waiting);
            Some((*id, shapes.filter(|(_, n)| **n > 0).map(|((shape, _), n)| (*shape, *n)).collect()))
        })
    }

    /// Whether something of a group has no node.
    pub fn is_waiting(&self, id: GroupId) -> bool {
        self.waiting.contains(&id) || self.parked.contains(&id)
    }

    pub fn is_gang(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|placed| placed.group.gang)
    }

    /// How many demands of a group have no node.
    pub fn waiting_of(&self, id: GroupId) -> u32 {
        self.groups.get(&id).map_or(0, |placed| placed.waiting.iter().fold(0, |sum, n| sum.saturating_add(*n)))
    }

    /// What has no node, gangs that gave up included.
    pub fn waiting_or_parked(&self) -> Vec<(GroupId, Vec<(Amounts, u32)>)> {
        let parked = self.parked.iter().filter_map(|id| Some((*id, self.groups.get(id)?.group.shapes.clone())));
        self.waiting().chain(parked).collect()
    }

    /// Half a gang is of no use and takes others' room: takes it off every node until [`Fleet::unpark`]. True if it had
    /// any, which is others' now.
    pub fn park(&mut self, id: GroupId) -> bool {
        let had_room = self.groups.get(&id).is_some_and(|placed| !placed.slots.is_empty());
        self.release(id);
        self.waiting.remove(&id);
        self.parked.insert(id);
        if had_room {
            self.settle();
        }
        had_room
    }

    /// Of which groups something is placed on a node: their place in the list of shapes, and how many.
    pub fn holds(&self, node: &NodeId) -> &[(GroupId, usize, u32)] {
        let slot = self.by_node.get(node).and_then(|slot| self.slots[*slot].as_ref());
        slot.map_or(&[], |slot| &slot.holds)
    }

    /// Tells of the nodes that are gone since this was last asked, and what lies on those on which something else lies now.
    pub fn changes(&mut self, mut tell: impl FnMut(&NodeId, &[(GroupId, usize, u32)])) {
        for node in std::mem::take(&mut self.gone) {
            tell(&node, &[]);
        }
        for slot in std::mem::take(&mut self.touched) {
            if let Some(slot) = self.slots[slot].as_mut() {
                slot.is_touched = false;
                tell(&slot.node, &slot.holds);
            }
        }
    }

    fn touch(&mut self, at: usize) {
        if let Some(slot) = self.slots[at].as_mut().filter(|slot| !slot.is_touched) {
            slot.is_touched = true;
            self.touched.push(at);
        }
    }

    /// Places what waits where it was placed before, as far as it fits there.
    pub fn put_back(&mut self, node: &NodeId, id: GroupId, shape: usize, count: u32) {
        // A gang that gave up holds nothing.
        let is_parked = self.parked.contains(&id);
        let (Some(slot), Some(placed)) = (self.by_node.get(node).copied(), self.groups.get(&id).filter(|_| !is_parked)) else { return };
        let Some((need, _)) = placed.group.shapes.get(shape) else { return };
        let count = self.layable(slot, need, count.min(need.copies_in(&self.free(slot))).min(placed.waiting[shape]));
        if count > 0 {
            self.put(slot, id, shape, count);
        }
    }

    /// The groups of which something is placed on a node.
    pub fn groups_on(&self, node: &NodeId) -> BTreeSet<GroupId> {
        self.holds(node).iter().map(|(id, ..)| *id).collect()
    }

    /// What a node that is there has.
    pub fn capacity(&self, node: &NodeId) -> Option<Amounts> {
        self.by_node.get(node).and_then(|slot| self.slots[*slot].as_ref()).map(|slot| slot.capacity)
    }

    /// Gangs that gave up.
    pub fn parked(&self) -> impl Iterator<Item = GroupId> {
        self.parked.iter().copied()
    }

    /// Something changed: gangs try again.
    pub fn unpark(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            self.waiting.insert(id);
            self.place(id);
        }
    }

    /// Whether what is demanded differs in more ways than so many.
    pub fn is_of_more_shapes_than(&self, most: usize) -> bool {
        let mut shapes: BTreeSet<&Amounts> = BTreeSet::new();
        let mut all = self.groups.values().flat_map(|placed| &placed.group.shapes);
        all.any(|(shape, _)| shapes.insert(shape) && shapes.len() > most)
    }

    fn free(&self, slot: usize) -> Amounts {
        let with_gpus = self.slots[slot].as_ref().is_some_and(|s| s.capacity.0[GPUS] > 0);
        if with_gpus { self.with_gpus.get(slot) } else { self.plain.get(slot) }
    }

    /// Of so many demands that add up, how many lie on the devices of a node beside what lies there.
    fn layable(&self, slot: usize, need: &Amounts, count: u32) -> u32 {
        let Some(of) = self.slots[slot].as_ref().filter(|_| need.wants_gpus()) else { return count };
        let shape_of = |id: &GroupId, shape: usize| self.groups.get(id).map_or(0, |placed| placed.group.shapes[shape].0.0[GPUS]);
        let mut lies: Vec<(u64, u32)> = of.holds.iter().map(|(id, shape, n)| (shape_of(id, *shape), *n)).collect();
        lies.retain(|(parts, _)| *parts > 0);
        let parts = need.0[GPUS];
        // Of one size, what adds up fits.
        if !lies.iter().any(|(other, _)| *other != parts && (devices::is_fractional(*other) || devices::is_fractional(parts))) {
            return count;
        }
        let fits = |n: &u32| devices::lays(of.capacity.0[GPUS], lies.iter().copied().chain([(parts, *n)]));
        (1..=count).rev().find(fits).unwrap_or(0)
    }

    fn set_free(&mut self, slot: usize, free: Amounts) {
        match self.slots[slot].as_ref() {
            Some(s) if s.capacity.0[GPUS] > 0 => self.with_gpus.set(slot, free),
            Some(_) => self.plain.set(slot, free),
            None => {}
        }
    }

    fn put(&mut self, slot: usize, id: GroupId, shape: usize, count: u32) {
        let Some(placed) = self.groups.get_mut(&id) else { return };
        let count = count.min(placed.waiting[shape]);
        let need = placed.group.shapes[shape].0;
        placed.serve(shape, count);
        placed.slots.insert(slot);
        if !placed.waits() {
            self.waiting.remove(&id);
        }
        let free = self.free(slot).minus(&need.times(count));
        self.set_free(slot, free);
        self.touch(slot);
        if let Some(Slot { holds, .. }) = &mut self.slots[slot] {
            if holds.is_empty() && count > 0 {
                self.unused.remove(&slot);
            }
            match holds.iter_mut().find(|(i, s, _)| *i == id && *s == shape) {
                Some((.., n)) => *n += count,
                None => holds.push((id, shape, count)),
            }
        }
    }

    /// Takes a group off every node.
    fn release(&mut self, id: GroupId) {
        let Some(placed) = self.groups.get_mut(&id) else { return };
        placed.take_off();
        let shapes = placed.group.shapes.clone();
        if !placed.slots.is_empty() {
            self.frontiers.clear();
        }
        for slot in std::mem::take(&mut placed.slots) {
            self.touch(slot);
            let Some(kept) = &mut self.slots[slot] else { continue };
            let mut freed = Amounts::default();
            kept.holds.retain(|(holder, shape, n)| {
                if *holder == id {
                    freed = freed.plus(&shapes[*shape].0.times(*n));
                }
                *holder != id
            });
            if kept.holds.is_empty() {
                self.unused.insert(slot);
            }
            let free = self.free(slot).plus(&freed);
            self.set_free(slot, free);
        }
        self.waiting.insert(id);
    }

    /// Places what waits as far as there is room.
    pub fn settle(&mut self) {
        for id in self.waiting.clone() {
            self.place(id);
        }
    }

    fn place(&mut self, id: GroupId) {
        let Some(placed) = self.groups.get(&id) else { return };
        let spread = placed.group.spread;
        let mut order: Vec<usize> = (0..placed.waiting.len()).filter(|s| placed.waiting[*s] > 0).collect();
        // Large ones first: small ones fit into what they leave.
        order.sort_by_key(|s| {
            let need = &placed.group.shapes[*s].0;
            (!need.wants_gpus(), std::cmp::Reverse(*need), *s)
        });
        for shape in order {
            let need = self.groups[&id].group.shapes[shape].0;
            for with_gpus in [false, true] {
                let mut from = self.frontiers.get(&(need, with_gpus)).copied().unwrap_or(0);
                let mut is_first = true;
                while let waiting = self.groups[&id].waiting[shape]
                    && waiting > 0
                {
                    let tree = if with_gpus { &self.with_gpus } else { &self.plain };
                    let found = tree.first_fit(&need, from);
                    if std::mem::take(&mut is_first) {
                        self.frontiers.insert((need, with_gpus), found.unwrap_or(self.slots.len()));
                    }
                    let Some(slot) = found else { break };
                    from = slot + 1;
                    if self.slots[slot].is_none() || (spread && self.groups[&id].slots.contains(&slot)) {
                        continue;
                    }
                    let copies = if spread { 1 } else { need.copies_in(&self.free(slot)).min(waiting) };
                    let copies = self.layable(slot, &need, copies);
                    if copies > 0 {
                        self.put(slot, id, shape, copies);
                    }
                }
            }
        }
    }

    /// Places everything anew: nodes in the order given, large demands first within each rank. Afterwards the nodes that
    /// come last are the least used. Beside these there are or may be nodes of `others`.
    pub fn rebuild(&mut self, nodes: &[NodeId], others: &[Amounts]) {
        let old = std::mem::take(self);
        let capacity = |node: &NodeId| old.by_node.get(node).and_then(|s| old.slots[*s].as_ref()).map(|s| s.capacity);
        for node in nodes {
            if let Some(capacity) = capacity(node) {
                self.insert(node.clone(), capacity);
            }
        }
        if nodes.is_empty() {
            old.groups.into_iter().for_each(|(id, placed)| self.enlist(id, placed.group));
            return;
        }
        // Those that are hardest to place first: what few of the nodes can hold, and of that the largest.
        let mut sorts: BTreeMap<Amounts, usize> = BTreeMap::new();
        for capacity in self.slots.iter().flatten().map(|slot| &slot.capacity).chain(others) {
            *sorts.entry(*capacity).or_default() += 1;
        }
        let mut holders: BTreeMap<Amounts, usize> = BTreeMap::new();
        let mut holders_of = |need: &Amounts| match holders.get(need) {
            Some(known) => *known,
            None => {
                let fitting = sorts.iter().filter(|(capacity, _)| need.fits(capacity)).map(|(_, n)| n).sum();
                holders.insert(*need, fitting);
                fitting
            }
        };
        let mut order: Vec<(bool, bool, usize, std::cmp::Reverse<Amounts>, GroupId)> = Vec::with_capacity(old.groups.len());
        for (id, placed) in old.groups {
            let largest = placed.group.shapes.iter().map(|(shape, _)| *shape).max().unwrap_or_default();
            let rarest = placed.group.shapes.iter().map(|(shape, _)| holders_of(shape)).filter(|n| *n > 0).min().unwrap_or(usize::MAX);
            let wants_gpus = placed.group.shapes.iter().any(|(shape, _)| shape.wants_gpus());
            order.push((!placed.group.spread, !wants_gpus, rarest, std::cmp::Reverse(largest), id));
            self.groups.insert(id, Placed::new(placed.group));
            self.waiting.insert(id);
        }
        order.sort_unstable();
        for (.., id) in order {
            self.place(id);
        }
    }
}
