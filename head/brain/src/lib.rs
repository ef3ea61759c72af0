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
//! | `rollout` | what each node is to run, in order of needs and readiness |
//! | `sweep` | what the provider's list means: adoption, orphans, lost instances |
//! | `wholes` | which members of a quorum can be done without |
//! | `explain` | what the cluster is, for people and for the planner |

mod clock;
mod explain;
mod lifecycle;
mod membership;
mod messages;
pub mod packing;
pub mod recording;
mod rollout;
mod scaling;
mod steering;
mod sweep;
mod wholes;

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::event::{Event, EventKind};
use cloudtik_model::node::{Evidence, NodeRecord, NodeState};
use cloudtik_model::report::{Facts, ServiceReport};
use cloudtik_model::{Epoch, InstanceId, Moment, NodeId, ServiceKey};
use serde::{Deserialize, Serialize};

use clock::Clock;
pub use explain::{NodeView, Snapshot};
use membership::Watch;
pub use messages::*;
use scaling::{Asks, History, Scaling};

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

/// Complaints that are alike are stored once in so many milliseconds, with their number; the body counts all refusals.
const COMPLAINT_PAUSE: u64 = 600_000;
/// Complaints that differ are stored at most this often in the long run, in milliseconds: whoever is refused may try as he
/// likes.
const REFUSAL_PAUSE: u64 = 1_000;
/// So many that differ are stored all the same.
const BURST: u64 = 20;

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
    listing: Listing,
    /// A service became ready or stopped being so: others may wait for it.
    services_changed: bool,
    /// A new description came.
    limits_changed: bool,
    /// A node changed its state or settled: the next may be let take a new revision.
    nodes_changed: bool,
    /// Which services are ready wherever they are to run.
    readiness: BTreeMap<ServiceKey, bool>,
    /// Something changed that readiness depends on.
    readiness_stale: bool,
    next_version: u64,
    /// What was said last of each node, or of none, and how often since: the same again is no news.
    said: BTreeMap<Option<NodeId>, Said>,
    step: Step,
}

#[derive(Debug, Default)]
struct Said {
    at: Option<u64>,
    message: String,
    /// Complaints that were not stored since.
    since: u64,
    /// Complaints that were stored within a short time.
    burst: u64,
}

#[derive(Debug, Default)]
struct Listing {
    in_flight: bool,
    /// Of the last question.
    number: u64,
    /// When the list in flight was asked for.
    asked: u64,
    next: u64,
    wanted_now: bool,
    /// Orphans that the last list showed: a second look confirms them.
    suspects: BTreeSet<InstanceId>,
}

#[derive(Debug)]
struct Node {
    record: NodeRecord,
    link: Option<Session>,
    facts: Option<Facts>,
    services: BTreeMap<ServiceKey, ServiceReport>,
    sent: Option<GoalOrder>,
    acknowledged: u64,
    watch: Watch,
    /// A provider call of this node that has not come back.
    in_flight: bool,
    /// Failed calls in a row.
    failures: u32,
    /// Not before this is the next call made.
    not_before: u64,
    /// Not before this is a goal sent.
    goal_not_before: u64,
    /// When it entered its state, on the brain's clock.
    entered: u64,
    /// Since when lists have not shown its instance.
    unlisted_since: Option<u64>,
    /// How busy it was.
    load: History,
    /// Since when it has had nothing to do; nothing if it works, or nobody said so yet.
    idle_since: Option<u64>,
    /// When a call that may have made an instance, and had no answer, was last under way.
    uncertain: Option<u64>,
}

impl Node {
    fn new(mut record: NodeRecord, now: u64) -> Self {
        // A verdict of an earlier head counts as suspicion: nothing is done to what was not seen again.
        if let NodeState::Down { evidence } = record.life {
            record.life = NodeState::Suspect { evidence };
        }
        Self {
            uncertain: None,
            idle_since: Some(now),
            load: History::default(),
            record,
            link: None,
            facts: None,
            services: BTreeMap::new(),
            sent: None,
            acknowledged: 0,
            watch: Watch::since(now),
            in_flight: false,
            failures: 0,
            not_before: 0,
            goal_not_before: 0,
            entered: now,
            unlisted_since: None,
        }
    }

    fn is_worker(&self) -> bool {
        !self.record.id.is_head()
    }
}

impl Brain {
    /// A brain from what the store holds.
    pub fn restore(config: Config, epoch: Epoch, memory: Memory, now: Moment) -> Self {
        let Memory { cluster, asks, outlook, nodes } = memory;
        let clock = Clock::new(now, config.pulse);
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
            scaling: Scaling::with(outlook),
            listing: Listing::default(),
            services_changed: false,
            limits_changed: false,
            nodes_changed: false,
            readiness: BTreeMap::new(),
            readiness_stale: true,
            next_version: 0,
            said: BTreeMap::new(),
            step: Step::default(),
        };
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
        let due = [self.listing_due(), self.scaling_due()].into_iter().flatten().min();
        self.clock.plan_wake(self.timers.first().map(|(at, _)| *at), due);
        self.look_at_list();
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
                self.event(None, EventKind::Head, format!("head started, epoch {}", self.epoch.0));
                for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
                    self.look_at(&node);
                }
                self.reconsider_scale();
                None
            }
            Input::Tick => None,
            Input::Specified { spec } => {
                self.take_spec(spec);
                None
            }
            Input::Scale { request, wish } => {
                self.take_scale(request, wish);
                None
            }
            Input::Revoke { request, name } => {
                self.take_revoke(request, name);
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
            Input::Quarantine { request, node, reason } => self.take_quarantine(request, node, reason),
            Input::Release { request, node } => self.take_release(request, node),
            Input::Kill { request, node } => self.take_kill(request, node),
            Input::Drain { request, node } => self.take_drain(request, node),
            Input::Complained { what } => {
                self.complain(None, EventKind::Alarm, what);
                None
            }
            Input::Noted { node, what } => {
                self.event(Some(&node), EventKind::Request, what);
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
            Input::Heartbeat { session, node, load } => self.take_heartbeat(session, node, load),
            Input::Reported { session, node, complete, services } => self.take_report(session, node, complete, services),
            Input::GoalAcknowledged { session, node, version, refusal } => self.take_goal_ack(session, node, version, refusal),
            Input::DialedBack { node, generation, outcome } => self.take_dial(node, generation, outcome),
            Input::Created { node, generation, result } => self.take_created(node, generation, result),
            Input::Deleted { node, generation, result } => self.take_deleted(node, generation, result),
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
        if std::mem::take(&mut self.services_changed) {
            self.reconsider_goals();
        }
    }

    fn run_timers(&mut self) {
        let now = self.clock.now();
        // Each node once: looking at it sets its next timer, which may be due already only after the clock moved.
        let mut due = Vec::new();
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            due.extend(self.timers.pop_first());
        }
        let due: BTreeSet<NodeId> = due.into_iter().map(|(_, node)| node).collect();
        for node in due {
            self.look_at(&node);
        }
    }

    fn wake_at(&mut self, node: &NodeId, at: u64) {
        self.timers.insert((at.max(self.clock.now() + 1), node.clone()));
    }

    fn act(&mut self, action: Action) {
        self.step.actions.push(action);
    }

    fn reply(&mut self, request: Request, result: Result<Reply, String>) {
        self.act(Action::Reply { request, result });
    }

    fn event(&mut self, node: Option<&NodeId>, kind: EventKind, message: String) {
        self.event_with(node, kind, message, BTreeMap::new());
    }

    fn event_with(&mut self, node: Option<&NodeId>, kind: EventKind, message: String, details: BTreeMap<String, String>) {
        let generation = node.and_then(|id| self.nodes.get(id)).map(|n| n.record.generation);
        let event = Event { position: 0, at: self.clock.wall(), node: node.cloned(), generation, kind, message, details };
        self.step.records.push(Record::Event(event));
    }

    /// Stores a refusal; it is about a node if there is one of that name.
    fn refuse(&mut self, id: &NodeId, message: String) {
        let node = self.nodes.contains_key(id).then(|| id.clone());
        self.complain(node.as_ref(), EventKind::Refusal, message);
    }

    /// Stores what may come again and again, but no flood of it: an event that explains something must not be pushed out
    /// of the log by what only repeats itself.
    fn complain(&mut self, node: Option<&NodeId>, kind: EventKind, message: String) {
        let now = self.clock.now();
        let said = self.said.entry(node.cloned()).or_default();
        let passed = said.at.map_or(u64::MAX, |at| now.saturating_sub(at));
        said.burst = said.burst.saturating_sub(passed / REFUSAL_PAUSE);
        let is_known = said.message == message && passed < COMPLAINT_PAUSE;
        if is_known || said.burst >= BURST {
            said.since += 1;
            return;
        }
        said.burst += 1;
        let more = std::mem::take(&mut said.since);
        (said.at, said.message) = (Some(now), message.clone());
        let message = if more > 0 { format!("{message} ({more} such since the last)") } else { message };
        self.event(node, kind, message);
    }

    fn store_node(&mut self, id: &NodeId) {
        if let Some(node) = self.nodes.get(id) {
            self.step.records.push(Record::Node(node.record.clone()));
        }
    }

    fn store_cluster(&mut self) {
        self.step.records.push(Record::Cluster(self.cluster.clone()));
    }

    /// Moves a node into another state, stores that and says so.
    fn enter(&mut self, id: &NodeId, life: NodeState, why: &str) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let Some(node) = self.nodes.get_mut(id) else { return };
        let (from, to) = (node.record.life.name(), life.name());
        let was_leaving = node.record.life.is_leaving();
        // Suspicion is soft: after a restart the evidence is collected afresh.
        let is_soft = matches!(life, NodeState::Suspect { .. });
        node.record.was_ready |= life == NodeState::Ready;
        node.record.life = life;
        node.record.since = wall;
        node.entered = now;
        let leaving = node.record.life.is_leaving();
        let gone = node.record.life == NodeState::Gone;
        if !is_soft {
            self.store_node(id);
        }
        if from != to {
            let message = if why.is_empty() { format!("{from} → {to}") } else { format!("{from} → {to}: {why}") };
            self.event(Some(id), EventKind::Node, message);
        }
        if gone {
            let node_type = self.nodes[id].record.node_type.clone();
            self.scaling.launching.freed(&node_type);
        }
        if leaving && !was_leaving {
            let node_type = self.nodes[id].record.node_type.clone();
            self.scaling.left.insert(node_type, now);
        }
        if gone || leaving != was_leaving || from != to {
            self.reconsider_scale();
        }
        (self.readiness_stale, self.nodes_changed) = (true, true);
        self.recount(id);
        self.wake_at(id, now);
    }

    fn evidence_details(evidence: &[Evidence]) -> BTreeMap<String, String> {
        evidence.iter().enumerate().map(|(i, e)| (format!("evidence {}", i + 1), e.kind.to_string())).collect()
    }
}
