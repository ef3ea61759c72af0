//! What the cluster is to be as a whole: its description, whether it is taken down, whether somebody holds the head back.

use cloudtik_model::spec::Spec;

use std::ops::Deref;

use crate::{Brain, ClusterRecord, Hold};

#[derive(Debug, Default)]
pub(crate) struct Described {
    pub(crate) spec: Option<Spec>,
    pub(crate) stopping: bool,
    /// Somebody holds the brain back.
    pub(crate) held: Option<Hold>,
}

#[derive(Debug, Default)]
pub(crate) struct Cluster(Described);

/// Every component may read it.
impl Deref for Cluster {
    type Target = Described;
    fn deref(&self) -> &Described {
        &self.0
    }
}

impl Cluster {
    pub(crate) fn new(spec: Option<Spec>, stopping: bool, held: Option<Hold>) -> Self {
        Self(Described { spec, stopping, held })
    }

    /// The description is to be replaced: see [`Cluster::put_spec`].
    pub(crate) fn take_spec(&mut self) -> Option<Spec> {
        self.0.spec.take()
    }

    /// A cluster that is described again is not taken down any more.
    pub(crate) fn put_spec(&mut self, spec: Spec) {
        (self.0.spec, self.0.stopping) = (Some(spec), false);
    }

    pub(crate) fn stop(&mut self) {
        self.0.stopping = true;
    }

    pub(crate) fn hold(&mut self, hold: Hold) {
        self.0.held = Some(hold);
    }

    /// Whether it was held.
    pub(crate) fn resume(&mut self) -> bool {
        self.0.held.take().is_some()
    }
}

impl Brain {
    /// What is known of the cluster as a whole, as it is stored.
    pub fn cluster(&self) -> ClusterRecord {
        let Described { spec, stopping, held } = &*self.cluster;
        let rollout = self.placement.current_rollout().cloned();
        let (spec, held, last_job) = (spec.clone(), held.clone(), self.jobs.last());
        let record = ClusterRecord { spec, stopping: *stopping, held, rollout, last_job, ..ClusterRecord::default() };
        self.autoscaler.fill_in(record)
    }

    /// Whether the cluster is taken down.
    pub fn is_stopping(&self) -> bool {
        self.cluster.stopping
    }

    pub fn spec(&self) -> Option<&Spec> {
        self.cluster.spec.as_ref()
    }
}
