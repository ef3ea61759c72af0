//! `cloudtik validate`: reads and checks cluster files; nothing is created.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::clusters::{Described, describe};
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
    let (mut valid, mut failed): (Vec<(&PathBuf, Described)>, Option<Failure>) = (Vec::new(), None);
    for file in files {
        match describe(file) {
            Ok(described) => valid.push((file, described)),
            // What is wrong with all of them is told at once.
            Err(failure) => failed = Some(together(failed, failure)),
        }
    }
    if let Some(failure) = failed {
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

/// One failure of two: problems of files are told together; of other failures, the first.
fn together(first: Option<Failure>, second: Failure) -> Failure {
    match first {
        None => second,
        Some(first) if first.diagnostics.is_empty() => first,
        Some(_) if second.diagnostics.is_empty() => second,
        Some(first) => Failure::invalid(first.diagnostics.into_iter().chain(second.diagnostics).collect()),
    }
}

fn document<'a>(file: &Path, described: &'a Described) -> Valid<'a> {
    let cluster = &described.cluster;
    Valid {
        file: file.display().to_string(),
        valid: true,
        cluster: cluster.name.as_str(),
        workspace: cluster.workspace.as_str(),
        provider: cluster.provider.kind(),
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
