//! Files that people write, as commands read them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cloudtik_config::{Cluster, InvalidFile, text};
use cloudtik_model::RuntimeName;
use cloudtik_providers::Chosen;
use cloudtik_registry::registry;
use cloudtik_runtimes::{Catalog, Folder, Planner, catalog, changes};

use crate::failure::{Failure, INVALID, NOT_FOUND, chain};

/// A cluster file, read and checked with the runtimes that it names.
pub struct Described {
    pub cluster: Cluster,
    pub provider: Chosen,
    pub planner: Planner,
    pub text: String,
    pub folders: BTreeMap<RuntimeName, Folder>,
    pub path: PathBuf,
}

impl Described {
    /// The directory by which paths in the file go.
    pub fn base(&self) -> Result<PathBuf, Failure> {
        directory_of(&self.path)
    }
}

/// The directory by which paths in a file go: its own, or the one to which its text was piped.
pub fn directory_of(file: &Path) -> Result<PathBuf, Failure> {
    if is_standard_input(file) {
        return Ok(std::env::current_dir()?);
    }
    Ok(std::path::absolute(file)?.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Whether a path stands for standard input.
pub fn is_standard_input(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Bytes of the largest file that is read as one that a person wrote.
const MAX_TEXT: u64 = 4 << 20;

/// All that there is, or a little more than is accepted.
fn read_bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The name and the text of a file that a person wrote; `-` is standard input.
pub fn read_text(file: &Path) -> Result<(String, String), Failure> {
    let (name, bytes) = if is_standard_input(file) {
        ("standard input".to_owned(), read_bounded(io::stdin().lock()))
    } else {
        (file.display().to_string(), fs::File::open(file).and_then(read_bounded))
    };
    let bytes = bytes.map_err(|e| {
        let is_missing = e.kind() == io::ErrorKind::NotFound;
        let why = match e.kind() {
            io::ErrorKind::IsADirectory => "it is a folder, not a file".to_owned(),
            _ => e.to_string(),
        };
        let failure = Failure::new(if is_missing { NOT_FOUND } else { INVALID }, format!("cannot read {name}: {why}"));
        if is_missing { failure.hint("`cloudtik init` writes a cluster file to start from") } else { failure }
    })?;
    if bytes.len() as u64 > MAX_TEXT {
        let message = format!("{name} is larger than {} MiB, which no file that a person wrote is", MAX_TEXT >> 20);
        return Err(Failure::new(INVALID, message).hint("is it the right file? it must be TOML, in UTF-8"));
    }
    if bytes.is_empty() && is_standard_input(file) {
        return Err(Failure::new(INVALID, "standard input is empty").hint("pipe the file in, as in `cloudtik up - < cluster.toml`"));
    }
    let text = text::decode(&name, &bytes).map_err(|e| Failure::invalid(vec![e]))?;
    Ok((name, text))
}

/// Reads a cluster file and whatever it names, and tells every problem at once.
pub fn describe(file: &Path) -> Result<Described, Failure> {
    let (name, text) = read_text(file)?;
    let path = if is_standard_input(file) { file.to_owned() } else { std::path::absolute(file)? };
    let base = directory_of(&path)?;
    // Both are looked at even if one is broken: every problem is told at once.
    let uses = Cluster::runtimes_in(&text);
    let (folders, unreadable) = catalog::read_folders(&uses, &base);
    let read = read_cluster(&name, &text);
    if !unreadable.is_empty() {
        return Err(Failure::invalid(read.err().into_iter().chain(unreadable).collect()));
    }
    let found = Catalog::of_cluster(&uses, &folders, &name, &text);
    let ((cluster, provider), found) = match (read, found) {
        (Ok(read), Ok(found)) => (read, found),
        (Ok(_), Err(invalid)) => return Err(Failure::invalid(invalid)),
        (Err(invalid), Ok(_)) => return Err(Failure::invalid(vec![invalid])),
        (Err(invalid), Err(others)) => {
            let mut all = vec![invalid];
            for other in others {
                all[0].absorb(other).into_iter().for_each(|other| all.push(other));
            }
            return Err(Failure::invalid(all));
        }
    };
    found.check_signals(&cluster.scaling, &name, &text).map_err(|e| Failure::invalid(vec![e]))?;
    found.check_properties(&cluster, &name, &text).map_err(|e| Failure::invalid(vec![e]))?;
    let planner = Planner::new(cluster.clone(), found);
    changes::check(&planner).map_err(|e| Failure::new(INVALID, chain(&e)))?;
    Ok(Described { cluster, provider, planner, text, folders, path })
}

/// A cluster file and its provider's part of it, without the runtimes.
pub fn read_cluster(name: &str, text: &str) -> Result<(Cluster, Chosen), InvalidFile> {
    match (Cluster::read(name, text), registry().read(name, text)) {
        (Ok(mut cluster), Ok(Some(provider))) => {
            provider.fill_in(&mut cluster);
            Ok((cluster, provider))
        }
        (Ok(_), Ok(None)) => unreachable!("a cluster that was read names its provider"),
        (Ok(_), Err(invalid)) | (Err(invalid), Ok(_)) => Err(invalid),
        (Err(mut invalid), Err(other)) => {
            invalid.absorb(other);
            Err(invalid)
        }
    }
}
