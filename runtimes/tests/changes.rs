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
