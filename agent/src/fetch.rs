//! Bytes from the head by their SHA-256: resumed where a fetch broke off, verified.

use std::fmt;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cloudtik_protocol::wire;
use cloudtik_protocol::wire::artifacts_client::ArtifactsClient;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status};

use crate::dialer::Dialer;

/// Nothing for this long: the fetch is given up, to be resumed.
const STALL: Duration = Duration::from_secs(30);
/// How long to wait for a link to fetch over.
const LINK_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not connected to the head")]
    NotConnected,
    #[error("reaching the head: {0:#}")]
    Unreachable(anyhow::Error),
    #[error("the head does not have it")]
    Missing,
    #[error("asking the head for it: {}", .0.message())]
    Refused(Box<Status>),
    #[error("the head sent no data")]
    Stalled,
    #[error("the head sends more than {0} bytes")]
    TooMuch(u64),
    #[error("the head's answer was interrupted at {have} of {size} bytes")]
    Interrupted { have: u64, size: u64 },
    #[error("writing it")]
    Write(#[source] io::Error),
    #[error("the SHA-256 of what was received differs; it will be fetched again")]
    Digest,
}

impl Error {
    /// Whether the head may answer otherwise later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotConnected | Self::Unreachable(_) | Self::Refused(_) | Self::Stalled | Self::Interrupted { .. } => true,
            Self::Missing | Self::TooMuch(_) | Self::Write(_) | Self::Digest => false,
        }
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<wire::Chunk, Status>> + Send>>;
type Opening = Pin<Box<dyn Future<Output = Result<Chunks, Error>> + Send>>;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub name: &'a str,
    pub digest: &'a str,
    /// Bytes.
    pub size: u64,
}

/// A cheap handle on where bytes come from.
#[derive(Clone)]
pub struct Source(Arc<dyn Fn(wire::FetchRequest) -> Opening + Send + Sync>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    pub fn new(open: impl Fn(wire::FetchRequest) -> Opening + Send + Sync + 'static) -> Self {
        Self(Arc::new(open))
    }

    /// The head, over a connection for each fetch, once there is a link to it.
    pub fn head(dialer: Dialer, linked: watch::Receiver<bool>) -> Self {
        Self::new(move |request| {
            let (dialer, mut linked) = (dialer.clone(), linked.clone());
            Box::pin(async move {
                match tokio::time::timeout(LINK_WAIT, linked.wait_for(|linked| *linked)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) | Err(_) => return Err(Error::NotConnected),
                }
                let mut client = ArtifactsClient::new(dialer.dial().await.map_err(Error::Unreachable)?);
                let answer = client.fetch(request).await.map_err(|status| match status.code() {
                    Code::NotFound => Error::Missing,
                    _ => Error::Refused(Box::new(status)),
                })?;
                Ok(Box::pin(answer.into_inner()) as Chunks)
            })
        })
    }

    /// Fetches what is missing of a file; says how far it is. What is there is not verified.
    pub async fn fetch(&self, wanted: Wanted<'_>, part: &Path, progress: &watch::Sender<String>) -> Result<(), Error> {
        let Wanted { name, digest, size } = wanted;
        let mut file = tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(part).await.map_err(Error::Write)?;
        let mut have = file.metadata().await.map_err(Error::Write)?.len();
        if have > size {
            file.set_len(0).await.map_err(Error::Write)?;
            have = 0;
        }
        if have == size {
            return Ok(());
        }
        progress.send_replace("waiting for the connection to the head".to_owned());
        if have > 0 {
            tracing::info!(file = name, "going on from {have} of {size} bytes");
        }
        let mut chunks = (self.0)(wire::FetchRequest { digest: digest.to_owned(), offset: have }).await?;
        while let Some(chunk) = tokio::time::timeout(STALL, chunks.next()).await.map_err(|_| Error::Stalled)? {
            let chunk = chunk.map_err(|status| Error::Refused(Box::new(status)))?;
            have += chunk.data.len() as u64;
            if have > size {
                return Err(Error::TooMuch(size));
            }
            file.write_all(&chunk.data).await.map_err(Error::Write)?;
            progress.send_replace(format!("{} %", have * 100 / size.max(1)));
        }
        // A write goes on in the background: its error comes with the next call.
        file.flush().await.map_err(Error::Write)?;
        file.sync_all().await.map_err(Error::Write)?;
        if have < size { Err(Error::Interrupted { have, size }) } else { Ok(()) }
    }
}

/// Opens a file that was fetched if its SHA-256 is the digest; removes it if not. Blocks.
pub fn verify(part: &Path, digest: &str) -> Result<File, Error> {
    let mut file = File::open(part).map_err(Error::Write)?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer).map_err(Error::Write)?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
    }
    if cloudtik_protocol::pki::hex(context.finish().as_ref()) == digest {
        return Ok(file);
    }
    fs::remove_file(part).map_err(Error::Write)?;
    Err(Error::Digest)
}
