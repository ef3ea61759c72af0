//! Random kills of the launcher, the agent and the head while jobs are submitted and run.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::Duration;

use cloudtik_model::job::{Job, JobEnd};
use cloudtik_model::status::Status;
use cloudtik_tests::jobs::{MINUTE, batch_with, script};
use cloudtik_tests::{Cluster, send, until};
use nix::sys::signal::Signal;

/// Numbers from a seed: xorshift64 (Marsaglia, 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Kills the head, or the agent on its node, while both are there: if both die at one moment, only `up` brings them back.
fn kill(cluster: &Cluster, head: bool) {
    until("something to kill", MINUTE, || {
        let text = cluster.run(&["status", &cluster.name, "-o", "json"]).out;
        let status: Status = serde_json::from_str(&text).ok()?;
        let agent = status.nodes.iter().find(|node| node.id.is_head())?.agent.clone()?;
        // Of an agent that was just killed, the head has not heard yet.
        let line = fs::read_to_string(format!("/proc/{}/stat", agent.pid)).ok()?;
        if line.rsplit(") ").next()?.starts_with('Z') {
            return None;
        }
        send(if head { status.head.pid } else { agent.pid } as i32, Signal::SIGKILL);
        Some(())
    });
}

#[test]
fn twenty_random_kills_leave_each_job_complete_and_run_once() {
    let seed = std::env::var("CLOUDTIK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().expect("it is later").as_nanos() as u64 | 1);
    println!("CLOUDTIK_SEED={seed}");
    let mut random = Random(seed);
    let cluster = batch_with("killed", "[jobs]\nparallel = 4");
    let runs = cluster.state().join("runs");
    let lines = 4_000;
    // It notes that it ran, and prints for a while, to both outputs.
    let text = format!(
        "echo $CLOUDTIK_JOB_NAME >> {}; i=0; while [ $i -lt {lines} ]; do echo line $i; echo error $i >&2; i=$((i + 1)); [ $((i % 40)) -eq 0 ] && sleep 0.1; done; exit 5",
        runs.display()
    );
    let file = script(&cluster, "job.sh", &text);
    let submit = |name: &str| {
        let out = File::create(cluster.state().join(name)).expect("creates");
        let mut command = cluster.command(&["submit", "--name", name, "killed", &file]);
        command.stdout(out).stderr(Stdio::null()).spawn().expect("runs")
    };
    let mut followed: Vec<(String, Child)> = (0..3).map(|n| (format!("followed-{n}"), submit(&format!("followed-{n}")))).collect();
    let mut abandoned = Vec::new();
    until("the first job", MINUTE, || runs.exists().then_some(()));
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(random.below(900)));
        match random.below(3) {
            0 => kill(&cluster, true),
            1 => kill(&cluster, false),
            // At some moment of its submission, or after.
            _ if abandoned.len() < 5 => {
                let name = format!("abandoned-{round}");
                let mut launcher = submit(&name);
                std::thread::sleep(Duration::from_millis(random.below(120)));
                send(launcher.id() as i32, Signal::SIGKILL);
                let _ = launcher.wait();
                abandoned.push(name);
            }
            _ => kill(&cluster, random.below(2) == 0),
        }
    }
    let whole: String = (0..lines).map(|i| format!("line {i}\n")).collect();
    let errors: String = (0..lines).map(|i| format!("error {i}\n")).collect();
    let known = until("the list of jobs", MINUTE, || {
        let ran = cluster.run(&["jobs", "list", "killed", "-o", "json"]);
        serde_json::from_str::<Vec<Job>>(&ran.out).ok()
    });
    let mut names: Vec<String> = known.iter().map(|job| job.name.to_string()).collect();
    for name in &names {
        let ended = until(&format!("the end of {name}"), 4 * MINUTE, || {
            let ran = cluster.run(&["jobs", "status", "killed", name, "-o", "json"]);
            serde_json::from_str::<Job>(&ran.out).ok().filter(Job::has_ended)
        });
        assert_eq!((ended.end, ended.attempt), (Some(JobEnd::Failed { exit_code: 5 }), 1), "{name}, seed {seed}");
        let kept = until("its log", MINUTE, || Some(cluster.run(&["jobs", "logs", "killed", name])).filter(|ran| ran.code == 0));
        assert!(kept.out == whole && kept.err == errors, "{name}: {} and {} bytes, seed {seed}", kept.out.len(), kept.err.len());
    }
    for (name, launcher) in &mut followed {
        assert_eq!(launcher.wait().expect("ends").code(), Some(5), "what follows {name}, seed {seed}");
        let printed = fs::read_to_string(cluster.state().join(&*name)).expect("reads");
        assert!(printed == whole, "what follows {name} printed {} of {} bytes, seed {seed}", printed.len(), whole.len());
        assert!(names.contains(name), "{name} was acknowledged, seed {seed}");
    }
    assert!(names.iter().all(|name| name.starts_with("followed") || abandoned.contains(name)), "{names:?}");
    let mut ran: Vec<String> = fs::read_to_string(&runs).expect("reads").lines().map(str::to_owned).collect();
    ran.sort();
    names.sort();
    assert_eq!(ran, names, "each ran once, seed {seed}");
    cluster.down();
    cluster.assert_nothing_left();
}
