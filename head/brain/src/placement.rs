//! What each node is to run, in order of needs and readiness, and which members of a quorum can be done without.
//!
//! Owns the roll-out, what is ready, who is a member of what, and each node's [`GoalState`].
//!
//! | module | decides |
//! |---|---|
//! | `rollout` | what each node is to run, in order of needs and readiness; `rollout/failure`: when a revision has failed |
//! | `quorum` | which members of a quorum can be done without |
//! | `member_index` | nothing: who counts for a member group, and who should be heard |
//! | `readiness` | nothing: which services are ready wherever they are to run |
//! | `goal_state` | nothing: how far a node is with its goal |

mod goal_state;
mod member_index;
mod quorum;
mod readiness;
mod rollout;

use std::collections::BTreeSet;

use cloudtik_model::NodeId;

use crate::Rollout;
pub(crate) use goal_state::GoalState;
use member_index::MemberIndex;
use readiness::Readiness;

#[derive(Debug, Default)]
pub(crate) struct Placement {
    readiness: Readiness,
    members: MemberIndex,
    /// Readiness changed, and not all nodes that wait for it were updated.
    readiness_changed: bool,
    /// A service became ready or stopped being so: others may wait for it.
    services_changed: bool,
    /// A node changed its state or settled: the next may be let take a new revision.
    nodes_changed: bool,
    /// Nodes on which something does not run that is to.
    unconverged: BTreeSet<NodeId>,
    /// Nodes that are to take the newest revision.
    outdated: BTreeSet<NodeId>,
    next_version: u64,
    /// The roll-out of the newest revision, until every node has it and runs it well.
    rollout: Option<Rollout>,
    /// When the last description came, in this head's life.
    specified_at: u64,
}

impl Placement {
    /// With the roll-out that is stored.
    pub(crate) fn restore(rollout: Option<Rollout>) -> Self {
        Self { rollout, ..Self::default() }
    }

    /// The roll-out that is under way, held or not.
    pub(crate) fn current_rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref()
    }

    pub(crate) fn note_services_changed(&mut self) {
        self.services_changed = true;
    }

    pub(crate) fn note_nodes_changed(&mut self) {
        self.nodes_changed = true;
    }

    pub(crate) fn take_services_changed(&mut self) -> bool {
        std::mem::take(&mut self.services_changed)
    }

    /// A description was taken: all goals are looked at anew.
    pub(crate) fn note_specified(&mut self, now: u64) {
        self.specified_at = now;
        self.services_changed = false;
    }

    pub(crate) fn specified_at(&self) -> u64 {
        self.specified_at
    }

    /// How many workers there should be heard of, and how many of them are not.
    pub(crate) fn silence(&self) -> (usize, usize) {
        self.members.silence()
    }
}
