//! The contracts of [`NodeProvider`] and [`crate::WorkspaceProvider`] as suites that every implementation runs, in tests and by
//! `cloudtik provider check`.

mod hold;
mod nodes;
pub mod workspace;

use std::time::Duration;

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::spec::Offer;
use cloudtik_model::{ClusterName, Generation, NodeId, NodeTypeName};

pub use self::hold::MountBelow;
pub use self::nodes::{Checked, Hold, check, clear};
use crate::{CreateNode, Error};

/// Attempts of a call that fails in ways that pass.
const ATTEMPTS: u32 = 10;
/// Between two attempts where the provider names no pause; the first is short, and each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A clause of the contract that does not hold.
#[derive(Debug, thiserror::Error)]
#[error("{clause}: {found}")]
pub struct Breach {
    pub clause: String,
    /// What was seen instead.
    pub found: String,
}

/// Hears of each clause that holds, in words.
pub type Told<'a> = &'a mut (dyn FnMut(&str) + Send);

/// A clause holds, or the suite ends with its breach.
fn clause(told: &mut (dyn FnMut(&str) + Send), clause: &str, holds: bool, found: impl FnOnce() -> String) -> Result<(), Breach> {
    if holds {
        told(clause);
        return Ok(());
    }
    Err(Breach { clause: clause.to_owned(), found: found() })
}

/// What a call gave; its failure breaches the clause.
fn works<T>(clause: &str, result: Result<T, Error>) -> Result<T, Breach> {
    result.map_err(|error| Breach { clause: clause.to_owned(), found: with_causes(&error) })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether repeating the call may help.
fn passes(error: &Error) -> bool {
    matches!(error, Error::Throttled { .. } | Error::Transient { .. } | Error::StockOut(_))
}

/// The pause before an attempt after `error`; none if no further attempt is worth it.
fn pause_before(attempt: u32, error: &Error) -> Option<Duration> {
    if attempt >= ATTEMPTS || !passes(error) {
        return None;
    }
    let own = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(attempt)).min(LONGEST_PAUSE);
    Some(error.retry_after().unwrap_or(own))
}

/// Calls until it works or fails for good.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(mut call: impl FnMut() -> F) -> Result<T, Error> {
    let mut attempt = 0;
    loop {
        match call().await {
            Ok(value) => return Ok(value),
            Err(error) => match pause_before(attempt, &error) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
        }
        attempt += 1;
    }
}

/// A node as the suite has it created. Its agent, if one runs, finds no head at `head`; `ca` is the root certificate in PEM.
pub fn request(node: &NodeId, generation: Generation, head: &str, ca: &str) -> CreateNode {
    let node_type = NodeTypeName::new(NodeTypeName::DEFAULT).expect("valid");
    let bootstrap = Bootstrap {
        cluster: ClusterName::new("contract").expect("valid"),
        node: node.clone(),
        generation,
        node_type: node_type.clone(),
        head: head.to_owned(),
        ca: ca.to_owned(),
        token: "token".to_owned(),
        address: None,
        resources: None,
        pinned: Vec::new(),
        artifacts: None,
        heartbeat_ms: 1_000,
        dead_man_ms: None,
        power_off: Vec::new(),
        agents: Vec::new(),
        made_at: 0,
    };
    CreateNode { node_type, shape: None, offer: Offer::default(), bootstrap }
}
