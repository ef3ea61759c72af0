//! The statuses of many clusters, asked of their heads at once.

use std::time::Duration;

use cloudtik_model::status::Status;

use crate::client::Client;
use crate::clusters::{self, ClusterPaths};
use crate::failure::{Failure, NOT_AUTHORISED};

/// How long a head is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a head does not say how it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silent {
    NoAccess,
    Unreachable,
}

impl Silent {
    pub fn name(self) -> &'static str {
        match self {
            Self::NoAccess => "no-access",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The status of each of these clusters, in their order. All are asked at once: one that hangs holds up no other.
pub async fn fetch(places: Vec<ClusterPaths>) -> Vec<(ClusterPaths, Result<Status, Silent>)> {
    let mut asked = tokio::task::JoinSet::new();
    for (number, paths) in places.into_iter().enumerate() {
        asked.spawn(async move {
            let asking = async { Client::dial(&paths).await?.status().await };
            let status = match tokio::time::timeout(PATIENCE, asking).await {
                Ok(Ok(status)) => Ok(status),
                Ok(Err(failure)) if failure.code == NOT_AUTHORISED => Err(Silent::NoAccess),
                Ok(Err(_)) | Err(_) => Err(Silent::Unreachable),
            };
            (number, paths, status)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(number, _, _)| *number);
    answers.into_iter().map(|(_, paths, status)| (paths, status)).collect()
}

/// The same of every cluster that this machine knows.
pub async fn all() -> Result<Vec<(ClusterPaths, Result<Status, Silent>)>, Failure> {
    Ok(fetch(clusters::all()?).await)
}
