//! Talking to a head.

use std::io::ErrorKind;
use std::time::Duration;

use cloudtik_model::outlook::Size;
use cloudtik_model::status::Status;
use cloudtik_protocol::wire::admin_client::AdminClient;
use cloudtik_protocol::{MAX_FRAME, transport, wire};
use serde::de::DeserializeOwned;
use tonic::Code;
use tonic::transport::Channel;

use crate::clusters::{ClusterPaths, Target, find};
use crate::failure::{FAILED, Failure, NOT_AUTHORISED, TIMED_OUT, innermost, io_kind};
use crate::head_node;
use crate::remote::Remote;
use crate::statuses::{self, Statuses};

/// How long a head that is being restarted by its agent is waited for.
const RESTART_PATIENCE: Duration = Duration::from_secs(3);

/// A head: by its Unix socket, or over mutual TLS where this user was given access to somebody's cluster.
#[derive(Clone)]
pub struct Client {
    pub place: ClusterPaths,
    pub channel: Channel,
}

impl Client {
    /// The head of a cluster that a person named.
    pub async fn connect<'a>(target: impl Into<Target<'a>>) -> Result<Self, Failure> {
        Self::reach(find(target)?).await
    }

    /// The head of the same cluster, which may have been restarted.
    pub async fn reconnect(&self) -> Result<Self, Failure> {
        Self::reach(self.place.clone()).await
    }

    /// The head of a cluster whose paths are known.
    pub async fn reach(paths: ClusterPaths) -> Result<Self, Failure> {
        if !paths.exists() {
            return Err(Failure::new(crate::failure::NOT_FOUND, format!("the cluster {} is not up", paths.name))
                .hint("bring it up with `cloudtik up CLUSTER.toml`"));
        }
        let deadline = tokio::time::Instant::now() + RESTART_PATIENCE;
        let dialled = transport::retry_until(deadline, Duration::from_millis(20), || Self::dial(&paths)).await;
        match dialled {
            Ok(client) => Ok(client),
            Err(error) => Err(unreachable(&paths, error).await),
        }
    }

    pub async fn dial(paths: &ClusterPaths) -> Result<Self, Failure> {
        if let Some(remote) = Remote::of(paths)? {
            let channel = remote.dial(paths).await?;
            return Ok(Self { place: paths.clone(), channel });
        }
        let channel = transport::dial_unix(&paths.socket()).await.map_err(|e| {
            let code = if is_denied(&e) { NOT_AUTHORISED } else { FAILED };
            Failure::new(code, innermost(&e))
        })?;
        Ok(Self { place: paths.clone(), channel })
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME).max_encoding_message_size(MAX_FRAME)
    }

    /// The requests that stand, and why the cluster has its size.
    pub async fn outlook(&self) -> Result<Size, Failure> {
        document(self.admin().outlook(wire::Empty {}).await?.into_inner())
    }

    pub async fn status(&self) -> Result<Status, Failure> {
        Ok(statuses::fetch(self.admin()).await?)
    }

    /// The status whenever it changes.
    pub async fn watch(&self) -> Result<Statuses, tonic::Status> {
        Statuses::open(self.admin()).await
    }
}

/// What to say where the head of a cluster does not answer.
async fn unreachable(paths: &ClusterPaths, error: Failure) -> Failure {
    if let Ok(Some(remote)) = Remote::of(paths) {
        return remote.unreachable(paths, error);
    }
    if error.code == NOT_AUTHORISED {
        return Failure::new(NOT_AUTHORISED, format!("the cluster {} is another user's", paths.name))
            .hint("ask that user, or make a cluster of your own: `cloudtik up CLUSTER.toml`");
    }
    if let Some(lost) = head_node::lost_state(paths).await {
        return lost;
    }
    let hint = format!("`{}` brings it back; its log is below {}", paths.up_command(), paths.nodes().display());
    Failure::new(TIMED_OUT, format!("the head of {} does not answer: {}", paths.name, error.message)).hint(hint)
}

/// Whether the operating system refused it.
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source()).any(|e| io_kind(e) == Some(ErrorKind::PermissionDenied))
}

/// Whether the head refuses whoever asks, so that asking again does not help.
pub fn is_refused(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
}

pub fn document<T: DeserializeOwned>(document: wire::Document) -> Result<T, Failure> {
    serde_json::from_slice(&document.json).map_err(|e| {
        Failure::failed(format!("the head's answer is not understood: {e}")).hint("this cloudtik and the head may differ in version")
    })
}
