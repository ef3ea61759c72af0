//! What waits, as a purchase takes it, and bought nodes with what they were bought for.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::NodeId;

use super::super::{Amounts, Bin, Class};
use super::{Fleet, GroupId};

/// By class, the groups that it is made of: which, which of its shapes, how many.
pub type Members = Vec<Vec<(GroupId, usize, u32)>>;

/// Takes so many demands of a class out of those that it is made of.
pub fn take_members(of_class: &mut Vec<(GroupId, usize, u32)>, count: u32) -> Vec<(GroupId, usize, u32)> {
    let (mut taken, mut left) = (Vec::new(), count);
    while left > 0
        && let Some((id, shape, most)) = of_class.last_mut()
    {
        let n = left.min(*most);
        taken.push((*id, *shape, n));
        left -= n;
        *most -= n;
        if *most == 0 {
            of_class.pop();
        }
    }
    taken
}

impl Fleet {
    /// Everything that waits, for a purchase. Demands that are alike are one class; the numbers of a class's groups, and which
    /// shape of theirs, are beside it.
    ///
    /// Of the group in `cut`, no more than so many are taken.
    pub fn classes(&self, of: &BTreeSet<GroupId>, cut: Option<(GroupId, u32)>) -> (Vec<Class>, Members) {
        let mut found: BTreeMap<(Amounts, Option<u32>, Option<GroupId>), usize> = BTreeMap::new();
        let (mut classes, mut members): (Vec<Class>, Members) = (Vec::new(), Vec::new());
        for (number, id) in of.iter().enumerate() {
            let Some(placed) = self.groups.get(id) else { continue };
            let apart = placed.group.spread.then_some(number as u32);
            // What becomes of a gang must be told from what becomes of others.
            let gang = placed.group.gang.then_some(*id);
            let mut most = cut.filter(|(group, _)| group == id).map_or(u32::MAX, |(_, most)| most);
            for (shape, count) in placed.waiting.iter().copied().enumerate().filter(|(_, n)| *n > 0) {
                let count = count.min(most);
                most -= count;
                if count == 0 {
                    continue;
                }
                let need = placed.group.shapes[shape].0;
                let class = *found.entry((need, apart, gang)).or_insert_with(|| {
                    classes.push(Class { need, count: 0, apart });
                    members.push(Vec::new());
                    classes.len() - 1
                });
                classes[class].count = classes[class].count.saturating_add(count);
                members[class].push((*id, shape, count));
            }
        }
        (classes, members)
    }

    /// Takes in a bought node with what it was bought for.
    pub fn add_bought(&mut self, node: NodeId, capacity: Amounts, bin: &Bin, members: &mut Members) {
        let slot = self.insert(node, capacity);
        for (class, count) in &bin.content {
            for (id, shape, taken) in take_members(&mut members[*class], *count) {
                // A purchase goes by sums. What does not lie on the devices waits for the next one.
                let Some(need) = self.groups.get(&id).map(|placed| placed.group.shapes[shape].0) else { continue };
                let taken = self.layable(slot, &need, taken);
                if taken > 0 {
                    self.put(slot, id, shape, taken);
                }
            }
        }
    }
}
