//! What agents report of jobs, and what follows from it.

use cloudtik_brain::Input;
use cloudtik_model::event::What;
use cloudtik_model::job::{Attempt, JobEnd, JobReport, JobReportState, JobSpec, JobState, JobWait, Loss};
use cloudtik_model::{Generation, JobId, NodeId, Timestamp};

use super::*;

fn retried(retries: u32) -> JobSpec {
    JobSpec { retries, ..command("a") }
}

fn ended(what: &What) -> bool {
    matches!(what, What::JobEnded { .. })
}

#[test]
fn what_fails_is_tried_again_and_what_ends_for_good_is_not() {
    let lost = |why| JobEnd::Lost { why };
    let table = [
        (JobEnd::Succeeded, false),
        (JobEnd::TimedOut, false),
        (JobEnd::Cancelled, false),
        (JobEnd::Failed { exit_code: 3 }, true),
        (JobEnd::Killed { signal: 9, out_of_memory: true }, true),
        (JobEnd::NotStarted { why: "no such file".to_owned() }, true),
        (lost(Loss::Shim), true),
        (lost(Loss::Directory), true),
    ];
    for (end, is_repeated) in table {
        let mut bench = Bench::new(rules(1));
        let id = bench.submit(retried(1));
        bench.runs(id);
        bench.ends(id, end.clone());
        assert_eq!(bench.state(id) == "queued", is_repeated, "{end:?}");
        assert_eq!(bench.told(ended), usize::from(!is_repeated), "{end:?}");
        if is_repeated {
            assert_eq!(bench.told(|what| matches!(what, What::JobRetried { attempt: 1, attempts: 2, pause_s: 1, .. })), 1);
            bench.pass(1_001);
            assert_eq!((bench.state(id), bench.jobs[&id].attempt), ("starting", 2));
            bench.ends(id, end.clone());
        }
        assert_eq!(bench.end(id), Some(&end), "no attempt is left");
        assert_eq!(bench.told(ended), 1, "{end:?}");
        let numbers: Vec<u32> = bench.jobs[&id].history.iter().map(|attempt| attempt.number).collect();
        assert_eq!(numbers, if is_repeated { vec![1, 2] } else { vec![1] });
    }
}

#[test]
fn an_end_is_told_once_and_changes_no_more() {
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(retried(0));
    let started = bench.wall();
    bench.report(id, 1, JobReportState::Preparing);
    assert_eq!(bench.state(id), "starting");
    bench.runs(id);
    bench.runs(id);
    assert_eq!(bench.told(|what| matches!(what, What::JobStarted { attempt: 1, .. })), 1);
    bench.pass(5_000);
    let at = bench.wall();
    let end = JobReportState::Ended { started, at, end: JobEnd::Failed { exit_code: 3 }, lost_output: 7 };
    bench.report(id, 1, end.clone());
    let record = bench.jobs[&id].clone();
    let attempt = Attempt { number: 1, started: Some(started), ended: at, end: JobEnd::Failed { exit_code: 3 }, lost_output: 7 };
    assert_eq!(record.history, [attempt]);
    for report in [end, JobReportState::Preparing, JobReportState::Running { pid: 1, started }] {
        bench.report(id, 1, report);
    }
    bench.restart();
    bench.link();
    bench.ends(id, JobEnd::Succeeded);
    assert_eq!(bench.jobs[&id], record);
    assert_eq!(bench.told(ended), 1);
}

#[test]
fn only_what_the_present_link_says_of_the_present_attempt_counts() {
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(retried(5));
    bench.runs(id);
    bench.ends(id, JobEnd::Failed { exit_code: 1 });
    bench.ends(id, JobEnd::Failed { exit_code: 1 });
    assert_eq!(bench.jobs[&id].history.len(), 1, "the first attempt is over, and the second has not begun");
    bench.pass(1_001);
    let before = bench.jobs[&id].clone();
    let at = bench.wall();
    let end = JobReportState::Ended { started: at, at, end: JobEnd::Succeeded, lost_output: 0 };
    for attempt in [0, 1, 3] {
        bench.report(id, attempt, end.clone());
    }
    bench.report(JobId(99), 1, end.clone());
    let report = || vec![JobReport { id, attempt: 2, state: end.clone() }];
    let other = NodeId::new("w1").expect("valid");
    for (session, node) in [(cloudtik_brain::Session(0), NodeId::head()), (bench.session, other)] {
        bench.tell(Input::Reported { session, node, complete: true, services: Vec::new(), jobs: report() });
    }
    assert_eq!(bench.jobs[&id], before);
    bench.report(id, 2, end);
    assert_eq!(bench.end(id), Some(&JobEnd::Succeeded));
}

#[test]
fn pauses_between_attempts_double_up_to_a_minute() {
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(retried(30));
    for attempt in 1u32..=30 {
        assert_eq!((bench.state(id), bench.jobs[&id].attempt), ("starting", attempt));
        bench.ends(id, JobEnd::Failed { exit_code: 1 });
        let pause = (1_000u64 << (attempt - 1).min(20)).min(60_000);
        let until = Timestamp(bench.wall().0 + pause);
        assert_eq!(bench.wait(id), Some(JobWait::Pause { until }), "after attempt {attempt}");
        bench.pass(pause - 1);
        assert_eq!(bench.state(id), "queued", "after attempt {attempt}");
        bench.pass(1);
    }
    bench.ends(id, JobEnd::Failed { exit_code: 1 });
    assert_eq!((bench.state(id), bench.jobs[&id].history.len()), ("failed", Attempt::KEPT));
    assert_eq!(bench.jobs[&id].history.last().map(|attempt| attempt.number), Some(31));
}

#[test]
fn a_pause_goes_on_with_another_head_whatever_the_clock_says() {
    for wall_off in [0, 3_600_000, -3_600_000] {
        let mut bench = Bench::new(rules(1));
        let id = bench.submit(retried(1));
        bench.ends(id, JobEnd::Failed { exit_code: 1 });
        bench.wall_off = wall_off;
        bench.restart();
        bench.link();
        bench.pass(60_001);
        assert_eq!(bench.state(id), "starting", "the clock was set by {wall_off} ms");
    }
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(retried(1));
    bench.ends(id, JobEnd::Failed { exit_code: 1 });
    bench.pass(400);
    bench.restart();
    bench.link();
    bench.pass(500);
    assert_eq!(bench.state(id), "queued");
    bench.pass(101);
    assert_eq!(bench.state(id), "starting");
}

#[test]
fn what_ran_on_a_node_that_is_gone_is_lost_with_it() {
    let mut bench = Bench::new(rules(2));
    let (first, second) = (bench.submit(command("b")), bench.submit(retried(1)));
    bench.runs(second);
    // The link of the same node comes and goes, under one head and the next.
    bench.unlink();
    bench.restart();
    bench.link();
    assert_eq!(bench.states(), ["starting", "running"]);
    bench.replace_node();
    assert_eq!(bench.states(), ["starting", "running"], "until the next has joined, the old one may be there");
    bench.link();
    assert_eq!(bench.states(), ["lost", "queued"]);
    assert_eq!(bench.end(first), Some(&JobEnd::Lost { why: Loss::Node }));
    assert_eq!(bench.told(ended), 1);
    bench.pass(1_001);
    assert!(matches!(bench.jobs[&second].state, JobState::Starting { generation: Generation(2), .. }));
    assert_eq!(bench.jobs[&second].history[0].end, JobEnd::Lost { why: Loss::Node });
}

#[test]
fn a_job_that_cannot_be_planned_ends_when_its_agent_says_that_it_never_began() {
    let unknown = JobReportState::Unstarted { end: JobEnd::Lost { why: Loss::Directory } };
    let not_planned = |id, attempt| Input::JobNotPlanned { id, attempt, error: "no such option".to_owned() };
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(retried(0));
    bench.tell(not_planned(id, 2));
    assert!(bench.last_order().jobs[0].start.is_some(), "another attempt is not meant");
    bench.tell(not_planned(id, 1));
    let order = bench.last_order().jobs[0].clone();
    assert!(order.start.is_none() && !order.cancel, "{order:?}");
    assert_eq!(bench.state(id), "starting");
    bench.report(id, 1, unknown.clone());
    assert_eq!(bench.end(id), Some(&JobEnd::NotStarted { why: "no such option".to_owned() }));
    // It had begun under an earlier description.
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(retried(0));
    bench.restart();
    bench.link();
    bench.tell(not_planned(id, 1));
    bench.runs(id);
    assert_eq!(bench.state(id), "running");
    bench.report(id, 1, unknown);
    assert_eq!(bench.end(id), Some(&JobEnd::Lost { why: Loss::Directory }));
}

#[test]
fn what_an_agent_says_is_kept_up_to_a_length() {
    let mut bench = Bench::new(rules(1));
    let id = bench.submit(command("a"));
    bench.report(id, 1, JobReportState::Unstarted { end: JobEnd::NotStarted { why: "ä".repeat(1 << 20) } });
    assert!(matches!(bench.end(id), Some(JobEnd::NotStarted { why }) if why.chars().count() == 1_000));
}
