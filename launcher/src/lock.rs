//! The lock of a cluster, or of a workspace: two commands do not change it at once. No command holds it while it waits, for a person or for
//! the cluster: then another command may be what helps.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloudtik_model::WorkspaceName;
use tokio::time::{Instant, sleep};

use crate::clusters::{self, ClusterPaths};
use crate::failure::{FAILED, Failure, NOT_AUTHORISED};
use crate::output::talk;

/// How long a change of another command may take. The longest is a head that starts.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a workspace: gateways of clouds take minutes to be made and to be gone.
const WORKSPACE_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long is waited without saying so.
const NOTICE: Duration = Duration::from_secs(1);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Held while a command changes a cluster or a workspace.
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock; a change that another command makes just now is waited for.
    pub async fn take(paths: &ClusterPaths) -> Result<Self, Failure> {
        let clusters = paths.directory.parent().expect("a cluster's directory is below its workspace");
        let lock = Self::wait(&clusters.join(format!(".{}.lock", paths.name)), PATIENCE).await?;
        lock.ok_or_else(|| {
            let hint = format!("run the command again, or look with `cloudtik status {}`", paths.name);
            Failure::failed(format!("another command is changing {}", paths.name)).hint(hint)
        })
    }

    /// The same for a workspace, whose changes may take minutes. The directory of workspaces must exist.
    pub async fn of_workspace(name: &WorkspaceName) -> Result<Self, Failure> {
        let path = clusters::workspaces()?.join(format!(".{name}.lock"));
        if let Some(lock) = Self::wait(&path, NOTICE).await? {
            return Ok(lock);
        }
        talk(&format!("another command is changing the workspace {name}; waiting for it"));
        Self::wait(&path, WORKSPACE_PATIENCE).await?.ok_or_else(|| {
            let hint = format!("run the command again, or look with `cloudtik workspace status {name}`");
            Failure::failed(format!("another command is changing the workspace {name}")).hint(hint)
        })
    }

    /// None: another command had it all the time.
    async fn wait(path: &Path, patience: Duration) -> Result<Option<Self>, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = Self::attempt(path)? {
                return Ok(Some(lock));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(PAUSE).await;
        }
    }

    /// None: another command has it.
    fn attempt(path: &Path) -> Result<Option<Self>, Failure> {
        let failed = |e: io::Error| {
            let code = if e.kind() == io::ErrorKind::PermissionDenied { NOT_AUTHORISED } else { FAILED };
            Failure::new(code, format!("{}: {e}", path.display()))
        };
        let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Whoever had it may have removed it with the cluster: then this is the lock of nothing.
        let is_current = fs::metadata(path).is_ok_and(|m| file.metadata().is_ok_and(|own| own.ino() == m.ino()));
        Ok(is_current.then_some(Self { _file: file, path: path.to_owned() }))
    }

    /// Removes the lock with what it was for.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}
