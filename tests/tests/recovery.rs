//! What dies, hangs or is cut off comes back, and is judged by evidence.

use std::fs;
use std::time::{Duration, Instant};

use cloudtik_tests::{Cluster, repository, send, skipped, until};
use nix::sys::signal::Signal;

fn with_web(name: &str, workers: u32) -> Cluster {
    let folder = repository().join("examples/runtimes/webserver").display().to_string();
    Cluster::new(name, &format!("[workers.default]\nmin = {workers}\n[runtimes.webserver]\npath = \"{folder}\""))
}

fn web_pids(cluster: &Cluster) -> Vec<(String, Option<u32>)> {
    let status = cluster.status();
    let web = |n: &cloudtik_model::status::Node| n.services.iter().find(|s| s.name == "webserver/web").map(|s| (n.id.to_string(), s.pid));
    status.nodes.iter().filter_map(web).collect()
}

fn agent_pid(cluster: &Cluster, node: &str) -> i32 {
    cluster.node(node).agent.expect("an agent").pid as i32
}

#[test]
fn a_killed_agent_is_restarted_in_place_and_its_services_go_on() {
    let cluster = with_web("agents", 1);
    cluster.up();
    let (services, instance) = (web_pids(&cluster), cluster.node("w1").instance);
    for round in 0..3 {
        let agent = agent_pid(&cluster, "w1");
        send(agent, Signal::SIGKILL);
        cluster.wait("the agent's return", Duration::from_secs(10), |s| {
            s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.agent.as_ref().is_some_and(|a| a.pid as i32 != agent))
        });
        assert_eq!(web_pids(&cluster), services, "round {round}: the service's process is the same");
    }
    assert_eq!(cluster.node("w1").instance, instance, "the node was not replaced");
    // A polite stop is a restart too, as an upgrade in place does it.
    send(agent_pid(&cluster, "w1"), Signal::SIGTERM);
    cluster.wait("the agent's return", Duration::from_secs(10), |s| s.ready);
    assert_eq!(web_pids(&cluster), services);
    let events = cluster.events();
    let verdicts: Vec<_> = events.iter().filter(|e| e.starts_with("verdict")).collect();
    assert!(verdicts.is_empty(), "a restart is no death: {verdicts:?}");
    // In people's words, without the layers of the protocol.
    let lost: Vec<_> = events.iter().filter(|e| e.contains("lost connection to the agent: ")).collect();
    assert!(lost.iter().any(|e| e.contains("closed without a goodbye")) && lost.iter().any(|e| e.contains("it is stopping")), "{lost:#?}");
    assert!(!events.iter().any(|e| e.contains("h2 ") || e.contains("stream ended") || e.contains("https://")), "{events:#?}");
}

/// Packets of one node are dropped without a word, both ways.
#[test]
fn a_node_that_is_cut_off_is_judged_by_evidence_and_comes_back() {
    let mut cluster = with_web("cut", 4);
    if !cluster.own_network() {
        skipped("dropping packets needs a network namespace (root)");
        return;
    }
    cluster.up();
    let (services, node) = (web_pids(&cluster), cluster.node("w2"));
    let address = node.address.expect("an address");
    cluster.in_network("nft", &["add", "table", "inet", "cut"]);
    cluster.in_network("nft", &["add", "chain", "inet", "cut", "out", "{ type filter hook output priority 0; }"]);
    let drop = |way: &str| cluster.in_network("nft", &["add", "rule", "inet", "cut", "out", "ip", way, &address, "drop"]);
    drop("saddr");
    drop("daddr");
    let begun = Instant::now();
    cluster.wait("the verdict", Duration::from_secs(7), |s| s.nodes.iter().any(|n| n.id.as_str() == "w2" && n.state == "down"));
    let took = begun.elapsed();
    cluster.in_network("nft", &["delete", "table", "inet", "cut"]);
    // The last heartbeat may have come up to a second before.
    assert!(took < Duration::from_millis(5_500), "the verdict took {took:?}");
    let why = cluster.run(&["why", "cut", "w2"]).ok().out;
    assert!(why.contains("no heartbeat for") && why.contains("dial-back: no answer in time"), "{why}");
    cluster.wait_ready();
    assert_eq!(cluster.node("w2").instance, node.instance, "it came back before it was replaced");
    assert_eq!(web_pids(&cluster), services);
    let verdicts: Vec<_> = cluster.events().into_iter().filter(|e| e.starts_with("verdict")).collect();
    assert!(verdicts.iter().all(|e| e.starts_with("verdict w2")), "nobody else was misjudged: {verdicts:?}");
}

#[test]
fn an_agent_is_upgraded_in_place_under_a_running_service() {
    let mut cluster = with_web("upgrade", 1);
    let programs = cluster.own_programs();
    cluster.up();
    let (services, before) = (web_pids(&cluster), cluster.node("w1"));
    // Another program under the same name, as a package manager puts it there: beside it, then renamed over it.
    let (path, new) = (programs.join("cloudtik-agent"), programs.join("cloudtik-agent.new"));
    let mut program = fs::read(&path).expect("reads");
    let old_length = program.len();
    program.extend_from_slice(b"another build");
    fs::write(&new, &program).expect("writes");
    fs::set_permissions(&new, fs::metadata(&path).expect("there").permissions()).expect("sets");
    fs::rename(&new, &path).expect("renames");
    let restart = |node: &str, length: usize, what: &str| {
        let old = agent_pid(&cluster, node);
        send(old, Signal::SIGTERM);
        cluster.wait("the new agent", Duration::from_secs(10), |s| {
            s.ready && s.nodes.iter().any(|n| n.id.as_str() == node && n.agent.as_ref().is_some_and(|a| a.pid as i32 != old))
        });
        let runs = fs::read(format!("/proc/{}/exe", agent_pid(&cluster, node))).expect("reads");
        assert_eq!(runs.len(), length, "{node}: {what}");
    };
    // Files beside the launcher are not what a running cluster's nodes start as.
    restart("w1", old_length, "the cluster's own program runs until it is brought up again");
    let ran = cluster.up();
    assert!(ran.err.contains("upgrade: other programs are placed"), "{ran:?}");
    for node in ["w1", "head"] {
        restart(node, program.len(), "the new program runs");
    }
    let again = cluster.up();
    assert!(!again.err.contains("placed"), "there is nothing to place: {again:?}");
    assert_eq!(web_pids(&cluster), services, "the service's process is the same");
    assert_eq!(cluster.node("w1").instance, before.instance);
    // The old program's shim obeys the new agent, and the new one starts what ends.
    let web = services[0].1.expect("it runs") as i32;
    send(web, Signal::SIGKILL);
    cluster.wait("the service's restart", Duration::from_secs(10), |s| s.ready && web_pids(&cluster) != services);
    let verdicts: Vec<_> = cluster.events().into_iter().filter(|e| e.starts_with("verdict")).collect();
    assert!(verdicts.is_empty(), "an upgrade is no death: {verdicts:?}\n{:#?}\n{}", cluster.events(), cluster.logs());
}

#[test]
fn a_killed_head_is_back_within_a_second_and_nothing_else_notices() {
    let cluster = with_web("heads", 2);
    cluster.up();
    let (services, before) = (web_pids(&cluster), cluster.status());
    for _ in 0..3 {
        let head = cluster.status().head;
        send(head.pid as i32, Signal::SIGKILL);
        let begun = Instant::now();
        cluster.wait("the head's return", Duration::from_secs(5), |s| s.head.pid != head.pid);
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
        let status = cluster.wait_ready();
        assert!(status.head.epoch > head.epoch, "a new leadership has a higher epoch");
    }
    assert_eq!(web_pids(&cluster), services);
    let after = cluster.status();
    let instances = |s: &cloudtik_model::status::Status| s.nodes.iter().map(|n| n.instance.clone()).collect::<Vec<_>>();
    assert_eq!(instances(&before), instances(&after), "no node was replaced");
    assert!(cluster.events().iter().all(|e| !e.starts_with("verdict")), "{:#?}", cluster.events());
}

#[test]
fn a_silent_node_gets_a_verdict_with_its_evidence() {
    let cluster = with_web("silent", 3);
    cluster.up();
    let services = web_pids(&cluster);
    // Stopped and continued within its grace: suspicion, and nothing more.
    let agent = agent_pid(&cluster, "w1");
    send(agent, Signal::SIGSTOP);
    cluster.wait("suspicion", Duration::from_secs(6), |s| s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.state == "suspect"));
    send(agent, Signal::SIGCONT);
    cluster.wait_ready();
    assert_eq!(agent_pid(&cluster, "w1"), agent, "a short pause costs nothing");

    let agent = agent_pid(&cluster, "w2");
    send(agent, Signal::SIGSTOP);
    let begun = Instant::now();
    cluster.wait("the agent's replacement", Duration::from_secs(20), |s| {
        s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w2" && n.agent.as_ref().is_some_and(|a| a.pid as i32 != agent))
    });
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(web_pids(&cluster), services, "the agent was replaced, not what it looks after");
    let why = cluster.run(&["why", "silent", "w2"]).ok().out;
    assert!(why.contains("concluded") && why.contains("no heartbeat for") && why.contains("dial-back"), "{why}");
}

/// Whoever keeps the head is gone too: nobody brings it back.
#[test]
fn workers_that_lost_their_head_for_good_let_their_work_go() {
    let folder = repository().join("examples/runtimes/webserver").display().to_string();
    let spec = format!("[head]\ndead_man_timer = \"10s\"\n[workers.default]\nmin = 1\n[runtimes.webserver]\npath = \"{folder}\"");
    let cluster = Cluster::new("deserted", &spec);
    cluster.up();
    let status = cluster.status();
    let of = |id: &str| status.nodes.iter().find(|n| n.id.as_str() == id).expect("it is there").clone();
    let keeper = of("head").agent.expect("an agent").pid;
    let (agent, web) = (of("w1").agent.expect("an agent").pid, of("w1").services.iter().find_map(|s| s.pid).expect("it runs"));
    send(keeper as i32, Signal::SIGKILL);
    send(status.head.pid as i32, Signal::SIGKILL);
    let is_alive = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    let begun = Instant::now();
    until("the end of the node's work", Duration::from_secs(40), || (!is_alive(web) && !is_alive(agent)).then_some(()));
    assert!(begun.elapsed() >= Duration::from_millis(9_000), "a node goes on without its head for a while: {:?}", begun.elapsed());
    // A head that comes back after all finds everything as it was.
    cluster.up();
    let after = cluster.wait_ready();
    let w1 = after.nodes.iter().find(|n| n.id.as_str() == "w1").expect("it is there");
    assert_eq!(w1.generation.0, 1, "the same node, with its data");
    cluster.down();
    cluster.assert_nothing_left();
}
