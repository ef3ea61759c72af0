//! The directories in which the launcher keeps workspaces. What a provider keeps in there is the provider's.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use cloudtik_model::WorkspaceName;
use cloudtik_protocol::files::{create_private_directory, create_private_directory_in_place};

use crate::clusters::{CLUSTERS, workspace, workspaces};
use crate::failure::{Failure, REFUSED};

fn failed(doing: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {doing} {}: {error}", path.display()))
}

/// Makes the directory of all workspaces.
pub fn make_root() -> Result<(), Failure> {
    let root = workspaces()?;
    create_private_directory(&root).map_err(|e| failed("create", &root, &e))
}

/// Makes the directories for a workspace's clusters, unless the provider has made them.
pub fn make(name: &WorkspaceName) -> Result<(), Failure> {
    let directory = workspace(name)?;
    for path in [directory.join(CLUSTERS), directory].iter().rev() {
        create_private_directory_in_place(path).map_err(|e| failed("create", path, &e))?;
    }
    Ok(())
}

/// Whether the directories are there.
pub fn is_made(name: &WorkspaceName) -> Result<bool, Failure> {
    Ok(workspace(name)?.join(CLUSTERS).is_dir())
}

/// Removes the directories of a workspace without clusters, unless the provider has removed them.
pub fn remove(name: &WorkspaceName) -> Result<(), Failure> {
    let directory = workspace(name)?;
    let clusters = directory.join(CLUSTERS);
    remove_locks(&clusters)?;
    for path in [clusters, directory] {
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let failure = failed("remove", &path, &error);
                return Err(failure.hint(format!("see what is in there; then `cloudtik workspace delete {name}` goes on")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the locks of clusters that are gone. One that is held belongs to a command that makes a cluster just now.
fn remove_locks(clusters: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(clusters).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => fs::remove_file(&path).map_err(|e| failed("remove", &path, &e))?,
            Err(fs::TryLockError::WouldBlock) => return Err(Failure::new(REFUSED, "another command is making a cluster in the workspace")),
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &path, &error)),
        }
    }
    Ok(())
}
