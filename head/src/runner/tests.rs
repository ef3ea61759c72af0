use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloudtik_brain::{Config, GoalOrder, Memory};
use cloudtik_model::event::{Event, What};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::report::Facts;
use cloudtik_model::{Epoch, Generation, InstanceId, NodeTypeName};

use super::*;
use crate::store::{EmbeddedDatabase, Leadership};

/// A bound for what must come; far above what it takes.
const BOUND: Duration = Duration::from_secs(30);

struct Bench {
    telemetry: Telemetry,
    brain: BrainHandle,
    effects: EffectQueue,
    now: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
}

fn node(n: u32) -> NodeId {
    NodeId::new(format!("w{n}")).expect("valid")
}

/// A brain with so many ready workers, on a clock that the test moves.
fn bench(workers: u32) -> Bench {
    let directory = tempfile::tempdir().expect("temporary directory");
    let database = EmbeddedDatabase::open(&directory.path().join("store"), true).expect("opens");
    let (remembered, store) = database.begin(b"secret", Epoch(0)).expect("begins");
    let epoch = remembered.epoch;
    let nodes = (1..=workers).map(|n| {
        let mut record = NodeRecord::requested(node(n), Generation(1), NodeTypeName::new("default").expect("valid"), Timestamp(0));
        record.life = NodeState::Ready;
        record.instance = Some(InstanceId::new(format!("w{n}.1")).expect("valid"));
        record
    });
    let memory = Memory { nodes: nodes.collect(), ..Memory::default() };
    let now = Arc::new(AtomicU64::new(0));
    let own = now.clone();
    let clock: Clock = Arc::new(move || Moment { mono: own.load(Ordering::SeqCst), wall: Timestamp(own.load(Ordering::SeqCst)) });
    let effects = EffectQueue::default();
    let make = move |moment, _: Option<&mut Recorder>| Brain::restore(Config::default(), epoch, memory, moment);
    let telemetry = Telemetry::default();
    let (brain, _failure) = BrainRunner::start(make, None, store, effects.clone(), telemetry.clone(), clock);
    Bench { telemetry, brain, effects, now, _directory: directory }
}

/// A query that keeps the brain from everything else until it is released.
struct Busy {
    go_on: std::sync::mpsc::Sender<()>,
    query: tokio::task::JoinHandle<Result<(), Stopped>>,
}

impl Busy {
    async fn keep(brain: &BrainHandle) -> Self {
        let (entered, is_busy) = oneshot::channel();
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let brain = brain.clone();
        let query = tokio::spawn(async move {
            brain
                .query(move |_| {
                    let _ = entered.send(());
                    let _ = held.recv();
                })
                .await
        });
        is_busy.await.expect("the query runs");
        Self { go_on, query }
    }

    async fn release(self) {
        self.go_on.send(()).expect("the query waits");
        answered("the busy query", async { self.query.await.expect("it does not panic") }).await;
    }
}

async fn answered<T>(what: &str, answer: impl Future<Output = Result<T, Stopped>>) -> T {
    tokio::time::timeout(BOUND, answer).await.unwrap_or_else(|_| panic!("no answer: {what}")).expect("the runner runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brain_answers_although_no_effect_is_taken() {
    let bench = bench(0);
    for n in 1..=5_000 {
        let input = Input::LinkOpened { session: Session(n), node: node(1), generation: Generation(1), facts: Facts::default() };
        tokio::time::timeout(BOUND, bench.brain.send(input)).await.expect("the inbox is emptied");
    }
    answered("after 5,000 effects", bench.brain.query(|_| ())).await;
    let mut refused = 0;
    while refused < 5_000 {
        let effect = tokio::time::timeout(BOUND, bench.effects.next()).await.expect("effects are kept").expect("the queue is open");
        refused += u64::from(matches!(effect.action, Action::CloseLink { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_not_taken_for_missed_heartbeats() {
    let bench = bench(4);
    for n in 1..=4 {
        let input = Input::LinkOpened { session: Session(n.into()), node: node(n), generation: Generation(1), facts: Facts::default() };
        bench.brain.send(input).await;
    }
    let workers = |brain: &Brain| {
        let lives = (1..=4).filter_map(|n| brain.node(&node(n))).map(|view| (view.record.since, view.record.life));
        lives.collect::<Vec<_>>()
    };
    let before = answered("the links are open", bench.brain.query(workers)).await;
    // The brain is busy while twelve seconds of heartbeats and other inputs arrive; one worker is silent.
    let busy = Busy::keep(&bench.brain).await;
    for second in 1..=12 {
        for n in 1..=3 {
            bench.now.store(second * 1_000 - 100, Ordering::SeqCst);
            bench.brain.heartbeat(Session(n.into()), &node(n), None);
        }
        bench.now.store(second * 1_000, Ordering::SeqCst);
        bench
            .brain
            .send(Input::Noted {
                actor: cloudtik_model::Actor::LOCAL,
                node: node(1),
                what: What::Exec { program: format!("second {second}") },
            })
            .await;
    }
    busy.release().await;
    let after = answered("the backlog", bench.brain.query(workers)).await;
    assert_eq!(after[..3], before[..3], "since then none of them was anything else, not even for a moment");
    assert!(matches!(after[3].1, NodeState::Suspect { .. } | NodeState::Down { .. }), "{:?}", after[3]);
}

#[test]
fn of_several_heartbeats_the_latest_counts_and_no_load_is_lost() {
    let lane = HeartbeatLane::default();
    let load = Load { cpu: 500, ..Load::default() };
    lane.put(Session(2), &node(2), 10, Some(load));
    lane.put(Session(1), &node(1), 20, None);
    lane.put(Session(2), &node(2), 30, None);
    let taken: Vec<_> = lane.take().into_iter().map(|h| (h.session.0, h.at, h.load)).collect();
    assert_eq!(taken, [(1, 20, None), (2, 30, Some(load))]);
    assert!(lane.take().is_empty());
}

#[tokio::test]
async fn of_several_goals_for_a_node_the_last_is_kept_in_its_place() {
    let queue = EffectQueue::default();
    let goal = |n, version| Effect {
        action: Action::SendGoal {
            node: node(n),
            order: GoalOrder { session: Session(1), version, revision: 1, start: BTreeSet::new(), drain: false },
        },
        node: None,
    };
    queue.push(goal(1, 1));
    queue.push(goal(2, 1));
    queue.push(goal(1, 2));
    queue.close();
    let mut order = Vec::new();
    while let Some(Effect { action: Action::SendGoal { node, order: of }, .. }) = queue.next().await {
        order.push((node, of.version));
    }
    assert_eq!(order, [(node(1), 2), (node(2), 1)]);
}

/// A store that only notes what each commit consists of.
#[derive(Debug, Default)]
struct Commits(Mutex<Vec<Vec<Record>>>);

impl Store for Commits {
    fn commit(&self, records: &[Record]) -> Result<u64, crate::store::Error> {
        self.0.lock().expect("not poisoned").push(records.to_vec());
        Ok(0)
    }

    fn events(&self, _: u64, _: usize, _: Option<&NodeId>) -> Result<Vec<cloudtik_model::event::Event>, crate::store::Error> {
        Ok(Vec::new())
    }

    fn put_revision(&self, _: u64, _: &[u8]) -> Result<(), crate::store::Error> {
        Ok(())
    }

    fn forget_revisions_before(&self, _: u64) -> Result<(), crate::store::Error> {
        Ok(())
    }

    fn grants(&self) -> Result<Vec<cloudtik_brain::access::GrantRecord>, crate::store::Error> {
        Ok(Vec::new())
    }

    fn revisions(&self) -> Result<Vec<(u64, Vec<u8>)>, crate::store::Error> {
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_stored_in_commits_of_bounded_size_and_in_order() {
    let commits = Arc::new(Commits::default());
    let make = |moment, _: Option<&mut Recorder>| Brain::restore(Config::default(), Epoch(1), Memory::default(), moment);
    let effects = EffectQueue::default();
    let (brain, _failure) = BrainRunner::start(make, None, commits.clone(), effects, Telemetry::default(), system_clock());
    let busy = Busy::keep(&brain).await;
    // Each is an event.
    for n in 0..2_000 {
        brain
            .send(Input::Noted {
                actor: cloudtik_model::Actor::LOCAL,
                node: NodeId::head(),
                what: What::Exec { program: format!("note {n}") },
            })
            .await;
    }
    busy.release().await;
    answered("the backlog", brain.query(|_| ())).await;
    let commits = commits.0.lock().expect("not poisoned").clone();
    let sizes: Vec<_> = commits.iter().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| *size <= MAX_RECORDS), "{sizes:?}");
    let notes = commits.into_iter().flatten().filter_map(|record| match record {
        Record::Event(Event { what: What::Exec { program }, .. }) => Some(program),
        _ => None,
    });
    assert_eq!(notes.collect::<Vec<_>>(), (0..2_000).map(|n| format!("note {n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_of_each_heartbeat_is_counted() {
    let bench = bench(2);
    for n in 1..=2 {
        let input = Input::LinkOpened { session: Session(n.into()), node: node(n), generation: Generation(1), facts: Facts::default() };
        bench.brain.send(input).await;
    }
    answered("the links are open", bench.brain.query(|_| ())).await;
    let busy = Busy::keep(&bench.brain).await;
    bench.brain.heartbeat(Session(1), &node(1), None);
    bench.now.store(1_600, Ordering::SeqCst);
    bench.brain.heartbeat(Session(2), &node(2), None);
    bench.now.store(2_000, Ordering::SeqCst);
    busy.release().await;
    answered("the heartbeats are handled", bench.brain.query(|_| ())).await;
    let mut text = cloudtik_protocol::exposition::Exposition::default();
    bench.telemetry.render(&mut text);
    let text = text.finish();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} is missing: {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
    };
    // One waited for 0.4 s and one for 2 s.
    let bucket = |le: &str| value(&format!("cloudtik_head_heartbeat_wait_seconds_bucket{{le=\"{le}\"}}"));
    assert_eq!([bucket("0.25"), bucket("0.5"), bucket("1"), bucket("2.5"), bucket("+Inf")], [0.0, 1.0, 1.0, 2.0, 2.0], "{text}");
    assert_eq!(value("cloudtik_head_heartbeat_wait_seconds_count"), 2.0);
    assert!((value("cloudtik_head_heartbeat_wait_seconds_sum") - 2.4).abs() < 1e-9, "{text}");
}
