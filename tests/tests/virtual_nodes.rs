//! Clusters of the virtual provider, as a person brings them up: as root, and as an ordinary user.

use std::fs;
use std::time::Duration;

use cloudtik_tests::{Cluster, send, skipped, until};
use nix::sys::signal::Signal;

/// The first processes, holders of namespaces and services of a user's virtual nodes, with what each is.
fn left_of(cluster: &Cluster) -> Vec<(i32, String)> {
    let state = cluster.state().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("cloudtik-virtual") && line.contains(&state) {
            found.push((pid, line));
        }
    }
    found
}

/// The network links of virtual nodes and their workspaces on this machine, but those of other tests: what is on them names the
/// directory that they are for.
fn links_of(cluster: &Cluster) -> Vec<String> {
    let state = cluster.state().display().to_string();
    let found = fs::read_dir("/sys/class/net").expect("reads").flatten();
    let alias = |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
    let own = found.filter(|entry| alias(entry).contains(&state));
    own.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_cluster_of_virtual_nodes_comes_up_recovers_and_leaves_nothing() {
    let Some(cluster) = Cluster::of_virtual_nodes("virtual", "[workers.default]\nmin = 3\n") else { return };
    let before = links_of(&cluster);
    cluster.up();
    // The bridge, and a link of each node.
    assert_eq!(links_of(&cluster).len(), before.len() + 5, "{:?}", links_of(&cluster));
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
    until("the links' end", Duration::from_secs(10), || (links_of(&cluster) == before).then_some(()));
}

#[test]
fn nodes_of_a_removed_cluster_are_named_by_doctor_and_ended_by_down() {
    let Some(cluster) = Cluster::of_virtual_nodes("removed", "[workers.default]\nmin = 1\n") else { return };
    cluster.up();
    // What is written meanwhile may be in the way.
    until("the removal", Duration::from_secs(10), || fs::remove_dir_all(cluster.directory()).is_ok().then_some(()));
    let ran = cluster.run(&["doctor"]);
    for node in ["head.1", "w1.1"] {
        let named = format!("1 process of {node} of the cluster removed, though ");
        assert!(ran.code != 0 && ran.out.contains(&named), "{ran:?}");
    }
    assert!(ran.out.contains("cloudtik down removed --yes"), "{ran:?}");
    assert!(cluster.run(&["list"]).ok().err.contains("removed"), "`list` tells of it");
    cluster.run(&["down", "removed", "--yes"]).ok();
    assert_eq!(left_of(&cluster), Vec::new(), "what ran for it has ended");
    let ran = cluster.run(&["doctor"]);
    assert!(!ran.out.contains("orphan processes"), "{ran:?}");

    // The name is free again.
    cluster.up();
    assert!(cluster.status().ready);
    cluster.down();
    cluster.assert_nothing_left();
    cluster.run(&["workspace", "delete", "default", "--yes"]).ok();
    assert_eq!(left_of(&cluster), Vec::new());
}

/// A service on the head that jobs are given to, and one on every worker.
const BATCH: &str = r#"
[runtime]
name = "batch"
version = "1"
[services.queue]
role = "head"
command = ["/bin/sleep", "1000000"]
[services.worker]
role = "workers"
command = ["/bin/sh", "-c", "echo a worker of `hostname` runs; exec sleep 1000000"]
[submit]
service = "queue"
command = ["/bin/sh", "-c", "cat * && hostname && id -u"]
"#;

#[test]
fn an_ordinary_user_s_cluster_of_virtual_nodes_works_as_any_other_and_leaves_nothing() {
    let cluster = Cluster::new("own", "[workers.default]\nmin = 2\nmax = 4\n[runtimes.batch]\npath = \"./batch\"\n").with_kind("virtual");
    cluster.write_runtime("batch", BATCH);
    let job = cluster.file.with_file_name("job.sh");
    fs::write(&job, "the job's own text\n").expect("writes");
    let Some(cluster) = cluster.of_ordinary_user() else { return };
    if !cluster.up_or_forbidden() {
        return;
    }
    let status = cluster.wait_ready();
    assert_eq!(status.nodes.len(), 3, "{status:#?}");

    // Each is root of its own system only, and finds the others.
    let said = cluster.run(&["exec", "own", "--all", "--", "sh", "-c", "echo $(hostname) $(id -u)"]).ok().out;
    for node in ["head", "w1", "w2"] {
        assert!(said.contains(&format!("{node}: {node} 0")), "{said}");
    }
    cluster.run(&["exec", "own", "--node", "w1", "--", "getent", "hosts", "head", "w2"]).ok();
    let log = cluster.run(&["logs", "own", "--node", "w2", "--runtime", "batch"]).ok().out;
    assert!(log.contains("a worker of w2 runs"), "{log}");
    let submitted = cluster.run(&["submit", "own", &job.display().to_string()]).ok().out;
    assert!(submitted.contains("the job's own text\nhead\n0\n"), "{submitted}");
    cluster.run(&["scale", "own", "--workers", "3"]).ok();
    cluster.wait("the third worker", Duration::from_secs(30), |s| s.ready && s.nodes.len() == 4);

    // A node that ends is made anew, and so is everything when all of the user's namespaces end.
    cluster.run(&["kill-node", "own", "w2", "--yes"]).ok();
    cluster.wait("a worker in its place", Duration::from_secs(30), |s| {
        s.ready && s.nodes.len() == 4 && s.nodes.iter().all(|n| n.id.as_str() != "w2" || n.generation.0 > 1)
    });
    let ground: Vec<i32> = left_of(&cluster).into_iter().filter(|(_, line)| line.contains(" ground ")).map(|(pid, _)| pid).collect();
    assert_eq!(ground.len(), 1, "one process holds the namespaces: {:?}", left_of(&cluster));
    send(ground[0], Signal::SIGKILL);
    until("the end of every node", Duration::from_secs(10), || cluster.processes().is_empty().then_some(()));
    assert!(cluster.up_or_forbidden());
    cluster.wait("the whole cluster again", Duration::from_secs(60), |s| s.ready && s.nodes.len() == 4);

    cluster.down();
    cluster.assert_nothing_left();
    cluster.run(&["workspace", "delete", "default", "--yes"]).ok();
    until("the end of the user's namespaces", Duration::from_secs(10), || left_of(&cluster).is_empty().then_some(()));
}

#[test]
fn an_ordinary_user_without_namespaces_is_told_the_setting_that_forbids_them() {
    let Some(cluster) = Cluster::new("forbidden", "").with_kind("virtual").of_ordinary_user() else { return };
    // The limit counts for what is below the namespace that it is written in.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces || exit 99; exec \"$@\"";
    let runner = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    let file = cluster.file.display().to_string();
    let ran = cluster.command_through(&runner, &["up", &file, "--yes"]).output().expect("runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    if ran.status.code() == Some(99) || said.contains("unshare: ") {
        return skipped(&format!("the limit of namespaces cannot be set below an ordinary user's: {said}"));
    }
    assert!(!ran.status.success(), "{said}");
    assert!(said.contains("user.max_user_namespaces is 0") && said.contains("sysctl -w user.max_user_namespaces=10000"), "{said}");
}

/// Services that use up memory once a file says so; one has a limit of its own.
const GLUTTON: &str = r#"
[runtime]
name = "glutton"
version = "1"
[services.bounded]
role = "workers"
command = ["/bin/sh", "-c", "while ! rm /eat-bounded 2>/dev/null; do sleep 0.1; done; exec tail /dev/zero"]
limits = { memory = "32MiB" }
[services.unbounded]
role = "workers"
command = ["/bin/sh", "-c", "while ! rm /eat-unbounded 2>/dev/null; do sleep 0.1; done; exec tail /dev/zero"]
[services.parent]
role = "workers"
command = ["/bin/sh", "-c", "while ! rm /eat-parent 2>/dev/null; do sleep 0.1; done; tail /dev/zero; exec sleep 1000000"]
limits = { memory = "32MiB" }
"#;

#[test]
fn why_tells_whose_memory_limit_had_a_process_of_a_virtual_node_killed() {
    let rest =
        "[head]\nmemory = \"1GiB\"\n[workers.default]\nmin = 2\nmemory = \"256MiB\"\ncpus = 1\n[runtimes.glutton]\npath = \"./glutton\"\n";
    let Some(cluster) = Cluster::of_virtual_nodes("glutton", rest) else { return };
    cluster.write_runtime("glutton", GLUTTON);
    cluster.up();
    for (service, cause) in [("bounded", "memory limit reached"), ("unbounded", "the node's memory limit reached")] {
        cluster.run(&["exec", "glutton", "--node", "w1", "--", "touch", &format!("/eat-{service}")]).ok();
        let told = format!("glutton/{service} crashed ({cause}, killed by SIGKILL)");
        until("the kernel's verdict", Duration::from_secs(30), || {
            cluster.run(&["why", "glutton", "w1"]).ok().out.contains(&told).then_some(())
        });
        cluster.wait("its restart", Duration::from_secs(30), |s| s.ready);
    }
    // What the head leaves when it ends must not end with it: it has no group of its own.
    let groups =
        |node: &str| cluster.run(&["exec", "glutton", "--node", node, "--", "find", "/sys/fs/cgroup", "-name", "cloudtik-*"]).ok().out;
    let (of_head, of_worker) = (groups("head"), groups("w1"));
    assert!(of_worker.contains("glutton.unbounded") && !of_head.contains("cloudtik.head"), "{of_worker}\n{of_head}");
    // What a service's process started, and what a person runs there.
    let told = |what: &str| {
        until(what, Duration::from_secs(30), || cluster.run(&["why", "glutton", "w1"]).ok().out.contains(what).then_some(()));
    };
    cluster.run(&["exec", "glutton", "--node", "w1", "--", "touch", "/eat-parent"]).ok();
    told("the kernel killed a process of glutton/parent: the service's memory limit was reached");
    assert_eq!(cluster.run(&["exec", "glutton", "--node", "w1", "--", "tail", "/dev/zero"]).code, 128 + Signal::SIGKILL as i32);
    told("the kernel killed a process: the node's memory limit was reached");
    let other = cluster.run(&["why", "glutton", "w2"]).ok().out;
    assert!(!other.contains("memory limit"), "{other}");
    cluster.down();
    cluster.assert_nothing_left();
}

#[test]
fn nodes_see_no_process_of_another_reach_no_other_workspace_and_use_no_more_memory_than_they_have() {
    let rest = "[workers.default]\nmin = 2\nmemory = \"256MiB\"\ncpus = 1\n";
    let (Some(one), Some(other)) = (Cluster::of_virtual_nodes("one", rest), Cluster::of_virtual_nodes("other", rest)) else { return };
    one.up();
    other.up();
    let on =
        |cluster: &Cluster, node: &str, script: &str| cluster.run(&["exec", &cluster.name, "--node", node, "--", "bash", "-c", script]);

    // A process that is told by its arguments, on one node.
    let mut long = one.command(&["exec", "one", "--node", "w1", "--", "sleep", "98765431"]).spawn().expect("runs");
    let seen =
        |cluster: &Cluster, node: &str| on(cluster, node, "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 9876543[1]'").out;
    until("the process", Duration::from_secs(10), || (seen(&one, "w1").trim() == "1").then_some(()));
    for (cluster, node) in [(&one, "w2"), (&one, "head"), (&other, "w1")] {
        assert_eq!(seen(cluster, node).trim(), "0", "{} sees it on {node}", cluster.name);
    }
    send(long.id() as i32, Signal::SIGTERM);
    long.wait().expect("ends");

    // Agents listen on every node, and are reached from the nodes of their own workspace only.
    let address = |cluster: &Cluster, node: &str| cluster.node(node).address.expect("it has one");
    let reaches = |to: &str| on(&one, "w1", &format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{to}/7071'")).code == 0;
    assert!(reaches(&address(&one, "w2")) && reaches(&address(&one, "head")));
    for node in ["head", "w1", "w2"] {
        assert!(!reaches(&address(&other, node)), "{node} of another workspace is reached");
    }

    // `tail` keeps its last line, which has no end here.
    let swallow = |bytes: u32| on(&one, "w1", &format!("head -c {bytes} /dev/zero | tail | wc -c")).out.trim().to_owned();
    assert_eq!(swallow(20_000_000), "20000000");
    assert_ne!(swallow(400_000_000), "400000000", "a node uses more memory than it has");
    until("the reason", Duration::from_secs(30), || {
        one.run(&["why", "one", "w1"]).ok().out.contains("the node's memory limit was reached").then_some(())
    });
    assert!(one.status().ready, "the node goes on");
    for cluster in [one, other] {
        cluster.down();
        cluster.assert_nothing_left();
        cluster.run(&["workspace", "delete", "default", "--yes"]).ok();
    }
}
