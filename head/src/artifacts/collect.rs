//! The removal of software that is needed no more: archives beyond a size, the longest unused first, and what fetches left
//! that broke off. What is unpacked on nodes, and runs, is not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cloudtik_model::software::IndexEntry;
use cloudtik_protocol::files::remove_tree;

use super::ArtifactStore;

/// What broke off is kept for so long, to go on from.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 86_400);
/// An archive that was used within this stays: heads of other clusters may share the directory, and mark what they need.
const UNUSED_FOR: Duration = Duration::from_secs(86_400);
/// What is needed is marked again when its mark is older than this.
const MARK_EVERY: Duration = Duration::from_secs(3_600);

/// What a collection came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub removed_bytes: u64,
    /// Digests of the archives that were removed.
    pub removed: Vec<String>,
    /// Bytes of the archives that are left.
    pub kept_bytes: u64,
}

struct Archive {
    digest: String,
    path: PathBuf,
    bytes: u64,
    /// When it was last marked as needed, or arrived.
    used: SystemTime,
}

impl ArtifactStore {
    /// Removes archives until all together take no more than `limit` bytes. Those in `needed` stay whatever they take, and so
    /// do those that some head needed within a day and those that are being fetched. Blocks.
    pub fn collect(&self, limit: u64, needed: &BTreeSet<String>, now: SystemTime) -> io::Result<Collected> {
        let age = |then: SystemTime| now.duration_since(then).unwrap_or_default();
        let mut collected = Collected { removed_bytes: self.remove_abandoned(now)?, ..Collected::default() };
        let mut archives = self.archives()?;
        for archive in archives.iter().filter(|a| needed.contains(&a.digest) && age(a.used) > MARK_EVERY) {
            File::open(&archive.path)?.set_modified(now)?;
        }
        collected.kept_bytes = archives.iter().map(|archive| archive.bytes).sum();
        archives.retain(|archive| !needed.contains(&archive.digest) && age(archive.used) > UNUSED_FOR);
        archives.sort_by_key(|archive| archive.used);
        let keys = self.keys();
        for archive in archives {
            if collected.kept_bytes <= limit {
                break;
            }
            if self.remove_archive(&archive, keys.get(&archive.digest).map_or(&[], Vec::as_slice))? {
                collected.kept_bytes -= archive.bytes;
                collected.removed_bytes += archive.bytes;
                collected.removed.push(archive.digest);
            }
        }
        Ok(collected)
    }

    fn archives(&self) -> io::Result<Vec<Archive>> {
        let mut archives = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let name = name.to_string_lossy().into_owned();
            let Some(digest) = name.strip_suffix(".tar").filter(|digest| is_digest(digest)) else { continue };
            let metadata = fs::metadata(&entry)?;
            archives.push(Archive { digest: digest.to_owned(), path: entry, bytes: metadata.len(), used: metadata.modified()? });
        }
        Ok(archives)
    }

    /// Digest → the keys of the index that lead to it.
    fn keys(&self) -> BTreeMap<String, Vec<String>> {
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in fs::read_dir(self.directory.join("index")).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let entry = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<IndexEntry>(&text).ok());
            if let Some((entry, key)) = entry.zip(path.file_stem()) {
                keys.entry(entry.artifact.digest).or_default().push(key.to_string_lossy().into_owned());
            }
        }
        keys
    }

    /// Removes an archive with its index, unless it is being fetched. A node that asks for it after all has it fetched again.
    fn remove_archive(&self, archive: &Archive, keys: &[String]) -> io::Result<bool> {
        let mut locks = Vec::new();
        for key in keys {
            let Some(lock) = self.try_lock(key)? else { return Ok(false) };
            locks.push(lock);
        }
        for key in keys {
            remove_if_there(&self.index(key))?;
        }
        remove_if_there(&archive.path)?;
        Ok(true)
    }

    /// Removes what fetches left that broke off long ago; returns its bytes.
    fn remove_abandoned(&self, now: SystemTime) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let Some(key) = name.strip_prefix(".part-").or_else(|| name.strip_prefix(".fetch-")).filter(|key| is_digest(key)) else {
                continue;
            };
            let Ok(metadata) = entry.metadata() else { continue };
            let is_old = now.duration_since(metadata.modified()?).is_ok_and(|age| age > ABANDONED_AFTER);
            if !is_old {
                continue;
            }
            let Some(_lock) = self.try_lock(key)? else { continue };
            bytes += if metadata.is_file() { metadata.len() } else { 0 };
            remove_tree(&path).map_err(io::Error::other)?;
        }
        Ok(bytes)
    }

    /// The lock of a fetch; none while some head fetches it.
    fn try_lock(&self, key: &str) -> io::Result<Option<File>> {
        let path = self.directory.join(format!(".fetch-{key}.lock"));
        let lock = File::options().create(true).write(true).truncate(false).open(path)?;
        Ok(lock.try_lock().is_ok().then_some(lock))
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use cloudtik_model::goal::Artifact;
    use tokio_util::task::TaskTracker;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn beyond_the_limit_the_longest_unused_goes_and_what_is_needed_or_fetched_stays() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = ArtifactStore::open(directory.path(), TaskTracker::new()).expect("opens");
        let (digest, key) = (|n: u32| format!("{n:064x}"), |n: u32| format!("{:064x}", 100 + n));
        let now = SystemTime::now();
        // Each of 100 bytes, the first the longest unused.
        for n in 1..=5 {
            let archive = directory.path().join(format!("{}.tar", digest(n)));
            fs::write(&archive, [0; 100]).expect("writes");
            File::open(&archive).expect("opens").set_modified(now - DAY * (10 - n)).expect("marks");
            let artifact = Artifact { name: format!("a-{n}"), digest: digest(n), size: 100 };
            let entry = IndexEntry { artifact, source: String::new() };
            fs::write(store.index(&key(n)), serde_json::to_vec(&entry).expect("becomes JSON")).expect("writes");
        }
        let (old, recent) = (directory.path().join(format!(".part-{}", key(8))), directory.path().join(format!(".part-{}", key(9))));
        for part in [&old, &recent] {
            fs::write(part, [0; 10]).expect("writes");
        }
        File::open(&old).expect("opens").set_modified(now - DAY * 8).expect("marks");
        let lock = File::create(directory.path().join(format!(".fetch-{}.lock", key(2)))).expect("makes");
        lock.lock().expect("locks");

        let needed = BTreeSet::from([digest(1)]);
        let collected = store.collect(1_000, &needed, now).expect("collects");
        assert_eq!(collected, Collected { removed_bytes: 10, removed: Vec::new(), kept_bytes: 500 }, "all of it may stay");
        assert!(!old.exists() && recent.exists());
        // The first is needed, the second is being fetched.
        let collected = store.collect(350, &needed, now).expect("collects");
        assert_eq!(collected, Collected { removed_bytes: 200, removed: vec![digest(3), digest(4)], kept_bytes: 300 });
        assert!(!store.index(&key(3)).exists() && store.index(&key(5)).exists());
        drop(lock);
        // What was needed is marked: another head leaves it alone for a day.
        let collected = store.collect(0, &BTreeSet::new(), now).expect("collects");
        assert_eq!((collected.removed, collected.kept_bytes), (vec![digest(2), digest(5)], 100));
        let collected = store.collect(0, &BTreeSet::new(), now + DAY * 2).expect("collects");
        assert_eq!((collected.removed, collected.kept_bytes), (vec![digest(1)], 0));
    }
}
