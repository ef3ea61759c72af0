//! What a head costs for many agents: `cargo xtask bench fleet --agents N`.
//!
//! The agents are tasks of this program, each with a key, a certificate and a stream over mutual TLS of its own, and a
//! heartbeat a second; the head is the released program in a process of its own. The machines come from an external provider
//! whose executable is this program too: it hands each bootstrap payload over as a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cloudtik_model::Bytes;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::report::Facts;
use cloudtik_protocol::clock::ClusterClock;
use cloudtik_protocol::pki::{self, Identity};
use cloudtik_protocol::wire::agent_frame::Topic as AgentTopic;
use cloudtik_protocol::wire::bus_client::BusClient;
use cloudtik_protocol::wire::head_frame::Topic as HeadTopic;
use cloudtik_protocol::wire::join_client::JoinClient;
use cloudtik_protocol::{MAX_FRAME, PROTOCOL_VERSION, tls, transport, wire};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_stream::wrappers::ReceiverStream;

/// Between two heartbeats of an agent.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the agents may take to be there, or to be back.
const PATIENCE: Duration = Duration::from_secs(300);
/// After the last agent has come, before the head is watched; and how long it is watched.
const SETTLING: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_secs(20);
/// Pauses before an agent tries again, as real agents make them.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Handshakes under way at once in this program: it shares the machine with the head.
const HANDSHAKES: usize = 32;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["provider", directory] => provide(Path::new(directory)),
        [programs, agents] => {
            let agents = agents.parse().expect("the number of agents");
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
            runtime.block_on(measure(Path::new(programs), agents));
        }
        // `cargo test` and `cargo bench` of the workspace: nothing to compare.
        _ => println!("run it by `cargo xtask bench fleet --agents N`"),
    }
}

// ---------------------------------------------------------------- the provider

/// The provider's executable: a machine is the file of its bootstrap payload.
fn provide(directory: &Path) {
    let path = |id: &str| directory.join(format!("{id}.json"));
    let instance = |id: &str| {
        let (node, generation) = id.rsplit_once('.').expect("an id has a generation");
        let number: u32 = node.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
        let address = format!("127.{}.{}.{}", 220 + number / 62_500, number / 250 % 250, number % 250 + 2);
        json!({ "id": id, "node": node, "generation": generation.parse::<u64>().expect("a number"), "address": address, "state": "running" })
    };
    let id_of = |node: &Value| format!("{}.{}", node["node"].as_str().expect("a node"), node["generation"]);
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.expect("a line")).expect("is JSON");
        let nodes = || request["nodes"].as_array().expect("nodes").iter();
        let result = match request["call"].as_str().expect("a call") {
            "start" => json!({ "protocol": 1, "capabilities": { "batch": 100, "visibility_ms": 0 } }),
            "create" => {
                let make = |node: &Value| {
                    let (id, draft) = (id_of(node), directory.join(".draft"));
                    fs::write(&draft, node["bootstrap"].to_string()).expect("writes");
                    fs::rename(&draft, path(&id)).expect("renames");
                    json!({ "instance": instance(&id) })
                };
                json!({ "items": nodes().map(make).collect::<Vec<_>>() })
            }
            "delete" => {
                nodes().for_each(|node| drop(fs::remove_file(path(&id_of(node)))));
                json!({ "items": nodes().map(|_| json!({})).collect::<Vec<_>>() })
            }
            "list" => json!({ "instances": machines(directory).iter().map(|id| instance(id)).collect::<Vec<_>>() }),
            _ => json!({ "instance": instance(request["instance"].as_str().expect("an instance")) }),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", json!({ "id": request["id"], "result": result })).and_then(|()| out.flush()).expect("writes");
    }
}

fn machines(directory: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(directory).expect("reads").flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect()
}

// ---------------------------------------------------------------- the agents

/// What all agents count together.
#[derive(Default)]
struct Counted {
    linked: AtomicU64,
    heartbeats: AtomicU64,
    /// Links that were opened, ever.
    opened: AtomicU64,
}

struct Agent {
    bootstrap: Bootstrap,
    address: String,
    key: rcgen::KeyPair,
    root: rustls::pki_types::CertificateDer<'static>,
    clock: ClusterClock,
    counted: Arc<Counted>,
    handshakes: Arc<Semaphore>,
}

impl Agent {
    fn new(bootstrap: Bootstrap, address: String, counted: Arc<Counted>, handshakes: Arc<Semaphore>) -> Self {
        let root = pki::parse_chain(bootstrap.ca.as_bytes()).expect("is PEM").remove(0);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("makes");
        Self { bootstrap, address, key, root, clock: ClusterClock::default(), counted, handshakes }
    }

    /// Joins, and keeps a link up for ever.
    async fn run(self, identities: mpsc::Sender<Arc<rustls::ClientConfig>>) {
        let mut pause = FIRST_PAUSE;
        let mut config = None;
        loop {
            let opened = self.counted.opened.load(Ordering::Relaxed);
            let result = self.once(&mut config, &identities).await;
            if let Err(error) = &result
                && std::env::var_os("CLOUDTIK_BENCH_ERRORS").is_some()
            {
                eprintln!("{}: {error}", self.bootstrap.node);
            }
            if self.counted.opened.load(Ordering::Relaxed) > opened {
                pause = FIRST_PAUSE;
            }
            sleep(pause.mul_f64(0.5 + f64::from(pki::random::<1>()[0]) / 255.0)).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    async fn dial(&self, config: Arc<rustls::ClientConfig>) -> Result<tonic::transport::Channel, String> {
        let _permit = self.handshakes.acquire().await;
        let name = tls::server_name(&pki::head_name(&self.bootstrap.cluster));
        let from = self.address.parse().ok();
        transport::dial(&self.bootstrap.head, from, &name, config).await.map_err(|e| format!("{e:?}"))
    }

    async fn join(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        let config = tls::node_client_config(&self.root, None, &self.clock).map_err(|e| e.to_string())?;
        let request = wire::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            node: self.bootstrap.node.to_string(),
            generation: self.bootstrap.generation.0,
            token: self.bootstrap.token.clone(),
            certificate_request: pki::certificate_request(&self.key).map_err(|e| e.to_string())?.into(),
            address: self.address.clone(),
            agent_version: "fleet".to_owned(),
        };
        let reply = JoinClient::new(self.dial(config).await?).join(request).await.map_err(|e| e.to_string())?.into_inner();
        let chain = reply.chain.into_iter().map(|der| rustls::pki_types::CertificateDer::from(der.to_vec())).collect();
        let identity = Identity { chain, key: pki::private_key(&self.key) };
        tls::node_client_config(&self.root, Some(&identity), &self.clock).map_err(|e| e.to_string())
    }

    async fn once(
        &self,
        config: &mut Option<Arc<rustls::ClientConfig>>,
        identities: &mpsc::Sender<Arc<rustls::ClientConfig>>,
    ) -> Result<(), String> {
        let config = match config {
            Some(config) => config.clone(),
            None => {
                let joined = self.join().await?;
                let _ = identities.try_send(joined.clone());
                config.insert(joined).clone()
            }
        };
        let channel = self.dial(config).await?;
        let (outgoing, frames) = mpsc::channel(8);
        let facts = Facts {
            agent_version: "fleet".to_owned(),
            hostname: self.bootstrap.node.to_string(),
            cpus: 1,
            memory: Bytes(1 << 30),
            address: self.address.clone(),
            home: "/var/lib/fleet".to_owned(),
            ..Facts::default()
        };
        let hello = wire::Hello {
            protocol_version: PROTOCOL_VERSION,
            node: self.bootstrap.node.to_string(),
            generation: self.bootstrap.generation.0,
            epoch: 0,
            goal_version: 0,
            facts: serde_json::to_vec(&facts).map_err(|e| e.to_string())?.into(),
            epoch_proof: None,
        };
        let send = async |topic| outgoing.send(wire::AgentFrame { topic: Some(topic) }).await.map_err(|_| "closed".to_owned());
        send(AgentTopic::Hello(hello)).await?;
        send(AgentTopic::Report(wire::Report { complete: true, ..Default::default() })).await?;
        let mut client = BusClient::new(channel).max_decoding_message_size(MAX_FRAME);
        let mut incoming = client.connect(ReceiverStream::new(frames)).await.map_err(|e| e.to_string())?.into_inner();
        let mut ticks = interval(HEARTBEAT);
        let mut sequence = 0;
        let mut linked = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    sequence += 1;
                    send(AgentTopic::Heartbeat(wire::Heartbeat { sequence, load: None })).await?;
                    self.counted.heartbeats.fetch_add(1, Ordering::Relaxed);
                }
                frame = incoming.message() => match frame.map_err(|e| e.to_string())?.ok_or("the head closed the stream")?.topic {
                    Some(HeadTopic::Welcome(_)) => linked = Some(Linked::new(&self.counted)),
                    Some(HeadTopic::Goal(goal)) => {
                        send(AgentTopic::GoalAck(wire::GoalAck { version: goal.version, refusal: String::new() })).await?;
                    }
                    Some(HeadTopic::Goodbye(goodbye)) => {
                        drop(linked);
                        return Err(goodbye.reason);
                    }
                    _ => {}
                },
            }
        }
    }
}

/// One link that stands.
struct Linked(Arc<Counted>);

impl Linked {
    fn new(counted: &Arc<Counted>) -> Self {
        counted.linked.fetch_add(1, Ordering::Relaxed);
        counted.opened.fetch_add(1, Ordering::Relaxed);
        Self(counted.clone())
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.0.linked.fetch_sub(1, Ordering::Relaxed);
    }
}

// ---------------------------------------------------------------- the figures

/// A head of its own, gone with it.
struct Head {
    programs: PathBuf,
    home: tempfile::TempDir,
}

impl Head {
    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.programs.join("cloudtik"));
        command.args(arguments).env("CLOUDTIK_HOME", self.home.path().join("state")).stdin(Stdio::null());
        let output = command.output().expect("cloudtik runs");
        assert!(output.status.success(), "cloudtik {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn machines(&self) -> PathBuf {
        self.home.path().join("machines")
    }

    /// The head's process.
    fn pid(&self) -> Option<i32> {
        let state = self.home.path().join("state").display().to_string();
        let is_head = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            matches!(&words[..], [_, option, directory, ..] if option == "--state" && directory.starts_with(&state))
        };
        let names = fs::read_dir("/proc").expect("reads").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        names.into_iter().find(is_head)
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        let mut command = Command::new(self.programs.join("cloudtik"));
        let state = self.home.path().join("state");
        let _ = command.args(["down", "fleet", "--yes", "--timeout", "60"]).env("CLOUDTIK_HOME", state).output();
    }
}

/// Processor time that a process has used, and bytes that it has resident.
fn used(pid: i32) -> (Duration, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the head runs");
    let fields: Vec<u64> =
        stat.rsplit_once(')').expect("a name").1.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    let ticks = Duration::from_millis((fields[10] + fields[11]) * 10);
    let pages: u64 = fs::read_to_string(format!("/proc/{pid}/statm"))
        .expect("the head runs")
        .split(' ')
        .nth(1)
        .expect("pages")
        .parse()
        .expect("a number");
    (ticks, pages * 4096)
}

/// The head's metrics, asked for as a node.
async fn metrics(head: &str, cluster: &cloudtik_model::ClusterName, config: Arc<rustls::ClientConfig>) -> BTreeMap<String, f64> {
    let stream = TcpStream::connect(head).await.expect("connects");
    let name = tls::server_name(&pki::head_name(cluster));
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: head\r\nConnection: close\r\n\r\n").await.expect("writes");
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// The bound of the bucket that the 99th percentile of heartbeats between two looks falls into.
fn p99(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> String {
    let prefix = "cloudtik_head_heartbeat_wait_seconds_bucket{le=\"";
    let of = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let mut buckets: Vec<(f64, f64)> = after
        .keys()
        .filter_map(|name| Some((name.strip_prefix(prefix)?.trim_end_matches("\"}").parse().unwrap_or(f64::INFINITY), of(name))))
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    let found = buckets.iter().find(|(_, count)| *count >= all * 0.99);
    found.map_or_else(|| "unknown".to_owned(), |(bound, _)| format!("at most {:.1} ms", bound * 1e3))
}

async fn until(what: &str, holds: impl Fn() -> bool, seen: impl Fn() -> String) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}: {}", seen());
        sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

async fn measure(programs: &Path, agents: u64) {
    tls::install_crypto();
    let head = Head { programs: programs.to_owned(), home: tempfile::tempdir().expect("a temporary directory") };
    fs::create_dir_all(head.machines()).expect("makes");
    let file = head.home.path().join("fleet.toml");
    let own = std::env::current_exe().expect("this program");
    let text = |min: u64| {
        let command = json!([own, "provider", head.machines()]);
        format!(
            "[cluster]\nname = \"fleet\"\n[provider]\nkind = \"external\"\ncommand = {command}\n[workers.default]\nmin = {min}\nmax = {max}\ncpus = 1\nmemory = \"1GiB\"\n",
            max = agents.max(min)
        )
    };
    fs::write(&file, text(0)).expect("writes");
    let path = file.display().to_string();
    head.run(&["up", &path, "--yes"]);
    let pid = head.pid().expect("the head runs");
    sleep(Duration::from_secs(2)).await;
    let (_, alone) = used(pid);

    let counted = Arc::new(Counted::default());
    let seen = || format!("{} of {agents} linked", counted.linked.load(Ordering::Relaxed));
    let all_linked = || counted.linked.load(Ordering::Relaxed) == agents;
    let (identities, mut identity) = mpsc::channel(1);
    let spawner = tokio::spawn(spawn_agents(head.machines(), counted.clone(), identities));
    let begun = Instant::now();
    fs::write(&file, text(agents)).expect("writes");
    head.run(&["up", &path, "--yes", "--no-wait"]);
    until("every agent", all_linked, seen).await;
    println!("{agents} agents");
    println!("  all joined and linked         {:>8.1} s after `cloudtik up`", begun.elapsed().as_secs_f64());
    sleep(SETTLING).await;

    let cluster = cloudtik_model::ClusterName::new("fleet").expect("valid");
    let config = identity.recv().await.expect("an agent has joined");
    let status: Value = serde_json::from_str(&head.run(&["status", "fleet", "-o", "json"])).expect("is JSON");
    let address = status["head"]["address"].as_str().expect("an address").to_owned();
    let before = metrics(&address, &cluster, config.clone()).await;
    let (ticks, beats) = (used(pid).0, counted.heartbeats.load(Ordering::Relaxed));
    sleep(WATCHED).await;
    let (ticks_after, resident) = used(pid);
    let beats = counted.heartbeats.load(Ordering::Relaxed) - beats;
    let after = metrics(&address, &cluster, config).await;
    let processor = (ticks_after - ticks).as_secs_f64();
    println!(
        "  processor time of the head    {:>8.2} ms per 1,000 heartbeats ({:.3} cores)",
        processor * 1e6 / beats as f64,
        processor / WATCHED.as_secs_f64()
    );
    println!(
        "  memory of the head            {:>8.1} KiB per agent ({:.1} MB in all)",
        resident.saturating_sub(alone) as f64 / 1024.0 / agents as f64,
        resident as f64 / 1e6
    );
    println!("  ingest of a heartbeat, p99    {}", p99(&before, &after));
    assert!(all_linked(), "links broke meanwhile: {}", seen());

    let opened = counted.opened.load(Ordering::Relaxed);
    let begun = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kills");
    let are_back = || counted.opened.load(Ordering::Relaxed) >= opened + agents && all_linked();
    until("every agent's return", are_back, seen).await;
    println!("  all back after SIGKILL        {:>8.2} s", begun.elapsed().as_secs_f64());
    let status: Value = serde_json::from_str(&head.run(&["status", "fleet", "-o", "json"])).expect("is JSON");
    let lost = status["nodes"].as_array().map_or(0, |nodes| nodes.iter().filter(|node| node["generation"] != 1).count());
    assert_eq!(lost, 0, "nodes were replaced");
    spawner.abort();
}

/// Starts an agent for each machine that comes.
async fn spawn_agents(machines_directory: PathBuf, counted: Arc<Counted>, identities: mpsc::Sender<Arc<rustls::ClientConfig>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let (mut known, mut agents) = (BTreeSet::new(), JoinSet::new());
    loop {
        for id in machines(&machines_directory) {
            if !known.insert(id.clone()) {
                continue;
            }
            let Ok(text) = fs::read(machines_directory.join(format!("{id}.json"))) else { continue };
            let bootstrap: Bootstrap = serde_json::from_slice(&text).expect("a bootstrap payload");
            let number: u32 =
                id.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let address = format!("127.{}.{}.{}", 220 + number / 62_500, number / 250 % 250, number % 250 + 2);
            agents.spawn(Agent::new(bootstrap, address, counted.clone(), handshakes.clone()).run(identities.clone()));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
