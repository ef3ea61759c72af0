//! A hundred virtual nodes on this machine, and nothing of them afterwards. As root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cloudtik_tests::{Cluster, until};
use cloudtik_virtual::testing;

const WORKERS: usize = 100;
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// When a process was started, in clock ticks from boot; none if it has ended, be it that its parent has not looked yet.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) { None } else { fields.get(19)?.parse().ok() }
}

fn namespaces(pid: i32) -> impl Iterator<Item = PathBuf> {
    NAMESPACES.iter().filter_map(move |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok())
}

/// The processes in any of some namespaces, with their starts.
fn processes_in(made: &BTreeSet<PathBuf>) -> BTreeMap<i32, u64> {
    let pids = fs::read_dir("/proc").expect("reads").flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid| namespaces(*pid).any(|space| made.contains(&space))).filter_map(|pid| Some((pid, started(pid)?))).collect()
}

#[test]
fn a_hundred_virtual_nodes_get_ready_and_leave_nothing() {
    let Some(cluster) = Cluster::of_virtual_nodes("hundred", &format!("[workers.default]\nmin = {WORKERS}\n")) else { return };
    let begun = std::time::Instant::now();
    cluster.up();
    eprintln!("a head and {WORKERS} workers were ready after {:?}", begun.elapsed());
    let status = cluster.status();
    assert!(status.ready && status.nodes.len() == WORKERS + 1 && status.nodes.iter().all(|node| node.state == "ready"), "{status:#?}");
    let verdicts: Vec<_> = cluster.events().into_iter().filter(|e| e.starts_with("verdict")).collect();
    assert_eq!(verdicts, Vec::<String>::new());
    let addresses: BTreeSet<_> = status.nodes.iter().map(|node| node.address.clone()).collect();
    assert_eq!(addresses.len(), WORKERS + 1, "each has an address of its own");

    let provider = testing::provider_of(&cluster.directory().join("nodes")).expect("it has a head's node");
    let first = |instance: &cloudtik_model::node::Instance| testing::first_process(&provider, &instance.id).expect("it runs");
    let mut made: BTreeSet<PathBuf> = testing::list(&provider).iter().map(first).flat_map(namespaces).collect();
    for shared in namespaces(std::process::id().cast_signed()) {
        made.remove(&shared);
    }
    assert_eq!(made.len(), (WORKERS + 1) * NAMESPACES.len(), "each has namespaces of its own");
    let processes = processes_in(&made);
    assert!(processes.len() > 2 * WORKERS, "at least a first process and an agent on each: {}", processes.len());

    cluster.down();
    cluster.assert_nothing_left();
    cluster.run(&["workspace", "delete", "default", "--yes"]).ok();
    let workspace = cluster.state().join("workspaces/default");
    until("the end of links, bridges, rules, control groups, mounts and first processes", Duration::from_secs(20), || {
        let left = testing::left(&workspace);
        if !left.is_empty() {
            eprintln!("still there: {left:?}");
        }
        left.is_empty().then_some(())
    });
    // A namespace is gone with the last process in it, and its number may be given to somebody else's.
    until("the end of all processes in the nodes' namespaces", Duration::from_secs(20), || {
        processes.iter().all(|(pid, start)| started(*pid) != Some(*start)).then_some(())
    });
}
