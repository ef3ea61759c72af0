//! Software by content: fetched from the head over mutual TLS, resumed where it broke off, verified, unpacked once.
//!
//! Nodes that share a machine share the directory; a lock per artifact lets one fetch while the others wait.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use cloudtik_model::goal::Artifact;
use cloudtik_protocol::files::{create_private_directory, remove_tree};
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::artifacts_client::ArtifactsClient;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::dialer::Dialer;

/// Nothing of an artifact for this long: the fetch is given up, to be resumed.
const STALL: Duration = Duration::from_secs(30);
/// Between two attempts at an artifact's lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How long to wait for a link to fetch over.
const LINK_WAIT: Duration = Duration::from_secs(60);

/// A cheap handle on the node's artifacts.
#[derive(Debug, Clone)]
pub struct Artifacts {
    directory: PathBuf,
    dialer: Dialer,
    linked: watch::Receiver<bool>,
}

impl Artifacts {
    pub fn new(directory: &Path, dialer: Dialer, linked: watch::Receiver<bool>) -> Self {
        Self { directory: directory.to_owned(), dialer, linked }
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
        self.fetch(artifact, &part, &progress).await?;
        progress.send_replace("verifying and unpacking".to_owned());
        let (digest, temporary) = (artifact.digest.clone(), self.directory.join(format!(".{}.unpacking", artifact.digest)));
        tokio::task::spawn_blocking(move || install(&part, &digest, &temporary, &target)).await?
    }

    async fn fetch(&self, artifact: &Artifact, part: &Path, progress: &watch::Sender<String>) -> anyhow::Result<()> {
        let mut file =
            tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(part).await.context("opening the partial file")?;
        let mut have = file.metadata().await?.len();
        if have > artifact.size {
            file.set_len(0).await?;
            have = 0;
        }
        if have == artifact.size {
            return Ok(());
        }
        progress.send_replace("waiting for the connection to the head".to_owned());
        tokio::time::timeout(LINK_WAIT, self.linked.clone().wait_for(|linked| *linked)).await.context("not connected to the head")??;
        let mut client = ArtifactsClient::new(self.dialer.dial().await?);
        if have > 0 {
            tracing::info!(artifact = artifact.name, "going on from {have} of {} bytes", artifact.size);
        }
        let request = wire::FetchRequest { digest: artifact.digest.clone(), offset: have };
        let mut chunks = client.fetch(request).await.context("asking the head for it")?.into_inner();
        while let Some(chunk) = tokio::time::timeout(STALL, chunks.message()).await.context("the head sent no data")?? {
            have += chunk.data.len() as u64;
            if have > artifact.size {
                bail!("the head sends more than {} bytes", artifact.size);
            }
            file.write_all(&chunk.data).await.context("writing it")?;
            progress.send_replace(format!("{} %", have * 100 / artifact.size.max(1)));
        }
        file.sync_all().await.context("writing it")?;
        if have < artifact.size {
            bail!("the head's answer was interrupted at {have} of {} bytes", artifact.size);
        }
        Ok(())
    }
}

async fn is_there(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(false)
}

fn install(part: &Path, digest: &str, temporary: &Path, target: &Path) -> anyhow::Result<()> {
    let mut file = File::open(part)?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
    }
    if cloudtik_protocol::pki::hex(context.finish().as_ref()) != digest {
        fs::remove_file(part)?;
        bail!("the SHA-256 of what was received differs; it will be fetched again");
    }
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
