//! What a cluster file has to do with clusters that are up already: another file made the cluster of its name, or it made a
//! cluster of another name. Neither may pass without a word.

use std::path::{Path, PathBuf};

use cloudtik_model::status::Change;

use crate::clusters::{self, Described, Place, is_standard_input};
use crate::failure::Failure;

/// The changes, beside those of the cluster itself, that bringing a file up means.
pub fn changes(described: &Described, place: &Place) -> Result<Vec<Change>, Failure> {
    if is_standard_input(&described.path) {
        return Ok(Vec::new());
    }
    if place.exists() {
        return Ok(place.remembered().and_then(|known| another_file(&known.file, described)).into_iter().collect());
    }
    let renamed = clusters::all()?.into_iter().filter(|other| {
        other.directory != place.directory && other.remembered().is_some_and(|known| is_same(&known.file, &described.path))
    });
    Ok(renamed.map(|other| renamed_from(&other, place)).collect())
}

/// The cluster was brought up from another file.
fn another_file(known: &Path, described: &Described) -> Option<Change> {
    if is_standard_input(known) || is_same(known, &described.path) {
        return None;
    }
    Some(Change {
        action: "change".to_owned(),
        what: "the cluster's file".to_owned(),
        detail: format!("{} was brought up from {}; {} takes its place", described.cluster.name, known.display(), described.path.display()),
        // A file that was moved is probably the same one.
        disturbs: known.exists(),
    })
}

/// The file names another cluster by now.
fn renamed_from(other: &Place, place: &Place) -> Change {
    Change {
        action: "keep".to_owned(),
        what: format!("cluster {}", other.name),
        detail: format!(
            "brought up from this file, which names another cluster now; {} stays up beside {} until `cloudtik down {}`",
            other.name, place.name, other.name
        ),
        disturbs: true,
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    real(one) == real(other)
}
