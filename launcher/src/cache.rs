//! `cloudtik cache`: the software that heads have fetched and this machine keeps, shared by its clusters.

mod users;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cloudtik_model::Bytes;
use cloudtik_model::software::{IndexEntry, Size};
use cloudtik_model::status::Status;
use cloudtik_protocol::files::{create_private_directory, remove_tree};
use serde::Serialize;

use crate::cli::Cache;
use crate::cluster_statuses;
use crate::clusters::{self, artifacts};
use crate::failure::Failure;
use crate::output::Printer;
use crate::remote::Remote;

/// What a directory is called while it is removed: no agent takes it for software that is there.
const REMOVING: &str = "removing";

/// Software of one content, and who uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cached {
    /// Such as `spark-4.3.0`; empty if the index does not know it.
    name: String,
    /// Such as `pip: pyspark==4.3.0`.
    source: String,
    /// SHA-256 of the archive.
    digest: String,
    /// What it takes on the disk, packed and unpacked.
    bytes: u64,
    /// Clusters that have it on a node.
    used_by: Vec<String>,
}

/// The directory of software, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contents {
    pub directory: PathBuf,
    software: Vec<Cached>,
    /// What downloads left that broke off.
    unfinished_bytes: u64,
    pub bytes: u64,
}

impl Contents {
    /// What `clean` would remove.
    pub fn unused_bytes(&self) -> u64 {
        self.unfinished_bytes + self.software.iter().filter(|s| s.used_by.is_empty()).map(|s| s.bytes).sum::<u64>()
    }
}

pub async fn run(printer: &Printer, command: &Cache) -> Result<(), Failure> {
    match command {
        Cache::List => list(printer).await,
        Cache::Clean { yes } => clean(printer, *yes).await,
    }
}

/// How much the head of a cluster keeps.
#[derive(Debug, Serialize)]
struct Limit {
    cluster: String,
    /// Beyond this its head removes archives that no node needs; nothing if the head does not say.
    bytes: Option<u64>,
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    contents: Contents,
    limits: Vec<Limit>,
}

async fn list(printer: &Printer) -> Result<(), Failure> {
    let local = clusters::all()?.into_iter().filter(|paths| Remote::of(paths).is_ok_and(|remote| remote.is_none())).collect();
    let answers = cluster_statuses::fetch(local).await.into_iter();
    let limit = |status: Status| status.head.software_limit.map(|limit| limit.0);
    let limits = answers.map(|(paths, status)| Limit { cluster: paths.name.to_string(), bytes: status.ok().and_then(limit) }).collect();
    let listed = Listed { contents: look(&artifacts()?)?, limits };
    if printer.is_json() {
        printer.json(&listed);
        return Ok(());
    }
    let Listed { contents, limits } = &listed;
    let rows: Vec<Vec<String>> = contents.software.iter().map(row).collect();
    printer.table(&["SOFTWARE", "SOURCE", "SIZE", "DIGEST", "USED BY"], &rows);
    if contents.unfinished_bytes > 0 {
        printer.line(&format!("unfinished downloads: {}", Size(contents.unfinished_bytes)));
    }
    printer.line(&format!("{} in {}", Size(contents.bytes), contents.directory.display()));
    for Limit { cluster, bytes } in limits {
        let limit = bytes.map_or_else(|| "is not known: its head does not answer".to_owned(), |bytes| Bytes(bytes).to_string());
        printer.line(&format!("limit of {cluster}: {limit}"));
    }
    Ok(())
}

fn row(cached: &Cached) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let digest = cached.digest.get(..12).unwrap_or(&cached.digest).to_owned();
    vec![or_dash(&cached.name), or_dash(&cached.source), Size(cached.bytes).to_string(), digest, or_dash(&cached.used_by.join(", "))]
}

#[derive(Serialize)]
struct Cleaned {
    directory: PathBuf,
    removed: Vec<Cached>,
    kept: Vec<Cached>,
    removed_bytes: u64,
    kept_bytes: u64,
}

async fn clean(printer: &Printer, yes: bool) -> Result<(), Failure> {
    let directory = artifacts()?;
    let before = look(&directory)?;
    let unused: Vec<&Cached> = before.software.iter().filter(|s| s.used_by.is_empty()).collect();
    let size = before.unused_bytes();
    if size > 0 {
        let names: Vec<&str> = unused.iter().map(|s| if s.name.is_empty() { "software without a name" } else { s.name.as_str() }).collect();
        let what = if names.is_empty() { "unfinished downloads".to_owned() } else { names.join(", ") };
        printer.confirm_async(&format!("Remove {what} ({}) from {}?", Size(size), directory.display()), yes).await?;
    }
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e: io::Error| Failure::failed(format!("cannot remove {path}: {e}"))
    };
    let mut removed = Vec::new();
    for cached in unused {
        if remove(&directory, &cached.digest).map_err(failed(&directory.join(&cached.digest)))? {
            removed.push(cached.clone());
        }
    }
    let unfinished = remove_unfinished(&directory).map_err(failed(&directory))?;
    let after = look(&directory)?;
    let removed_bytes = removed.iter().map(|s| s.bytes).sum::<u64>() + unfinished;
    let cleaned = Cleaned { removed_bytes, kept_bytes: after.bytes, removed, kept: after.software, directory };
    if printer.is_json() {
        printer.json(&cleaned);
        return Ok(());
    }
    for cached in &cleaned.kept {
        let why = if cached.used_by.is_empty() {
            "is being fetched or unpacked".to_owned()
        } else {
            format!("used by {}", cached.used_by.join(", "))
        };
        printer.say(&format!("kept {} ({}): {why}", row(cached)[0], Size(cached.bytes)));
    }
    printer.say(&match cleaned.removed_bytes {
        0 => "there is nothing to remove".to_owned(),
        bytes => format!("removed {}", Size(bytes)),
    });
    Ok(())
}

/// Looks at what is kept. A directory that does not exist is empty.
pub fn look(directory: &Path) -> Result<Contents, Failure> {
    let users = users::users()?;
    let mut all: BTreeMap<String, Cached> = BTreeMap::new();
    let cached = |digest: &str| Cached {
        name: String::new(),
        source: String::new(),
        digest: digest.to_owned(),
        bytes: 0,
        used_by: users.get(digest).into_iter().flatten().cloned().collect(),
    };
    for (_, entry) in index(directory) {
        let found = all.entry(entry.artifact.digest.clone()).or_insert_with(|| cached(&entry.artifact.digest));
        (found.name, found.source) = (entry.artifact.name, entry.source);
    }
    let mut unfinished_bytes = 0;
    for folder in [directory.to_owned(), directory.join("unpacked")] {
        for path in entries(&folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let digest = name.strip_suffix(".tar").unwrap_or(&name);
            if is_digest(digest) {
                all.entry(digest.to_owned()).or_insert_with(|| cached(digest)).bytes += on_disk(&path);
            } else if name.starts_with('.') {
                unfinished_bytes += on_disk(&path);
            }
        }
    }
    // An entry whose archive and directory somebody removed is nothing.
    let mut software: Vec<Cached> = all.into_values().filter(|s| s.bytes > 0).collect();
    software.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
    let bytes = unfinished_bytes + software.iter().map(|s| s.bytes).sum::<u64>();
    Ok(Contents { directory: directory.to_owned(), software, unfinished_bytes, bytes })
}

/// Removes software, unless somebody fetches or uses it by now.
fn remove(directory: &Path, digest: &str) -> io::Result<bool> {
    let unpacked = directory.join("unpacked");
    let (target, removing) = (unpacked.join(digest), unpacked.join(format!(".{digest}.{REMOVING}")));
    create_private_directory(&unpacked)?;
    // An agent that does not find it takes this lock, and then fetches it.
    let lock = File::options().create(true).write(true).truncate(false).open(unpacked.join(format!(".{digest}.lock")))?;
    if lock.try_lock().is_err() {
        return Ok(false);
    }
    let of_it: Vec<PathBuf> =
        index(directory).into_iter().filter(|(_, entry)| entry.artifact.digest == digest).map(|(path, _)| path).collect();
    // Held until it is removed: no head begins to fetch it meanwhile.
    let Some(_locks) = lock_fetches(directory, &of_it)? else { return Ok(false) };
    let was_there = match fs::rename(&target, &removing) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    // Looked at again: a node may have begun to use it just before it was out of reach.
    if users::users().map_err(|e| io::Error::other(e.message))?.contains_key(digest) {
        if was_there {
            fs::rename(&removing, &target)?;
        }
        return Ok(false);
    }
    for path in of_it {
        remove_if_there(&path)?;
    }
    remove_if_there(&directory.join(format!("{digest}.tar")))?;
    remove_if_there(&unpacked.join(format!(".{digest}.part")))?;
    if was_there {
        remove_tree(&removing).map_err(io::Error::other)?;
    }
    Ok(true)
}

/// The locks of the fetches that software of these index entries comes from; none if one of them is under way. What is in no
/// index yet may be what any fetch has just put there.
fn lock_fetches(directory: &Path, index: &[PathBuf]) -> io::Result<Option<Vec<File>>> {
    let keys = index.iter().filter_map(|path| path.file_stem()).map(|key| directory.join(format!(".fetch-{}.lock", key.to_string_lossy())));
    let mut locks: Vec<PathBuf> = keys.collect();
    if locks.is_empty() {
        let is_lock = |path: &PathBuf| {
            path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".fetch-")) && path.extension().is_some_and(|e| e == "lock")
        };
        locks = entries(directory).into_iter().filter(is_lock).collect();
    }
    let mut held = Vec::new();
    for path in locks {
        let lock = File::options().create(true).write(true).truncate(false).open(path)?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        held.push(lock);
    }
    Ok(Some(held))
}

/// Removes what broke off; what is under way holds a lock and stays. Returns how many bytes it was.
fn remove_unfinished(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for (folder, lock_of) in [(directory.to_owned(), fetch_lock as fn(&str) -> Option<String>), (directory.join("unpacked"), unpack_lock)] {
        for path in entries(&folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(lock) = lock_of(&name) else { continue };
            let lock = File::options().create(true).write(true).truncate(false).open(folder.join(lock))?;
            if lock.try_lock().is_err() {
                continue;
            }
            bytes += on_disk(&path);
            remove_tree(&path).map_err(io::Error::other)?;
        }
    }
    Ok(bytes)
}

/// The lock of what a head's fetch leaves: `.part-KEY` and `.fetch-KEY`.
fn fetch_lock(name: &str) -> Option<String> {
    let key = name.strip_prefix(".part-").or_else(|| name.strip_prefix(".fetch-"))?;
    is_digest(key).then(|| format!(".fetch-{key}.lock"))
}

/// The lock of what an agent leaves: `.DIGEST.part` and the like.
fn unpack_lock(name: &str) -> Option<String> {
    let (digest, kind) = name.strip_prefix('.')?.split_once('.')?;
    (is_digest(digest) && ["part", "unpacking", REMOVING].contains(&kind)).then(|| format!(".{digest}.lock"))
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn index(directory: &Path) -> Vec<(PathBuf, IndexEntry)> {
    let read = |path: PathBuf| Some((path.clone(), serde_json::from_slice(&fs::read(path).ok()?).ok()?));
    entries(&directory.join("index")).into_iter().filter_map(read).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    entries
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a file or a tree takes on the disk, without following links.
fn on_disk(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = if metadata.is_dir() { entries(path).iter().map(|e| on_disk(e)).sum() } else { 0 };
    if metadata.is_dir() { below } else { metadata.blocks() * 512 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_known_by_its_lock() {
        let digest = "a".repeat(64);
        assert_eq!(fetch_lock(&format!(".part-{digest}")), Some(format!(".fetch-{digest}.lock")));
        assert_eq!(fetch_lock(&format!(".fetch-{digest}")), Some(format!(".fetch-{digest}.lock")));
        assert_eq!(fetch_lock(&format!(".fetch-{digest}.lock")), None, "locks stay: others may hold them");
        assert_eq!(unpack_lock(&format!(".{digest}.part")), Some(format!(".{digest}.lock")));
        assert_eq!(unpack_lock(&format!(".{digest}.unpacking")), Some(format!(".{digest}.lock")));
        assert_eq!(unpack_lock(&format!(".{digest}.lock")), None);
        assert_eq!(unpack_lock("index"), None);
    }
}
