//! Clusters of the virtual provider, as a person brings them up. As root.

use std::fs;
use std::time::Duration;

use cloudtik_tests::{Cluster, send, skipped, until};
use nix::sys::signal::Signal;

/// A cluster of virtual nodes; none where this machine does not allow it.
fn cluster(name: &str, rest: &str) -> Option<Cluster> {
    if !nix::unistd::geteuid().is_root() {
        skipped("clusters of virtual nodes need root here");
        return None;
    }
    let cluster = Cluster::new(name, rest);
    let text = fs::read_to_string(&cluster.file).expect("reads");
    fs::write(&cluster.file, text.replace("kind = \"local\"", "kind = \"virtual\"")).expect("writes");
    Some(cluster)
}

/// Network links of the machine whose names begin as those of virtual nodes do.
fn links() -> Vec<String> {
    let found = fs::read_dir("/sys/class/net").expect("reads").flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    found.filter(|name| name.starts_with("ct")).collect()
}

#[test]
fn a_cluster_of_virtual_nodes_comes_up_recovers_and_leaves_nothing() {
    let Some(cluster) = cluster("virtual", "[workers.default]\nmin = 3\n") else { return };
    cluster.up();
    let names = cluster.run(&["exec", "virtual", "--all", "--", "hostname"]).ok().out;
    for node in ["head", "w1", "w2", "w3"] {
        assert!(names.contains(&format!("{node}: {node}")), "{names}");
    }
    // Each finds the others by their names, sees its own processes alone, and writes to itself alone.
    let script = "getent hosts head w1 w2 w3 && touch /only-here && ls /proc | grep -c '^[0-9]*$'";
    let said = cluster.run(&["exec", "virtual", "--node", "w1", "--", "sh", "-c", script]).ok().out;
    let processes: u32 = said.lines().last().and_then(|line| line.trim().parse().ok()).expect("a number");
    assert!(processes < 20, "{said}");
    assert!(!fs::exists("/only-here").expect("looks"));
    cluster.run(&["exec", "virtual", "--node", "w2", "--", "test", "!", "-e", "/only-here"]).ok();
    // The root's key, which stays with the user, is on no node, and the head's state on no other one.
    for (node, hidden) in [("head", "ca"), ("w1", "ca"), ("w1", "head/head.json")] {
        let path = cluster.directory().join(hidden);
        assert!(path.exists());
        cluster.run(&["exec", "virtual", "--node", node, "--", "test", "!", "-e", &path.display().to_string()]).ok();
    }

    let killed = |pattern: &str| {
        let pids: Vec<i32> = cluster.processes().into_iter().filter(|(_, line)| line.contains(pattern)).map(|(pid, _)| pid).collect();
        assert!(!pids.is_empty(), "nothing runs {pattern}");
        pids.into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
    };
    let epoch = cluster.status().head.epoch;
    killed(&format!("cloudtik-head --state {}", cluster.directory().display()));
    cluster.wait("the head's return", Duration::from_secs(20), |s| s.ready && s.head.epoch > epoch);
    // All that a node is ends with its first process, and another one takes its place.
    let first = cluster.run(&["exec", "virtual", "--node", "w2", "--", "cat", "/proc/1/cmdline"]).ok().out;
    assert!(!first.contains("systemd"), "{first}");
    cluster.run(&["kill-node", "virtual", "w2", "--yes"]).ok();
    cluster.wait("a worker in its place", Duration::from_secs(30), |s| {
        s.ready && s.nodes.iter().all(|n| n.id.as_str() != "w2" || n.generation.0 > 1)
    });

    cluster.down();
    cluster.assert_nothing_left();
    cluster.run(&["workspace", "delete", "default", "--yes"]).ok();
    until("the links' end", Duration::from_secs(10), || links().is_empty().then_some(()));
}
