//! The head's mind: `handle(now, input) -> step`.
//!
//! Owns every decision about the cluster: who belongs to it, which nodes to make, mend and let go, what each node is to
//! run and when. Pure and deterministic: time comes in, actions and records go out. Must never: read a clock, use
//! randomness, files, network or threads. The body (`head/src`) commits a step's records and only then executes its
//! actions; their results come back as inputs. After a restart the brain is rebuilt from the stored records.
//!
//! | module | decides |
//! |---|---|
//! | `clock` | what counts as time: the head's own lag is taken out of every deadline |
//! | `lifecycle` | a node's way from requested to gone, joining included |
//! | `membership` | suspicion, verdicts, the recovery ladder and the brake on mass loss |
//! | `scaling` | how many workers there are to be, and which to make or let go |
//! | `packing` | which demands fit on which nodes, and what is the cheapest to buy for the rest |
//! | `recording` | nothing: how a life is written down to be lived again |
//! | `steering` | what people may hold, resume, set aside, kill and drain |
//! | `readiness` | nothing: which services are ready wherever they are to run |
//! | `rollout` | what each node is to run, in order of needs and readiness; `rollout/failure`: when a revision has failed |
//! | `sweep` | what the provider's list means: adoption, orphans, lost instances |
//! | `census` | nothing: who counts for a whole, and who should be heard |
//! | `wholes` | which members of a quorum can be done without |
//! | `node`, `journal` | nothing: what is known of a node, and what a step stores |
//! | `repeats` | which events of an agent are stored at once, and which are only counted |
//! | `messages` | nothing: what the brain hears, and what it wants done and stored |
//! | `access` | who may use the cluster, and whose certificate still counts |
//! | `explain` | what the cluster is, for people and for the planner |

pub mod access;
mod census;
mod clock;
mod explain;
mod journal;
mod lifecycle;
mod membership;
mod messages;
mod node;
pub mod packing;
mod readiness;
pub mod recording;
mod repeats;
mod rollout;
mod scaling;
mod services;
mod steering;
mod sweep;
mod wholes;

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::answer::Answer;
use cloudtik_model::event::{Scale, What};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::reason::{Reason, Trouble};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::{Epoch, Moment, NodeId};
use serde::{Deserialize, Serialize};

use census::Census;
use clock::Clock;
pub use explain::{NodeView, Overview, PagedNode, Snapshot};
use journal::Said;
pub use messages::*;
use node::Node;
use readiness::Readiness;
use repeats::Repeats;
use scaling::{Asks, Scaling};
use sweep::Listing;

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
    /// A suspect that is silent this long, and does not answer a dial-back, is down.
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

/// The mind of one head.
#[derive(Debug)]
pub struct Brain {
    config: Config,
    epoch: Epoch,
    clock: Clock,
    cluster: ClusterRecord,
    asks: Asks,
    nodes: BTreeMap<NodeId, Node>,
    /// When to look at a node again.
    timers: BTreeSet<(u64, NodeId)>,
    brake: bool,
    /// Since when some worker is heard, as far as that was looked at.
    company_since: Option<u64>,
    /// The head was away until a moment before this: what was said meanwhile has been heard by then.
    listening_since: u64,
    scaling: Scaling,
    /// When the last description came, in this head's life.
    specified_at: u64,
    listing: Listing,
    /// A service became ready or stopped being so: others may wait for it.
    services_changed: bool,
    /// A new description came.
    limits_changed: bool,
    /// A node changed its state or settled: the next may be let take a new revision.
    nodes_changed: bool,
    readiness: Readiness,
    census: Census,
    /// What is ready changed, and not everybody was told.
    readiness_changed: bool,
    /// Nodes on which something does not run that is to.
    restless: BTreeSet<NodeId>,
    /// What went wrong last with nodes that are not ready.
    troubled: BTreeMap<NodeId, Trouble>,
    /// Nodes that are to take the newest revision.
    behind: BTreeSet<NodeId>,
    next_version: u64,
    /// What was said last of each node, or of none, and how often since: the same again is no news.
    said: BTreeMap<Option<NodeId>, Said>,
    repeats: Repeats,
    /// Wishes that were granted in this step: it shows only when it was decided what becomes of them.
    granted: Vec<(Request, String, Scale)>,
    step: Step,
}

impl Brain {
    /// A brain from what the store holds.
    pub fn restore(config: Config, epoch: Epoch, memory: Memory, now: Moment) -> Self {
        let Memory { cluster, asks, outlook, nodes, plan } = memory;
        let clock = Clock::new(now, config.pulse);
        let launched = nodes.iter().map(|node| node.number).max().unwrap_or(0);
        let restored = |record: NodeRecord| {
            let mut node = Node::new(record, clock.now());
            // Of a launch that an earlier head stored nobody knows how far it came.
            node.uncertain = Some(clock.now());
            // Nor whether it works.
            node.idle_since = None;
            (node.record.id.clone(), node)
        };
        let nodes = nodes.into_iter().map(restored).collect();
        let mut brain = Self {
            config,
            epoch,
            clock,
            cluster,
            asks: Asks::new(asks),
            nodes,
            timers: BTreeSet::new(),
            brake: false,
            company_since: None,
            listening_since: 0,
            scaling: Scaling::with(outlook, plan),
            specified_at: 0,
            listing: Listing::default(),
            services_changed: false,
            limits_changed: false,
            nodes_changed: false,
            readiness: Readiness::default(),
            census: Census::default(),
            readiness_changed: false,
            restless: BTreeSet::new(),
            troubled: BTreeMap::new(),
            behind: BTreeSet::new(),
            next_version: 0,
            said: BTreeMap::new(),
            repeats: Repeats::default(),
            granted: Vec::new(),
            step: Step::default(),
        };
        brain.scaling.launched = launched;
        for node in brain.nodes.values() {
            if let NodeState::Quarantined { reason: Reason::Quarantined { reason } } = &node.record.life {
                brain.troubled.insert(node.record.id.clone(), Trouble::Quarantined { reason: reason.clone() });
            }
        }
        brain.count_anew();
        brain.find_behind();
        brain.scaling.launching.remember(&brain.cluster.paused);
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
        }
        if std::mem::take(&mut self.limits_changed) {
            // What is due now may not be allowed any more.
            self.decide();
        }
        self.run_timers();
        self.go_on_rolling();
        self.decide();
        self.answer_wishes();
        let due = [self.listing_due(), self.scaling_due()].into_iter().flatten().min();
        self.clock.plan_wake(self.timers.first().map(|(at, _)| *at), due);
        self.look_at_list();
        self.store_plan();
        self.forget_refusals();
        std::mem::take(&mut self.step)
    }

    /// When the brain wants to be called with [`Input::Tick`] at the latest, on the monotonic clock in milliseconds.
    pub fn next_wake(&self) -> u64 {
        self.clock.next_wake()
    }

    /// Takes an input in, and names the node that it concerns.
    fn take(&mut self, input: Input) -> Option<NodeId> {
        match input {
            Input::Started => {
                self.listing.wanted_now = true;
                self.event(None, What::HeadStarted { epoch: self.epoch.0 });
                for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
                    self.look_at(&node);
                }
                self.reconsider_scale();
                None
            }
            Input::Tick => None,
            Input::Specified { spec, actor } => {
                self.take_spec(spec, &actor);
                None
            }
            Input::Scale { request, wish } => {
                self.take_scale(request, wish);
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
            Input::JoinAsked { request, node, generation, key, token, address } => {
                self.take_join(request, node, generation, key, token, address)
            }
            Input::LinkOpened { session, node, generation, facts } => self.take_link(session, node, generation, facts),
            Input::LinkClosed { session, node, cause } => self.take_link_closed(session, node, cause),
            Input::Heartbeats { received } => {
                self.take_heartbeats(received);
                None
            }
            Input::Reported { session, node, complete, services } => self.take_report(session, node, complete, services),
            Input::GoalAcknowledged { session, node, version, refusal } => self.take_goal_ack(session, node, version, refusal),
            Input::SoftwareFailed { node, version, software, error, tries } => {
                self.take_software_failure(node, version, software, error, tries)
            }
            Input::DialedBack { node, generation, outcome } => self.take_dial(node, generation, outcome),
            Input::Created { node, generation, result } => self.take_created(node, generation, result),
            Input::Deleted { node, generation, instance, result } => self.take_deleted(node, generation, &instance, result),
            Input::MachinesChanged => {
                self.listing.wanted_now = true;
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

    /// Moves a node as far as what is known allows.
    fn look_at(&mut self, id: &NodeId) {
        self.drive(id);
        self.release_events(id);
        if std::mem::take(&mut self.services_changed) {
            self.reconsider_goals();
        }
    }

    fn run_timers(&mut self) {
        let now = self.clock.now();
        // Each node once: looking at it sets its next timer, which may be due already only after the clock moved.
        let mut due = BTreeSet::new();
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            due.extend(self.timers.pop_first().map(|(_, node)| node));
        }
        for node in due {
            self.clear_timer(&node);
            self.look_at(&node);
        }
    }

    /// Looks at a node again at the latest then. A look says anew when the next is due, so there is one timer for each.
    fn wake_at(&mut self, id: &NodeId, at: u64) {
        let at = at.max(self.clock.now() + 1);
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.timer.is_none_or(|due| at < due)) else { return };
        if let Some(due) = node.timer.replace(at) {
            self.timers.remove(&(due, id.clone()));
        }
        self.timers.insert((at, id.clone()));
    }

    /// Nothing is waited for any more of what was waited for.
    fn clear_timer(&mut self, id: &NodeId) {
        if let Some(due) = self.nodes.get_mut(id).and_then(|node| node.timer.take()) {
            self.timers.remove(&(due, id.clone()));
        }
    }

    fn act(&mut self, action: Action) {
        self.step.actions.push(action);
    }

    /// Answers a request that was granted.
    fn done(&mut self, request: Request, answer: Answer) {
        self.reply(request, Ok(Reply::Done { answer }));
    }

    fn reply(&mut self, request: Request, result: Result<Reply, Refusal>) {
        self.act(Action::Reply { request: request.number, result });
    }
}
