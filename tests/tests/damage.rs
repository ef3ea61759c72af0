//! Files torn, programs killed together, services that fork away: what runs is neither lost, doubled nor stopped for it.

use std::fs;
use std::time::Duration;

use cloudtik_model::status::Status;
use cloudtik_tests::{Cluster, send, until};
use nix::sys::signal::Signal;

/// Services with numbers to find their processes by, whatever they do to their environment.
fn manifest(base: u32) -> String {
    let [plain, child, main, forked, bare] = [base, base + 1, base + 2, base + 3, base + 4];
    format!(
        r#"
[runtime]
name = "nasty"
version = "1"
[services.plain]
role = "workers"
command = ["/bin/sleep", "{plain}"]
[services.parent]
role = "workers"
command = ["/bin/sh", "-c", "sleep {child} & exec sleep {main}"]
[services.forker]
role = "workers"
command = ["/bin/sh", "-c", "env -i setsid sleep {forked} & sleep 0.3; exit 1"]
[services.bare]
role = "workers"
command = ["/usr/bin/env", "-i", "/bin/sleep", "{bare}"]
"#
    )
}

/// The processes that sleep so many seconds.
fn sleepers(seconds: u32) -> Vec<i32> {
    let wanted = [format!("sleep\0{seconds}\0"), format!("/bin/sleep\0{seconds}\0")];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if wanted.iter().any(|w| w.as_bytes() == line) {
            found.extend(entry.file_name().to_string_lossy().parse::<i32>());
        }
    }
    found
}

fn cluster(name: &str, base: u32, min: u32) -> Cluster {
    let cluster = Cluster::new(name, &format!("[workers.default]\nmin = {min}\nmax = 4\n[runtimes.nasty]\npath = \"./nasty\""));
    cluster.write_runtime("nasty", &manifest(base));
    cluster.run(&["up", &cluster.file.display().to_string(), "--yes", "--no-wait"]).ok();
    until("the services", Duration::from_secs(20), || [0, 1, 2, 4].iter().all(|n| sleepers(base + n).len() == min as usize).then_some(()));
    cluster
}

fn agent(cluster: &Cluster, node: &str) -> i32 {
    cluster.node(node).agent.expect("an agent").pid as i32
}

fn new_agent(old: i32) -> impl Fn(&Status) -> bool {
    move |s| s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.agent.as_ref().is_some_and(|a| a.pid as i32 != old))
}

#[test]
fn torn_files_and_joint_deaths_neither_stop_nor_double_a_service() {
    let base = 710_000;
    let cluster = cluster("torn", base, 1);
    let home = cluster.node_home("w1");
    let service = |name: &str| home.join("services/nasty").join(name);

    // A goal that cannot be read is no goal to run nothing.
    let (plain, old) = (sleepers(base), agent(&cluster, "w1"));
    fs::write(home.join("goal.json"), "").expect("tears");
    send(old, Signal::SIGKILL);
    cluster.wait("the next agent", Duration::from_secs(10), new_agent(old));
    until("the goal again", Duration::from_secs(10), || (fs::metadata(home.join("goal.json")).ok()?.len() > 0).then_some(()));
    assert_eq!(sleepers(base), plain, "what runs goes on");

    // Agent, shim and main process die at one moment; the child is left.
    let (child, main, old) = (sleepers(base + 1), sleepers(base + 2), agent(&cluster, "w1"));
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(service("parent").join("shim.json")).expect("reads")).expect("a document");
    let shim = state["shim"]["pid"].as_i64().expect("a number") as i32;
    for pid in [old, shim, main[0]] {
        send(pid, Signal::SIGKILL);
    }
    until("another process", Duration::from_secs(10), || sleepers(base + 2).first().filter(|p| **p != main[0]).map(drop));
    until("one child", Duration::from_secs(5), || {
        let now = sleepers(base + 1);
        (now.len() == 1 && now != child).then_some(())
    });

    // Whose process it is was lost.
    let (bare, old) = (sleepers(base + 4), agent(&cluster, "w1"));
    fs::write(service("bare").join("shim.json"), "").expect("tears");
    send(old, Signal::SIGKILL);
    until("a clean start", Duration::from_secs(10), || {
        let now = sleepers(base + 4);
        (now.len() == 1 && now != bare).then_some(())
    });

    // By now the forker has started often.
    let restarts = |s: &Status| s.nodes.iter().flat_map(|n| &n.services).find(|s| s.name == "nasty/forker").map_or(0, |s| s.restarts);
    cluster.wait("restarts", Duration::from_secs(20), |s| restarts(s) >= 3);
    assert!(sleepers(base + 3).len() <= 1, "what forked away ended with its service: {:?}", sleepers(base + 3));

    cluster.down();
    for n in 0..5 {
        assert_eq!(sleepers(base + n), Vec::<i32>::new(), "service {n}");
    }
}

#[test]
fn down_finds_everything_whatever_became_of_the_files() {
    let base = 720_000;
    let cluster = cluster("lost", base, 3);
    // A directory removed by hand, an instance that is not described any more, one whose description is torn.
    fs::remove_dir_all(cluster.node_home("w1")).expect("removes");
    fs::remove_file(cluster.node_home("head").join("instance.json")).expect("removes");
    fs::write(cluster.node_home("w2").join("instance.json"), "").expect("tears");
    // And nobody of ours is left who could lead anywhere.
    for (pid, line) in cluster.processes() {
        if line.contains("cloudtik-") {
            send(pid, Signal::SIGKILL);
        }
    }
    cluster.down();
    cluster.assert_nothing_left();
    for n in [0, 1, 2] {
        assert_eq!(sleepers(base + n), Vec::<i32>::new(), "service {n}");
    }
    // Of a node whose directory is gone, with the shims gone too, a service without its mark cannot be told.
    let left = sleepers(base + 4);
    assert!(left.len() <= 1, "{left:?}");
    left.into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
    sleepers(base + 3).into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
}

#[test]
fn a_head_whose_node_was_removed_gets_another_one_and_goes_on_with_its_state() {
    let cluster = Cluster::new("headless", "[workers.default]\nmin = 2\n[runtimes.calm]\npath = \"./calm\"");
    let calm = "[runtime]\nname = \"calm\"\nversion = \"1\"\n[services.one]\nrole = \"workers\"\ncommand = [\"/bin/sleep\", \"18930\"]\n";
    cluster.write_runtime("calm", calm);
    cluster.up();
    let seen = cluster.events().len();
    let pids = sleepers(18_930);
    for removed in [cluster.node_home("head"), cluster.directory().join("nodes/head.2/instance.json")] {
        if removed.is_dir() { fs::remove_dir_all(&removed) } else { fs::remove_file(&removed) }.expect("removes");
        let file = cluster.file.display().to_string();
        until("a word on what is left", Duration::from_secs(20), || {
            let doctor = cluster.run(&["doctor", "headless"]);
            (removed.extension().is_some_and(|e| e == "json") || doctor.out.contains(&format!("`cloudtik up {file}`"))).then_some(())
        });
        let plan = cluster.run(&["up", &file, "--plan"]).ok();
        assert!(plan.out.contains("create the head's node") && !plan.out.contains("create 2 workers"), "{plan:?}");
        cluster.run(&["up", &file, "--yes", "--timeout", "60"]).ok();
        cluster.wait_ready();
    }
    assert!(cluster.node_home("head").ends_with("head.3"));
    assert!(cluster.events().len() > seen, "it has what it knew");
    let still: Vec<i32> = sleepers(18_930);
    assert_eq!(still, pids, "what ran on workers runs on");
    assert!(cluster.run(&["up", &cluster.file.display().to_string()]).ok().err.contains("nothing to do"));
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn a_store_that_is_lost_or_old_deletes_nobody() {
    let cluster = Cluster::new("store", "[workers.default]\nmin = 2\nmax = 4");
    cluster.up();
    let state = cluster.directory().join("head");
    let (store, kept) = (state.join("store.redb"), state.join("kept"));
    let nodes = || {
        let mut names: Vec<_> = fs::read_dir(cluster.directory().join("nodes")).expect("lists").flatten().map(|e| e.file_name()).collect();
        names.sort();
        names
    };
    let kill_head = || {
        for (pid, _) in cluster.processes().iter().filter(|(_, line)| line.contains("cloudtik-head")) {
            send(*pid, Signal::SIGKILL);
        }
    };
    let log = || fs::read_to_string(cluster.node_home("head").join("services/cloudtik/head/log")).unwrap_or_default();
    let before = nodes();
    fs::copy(&store, &kept).expect("keeps");

    // Empty: a head that was set up does not begin again with nothing.
    fs::write(&store, "").expect("empties");
    kill_head();
    // Start after start, which its agent tries again and again.
    until("a clear word each time", Duration::from_secs(20), || (log().matches("missing or empty").count() >= 6).then_some(()));
    assert_eq!(nodes(), before, "its nodes are no strangers");
    let refused = cluster.run(&["status", "store"]);
    assert_eq!(refused.code, 6, "{refused:?}");

    // Back, and then older than what nodes have seen.
    fs::copy(&kept, &store).expect("puts back");
    cluster.wait_ready();
    for _ in 0..2 {
        let epoch = cluster.status().head.epoch;
        kill_head();
        cluster.wait("a later leadership", Duration::from_secs(10), |s| s.ready && s.head.epoch > epoch);
    }
    let seen = cluster.status().head.epoch;
    fs::copy(&kept, &store).expect("puts an old one back");
    kill_head();
    until("a clear word each time", Duration::from_secs(20), || {
        (log().matches("its store is older than the cluster").count() >= 6).then_some(())
    });
    assert_eq!(nodes(), before, "a head that is not the latest acts on nobody");
    // A person decides that this store counts.
    fs::write(state.join("take-over"), "").expect("decides");
    cluster.wait("the cluster's return", Duration::from_secs(20), |s| s.ready && s.head.epoch > seen);
    assert_eq!(nodes(), before);
}

#[test]
fn many_idle_terminals_do_not_hold_an_agent_up() {
    let cluster = Cluster::new("terms", "[workers.default]\nmin = 1");
    cluster.up();
    let before = cluster.events().len();
    // A terminal for each: `script` gives the client one.
    let open = || {
        let command = cluster.command(&["exec", "terms", "--node", "w1", "-t", "--", "sleep", "730001"]);
        let line: Vec<String> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(|w| w.to_string_lossy().into_owned()).collect();
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &line.join(" "), "/dev/null"]).envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().expect("script runs")
    };
    let mut clients: Vec<_> = (0..70).map(|_| open()).collect();
    until("the programs", Duration::from_secs(30), || (sleepers(730_001).len() == 70).then_some(()));
    // Threads that started the programs end when they have been idle for a while: none is held by a terminal.
    let tasks = format!("/proc/{}/task", agent(&cluster, "w1"));
    until("few threads", Duration::from_secs(30), || (fs::read_dir(&tasks).expect("lists").count() < 20).then_some(()));
    cluster.run(&["exec", "terms", "--node", "w1", "--", "true"]).ok();
    let suspected: Vec<_> = cluster.events().split_off(before).into_iter().filter(|e| e.contains("suspect")).collect();
    assert_eq!(suspected, Vec::<String>::new());
    for client in &mut clients {
        let _ = client.kill();
        let _ = client.wait();
    }
    cluster.down();
    until("their end", Duration::from_secs(10), || sleepers(730_001).is_empty().then_some(()));
}
