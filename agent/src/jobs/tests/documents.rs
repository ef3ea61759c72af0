//! What the document on the disk may do, and what is done where files cannot be read.

use super::*;

/// While it lives, the document of jobs cannot be written: a directory stands where its temporary file would.
struct Unwritable(PathBuf);

impl Unwritable {
    fn new(node: &Node) -> Self {
        let path = node.path(&format!(".{}.{}.tmp", layout::GOALS, std::process::id()));
        fs::create_dir(&path).expect("makes");
        Self(path)
    }
}

impl Drop for Unwritable {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).expect("removes");
    }
}

/// Lets the job's task look once at what is desired and at what is there, as an agent does that ends then. Returns its reports.
async fn look_once(node: &Node, goal: JobGoal, may_begin: bool) -> Vec<JobReport> {
    let context = node.context();
    let desired = Desired { wanted: Wanted::Goal(Arc::new(goal)), may_begin, is_ending: false };
    let task = JobTask::new(JobId(1), watch::Sender::new(desired).subscribe(), context.clone(), Graces::default());
    tokio::time::timeout(PATIENCE, task.run()).await.expect("it does not wait for a sender that is gone");
    context.reports.latest_jobs().into_values().collect()
}

#[tokio::test]
async fn an_attempt_begins_only_by_a_document_that_is_on_the_disk() {
    let mut node = Node::new();
    let agent = node.agent();
    agent.jobs.take(node.goals(&[], &[1])).await;
    let may_begin = |agent: &Agent| agent.jobs.lock().senders[&JobId(1)].borrow().may_begin;
    let unwritable = Unwritable::new(&node);
    let second = JobGoal { attempt: 2, ..start(shell("echo run >>../../../../runs")) };
    agent.jobs.take(node.goals(std::slice::from_ref(&second), &[])).await;
    agent.preparing().await;
    assert!(!may_begin(&agent), "the document on the disk still has the job as one that is over");
    // A cancellation needs no disk.
    agent.jobs.take(node.goals(&[JobGoal { attempt: 2, ..cancel() }], &[])).await;
    assert_eq!(agent.over(2).await, JobReportState::Unstarted { end: JobEnd::Cancelled });
    let third = JobGoal { attempt: 3, ..second };
    agent.jobs.take(node.goals(&[third], &[])).await;
    agent.until("preparing", |report| report.attempt == 3).await;
    assert!(!may_begin(&agent) && node.runs().is_empty());
    drop(unwritable);
    // Nothing more comes from the head.
    let state = agent.over(3).await;
    assert!(matches!(state, JobReportState::Ended { end: JobEnd::Succeeded, .. }), "{state:?}");
    let stored: JobGoals = serde_json::from_slice(&fs::read(node.path(layout::GOALS)).expect("there")).expect("JSON");
    assert_eq!((stored.version, node.runs().as_str()), (node.version, "run\n"));
    agent.end().await;
}

#[tokio::test]
async fn a_document_that_names_an_earlier_attempt_leaves_the_later_one() {
    let mut node = Node::new();
    let agent = node.agent();
    agent.jobs.take(node.goals(&[JobGoal { attempt: 2, ..start(shell("exit 0")) }], &[])).await;
    agent.over(2).await;
    agent.end().await;
    look_once(&node, JobGoal { start: None, ..start(shell("")) }, false).await;
    assert!(node.attempt(2).join("exit.json").exists(), "that it has run stays known");
    look_once(&node, JobGoal { attempt: 3, ..cancel() }, false).await;
    assert!(!node.attempt(2).exists(), "an earlier attempt is removed");
}

#[tokio::test]
async fn an_attempt_whose_files_cannot_be_read_for_a_while_is_not_over() {
    let mut node = Node::new();
    let goal = start(shell("echo run >>../../../../runs; while [ ! -e ../../../../go ]; do sleep 0.01; done"));
    let agent = node.agent();
    agent.jobs.take(node.goals(std::slice::from_ref(&goal), &[])).await;
    let pid = agent.running().await;
    agent.end().await;
    let begun = JobGoal { start: None, ..goal.clone() };
    // A directory in its place cannot be opened as the file.
    let (aside, lock) = (node.path("aside"), node.attempt(1).join("shim.lock"));
    fs::rename(&lock, &aside).expect("renames");
    fs::create_dir(&lock).expect("makes");
    for goal in [&begun, &goal, &JobGoal { cancel: true, ..begun.clone() }] {
        assert_eq!(look_once(&node, goal.clone(), true).await, [], "nothing is known of it: {goal:?}");
    }
    fs::remove_dir(&lock).expect("removes");
    fs::rename(&aside, &lock).expect("renames");
    let agent = node.agent();
    assert_eq!(agent.running().await, pid);
    assert!(node.attempt(1).join("work").exists(), "what it runs in stays");
    agent.end().await;

    fs::write(node.path("go"), "").expect("writes");
    let exit = node.attempt(1).join("exit.json");
    let has_ended = || exit.exists() && fs::File::open(&lock).is_ok_and(|lock| lock.try_lock().is_ok());
    until("it ends without any agent, and its shim with it", has_ended).await;
    fs::rename(&exit, &aside).expect("renames");
    fs::create_dir(&exit).expect("makes");
    assert_eq!(look_once(&node, begun, true).await, [], "how it ended cannot be read");
    fs::remove_dir(&exit).expect("removes");
    fs::rename(&aside, &exit).expect("renames");
    let agent = node.agent();
    assert_eq!((agent.ended().await, node.runs().as_str()), (JobEnd::Succeeded, "run\n"));
    agent.end().await;
}
