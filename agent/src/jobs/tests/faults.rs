//! What is killed, lost or full while jobs begin and run.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

#[tokio::test]
async fn an_attempt_whose_shim_was_killed_is_lost_and_its_process_ends() {
    for is_watched in [true, false] {
        let mut node = Node::new();
        let goal = start(shell(ENDLESS));
        let agent = node.agent();
        agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
        let pid = agent.running().await;
        until("it runs", || node.runs() == "run\n").await;
        let state: serde_json::Value = serde_json::from_slice(&fs::read(node.attempt(1).join("shim.json")).expect("there")).expect("JSON");
        let shim = state["shim"]["pid"].as_i64().expect("a number") as i32;
        let kill = || kill(Pid::from_raw(shim), Signal::SIGKILL).expect("kills");
        let agent = if is_watched {
            kill();
            agent
        } else {
            agent.end().await;
            kill();
            until("the shim is gone", || Process::of(shim).is_none()).await;
            node.agent()
        };
        let end = agent.over(1).await;
        assert!(matches!(end, JobReportState::Ended { end: JobEnd::Lost { why: Loss::Shim }, .. }), "{end:?}");
        until("its process ends", || Process::of(pid).is_none()).await;
        agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
        agent.end().await;
        let next = node.agent();
        assert_eq!(next.over(1).await, end, "at the same time as it was seen first");
        next.end().await;
        assert_eq!(node.runs(), "run\n");
    }
}

#[tokio::test]
async fn an_attempt_begins_once_whenever_its_agent_is_killed() {
    let goal = start(shell("echo run >>../../../../runs"));
    // Prepared, and no more: the next agent waits for the word of a head, and begins it.
    let mut node = Node::new();
    let agent = node.agent();
    agent.jobs.take(node.goals(&[start(shell("exit 0"))], &[])).await;
    agent.ended().await;
    let run = fs::read(node.attempt(1).join("run.json")).expect("there");
    agent.end().await;
    fs::remove_dir_all(node.attempt(1)).expect("removes");
    fs::create_dir_all(node.attempt(1).join("work")).expect("makes");
    fs::write(node.attempt(1).join("run.json"), &run).expect("writes");
    let stored = node.goals(std::slice::from_ref(&goal), &[]);
    fs::write(node.path(layout::GOALS), serde_json::to_vec(&stored).expect("JSON")).expect("writes");
    let agent = node.agent();
    agent.preparing().await;
    assert_eq!(node.runs(), "");
    agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
    assert_eq!(agent.ended().await, JobEnd::Succeeded);
    assert_eq!(node.runs(), "run\n");
    agent.end().await;

    // Between the mark and the process: it does not begin again.
    let mut node = Node::new();
    fs::create_dir_all(node.attempt(1).join("work")).expect("makes");
    fs::write(node.attempt(1).join("run.json"), &run).expect("writes");
    fs::write(node.attempt(1).join("begun"), r#"{"started_at":1700000000000}"#).expect("writes");
    let agent = node.agent();
    agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
    match agent.over(1).await {
        JobReportState::Ended { started, end: JobEnd::Lost { why: Loss::Shim }, .. } => assert_eq!(started.0, 1_700_000_000_000),
        state => panic!("{state:?}"),
    }
    agent.end().await;
    assert_eq!(node.runs(), "");

    // The shim of an agent that was killed comes late: whichever is first runs it, the other does not.
    for _ in 0..5 {
        let mut node = Node::new();
        let agent = node.agent();
        let late = {
            let (directory, program) = (node.attempt(1), crate::shim::program());
            tokio::task::spawn_blocking(move || {
                while !directory.join("run.json").exists() {
                    std::thread::yield_now();
                }
                std::process::Command::new(program).arg("shim").arg(directory).output().expect("runs")
            })
        };
        agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
        assert_eq!(agent.ended().await, JobEnd::Succeeded);
        late.await.expect("ends");
        assert_eq!(node.runs(), "run\n");
        agent.end().await;
    }
}

/// Whatever an agent was doing stops at some moment, and the next one follows, until the job is over.
#[test]
fn agents_that_end_at_random_moments_run_each_job_once() {
    for seed in 0..20u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut node = Node::new();
        let file = node.head.add("script", "echo run >>../../../../runs; seq 1 2000; sleep 0.03; seq 2001 4000");
        let goal = start(JobStart { command: ["/bin/sh", "script"].map(str::to_owned).to_vec(), files: vec![file], ..shell("") });
        let state = loop {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let lives = Duration::from_micros(random % 50_000);
            let goals = node.goals(std::slice::from_ref(&goal), &[]);
            let seen = runtime.block_on(async {
                let agent = node.agent();
                tokio::time::timeout(lives, async {
                    agent.jobs.take(goals).await;
                    agent.over(1).await
                })
                .await
            });
            // Without a word to its tasks, as if it was killed; what blocks goes on for a moment.
            runtime.shutdown_background();
            if let Ok(state) = seen {
                break state;
            }
        };
        assert!(matches!(state, JobReportState::Ended { end: JobEnd::Succeeded, lost_output: 0, .. }), "seed {seed}: {state:?}");
        assert_eq!(node.runs(), "run\n", "seed {seed}");
        let expected: String = (1..=4_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(node.log(JobStream::Stdout), expected, "seed {seed}");
    }
}

#[tokio::test]
async fn a_job_whose_directory_is_removed_does_not_begin_again() {
    let mut node = Node::new();
    let goal = start(shell("echo run >>../../../../runs; while [ ! -e \"$GO\" ]; do sleep 0.01; done"));
    let go = node.path("go");
    let environment = BTreeMap::from([("GO".to_owned(), go.display().to_string())]);
    let goal = JobGoal { start: goal.start.map(|start| JobStart { environment, ..start }), ..goal };
    let agent = node.agent();
    agent.jobs.take(node.goals(&[goal], &[])).await;
    agent.running().await;
    until("it runs", || node.runs() == "run\n").await;
    fs::remove_dir_all(node.path("jobs")).expect("removes");
    fs::write(go, "").expect("writes");
    assert_eq!(agent.ended().await, JobEnd::Lost { why: Loss::Directory });
    agent.end().await;
    assert_eq!(node.runs(), "run\n");
}

#[tokio::test]
async fn a_job_that_reaches_its_memory_limit_is_known_to_have() {
    let node = Node::new();
    let limits = Limits { memory: Some(32 << 20), cpu_millis: None };
    let probe = crate::cgroup::limit(&Home::new(&node.home), "job-probe".to_owned(), limits.clone()).await;
    if probe == crate::cgroup::Groups::default() {
        return cloudtik_tests::skipped("a job that reaches its memory limit: control groups cannot be made here");
    }
    probe.remove();
    // In a child of the shell, which ends as shells do when a program was killed.
    for script in ["truncate -s 200M big; exec sort -S 300M big", "truncate -s 200M big; sort -S 300M big; exit $?"] {
        let mut node = Node::new();
        let agent = node.agent();
        agent.jobs.take(node.goals(&[start(JobStart { limits: limits.clone(), ..shell(script) })], &[])).await;
        assert_eq!(agent.ended().await, JobEnd::Killed { signal: 9, out_of_memory: true }, "{script}");
        agent.end().await;
    }
}

/// A small file system of its own, while it lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: &Path) -> nix::Result<Self> {
        use nix::mount::{MsFlags, mount};
        mount(Some("cloudtik-test"), path, Some("tmpfs"), MsFlags::empty(), Some("size=4m"))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_job_that_fills_the_disk_is_ended_and_another_begins_when_there_is_room() {
    let mut node = Node::new();
    let _disk = match SmallDisk::new(&node.home) {
        Ok(disk) => disk,
        Err(error) => return cloudtik_tests::skipped(&format!("a full disk under a job: a small file system cannot be mounted: {error}")),
    };
    let agent = node.agent();
    // Its limit is beyond the disk.
    let fills = JobStart { log_max_bytes: 1 << 30, ..shell("yes") };
    agent.jobs.take(node.goals(&[start(fills)], &[])).await;
    agent.running().await;
    until("the disk is full", || crate::load::disk_free(&node.home) == Some(0)).await;
    let other = JobGoal { id: JobId(2), ..start(shell("echo run")) };
    agent.jobs.take(node.goals(&[cancel(), other.clone()], &[])).await;
    match agent.over(1).await {
        JobReportState::Ended { end: JobEnd::Cancelled, lost_output, .. } => assert!(lost_output > 0),
        state => panic!("{state:?}"),
    }
    let second = || agent.context.reports.latest_jobs().get(&JobId(2)).map(|report| report.state.clone());
    until("the other waits", || second() == Some(JobReportState::Preparing)).await;
    // What the first printed is removed, which leaves room: the document is written, and the other begins by it.
    let goals = node.goals(&[other], &[]);
    agent.jobs.take(goals.clone()).await;
    until("the other has run", || matches!(second(), Some(JobReportState::Ended { end: JobEnd::Succeeded, .. }))).await;
    let stored = fs::read(node.path(layout::GOALS)).expect("there");
    assert_eq!(serde_json::from_slice::<JobGoals>(&stored).expect("JSON"), goals);
    agent.jobs.take(node.goals(&[], &[])).await;
    until("nothing is left", || fs::read_dir(node.path("jobs")).expect("lists").count() == 0).await;
    agent.end().await;
}
