//! Digests of files of this machine. A program is read once, and again when its file is another one.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use cloudtik_model::program::Digest;

/// Digests that are remembered.
const REMEMBERED: usize = 32;
/// A file that was written this recently may be written again without its time changing: clocks of files are coarse.
const SETTLED: Duration = Duration::from_millis(50);
const CHUNK: usize = 1 << 20;

/// What tells a file's content from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino(), size: file.size(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

static KNOWN: Mutex<VecDeque<(FileIdentity, Digest)>> = Mutex::new(VecDeque::new());

/// The SHA-256 of a file. Blocks.
pub fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let identity = FileIdentity::of(&metadata);
    let known = |remembered: &VecDeque<(FileIdentity, Digest)>| {
        remembered.iter().find(|(known, _)| *known == identity).map(|(_, digest)| digest.clone())
    };
    if let Some(digest) = known(&KNOWN.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(digest);
    }
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => context.update(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    let digest = Digest::of_bytes(&bytes);
    let age = metadata.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    let is_settled = age.is_some_and(|age| age > SETTLED) && FileIdentity::of(&file.metadata()?) == identity;
    if is_settled {
        let mut remembered = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known(&remembered).is_none() {
            remembered.truncate(REMEMBERED - 1);
            remembered.push_front((identity, digest.clone()));
        }
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_what_the_file_is_now() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("program");
        std::fs::write(&path, "abc").expect("writes");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(&path).expect("reads").as_str(), abc);
        // At once, of the same size, in the same file.
        std::fs::write(&path, "abd").expect("writes");
        let abd = digest_of(&path).expect("reads");
        assert_ne!(abd.as_str(), abc);
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(&path).and_then(|file| file.set_modified(long_ago)).expect("sets the time");
        assert_eq!((digest_of(&path).expect("reads"), digest_of(&path).expect("remembers")), (abd.clone(), abd));
        std::fs::write(&path, "abc").expect("writes");
        assert_eq!(digest_of(&path).expect("reads").as_str(), abc);
        assert!(digest_of(&directory.path().join("missing")).is_err());
    }
}
