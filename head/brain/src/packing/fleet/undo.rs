//! Back to where things lay before some of them were planned otherwise.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::NodeId;

use super::{Fleet, GroupId};

/// What lay where before some of it was planned otherwise.
#[derive(Debug, Default)]
pub struct Before {
    groups: BTreeSet<GroupId>,
    /// What lay on the nodes on which these had something: group, place in its list of shapes, how many.
    pub nodes: BTreeMap<NodeId, Vec<(GroupId, usize, u32)>>,
}

impl Fleet {
    /// Where some groups lie.
    pub fn before(&self, groups: &BTreeSet<GroupId>) -> Before {
        let mut before = Before::default();
        self.note_before(&mut before, groups.iter().copied());
        before
    }

    /// Notes where further groups lie, of which nothing was planned otherwise yet.
    pub fn note_before(&self, before: &mut Before, groups: impl Iterator<Item = GroupId>) {
        for id in groups {
            if !before.groups.insert(id) {
                continue;
            }
            for node in self.nodes_of(id) {
                before.nodes.entry(node.clone()).or_insert_with(|| self.holds(node).to_vec());
            }
        }
    }

    /// Takes groups off every node.
    pub fn lift(&mut self, groups: &BTreeSet<GroupId>) {
        for id in groups.iter().filter(|id| !self.parked.contains(id)).copied().collect::<Vec<_>>() {
            self.release(id);
        }
    }

    /// Plans what was planned otherwise as it was.
    pub fn put_as_before(&mut self, before: &Before) {
        self.lift(&before.groups);
        for (node, holds) in &before.nodes {
            for (id, shape, count) in holds.iter().filter(|(id, ..)| before.groups.contains(id)) {
                self.put_back(node, *id, *shape, *count);
            }
        }
    }
}
