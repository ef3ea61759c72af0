//! The files and directories of a service: written before it starts, and what its shim and earlier agents left there.

use std::fs;
use std::io;
use std::path::{Component, Path};

use anyhow::{Context as _, bail};
use cloudtik_model::{ServiceKey, goal};
use cloudtik_protocol::files::{create_missing_directories, create_private_directory, write_atomically};
use nix::sys::signal::Signal;

use crate::process::{Process, end_session};
use crate::shim::{EXIT_FILE, Exit, LOCK_FILE, RUN_FILE, Run, STATE_FILE, State};

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

/// The state of the shim that keeps a service. Blocks, as all of these do.
pub(super) fn read_state(directory: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(directory.join(STATE_FILE)).ok()?).ok()
}

/// How the service's process ended, by its shim. Where the shim was killed, what it kept is ended.
pub(super) fn exit(directory: &Path, shim: Process) -> Option<Exit> {
    let exit = fs::read(directory.join(EXIT_FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if exit.is_none() && Process::of(shim.pid).is_none() {
        end_session(shim.pid);
    }
    exit
}

/// The process that an earlier agent started, if its shim is alive. What is left of others is ended.
pub(super) fn adopt(directory: &Path, key: &ServiceKey) -> Option<State> {
    let Some(state) = read_state(directory) else {
        // Whose it is was lost: a shim that cannot be spoken to ends with what it keeps, for a clean start.
        if let Some(shim) = shim_by_lock(directory) {
            tracing::warn!(service = %key, pid = shim.pid, "its state is unreadable; it is started afresh");
            let _ = shim.signal(Signal::SIGKILL);
            end_session(shim.pid);
        }
        return None;
    };
    if state.shim.is_alive() {
        return Some(state);
    }
    // Its shim was killed: what it kept would not be reaped, nor its end be seen. A shim's session is everything that it
    // kept, whatever became of the leader.
    if Process::of(state.shim.pid).is_none() && end_session(state.shim.pid) > 0 {
        tracing::warn!(service = %key, pid = state.process.pid, "processes without their shim are ended");
    }
    None
}

/// The shim that holds a service's lock.
fn shim_by_lock(directory: &Path) -> Option<Process> {
    let path = directory.join(LOCK_FILE);
    let lock = fs::File::open(&path).ok()?;
    if lock.try_lock_shared().is_ok() {
        return None;
    }
    Process::of(fs::read_to_string(path).ok()?.trim().parse().ok()?)
}
