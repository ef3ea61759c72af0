//! The files and directories of a service, written before it starts.

use std::io;
use std::path::{Component, Path};

use anyhow::{Context as _, bail};
use cloudtik_model::goal;
use cloudtik_protocol::files::{create_missing_directories, create_private_directory, write_atomically};

use crate::shim::{RUN_FILE, Run};

/// Writes what the service needs on the disk before it starts, and what its shim is to run.
pub(super) fn write(directory: &Path, service: &goal::Service, run: &Run) -> anyhow::Result<()> {
    create_private_directory(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for path in &service.directories {
        create_missing_directories(Path::new(path)).with_context(|| format!("cannot create {path}"))?;
    }
    for file in &service.files {
        let relative = Path::new(&file.path);
        if !relative.components().all(|c| matches!(c, Component::Normal(_))) {
            bail!("the goal's file {:?} is not inside the service's directory", file.path);
        }
        let path = directory.join(relative);
        if let Some(parent) = path.parent() {
            create_missing_directories(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        write_atomically(&path, file.content.as_bytes(), file.mode).with_context(|| format!("cannot write {}", path.display()))?;
        if let Some(owner) = &file.owner {
            give(&path, owner).with_context(|| format!("cannot give {} to {owner}", path.display()))?;
        }
    }
    let text = serde_json::to_vec(run).context("cannot describe the run")?;
    write_atomically(&directory.join(RUN_FILE), &text, 0o600).context("cannot write run.json")
}

fn give(path: &Path, owner: &str) -> io::Result<()> {
    let user = nix::unistd::User::from_name(owner)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such user"))?;
    nix::unistd::chown(path, Some(user.uid), Some(user.gid)).map_err(Into::into)
}
