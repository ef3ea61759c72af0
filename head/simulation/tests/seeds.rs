//! Many worlds, each from its seed. A seed that breaks a promise prints the command that shows it again; a point at which a
//! crash does prints its number.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cloudtik_simulation::{Faults, Setup, Stats, World, run};

/// Seeds of the test command; `CLOUDTIK_SEEDS` asks for more, `CLOUDTIK_SEED` for one alone.
const SEEDS: u64 = 1_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How to see a seed's world again.
fn again(seed: u64) -> String {
    format!("see it again: CLOUDTIK_SEED={seed} cargo test -p cloudtik-simulation no_seed -- --nocapture")
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number("CLOUDTIK_SEED") {
        let stats = run(seed).unwrap_or_else(|violation| panic!("{violation}"));
        return println!("seed {seed} holds: {stats:?}");
    }
    let seeds = number("CLOUDTIK_SEEDS").unwrap_or(SEEDS);
    let (next, violations, total) = (AtomicU64::new(0), Mutex::new(Vec::new()), Mutex::new(Stats::default()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    match run(seed) {
                        Ok(stats) => {
                            let mut total = total.lock().expect("no thread panics");
                            total.steps += stats.steps;
                            total.crashes += stats.crashes;
                            total.creations += stats.creations;
                            total.deletions += stats.deletions;
                            total.verdicts += stats.verdicts;
                            total.reboots += stats.reboots;
                            total.judged_deletions += stats.judged_deletions;
                            total.judged_members += stats.judged_members;
                            total.judged_idle += stats.judged_idle;
                            total.judged_rollouts += stats.judged_rollouts;
                            total.held_rollouts += stats.held_rollouts;
                            total.job_attempts += stats.job_attempts;
                            total.judged_attempts += stats.judged_attempts;
                            total.retried_jobs += stats.retried_jobs;
                            total.cancelled_jobs += stats.cancelled_jobs;
                            total.lost_jobs += stats.lost_jobs;
                            total.forgotten_jobs += stats.forgotten_jobs;
                            total.repeated_submissions += stats.repeated_submissions;
                            total.replaced_heads += stats.replaced_heads;
                        }
                        Err(violation) => violations.lock().expect("no thread panics").push(violation),
                    }
                }
            });
        }
    });
    let mut violations = violations.into_inner().expect("no thread panics");
    violations.sort_by_key(|v| v.seed);
    if let Some(first) = violations.first() {
        let broken: Vec<u64> = violations.iter().map(|v| v.seed).collect();
        panic!("{} of {seeds} seeds break a promise: {broken:?}\n{first}{}", violations.len(), again(first.seed));
    }
    let total = total.into_inner().expect("no thread panics");
    // Worlds in which nothing happens would prove nothing.
    assert!(total.crashes > seeds && total.creations > 2 * seeds && total.deletions > seeds, "{total:?}");
    assert!(total.verdicts > seeds / 2 && total.reboots > seeds / 20, "{total:?}");
    // Checks that never apply would hold anything.
    let judged = [total.judged_deletions, total.judged_members, total.judged_idle, total.judged_rollouts, total.held_rollouts];
    assert!(judged.into_iter().all(|times| times > seeds / 4), "{total:?}");
    let of_jobs = [total.job_attempts, total.judged_attempts, total.retried_jobs, total.cancelled_jobs, total.forgotten_jobs];
    assert!(of_jobs.into_iter().all(|times| times > seeds / 4) && total.repeated_submissions > seeds / 4, "{total:?}");
    assert!(total.replaced_heads > seeds / 20 && total.lost_jobs > seeds / 50, "{total:?}");
    println!("{total:?}");
}

/// Seeds whose every point is tried; `CLOUDTIK_CRASH_SEEDS` asks for more.
const CRASH_SEEDS: u64 = 2;

/// The head crashes once, at each point where that could make a difference: before and after every commit, after every
/// action, before and after every call's effect. People want this and that meanwhile; with every other seed the provider has
/// too little, bears too few calls, and fails them before and after their effect.
#[test]
fn no_point_is_a_bad_one_to_crash_at() {
    let seeds = number("CLOUDTIK_CRASH_SEEDS").unwrap_or(CRASH_SEEDS);
    // Every fourth seed's provider never hides a machine.
    let faults = |seed: u64| {
        let calm = Faults { people: 900, jobs: 200, visibility: Faults::of_seed(seed).visibility, ..Faults::none() };
        let scarce = Faults { stock_out: 100, throttled: 100, call_fails: 50, call_fails_after: 50, ..calm.clone() };
        if seed.is_multiple_of(2) { calm } else { scarce }
    };
    for seed in 0..seeds {
        let points = World::new(Setup::troubled(seed, faults(seed))).run().unwrap_or_else(|violation| panic!("{violation}")).crash_points;
        assert!(points > 300, "{points} points");
        let (next, violations) = (AtomicU64::new(1), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
                scope.spawn(|| {
                    loop {
                        let point = next.fetch_add(1, Ordering::Relaxed);
                        if point > points {
                            return;
                        }
                        if let Err(violation) = World::new(Setup::troubled(seed, faults(seed))).crashing_at(point).run() {
                            violations.lock().expect("no thread panics").push((point, violation));
                        }
                    }
                });
            }
        });
        let mut violations = violations.into_inner().expect("no thread panics");
        violations.sort_by_key(|(point, _)| *point);
        if let Some((point, first)) = violations.first() {
            panic!("{} of {points} points are bad, the first is {point}:\n{first}", violations.len());
        }
        println!("seed {seed}: {points} points");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let (first, second) = (run(7).expect("holds"), run(7).expect("holds"));
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}
