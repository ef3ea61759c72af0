use std::time::Duration;

use cloudtik_brain::{Brain, Config, Input, Memory};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::{Actor, Epoch, Generation, HeadSettings, InstanceId, NodeTypeName, ProviderDocument, ProviderKind};
use cloudtik_protocol::MAX_FRAME;
use prost::Message;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::*;
use crate::recorder::Recorder;
use crate::runner::effects::EffectQueue;
use crate::runner::{BrainRunner, system_clock};
use crate::store::{EmbeddedDatabase, Leadership};
use crate::telemetry::Telemetry;

/// As many as a cluster is to have at the most.
const MANY: u32 = 10_000;

struct Bench {
    board: StatusBoard,
    brain: BrainHandle,
    _directory: tempfile::TempDir,
}

fn worker(n: u32) -> NodeRecord {
    let id = NodeId::new(format!("w{n}")).expect("valid");
    let mut record = NodeRecord::requested(id, Generation(1), NodeTypeName::new("default").expect("valid"), Timestamp(1));
    record.life = NodeState::Ready;
    record.instance = Some(InstanceId::new(format!("w{n}.1")).expect("valid"));
    record.address = Some(format!("worker-{n}.compute.internal.example.org"));
    record
}

fn bench(workers: u32) -> Bench {
    let directory = tempfile::tempdir().expect("temporary directory");
    let database = EmbeddedDatabase::open(&directory.path().join("store"), true).expect("opens");
    let (_, store) = database.begin(b"secret", Epoch(0)).expect("begins");
    let memory = Memory { nodes: (1..=workers).map(worker).collect(), ..Memory::default() };
    let make = move |moment, _: Option<&mut Recorder>| Brain::restore(Config::default(), Epoch(1), memory, moment);
    let revisions = Revisions::load(&*store, b"secret").expect("loads");
    let (brain, _failure) = BrainRunner::start(make, None, store, EffectQueue::default(), Telemetry::default(), system_clock());
    let settings = HeadSettings {
        cluster: cloudtik_model::ClusterName::new("demo").expect("valid"),
        address: "127.0.0.1".to_owned(),
        ca: String::new(),
        head_token_sha256: String::new(),
        generation: Generation(1),
        artifacts: directory.path().join("artifacts"),
        unpacked: None,
        programs: None,
        instance: None,
        provider: ProviderDocument { kind: ProviderKind::new("local").expect("valid"), settings: Value::Null, site: Value::Null },
        heartbeat_ms: 1_000,
        record: false,
    };
    let settings = Settings::new(settings).expect("its provider is there");
    let artifacts = ArtifactStore::open(&settings.artifacts, TaskTracker::new()).expect("opens");
    let sources =
        Sources { settings: Arc::new(settings), started: Timestamp(1), brain: brain.clone(), revisions, artifacts, view: View::default() };
    Bench { board: StatusBoard::new(sources), brain, _directory: directory }
}

async fn kill(brain: &BrainHandle, id: &str) {
    let node = NodeId::new(id).expect("valid");
    brain.request(Actor::LOCAL, |request| Input::Kill { request, node }).await.expect("runs").expect("is killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_status_comes_in_pages_of_one_moment_that_fit_into_messages() {
    let bench = bench(MANY);
    let (mut request, mut ids, mut pages, mut bytes) = (wire::StatusRequest::default(), Vec::new(), 0, 0);
    loop {
        let page = bench.board.page(&request).await.expect("a page");
        assert!(page.encoded_len() < MAX_FRAME, "{} bytes", page.encoded_len());
        assert_eq!(page.summary.is_empty(), pages > 0, "the summary is on the first page");
        for node in &page.nodes {
            let node: Node = serde_json::from_slice(node).expect("a node");
            assert_eq!(node.state, "ready", "{} as it was when the first page was made", node.id);
            ids.push(node.id);
        }
        (pages, bytes) = (pages + 1, bytes + page.encoded_len());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        kill(&bench.brain, &format!("w{}", MANY - pages)).await;
    }
    let expected: Vec<NodeId> = (1..=MANY).map(|n| worker(n).id).collect();
    assert!(ids == expected, "every node once and in order: {} of {MANY}", ids.len());
    assert!(pages > 2, "{bytes} bytes in {pages} pages");

    let few = wire::StatusRequest { page_size: 7, ..Default::default() };
    assert_eq!(bench.board.page(&few).await.expect("a page").nodes.len(), 7);
    for (token, code) in [("nonsense", tonic::Code::InvalidArgument), ("999.0", tonic::Code::Aborted)] {
        let refused = bench.board.page(&wire::StatusRequest { page_token: token.to_owned(), page_size: 0 }).await;
        assert_eq!(refused.expect_err("no page").code(), code);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brain_answers_others_while_a_large_status_is_made() {
    let bench = bench(MANY);
    let board = bench.board.clone();
    let making = tokio::spawn(async move { board.fresh().await.expect("a picture").nodes.len() });
    let mut answered = 0;
    while !making.is_finished() {
        bench.brain.query(|_| ()).await.expect("runs");
        answered += 1;
    }
    assert_eq!(making.await.expect("ends"), MANY as usize);
    assert!(answered > 10, "{answered} others were answered meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_sent_what_changed_and_others_share_the_picture() {
    let bench = bench(MANY);
    let known = bench.board.fresh().await.expect("a picture");
    let first = known.changes_since(None);
    assert!(first.len() > 2 && first.iter().all(|part| part.encoded_len() < MAX_FRAME));
    assert_eq!(first.iter().map(|part| part.nodes.len()).sum::<usize>(), MANY as usize);
    let complete: Vec<bool> = first.iter().map(|part| part.complete).collect();
    assert_eq!(complete.iter().rposition(|whole| !whole), Some(first.len() - 2), "only the last part completes it: {complete:?}");

    kill(&bench.brain, "w5").await;
    let (one, two) = tokio::join!(bench.board.after(&known, BOUND), bench.board.after(&known, BOUND));
    let (one, two) = (one.expect("a picture"), two.expect("a picture"));
    assert!(Arc::ptr_eq(&one, &two), "made once for both");
    let changes = one.changes_since(Some(&known));
    assert_eq!(changes.len(), 1);
    let changed: Vec<Node> = changes[0].nodes.iter().map(|node| serde_json::from_slice(node).expect("a node")).collect();
    assert_eq!(changed.iter().map(|node| (node.id.as_str(), node.state.as_str())).collect::<Vec<_>>(), [("w5", "terminating")]);
    assert_eq!(changes[0].heartbeat_ages.len(), MANY as usize);

    let again = bench.board.fresh().await.expect("a picture");
    assert!(again.changes_since(Some(&one)).is_empty(), "time passing is no news");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_before_a_status_is_asked_for_is_seen_in_it() {
    const WORKERS: u32 = 50;
    let bench = bench(WORKERS);
    // Others ask all the time, so that there always is a picture that is being made.
    let (others, is_over) = (bench.board.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stop = is_over.clone();
    let asking = tokio::spawn(async move {
        while !stop.load(Ordering::SeqCst) {
            others.fresh().await.expect("a picture");
        }
    });
    for n in 1..=WORKERS {
        kill(&bench.brain, &format!("w{n}")).await;
        let status = bench.board.fresh().await.expect("a picture").status();
        let state = |id: String| status.nodes.iter().find(|node| node.id.as_str() == id).map(|node| node.state.clone());
        assert_eq!(state(format!("w{n}")).as_deref(), Some("terminating"));
    }
    is_over.store(true, Ordering::SeqCst);
    asking.await.expect("ends");
}

/// A bound for what must come; far above what it takes.
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn endpoints_that_are_left_out_are_counted() {
    let endpoint = |n| cloudtik_model::status::Endpoint { name: "UI".to_owned(), url: format!("http://10.0.0.1:{n}") };
    let runtime = |count| Runtime {
        name: cloudtik_model::RuntimeName::new("web").expect("valid"),
        version: "1".to_owned(),
        state: "ready".to_owned(),
        endpoints: (0..count).map(endpoint).collect(),
        endpoints_left_out: 0,
    };
    for (count, left_out) in [(MAX_ENDPOINTS, 0), (MAX_ENDPOINTS + 7, 7)] {
        let mut bounded = runtime(count);
        bound(&mut bounded);
        assert_eq!((bounded.endpoints.len(), bounded.endpoints_left_out), (MAX_ENDPOINTS, left_out));
    }
}
