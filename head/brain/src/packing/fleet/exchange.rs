//! Work that needs nothing rare makes room on nodes that have it for work that does.

use cloudtik_model::NodeId;

use super::{Fleet, GroupId, Placed, Slot};
use crate::packing::Amounts;

/// Of so many nodes it is looked at what lies on them for what needs room there more.
const MAX_LOOKS: usize = 64;

/// A node, and what lies there and could lie elsewhere.
#[derive(Debug)]
pub struct Exchange {
    pub node: NodeId,
    pub work: Vec<(GroupId, usize, u32)>,
}

impl Fleet {
    /// A node that has to spare what is rare of a need, if only work that needs nothing rare were elsewhere: with that work.
    /// What is to be placed there belongs to `groups`; `judge` says what it costs to have the other work elsewhere, or that
    /// it is too much.
    pub fn find_exchange(&self, need: &Amounts, groups: &[GroupId], judge: &impl Fn(&[(Amounts, u32)]) -> Option<u64>) -> Option<Exchange> {
        let rare = need.rare();
        if rare.is_nothing() {
            return None;
        }
        let spread: Vec<&Placed> = groups.iter().filter_map(|id| self.groups.get(id)).filter(|placed| placed.group.spread).collect();
        let mut best: Option<(u64, Exchange)> = None;
        let mut looks = MAX_LOOKS;
        for tree in [&self.plain, &self.with_gpus] {
            let mut from = 0;
            while looks > 0
                && let Some(slot) = tree.first_fit(&rare, from)
            {
                from = slot + 1;
                let Some(of) = self.slots[slot].as_ref().filter(|_| !spread.iter().any(|placed| placed.slots.contains(&slot))) else {
                    continue;
                };
                // The fewest pieces, or the smallest.
                let mut movable = self.movable(of);
                movable.sort_by_key(|(size, id, shape, _)| (std::cmp::Reverse(*size), *id, *shape));
                let largest_first = self.work_in_the_way(slot, need, movable.iter());
                looks -= usize::from(!movable.is_empty());
                let smallest_first =
                    self.work_in_the_way(slot, need, movable.iter().rev()).filter(|work| Some(work) != largest_first.as_ref());
                for work in largest_first.into_iter().chain(smallest_first) {
                    let size = |(id, shape, n): &(GroupId, usize, u32)| (self.groups[id].group.shapes[*shape].0, *n);
                    let Some(cost) = judge(&work.iter().map(size).collect::<Vec<_>>()) else { continue };
                    if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                        best = Some((cost, Exchange { node: of.node.clone(), work }));
                    }
                }
            }
        }
        best.map(|(_, exchange)| exchange)
    }

    /// What lies in a slot, needs nothing rare and is no part of a gang: its size, whose it is, and how often.
    fn movable(&self, of: &Slot) -> Vec<(Amounts, GroupId, usize, u32)> {
        let movable = of.holds.iter().filter_map(|(id, shape, n)| {
            let group = &self.groups.get(id)?.group;
            let size = group.shapes[*shape].0;
            (!group.gang && size.rare().is_nothing()).then_some((size, *id, *shape, *n))
        });
        movable.collect()
    }

    /// Of what could lie elsewhere, in an order, as much as leaves room for a need in a slot.
    fn work_in_the_way<'m>(
        &self,
        slot: usize,
        need: &Amounts,
        movable: impl Iterator<Item = &'m (Amounts, GroupId, usize, u32)>,
    ) -> Option<Vec<(GroupId, usize, u32)>> {
        let (mut free, mut work) = (self.free(slot), Vec::new());
        for (size, id, shape, most) in movable {
            let missing = need.minus(&free);
            // So many of them have as much of each resource as is missing, as far as they have any of it.
            let of_each = missing.0.iter().zip(&size.0).filter(|(missing, size)| **missing > 0 && **size > 0);
            let enough = of_each.map(|(missing, size)| missing.div_ceil(*size)).max().unwrap_or(0);
            let n = u32::try_from(enough).unwrap_or(u32::MAX).min(*most);
            if n > 0 {
                free = free.plus(&size.times(n));
                work.push((*id, *shape, n));
            }
        }
        (!work.is_empty() && need.fits(&free)).then_some(work)
    }

    /// Takes work off a node, and places others' there.
    pub fn exchange(&mut self, exchange: &Exchange, others: &[(GroupId, usize, u32)]) {
        let Some(slot) = self.by_node.get(&exchange.node).copied() else { return };
        for (id, shape, n) in &exchange.work {
            self.take(slot, *id, *shape, *n);
        }
        for (id, shape, n) in others {
            let Some(need) = self.groups.get(id).map(|placed| placed.group.shapes[*shape].0) else { continue };
            let n = self.layable(slot, &need, *n);
            if n > 0 {
                self.put(slot, *id, *shape, n);
            }
        }
    }

    /// Takes some of what a group has in a slot off it.
    fn take(&mut self, slot: usize, id: GroupId, shape: usize, count: u32) {
        let (Some(of), Some(placed)) = (&mut self.slots[slot], self.groups.get_mut(&id)) else { return };
        let Some(at) = of.holds.iter().position(|(i, s, n)| (*i, *s) == (id, shape) && *n >= count) else { return };
        of.holds[at].2 -= count;
        if of.holds[at].2 == 0 {
            of.holds.remove(at);
        }
        if !of.holds.iter().any(|(i, ..)| *i == id) {
            placed.slots.remove(&slot);
        }
        if of.holds.is_empty() {
            self.unused.insert(slot);
        }
        placed.wait_for(shape, count);
        let freed = placed.group.shapes[shape].0.times(count);
        self.waiting.insert(id);
        self.frontiers.clear();
        let free = self.free(slot).plus(&freed);
        self.set_free(slot, free);
        self.touch(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::packing::fleet::Group;

    /// Where everything lies, and what has no room.
    #[derive(Debug, PartialEq)]
    struct Layout {
        holds: BTreeMap<NodeId, Vec<(GroupId, usize, u32)>>,
        waiting: BTreeMap<GroupId, Vec<(Amounts, u32)>>,
    }

    fn layout(fleet: &Fleet) -> Layout {
        let holds = |node: &NodeId| {
            let mut holds = fleet.holds(node).to_vec();
            holds.sort_unstable();
            (node.clone(), holds)
        };
        Layout { holds: fleet.nodes().map(holds).collect(), waiting: fleet.waiting().collect() }
    }

    #[test]
    fn what_is_exchanged_can_be_put_as_it_was() {
        let (mut state, mut exchanged) = (11u64, 0);
        let mut draw = |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        for round in 0..400 {
            let mut fleet = Fleet::default();
            for n in 0..3 + draw(5) {
                let gpus = if n % 2 == 0 { 2 + draw(3) } else { 0 };
                fleet.add_node(NodeId::new(format!("n{n}")).expect("valid"), Amounts::of(4 + draw(8), 100, gpus));
            }
            for id in 1..4 + draw(8) {
                let shapes = (0..1 + draw(2)).map(|_| (Amounts::of(1 + draw(4), 1, 0), 1 + draw(4) as u32)).collect();
                fleet.set_group(GroupId(id), Group { shapes, gang: draw(4) == 0, spread: draw(4) == 0 });
            }
            let rare = (GroupId(100), Amounts::of(1 + draw(4), 1, 1));
            fleet.enlist(rare.0, Group { shapes: vec![(rare.1, 1 + draw(2) as u32)], ..Group::default() });
            let known = layout(&fleet);
            let mut before = fleet.before(&fleet.waiting().map(|(id, _)| id).collect());
            while fleet.waiting_of(rare.0) > 0
                && let Some(exchange) = fleet.find_exchange(&rare.1, &[rare.0], &|work: &[(Amounts, u32)]| Some(work.len() as u64))
            {
                fleet.note_before(&mut before, exchange.work.iter().map(|(id, ..)| *id));
                let waiting = fleet.waiting_of(rare.0);
                fleet.exchange(&exchange, &[(rare.0, 0, 1)]);
                assert_eq!(fleet.waiting_of(rare.0), waiting - 1, "round {round}: it has a place");
                exchanged += 1;
            }
            fleet.settle();
            for node in fleet.nodes() {
                let groups = fleet.holds(node).iter();
                let need =
                    groups.fold(Amounts::default(), |sum, (id, shape, n)| sum.plus(&fleet.groups[id].group.shapes[*shape].0.times(*n)));
                assert!(fleet.capacity(node).is_some_and(|has| need.fits(&has)), "round {round}: {node} holds too much");
            }
            fleet.put_as_before(&before);
            assert_eq!(layout(&fleet), known, "round {round}");
        }
        assert!(exchanged > 100, "{exchanged}");
    }
}
