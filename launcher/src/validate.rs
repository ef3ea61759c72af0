//! `cloudtik validate`: reads and checks cluster files; nothing is created.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::described::{Described, describe, is_standard_input};
use crate::failure::Failure;
use crate::output::Printer;

#[derive(Serialize)]
struct Valid<'a> {
    file: String,
    valid: bool,
    cluster: &'a str,
    workspace: &'a str,
    provider: &'a str,
    /// The least and the most workers.
    min_workers: u32,
    max_workers: u32,
    runtimes: Vec<&'a str>,
}

pub fn run(printer: &Printer, files: &[PathBuf]) -> Result<(), Failure> {
    let (mut valid, mut failures): (Vec<(&PathBuf, Described)>, Vec<Failure>) = (Vec::new(), Vec::new());
    for file in files {
        match describe(file) {
            Ok(described) => valid.push((file, described)),
            Err(failure) => failures.push(failure),
        }
    }
    if let Some(failure) = together(failures) {
        return Err(failure);
    }
    let documents: Vec<Valid<'_>> = valid.iter().map(|(file, described)| document(file, described)).collect();
    match &documents[..] {
        [one] if printer.is_json() => printer.json(one),
        several if printer.is_json() => printer.json(&several),
        several => several.iter().for_each(|valid| printer.line(&sentence(valid))),
    }
    Ok(())
}

/// What is wrong with all files, told at once: problems with their places, and why files could not be read.
fn together(failures: Vec<Failure>) -> Option<Failure> {
    let (unread, invalid): (Vec<Failure>, Vec<Failure>) = failures.into_iter().partition(|failure| failure.diagnostics.is_empty());
    let problems: Vec<_> = invalid.into_iter().flat_map(|failure| failure.diagnostics).collect();
    let found = (!problems.is_empty()).then(|| Failure::invalid(problems));
    unread.into_iter().rev().fold(found, |found, unread| match found {
        None => Some(unread),
        Some(found) => {
            Some(Failure { message: format!("{}; {}", unread.message, found.message), hint: unread.hint.or(found.hint.clone()), ..found })
        }
    })
}

fn document<'a>(file: &Path, described: &'a Described) -> Valid<'a> {
    let cluster = &described.cluster;
    Valid {
        file: if is_standard_input(file) { "standard input".to_owned() } else { file.display().to_string() },
        valid: true,
        cluster: cluster.name.as_str(),
        workspace: cluster.workspace.as_str(),
        provider: cluster.provider.as_str(),
        min_workers: cluster.workers.values().map(|workers| workers.min).sum(),
        max_workers: cluster.max_workers,
        runtimes: cluster.runtimes.iter().map(|runtime| runtime.name.as_str()).collect(),
    }
}

fn sentence(valid: &Valid<'_>) -> String {
    let Valid { file, cluster, provider, min_workers, max_workers, .. } = valid;
    let runtimes = if valid.runtimes.is_empty() { "none".to_owned() } else { valid.runtimes.join(", ") };
    format!("{file} is valid: cluster {cluster}, provider {provider}, {min_workers} to {max_workers} workers, runtimes: {runtimes}")
}
