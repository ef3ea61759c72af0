//! Which workers jobs keep from being idle.
//!
//! While a job of a runtime is queued or starting, the runtime's workers are about to work for it. Once it runs, they work unless the
//! runtime itself says how much it does: then that decides. A worker's idleness is thus counted from the start of the newest job of
//! its runtimes at the earliest, in which a driver has yet to ask for its executors.

use std::collections::BTreeMap;

use cloudtik_model::RuntimeName;
use cloudtik_model::job::JobState;
use cloudtik_model::report::{ServiceReport, ServiceState};

use super::Jobs;
use crate::{JobRecord, Node};

/// The jobs that have not ended, by runtime.
#[derive(Debug, Default)]
pub(super) struct Employment {
    runtimes: BTreeMap<RuntimeName, Counts>,
    changed: bool,
}

#[derive(Debug, Default)]
struct Counts {
    /// Queued or starting.
    awaited: u32,
    running: u32,
}

impl Employment {
    pub(super) fn add(&mut self, job: &JobRecord) {
        self.count(job, |counted| *counted += 1);
    }

    pub(super) fn remove(&mut self, job: &JobRecord) {
        self.count(job, |counted| *counted = counted.saturating_sub(1));
    }

    /// Whether other workers may be kept busy than before.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn count(&mut self, job: &JobRecord, change: impl Fn(&mut u32)) {
        let Some(runtime) = job.spec.work.runtime().filter(|_| !job.state.has_ended()) else { return };
        let counts = self.runtimes.entry(runtime.clone()).or_default();
        change(if matches!(job.state, JobState::Running { .. }) { &mut counts.running } else { &mut counts.awaited });
        if counts.awaited == 0 && counts.running == 0 {
            self.runtimes.remove(runtime);
        }
        self.changed = true;
    }
}

impl Jobs {
    /// A runtime on a node whose jobs keep the node from being idle.
    pub(crate) fn runtime_on<'n>(&self, node: &'n Node) -> Option<&'n RuntimeName> {
        if self.employment.runtimes.is_empty() {
            return None;
        }
        let runs = || node.services.values().filter(|service| service.state != ServiceState::Stopped);
        let tells = |runtime: &RuntimeName| {
            let mut ready = runs().filter(|of| of.state == ServiceState::Ready && of.key.runtime == *runtime);
            ready.any(|service| service.work().is_some())
        };
        let is_kept = |service: &&ServiceReport| match self.employment.runtimes.get(&service.key.runtime) {
            Some(counts) => counts.awaited > 0 || !tells(&service.key.runtime),
            None => false,
        };
        runs().find(is_kept).map(|service| &service.key.runtime)
    }
}
