//! Who uses software: nodes by their goal, services that run from it though the goal has moved on, and any other process
//! that was started from it, has it open or is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;
use cloudtik_model::goal::Goal;
use serde::Deserialize;

use super::{entries, is_digest};
use crate::clusters::{self, ClusterPaths};
use crate::failure::Failure;

/// Length of a digest in hexadecimal digits.
const DIGEST: usize = 64;
/// What of a process can name the software that it uses.
const TEXTS: [&str; 3] = ["cmdline", "environ", "maps"];

/// Digest → the clusters, or single processes, that use it.
pub type Users = BTreeMap<String, BTreeSet<String>>;

/// What a shim says of the process that it keeps (`shim.json`).
#[derive(Deserialize)]
struct Kept {
    shim: Shim,
    #[serde(default)]
    artifacts: Vec<String>,
}

/// A shim lives as long as its process.
#[derive(Deserialize)]
struct Shim {
    pid: i32,
    /// Clock ticks from boot to its start, which tells it from a later process with its id.
    started: u64,
}

impl Shim {
    fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name stands in parentheses and may hold anything; the start is field 22, the first after them is the third.
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok()) == Some(self.started)
    }
}

/// Everybody that uses software. A cluster counts as long as its directory is there, be it reachable or not.
pub fn users() -> Result<Users, Failure> {
    let mut users = Users::new();
    let places = clusters::all()?;
    for paths in &places {
        for node in entries(&paths.nodes()) {
            for digest in
                of_node(&node).map_err(|e| Failure::failed(format!("cannot read what {} of {} uses: {e}", node.display(), paths.name)))?
            {
                users.entry(digest).or_default().insert(paths.name.to_string());
            }
        }
    }
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { continue };
        let digests = of_process(&process);
        if !digests.is_empty() {
            let user = cluster_of(&process, &places).unwrap_or_else(|| format!("process {pid}"));
            for digest in digests {
                users.entry(digest).or_default().insert(user.clone());
            }
        }
    }
    Ok(users)
}

/// What a node is to run, and what runs on it.
fn of_node(node: &Path) -> io::Result<BTreeSet<String>> {
    let mut digests = BTreeSet::new();
    if let Some(text) = read(&node.join("goal.json"))? {
        let goal: Goal = serde_json::from_slice(&text)?;
        digests.extend(goal.artifacts.into_iter().map(|artifact| artifact.digest));
    }
    for service in entries(&node.join("services")).iter().flat_map(|runtime| entries(runtime)) {
        if let Some(text) = read(&service.join("shim.json"))? {
            let kept: Kept = serde_json::from_slice(&text)?;
            if kept.shim.is_alive() {
                digests.extend(kept.artifacts);
            }
        }
    }
    Ok(digests)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The software that a process names in its arguments, its environment or what it has mapped, is in or has open. One that
/// has ended, or is another user's, uses none.
fn of_process(process: &Path) -> BTreeSet<String> {
    let mut digests = BTreeSet::new();
    for text in TEXTS {
        find(&fs::read(process.join(text)).unwrap_or_default(), &mut digests);
    }
    let open = entries(&process.join("fd")).into_iter();
    for link in ["exe", "cwd", "root"].map(|name| process.join(name)).into_iter().chain(open) {
        if let Ok(target) = fs::read_link(link) {
            find(target.as_os_str().as_bytes(), &mut digests);
        }
    }
    digests
}

/// Every digest of a path in a directory `unpacked`.
fn find(text: &[u8], digests: &mut BTreeSet<String>) {
    const BEFORE: &[u8] = b"/unpacked/";
    let mut rest = text;
    while let Some(at) = rest.windows(BEFORE.len()).position(|part| part == BEFORE) {
        rest = &rest[at + BEFORE.len()..];
        if let Some(digest) = rest.get(..DIGEST).and_then(|part| std::str::from_utf8(part).ok()).filter(|part| is_digest(part)) {
            digests.insert(digest.to_owned());
        }
    }
}

/// The cluster whose node a process belongs to, by its mark.
fn cluster_of(process: &Path, places: &[ClusterPaths]) -> Option<String> {
    let environment = fs::read(process.join("environ")).ok()?;
    let mark = format!("{NODE_HOME_VARIABLE}=").into_bytes();
    let node = environment.split(|b| *b == 0).find_map(|variable| variable.strip_prefix(mark.as_slice()))?;
    let node = Path::new(std::ffi::OsStr::from_bytes(node));
    places.iter().find(|paths| node.starts_with(paths.nodes())).map(|paths| paths.name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_the_software_that_it_is_in_names_or_has_open() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let digests = ["a", "b", "c"].map(|letter| letter.repeat(DIGEST));
        let place = |digest: &String| directory.path().join("unpacked").join(digest);
        for digest in &digests {
            fs::create_dir_all(place(digest)).expect("makes");
            fs::write(place(digest).join("file"), "x").expect("writes");
        }
        let mut sleep = std::process::Command::new("sleep");
        sleep.arg("600").current_dir(place(&digests[0])).env("HOME_OF_IT", place(&digests[1]));
        sleep.stdin(fs::File::open(place(&digests[2]).join("file")).expect("opens"));
        let mut child = sleep.spawn().expect("runs");
        // The kernel shows the environment of a program a moment after it runs.
        let process = format!("/proc/{}", child.id());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut found = of_process(Path::new(&process));
        while found.len() < digests.len() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
            found = of_process(Path::new(&process));
        }
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert_eq!(found, digests.into());
    }

    #[test]
    fn only_digests_below_the_unpacked_software_count() {
        let digest = "0f".repeat(DIGEST / 2);
        let mut found = BTreeSet::new();
        find(format!("{digest} /unpacked/short /artifacts/{digest}.tar /unpacked/{digest}/jars:/unpacked/{digest}").as_bytes(), &mut found);
        assert_eq!(found, [digest].into());
    }
}
