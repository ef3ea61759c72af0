mod documents;
mod faults;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cloudtik_model::goal::{Limits, Stop};
use cloudtik_model::job::{JobEnd, JobFile, JobGoal, JobReport, JobReportState, JobStart, JobStream, Loss, layout};
use cloudtik_model::{Epoch, Generation, NodeId};
use cloudtik_protocol::pki::sha256_hex;
use cloudtik_protocol::wire;
use tokio::sync::Notify;
use tokio_stream::iter;

use super::*;
use crate::fetch::Error;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(30);

/// Files by their digests, as a head has them.
#[derive(Clone, Default)]
struct Head(Arc<Mutex<Files>>);

#[derive(Default)]
struct Files {
    content: BTreeMap<String, Vec<u8>>,
    /// So many fetches break off after a few bytes.
    breaks: u32,
    /// Fetches wait for this.
    gate: Option<Arc<Notify>>,
    offsets: Vec<u64>,
}

impl Head {
    fn source(&self) -> Source {
        let own = self.clone();
        Source::new(move |request| {
            let own = own.clone();
            Box::pin(async move {
                let gate = own.files().gate.clone();
                if let Some(gate) = gate {
                    gate.notified().await;
                }
                let mut files = own.files();
                files.offsets.push(request.offset);
                let content = files.content.get(&request.digest).cloned().ok_or(Error::Missing)?;
                let rest = content[request.offset as usize..].to_vec();
                let chunk = |data: &[u8]| Ok(wire::Chunk { data: data.to_vec().into() });
                let chunks = if files.breaks > 0 {
                    files.breaks -= 1;
                    vec![chunk(&rest[..rest.len().min(2)]), Err(tonic::Status::unavailable("the head is gone"))]
                } else {
                    vec![chunk(&rest)]
                };
                let stream: std::pin::Pin<Box<dyn tokio_stream::Stream<Item = _> + Send>> = Box::pin(iter(chunks));
                Ok(stream)
            })
        })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().expect("no panic")
    }

    fn add(&self, name: &str, content: &str) -> JobFile {
        let digest = sha256_hex(content.as_bytes());
        self.files().content.insert(digest.clone(), content.as_bytes().to_vec());
        JobFile { name: name.to_owned(), size: content.len() as u64, digest }
    }
}

/// A node's directory, and the agents that come and go on it.
struct Node {
    home: PathBuf,
    _folder: Option<tempfile::TempDir>,
    head: Head,
    version: u64,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        Self { home: folder.path().to_owned(), _folder: Some(folder), head: Head::default(), version: 0 }
    }

    fn context(&self) -> JobContext {
        JobContext {
            home: Home::new(&self.home),
            reports: Reports::new(),
            source: self.head.source(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    fn agent(&self) -> Agent {
        let context = self.context();
        Agent { jobs: Jobs::start(context.clone()), context }
    }

    fn goals(&mut self, jobs: &[JobGoal], kept: &[u64]) -> JobGoals {
        self.version += 1;
        JobGoals {
            node: NodeId::head(),
            generation: Generation(1),
            epoch: Epoch(1),
            version: self.version,
            jobs: jobs.to_vec(),
            kept: kept.iter().copied().map(JobId).collect(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }

    fn attempt(&self, number: u32) -> PathBuf {
        self.home.join(layout::attempt(JobId(1), number))
    }

    fn log(&self, stream: JobStream) -> String {
        fs::read_to_string(self.home.join(layout::log(JobId(1), stream))).expect("a log")
    }

    /// What scripts append to, once each.
    fn runs(&self) -> String {
        fs::read_to_string(self.path("runs")).unwrap_or_default()
    }
}

struct Agent {
    jobs: Jobs,
    context: JobContext,
}

impl Agent {
    /// Waits until the job is reported in a state.
    async fn until(&self, what: &str, is_so: impl Fn(&JobReport) -> bool) -> JobReport {
        let mut seen = self.context.reports.subscribe_jobs();
        let found = tokio::time::timeout(PATIENCE, seen.wait_for(|all| all.get(&JobId(1)).is_some_and(&is_so)));
        match found.await {
            Ok(all) => all.expect("it reports")[&JobId(1)].clone(),
            Err(_) => panic!("not {what}: {:?}", self.context.reports.latest_jobs()),
        }
    }

    async fn running(&self) -> i32 {
        match self.until("running", |report| matches!(report.state, JobReportState::Running { .. })).await.state {
            JobReportState::Running { pid, .. } => pid as i32,
            state => panic!("{state:?}"),
        }
    }

    async fn preparing(&self) {
        self.until("preparing", |report| report.state == JobReportState::Preparing).await;
    }

    async fn over(&self, attempt: u32) -> JobReportState {
        let is_over = |report: &JobReport| {
            report.attempt == attempt && matches!(report.state, JobReportState::Ended { .. } | JobReportState::Unstarted { .. })
        };
        self.until("over", is_over).await.state
    }

    async fn ended(&self) -> JobEnd {
        match self.over(1).await {
            JobReportState::Ended { end, .. } => end,
            state => panic!("{state:?}"),
        }
    }

    async fn unstarted(&self) -> JobEnd {
        match self.over(1).await {
            JobReportState::Unstarted { end } => end,
            state => panic!("{state:?}"),
        }
    }

    /// It ends, and leaves what it runs.
    async fn end(self) {
        self.jobs.release();
        self.context.stop.cancel();
        self.context.tasks.close();
        tokio::time::timeout(PATIENCE, self.context.tasks.wait()).await.expect("its tasks end");
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

fn shell(script: &str) -> JobStart {
    JobStart {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        environment: BTreeMap::new(),
        files: Vec::new(),
        limits: Limits::default(),
        timeout_ms: None,
        stop: Stop { signal: 15, grace_ms: 300 },
        log_max_bytes: 1 << 20,
    }
}

fn start(start: JobStart) -> JobGoal {
    JobGoal { id: JobId(1), attempt: 1, start: Some(start), cancel: false }
}

fn cancel() -> JobGoal {
    JobGoal { id: JobId(1), attempt: 1, start: None, cancel: true }
}

/// Appends to the node's `runs`, then runs until something ends it.
const ENDLESS: &str = "echo run >>../../../../runs; while :; do sleep 0.05; done";

#[tokio::test]
async fn a_job_runs_once_with_its_files_and_its_end_stays_known() {
    let mut node = Node::new();
    let odd = "a b ä\n'\"$(x).sh";
    let script = "#!/bin/sh\necho run >>../../../../runs\ncat ./-data\nprintf '%s\\n' \"$@\" \"$OWN\" \"$CLOUDTIK_JOB_ID\" \"$HOME\"\necho no >&2\nexit 3\n";
    let files = vec![node.head.add(odd, script), node.head.add("-data", "content\n")];
    node.head.files().breaks = 2;
    let command = vec![format!("./{odd}"), "one two".to_owned()];
    let environment = BTreeMap::from([("OWN".to_owned(), "my own".to_owned())]);
    let goal = start(JobStart { command, files, environment, ..shell("") });
    let agent = node.agent();
    agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
    let end = agent.over(1).await;
    assert!(matches!(end, JobReportState::Ended { end: JobEnd::Failed { exit_code: 3 }, lost_output: 0, .. }), "{end:?}");
    let work = node.attempt(1).join("work");
    assert_eq!(node.log(JobStream::Stdout), format!("content\none two\nmy own\n1\n{}\n", work.display()));
    assert_eq!(node.log(JobStream::Stderr), "no\n");
    assert!(node.head.files().offsets.contains(&2), "a fetch that broke off went on: {:?}", node.head.files().offsets);
    until("what it ran in is removed", || !work.exists() && !node.attempt(1).join("files").exists()).await;
    // Told again, by this head or to the next agent.
    agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
    agent.end().await;
    let next = node.agent();
    assert_eq!(next.over(1).await, end, "from what is on the disk");
    next.jobs.take(node.goals(&[goal], &[])).await;
    assert_eq!(next.over(1).await, end);
    next.end().await;
    assert_eq!(node.runs(), "run\n");
}

#[tokio::test]
async fn a_job_outlives_its_agent_and_is_found_by_the_next() {
    let mut node = Node::new();
    let agent = node.agent();
    agent
        .jobs
        .take(node.goals(&[start(shell("echo run >>../../../../runs; while [ ! -e ../../../../go ]; do sleep 0.01; done; echo end"))], &[]))
        .await;
    let pid = agent.running().await;
    agent.end().await;
    let next = node.agent();
    assert_eq!(next.running().await, pid, "without a word of a head");
    next.end().await;
    fs::write(node.path("go"), "").expect("writes");
    until("it ends without any agent", || node.attempt(1).join("exit.json").exists()).await;
    let last = node.agent();
    assert_eq!(last.ended().await, JobEnd::Succeeded);
    assert_eq!((node.runs().as_str(), node.log(JobStream::Stdout).as_str()), ("run\n", "end\n"));
    last.end().await;
}

#[tokio::test]
async fn an_attempt_is_ended_by_a_cancellation_wherever_it_stands() {
    // While its files are fetched: it never begins, also if a head asks for it again.
    let mut node = Node::new();
    let file = node.head.add("data", "content");
    node.head.files().gate = Some(Arc::default());
    let goal = start(JobStart { files: vec![file], ..shell(ENDLESS) });
    let agent = node.agent();
    agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
    agent.preparing().await;
    agent.jobs.take(node.goals(&[cancel()], &[])).await;
    assert_eq!(agent.unstarted().await, JobEnd::Cancelled);
    agent.end().await;
    node.head.files().gate = None;
    let next = node.agent();
    next.jobs.take(node.goals(&[goal], &[])).await;
    assert_eq!(next.unstarted().await, JobEnd::Cancelled);
    next.end().await;
    assert_eq!(node.runs(), "");

    // While it starts, from each of its steps on: it is over, and has run once at most.
    for step in ["", "shim.lock", "files", "work", "run.json", "begun", "shim.json"] {
        let mut node = Node::new();
        let agent = node.agent();
        agent.jobs.take(node.goals(&[start(shell(ENDLESS))], &[])).await;
        until("it has come so far", || node.attempt(1).join(step).exists()).await;
        agent.jobs.take(node.goals(&[cancel()], &[])).await;
        match agent.over(1).await {
            JobReportState::Unstarted { end: JobEnd::Cancelled } => assert_eq!(node.runs(), "", "after {step}"),
            JobReportState::Ended { end: JobEnd::Cancelled, .. } => assert!(["", "run\n"].contains(&node.runs().as_str())),
            state => panic!("after {step}: {state:?}"),
        }
        agent.end().await;
    }

    // While it runs, whatever it makes of the signal.
    for script in [ENDLESS, "trap '' TERM; while :; do sleep 0.05; done", "trap 'exit 0' TERM; while :; do sleep 0.05; done"] {
        let mut node = Node::new();
        let agent = node.agent();
        agent.jobs.take(node.goals(&[start(shell(script))], &[])).await;
        let pid = agent.running().await;
        agent.jobs.take(node.goals(&[cancel()], &[])).await;
        assert_eq!(agent.ended().await, JobEnd::Cancelled, "{script}");
        assert_eq!(Process::of(pid), None);
        agent.end().await;
    }

    // When it has ended, it has ended as it did.
    let mut node = Node::new();
    let agent = node.agent();
    agent.jobs.take(node.goals(&[start(shell("exit 0"))], &[])).await;
    assert_eq!(agent.ended().await, JobEnd::Succeeded);
    agent.jobs.take(node.goals(&[cancel()], &[])).await;
    agent.end().await;
    let next = node.agent();
    assert_eq!(next.ended().await, JobEnd::Succeeded);
    next.end().await;
}

#[tokio::test]
async fn what_never_ran_here_is_said() {
    let mut node = Node::new();
    let agent = node.agent();
    let unknown = JobGoal { start: None, ..start(shell("")) };
    agent.jobs.take(node.goals(&[unknown], &[])).await;
    assert_eq!(agent.unstarted().await, JobEnd::Lost { why: Loss::Directory });
    agent.end().await;

    let missing = JobFile { name: "a b".to_owned(), size: 3, digest: "0".repeat(64) };
    let mut damaged = node.head.add("data", "content");
    node.head.files().content.insert(damaged.digest.clone(), b"CONTENT".to_vec());
    damaged.name = "d".to_owned();
    let up = JobFile { name: "..".to_owned(), size: 0, digest: String::new() };
    let cases = [
        (JobStart { files: vec![missing], ..shell("") }, "cannot fetch a b: the head does not have it"),
        (JobStart { files: vec![damaged], ..shell("") }, "cannot fetch d: the SHA-256 of what was received differs"),
        (JobStart { files: vec![up], ..shell("") }, "\"..\" is no name of a file"),
        (
            JobStart { command: vec!["no-such-program".to_owned()], ..shell("") },
            "cannot run no-such-program: there is no such program in the PATH",
        ),
        (JobStart { command: vec!["./gone".to_owned()], ..shell("") }, "cannot run ./gone: there is no such file on the node"),
        (JobStart { command: Vec::new(), ..shell("") }, "no command was given"),
    ];
    for (wanted, words) in cases {
        let mut other = Node::new();
        other.head = node.head.clone();
        let agent = other.agent();
        agent.jobs.take(other.goals(&[start(wanted)], &[])).await;
        match agent.unstarted().await {
            JobEnd::NotStarted { why } => assert!(why.starts_with(words), "{why}"),
            end => panic!("{end:?}"),
        }
        let said = agent.over(1).await;
        agent.end().await;
        let next = other.agent();
        assert_eq!(next.over(1).await, said, "{words}");
        next.end().await;
    }
}

#[tokio::test]
async fn time_limits_stops_and_further_attempts() {
    let mut node = Node::new();
    let agent = node.agent();
    agent.jobs.take(node.goals(&[start(JobStart { timeout_ms: Some(200), ..shell(&format!("echo first >&2; {ENDLESS}")) })], &[])).await;
    assert_eq!(agent.ended().await, JobEnd::TimedOut);
    // While it waits for its next attempt it is kept.
    agent.jobs.take(node.goals(&[], &[1])).await;
    until("nothing but its logs is there", || !node.attempt(1).exists() && agent.context.reports.latest_jobs().is_empty()).await;
    let second = JobGoal { attempt: 2, ..start(shell(&format!("echo second >&2; {ENDLESS}"))) };
    agent.jobs.take(node.goals(&[second], &[])).await;
    until("it runs", || node.runs() == "run\nrun\n").await;
    until("its output is told apart", || node.log(JobStream::Stderr) == "first\n--- attempt 2 ---\nsecond\n").await;
    // The node ends.
    agent.running().await;
    assert_eq!(agent.jobs.stop_all(), Duration::from_millis(300));
    let end = agent.over(2).await;
    assert!(matches!(end, JobReportState::Ended { end: JobEnd::Killed { signal: 15, out_of_memory: false }, .. }), "{end:?}");
    agent.jobs.take(node.goals(&[JobGoal { attempt: 3, ..start(shell(ENDLESS)) }], &[])).await;
    agent.until("preparing", |report| report.attempt == 3 && report.state == JobReportState::Preparing).await;
    agent.end().await;
    assert_eq!(node.runs(), "run\nrun\n");
}

#[tokio::test]
async fn what_no_head_names_is_removed_and_what_is_kept_keeps_its_logs() {
    let mut node = Node::new();
    let other = |id: u64| JobGoal { id: JobId(id), ..start(shell("echo out")) };
    let agent = node.agent();
    agent.jobs.take(node.goals(&[other(1), other(2), other(3)], &[])).await;
    let all_ended = || (1..=3).all(|id| node.path(&format!("jobs/{id}/1/exit.json")).exists());
    until("they end", all_ended).await;
    agent.end().await;
    fs::create_dir_all(node.path("jobs/0123abcd/left")).expect("makes");
    // The next agent knows no list but the stored one.
    let next = node.agent();
    next.ended().await;
    assert!(all_ended() && node.path("jobs/0123abcd").exists());
    next.jobs.take(node.goals(&[other(1)], &[2])).await;
    until("others are gone", || !node.path("jobs/3").exists() && !node.path("jobs/0123abcd").exists()).await;
    until("attempts of what is kept are gone", || !node.path("jobs/2/1").exists()).await;
    assert_eq!(fs::read_to_string(node.path("jobs/2/stdout")).expect("kept"), "out\n");
    assert_eq!(next.context.reports.latest_jobs().into_keys().collect::<Vec<_>>(), [JobId(1)]);
    // It is named no longer.
    next.jobs.take(node.goals(&[other(1)], &[2])).await;
    next.jobs.take(node.goals(&[other(1)], &[])).await;
    until("what was kept is gone", || !node.path("jobs/2").exists()).await;
    // One that runs is ended before it is removed.
    next.jobs.take(node.goals(&[JobGoal { id: JobId(4), ..start(shell(ENDLESS)) }], &[])).await;
    until("it runs", || node.runs() == "run\n").await;
    let old = JobGoals { version: 1, ..node.goals(&[other(1)], &[]) };
    next.jobs.take(old).await;
    next.jobs.take(node.goals(&[], &[])).await;
    until("it is gone", || fs::read_dir(node.path("jobs")).expect("lists").count() == 0).await;
    assert!(next.context.reports.latest_jobs().is_empty());
    next.end().await;
}
