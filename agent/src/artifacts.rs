//! Software by content: fetched from the head over mutual TLS, resumed where it broke off, verified, unpacked once.
//!
//! Nodes that share a machine share the directory; a lock per artifact lets one fetch while the others wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use cloudtik_model::goal::Artifact;
use cloudtik_protocol::files::{create_private_directory, remove_tree};
use tokio::sync::watch;

use crate::fetch::{self, Source, Wanted};

/// Between two attempts at an artifact's lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A cheap handle on the node's artifacts.
#[derive(Debug, Clone)]
pub struct Artifacts {
    directory: PathBuf,
    source: Source,
}

impl Artifacts {
    pub fn new(directory: &Path, source: Source) -> Self {
        Self { directory: directory.to_owned(), source }
    }

    /// Sees to it that the artifact is unpacked in the directory of its digest; says how far it is.
    pub async fn ensure(&self, artifact: &Artifact, progress: watch::Sender<String>) -> anyhow::Result<()> {
        if artifact.digest.len() != 64 || !artifact.digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("{:?} is no digest", artifact.digest);
        }
        let target = self.directory.join(&artifact.digest);
        if is_there(&target).await {
            return Ok(());
        }
        let (directory, lock) = (self.directory.clone(), self.directory.join(format!(".{}.lock", artifact.digest)));
        let opening = move || -> anyhow::Result<File> {
            create_private_directory(&directory).with_context(|| format!("making {}", directory.display()))?;
            OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(lock).context("locking the artifact")
        };
        let lock = tokio::task::spawn_blocking(opening).await??;
        // Asked again and again rather than waited for on a thread, which would outlive a change of the goal.
        while lock.try_lock().is_err() {
            progress.send_replace("fetched for another service or node of this machine".to_owned());
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        if is_there(&target).await {
            return Ok(());
        }
        let part = self.directory.join(format!(".{}.part", artifact.digest));
        let wanted = Wanted { name: &artifact.name, digest: &artifact.digest, size: artifact.size };
        self.source.fetch(wanted, &part, &progress).await?;
        progress.send_replace("verifying and unpacking".to_owned());
        let (digest, temporary) = (artifact.digest.clone(), self.directory.join(format!(".{}.unpacking", artifact.digest)));
        tokio::task::spawn_blocking(move || install(&part, &digest, &temporary, &target)).await?
    }
}

async fn is_there(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
}

fn install(part: &Path, digest: &str, temporary: &Path, target: &Path) -> anyhow::Result<()> {
    let mut file = fetch::verify(part, digest)?;
    remove_tree(temporary).context("making room")?;
    create_private_directory(temporary)?;
    file.rewind()?;
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 20, file));
    archive.set_preserve_permissions(true);
    archive.set_overwrite(false);
    archive.unpack(temporary).context("unpacking")?;
    // Whole on the disk before it has its name: nobody looks inside again.
    rustix::fs::syncfs(File::open(temporary)?).context("writing it out")?;
    fs::rename(temporary, target)?;
    fs::remove_file(part)?;
    Ok(())
}
