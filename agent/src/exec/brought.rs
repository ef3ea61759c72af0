//! Files that were brought to the node for one program, and the directory that was made for it. They are removed when it has
//! ended; after an agent that could not do so, by the next one.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use cloudtik_protocol::files::{create_missing_directories, remove_tree};
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::wire;
use serde::{Deserialize, Serialize};

use crate::home::Home;

/// The files of one program, and the record of them on the disk.
pub struct Brought {
    home: Home,
    files: Files,
    record: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Files {
    /// Relative to the agent's directory.
    directory: String,
    names: Vec<String>,
    /// Whether the directory was made for the program: then all goes that the program left in it.
    #[serde(default)]
    is_own: bool,
}

impl Brought {
    /// Notes which files are to be removed, before any of them is there.
    pub fn record(home: &Home, session: &str, execute: &wire::Execute) -> anyhow::Result<Self> {
        let is_name = |name: &&String| !name.contains('/') && *name != "..";
        let names = execute.remove.iter().filter(is_name).cloned().collect();
        let directory = execute.directory.clone();
        let is_below = Path::new(&directory).components().all(|part| matches!(part, Component::Normal(_)));
        let is_own = is_below && !directory.is_empty() && !home.path().join(&directory).exists();
        let own = Self { home: home.clone(), files: Files { directory, names, is_own }, record: home.brought(session) };
        if own.is_something() {
            create_missing_directories(&home.all_brought()).context("making the directory of records")?;
            let text = serde_json::to_vec(&own.files).context("writing the record of the session's files")?;
            fs::write(&own.record, text).with_context(|| format!("writing {}", own.record.display()))?;
        }
        Ok(own)
    }

    fn is_something(&self) -> bool {
        !self.files.names.is_empty() && !self.files.directory.is_empty()
    }

    /// Removes them, and their directory: one that was made for the program with all that is in it, another if it is empty.
    pub fn remove(self) {
        if !self.is_something() {
            return;
        }
        let directory = self.home.path().join(&self.files.directory);
        if self.files.is_own {
            if let Err(error) = remove_tree(&directory) {
                // The record stays: the next agent tries again.
                tracing::warn!("a job's directory stays: {}", chain(&error));
                return;
            }
        } else {
            for name in &self.files.names {
                let _ = fs::remove_file(directory.join(name));
            }
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::remove_file(self.record);
    }
}

/// Removes what earlier agents left. No program of theirs is followed any more.
pub fn clear(home: &Home) {
    let Ok(records) = fs::read_dir(home.all_brought()) else { return };
    for record in records.flatten().map(|entry| entry.path()) {
        let files = fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match files {
            Some(files) => Brought { home: home.clone(), files, record }.remove(),
            // Its agent ended while it was written: nothing had been brought yet.
            None => drop(fs::remove_file(record)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_programs_are_removed_at_their_end_or_by_the_next_agent() {
        let folder = tempfile::tempdir().expect("makes");
        let home = Home::new(folder.path());
        let bring = |session: &str| {
            let execute = wire::Execute { directory: format!("jobs/{session}"), remove: vec!["job.py".to_owned()], ..Default::default() };
            let brought = Brought::record(&home, session, &execute).expect("records");
            fs::create_dir_all(folder.path().join("jobs").join(session)).expect("makes");
            fs::write(folder.path().join("jobs").join(session).join("job.py"), "pass").expect("writes");
            brought
        };
        let left = || fs::read_dir(folder.path().join("jobs")).expect("reads").count();
        // What the program left in a directory of its own goes too.
        let first = bring("first");
        fs::create_dir_all(folder.path().join("jobs/first/spark-warehouse/db")).expect("makes");
        fs::write(folder.path().join("jobs/first/derby.log"), "x").expect("writes");
        first.remove();
        assert_eq!((left(), fs::read_dir(home.all_brought()).expect("reads").count()), (0, 0));
        // Its agent is killed.
        drop(bring("second"));
        drop(bring("third"));
        fs::write(folder.path().join("jobs/third/result.csv"), "1,2").expect("writes");
        clear(&home);
        assert_eq!((left(), fs::read_dir(home.all_brought()).expect("reads").count()), (0, 0));
        // A directory that was there before keeps what was not brought.
        fs::create_dir_all(folder.path().join("jobs/shared")).expect("makes");
        fs::write(folder.path().join("jobs/shared/kept"), "x").expect("writes");
        bring("shared").remove();
        assert!(folder.path().join("jobs/shared/kept").exists() && !folder.path().join("jobs/shared/job.py").exists());
    }

    #[test]
    fn no_directory_but_one_below_the_nodes_is_removed() {
        let folder = tempfile::tempdir().expect("makes");
        let home = Home::new(&folder.path().join("node"));
        fs::create_dir_all(home.path()).expect("makes");
        for directory in ["../outside", "", "jobs/../../outside"] {
            let execute = wire::Execute { directory: directory.to_owned(), remove: vec!["job.py".to_owned()], ..Default::default() };
            let brought = Brought::record(&home, "s", &execute).expect("records");
            fs::create_dir_all(folder.path().join("outside")).expect("makes");
            fs::write(folder.path().join("outside/file"), "x").expect("writes");
            brought.remove();
            assert!(folder.path().join("outside/file").exists() && home.path().exists(), "{directory:?}");
        }
    }
}
