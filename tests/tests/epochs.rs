//! A message of an older leadership is refused by a real agent, and an older goal does not replace a newer one. The head is
//! played by the test, which says what no head would.

use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::{ClusterName, Epoch, Generation, NodeId, NodeTypeName, goal};
use cloudtik_protocol::clock::ClusterClock;
use cloudtik_protocol::convert::proof_to_wire;
use cloudtik_protocol::pki::{self, INTERMEDIATE_LIFETIME, Intermediate, Root};
use cloudtik_protocol::tls::{self, ServerIdentity};
use cloudtik_protocol::transport::serve_tls;
use cloudtik_protocol::wire::agent_frame::Topic;
use cloudtik_protocol::wire::head_frame::Topic as HeadTopic;
use cloudtik_protocol::wire::{bus_server, join_server};
use cloudtik_protocol::{PROTOCOL_VERSION, wire};
use cloudtik_tests::{programs, until};
use rcgen::KeyPair;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const HOUR: Duration = Duration::from_secs(3600);
const CLUSTER: &str = "played";

/// What the agent said, and the way to it on its present link.
#[derive(Default)]
struct Seen {
    /// As the node joined.
    address: String,
    links: usize,
    acknowledged: Vec<(u64, String)>,
    to_agent: Option<mpsc::Sender<Result<wire::HeadFrame, Status>>>,
}

#[derive(Clone)]
struct Head {
    intermediate: Arc<Intermediate>,
    seen: Arc<Mutex<Seen>>,
    /// Of the next welcome.
    epoch: Arc<Mutex<u64>>,
    /// Whether the next welcome proves its epoch.
    proven: Arc<Mutex<bool>>,
}

#[tonic::async_trait]
impl join_server::Join for Head {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        let join = request.into_inner();
        let node = NodeId::new(join.node).expect("valid");
        self.seen.lock().expect("no panic").address.clone_from(&join.address);
        let address = join.address.parse().ok();
        let chain =
            self.intermediate.sign_node(&join.certificate_request, &node, Generation(join.generation), address, HOUR).expect("signs");
        Ok(Response::new(wire::JoinReply { chain: chain.iter().map(|c| c.to_vec().into()).collect() }))
    }
}

#[tonic::async_trait]
impl bus_server::Bus for Head {
    type ConnectStream = ReceiverStream<Result<wire::HeadFrame, Status>>;
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::SessionFrame, Status>> + Send>>;

    async fn connect(&self, request: Request<Streaming<wire::AgentFrame>>) -> Result<Response<Self::ConnectStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        let epoch = *self.epoch.lock().expect("no panic");
        let epoch_proof = self.proven.lock().expect("no panic").then(|| {
            let proof = self.intermediate.prove_epoch(Epoch(epoch)).expect("signs");
            proof_to_wire(&proof)
        });
        let welcome =
            wire::Welcome { protocol_version: PROTOCOL_VERSION, head_version: "played".to_owned(), epoch_proof, ..Default::default() };
        let _ = sender.try_send(Ok(wire::HeadFrame { epoch, topic: Some(HeadTopic::Welcome(welcome)) }));
        let seen = self.seen.clone();
        {
            let mut seen = seen.lock().expect("no panic");
            seen.links += 1;
            seen.to_agent = Some(sender);
        }
        let mut frames = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                if let Some(Topic::GoalAck(ack)) = frame.topic {
                    seen.lock().expect("no panic").acknowledged.push((ack.version, ack.refusal));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn session(&self, _: Request<Streaming<wire::SessionFrame>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

impl Head {
    fn send(&self, epoch: u64, topic: Option<HeadTopic>) {
        let sender = self.seen.lock().expect("no panic").to_agent.clone().expect("linked");
        let _ = sender.try_send(Ok(wire::HeadFrame { epoch, topic }));
    }

    fn goal(&self, epoch: u64, version: u64) {
        let document = goal::Goal {
            node: NodeId::new("w1").expect("valid"),
            generation: Generation(1),
            epoch: Epoch(epoch),
            version,
            artifacts: Vec::new(),
            services: Vec::new(),
        };
        let document = serde_json::to_vec(&document).expect("a document").into();
        self.send(epoch, Some(HeadTopic::Goal(wire::GoalDocument { version, document })));
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stored_version(home: &Path) -> Option<u64> {
    let goal: serde_json::Value = serde_json::from_slice(&fs::read(home.join("goal.json")).ok()?).ok()?;
    goal["version"].as_u64()
}

/// A played head, and an agent that has its bootstrap and runs.
struct Play {
    head: Head,
    directory: tempfile::TempDir,
    stop: CancellationToken,
    _agent: Running,
}

/// Plays a head at an address; its agent listens where it is told to, or chooses.
async fn play(at: &str, listens_on: Option<&str>) -> Play {
    tls::install_crypto();
    let cluster = ClusterName::new(CLUSTER).expect("valid");
    let root = Root::generate(&cluster).expect("makes");
    let key = KeyPair::generate().expect("key");
    let request = pki::certificate_request(&key).expect("request");
    let certificate = root.sign_intermediate(&request, INTERMEDIATE_LIFETIME).expect("signs");
    let intermediate = Intermediate::new(&cluster, key, certificate);
    let listener = tokio::net::TcpListener::bind(at).await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let own = intermediate.head(&[address.ip()], HOUR).expect("makes");
    let identity = ServerIdentity::new(&cluster, root.certificate(), &own, &ClusterClock::default()).expect("usable");
    let head = Head {
        intermediate: Arc::new(intermediate),
        seen: Arc::default(),
        epoch: Arc::new(Mutex::new(5)),
        proven: Arc::new(Mutex::new(true)),
    };
    let routes =
        tonic::service::Routes::new(bus_server::BusServer::new(head.clone())).add_service(join_server::JoinServer::new(head.clone()));
    let stop = CancellationToken::new();
    tokio::spawn(serve_tls(listener, identity, routes.into_axum_router(), |_| {}, stop.clone()));

    let directory = tempfile::tempdir().expect("a temporary directory");
    let bootstrap = Bootstrap {
        cluster,
        node: NodeId::new("w1").expect("valid"),
        generation: Generation(1),
        node_type: NodeTypeName::new(NodeTypeName::DEFAULT).expect("valid"),
        head: address.to_string(),
        ca: root.certificate_pem(),
        token: "token".to_owned(),
        address: listens_on.map(str::to_owned),
        resources: None,
        pinned: Vec::new(),
        artifacts: None,
        heartbeat_ms: 1_000,
        dead_man_ms: None,
        power_off: Vec::new(),
        agents: Vec::new(),
        made_at: 0,
    };
    fs::write(directory.path().join("bootstrap.json"), serde_json::to_vec(&bootstrap).expect("a document")).expect("writes");
    let mut agent = Command::new(programs().join("cloudtik-agent"));
    let agent = Running(agent.args(["run", "--home"]).arg(directory.path()).stderr(Stdio::null()).spawn().expect("runs"));
    Play { head, directory, stop, _agent: agent }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_leadership_is_refused_and_an_older_goal_replaces_nothing() {
    let play = play("127.251.9.1:0", Some("127.251.9.2")).await;
    let (head, home) = (&play.head, play.directory.path());
    let links = || head.seen.lock().expect("no panic").links;
    let within = Duration::from_secs(10);
    tokio::task::block_in_place(|| {
        until("a link", within, || (links() == 1).then_some(()));
        head.goal(5, 20);
        until("the goal", within, || (stored_version(home) == Some(20)).then_some(()));

        // The same leadership, an older goal: acknowledged as known, and not taken.
        head.goal(5, 19);
        head.goal(5, 21);
        until("the newer goal", within, || (stored_version(home) == Some(21)).then_some(()));
        head.goal(5, 20);
        // A topic that this agent does not know is no harm.
        head.send(5, None);
        until("its answer", within, || head.seen.lock().expect("no panic").acknowledged.iter().filter(|(v, _)| *v == 20).nth(1).map(drop));
        assert_eq!(stored_version(home), Some(21));

        // An older leadership on the link that stands: refused, and the link with it.
        assert_eq!(links(), 1);
        head.goal(4, 99);
        until("another link", within, || (links() >= 2).then_some(()));
        assert_eq!(stored_version(home), Some(21));

        // An older leadership altogether: no link is kept to it.
        *head.epoch.lock().expect("no panic") = 4;
        let before = links();
        head.send(4, None);
        until("refusal after refusal", within, || (links() >= before + 3).then_some(()));
        head.goal(4, 100);
        assert_eq!(stored_version(home), Some(21));

        // One that says to be later and does not prove it: no link is kept, and nothing is remembered.
        let stored_epoch = || serde_json::from_slice::<serde_json::Value>(&fs::read(home.join("epoch")).ok()?).ok()?["epoch"].as_u64();
        *head.proven.lock().expect("no panic") = false;
        *head.epoch.lock().expect("no panic") = u64::MAX;
        let before = links();
        until("refusal after refusal", within, || (links() >= before + 3).then_some(()));
        assert_eq!(stored_epoch(), Some(5));

        // A later one that proves it is believed, and remembered.
        *head.epoch.lock().expect("no panic") = 6;
        *head.proven.lock().expect("no panic") = true;
        until("the later epoch on the disk", within, || (stored_epoch() == Some(6)).then_some(()));
        head.goal(6, 22);
        until("its goal", within, || (stored_version(home) == Some(22)).then_some(()));
    });
    play.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_finds_its_head_at_an_ipv6_address_and_takes_one_of_that_kind() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        cloudtik_tests::skipped("an IPv6 address needs a kernel with IPv6");
        return;
    }
    let play = play("[::1]:0", None).await;
    let within = Duration::from_secs(10);
    tokio::task::block_in_place(|| {
        until("a link", within, || (play.head.seen.lock().expect("no panic").links == 1).then_some(()));
        play.head.goal(5, 20);
        until("the goal", within, || (stored_version(play.directory.path()) == Some(20)).then_some(()));
    });
    let address = play.head.seen.lock().expect("no panic").address.clone();
    assert_eq!(address, "::1");
    play.stop.cancel();
}
