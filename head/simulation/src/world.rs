//! The world itself: what happens when, and what becomes of the brain's actions.

mod checks;
mod faults;
mod happening;
mod head;
mod nodes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use cloudtik_brain::{Brain, ClusterRecord, Input, Request};
use cloudtik_model::demand::{Ask, Wants};
use cloudtik_model::event::Event;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::outlook::Outlook;
use cloudtik_model::spec::{Membership, Role, ServicePlacement, Spec, WorkerType};
use cloudtik_model::{Bytes, Epoch, Generation, InstanceId, Moment, MoneyPerHour, NodeId, NodeTypeName, Resources, ServiceKey, Timestamp};

pub use self::faults::Faults;
use self::happening::Happening;
use crate::agent::Agent;
use crate::promises::Violation;
use crate::provider::Provider;
use crate::random::Random;

/// How long faults and people trouble the world, in virtual milliseconds.
const TROUBLE: u64 = 600_000;
/// How long it then has to settle.
const PEACE: u64 = 1_200_000;
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
    /// Places at which a crash of the head could have made a difference.
    pub crash_points: u64,
}

/// One seeded world.
#[derive(Debug)]
pub struct World {
    seed: u64,
    faults: Faults,
    random: Random,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    brain: Option<Brain>,
    paused_until: u64,
    epoch: Epoch,
    stored: Stored,
    provider: Provider,
    agents: BTreeMap<InstanceId, Agent>,
    requests: BTreeMap<Request, InstanceId>,
    next: u64,
    next_process: u32,
    all_cut_until: u64,
    /// Which generations of which nodes were ready once.
    ever_ready: BTreeSet<(NodeId, Generation)>,
    /// What people or scale asked to go, by node and generation.
    asked_to_go: BTreeSet<(NodeId, Generation)>,
    /// At which point the head crashes, if one was chosen.
    crash_at: Option<u64>,
    /// Wishes that wait for an answer.
    wishes: BTreeMap<Request, Wants>,
    /// Wishes that were acknowledged and not stored.
    unkept: Option<String>,
    stats: Stats,
    trail: VecDeque<String>,
    peaceful: bool,
}

#[derive(Debug, Default)]
struct Stored {
    cluster: ClusterRecord,
    asks: BTreeMap<String, Ask>,
    outlook: Outlook,
    nodes: BTreeMap<NodeId, NodeRecord>,
    events: Vec<Event>,
}

fn key(text: &str) -> ServiceKey {
    text.parse().expect("a valid key")
}

fn default_type() -> NodeTypeName {
    NodeTypeName::new(NodeTypeName::DEFAULT).expect("a valid name")
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut world = Self {
            seed,
            faults,
            random: Random::new(seed),
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            brain: None,
            paused_until: 0,
            epoch: Epoch(0),
            stored: Stored::default(),
            provider: Provider::default(),
            agents: BTreeMap::new(),
            requests: BTreeMap::new(),
            next: 0,
            next_process: 0,
            all_cut_until: 0,
            ever_ready: BTreeSet::new(),
            asked_to_go: BTreeSet::new(),
            crash_at: None,
            wishes: BTreeMap::new(),
            unkept: None,
            stats: Stats::default(),
            trail: VecDeque::new(),
            peaceful: false,
        };
        let (head, generation, random) = (NodeId::head(), Generation(1), &mut Random::new(seed));
        let instance = world.provider.create(0, &head, generation, &NodeTypeName::head(), 0, random);
        let mut record = NodeRecord::requested(head.clone(), generation, NodeTypeName::head(), Timestamp(0));
        record.life = NodeState::Launched;
        record.instance = Some(instance.id.clone());
        record.address.clone_from(&instance.address);
        world.stored.nodes.insert(head, record);
        world.after(0, Happening::HeadStarts);
        world.after(10, Happening::Boot(instance.id));
        world.after(10_000, Happening::Trouble);
        world
    }

    /// Has the head crash at one point of its life, counted from 1 ([`Stats::crash_points`]).
    pub fn crashing_at(mut self, point: u64) -> Self {
        self.crash_at = Some(point);
        self
    }

    /// The description that this seed is about.
    fn spec(&self, revision: u64, rolling: bool) -> Spec {
        let mut random = Random::new(self.seed ^ 0x57ec);
        let (priced, limited, zoned) = (random.permille(500), random.permille(500), random.permille(300));
        let mut kind = |least: u64, most: u64, spread: u64, price: u64| {
            let min = random.between(least, most) as u32;
            let max = min + random.between(0, spread) as u32;
            let cpus = if price > 500_000 { 8 } else { 2 };
            WorkerType {
                min,
                max,
                price: priced.then_some(MoneyPerHour(price)),
                resources: Some(Resources { cpus, memory: Bytes(u64::from(cpus) << 30), gpus: 0 }),
                zones: if zoned { vec!["a".to_owned(), "b".to_owned()] } else { Vec::new() },
                ..WorkerType::default()
            }
        };
        let quorum = self.seed % 3 == 2;
        let mut workers = BTreeMap::from([(default_type(), if quorum { kind(3, 5, 3, 400_000) } else { kind(1, 5, 3, 400_000) })]);
        let large = kind(0, 2, 2, 1_000_000);
        if random.permille(500) && large.max > 0 {
            workers.insert(NodeTypeName::new("large").expect("a valid name"), large);
        }
        // Limits lie anywhere between what the types need at least and what they may be at most.
        let sum = |of: &dyn Fn(&WorkerType) -> u64| workers.values().map(of).sum::<u64>();
        let cost = |kind: &WorkerType, count: u32| kind.price.map_or(0, |p| p.0) * u64::from(count);
        let max_workers = random.between(sum(&|k| k.min.into()), sum(&|k| k.max.into())) as u32;
        let (least, most) = (sum(&|k| cost(k, k.min)), sum(&|k| cost(k, k.max)));
        let budget = (priced && limited).then(|| MoneyPerHour(random.between(least, most)));
        let place =
            |name: &str, role, after: Vec<ServiceKey>| ServicePlacement { key: key(name), role, after, membership: None, drain_ms: 0 };
        let mut worker = place("a/worker", Role::Workers, vec![key("a/master")]);
        worker.membership = quorum.then_some(Membership { quorum: true, minimum: 1 });
        Spec {
            revision,
            workers,
            max_workers,
            budget,
            services: vec![place("a/master", Role::Head, vec![]), worker],
            idle_after_ms: 30_000,
            rolling,
            ..Spec::default()
        }
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.happenings.insert(self.sequence, happening);
    }

    fn hear(&mut self, delay: u64, epoch: Epoch, input: Input) {
        self.after(delay, Happening::Hear(epoch, Box::new(input)));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
        }
        self.trail.push_back(format!("{:>8} {}", self.now, line()));
    }

    fn broken(&self, promise: u8, what: String) -> Violation {
        Violation { seed: self.seed, at: self.now, promise, what, trail: self.trail.iter().cloned().collect() }
    }

    fn moment(&self) -> Moment {
        Moment { mono: self.now, wall: Timestamp(1_700_000_000_000 + self.now) }
    }

    /// Runs trouble, then peace, and checks that everything is as it was asked for.
    pub fn run(mut self) -> Result<Stats, Violation> {
        while self.now < TROUBLE + PEACE {
            if self.now >= TROUBLE && !self.peaceful {
                self.make_peace();
            }
            let next = self.queue.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            let wake = self.brain.as_ref().map_or(u64::MAX, |b| b.next_wake().max(self.paused_until));
            if wake < next {
                self.now = self.now.max(wake);
                self.step(Input::Tick)?;
                continue;
            }
            let Some(Reverse((at, sequence))) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            if let Some(happening) = self.happenings.remove(&sequence) {
                self.happen(happening)?;
            }
            if let Some(what) = self.unkept.take() {
                return Err(self.broken(8, what));
            }
        }
        self.check_end()?;
        self.stats.creations = self.provider.creations;
        Ok(self.stats)
    }

    fn make_peace(&mut self) {
        self.peaceful = true;
        let Faults { can_restart_agent, visibility, .. } = self.faults;
        self.faults = Faults { can_restart_agent, visibility, ..Faults::none() };
        self.people_leave(6);
        self.note(|| "peace".to_owned());
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(220).collect()
}
