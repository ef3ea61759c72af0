//! The world itself: what happens when, and what becomes of the brain's actions.

mod accounts;
mod checks;
mod head;
mod job_checks;
mod jobs;
mod nodes;
mod script;
mod sim_event;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cloudtik_brain::{Brain, ClusterRecord, Input, JobRecord, Planned, Session};
use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::spec::Spec;
use cloudtik_model::{Epoch, Generation, InstanceId, JobId, Moment, MoneyPerHour, NodeId, NodeTypeName, Timestamp};

use self::accounts::Accounts;
use self::jobs::JobsWorld;
use self::script::Script;
use self::sim_event::SimEvent;
use crate::agenda::Agenda;
use crate::agent::Agent;
use crate::event_index::EventIndex;
use crate::faults::Faults;
use crate::promises::Violation;
use crate::provider::{Provider, Wanted};
use crate::random::Random;
use crate::setup::Setup;

/// Lines of the trail that are kept.
const TRAIL: usize = 80;

/// What a world went through.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub steps: u64,
    pub crashes: u64,
    pub creations: u64,
    pub deletions: u64,
    pub verdicts: u64,
    pub reboots: u64,
    /// How often it was looked at whether a deletion, a member's end and a worker that is scaled in were right.
    pub judged_deletions: u64,
    pub judged_members: u64,
    pub judged_idle: u64,
    /// How often it was looked at whether a node that works may take a bad revision, and how often one was held.
    pub judged_rollouts: u64,
    pub held_rollouts: u64,
    /// Attempts of jobs that began, and how often one that was over was held against what happened.
    pub job_attempts: u64,
    pub judged_attempts: u64,
    pub retried_jobs: u64,
    pub cancelled_jobs: u64,
    pub lost_jobs: u64,
    pub forgotten_jobs: u64,
    /// Submissions that were answered with a job that there was already.
    pub repeated_submissions: u64,
    pub replaced_heads: u64,
    /// Places at which a crash of the head could have made a difference.
    pub crash_points: u64,
}

/// One world.
#[derive(Debug)]
pub struct World {
    setup: Setup,
    /// The cluster as it is to be by now.
    spec: Spec,
    /// The revisions for which processes must start again.
    rolls: BTreeSet<u64>,
    /// The last revision that changes what nodes run and restarts nothing.
    tried: u64,
    /// Revisions under which services of workers end again and again: from one on, and before another.
    bad: Vec<(u64, u64)>,
    random: Random,
    now: u64,
    agenda: Agenda<SimEvent>,
    brain: Option<Brain>,
    paused_until: u64,
    epoch: Epoch,
    stored: Stored,
    provider: Provider,
    agents: BTreeMap<InstanceId, Agent>,
    /// Whose link is open, by session.
    links: BTreeMap<Session, InstanceId>,
    /// Agents that wait for an answer.
    joining: BTreeMap<u64, InstanceId>,
    next: u64,
    next_process: u32,
    all_cut_until: u64,
    /// How far the head's wall clock is off, in milliseconds.
    clock_off: i64,
    /// What people or scale asked to go, by node and generation.
    asked_to_go: BTreeSet<(NodeId, Generation)>,
    /// At which point the head crashes, if one was chosen.
    crash_at: Option<u64>,
    /// Requests that wait for an answer.
    asked_for: BTreeMap<u64, RequestedCapacity>,
    /// Requests that were acknowledged and not stored.
    unkept: Option<String>,
    script: Script,
    jobs: JobsWorld,
    accounts: Accounts,
    stats: Stats,
    trail: VecDeque<String>,
    peaceful: bool,
}

/// What a store would hold, and what follows from it.
#[derive(Debug, Default)]
struct Stored {
    cluster: ClusterRecord,
    requests: BTreeMap<String, ResourceRequest>,
    plan: BTreeMap<NodeId, Vec<Planned>>,
    outlook: Outlook,
    nodes: BTreeMap<NodeId, NodeRecord>,
    jobs: BTreeMap<JobId, JobRecord>,
    /// Every description that was accepted, in order.
    specs: Vec<Spec>,
    told: EventIndex,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let mut world = Self {
            spec: setup.spec.clone(),
            rolls: BTreeSet::new(),
            tried: 0,
            bad: Vec::new(),
            random: Random::new(setup.seed),
            now: 0,
            agenda: Agenda::default(),
            brain: None,
            paused_until: 0,
            epoch: Epoch(0),
            stored: Stored::default(),
            provider: Provider::default(),
            agents: BTreeMap::new(),
            links: BTreeMap::new(),
            joining: BTreeMap::new(),
            next: 0,
            next_process: 0,
            all_cut_until: 0,
            clock_off: 0,
            asked_to_go: BTreeSet::new(),
            crash_at: None,
            asked_for: BTreeMap::new(),
            unkept: None,
            script: Script::default(),
            jobs: JobsWorld::new(setup.seed),
            accounts: Accounts::default(),
            stats: Stats::default(),
            trail: VecDeque::new(),
            peaceful: false,
            setup,
        };
        let (head, generation, node_type) = (NodeId::head(), Generation(1), NodeTypeName::head());
        let wanted = Wanted { node: &head, generation, node_type: &node_type, price: MoneyPerHour(0) };
        let instance = world.provider.create(0, wanted, 0, &mut world.random);
        let mut record = NodeRecord::requested(head.clone(), generation, node_type, world.setup.start);
        record.life = NodeState::Launched;
        record.instance = Some(instance.id.clone());
        record.address.clone_from(&instance.address);
        world.stored.nodes.insert(head, record);
        world.after(0, SimEvent::HeadStarts);
        world.after(10, SimEvent::Boot(instance.id));
        match world.setup.scenario.clone() {
            Some(scenario) => world.begin(&scenario),
            None => {
                world.after(10_000, SimEvent::Trouble);
                world.after(5_000, SimEvent::JobsSubmitted);
            }
        }
        world
    }

    /// Has the head crash at one point of its life, counted from 1 ([`Stats::crash_points`]).
    pub fn crashing_at(mut self, point: u64) -> Self {
        self.crash_at = Some(point);
        self
    }

    fn after(&mut self, delay: u64, sim_event: SimEvent) {
        self.agenda.put(self.now.saturating_add(delay), sim_event);
    }

    fn hear(&mut self, delay: u64, epoch: Epoch, input: Input) {
        self.after(delay, SimEvent::Hear(epoch, Box::new(input)));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
        }
        self.trail.push_back(format!("{:>8} {}", self.now, line()));
    }

    fn broken(&self, promise: u8, what: String) -> Violation {
        Violation { seed: self.setup.seed, at: self.now, promise, what, trail: self.trail.iter().cloned().collect() }
    }

    fn moment(&self) -> Moment {
        let wall = (self.setup.start.0 + self.now).saturating_add_signed(self.clock_off);
        Moment { mono: self.now, wall: Timestamp(wall) }
    }

    /// Lives to the end, and checks that everything is then as it was asked for, if there was time to come to rest.
    pub fn run(mut self) -> Result<Stats, Violation> {
        self.live()?;
        Ok(self.stats)
    }

    fn live(&mut self) -> Result<(), Violation> {
        let end = self.setup.length + self.setup.peace;
        while self.now < end {
            if self.now >= self.setup.length && !self.peaceful {
                self.quiesce();
            }
            let next = self.agenda.next().unwrap_or(u64::MAX);
            let wake = self.brain.as_ref().map_or(u64::MAX, |b| b.next_wake().max(self.paused_until));
            if wake.min(next) >= end {
                self.now = end;
                break;
            }
            if wake < next {
                self.now = self.now.max(wake);
                self.step(Input::Tick)?;
                continue;
            }
            let Some((at, sim_event)) = self.agenda.take() else { break };
            self.now = self.now.max(at);
            self.happen(sim_event)?;
            if let Some(what) = self.unkept.take() {
                return Err(self.broken(8, what));
            }
        }
        self.stats.creations = self.provider.creations;
        if self.setup.peace > 0 { self.check_end() } else { Ok(()) }
    }

    fn quiesce(&mut self) {
        self.peaceful = true;
        let Faults { can_restart_agent, can_reboot, visibility, .. } = self.setup.faults;
        self.setup.faults = Faults { can_restart_agent, can_reboot, visibility, ..Faults::none() };
        self.clock_off = 0;
        self.agents.values_mut().for_each(|agent| agent.busy = false);
        if self.setup.scenario.is_none() {
            self.people_leave(6);
        }
        self.note(|| "peace".to_owned());
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(220).collect()
}
