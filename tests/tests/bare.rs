//! A machine that has nothing but its user data becomes a node: it fetches the agent from the head by digest, over TLS to the pinned
//! root, with its join token. Whatever is wrong ends with a clear message, and with nothing installed.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_model::ClusterName;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::program::{Architecture, Digest};
use cloudtik_protocol::{pki, tls};
use cloudtik_providers::machine::user_data;
use cloudtik_tests::{Cluster, programs, send, skipped, until};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A cluster whose workers are machines without agents: what its provider starts for them ends at once. The head serves the real
/// agent all the same.
fn bare_cluster(name: &str, workers: u32) -> Cluster {
    let mut cluster = Cluster::new(name, &format!("[workers.default]\nmin = {workers}"));
    let own = cluster.own_programs();
    let served = own.join(format!("cloudtik-agent.{}", std::env::consts::ARCH));
    fs::rename(own.join("cloudtik-agent"), &served).expect("renames");
    let stub = format!("#!/bin/sh\ncase \"$*\" in\n*/w?.*) exit 0 ;;\nesac\nexec {} \"$@\"\n", served.display());
    fs::write(own.join("cloudtik-agent"), stub).expect("writes");
    fs::set_permissions(own.join("cloudtik-agent"), fs::Permissions::from_mode(0o755)).expect("sets");
    cluster.run(&["up", &cluster.file.display().to_string(), "--no-wait"]).ok();
    cluster.wait("the machines", Duration::from_secs(10), |s| s.nodes.iter().filter(|n| n.state == "launched").count() == workers as usize);
    cluster
}

fn payload(cluster: &Cluster, node: &str) -> Bootstrap {
    serde_json::from_slice(&fs::read(cluster.node_home(node).join("bootstrap.json")).expect("reads")).expect("a document")
}

/// A machine of its own, as far as the script can tell.
struct Machine<'a> {
    directory: tempfile::TempDir,
    /// What runs there ends with this node.
    node_home: PathBuf,
    /// Instead of the programs of this machine.
    path: Option<PathBuf>,
    /// Seconds without progress after which the script gives up.
    patience: u32,
    cluster: &'a Cluster,
}

/// How a script ended, and what it said.
#[derive(Debug)]
struct Ended {
    code: i32,
    said: String,
}

impl<'a> Machine<'a> {
    fn of(cluster: &'a Cluster, node: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory, node_home: cluster.node_home(node), path: None, patience: 20, cluster }
    }

    /// With characters that have a meaning in a shell.
    fn root(&self) -> PathBuf {
        self.directory.path().join("it's $HOME")
    }

    fn run(&self, payload: &Bootstrap) -> Ended {
        let script = user_data::script(payload, &self.root()).expect("renders");
        let file = self.directory.path().join("user-data");
        fs::write(&file, script).expect("writes");
        let mut command = Command::new("/bin/sh");
        command
            .arg(&file)
            .env("CLOUDTIK_NODE_HOME", &self.node_home)
            .env("CLOUDTIK_PATIENCE", self.patience.to_string())
            .stdin(Stdio::null());
        // As the first program of a machine, which has no user yet.
        command.env_remove("HOME").envs(self.path.iter().map(|path| ("PATH", path)));
        let output = command.output().expect("runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ended { code: output.status.code().unwrap_or(-1), said }
    }

    /// The script has refused, for this reason, and nothing of it is left that could run or be stolen.
    #[track_caller]
    fn refuses(&self, payload: &Bootstrap, code: i32, why: &str) {
        let ended = self.run(payload);
        assert!(ended.code == code && ended.said.contains(why), "expected {code} and {why:?}: {ended:?}");
        assert!(!ended.said.contains(&payload.token), "the token is not said");
        assert!(!self.root().join("bin").exists() && !self.root().join("node").exists(), "nothing is installed: {why}");
        for file in fs::read_dir(self.root().join(".fetch")).into_iter().flatten().flatten().filter(|file| file.path().is_file()) {
            let content = fs::read(file.path()).expect("reads");
            let has_token = content.windows(payload.token.len()).any(|part| part == payload.token.as_bytes());
            assert!(!has_token, "{} has the token", file.path().display());
        }
    }

    /// The agent's process, if one runs there.
    fn agent(&self) -> Option<i32> {
        let home = self.root().join("node");
        let line = format!("--home {}", home.display());
        self.cluster.processes().into_iter().find(|(_, command)| command.ends_with(&line)).map(|(pid, _)| pid)
    }
}

/// What a caller without a certificate gets: the status and the body.
fn get(payload: &Bootstrap, path: &str, headers: &[&str]) -> (u16, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ca = directory.path().join("ca.pem");
    fs::write(&ca, &payload.ca).expect("writes");
    let mut command = Command::new("curl");
    command.args(["-q", "--silent", "--noproxy", "*", "--max-time", "20", "--cacert"]).arg(&ca);
    command.args(["--write-out", "\n%{http_code}"]).args(headers.iter().flat_map(|header| ["--header", header]));
    let output = command.arg(format!("https://{}{path}", payload.head)).output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').expect("a code");
    (code.parse().expect("a number"), body.to_owned())
}

fn headers(payload: &Bootstrap) -> [String; 3] {
    [
        format!("Authorization: Bearer {}", payload.token),
        format!("Cloudtik-Node: {}", payload.node),
        format!("Cloudtik-Generation: {}", payload.generation),
    ]
}

fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !found {
        skipped("a machine fetches its agent with curl");
    }
    found
}

/// Stands between machines and the head. Its first connection is cut after so many bytes, when the head is killed.
struct Cut {
    address: SocketAddr,
    /// Bytes that the head sent, a number for each connection.
    sent: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
}

impl Cut {
    fn before(head: &str, after: u64, pid: i32) -> Self {
        let head: SocketAddr = head.parse().expect("an address");
        let listener = TcpListener::bind((head.ip(), 0)).expect("binds");
        let (address, sent) = (listener.local_addr().expect("bound"), Arc::new(Mutex::new(Vec::new())));
        let counts = sent.clone();
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                let count = Arc::new(AtomicU64::new(0));
                counts.lock().expect("no panic").push(count.clone());
                let Ok(server) = TcpStream::connect(head) else { continue };
                let kill = (number == 0).then_some((after, pid));
                std::thread::spawn(move || relay(client, server, &count, kill));
            }
        });
        Self { address, sent }
    }

    fn sent(&self) -> Vec<u64> {
        self.sent.lock().expect("no panic").iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

fn relay(mut client: TcpStream, mut server: TcpStream, count: &AtomicU64, kill: Option<(u64, i32)>) {
    let (mut from, mut to) = (client.try_clone().expect("clones"), server.try_clone().expect("clones"));
    let asking = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = server.read(&mut buffer) {
        let sent = count.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
        if client.write_all(&buffer[..n]).is_err() {
            break;
        }
        if let Some((_, pid)) = kill.filter(|(after, _)| sent >= *after) {
            send(pid, Signal::SIGKILL);
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = asking.join();
}

#[test]
fn a_machine_with_only_its_user_data_joins_and_whatever_is_wrong_installs_nothing() {
    if !has_curl() {
        return;
    }
    let cluster = bare_cluster("bare", 1);
    let (machine, right) = (Machine::of(&cluster, "w1"), payload(&cluster, "w1"));
    let own = Architecture::named(std::env::consts::ARCH).expect("a machine that agents run on");
    let [agent] = right.agents.as_slice() else { panic!("one agent is served: {:?}", right.agents) };
    assert_eq!(agent.arch, own);
    assert_eq!(agent.size, fs::metadata(programs().join("cloudtik-agent")).expect("there").len());

    // A token opens the agents and nothing else, and nothing opens them without it.
    let authorized = headers(&right);
    let all: Vec<&str> = authorized.iter().map(String::as_str).collect();
    let (code, listing) = get(&right, "/agent", &all);
    assert_eq!(code, 200, "{listing}");
    let listing: serde_json::Value = serde_json::from_str(&listing).expect("a document");
    assert_eq!(listing, serde_json::json!({ "agents": [{ "arch": own.name(), "sha256": agent.sha256, "size": agent.size }] }));
    for path in ["/metrics", "/healthz", "/readyz", "/discovery/prometheus"] {
        assert_eq!(get(&right, path, &all).0, 403, "{path}");
    }
    assert_eq!(get(&right, "/agent/..%2f..%2fhead%2fhead.json", &all).0, 404);
    assert_eq!(get(&right, &format!("/agent/{}", "0".repeat(63)), &all).0, 404);
    let wrong = Bootstrap { token: "guessed".to_owned(), ..right.clone() };
    let other = Bootstrap { generation: cloudtik_model::Generation(2), ..right.clone() };
    for refused in [&all[1..], &all[..2], &headers(&wrong).each_ref().map(String::as_str), &headers(&other).each_ref().map(String::as_str)]
    {
        for path in ["/agent", &format!("/agent/{}", agent.sha256)] {
            assert_eq!(get(&right, path, refused).0, 401, "{path} {refused:?}");
        }
    }
    let refusals = |cluster: &Cluster| cluster.events().into_iter().filter(|e| e.contains("refused")).count();
    assert_eq!(refusals(&cluster), 0, "strangers do not reach the brain");

    machine.refuses(&wrong, 3, "refuses the join token of w1, generation 1, of bare");
    machine.refuses(&other, 3, "refuses the join token of w1, generation 2");
    let with_agent = |change: &dyn Fn(&mut cloudtik_model::program::AgentProgram)| {
        let mut changed = right.clone();
        change(&mut changed.agents[0]);
        changed
    };
    let unknown = "0".repeat(64);
    let digest: Digest = unknown.parse().expect("a digest");
    machine.refuses(&with_agent(&|agent| agent.sha256 = digest.clone()), 3, &format!("has no agent with the SHA-256 {unknown}"));
    let foreign = Architecture::ALL.into_iter().find(|arch| *arch != own).expect("there are several");
    machine.refuses(&with_agent(&|agent| agent.arch = foreign), 2, "the head has no agent for Linux on");
    let root = pki::Root::generate(&ClusterName::new("bare").expect("valid")).expect("makes");
    let impostor = Bootstrap { ca: root.certificate_pem(), ..right.clone() };
    machine.refuses(&impostor, 4, "does not show a certificate of this cluster");

    // What the head has under the agent's name is something else.
    let placed = cluster.directory().join("bin").join(format!("cloudtik-agent-{}", agent.sha256));
    let (aside, tampered) = (placed.with_extension("aside"), placed.with_extension("tampered"));
    let mut content = fs::read(&placed).expect("reads");
    content[agent.size as usize / 2] ^= 1;
    fs::write(&tampered, content).expect("writes");
    fs::rename(&placed, &aside).and_then(|()| fs::rename(&tampered, &placed)).expect("renames");
    machine.refuses(&right, 5, "is not the agent: its SHA-256 is ");
    fs::rename(&aside, &placed).expect("renames");

    // The head is killed in the middle. Its successor sends the rest, and the node joins.
    let cut = Cut::before(&right.head, 12 << 20, cluster.status().head.pid as i32);
    let through = Bootstrap { head: cut.address.to_string(), ..right.clone() };
    let ended = machine.run(&through);
    assert!(ended.code == 0 && ended.said.contains("trying again"), "{ended:?}");
    let sent = cut.sent();
    let (first, rest) = (sent[0], sent[1..].iter().max().copied().unwrap_or(0));
    assert!(first >= 12 << 20 && rest < agent.size - (8 << 20), "it went on from where it broke off: {sent:?} of {}", agent.size);
    cluster.wait_ready();
    let node = cluster.node("w1");
    assert_eq!(node.agent.as_ref().map(|agent| agent.pid as i32), machine.agent(), "{node:?}");
    let (bin, home) = (machine.root().join("bin"), machine.root().join("node"));
    assert_eq!(fs::read_link(bin.join("cloudtik-agent")).expect("a link").to_string_lossy(), format!("cloudtik-agent-{}", agent.sha256));
    assert_eq!(fs::metadata(home.join("bootstrap.json")).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&home).expect("there").permissions().mode() & 0o777, 0o700);
    assert!(!machine.root().join(".fetch").exists(), "what it fetched with is gone");

    // Again, as when the machine starts anew: nothing is fetched, and the agent that runs goes on.
    let again = machine.run(&through);
    assert_eq!((again.code, machine.agent()), (0, node.agent.map(|agent| agent.pid as i32)), "{again:?}");
    let stored: Bootstrap = serde_json::from_slice(&fs::read(home.join("bootstrap.json")).expect("reads")).expect("a document");
    assert_eq!(stored.token, "", "the token has served, and does not come back");
    let ended = machine.run(&Bootstrap { generation: cloudtik_model::Generation(7), ..right.clone() });
    assert!(ended.code == 2 && ended.said.contains("is another node already"), "{ended:?}");
    // The token has served: another machine cannot use it.
    Machine::of(&cluster, "w1").refuses(&right, 3, "does not wait for w1, generation 1, of bare");
    assert_eq!(get(&right, "/agent", &all).0, 403);
    cluster.down();
    cluster.assert_nothing_left();
}

/// Notes what the machine's `rm` removes in the root of the file system by names that are relative to it.
const REMOVED: &str = "removed";

/// The directory of a machine's programs, without curl.
fn without_curl(directory: &Path) -> Option<PathBuf> {
    let tools = [
        "uname",
        "sha256sum",
        "cut",
        "wc",
        "tr",
        "date",
        "grep",
        "cat",
        "mkdir",
        "wget",
        "sed",
        "tail",
        "rm",
        "chmod",
        "sync",
        "mv",
        "ln",
        "id",
        "sleep",
    ];
    let path = directory.join("path");
    fs::create_dir(&path).expect("makes");
    for tool in tools {
        let found = ["/usr/bin", "/bin"].iter().map(|place| Path::new(place).join(tool)).find(|file| file.exists())?;
        if tool == "rm" {
            let (note, real) = (directory.join(REMOVED), found.display());
            let notes = format!("[ \"$PWD\" != / ] || echo \"$word\" >>{}", note.display());
            let text = format!("#!/bin/sh\nfor word; do case $word in -* | /*) ;; *) {notes} ;; esac; done\nexec {real} \"$@\"\n");
            fs::write(path.join(tool), text).expect("writes");
            fs::set_permissions(path.join(tool), fs::Permissions::from_mode(0o755)).expect("sets");
            continue;
        }
        symlink(found, path.join(tool)).expect("links");
    }
    Some(path)
}

#[test]
fn a_machine_without_curl_fetches_its_agent_with_wget() {
    if !has_curl() {
        return;
    }
    let cluster = bare_cluster("wgets", 1);
    let (mut machine, right) = (Machine::of(&cluster, "w1"), payload(&cluster, "w1"));
    let Some(path) = without_curl(machine.directory.path()) else { return skipped("a machine without curl needs wget") };
    machine.path = Some(path.clone());
    machine.refuses(&Bootstrap { token: "guessed".to_owned(), ..right.clone() }, 3, "refuses the join token of w1");
    let root = pki::Root::generate(&ClusterName::new("wgets").expect("valid")).expect("makes");
    machine.refuses(&Bootstrap { ca: root.certificate_pem(), ..right.clone() }, 4, "does not show a certificate of this cluster");
    let cut = Cut::before(&right.head, 12 << 20, cluster.status().head.pid as i32);
    let ended = machine.run(&Bootstrap { head: cut.address.to_string(), ..right.clone() });
    assert_eq!(ended.code, 0, "{ended:?}");
    let (sent, size) = (cut.sent(), right.agents[0].size);
    assert!(sent[1..].iter().all(|sent| *sent < size - (8 << 20)), "it went on from where it broke off: {sent:?} of {size}");
    cluster.wait_ready();
    let removed = fs::read_to_string(machine.directory.path().join(REMOVED)).unwrap_or_default();
    assert_eq!(removed, "", "only what is its own is removed");
    // One with neither says so.
    let other = Machine { path: Some(path.clone()), ..Machine::of(&cluster, "w1") };
    fs::remove_file(path.join("wget")).expect("removes");
    other.refuses(&right, 2, "curl or GNU wget is needed");
}

#[test]
fn a_head_that_stays_away_is_given_up_with_what_was_fetched_kept() {
    if !has_curl() {
        return;
    }
    let cluster = bare_cluster("aways", 1);
    let (mut machine, right) = (Machine::of(&cluster, "w1"), payload(&cluster, "w1"));
    let address: SocketAddr = right.head.parse().expect("an address");
    let unused = TcpListener::bind((address.ip(), 0)).and_then(|listener| listener.local_addr()).expect("binds");
    machine.patience = 1;
    let why = format!("cannot be fetched from the head at {unused}: curl ended with 7");
    machine.refuses(&Bootstrap { head: unused.to_string(), ..right.clone() }, 6, &why);
    // What arrived of it before is kept for the next time.
    let whole = fs::read(programs().join("cloudtik-agent")).expect("reads");
    let part = machine.root().join(".fetch").join(format!("cloudtik-agent-{}.part", right.agents[0].sha256));
    fs::write(&part, &whole[..whole.len() - 100]).expect("writes");
    let cut = Cut::before(&right.head, u64::MAX, 0);
    let ended = machine.run(&Bootstrap { head: cut.address.to_string(), ..right });
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(cut.sent()[0] < 1 << 20, "only the rest is sent: {:?}", cut.sent());
    cluster.wait_ready();
}

/// Downloads that are not read take their places, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_at_once_are_bounded() {
    if !has_curl() {
        return;
    }
    let cluster = bare_cluster("crowds", 1);
    let right = payload(&cluster, "w1");
    let root = pki::parse_chain(right.ca.as_bytes()).expect("a certificate").remove(0);
    tls::install_crypto();
    let config = tls::client_config(&root, None).expect("config");
    let head: SocketAddr = right.head.parse().expect("an address");
    let lines = headers(&right).join("\r\n");
    let request = format!("GET /agent/{} HTTP/1.1\r\nHost: head\r\n{lines}\r\n\r\n", right.agents[0].sha256);
    let mut held = Vec::new();
    for _ in 0..32 {
        let stream = tokio::net::TcpStream::connect(head).await.expect("connects");
        let name = rustls::pki_types::ServerName::from(head.ip());
        let mut stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await.expect("handshake");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("reads");
        assert_eq!(&answer, b"HTTP/1.1 200");
        held.push(stream);
    }
    let authorized = headers(&right);
    let all: Vec<String> = authorized.to_vec();
    let ask = move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        get(&right, "/agent", &all).0
    };
    let (first, ask) = tokio::task::spawn_blocking(move || (ask(), ask)).await.expect("asks");
    assert_eq!(first, 503, "others come again later");
    assert!(cluster.status().nodes.iter().any(|n| n.id.as_str() == "head" && n.state == "ready"), "the head is not held up");
    drop(held);
    let free = move || (ask() == 200).then_some(());
    tokio::task::spawn_blocking(move || until("room", Duration::from_secs(10), free)).await.expect("waits");
}
