//! What the head's node is told about jobs.

use cloudtik_model::JobId;
use cloudtik_model::job::{JobEnd, JobSpec};

use super::*;

/// Number, attempt, whether it is to be started, whether it is to end.
type Instruction = (u64, u32, bool, bool);

/// What was sent last: the attempts, and what is kept.
fn content(bench: &Bench) -> (Vec<Instruction>, Vec<u64>) {
    let order = bench.last_order();
    let jobs = order.jobs.iter().map(|job| (job.id.0, job.attempt, job.start.is_some(), job.cancel)).collect();
    (jobs, order.kept.iter().map(|id| id.0).collect())
}

#[test]
fn a_node_is_told_what_changes_and_nothing_twice() {
    let mut bench = Bench::new(rules(1));
    assert_eq!(content(&bench), (vec![], vec![]), "a node without jobs learns that there are none");
    let first = bench.submit(JobSpec { retries: 1, ..command("a") });
    bench.submit(command("b"));
    assert_eq!(content(&bench), (vec![(1, 1, true, false)], vec![]), "what is queued is none of its business");
    let sent = bench.orders.len();
    bench.pass(5_000);
    bench.report(first, 1, cloudtik_model::job::JobReportState::Preparing);
    assert_eq!(bench.orders.len(), sent, "nothing changed");
    bench.runs(first);
    assert_eq!(content(&bench), (vec![(1, 1, false, false)], vec![]), "what has begun is not begun again");
    bench.ends(first, JobEnd::Failed { exit_code: 1 });
    assert_eq!(content(&bench), (vec![(2, 1, true, false)], vec![1]), "what is tried again keeps its output");
    bench.cancel(JobId(2)).expect("it is starting");
    assert_eq!(content(&bench), (vec![(2, 1, false, true)], vec![1]));
    bench.ends(JobId(2), JobEnd::Cancelled);
    bench.pass(1_001);
    assert_eq!(content(&bench), (vec![(1, 2, true, false)], vec![2]));
    bench.ends(first, JobEnd::Succeeded);
    assert_eq!(content(&bench), (vec![], vec![1, 2]));
    bench.delete(cloudtik_model::job::JobRef::Id(first)).expect("it has ended");
    assert_eq!(content(&bench), (vec![], vec![2]));
}

#[test]
fn every_link_begins_with_everything_under_a_higher_version() {
    let mut bench = Bench::new(rules(1));
    bench.submit(command("a"));
    let before = content(&bench);
    let sent = bench.orders.len();
    bench.unlink();
    bench.link();
    assert_eq!((bench.orders.len(), content(&bench)), (sent + 1, before.clone()));
    assert_eq!(bench.last_order().session, bench.session);
    for _ in 0..3 {
        bench.restart();
        bench.link();
        assert_eq!(content(&bench), before);
    }
    assert!(bench.orders.is_sorted_by(|earlier, later| earlier.version < later.version), "{:?}", bench.orders);
}
