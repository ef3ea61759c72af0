//! How long jobs that have ended are kept.

use cloudtik_model::JobId;
use cloudtik_model::event::What;
use cloudtik_model::job::JobEnd;
use cloudtik_model::spec::JobRules;

use super::*;

const HOUR: u64 = 3_600_000;

/// A job that has ended.
fn with_one(rules: JobRules) -> (Bench, JobId) {
    let mut bench = Bench::new(rules);
    let id = bench.submit(command("a"));
    bench.ends(id, JobEnd::Succeeded);
    (bench, id)
}

fn kept(bench: &Bench) -> Vec<u64> {
    assert_eq!(bench.brain.jobs().len(), bench.jobs.len());
    bench.jobs.keys().map(|id| id.0).collect()
}

#[test]
fn the_newest_ends_are_kept() {
    let mut bench = Bench::new(JobRules { keep: 2, ..rules(9) });
    let ids: Vec<JobId> = (0..5).map(|n| bench.submit(command(&n.to_string()))).collect();
    for id in [ids[3], ids[0], ids[4], ids[1]] {
        bench.pass(10);
        bench.ends(id, JobEnd::Succeeded);
    }
    assert_eq!(kept(&bench), [2, 3, 5], "the third runs");
    assert_eq!(bench.last_order().kept, [JobId(2), JobId(5)]);
    bench.specify(JobRules { keep: 1, ..rules(9) });
    assert_eq!(kept(&bench), [2, 3]);
    assert_eq!(bench.told(|what| matches!(what, What::JobDeleted { .. })), 0, "nobody asked for it");
}

#[test]
fn the_newest_end_is_not_the_oldest_because_a_clock_was_set_back() {
    let mut bench = Bench::new(JobRules { keep: 2, ..rules(9) });
    for n in 0..4u64 {
        let id = bench.submit(command(&n.to_string()));
        bench.wall_off -= HOUR.cast_signed();
        bench.ends(id, JobEnd::Succeeded);
        assert_eq!(bench.state(id), "succeeded", "whoever waits for it sees how it ended");
    }
    assert_eq!(kept(&bench), [3, 4]);
}

#[test]
fn what_is_too_old_is_forgotten() {
    let (mut bench, _) = with_one(JobRules { keep_for_ms: 10 * HOUR, ..rules(1) });
    bench.skip(10 * HOUR - 1_000);
    assert_eq!(kept(&bench), [1]);
    bench.skip(2_000);
    assert!(kept(&bench).is_empty());
    assert!(bench.last_order().kept.is_empty());
}

#[test]
fn a_clock_that_is_set_forgets_nothing() {
    let rules = JobRules { keep_for_ms: 10 * HOUR, ..rules(1) };
    // While the head runs.
    let (mut bench, id) = with_one(rules.clone());
    bench.wall_off = (1_000 * HOUR).cast_signed();
    bench.skip(9 * HOUR);
    assert_eq!(kept(&bench), [1]);
    assert_eq!(bench.state(id), "succeeded");
    // A head that starts with a clock that is wrong; then it is put right.
    let (mut bench, _) = with_one(rules.clone());
    bench.wall_off = (1_000 * HOUR).cast_signed();
    bench.restart();
    bench.link();
    bench.skip(HOUR / 2);
    assert_eq!(kept(&bench), [1]);
    bench.wall_off = 0;
    bench.skip(HOUR);
    assert_eq!(kept(&bench), [1], "by now it is known that it is not that old");
    bench.skip(9 * HOUR);
    bench.skip(61_000);
    assert!(kept(&bench).is_empty());
    // One that was set back keeps it for as long as the clock says.
    let (mut bench, _) = with_one(rules);
    bench.wall_off = -(5 * HOUR.cast_signed());
    bench.skip(11 * HOUR);
    assert_eq!(kept(&bench), [1]);
    bench.skip(5 * HOUR);
    assert!(kept(&bench).is_empty());
}

#[test]
fn what_an_earlier_head_kept_is_as_old_as_it_is() {
    let (mut bench, _) = with_one(JobRules { keep_for_ms: 10 * HOUR, ..rules(1) });
    bench.skip(8 * HOUR);
    bench.restart();
    bench.link();
    bench.skip(HOUR);
    assert_eq!(kept(&bench), [1]);
    bench.skip(HOUR + 1_000);
    assert!(kept(&bench).is_empty());
}
