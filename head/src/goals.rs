//! The goals of nodes: planned from the revision that the brain orders, and sent over the node's connection.
//!
//! Planning runs beside the driver, a few nodes at once and each node one at a time; of several orders for a node the last
//! counts. A goal that lacks software is planned again when some arrives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cloudtik_brain::{GoalOrder, Input, NodeView};
use cloudtik_model::{Epoch, NodeId, goal};
use cloudtik_protocol::wire::GoalDocument;
use cloudtik_protocol::wire::head_frame::Topic;
use cloudtik_runtimes::View;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::ArtifactStore;
use crate::hub::Hub;
use crate::revisions::Revisions;
use crate::runner::BrainHandle;
use crate::status;

/// Goals that are planned at once.
const PARALLEL_PLANS: usize = 2;

/// What planning needs.
pub struct GoalSources {
    pub epoch: Epoch,
    pub brain: BrainHandle,
    pub hub: Hub,
    pub revisions: Revisions,
    pub artifacts: ArtifactStore,
    pub view: View,
    pub tasks: TaskTracker,
}

/// A cheap handle.
#[derive(Clone)]
pub struct Goals {
    sources: Arc<GoalSources>,
    wanted: Arc<Mutex<BTreeMap<NodeId, Wanted>>>,
    permits: Arc<Semaphore>,
}

/// The last goal that the brain ordered for a node.
struct Wanted {
    order: GoalOrder,
    node: Arc<NodeView>,
    /// What was sent over the present connection.
    sent: Vec<u8>,
    lacks_software: bool,
    is_planning: bool,
    /// It is to be planned, or planned again.
    is_stale: bool,
    /// Its connection has ended: it is forgotten unless the brain orders anew for the next one.
    is_over: bool,
}

/// Software that the head failed to fetch.
struct SoftwareFailure {
    software: String,
    error: String,
    tries: u32,
}

/// What planning came to.
enum Planned {
    Goal {
        text: Vec<u8>,
        lacks_software: bool,
        /// What cannot be fetched.
        failed: Option<SoftwareFailure>,
    },
    Refused(String),
    /// The node has not said yet what it is.
    Unknown,
}

impl Goals {
    pub fn new(sources: GoalSources) -> Self {
        Self { sources: Arc::new(sources), wanted: Arc::default(), permits: Arc::new(Semaphore::new(PARALLEL_PLANS)) }
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Wanted>> {
        self.wanted.lock().expect("nothing panics while holding the lock")
    }

    /// Sets what a node is to be sent, and begins to plan it.
    pub fn set(&self, id: NodeId, order: GoalOrder, node: Box<NodeView>) {
        let mut wanted = self.wanted();
        let is_planning = wanted.get(&id).is_some_and(|known| known.is_planning);
        let new = Wanted { order, node: node.into(), sent: Vec::new(), lacks_software: false, is_planning, is_stale: true, is_over: false };
        wanted.insert(id.clone(), new);
        drop(wanted);
        self.plan(id);
    }

    /// Plans again what lacks software, whenever some arrives or cannot be had, until `stop`.
    pub async fn follow_artifacts(self, stop: CancellationToken) {
        let mut arrivals = self.sources.artifacts.arrivals();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = arrivals.changed() => if changed.is_err() { return },
            }
            for what in self.sources.artifacts.failures() {
                self.sources.brain.send(Input::Complained { what }).await;
            }
            let mut lacking = Vec::new();
            for (id, wanted) in self.wanted().iter_mut().filter(|(_, wanted)| wanted.lacks_software || wanted.is_planning) {
                wanted.is_stale = true;
                lacking.push(id.clone());
            }
            for id in lacking {
                self.plan(id);
            }
        }
    }

    /// Plans a node's goal until it is no longer stale, unless that is under way.
    fn plan(&self, id: NodeId) {
        match self.wanted().get_mut(&id) {
            Some(wanted) if !wanted.is_planning => wanted.is_planning = true,
            _ => return,
        }
        let own = self.clone();
        self.sources.tasks.spawn(async move {
            let _permit = own.permits.acquire().await;
            while let Some((order, node)) = own.next_order(&id) {
                let sources = own.sources.clone();
                let (of, view) = (order.clone(), node.clone());
                let planned = tokio::task::spawn_blocking(move || sources.plan(&of, &view)).await;
                let planned = planned.unwrap_or_else(|error| Planned::Refused(format!("it cannot be planned: {error}")));
                own.take_in(&id, &order, planned).await;
            }
        });
    }

    /// What is to be planned now; nothing if the last plan is fresh.
    fn next_order(&self, id: &NodeId) -> Option<(GoalOrder, Arc<NodeView>)> {
        let mut all = self.wanted();
        let wanted = all.get_mut(id)?;
        if wanted.is_over {
            all.remove(id);
            return None;
        }
        if std::mem::take(&mut wanted.is_stale) {
            return Some((wanted.order.clone(), wanted.node.clone()));
        }
        wanted.is_planning = false;
        None
    }

    async fn take_in(&self, id: &NodeId, order: &GoalOrder, planned: Planned) {
        let (refusal, failed) = {
            let mut all = self.wanted();
            let Some(wanted) = all.get_mut(id).filter(|wanted| wanted.order == *order) else { return };
            match planned {
                Planned::Unknown => (None, None),
                Planned::Refused(why) => (Some(why), None),
                Planned::Goal { text, lacks_software, failed } => {
                    wanted.lacks_software = lacks_software;
                    if text != wanted.sent {
                        wanted.sent.clone_from(&text);
                        let goal = Topic::Goal(GoalDocument { version: order.version, document: text.into() });
                        wanted.is_over = !self.sources.hub.send(order.session, goal);
                    }
                    (None, failed)
                }
            }
        };
        if let Some(SoftwareFailure { software, error, tries }) = failed {
            let (node, version) = (id.clone(), order.version);
            self.sources.brain.send(Input::SoftwareFailed { node, version, software, error, tries }).await;
        }
        if refusal.is_some() {
            // The brain reports it and tries again later.
            let (session, version) = (order.session, order.version);
            self.sources.brain.send(Input::GoalAcknowledged { session, node: id.clone(), version, refusal }).await;
        }
    }
}

impl GoalSources {
    fn plan(&self, order: &GoalOrder, node: &NodeView) -> Planned {
        let (record, Some(context)) = (&node.record, status::context(node)) else { return Planned::Unknown };
        let mut document = goal::Goal {
            node: record.id.clone(),
            generation: record.generation,
            epoch: self.epoch,
            version: order.version,
            artifacts: Vec::new(),
            services: Vec::new(),
        };
        let (mut lacks_software, mut failed) = (false, None);
        if !order.drain {
            let Some(planner) = self.revisions.get(order.revision) else {
                return Planned::Refused(format!("there is no revision {}", order.revision));
            };
            match planner.plan(&self.view, &context, &order.start, &|wanted| self.artifacts.availability(wanted)) {
                Ok(plan) => {
                    for wanted in &plan.missing {
                        self.artifacts.fetch(wanted);
                        let failure = |(tries, error)| SoftwareFailure { software: wanted.name.clone(), error, tries };
                        failed = failed.or_else(|| self.artifacts.failed(wanted).map(failure));
                    }
                    lacks_software = !plan.missing.is_empty();
                    document.artifacts = plan.artifacts;
                    document.services = plan.services;
                }
                Err(error) => return Planned::Refused(format!("it cannot be planned: {error}")),
            }
        }
        Planned::Goal { text: serde_json::to_vec(&document).expect("goals become JSON"), lacks_software, failed }
    }
}
