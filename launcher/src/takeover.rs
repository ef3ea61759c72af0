//! What a cluster file has to do with clusters that are up already: another file made the cluster of its name, or it made a
//! cluster of another name. Neither may pass without a word.

use std::path::{Path, PathBuf};

use cloudtik_model::ProviderDocument;
use cloudtik_model::status::Change;

use crate::clusters::{self, ClusterPaths, Remembered};
use crate::described::{Described, is_standard_input};
use crate::failure::Failure;

/// The changes, beside those of the cluster itself, that bringing a file up means.
pub fn changes(described: &Described, paths: &ClusterPaths) -> Result<Vec<Change>, Failure> {
    if is_standard_input(&described.path) {
        return Ok(Vec::new());
    }
    if paths.exists() {
        return Ok(paths.remembered().and_then(|known| another_file(&known, described)).into_iter().collect());
    }
    let renamed = clusters::all()?
        .into_iter()
        .filter(|other| other.directory != paths.directory && other.remembered().is_some_and(|known| is_same(&known, &described.path)));
    Ok(renamed.map(|other| renamed_from(&other, paths)).collect())
}

/// What is remembered of a cluster that comes up from a file.
pub fn remembered(described: &Described, provider: ProviderDocument, head_address: String) -> Remembered {
    let real = described.path.canonicalize().ok().filter(|real| *real != described.path);
    Remembered { file: described.path.clone(), real, provider, head_address }
}

/// Notes that another file is the cluster's by now. Another name of the same file, or standard input, changes nothing.
pub fn note(described: &Described, paths: &ClusterPaths) -> Result<(), Failure> {
    match paths.remembered() {
        Some(known) if !is_standard_input(&described.path) && !is_same(&known, &described.path) => {
            paths.remember(&remembered(described, known.provider, known.head_address))
        }
        _ => Ok(()),
    }
}

/// The cluster was brought up from another file.
fn another_file(known: &Remembered, described: &Described) -> Option<Change> {
    if is_standard_input(&known.file) || is_same(known, &described.path) {
        return None;
    }
    let known = known.real.as_ref().unwrap_or(&known.file);
    Some(Change {
        action: "change".to_owned(),
        what: "the cluster's file".to_owned(),
        detail: format!("{} was brought up from {}; {} takes its place", described.cluster.name, known.display(), described.path.display()),
        // A file that was moved is probably the same one.
        disturbs: known.exists(),
    })
}

/// The file names another cluster by now, or another workspace.
fn renamed_from(other: &ClusterPaths, paths: &ClusterPaths) -> Change {
    let (before, now) = (other.workspace_name(), paths.workspace_name());
    let is_moved = before != now;
    let in_workspace = |workspace: &str| if is_moved { format!(" in the workspace {workspace}") } else { String::new() };
    let what = if other.name == paths.name { "workspace" } else { "cluster" };
    // The name alone may mean either.
    let option = if is_moved { format!(" --workspace {before}") } else { String::new() };
    Change {
        action: "keep".to_owned(),
        what: format!("cluster {}{}", other.name, in_workspace(&before)),
        detail: format!(
            "brought up from this file, which names another {what} now; {} stays up beside {}{} until `cloudtik down {}{option}`",
            other.name,
            paths.name,
            in_workspace(&now),
            other.name
        ),
        disturbs: true,
    }
}

/// Whether a path is the file that a cluster was brought up from.
fn is_same(known: &Remembered, path: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    let known = known.real.clone().unwrap_or_else(|| real(&known.file));
    known == real(path)
}
