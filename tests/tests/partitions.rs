//! The bus over networks that break: nodes that are cut off for less and for more than their grace, both ways and one way, a
//! head that hears nobody, links that lose packets. On virtual nodes, as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cloudtik_model::InstanceId;
use cloudtik_model::status::{Node, Status};
use cloudtik_tests::{Cluster, repository, until};
use cloudtik_virtual::VirtualProvider;
use cloudtik_virtual::testing::{self, LossyPort, Lost};

/// How long a verdict may take on a machine that does much else.
const VERDICT: Duration = Duration::from_secs(15);
/// From the verdict to a worker in the other's place: ten seconds, a reboot's five, and the new one's start.
const REPLACEMENT: Duration = Duration::from_secs(60);

/// A cluster of virtual nodes that is up, with a web server on each worker.
struct Net {
    cluster: Cluster,
    provider: VirtualProvider,
    /// The web servers, as they were at first.
    servers: Vec<Server>,
}

/// The web server of a node: its process, by the number that the node gives it, and when that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    node: String,
    instance: InstanceId,
    pid: u32,
    started: String,
}

impl Net {
    fn with_servers(name: &str, workers: u32) -> Option<Self> {
        let folder = repository().join("examples/runtimes/webserver").display().to_string();
        Self::up(name, &format!("[workers.default]\nmin = {workers}\n[runtimes.webserver]\npath = \"{folder}\"\n"))
    }

    fn up(name: &str, rest: &str) -> Option<Self> {
        let cluster = Cluster::of_virtual_nodes(name, rest)?;
        cluster.up();
        let provider = testing::provider_of(&cluster.directory().join("nodes")).expect("it has a head's node");
        let mut net = Self { cluster, provider, servers: Vec::new() };
        net.servers = net.servers_now();
        Some(net)
    }

    fn servers_now(&self) -> Vec<Server> {
        let server = |node: &Node| {
            let pid = node.services.iter().find(|s| s.name == "webserver/web")?.pid?;
            let instance = node.instance.clone()?;
            let started = self.started(&instance, pid)?;
            Some(Server { node: node.id.to_string(), instance, pid, started })
        };
        self.cluster.status().nodes.iter().filter_map(server).collect()
    }

    /// When a process of a node was started, if it runs, as the node's own kernel tells it: the head cannot be asked.
    fn started(&self, instance: &InstanceId, pid: u32) -> Option<String> {
        let stat = testing::run_on(&self.provider, instance, "/bin/cat", &[&format!("/proc/{pid}/stat")]).ok()?;
        let text = String::from_utf8_lossy(&stat.stdout).into_owned();
        text.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
    }

    #[track_caller]
    fn assert_servers_go_on(&self) {
        for server in &self.servers {
            assert_eq!(self.started(&server.instance, server.pid).as_ref(), Some(&server.started), "{server:?}\n{}", self.told());
        }
    }

    fn instance(&self, node: &str) -> InstanceId {
        self.cluster.node(node).instance.expect("it has an instance")
    }

    /// Cuts a node's link at the bridge, until what is returned is dropped.
    fn cut(&self, node: &str, lost: Lost) -> LossyPort {
        testing::lose_at_port(&self.provider, &self.instance(node), lost, 100).expect("the kernel drops packets of bridges")
    }

    fn instances(&self) -> Vec<(InstanceId, bool)> {
        let running = |i: &cloudtik_model::node::Instance| i.state == cloudtik_model::node::InstanceState::Running;
        testing::list(&self.provider).iter().map(|i| (i.id.clone(), running(i))).collect()
    }

    #[track_caller]
    fn wait_for(&self, node: &str, state: &str, within: Duration) {
        self.cluster.wait(&format!("{node} is {state}"), within, |s| state_of(s, node) == Some(state));
    }

    fn verdicts(&self) -> Vec<String> {
        self.cluster.events().into_iter().filter(|e| e.starts_with("verdict") || e.contains("→ down")).collect()
    }

    /// What happened, for a test that fails.
    fn told(&self) -> String {
        self.cluster.events().join("\n")
    }
}

fn state_of<'a>(status: &'a Status, node: &str) -> Option<&'a str> {
    status.nodes.iter().find(|n| n.id.as_str() == node).map(|n| n.state.as_str())
}

#[test]
fn a_node_that_is_cut_off_for_less_than_its_grace_is_suspected_and_no_more() {
    let Some(net) = Net::with_servers("short", 3) else { return };
    let before = net.instances();
    for round in 0..2 {
        let cut = net.cut("w2", Lost::Both);
        net.wait_for("w2", "suspect", VERDICT);
        net.assert_servers_go_on();
        drop(cut);
        net.cluster.wait_ready();
        assert_eq!(net.verdicts(), Vec::<String>::new(), "round {round}\n{}", net.told());
    }
    assert_eq!(net.servers_now(), net.servers);
    assert_eq!(net.instances(), before);
}

#[test]
fn nodes_that_are_cut_off_for_longer_are_replaced_and_do_not_come_back_as_a_second_life() {
    let Some(net) = Net::with_servers("long", 6) else { return };
    let (w2, w3) = (net.instance("w2"), net.instance("w3"));
    let cuts = [net.cut("w2", Lost::Both), net.cut("w3", Lost::Both)];
    net.cluster.wait("the verdicts", VERDICT, |s| ["w2", "w3"].iter().all(|node| state_of(s, node) == Some("down")));
    // Nobody can tell by now, and what runs on them goes on.
    net.assert_servers_go_on();
    // The end of one of them is late: a machine in which something is mounted is not deleted.
    let mounted = Mounted::at(&net.provider.home(&w3).join("data"));
    let is_new = |s: &Status, node: &str| s.nodes.iter().any(|n| n.id.as_str() == node && n.generation.0 == 2 && n.state == "ready");
    net.cluster.wait("a worker in the place of w2", REPLACEMENT, |s| is_new(s, "w2"));
    net.wait_for("w3", "terminating", REPLACEMENT);
    assert!(net.instances().iter().all(|(id, _)| *id != w2), "the old one was ended while nobody reached it: {:?}", net.instances());
    drop(cuts);

    // The agent of w3 runs and reaches the head. It is not taken back, and there is no other w3 beside it.
    let refusal = |e: &String| e.starts_with("refusal w3 ");
    until("the head's refusal", Duration::from_secs(30), || net.cluster.events().iter().any(refusal).then_some(()));
    assert_eq!(state_of(&net.cluster.status(), "w3"), Some("terminating"), "{}", net.told());
    let lives =
        |node: &str| net.instances().into_iter().filter(|(id, _)| id.as_str().starts_with(node)).map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(lives("w3."), vec![w3.clone()]);
    drop(mounted);
    net.cluster.wait("a worker in the place of w3", REPLACEMENT, |s| s.ready && is_new(s, "w3"));

    assert_eq!((lives("w2.").len(), lives("w3.").len()), (1, 1), "one life each");
    assert!(!net.instances().iter().any(|(id, _)| [&w2, &w3].contains(&id)), "{:?}", net.instances());
    let others = |servers: &[Server]| servers.iter().filter(|s| !["w2", "w3"].contains(&&*s.node)).cloned().collect::<Vec<_>>();
    assert_eq!(others(&net.servers_now()), others(&net.servers), "the others never noticed");
    assert!(net.verdicts().iter().all(|e| e.contains(" w2 ") || e.contains(" w3 ")), "{}", net.told());
    let ends = net.cluster.events().into_iter().filter(|e| e.contains(" terminating → ")).collect::<Vec<_>>();
    assert!(ends.len() == 2 && ends.iter().all(|e| e.contains("→ gone")), "{ends:#?}");
}

/// A file system of the machine's, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(directory: &Path) -> Self {
        fs::create_dir(directory).expect("makes");
        let ran = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(directory).status().expect("mount runs");
        assert!(ran.success());
        Self(directory.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn nodes_that_are_cut_off_one_way_are_judged_by_evidence_and_come_back() {
    let Some(net) = Net::with_servers("oneway", 5) else { return };
    let before = net.instances();
    // What w1 says is lost, and what is said to w2.
    let cuts = [net.cut("w1", Lost::Sent), net.cut("w2", Lost::Received)];
    net.cluster.wait("the verdicts", VERDICT, |s| ["w1", "w2"].iter().all(|node| state_of(s, node) == Some("down")));
    net.assert_servers_go_on();
    drop(cuts);
    net.cluster.wait_ready();
    for node in ["w1", "w2"] {
        let why = net.cluster.run(&["why", "oneway", node]).ok().out;
        assert!(why.contains("no heartbeat for") && why.contains("dial-back: no answer in time"), "{why}");
    }
    assert_eq!(net.instances(), before, "they came back before they were replaced\n{}", net.told());
    assert_eq!(net.servers_now(), net.servers);
    assert!(net.verdicts().iter().all(|e| e.contains(" w1 ") || e.contains(" w2 ")), "{}", net.told());
}

#[test]
fn a_head_that_hears_nobody_terminates_nobody() {
    /// Longer than a node that is down alone would be kept: ten seconds, and a reboot's five.
    const BEYOND: Duration = Duration::from_secs(25);
    let Some(net) = Net::with_servers("deaf", 4) else { return };
    let before = net.instances();
    let cut = net.cut("head", Lost::Both);
    let workers = |s: &Status, state: &str| s.nodes.iter().filter(|n| n.id.as_str() != "head").all(|n| n.state == state);
    net.cluster.wait("the verdicts", VERDICT, |s| workers(s, "down"));
    let begun = Instant::now();
    until("time to pass", BEYOND * 2, || {
        assert_eq!(net.instances(), before, "{}", net.told());
        net.assert_servers_go_on();
        std::thread::sleep(Duration::from_millis(500));
        (begun.elapsed() > BEYOND).then_some(())
    });
    drop(cut);
    net.cluster.wait_ready();
    assert_eq!(net.instances(), before);
    assert_eq!(net.servers_now(), net.servers, "{}", net.told());
    let events = net.cluster.events();
    assert!(events.iter().any(|e| e.starts_with("alarm")), "the brake is told: {events:#?}");
    let destructive = ["rebooting", "→ terminating", "→ gone"];
    assert!(!events.iter().any(|e| destructive.iter().any(|word| e.contains(word))), "{events:#?}");
}

#[test]
fn a_bus_that_loses_thirty_percent_of_packets_for_two_minutes_on_twenty_nodes_brings_no_false_verdict() {
    const LOST_FOR: Duration = Duration::from_secs(120);
    let Some(net) = Net::up("lossy", "[workers.default]\nmin = 19\n") else { return };
    let agents = |s: &Status| s.nodes.iter().map(|n| n.agent.as_ref().map(|a| a.pid)).collect::<Vec<_>>();
    let (before, first) = (net.instances(), agents(&net.cluster.status()));
    assert_eq!(before.len(), 20);
    let begun = Instant::now();
    let lossy: Vec<LossyPort> = before
        .iter()
        .filter(|(id, _)| !id.as_str().starts_with("head."))
        .map(|(id, _)| testing::lose_at_port(&net.provider, id, Lost::Both, 30).expect("the kernel drops packets of bridges"))
        .collect();
    while begun.elapsed() < LOST_FOR {
        assert_eq!(net.verdicts(), Vec::<String>::new(), "after {:?}\n{}", begun.elapsed(), net.told());
        std::thread::sleep(Duration::from_secs(1));
    }
    drop(lossy);
    let after = net.cluster.wait_ready();
    assert_eq!(net.verdicts(), Vec::<String>::new());
    assert_eq!((net.instances(), agents(&after)), (before, first));
    // The loss was felt: without suspicions it would show nothing.
    let suspicions = net.cluster.events().iter().filter(|e| e.contains("→ suspect")).count();
    eprintln!("{suspicions} suspicions in {LOST_FOR:?}");
    assert!(suspicions > 0, "{}", net.told());
}
