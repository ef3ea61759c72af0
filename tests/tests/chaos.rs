//! SIGKILL of the head at random moments of `up`, `scale` and `down`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloudtik_model::status::Status;
use cloudtik_tests::{Cluster, repository, send};
use nix::sys::signal::Signal;

/// Kills of the head in all.
const KILLS: usize = 100;

/// A small generator, since the moments need not be good, only different: xorshift (Marsaglia 2003).
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn head_pid(cluster: &Cluster) -> Option<i32> {
    cluster.processes().iter().find(|(_, line)| line.contains("cloudtik-head --state")).map(|(pid, _)| *pid)
}

/// Service processes by node, which nothing here gives a reason to restart.
fn services(status: &Status) -> BTreeMap<String, (Option<String>, Option<u32>)> {
    let web = |n: &cloudtik_model::status::Node| {
        let pid = n.services.iter().find(|s| s.name == "webserver/web").and_then(|s| s.pid);
        (n.id.to_string(), (n.instance.as_ref().map(ToString::to_string), pid))
    };
    status.nodes.iter().filter(|n| n.kind == "worker").map(web).collect()
}

/// No node runs twice, nothing runs that the head does not know.
#[track_caller]
fn assert_no_doubles(cluster: &Cluster, status: &Status) {
    let known: BTreeSet<String> = status.nodes.iter().filter_map(|n| n.instance.as_ref().map(ToString::to_string)).collect();
    let mut agents: BTreeMap<String, usize> = BTreeMap::new();
    for (_, line) in cluster.processes().iter().filter(|(_, line)| line.contains("run --lead-session")) {
        let instance = line.rsplit('/').next().unwrap_or_default().to_owned();
        *agents.entry(instance).or_default() += 1;
    }
    assert!(agents.values().all(|count| *count == 1), "an agent runs twice: {agents:?}");
    let running: BTreeSet<String> = agents.into_keys().collect();
    assert_eq!(running, known, "what runs is what the head knows");
}

#[test]
fn a_head_killed_a_hundred_times_loses_and_doubles_nothing() {
    let seed = std::env::var("CLOUDTIK_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64 | 1));
    println!("again with CLOUDTIK_SEED={seed}");
    let mut moments = Moments(seed);
    let folder = repository().join("examples/runtimes/webserver").display().to_string();
    let spec = format!("[workers.default]\nmin = 2\nmax = 5\n[runtimes.webserver]\npath = \"{folder}\"");
    let cluster = Cluster::new("chaos", &spec);
    let file = cluster.file.display().to_string();
    let mut kills = 0;
    while kills < KILLS {
        // Killed during `up`, which goes on or is repeated.
        let mut up = cluster.command(&["up", &file, "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("up runs");
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20 + moments.next(250)));
            if let Some(pid) = head_pid(&cluster) {
                send(pid, Signal::SIGKILL);
                kills += 1;
            }
        }
        let _ = up.wait();
        cluster.up();
        assert_no_doubles(&cluster, &cluster.wait_ready());

        for _ in 0..8 {
            let before = services(&cluster.wait_ready());
            let workers = 2 + moments.next(4);
            let scaled = cluster.run(&["scale", "chaos", "--workers", &workers.to_string()]);
            std::thread::sleep(Duration::from_millis(moments.next(300)));
            if let Some(pid) = head_pid(&cluster) {
                send(pid, Signal::SIGKILL);
                kills += 1;
            }
            let status = cluster.wait_ready();
            if scaled.code == 0 {
                let count = status.nodes.iter().filter(|n| n.kind == "worker").count();
                assert_eq!(count as u64, workers, "an acknowledged request is not lost: {:#?}", cluster.events());
            }
            assert_no_doubles(&cluster, &status);
            let after = services(&status);
            for (node, process) in before.iter().filter(|(node, _)| after.contains_key(*node)) {
                if after[node].0 == process.0 {
                    assert_eq!(after[node], *process, "the service on {node} was not restarted");
                }
            }
        }

        // Killed during `down`, which is repeated.
        let mut down = cluster.command(&["down", "chaos", "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("down runs");
        std::thread::sleep(Duration::from_millis(moments.next(200)));
        if let Some(pid) = head_pid(&cluster) {
            send(pid, Signal::SIGKILL);
            kills += 1;
        }
        let _ = down.wait();
        if cluster.directory().exists() {
            cluster.down();
        }
        cluster.assert_nothing_left();
    }
}
