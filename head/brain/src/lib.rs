//! The head's decisions: `handle(now, input) -> step`.
//!
//! Owns every decision about the cluster: who belongs to it, which nodes to make, mend and end, what each node is to
//! run and when. Pure and deterministic: time comes in, actions and records go out. Must never: read a clock, use
//! randomness, files, network or threads. The body (`head/src`) commits a step's records and only then executes its
//! actions; their results come back as inputs. After a restart the brain is rebuilt from the stored records.
//!
//! It is made of components, each with state that only its own room changes, and [`Brain`] routes inputs to them:
//!
//! | component | owns |
//! |---|---|
//! | `clock` | what counts as time: the head's own lag is taken out of every deadline |
//! | `cluster` | the description, whether the cluster is taken down, whether it is on hold |
//! | `nodes` | the node table: life, health and recovery of every node |
//! | `reconcile` | what the provider's list means: adoption, orphans, lost instances |
//! | `placement` | what each node is to run, roll-outs, quorums |
//! | `jobs` | which jobs run, and how each ended |
//! | `autoscaler` | how many workers there are to be, and which to make or end |
//! | `effects` | the sink: records, events, actions and answers of the step |
//!
//! Beside them: `packing` says which demands fit on which nodes, and what is the cheapest to buy for the rest; `steering` what
//! people may hold, resume, set aside, kill and drain; `access` who may use the cluster; `explain` what the cluster is, for
//! people and for the planner; `messages` what comes in and goes out; `record` what is stored; `recording` how a life is written down.

pub mod access;
mod autoscaler;
mod clock;
mod cluster;
mod effects;
mod explain;
mod jobs;
mod messages;
mod nodes;
pub mod packing;
mod placement;
mod reconcile;
mod record;
pub mod recording;
mod steering;

use cloudtik_model::event::What;
use cloudtik_model::{Epoch, Moment, NodeId};
use serde::{Deserialize, Serialize};

use autoscaler::Autoscaler;
use clock::Clock;
use cluster::Cluster;
use effects::Effects;
pub use explain::{NodeView, Overview, PagedNode, Snapshot};
use jobs::Jobs;
pub use messages::*;
use nodes::{Node, Nodes};
use placement::Placement;
use reconcile::Reconcile;
pub use record::*;

/// Timings and what the provider can do. All times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The brain asks to be called at least this often, so that a pause of the head shows.
    #[serde(default = "Config::default_pulse")]
    pub pulse: u64,
    /// Between two heartbeats of an agent.
    pub heartbeat: u64,
    /// A node that is silent this long is suspect.
    pub suspect_after: u64,
    /// A suspect that sends no heartbeat and answers no dial-back for this long is down.
    pub down_after: u64,
    /// A suspect whose agent answers the dial-back but opens no link is down after this.
    pub deaf_after: u64,
    /// From the verdict to the replacement, for the gentler rungs to work.
    pub replace_after: u64,
    /// From the launch to the join.
    pub join_deadline: u64,
    /// A worker on which a service fails again and again must have been ready by then.
    #[serde(default = "Config::default_prepare_deadline")]
    pub prepare_deadline: u64,
    /// Until a node's services must have stopped when it is drained.
    pub drain_deadline: u64,
    /// Between two looks at the provider's list.
    pub list_every: u64,
    /// How long the provider may hide an instance that exists. 0: it never does, and a call ends with the head that made it.
    pub visibility: u64,
    /// How long after a call that had no answer its effect may come.
    pub call_limit: u64,
    /// The provider can start a node's agent again.
    pub can_restart_agent: bool,
    /// How long after the provider was asked to reboot a machine its agent is to be back, if the provider can do that.
    #[serde(default)]
    pub reboot_time: Option<u64>,
    /// The machines are the user's own: never deleted for being unreachable.
    pub machines_are_owned: bool,
}

impl Config {
    fn default_prepare_deadline() -> u64 {
        600_000
    }

    fn default_pulse() -> u64 {
        500
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pulse: Self::default_pulse(),
            heartbeat: 1_000,
            // Two heartbeats may be lost, and the third be half a second late.
            suspect_after: 2_500,
            // Leaves time for a dial-back of a second within the promise of a verdict in 5 s.
            down_after: 4_000,
            deaf_after: 15_000,
            replace_after: 10_000,
            join_deadline: 300_000,
            prepare_deadline: Self::default_prepare_deadline(),
            drain_deadline: 60_000,
            list_every: 30_000,
            visibility: 60_000,
            call_limit: 60_000,
            can_restart_agent: false,
            reboot_time: None,
            machines_are_owned: false,
        }
    }
}

/// The decisions of one head.
#[derive(Debug)]
pub struct Brain {
    config: Config,
    epoch: Epoch,
    clock: Clock,
    cluster: Cluster,
    nodes: Nodes,
    reconcile: Reconcile,
    placement: Placement,
    jobs: Jobs,
    autoscaler: Autoscaler,
    effects: Effects,
}

impl Brain {
    /// A brain from what the store holds.
    pub fn restore(config: Config, epoch: Epoch, memory: Memory, now: Moment) -> Self {
        let Memory { cluster, requests, outlook, nodes, plan, jobs } = memory;
        let clock = Clock::new(now, config.pulse);
        let launched = nodes.iter().map(|node| node.number).max().unwrap_or(0);
        let mut brain = Self {
            nodes: Nodes::restore(nodes, clock.now()),
            reconcile: Reconcile::default(),
            placement: Placement::restore(cluster.rollout.clone()),
            jobs: Jobs::restore(jobs, cluster.last_job, clock.now(), clock.wall()),
            autoscaler: Autoscaler::restore(&cluster, requests, outlook, plan, launched),
            cluster: Cluster::new(cluster.spec, cluster.stopping, cluster.held),
            effects: Effects::default(),
            config,
            epoch,
            clock,
        };
        brain.count_anew();
        brain.find_outdated();
        brain.refill_fleet();
        brain
    }

    /// Decides. The caller stores the step's records before it executes any of its actions.
    pub fn handle(&mut self, now: Moment, input: Input) -> Step {
        let lag = self.clock.advance(now);
        if lag > 0 {
            self.notice_lag(lag);
        }
        let touched = self.take(input);
        if let Some(node) = touched {
            self.look_at(&node);
            if node.is_head() {
                // Its link and its services say which jobs may run.
                self.jobs.note_changed();
            }
        }
        if self.autoscaler.take_limits_changed() {
            // What is due now may not be allowed any more.
            self.decide();
        }
        self.run_timers();
        self.go_on_rolling();
        self.advance_jobs();
        self.decide();
        self.answer_granted();
        let due = [self.listing_due(), self.scaling_due(), self.jobs_due()].into_iter().flatten().min();
        self.clock.plan_wake(self.nodes.next_timer(), due);
        self.look_at_list();
        self.store_plan();
        self.forget_refusals();
        self.effects.take()
    }

    /// When the brain wants to be called with [`Input::Tick`] at the latest, on the monotonic clock in milliseconds.
    pub fn next_wake(&self) -> u64 {
        self.clock.next_wake()
    }

    /// Takes an input in, and names the node that it concerns.
    fn take(&mut self, input: Input) -> Option<NodeId> {
        match input {
            Input::Started => {
                self.reconcile.request_list();
                self.event(None, What::HeadStarted { epoch: self.epoch.0 });
                for node in self.nodes.ids() {
                    self.look_at(&node);
                }
                self.reconsider_scale();
                None
            }
            Input::Tick => None,
            Input::Specified { spec, actor } => {
                self.take_spec(spec, &actor);
                self.jobs.note_changed();
                None
            }
            Input::Scale { request, asked } => {
                self.take_scale(request, asked);
                None
            }
            Input::Revoke { request, name, now } => {
                self.take_revoke(request, name, now);
                None
            }
            Input::Hold { request, reason } => {
                self.take_hold(request, reason);
                None
            }
            Input::Resume { request } => {
                self.take_resume(request);
                None
            }
            Input::ResumeRollout { request } => {
                self.take_rollout_resume(request);
                None
            }
            Input::Quarantine { request, node, reason } => self.take_quarantine(request, node, reason),
            Input::Release { request, node } => self.take_release(request, node),
            Input::Kill { request, node } => self.take_kill(request, node),
            Input::Drain { request, node } => self.take_drain(request, node),
            Input::Complained { what } => {
                self.complain(None, What::HeadProblem { error: what });
                None
            }
            Input::Noted { actor, node, what } => {
                self.requested(&actor, Some(&node), what);
                None
            }
            Input::Shutdown { request } => {
                self.take_shutdown(request);
                None
            }
            Input::SubmitJob { request, spec, needs } => {
                self.take_job(request, *spec, needs);
                None
            }
            Input::CancelJob { request, job } => {
                self.take_job_cancellation(request, &job);
                None
            }
            Input::DeleteJob { request, job } => {
                self.take_job_deletion(request, &job);
                None
            }
            Input::JobNotPlanned { id, attempt, error } => {
                self.take_job_not_planned(id, attempt, error);
                None
            }
            Input::JoinAsked { request, node, generation, key, token, address } => {
                self.take_join(request, node, generation, key, token, address)
            }
            Input::LinkOpened { session, node, generation, facts } => self.take_link(session, node, generation, facts),
            Input::LinkClosed { session, node, cause } => self.take_link_closed(session, node, cause),
            Input::Heartbeats { received } => {
                self.take_heartbeats(received);
                None
            }
            Input::Reported { session, node, complete, services, jobs } => {
                self.take_job_reports(session, &node, jobs);
                self.take_report(session, node, complete, services)
            }
            Input::MemoryUsedUp { session, node, kills } => self.take_memory_kills(session, node, kills),
            Input::GoalAcknowledged { session, node, version, refusal } => self.take_goal_ack(session, node, version, refusal),
            Input::SoftwareFailed { node, version, software, error, tries } => {
                self.take_software_failure(node, version, software, error, tries)
            }
            Input::DialedBack { node, generation, outcome } => self.take_dial(node, generation, outcome),
            Input::Created { node, generation, result } => self.take_created(node, generation, result),
            Input::Deleted { node, generation, instance, result } => self.take_deleted(node, generation, &instance, result),
            Input::MachinesChanged => {
                self.reconcile.request_list();
                None
            }
            Input::AgentRestarted { node, generation, result } => self.take_restarted(node, generation, result),
            Input::Rebooted { node, generation, result } => self.take_rebooted(node, generation, result),
            Input::Listed { number, result } => {
                self.take_list(number, result);
                None
            }
        }
    }
}
