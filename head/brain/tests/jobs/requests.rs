//! Who is cancelled and deleted, and when.

use cloudtik_model::JobId;
use cloudtik_model::answer::Answer;
use cloudtik_model::event::What;
use cloudtik_model::job::{JobEnd, JobRef, JobReportState, JobSpec, JobStateName, Loss};
use cloudtik_model::refusal::Refusal;

use super::*;

fn cancelled(what: &What) -> bool {
    matches!(what, What::JobCancelRequested { .. })
}

#[test]
fn a_job_that_has_not_begun_is_cancelled_at_once() {
    let mut bench = Bench::new(rules(1));
    bench.submit(command("a"));
    let second = bench.submit(command("b"));
    let name = bench.view(second).name;
    assert_eq!(bench.cancel(second), Ok(Answer::JobCancelled { job: second, name: name.clone() }));
    assert_eq!(bench.end(second), Some(&JobEnd::Cancelled));
    assert!(bench.jobs[&second].cancelled.is_some());
    assert_eq!(bench.told(|what| matches!(what, What::JobEnded { attempt: 0, end: JobEnd::Cancelled, .. })), 1);
    let refusal = Refusal::JobAlreadyEnded { job: second, name, state: JobStateName::Cancelled };
    assert_eq!(bench.cancel(second), Err(refusal));
    assert_eq!(bench.told(cancelled), 1);
}

#[test]
fn a_job_between_two_attempts_is_cancelled_at_once() {
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(JobSpec { retries: 3, ..command("a") });
    bench.ends(id, JobEnd::Failed { exit_code: 1 });
    assert!(matches!(bench.cancel(id), Ok(Answer::JobCancelled { .. })));
    bench.pass(120_000);
    assert_eq!(bench.end(id), Some(&JobEnd::Cancelled));
    assert_eq!(bench.jobs[&id].history.len(), 1);
}

/// A cancel while a job is starting, running and ending; what it then reports is its end.
#[test]
fn a_job_that_may_have_begun_ends_as_its_agent_says() {
    let unstarted = |end| JobReportState::Unstarted { end };
    let table = [
        (false, unstarted(JobEnd::Cancelled), JobEnd::Cancelled),
        (false, unstarted(JobEnd::Lost { why: Loss::Directory }), JobEnd::Lost { why: Loss::Directory }),
        (true, ended_with(JobEnd::Cancelled), JobEnd::Cancelled),
        // It ended by itself before the cancel reached it.
        (true, ended_with(JobEnd::Succeeded), JobEnd::Succeeded),
        (true, ended_with(JobEnd::Failed { exit_code: 1 }), JobEnd::Failed { exit_code: 1 }),
        (false, ended_with(JobEnd::Failed { exit_code: 1 }), JobEnd::Failed { exit_code: 1 }),
    ];
    for (runs, report, end) in table {
        let mut bench = Bench::new(rules(1));
        let id = bench.submit(JobSpec { retries: 3, ..command("a") });
        if runs {
            bench.runs(id);
        }
        let cancelling = Answer::JobCancelling { job: id, name: bench.view(id).name };
        assert_eq!(bench.cancel(id), Ok(cancelling.clone()));
        assert_eq!(bench.cancel(id), Ok(cancelling), "a second time says the same");
        assert_eq!(bench.told(cancelled), 1);
        // Another head knows of it.
        bench.restart();
        bench.link();
        let order = bench.last_order().jobs[0].clone();
        assert!(order.cancel && order.start.is_none(), "{order:?}");
        bench.report(id, 1, report);
        assert_eq!(bench.end(id), Some(&end), "nothing follows what somebody cancelled");
        assert_eq!(bench.told(|what| matches!(what, What::JobEnded { .. })), 1);
    }
}

fn ended_with(end: JobEnd) -> JobReportState {
    let at = cloudtik_model::Timestamp(5);
    JobReportState::Ended { started: at, at, end, lost_output: 0 }
}

#[test]
fn only_what_has_ended_is_deleted() {
    let mut bench = Bench::new(rules(1));
    let first = bench.submit(command("a"));
    let second = bench.submit(command("b"));
    for (id, state) in [(first, JobStateName::Starting), (second, JobStateName::Queued)] {
        let refusal = Refusal::JobNotEnded { job: id, name: bench.view(id).name, state };
        assert_eq!(bench.delete(JobRef::Id(id)), Err(refusal));
    }
    bench.ends(first, JobEnd::Succeeded);
    let name = bench.view(first).name;
    assert_eq!(bench.delete(JobRef::Name(name.clone())), Ok(Answer::JobDeleted { job: first, name: name.clone() }));
    assert!(!bench.jobs.contains_key(&first) && bench.brain.jobs().len() == 1);
    assert_eq!(bench.told(|what| matches!(what, What::JobDeleted { .. })), 1);
    let unknown = Refusal::UnknownJob { job: JobRef::Name(name.clone()), known: vec![bench.view(second).name] };
    assert_eq!(bench.delete(JobRef::Name(name)), Err(unknown));
    assert!(matches!(bench.cancel(JobId(99)), Err(Refusal::UnknownJob { .. })));
}
