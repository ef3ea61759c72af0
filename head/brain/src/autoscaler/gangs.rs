//! Gangs are served whole or not at all: those that cannot be served hold nothing, and those of which too little was to be had
//! are tried less and less often.

use cloudtik_model::NodeId;

use super::offers::{LONGEST_PAUSE, SHORTAGE};
use crate::Brain;
use crate::clock::doubling;
use crate::packing::{Fleet, GroupId};

/// A gang is not tried before this, after so many tries in which too little was to be had.
#[derive(Debug, Default)]
pub(super) struct GangPause {
    pub(super) until: u64,
    pub(super) times: u32,
    /// Some of its machines were not to be had just now: it is tried from other offers, and waits when there are none.
    pub(super) has_failed: bool,
    /// It was passed over since, and is tried when the time has come.
    pub(super) is_parked: bool,
}

/// Gangs that did not find room whole hold none until a purchase is tried.
pub(super) fn park_halves(fleet: &mut Fleet) {
    let halves: Vec<GroupId> = fleet.waiting().map(|(id, _)| id).filter(|id| fleet.is_gang(*id)).collect();
    for id in halves {
        fleet.park(id);
    }
}

impl Brain {
    /// Gangs of which too little was to be had again and again are not tried each time: each try costs machines.
    pub(super) fn park_paused_gangs(&mut self) {
        let now = self.clock.now();
        // What was calm for long enough is no concern any more.
        self.autoscaler.gangs.retain(|_, pause| pause.has_failed || now < pause.until + LONGEST_PAUSE);
        for (id, pause) in &mut self.autoscaler.gangs {
            pause.is_parked = now < pause.until && self.autoscaler.fleet.is_waiting(*id);
        }
        for id in self.paused_gangs() {
            self.autoscaler.fleet.park(id);
        }
    }

    /// When the next gang that was passed over is tried again.
    pub(super) fn next_gang(&self) -> Option<u64> {
        self.autoscaler.gangs.values().filter(|pause| pause.is_parked).map(|pause| pause.until).min()
    }

    pub(super) fn paused_gangs(&self) -> Vec<GroupId> {
        self.autoscaler.gangs.iter().filter(|(_, pause)| pause.is_parked).map(|(id, _)| *id).collect()
    }

    /// A machine that a gang was to have is not to be had: if it is not from another offer either, what was bought for the
    /// others of it was for nothing.
    pub(crate) fn note_gangs_without(&mut self, id: &NodeId) {
        for group in self.autoscaler.fleet.groups_on(id).into_iter().filter(|group| self.autoscaler.fleet.is_gang(*group)) {
            self.autoscaler.gangs.entry(group).or_default().has_failed = true;
        }
    }

    /// A gang cannot be served. If some of it was asked for and not to be had, it waits longer each time.
    pub(super) fn note_unserved(&mut self, id: GroupId) {
        let now = self.clock.now();
        let Some(pause) = self.autoscaler.gangs.get_mut(&id) else { return };
        if std::mem::take(&mut pause.has_failed) {
            pause.times += 1;
            pause.until = now + doubling(SHORTAGE, pause.times, LONGEST_PAUSE);
            pause.is_parked = true;
        }
    }

    pub(super) fn park_paused_in(&self, fleet: &mut Fleet) {
        for id in self.paused_gangs() {
            fleet.park(id);
        }
    }
}
