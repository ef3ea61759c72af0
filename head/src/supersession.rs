//! A head whose store is older than the cluster: some node has seen a later leadership than its own. Such a head must not
//! act, and starting it again must not make it the latest by counting: it stays down until a person decides.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use cloudtik_model::Epoch;
use cloudtik_protocol::files::write_atomically;
use tokio::sync::watch;

/// A cheap handle.
#[derive(Clone)]
pub struct Supersession {
    path: PathBuf,
    heard: Arc<watch::Sender<Option<Epoch>>>,
}

impl Supersession {
    /// Refuses to go on where an earlier start was found to be superseded, unless a person has decided that this store
    /// counts: then the next leadership is to be a later one than the returned.
    pub fn check(state: &Path) -> anyhow::Result<(Self, Epoch)> {
        let (path, decision) = (state.join("superseded"), state.join("take-over"));
        let seen = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().with_context(|| format!("reading {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        if seen > 0 && !decision.exists() {
            bail!(
                "a node has seen epoch {seen}, a later leadership than this head's: its store is older than the cluster. Put the \
                 right store back and remove {}; or make the file {} to go on with this one, which deletes nodes that it does not \
                 know",
                path.display(),
                decision.display()
            );
        }
        Ok((Self { path, heard: Arc::new(watch::Sender::new(None)) }, Epoch(seen)))
    }

    /// The decision is carried out: a later leadership has begun.
    pub fn settled(&self) -> anyhow::Result<()> {
        for path in [self.path.clone(), self.path.with_file_name("take-over")] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(path.display().to_string()),
                _ => {}
            }
        }
        Ok(())
    }

    /// A node has seen a later leadership.
    pub fn note(&self, epoch: Epoch) {
        let written = write_atomically(&self.path, epoch.0.to_string().as_bytes(), 0o600).context("noting it");
        if let Err(error) = written {
            tracing::error!("{error:#}");
        }
        self.heard.send_replace(Some(epoch));
    }

    /// Returns when some node has seen a later leadership.
    pub async fn heard(&self) -> Epoch {
        let mut heard = self.heard.subscribe();
        match heard.wait_for(Option::is_some).await {
            Ok(epoch) => epoch.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}
