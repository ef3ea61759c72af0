//! `simulate`: what a person sees of a scenario, and that it is the same each time.

use std::fs;
use std::time::Duration;

use cloudtik_model::event::What;
use cloudtik_model::simulation::Simulated;
use cloudtik_tests::{Cluster, repository, send};
use nix::sys::signal::Signal;

const SCENARIO: &str = "length = \"6h\"\n[provider]\nmachines_last = \"2d\"\nfails = 0.02\n[head]\nlasts = \"2h\"\n\
                        [[demand]]\nname = \"batch\"\nat = \"10m\"\nevery = \"1h\"\ncpus = 2\ncount = 12\nruns = \"20m\"\n\
                        [[demand]]\nname = \"too-much\"\ncpus = 2\ncount = 50\n\
                        [[load]]\nat = \"3h\"\nlasts = \"1h\"\ncores = 7\n";

fn written(cluster: &Cluster, name: &str, text: &str) -> String {
    let path = cluster.file.with_file_name(name);
    fs::write(&path, text).expect("the directory is there");
    path.display().to_string()
}

fn described(most: u32) -> String {
    format!(
        "[cluster]\nname = \"paper\"\nidle_after = \"5m\"\n[provider]\nkind = \"simulated\"\n[workers.default]\nmin = 1\nmax = {most}\n\
         cpus = 4\nprice = \"0.20/h\"\n[[scaling]]\npolicy = \"load\"\n"
    )
}

#[test]
fn a_scenario_shows_size_cost_waiting_and_decisions() {
    // Nothing is made of it: the cluster is a place for files only.
    let cluster = Cluster::new("paper", "[workers.default]");
    let (small, large) = (written(&cluster, "small.toml", &described(6)), written(&cluster, "large.toml", &described(8)));
    let scenario = written(&cluster, "scenario.toml", SCENARIO);
    let json = |file: &str, more: &[&str]| -> Simulated {
        let arguments = [&["simulate", file, "--demand", &scenario, "-o", "json"], more].concat();
        serde_json::from_str(&cluster.run(&arguments).ok().out).expect("a document")
    };
    let (first, again, other) = (json(&large, &[]), json(&large, &[]), json(&large, &["--seed", "2"]));
    assert_eq!(first, again, "the same files and seed are the same life");
    assert_ne!(first.steps, other.steps, "another seed is another");
    let batch: Vec<_> = first.arrivals.iter().filter(|a| a.demand == "batch").collect();
    assert!(batch.len() == 6 && batch.iter().all(|a| a.waited_ms.is_some_and(|ms| ms < 600_000)), "{batch:?}");
    let refused = first.arrivals.iter().find(|a| a.demand == "too-much").expect("it came");
    assert!(refused.waited_ms.is_none() && refused.refused.as_ref().is_some_and(|why| why.contains("is 8")), "{refused:?}");
    let of_type = &first.types[&"default".parse().expect("a name")];
    assert!(of_type.most >= 6 && of_type.most <= 8 && (of_type.cost - 0.2 * of_type.node_hours).abs() < 1e-6, "{of_type:?}");
    assert!((first.cost - of_type.cost).abs() < 1e-9 && first.used > 0.1 && first.used <= 1.0, "{} {}", first.cost, first.used);
    assert!(first.mishaps.head_crashes > 0, "{:?}", first.mishaps);
    assert!(
        first.decisions.iter().any(|event| matches!(&event.what, What::PolicyChanged(of) if of.policy.name == "load-default")),
        "the load is followed"
    );

    let shown = cluster.run(&["simulate", &small, "--demand", &scenario, "--compare", &large, "--decisions"]).ok().out;
    for wanted in ["NODE HOURS", "WAITED: MEDIAN", "█ ready", "request w2 (generation 1)", "CHANGE", "batch: 95 % waited at most"] {
        assert!(shown.contains(wanted), "{wanted} is missing in\n{shown}");
    }
    let compared = cluster.run(&["simulate", &small, "--demand", &scenario, "--compare", &large, "-o", "json"]).ok().out;
    let both: Vec<Simulated> = serde_json::from_str(&compared).expect("a list");
    // Machines break under what runs for long.
    let breaks = "length = \"6h\"\n[provider]\nmachines_last = \"1h\"\n\
                  [[demand]]\nname = \"long\"\nat = \"10m\"\ncpus = 2\ncount = 12\nruns = \"5h\"\n";
    let breaks = written(&cluster, "breaks.toml", breaks);
    let shown = cluster.run(&["simulate", &large, "--demand", &breaks]).ok().out;
    assert!(shown.contains("long: room that ran work was lost "), "{shown}");
    assert!(both.len() == 2 && both[1] == first && both[0].types.values().all(|of| of.most <= 6));
}

#[test]
fn the_examples_run_and_nothing_can_be_made_of_a_model() {
    let cluster = Cluster::new("paper", "[workers.default]");
    let example = |path: &str| repository().join("examples").join(path).display().to_string();
    let (elastic, day) = (example("elastic.toml"), example("scenarios/day.toml"));
    let shown = cluster.run(&["simulate", &elastic, "--demand", &day]).ok().out;
    assert!(shown.contains("nightly") && shown.contains("training"), "{shown}");
    let up = cluster.run(&["up", &elastic, "--yes"]);
    assert!(up.code == 3 && up.err.contains("cloudtik simulate"), "{up:?}");
    let broken = written(&cluster, "broken.toml", "length = \"1d\"\n[[demand]]\ncpu = 2\n");
    let refused = cluster.run(&["simulate", &elastic, "--demand", &broken]);
    assert!(refused.code == 3 && refused.err.contains("did you mean `cpus`"), "{refused:?}");
    let missing = cluster.run(&["simulate", &elastic, "--demand", "nowhere.toml"]);
    assert_eq!(missing.code, 4, "{missing:?}");
}

/// A head's life, lived again from what it heard.
#[test]
fn a_recording_is_decided_the_same_again() {
    let spec = "idle_after = \"1s\"\n[head]\nrecord = true\n[workers.default]\nmin = 1\nmax = 4\ncpus = 2\nmemory = \"1GiB\"";
    let cluster = Cluster::new("recorded", spec);
    cluster.up();
    cluster.run(&["scale", "recorded", "--workers", "3"]).ok();
    let first = cluster.wait("three workers", Duration::from_secs(20), |s| s.ready && s.nodes.len() == 4);
    send(first.head.pid as i32, Signal::SIGKILL);
    cluster.wait("the next head", Duration::from_secs(20), |s| s.ready && s.head.pid != first.head.pid);
    cluster.run(&["scale", "recorded", "--workers", "1"]).ok();
    cluster.wait("one worker", Duration::from_secs(20), |s| s.ready && s.nodes.iter().filter(|n| n.state != "gone").count() == 2);
    let replay = |text: &str| cluster.run(&["simulate", "--replay", &written(&cluster, "recording.jsonl", text)]);
    let recorded =
        |epoch: u64| fs::read_to_string(cluster.directory().join(format!("head/record-{epoch:010}.jsonl"))).expect("the head recorded");
    for (epoch, told) in [(1, "request w3 (generation 1)"), (2, "scale in w3")] {
        let said = replay(&recorded(epoch)).ok().out;
        assert!(said.contains("every decision is identical") && said.contains(told), "{said}");
    }
    // What was not so is seen.
    let first = recorded(1);
    assert!(first.contains("\"count\":3"), "three were asked for");
    let other = replay(&first.replace("\"count\":3", "\"count\":2"));
    assert!(other.code == 1 && other.out.contains("is decided otherwise: {\"input\":\"scale\""), "{other:?}");
    let missing = cluster.run(&["simulate", "--replay", "nowhere.jsonl"]);
    assert!(missing.code == 4 && missing.err.contains("record = true"), "{missing:?}");
    cluster.down();
    cluster.assert_nothing_left();
}
