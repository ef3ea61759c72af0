//! Guards against acting on silence, each alone: no simulation, one rule at a time.

use std::collections::BTreeMap;

use cloudtik_brain::{Action, Brain, ClusterRecord, Config, Failure, FailureKind, Heartbeat, Input, Memory, Request, Session};
use cloudtik_model::alarm::Alarm;
use cloudtik_model::event::StateName;
use cloudtik_model::node::{DialOutcome, Instance, InstanceState, NodeRecord, NodeState};
use cloudtik_model::report::Facts;
use cloudtik_model::spec::{Spec, WorkerType};
use cloudtik_model::{Actor, Epoch, Generation, InstanceId, Moment, MoneyPerHour, NodeId, NodeTypeName, Timestamp};

struct Bench {
    brain: Brain,
    now: u64,
    deleted: Vec<NodeId>,
    rebooted: Vec<NodeId>,
    created: usize,
    /// The number of the last question for a list.
    listed: u64,
    /// What comes of a dial-back, if it ever comes back.
    dials: Option<DialOutcome>,
}

fn node(n: u32) -> NodeId {
    NodeId::new(format!("w{n}")).expect("valid")
}

impl Bench {
    /// A head that starts with so many workers, recorded in the given state.
    fn new(workers: u32, life: &NodeState) -> Self {
        Self::with(workers, life, Config { visibility: 3_600_000, ..Config::default() })
    }

    fn with(workers: u32, life: &NodeState, config: Config) -> Self {
        let kind = NodeTypeName::new(NodeTypeName::DEFAULT).expect("valid");
        let shape = WorkerType { min: workers, max: workers, ..WorkerType::default() };
        let spec = Spec { revision: 1, workers: BTreeMap::from([(kind.clone(), shape)]), max_workers: workers, ..Spec::default() };
        let records = (1..=workers).map(|n| NodeRecord {
            life: life.clone(),
            instance: InstanceId::new(format!("i-{n}")).ok(),
            address: Some(format!("10.0.0.{n}")),
            revision: 1,
            ..NodeRecord::requested(node(n), Generation(1), kind.clone(), Timestamp(0))
        });
        let cluster = ClusterRecord { spec: Some(spec), ..ClusterRecord::default() };
        let moment = Moment { mono: 1_000, wall: Timestamp(0) };
        let brain = Brain::restore(config, Epoch(2), Memory { cluster, nodes: records.collect(), ..Memory::default() }, moment);
        let mut bench = Self {
            brain,
            now: 1_000,
            deleted: Vec::new(),
            rebooted: Vec::new(),
            created: 0,
            listed: 0,
            dials: Some(DialOutcome::TimedOut),
        };
        bench.tell(Input::Started);
        bench
    }

    fn tell(&mut self, input: Input) {
        let step = self.brain.handle(Moment { mono: self.now, wall: Timestamp(self.now) }, input);
        for action in step.actions {
            match action {
                Action::Delete { node, .. } => self.deleted.push(node),
                Action::Create { .. } => self.created += 1,
                Action::Reboot { node, generation, .. } => {
                    self.rebooted.push(node.clone());
                    self.tell(Input::Rebooted { node, generation, result: Ok(()) });
                }
                Action::ListInstances { number } => self.listed = number,
                Action::DialBack { node, generation, .. } => {
                    if let Some(outcome) = self.dials {
                        self.tell(Input::DialedBack { node, generation, outcome });
                    }
                }
                _ => {}
            }
        }
    }

    fn link(&mut self, n: u32) {
        let (session, facts) = (Session(u64::from(n)), Facts { health_port: 7071, ..Facts::default() });
        self.tell(Input::LinkOpened { session, node: node(n), generation: Generation(1), facts });
    }

    /// Time passes, in which only these workers are heard.
    fn pass(&mut self, milliseconds: u64, heard: &[u32]) {
        let end = self.now + milliseconds;
        let mut beat = self.now;
        while self.now < end {
            self.now = self.brain.next_wake().min(end).min(beat + 1_000).max(self.now + 1);
            if self.now >= beat + 1_000 {
                beat = self.now;
                for n in heard {
                    self.tell(Input::heartbeat(Session(u64::from(*n)), node(*n), self.now, None));
                }
            }
            self.tell(Input::Tick);
        }
    }
}

#[test]
fn one_silent_worker_among_many_is_replaced() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    bench.pass(10_000, &[1, 2, 3]);
    assert_eq!(bench.deleted, [], "gentler ways come first");
    bench.pass(10_000, &[1, 2, 3]);
    assert_eq!(bench.deleted, [node(4)]);
}

#[test]
fn a_machine_is_rebooted_once_before_it_is_replaced() {
    let config = Config { visibility: 3_600_000, reboot_time: Some(30_000), ..Config::default() };
    let mut bench = Bench::with(4, &NodeState::Ready, config);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    bench.pass(20_000, &[1, 2, 3]);
    assert_eq!((bench.rebooted.clone(), bench.deleted.clone()), (vec![node(4)], vec![]));
    bench.link(4);
    bench.pass(60_000, &[1, 2, 3, 4]);
    assert_eq!(bench.deleted, [], "it is back");
    // So soon after a reboot another one would not help for long.
    bench.pass(20_000, &[1, 2, 3]);
    assert_eq!((bench.rebooted, bench.deleted), (vec![node(4)], vec![node(4)]));
}

#[test]
fn many_silent_workers_are_never_replaced_for_silence() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    bench.pass(3_600_000, &[1, 2]);
    assert_eq!(bench.deleted, [], "two of four silent together point at the head's network");
    assert_eq!(bench.brain.snapshot().alarms.len(), 1);
}

#[test]
fn taking_a_silent_worker_away_says_nothing_of_the_other() {
    let mut bench = Bench::new(2, &NodeState::Ready);
    (1..=2).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2]);
    bench.pass(30_000, &[]);
    bench.tell(Input::Kill { request: Request::new(1, Actor::LOCAL), node: node(1) });
    bench.tell(Input::Deleted {
        node: node(1),
        generation: Generation(1),
        instance: InstanceId::new("i-1").expect("valid"),
        result: Ok(()),
    });
    bench.pass(3_600_000, &[]);
    assert_eq!(bench.deleted, [node(1)], "nobody was heard since both fell silent");
}

#[test]
fn a_node_of_a_type_that_is_gone_is_still_paid_for() {
    let mut bench = Bench::new(1, &NodeState::Ready);
    let kind = |name: &str, min, price| {
        (NodeTypeName::new(name).expect("valid"), WorkerType { min, max: min, price: Some(MoneyPerHour(price)), ..WorkerType::default() })
    };
    let spec = |revision, workers| Spec {
        revision,
        workers: BTreeMap::from([workers]),
        max_workers: 8,
        budget: Some(MoneyPerHour(1_000)),
        ..Spec::default()
    };
    bench.tell(Input::Specified { actor: Actor::LOCAL, spec: spec(2, kind("large", 2, 400)) });
    assert_eq!(bench.created, 2);
    // None of the large ones is gone when the small ones are wanted: 800 of 1,000 are spent.
    bench.tell(Input::Specified { actor: Actor::LOCAL, spec: spec(3, kind("small", 4, 150)) });
    assert_eq!(bench.created, 3);
}

#[test]
fn there_is_no_verdict_before_a_dial_back_has_come_back() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    bench.dials = None;
    bench.pass(60_000, &[1, 2, 3]);
    assert_eq!(bench.deleted, [], "silence alone is one witness");
    assert_eq!(bench.brain.node(&node(4)).map(|n| n.record.life.name()), Some(StateName::Suspect));
}

#[test]
fn a_verdict_waits_for_an_answer_that_may_be_on_its_way() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    // One has timed out, the next is under way when the node's time is over.
    bench.pass(3_000, &[1, 2, 3]);
    bench.dials = None;
    bench.pass(2_000, &[1, 2, 3]);
    let state = |bench: &Bench| bench.brain.node(&node(4)).map(|n| n.record.life.name());
    assert_eq!(state(&bench), Some(StateName::Suspect));
    bench.tell(Input::DialedBack { node: node(4), generation: Generation(1), outcome: DialOutcome::Answered });
    bench.dials = Some(DialOutcome::TimedOut);
    bench.pass(2_000, &[1, 2, 3]);
    assert_eq!(state(&bench), Some(StateName::Suspect), "it lived a moment ago");
    bench.pass(3_000, &[1, 2, 3]);
    assert_eq!(state(&bench), Some(StateName::Down));
}

#[test]
fn an_answer_counts_as_a_heartbeat_for_a_while_and_not_for_ever() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    let state = |bench: &Bench| bench.brain.node(&node(4)).map(|n| n.record.life.name());
    // Every third dial-back gets through, as over a link that loses most packets.
    for _ in 0..3 {
        bench.dials = Some(DialOutcome::Answered);
        bench.pass(1_000, &[1, 2, 3]);
        bench.dials = Some(DialOutcome::TimedOut);
        bench.pass(2_500, &[1, 2, 3]);
    }
    assert_eq!(state(&bench), Some(StateName::Suspect));
    bench.dials = Some(DialOutcome::Answered);
    bench.pass(10_000, &[1, 2, 3]);
    assert_eq!(state(&bench), Some(StateName::Down), "without heartbeats it is of no use");
}

#[test]
fn a_machine_of_the_user_s_own_is_never_deleted_for_silence() {
    let mut bench = Bench::with(4, &NodeState::Ready, Config { visibility: 3_600_000, machines_are_owned: true, ..Config::default() });
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    bench.pass(3_600_000, &[1, 2, 3]);
    assert_eq!(bench.deleted, []);
}

#[test]
fn a_list_that_was_asked_for_before_says_nothing_of_what_came_after() {
    let mut bench = Bench::with(2, &NodeState::Ready, Config { visibility: 0, ..Config::default() });
    (1..=2).for_each(|n| bench.link(n));
    bench.pass(2_000, &[1, 2]);
    // The second falls silent after the list was asked for; an answer without it, of whatever question, is too old.
    let asked = bench.listed;
    bench.pass(9_000, &[1]);
    for number in [asked.saturating_sub(1), asked] {
        bench.tell(Input::Listed { number, result: Ok(Vec::new()) });
    }
    assert_eq!(bench.deleted, []);
}

#[test]
fn a_verdict_of_an_earlier_head_is_no_reason_to_act() {
    let mut bench = Bench::new(3, &NodeState::Down { evidence: Vec::new() });
    bench.link(1);
    bench.link(2);
    bench.pass(15_000, &[1, 2]);
    assert_eq!(bench.deleted, [], "the third has the time that a restart of the head takes to come back from");
    bench.link(3);
    bench.pass(60_000, &[1, 2, 3]);
    assert_eq!(bench.deleted, []);
}

#[test]
fn a_paused_head_blames_nobody() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    // The head sleeps for ten minutes; then it is told first that time passed.
    bench.now += 600_000;
    bench.tell(Input::Tick);
    let states: Vec<_> = bench.brain.snapshot().nodes.iter().map(|n| n.record.life.name()).collect();
    assert!(states.iter().all(|s| matches!(s, StateName::Ready | StateName::Preparing)), "{states:?}");
}

#[test]
fn an_instance_that_nobody_knows_is_deleted_at_the_second_look() {
    let mut bench = Bench::new(1, &NodeState::Ready);
    bench.link(1);
    let instance = |id: &str, n: u32, generation| Instance {
        id: InstanceId::new(id).expect("valid"),
        node: node(n),
        generation: Generation(generation),
        address: None,
        state: InstanceState::Running,
    };
    // The present one, one of a node that there is not, and an older generation that should be gone.
    let list = vec![instance("i-1", 1, 1), instance("i-9", 9, 1), instance("i-0", 1, 0)];
    bench.tell(Input::Listed { number: bench.listed, result: Ok(list.clone()) });
    assert_eq!(bench.deleted, [], "one look may be a mistake");
    bench.pass(2_000, &[1]);
    bench.tell(Input::Listed { number: bench.listed, result: Ok(list) });
    bench.deleted.sort();
    assert_eq!(bench.deleted, [node(1), node(9)]);
    let life = bench.brain.snapshot().nodes[0].record.life.clone();
    assert!(!life.is_leaving(), "the present generation goes on: {life:?}");
}

#[test]
fn a_head_that_was_away_listens_before_it_judges() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(5_000, &[1, 2, 3, 4]);
    // The fourth is suspect, and the head sleeps just before its time is over; what it said meanwhile comes a moment later.
    bench.pass(3_900, &[1, 2, 3]);
    bench.now += 60_000;
    bench.tell(Input::Tick);
    bench.now += 300;
    bench.tell(Input::Tick);
    assert_eq!(bench.brain.node(&node(4)).map(|n| n.record.life.name()), Some(StateName::Suspect));
    bench.tell(Input::heartbeat(Session(4), node(4), bench.now, None));
    assert!(matches!(bench.brain.node(&node(4)).map(|n| n.record.life.name()), Some(StateName::Ready | StateName::Preparing)));
}

/// A worker that is scaled in while the call that makes its machine is under way: a list that was asked for before the answer
/// came does not show the machine, and it is forgotten.
#[test]
fn a_list_from_before_a_machine_was_made_says_nothing_of_it() {
    let mut bench = Bench::with(0, &NodeState::Requested, Config { visibility: 0, ..Config::default() });
    let kind = NodeTypeName::new(NodeTypeName::DEFAULT).expect("valid");
    let spec = |revision: u64, min: u32| {
        let shape = WorkerType { min, max: 1, ..WorkerType::default() };
        Input::Specified {
            actor: Actor::LOCAL,
            spec: Spec { revision, workers: BTreeMap::from([(kind.clone(), shape)]), max_workers: 1, ..Spec::default() },
        }
    };
    bench.tell(spec(2, 1));
    assert_eq!(bench.created, 1);
    bench.tell(Input::Listed { number: bench.listed, result: Ok(Vec::new()) });
    bench.pass(1_000, &[]);
    bench.tell(spec(3, 0));
    let listed = bench.listed;
    bench.pass(40_000, &[]);
    assert!(bench.listed > listed, "whether it exists is asked");
    let id = InstanceId::new("i-1").expect("valid");
    let instance = Instance { id: id.clone(), node: node(1), generation: Generation(1), address: None, state: InstanceState::Running };
    bench.tell(Input::Created { node: node(1), generation: Generation(1), result: Ok(instance) });
    let failure = Failure { message: "try later".to_owned(), retry_after: None, kind: FailureKind::Transient };
    bench.tell(Input::Deleted { node: node(1), generation: Generation(1), instance: id, result: Err(failure) });
    bench.tell(Input::Listed { number: bench.listed, result: Ok(Vec::new()) });
    assert_ne!(bench.brain.node(&node(1)).map(|n| n.record.life.clone()), Some(NodeState::Gone));
    bench.pass(10_000, &[]);
    assert_eq!(bench.deleted, [node(1), node(1)]);
}

/// Heartbeats that were received together count together, whichever of them comes first.
#[test]
fn heartbeats_that_are_handled_late_are_not_missing() {
    let mut bench = Bench::new(4, &NodeState::Ready);
    (1..=4).for_each(|n| bench.link(n));
    bench.pass(2_000, &[1, 2, 3, 4]);
    let since = bench.now;
    let received =
        (1..=3u32).map(|n| Heartbeat { session: Session(u64::from(n)), node: node(n), at: since + 3_000 + u64::from(n) * 100, load: None });
    // The moment is that of an earlier input, which waited with them.
    bench.now = since + 400;
    bench.tell(Input::Heartbeats { received: received.collect() });
    while bench.now < since + 4_000 {
        bench.now += 200;
        bench.tell(Input::Tick);
    }
    let states: Vec<_> = (1..=4).map(|n| bench.brain.node(&node(n)).map(|n| n.record.life.name())).collect();
    let is_missed = |state: &Option<StateName>| matches!(state, Some(StateName::Suspect | StateName::Down));
    assert_eq!(states.iter().map(is_missed).collect::<Vec<_>>(), [false, false, false, true], "{states:?}");
}

#[test]
fn a_node_that_cannot_be_deleted_is_shown_with_the_reason_until_it_is() {
    let mut bench = Bench::new(2, &NodeState::Ready);
    (1..=2).for_each(|n| bench.link(n));
    bench.tell(Input::Kill { request: Request::new(1, Actor::LOCAL), node: node(1) });
    let id = InstanceId::new("i-1").expect("valid");
    let failure = Failure { message: "/data is mounted".to_owned(), retry_after: None, kind: FailureKind::Permanent };
    bench.tell(Input::Deleted { node: node(1), generation: Generation(1), instance: id.clone(), result: Err(failure) });
    let shown = |bench: &Bench| bench.brain.node(&node(1)).and_then(|view| view.undeletable);
    assert_eq!(shown(&bench).as_deref(), Some("/data is mounted"));
    let snapshot = bench.brain.snapshot();
    assert!(
        snapshot.alarms.iter().any(|alarm| matches!(alarm, Alarm::Undeletable { node } if node.as_str() == "w1")),
        "{:?}",
        snapshot.alarms
    );
    bench.tell(Input::Deleted { node: node(1), generation: Generation(1), instance: id, result: Ok(()) });
    assert_eq!(shown(&bench), None);
    assert!(bench.brain.snapshot().alarms.iter().all(|alarm| !matches!(alarm, Alarm::Undeletable { .. })));
}

#[test]
fn a_throttled_list_is_not_asked_for_again_before_the_provider_allows_it() {
    let throttled = |retry_after| Failure { message: "rate exceeded".to_owned(), retry_after, kind: FailureKind::Throttled };
    let mut bench = Bench::new(1, &NodeState::Ready);
    bench.link(1);
    let first = bench.listed;
    bench.tell(Input::Listed { number: first, result: Err(throttled(Some(300_000))) });
    bench.pass(290_000, &[1]);
    assert_eq!(bench.listed, first, "too early");
    bench.pass(100_000, &[1]);
    assert!(bench.listed > first, "it is asked for once it may be");
}
