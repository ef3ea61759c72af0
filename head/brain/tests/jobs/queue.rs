//! Who is taken, who starts next, and what the others wait for.

use cloudtik_model::JobId;
use cloudtik_model::answer::Answer;
use cloudtik_model::event::What;
use cloudtik_model::goal::Limits;
use cloudtik_model::job::{JobEnd, JobFile, JobSpec, JobStateName, JobWait, Work};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::ServiceState;

use super::*;

#[test]
fn a_submission_that_comes_again_is_the_same_job_whatever_became_of_it() {
    let mut bench = Bench::new(rules(1));
    let spec = JobSpec { name: "nightly".parse().ok(), ..command("a") };
    let id = bench.submit(spec.clone());
    let again = Answer::JobSubmitted { job: id, name: "nightly".parse().expect("valid"), again: true };
    assert_eq!(bench.try_submit(spec.clone(), None), Ok(again.clone()), "while it is starting");
    bench.ends(id, JobEnd::Succeeded);
    assert_eq!(bench.try_submit(spec.clone(), None), Ok(again.clone()), "when it has ended");
    bench.restart();
    assert_eq!(bench.try_submit(spec.clone(), None), Ok(again.clone()), "and for another head");
    bench.shut_down();
    assert_eq!(bench.try_submit(spec, None), Ok(again), "and when nothing new is taken");
    assert_eq!(bench.jobs.len(), 1);
    assert_eq!(bench.told(|what| matches!(what, What::JobSubmitted { .. })), 1);
}

#[test]
fn what_cannot_be_run_is_refused_and_leaves_nothing() {
    let named = |submission: &str, name: &str| JobSpec { name: name.parse().ok(), ..command(submission) };
    let mut bench = Bench::new(rules(1));
    let first = bench.submit(named("a", "nightly"));
    let large = Limits { memory: Some(9 << 30), cpu_millis: None };
    let has = Limits { memory: Some(8 << 30), cpu_millis: Some(4_000) };
    let taken = |state| Refusal::JobNameTaken { name: "nightly".parse().expect("valid"), job: first, state };
    let table = [
        (named("", "b"), Refusal::JobWithoutSubmission),
        (named(&"s".repeat(JobSpec::MAX_SUBMISSION + 1), "b"), Refusal::JobWithoutSubmission),
        (named("b", "nightly"), taken(JobStateName::Starting)),
        (JobSpec { limits: large.clone(), ..named("b", "b") }, Refusal::JobTooLarge { needs: large, has: has.clone() }),
        (JobSpec { limits: limits(5), ..named("b", "b") }, Refusal::JobTooLarge { needs: limits(5), has }),
    ];
    for (spec, refusal) in table {
        assert_eq!(bench.try_submit(spec, None), Err(refusal));
    }
    bench.ends(first, JobEnd::Succeeded);
    assert_eq!(bench.try_submit(named("b", "nightly"), None), Err(taken(JobStateName::Succeeded)), "names of kept jobs are theirs");
    bench.shut_down();
    assert_eq!(bench.try_submit(named("b", "b"), None), Err(Refusal::ClusterTakenDown));
    assert_eq!((bench.jobs.len(), bench.cluster.last_job), (1, first));
    // Where it is not known yet what the node has, the job is taken.
    let mut bench = Bench::unlinked(rules(1));
    bench.submit(JobSpec { limits: limits(64), ..command("a") });
}

#[test]
fn ten_thousand_may_wait_and_no_more() {
    let mut bench = Bench::unlinked(rules(1));
    for n in 0..10_000 {
        bench.submit(command(&n.to_string()));
    }
    assert_eq!(bench.try_submit(command("one more"), None), Err(Refusal::TooManyJobs { max: 10_000 }));
    bench.cancel(JobId(5_000)).expect("it is queued");
    bench.submit(command("in its place"));
    assert_eq!(bench.brain.jobs_summary().queued, 10_000);
}

#[test]
fn numbers_are_never_given_again_and_names_are_made_of_them() {
    let mut bench = Bench::new(rules(9));
    let name = |bench: &Bench, id| bench.view(id).name.to_string();
    let first = bench.submit(command("a"));
    assert_eq!((first, name(&bench, first).as_str()), (JobId(1), "sleep-1"));
    // Somebody took the name that the next would have.
    bench.submit(JobSpec { name: "sleep-3".parse().ok(), ..command("b") });
    let third = bench.submit(command("c"));
    assert_eq!(name(&bench, third), "sleep-3-2");
    let file = JobFile { name: "Word Count.py".to_owned(), size: 1, digest: "d1".to_owned() };
    let work = Work::Runtime { runtime: "spark".parse().ok(), options: Vec::new() };
    let fourth = bench.submit(JobSpec { work, files: vec![file], ..command("d") });
    assert_eq!(name(&bench, fourth), "word-count-4");
    assert_eq!(bench.view(fourth).command, ["Word Count.py", "60"]);
    assert_eq!(bench.brain.job_files().into_iter().collect::<Vec<_>>(), ["d1"], "its files are needed");
    bench.ends(fourth, JobEnd::Succeeded);
    assert!(bench.brain.job_files().is_empty(), "and then not any more");
    bench.delete(cloudtik_model::job::JobRef::Id(fourth)).expect("it has ended");
    bench.restart();
    assert_eq!(bench.submit(command("e")), JobId(5));
}

#[test]
fn as_many_run_as_may_first_come_first_served() {
    let mut bench = Bench::new(rules(2));
    let ids: Vec<JobId> = (0..4).map(|n| bench.submit(command(&n.to_string()))).collect();
    assert_eq!(bench.states(), ["starting", "starting", "queued", "queued"]);
    assert_eq!(bench.wait(ids[2]), Some(JobWait::Parallel { running: 2, limit: 2 }));
    bench.runs(ids[0]);
    assert_eq!(bench.states(), ["running", "starting", "queued", "queued"]);
    bench.ends(ids[0], JobEnd::Succeeded);
    assert_eq!(bench.states(), ["succeeded", "starting", "starting", "queued"]);
    // Another head counts those that run.
    bench.restart();
    bench.link();
    assert_eq!(bench.states(), ["succeeded", "starting", "starting", "queued"]);
    bench.specify(rules(3));
    assert_eq!(bench.states(), ["succeeded", "starting", "starting", "starting"], "the limit is the description's");
    bench.specify(rules(1));
    assert_eq!(bench.states(), ["succeeded", "starting", "starting", "starting"], "and ends nothing that runs");
}

#[test]
fn a_job_that_waits_for_its_service_keeps_no_other() {
    let mut bench = Bench::new(rules(1));
    let needs = "spark/master".parse().expect("a key");
    bench.try_submit(command("a"), Some(needs)).expect("it is taken");
    let second = bench.submit(command("b"));
    assert_eq!(bench.states(), ["queued", "starting"]);
    assert!(matches!(bench.wait(JobId(1)), Some(JobWait::Service { report: None, .. })), "{:?}", bench.wait(JobId(1)));
    bench.service("spark/master", ServiceState::Starting);
    let waits = bench.wait(JobId(1));
    assert!(matches!(&waits, Some(JobWait::Service { report: Some(of), .. }) if of.state == ServiceState::Starting), "{waits:?}");
    bench.ends(second, JobEnd::Succeeded);
    assert_eq!(bench.states(), ["queued", "succeeded"]);
    bench.service("spark/master", ServiceState::Ready);
    assert_eq!(bench.states(), ["starting", "succeeded"]);
    bench.runs(JobId(1));
    bench.service("spark/master", ServiceState::Unhealthy);
    assert_eq!(bench.states(), ["running", "succeeded"], "what has begun goes on");
}

#[test]
fn nobody_overtakes_a_job_that_waits_for_room_but_who_needs_none() {
    let reserving = |submission, cpus| JobSpec { limits: limits(cpus), ..command(submission) };
    let mut bench = Bench::new(rules(9));
    let first = bench.submit(reserving("a", 3));
    let second = bench.submit(reserving("b", 3));
    let third = bench.submit(reserving("c", 1));
    let fourth = bench.submit(command("d"));
    assert_eq!(bench.states(), ["starting", "queued", "queued", "starting"]);
    let free = Limits { memory: Some(8 << 30), cpu_millis: Some(1_000) };
    assert_eq!(bench.wait(second), Some(JobWait::Room { needs: limits(3), free }));
    assert_eq!(bench.wait(third), Some(JobWait::Turn { after: second }), "it would fit, and the second would wait for ever");
    assert_eq!(bench.wait(fourth), None);
    bench.ends(first, JobEnd::Succeeded);
    assert_eq!(bench.states(), ["succeeded", "starting", "starting", "starting"]);
}

#[test]
fn what_the_node_can_never_hold_keeps_no_other() {
    let mut bench = Bench::unlinked(rules(9));
    let first = bench.submit(JobSpec { limits: limits(64), ..command("a") });
    let second = bench.submit(JobSpec { limits: limits(1), ..command("b") });
    assert_eq!(bench.wait(second), Some(JobWait::Node));
    bench.link();
    assert_eq!(bench.states(), ["queued", "starting"]);
    assert!(matches!(bench.wait(first), Some(JobWait::Room { .. })));
}

#[test]
fn nothing_starts_without_the_node_or_while_the_cluster_is_taken_down() {
    let mut bench = Bench::new(rules(1));
    let first = bench.submit(command("a"));
    let second = bench.submit(command("b"));
    bench.unlink();
    bench.runs(first);
    assert_eq!(bench.state(first), "starting", "a report of a link that is gone is none");
    assert_eq!(bench.wait(second), Some(JobWait::Node));
    bench.link();
    bench.shut_down();
    bench.ends(first, JobEnd::Succeeded);
    assert_eq!(bench.states(), ["succeeded", "queued"]);
    assert_eq!(bench.wait(second), Some(JobWait::ClusterTakenDown));
    bench.specify(rules(1));
    assert_eq!(bench.states(), ["succeeded", "starting"], "a cluster that is described again goes on");
}

#[test]
fn a_hold_stops_no_job() {
    let mut bench = Bench::new(rules(1));
    let request = cloudtik_brain::Request::new(900, cloudtik_model::Actor::LOCAL);
    bench.tell(cloudtik_brain::Input::Hold { request, reason: String::new() });
    bench.submit(command("a"));
    assert_eq!(bench.states(), ["starting"]);
}

#[test]
fn the_summary_names_what_runs() {
    let mut bench = Bench::new(rules(25));
    let ids: Vec<JobId> = (0..30).map(|n| bench.submit(command(&n.to_string()))).collect();
    bench.runs(ids[0]);
    let summary = bench.brain.jobs_summary();
    assert_eq!((summary.queued, summary.running.len(), summary.running_left_out), (5, 20, 5));
    assert!(summary.running[0].started.is_some() && summary.running[1].started.is_none());
}
