//! Tab completion: of commands and flags, and of the names of workspaces, clusters, their nodes and the shipped runtimes. Shells ask
//! this program each time, so that what they offer is what there is.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap_complete::engine::{CompletionCandidate, ValueCompleter};
use cloudtik_model::{NodeId, natural};
use cloudtik_runtimes::Catalog;

use crate::clusters;

fn matching(current: &OsStr, all: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    all.filter(|name| name.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

/// Names of this user's clusters, and files that describe one.
pub fn clusters() -> impl ValueCompleter {
    |current: &OsStr| {
        let mut found = matching(current, clusters::all().unwrap_or_default().into_iter().map(|paths| paths.name.to_string()));
        found.extend(files().complete(current));
        found
    }
}

/// Files that may describe a cluster.
pub fn files() -> impl ValueCompleter {
    |current: &OsStr| {
        let is_toml = |path: &std::path::Path| path.extension().is_some_and(|e| e == "toml");
        clap_complete::engine::PathCompleter::file().filter(is_toml).complete(current)
    }
}

/// Names of this user's workspaces, and of those of clusters that the user was given access to.
pub fn workspaces() -> impl ValueCompleter {
    |current: &OsStr| {
        let own = clusters::workspace_names().unwrap_or_default().into_iter().map(String::from);
        let places = clusters::all().unwrap_or_default();
        let mut names: Vec<String> = own.chain(places.iter().map(|paths| paths.workspace_name())).collect();
        names.sort_by(|a, b| natural::compare(a, b));
        names.dedup();
        matching(current, names.into_iter())
    }
}

/// Names of this user's workspaces, and files that describe one.
pub fn workspaces_and_files() -> impl ValueCompleter {
    |current: &OsStr| {
        let mut found = matching(current, clusters::workspace_names().unwrap_or_default().into_iter().map(String::from));
        found.extend(files().complete(current));
        found
    }
}

/// Nodes of this user's clusters: which cluster is meant is not known while a line is being typed.
pub fn nodes() -> impl ValueCompleter {
    |current: &OsStr| {
        let places = clusters::all().unwrap_or_default();
        let instances = places.iter().filter_map(|paths| std::fs::read_dir(paths.nodes()).ok()).flatten().flatten();
        let names = instances.filter_map(|i| Some(i.file_name().to_string_lossy().rsplit_once('.')?.0.to_owned()));
        let names: BTreeSet<NodeId> = names.filter_map(|name| name.parse().ok()).collect();
        let names = names.iter().map(NodeId::to_string);
        matching(current, names)
    }
}

pub fn runtimes() -> impl ValueCompleter {
    |current: &OsStr| matching(current, Catalog::shipped().iter().map(|m| m.name.to_string()))
}
