//! How far one node is with its goal. Nothing of it is stored: agents say it again.

use cloudtik_model::report::{ServiceReport, ServiceState};

use crate::GoalOrder;

/// Placement's part of a node's entry.
#[derive(Debug)]
pub(crate) struct GoalState {
    pub(super) sent: Option<GoalOrder>,
    pub(super) acknowledged: u64,
    /// How often a service ended under the goal of the newest revision since the node took it.
    pub(super) failed_starts: u32,
    /// When the node took its revision, or that was tried again, in this head's life.
    pub(super) taken_at: u64,
    /// When something of it was last seen not to be ready, in this head's life.
    pub(super) unready_at: u64,
    /// When it was last seen to wait for software, in this head's life.
    pub(super) fetching_until: u64,
    /// Not before this is a goal sent.
    pub(super) not_before: u64,
}

impl GoalState {
    pub(crate) fn new(now: u64) -> Self {
        Self { sent: None, acknowledged: 0, failed_starts: 0, taken_at: now, unready_at: 0, fetching_until: 0, not_before: 0 }
    }

    /// The connection is another one, or gone: what was sent over the last does not count.
    pub(crate) fn clear_sent(&mut self) {
        self.sent = None;
    }

    /// Whether the node was told that nothing is to run any more, and has heard it.
    pub(crate) fn has_acknowledged_drain(&self) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.drain && self.acknowledged >= sent.version)
    }

    /// A service reported; `has_failed` if it failed since the report before.
    pub(crate) fn note_report(&mut self, report: &ServiceReport, has_failed: bool, now: u64) {
        if report.key.runtime.is_own() {
            return;
        }
        if report.state != ServiceState::Ready {
            self.unready_at = now;
        }
        let is_current = self.sent.as_ref().is_some_and(|sent| report.goal_version >= sent.version);
        if is_current && has_failed {
            self.failed_starts = self.failed_starts.saturating_add(1);
        }
    }

    /// The node takes a revision, or tries the one that it has again.
    pub(super) fn begin_trial(&mut self, now: u64) {
        (self.failed_starts, self.taken_at) = (0, now);
    }
}
