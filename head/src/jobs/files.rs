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

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct JobFiles {
    directory: PathBuf,
    /// By digest, how many submissions that are not stored yet need a file.
    held: Arc<Mutex<BTreeMap<String, u32>>>,
}

/// Keeps a file from being removed until the job that needs it is stored.
#[derive(Debug)]
pub struct HeldFile {
    pub digest: String,
    held: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        let mut held = self.held.lock().expect("nothing panics while holding the lock");
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
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

    /// Removes the files that no job needs. Blocks.
    pub fn collect(&self, needed: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Whoever receives one takes the lock before it gets its name.
            let held = self.held.lock().expect("nothing panics while holding the lock");
            if !name.starts_with(UNFINISHED) && !needed.contains(&name) && !held.contains_key(&name) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
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
        let mut held = self.files.held.lock().expect("nothing panics while holding the lock");
        fs::rename(&self.path, self.files.directory.join(&digest))?;
        self.is_kept = true;
        *held.entry(digest.clone()).or_default() += 1;
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
        files.collect(&BTreeSet::new()).expect("collects");
        assert!(files.path(&digest).is_some(), "its job is not stored yet");
        drop(held);
        files.collect(&BTreeSet::from([digest.clone()])).expect("collects");
        assert_eq!(fs::read(files.path(&digest).expect("its job needs it")).expect("reads"), b"print(1)");
        files.collect(&BTreeSet::new()).expect("collects");
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
