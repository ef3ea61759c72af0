//! The lock of a cluster: two commands do not change it at once. No command holds it while it waits, for a person or for
//! the cluster: then another command may be what helps.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::clusters::Place;
use crate::failure::{FAILED, Failure, NOT_AUTHORISED};

/// How long a change of another command may take. The longest is a head that starts.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Held while a command changes a cluster.
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock; a change that another command makes just now is waited for.
    pub async fn take(place: &Place) -> Result<Self, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = Self::attempt(place)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                let hint = format!("run the command again, or look with `cloudtik status {}`", place.name);
                return Err(Failure::failed(format!("another command is changing {}", place.name)).hint(hint));
            }
            sleep(PAUSE).await;
        }
    }

    /// None: another command has it.
    fn attempt(place: &Place) -> Result<Option<Self>, Failure> {
        let clusters = place.directory.parent().expect("a cluster's directory is below its workspace");
        let path = clusters.join(format!(".{}.lock", place.name));
        let failed = |e: io::Error| {
            let code = if e.kind() == io::ErrorKind::PermissionDenied { NOT_AUTHORISED } else { FAILED };
            Failure::new(code, format!("{}: {e}", path.display()))
        };
        let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Whoever had it may have removed it with the cluster: then this is the lock of nothing.
        let is_current = fs::metadata(&path).is_ok_and(|m| file.metadata().is_ok_and(|own| own.ino() == m.ino()));
        Ok(is_current.then_some(Self { _file: file, path }))
    }

    /// Removes the lock with the cluster that it was for.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}
