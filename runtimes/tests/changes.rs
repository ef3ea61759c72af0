//! What a changed description is said to change: nothing that stops may go unsaid.

use std::collections::BTreeMap;

use cloudtik_config::Cluster;
use cloudtik_runtimes::{Catalog, Folder, Planner, changes};

const CLUSTER: &str = "[cluster]\nname = \"c\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 2\n[runtimes.rt]\npath = \"./rt\"\n";

fn planner(services: &str) -> Planner {
    let cluster = Cluster::read("c.toml", CLUSTER).expect("valid");
    let manifest = format!("[runtime]\nname = \"rt\"\nversion = \"1\"\n{services}");
    let folder = Folder::from([("runtime.toml".to_owned(), manifest)]);
    let folders = BTreeMap::from([("rt".parse().expect("valid"), folder)]);
    let catalog = Catalog::of_cluster(&cluster.runtimes, &folders, "c.toml", CLUSTER).expect("valid");
    Planner::new(cluster, catalog)
}

fn service(name: &str, role: &str, rest: &str) -> String {
    format!("[services.{name}]\nrole = \"{role}\"\ncommand = [\"/bin/sleep\", \"1\"]\n{rest}\n")
}

/// The changes as people read them, a disturbing one with an exclamation mark.
fn said(old: &str, new: &str) -> Vec<String> {
    let (plan, _) = changes::compare(Some(&planner(old)), &planner(new));
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
