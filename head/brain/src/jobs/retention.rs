//! How long jobs that have ended are kept: so many, and none of them longer than so long.
//!
//! A clock that is set must not cost anybody a result. A job is too old only when two clocks say so: the wall clock, which knows what
//! was before this head, and the head's monotonic clock, which nobody sets. The latter measures from when this head first saw the job
//! ended; of the time before, it takes the wall clock's word, but never for all of the time that the job is kept: a head that starts
//! with a clock that is wrong keeps what there is for a while, in which clocks are put right.

use cloudtik_model::JobId;
use cloudtik_model::job::JobState;

use crate::Brain;

/// A head keeps what an earlier one kept for so long at least, in milliseconds, if jobs are kept that long at all.
const GRACE: u64 = 3_600_000;
/// A job that one of the clocks calls too old is looked at again after this, in milliseconds.
const LOOK_AGAIN: u64 = 60_000;

impl Brain {
    /// Forgets jobs that have ended, as far as there are more than are kept, or they are too old.
    pub(super) fn forget_jobs(&mut self) {
        let Some(rules) = self.cluster.spec.as_ref().map(|spec| spec.jobs.clone()) else { return };
        let surplus = self.jobs.ended.len().saturating_sub(rules.keep as usize);
        let surplus: Vec<JobId> = self.jobs.ended.iter().take(surplus).copied().collect();
        for id in surplus {
            self.forget_job(id);
        }
        let (mono, wall) = (self.clock.monotonic(), self.clock.wall());
        let age = |at: u64| wall.0.saturating_sub(at);
        let mut old = Vec::new();
        for id in &self.jobs.ended {
            let Some(JobState::Ended { at, .. }) = self.jobs.records.get(id).map(|job| &job.state) else { continue };
            let left = rules.keep_for_ms.saturating_sub(age(at.0)).max(rules.keep_for_ms.min(GRACE));
            let expiry = self.jobs.expiries.entry(*id).or_insert(mono.saturating_add(left));
            // The description may say another time by now.
            *expiry = (*expiry).min(mono.saturating_add(rules.keep_for_ms));
            match *expiry <= mono {
                true if age(at.0) >= rules.keep_for_ms => old.push(*id),
                true => *expiry = mono.saturating_add(LOOK_AGAIN),
                false => {}
            }
        }
        for id in old {
            self.forget_job(id);
        }
    }
}
