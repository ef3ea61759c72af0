//! What the head does for jobs that the brain decided about: it keeps their files, plans what is to run from the latest description
//! when an attempt starts, and tells the head's node. Decides nothing.

mod files;

use std::iter::once;
use std::sync::{Arc, Mutex};

use cloudtik_brain::{Input, JobsOrder, NodeView};
use cloudtik_model::alarm::Misfit;
use cloudtik_model::goal::Stop;
use cloudtik_model::job::{Job, JobGoal, JobGoals, JobOptionValue, JobSpec, JobStart, Work, layout};
use cloudtik_model::spec::JobRules;
use cloudtik_model::{ClusterName, Epoch, JobId, JobName, NodeTypeName, Resources, ServiceKey};
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::wire::JobsDocument;
use cloudtik_protocol::wire::head_frame::Topic;
use cloudtik_runtimes::planner::{self, JobRequest};
use cloudtik_runtimes::{NodeContext, View};
use tokio_util::task::TaskTracker;

pub use self::files::{HeldFile, JobFiles};
use crate::artifacts::ArtifactStore;
use crate::board::StatusBoard;
use crate::hub::Hub;
use crate::revisions::Revisions;
use crate::runner::{BrainHandle, Stopped};
use crate::status;

/// What planning and sending need.
pub struct JobSources {
    pub cluster: ClusterName,
    pub epoch: Epoch,
    pub brain: BrainHandle,
    pub board: StatusBoard,
    pub hub: Hub,
    pub revisions: Revisions,
    pub artifacts: ArtifactStore,
    pub view: View,
    pub files: JobFiles,
    pub tasks: TaskTracker,
}

/// A cheap handle.
#[derive(Clone)]
pub struct Jobs {
    sources: Arc<JobSources>,
    wanted: Arc<Mutex<Wanted>>,
    listed: Arc<tokio::sync::Mutex<Listed>>,
}

/// All jobs as they were at some change of the brain, for all who look.
#[derive(Default)]
struct Listed {
    changes: Option<u64>,
    jobs: Arc<Vec<Job>>,
}

/// The last order of the brain that was not taken up yet.
#[derive(Default)]
struct Wanted {
    next: Option<(JobsOrder, Box<NodeView>)>,
    is_sending: bool,
}

/// Which attempt of which job something is planned for.
#[derive(Debug, Clone, Copy)]
pub struct AttemptRef<'a> {
    pub id: JobId,
    pub attempt: u32,
    pub name: &'a str,
}

/// What a job is to run, and what that needs.
#[derive(Debug)]
pub struct PlannedJob {
    pub start: JobStart,
    pub needs: Option<ServiceKey>,
    /// The work as it is stored: its runtime is known.
    pub work: Work,
}

/// Why a job cannot be run as the cluster is described.
#[derive(Debug, thiserror::Error)]
pub enum Unplannable {
    #[error("the cluster runs no runtime yet")]
    NoDescription,
    #[error("the job names no file")]
    NoFile,
    #[error(transparent)]
    Runtime(#[from] planner::Error),
    #[error("{0}")]
    Misfit(Box<Misfit>),
}

impl Jobs {
    pub fn new(sources: JobSources) -> Self {
        Self { sources: Arc::new(sources), wanted: Arc::default(), listed: Arc::default() }
    }

    /// All jobs that are kept, by number. Those who ask while nothing changes share one look at the brain.
    pub async fn list(&self) -> Result<Arc<Vec<Job>>, Stopped> {
        let mut listed = self.listed.lock().await;
        let changes = *self.sources.brain.changes().borrow();
        if listed.changes != Some(changes) {
            let jobs = self.sources.brain.query(|brain| brain.jobs()).await?;
            *listed = Listed { changes: Some(changes), jobs: Arc::new(jobs) };
        }
        Ok(listed.jobs.clone())
    }

    pub fn files(&self) -> &JobFiles {
        &self.sources.files
    }

    /// Sets what the head's node is to be told, and begins to plan it. Of several orders the last counts.
    pub fn set(&self, order: JobsOrder, node: Box<NodeView>) {
        let mut wanted = self.wanted.lock().expect("nothing panics while holding the lock");
        wanted.next = Some((order, node));
        if !std::mem::replace(&mut wanted.is_sending, true) {
            let own = self.clone();
            self.sources.tasks.spawn(async move {
                while let Some((order, node)) = own.next() {
                    own.send(order, *node).await;
                }
            });
        }
    }

    fn next(&self) -> Option<(JobsOrder, Box<NodeView>)> {
        let mut wanted = self.wanted.lock().expect("nothing panics while holding the lock");
        let next = wanted.next.take();
        wanted.is_sending = next.is_some();
        next
    }

    async fn send(&self, order: JobsOrder, node: NodeView) {
        let workers = match order.jobs.iter().any(|job| job.start.is_some()) {
            true => self.workers().await,
            false => Vec::new(),
        };
        let (session, own) = (order.session, self.clone());
        let planning = tokio::task::spawn_blocking(move || own.goals(&order, &node, &workers));
        let (goals, refused) = match planning.await {
            Ok(planned) => planned,
            Err(error) => return tracing::error!("planning jobs: {error}"),
        };
        // Before the node says that such an attempt never began: then it is known why.
        for (id, attempt, why) in refused {
            self.sources.brain.send(Input::JobNotPlanned { id, attempt, error: chain(&why) }).await;
        }
        let document = serde_json::to_vec(&goals).expect("goals become JSON");
        self.sources.hub.send(session, Topic::Jobs(JobsDocument { version: goals.version, document: document.into() }));
        self.collect_files().await;
    }

    /// Removes the files of jobs that have ended.
    pub async fn collect_files(&self) {
        let files = self.sources.files.clone();
        let collection = files.begin_collection();
        let Ok(needed) = self.sources.brain.query(|brain| brain.job_files()).await else { return };
        let collected = tokio::task::spawn_blocking(move || collection.run(&needed)).await;
        if let Err(error) = collected.map_err(std::io::Error::other).flatten() {
            tracing::warn!("cannot remove the files of jobs that have ended: {error}");
        }
    }

    /// The workers that there are, by type.
    pub async fn workers(&self) -> Vec<(NodeTypeName, Resources)> {
        // An error means that the head stops.
        self.sources.board.nodes(status::worker).await.unwrap_or_default()
    }

    fn goals(
        &self,
        order: &JobsOrder,
        node: &NodeView,
        workers: &[(NodeTypeName, Resources)],
    ) -> (JobGoals, Vec<(JobId, u32, Unplannable)>) {
        let (record, context) = (&node.record, status::context(node));
        let (mut jobs, mut refused) = (Vec::new(), Vec::new());
        for job in &order.jobs {
            let attempt_ref = AttemptRef { id: job.id, attempt: job.attempt, name: job.name.as_str() };
            let start = match (&job.start, &context) {
                (Some(spec), Some(context)) => match self.plan(attempt_ref, spec, context, workers) {
                    Ok(planned) => Some(planned.start),
                    Err(why) => {
                        // It may have begun under an earlier description. Left out of the document, it would be ended and removed.
                        refused.push((job.id, job.attempt, why));
                        None
                    }
                },
                _ => None,
            };
            jobs.push(JobGoal { id: job.id, attempt: job.attempt, start, cancel: job.cancel });
        }
        let goals = JobGoals {
            node: record.id.clone(),
            generation: record.generation,
            epoch: self.sources.epoch,
            version: order.version,
            jobs,
            kept: order.kept.clone(),
        };
        (goals, refused)
    }

    /// What an attempt of a job is to run, by the latest description.
    pub fn plan(
        &self,
        attempt_ref: AttemptRef<'_>,
        spec: &JobSpec,
        head: &NodeContext,
        workers: &[(NodeTypeName, Resources)],
    ) -> Result<PlannedJob, Unplannable> {
        let latest = self.sources.revisions.latest();
        let rules = latest.as_ref().map_or_else(JobRules::default, |(_, _, planner)| planner.cluster().jobs.clone());
        let (command, mut environment, needs, work) = match &spec.work {
            Work::Command { program } => {
                let command = once(program).chain(&spec.arguments).cloned().collect();
                (command, spec.environment.clone(), None, spec.work.clone())
            }
            Work::Runtime { runtime, options } => {
                let (_, _, planner) = latest.ok_or(Unplannable::NoDescription)?;
                let work = layout::work(attempt_ref.id, attempt_ref.attempt);
                let place = |name: &String| format!("{}/{work}/{name}", head.home);
                let value = |value: &JobOptionValue| match value {
                    JobOptionValue::Text(text) => text.clone(),
                    JobOptionValue::File(name) => place(name),
                };
                let request = JobRequest {
                    runtime: runtime.clone(),
                    file: spec.files.first().map(|file| place(&file.name)).ok_or(Unplannable::NoFile)?,
                    arguments: spec.arguments.clone(),
                    options: options.iter().map(|option| (option.name.clone(), value(&option.value))).collect(),
                };
                let available = |wanted: &_| self.sources.artifacts.availability(wanted);
                let job = planner.job(&request, &self.sources.view, head, workers, &available)?;
                if let Some(misfit) = planner.misfit(&job.runtime, &self.sources.view, head, workers)? {
                    return Err(Unplannable::Misfit(Box::new(misfit)));
                }
                let mut environment = job.environment;
                environment.extend(spec.environment.clone());
                let work = Work::Runtime { runtime: Some(job.runtime), options: options.clone() };
                (job.command, environment, Some(job.needs), work)
            }
        };
        environment.entry("CLOUDTIK_CLUSTER".to_owned()).or_insert_with(|| self.sources.cluster.to_string());
        environment.entry("CLOUDTIK_JOB_NAME".to_owned()).or_insert_with(|| attempt_ref.name.to_owned());
        let start = JobStart {
            command,
            environment,
            files: spec.files.clone(),
            limits: spec.limits.clone(),
            timeout_ms: spec.timeout_ms,
            stop: Stop::default(),
            log_max_bytes: rules.log_limit.0,
        };
        Ok(PlannedJob { start, needs, work })
    }
}

/// The name of a job that has none yet, for planning.
pub fn name_of(spec: &JobSpec) -> &str {
    spec.name.as_ref().map_or("job", JobName::as_str)
}
