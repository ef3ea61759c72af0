//! What a changed description is said to change: nothing that stops may go unsaid.

use std::collections::BTreeMap;

use cloudtik_config::Cluster;
use cloudtik_runtimes::{Catalog, Folder, Planner, changes};

const CLUSTER: &str = "[cluster]\nname = \"c\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 2\n[runtimes.rt]\npath = \"./rt\"\n";

fn planner(services: &str) -> Planner {
    planner_of(CLUSTER, services)
}

fn planner_of(text: &str, services: &str) -> Planner {
    let cluster = Cluster::read("c.toml", text).expect("valid");
    let manifest = format!("[runtime]\nname = \"rt\"\nversion = \"1\"\n{services}");
    let folder = Folder::from([("runtime.toml".to_owned(), manifest)]);
    let folders = BTreeMap::from([("rt".parse().expect("valid"), folder)]);
    let catalog = Catalog::of_cluster(&cluster.runtimes, &folders, "c.toml", text).expect("valid");
    Planner::new(cluster, catalog)
}

fn service(name: &str, role: &str, rest: &str) -> String {
    format!("[services.{name}]\nrole = \"{role}\"\ncommand = [\"/bin/sleep\", \"1\"]\n{rest}\n")
}

/// The changes as people read them, a disturbing one with an exclamation mark.
fn said(old: &str, new: &str) -> Vec<String> {
    lines(&planner(old), &planner(new))
}

fn lines(old: &Planner, new: &Planner) -> Vec<String> {
    let (plan, _) = changes::compare(Some(old), new);
    let line = |c: &cloudtik_model::status::Change| format!("{}{} {}: {}", if c.disturbs { "!" } else { "" }, c.action, c.what, c.detail);
    plan.changes.iter().map(line).collect()
}

#[test]
fn services_that_go_come_move_or_change_are_told_of() {
    let (a, b) = (service("a", "workers", ""), service("b", "workers", ""));
    let both = format!("{a}{b}");
    assert_eq!(said(&both, &both), Vec::<String>::new());
    assert_eq!(said(&both, &a), ["!destroy services of rt: rt/b"]);
    assert_eq!(said(&a, &both), ["create services of rt: rt/b"]);
    let on_head = format!("{a}{}", service("b", "head", ""));
    assert_eq!(said(&both, &on_head), ["!destroy services of rt: rt/b on default", "create services of rt: rt/b on head"]);
    let everywhere = format!("{a}{}", service("b", "all", ""));
    assert_eq!(said(&everywhere, &on_head), ["!destroy services of rt: rt/b on default"]);
    let probed = format!("{a}{}", service("b", "workers", "readiness = { tcp = \"{{ node.address }}:1\" }"));
    assert_eq!(said(&both, &probed), ["change runtime rt: rt/b; nothing restarts"]);
    let changed = format!("{a}{}", service("b", "workers", "environment = { A = \"1\" }"));
    assert_eq!(said(&both, &changed), ["!restart runtime rt: restarts rt/b, node by node"]);
    let takes_jobs = format!("{both}[submit]\nservice = \"a\"\ncommand = [\"/bin/true\"]\n");
    assert_eq!(said(&both, &takes_jobs), ["change runtime rt: how jobs are run"]);
}

#[test]
fn every_change_of_what_nodes_run_is_tried_on_the_types_that_it_reaches() {
    let steps = |old: &str, new: &str| changes::compare(Some(&planner(old)), &planner(new)).1;
    let trials = |old: &str, new: &str| steps(old, new).trials.into_iter().map(|(name, span)| (name.to_string(), span)).collect::<Vec<_>>();
    let (a, b) = (service("a", "workers", ""), service("b", "workers", ""));
    let both = format!("{a}{b}");
    let workers = vec![("default".to_owned(), 5_000)];
    assert_eq!(trials(&both, &both), [], "nothing changes");
    assert_eq!(trials(&a, &both), workers, "a service comes");
    assert_eq!(trials(&both, &a), workers, "one goes");
    assert_eq!(trials(&a, &service("a", "workers", "readiness = { tcp = \"{{ node.address }}:1\" }")), workers);
    let checked =
        service("a", "workers", "health = { tcp = \"{{ node.address }}:1\", interval = \"10s\", timeout = \"2s\", failures = 3 }");
    assert_eq!(trials(&a, &checked), [("default".to_owned(), 32_000)], "until its check can have failed three times");
    assert!(!steps(&a, &checked).rolling, "nothing restarts");
    let on_head = format!("{a}{}", service("b", "head", ""));
    assert_eq!(trials(&both, &on_head), [("default".to_owned(), 5_000), ("head".to_owned(), 5_000)]);
    let changed = service("a", "workers", "environment = { A = \"1\" }");
    assert!(steps(&a, &changed).rolling);
    assert_eq!(trials(&a, &changed), workers);
    assert_eq!(changes::compare(None, &planner(&a)).1, cloudtik_model::spec::Steps::default(), "nothing runs yet");
}

#[test]
fn it_is_said_what_a_changed_type_reaches() {
    let of = |types: &str| planner_of(&CLUSTER.replace("[workers.default]\nmin = 2\n", types), &service("a", "workers", ""));
    let typed = |rest: &str| of(&format!("[workers.default]\nmin = 0\nmax = 4\n{rest}"));
    let (plain, priced) = (typed("cpus = 2\n"), typed("cpus = 2\nprice = \"1/h\"\n"));
    let said = |old: &Planner, new: &Planner| lines(old, new).into_iter().filter(|line| line.contains("type")).collect::<Vec<_>>();
    let kept = "the new price is for new nodes, those that are there keep theirs";
    assert_eq!(said(&plain, &priced), [format!("change node type default: 0 to 4 (2 cpus) → 0 to 4 (2 cpus, 1.00/h); {kept}")]);
    let larger = typed("cpus = 4\n");
    let both = "the new shape and price are for new nodes";
    assert_eq!(said(&plain, &larger), ["change node type default: 0 to 4 (2 cpus) → 0 to 4 (4 cpus); the new shape is for new nodes"]);
    assert_eq!(said(&priced, &larger), [format!("change node type default: 0 to 4 (2 cpus, 1.00/h) → 0 to 4 (4 cpus); {both}")]);
    let two = of("[workers.default]\nmin = 0\nmax = 4\ncpus = 2\n[workers.large]\nmin = 0\nmax = 2\n");
    assert_eq!(said(&plain, &two), ["create node type large: 0 to 2"], "none of it is there yet");
    assert_eq!(said(&two, &plain), ["!destroy node type large: 0 to 2"]);
}
