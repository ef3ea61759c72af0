//! The files that jobs bring along, by the SHA-256 of their content, until the jobs that need them have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{Context, SHA256};
use cloudtik_protocol::files::create_missing_directories;
use cloudtik_protocol::pki;

/// In the head's directory.
const DIRECTORY: &str = "job-files";
/// Of a file that is being received.
const UNFINISHED: &str = ".receiving-";

/// Of all files together: the head's own store is on the same disk.
const MAX_TOTAL: u64 = 16 << 30;

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct JobFiles {
    directory: PathBuf,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    /// By digest, how many submissions that are not stored yet need a file.
    counts: BTreeMap<String, u32>,
    /// Held at any time since each collection that is under way began.
    since: BTreeMap<u64, BTreeSet<String>>,
    next: u64,
}

/// A removal of what no job needs. What was held at any time since it began stays: its job may have been stored after it was asked
/// which files are needed.
pub struct Collection {
    files: JobFiles,
    number: u64,
}

/// Keeps a file from being removed until the job that needs it is stored.
#[derive(Debug)]
pub struct HeldFile {
    pub digest: String,
    held: Arc<Mutex<Held>>,
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        let counts = &mut self.held.lock().expect("nothing panics while holding the lock").counts;
        if let Some(count) = counts.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.digest);
            }
        }
    }
}

/// A file that is being received.
pub struct Receiving {
    file: File,
    path: PathBuf,
    context: Context,
    files: JobFiles,
    is_kept: bool,
}

impl JobFiles {
    /// The files in a head's directory. What earlier heads received and did not finish is removed.
    pub fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join(DIRECTORY);
        create_missing_directories(&directory)?;
        for entry in fs::read_dir(&directory)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { directory, held: Arc::default() })
    }

    /// Where a file is, if it is there.
    pub fn path(&self, digest: &str) -> Option<PathBuf> {
        let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest.then(|| self.directory.join(digest)).filter(|path| path.exists())
    }

    /// Begins to receive a file. Blocks.
    pub fn receive(&self) -> io::Result<Receiving> {
        let path = self.directory.join(format!("{UNFINISHED}{}", pki::hex(&pki::random::<8>())));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Receiving { file, path, context: Context::new(&SHA256), files: self.clone(), is_kept: false })
    }

    /// Whether there is room for so many bytes more beside the files that are kept. Blocks.
    pub fn has_room(&self, bytes: u64) -> io::Result<bool> {
        let mut sum = bytes;
        for entry in fs::read_dir(&self.directory)?.flatten() {
            // One that was removed meanwhile takes none.
            sum = sum.saturating_add(entry.metadata().map_or(0, |metadata| metadata.len()));
        }
        Ok(sum <= MAX_TOTAL)
    }

    /// To be called before it is asked which files are needed.
    pub fn begin_collection(&self) -> Collection {
        let mut held = self.held();
        let (number, now) = (held.next, held.counts.keys().cloned().collect());
        held.next += 1;
        held.since.insert(number, now);
        Collection { files: self.clone(), number }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().expect("nothing panics while holding the lock")
    }
}

impl Collection {
    /// Removes the files that no job needs. Blocks.
    pub fn run(&self, needed: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.files.directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Whoever receives one takes the lock before it gets its name.
            let held = self.files.held();
            let is_held = held.since.get(&self.number).is_some_and(|since| since.contains(&name));
            if !name.starts_with(UNFINISHED) && !needed.contains(&name) && !is_held {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.files.held().since.remove(&self.number);
    }
}

impl Receiving {
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.context.update(bytes);
        Ok(())
    }

    /// The file is whole: it is on the disk when this returns.
    pub fn finish(mut self) -> io::Result<HeldFile> {
        self.file.sync_all()?;
        let digest = pki::hex(self.context.clone().finish().as_ref());
        let mut held = self.files.held();
        fs::rename(&self.path, self.files.directory.join(&digest))?;
        self.is_kept = true;
        *held.counts.entry(digest.clone()).or_default() += 1;
        for since in held.since.values_mut() {
            since.insert(digest.clone());
        }
        drop(held);
        File::open(&self.files.directory)?.sync_all()?;
        Ok(HeldFile { digest, held: self.files.held.clone() })
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(state: &Path) -> Vec<String> {
        let of = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        fs::read_dir(state.join(DIRECTORY)).expect("lists").flatten().map(of).collect()
    }

    #[test]
    fn a_file_is_kept_as_long_as_it_is_held_or_needed() {
        let state = tempfile::tempdir().expect("makes");
        let files = JobFiles::open(state.path()).expect("opens");
        let mut receiving = files.receive().expect("begins");
        receiving.write(b"print").expect("writes");
        receiving.write(b"(1)").expect("writes");
        let held = receiving.finish().expect("finishes");
        let digest = held.digest.clone();
        assert_eq!(digest, pki::sha256_hex(b"print(1)"));
        let collect = |needed: &[&String]| files.begin_collection().run(&needed.iter().map(|d| (*d).clone()).collect()).expect("collects");
        collect(&[]);
        assert!(files.path(&digest).is_some(), "its job is not stored yet");
        // Its job is stored between the question which files are needed and the removal.
        let collection = files.begin_collection();
        drop(held);
        collection.run(&BTreeSet::new()).expect("collects");
        assert!(files.path(&digest).is_some(), "it was held when the collection began");
        drop(collection);
        collect(&[&digest]);
        assert_eq!(fs::read(files.path(&digest).expect("its job needs it")).expect("reads"), b"print(1)");
        assert_eq!((files.has_room(MAX_TOTAL - 8).ok(), files.has_room(MAX_TOTAL - 7).ok()), (Some(true), Some(false)));
        collect(&[]);
        assert_eq!((files.path(&digest), names(state.path())), (None, Vec::new()));
    }

    #[test]
    fn nothing_is_left_of_a_file_that_did_not_come_whole() {
        let state = tempfile::tempdir().expect("makes");
        let files = JobFiles::open(state.path()).expect("opens");
        let mut receiving = files.receive().expect("begins");
        receiving.write(b"half").expect("writes");
        drop(receiving);
        assert_eq!(names(state.path()), Vec::<String>::new());
        // Of a head that was killed meanwhile.
        std::mem::forget(files.receive().expect("begins"));
        assert_eq!(names(state.path()).len(), 1);
        JobFiles::open(state.path()).expect("opens");
        assert_eq!(names(state.path()), Vec::<String>::new());
    }

    #[test]
    fn only_digests_name_files() {
        let state = tempfile::tempdir().expect("makes");
        let files = JobFiles::open(state.path()).expect("opens");
        fs::write(state.path().join("secret"), "x").expect("writes");
        for name in ["../secret", "", ".", &"g".repeat(64)] {
            assert_eq!(files.path(name), None, "{name:?}");
        }
    }
}
