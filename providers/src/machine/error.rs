//! How making a node of a machine fails, and at which step.

use std::fmt;
use std::path::PathBuf;

use cloudtik_model::program::{Architecture, Digest};
use cloudtik_model::{ClusterName, Generation, NodeId};

use super::TransportError;

/// A step that did not work. The same call goes on from there.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct Error {
    pub step: Step,
    #[source]
    pub cause: Cause,
}

/// A step of the sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Check,
    /// Of the program that this link leads to.
    Place(String),
    RemoveOld,
    WriteBootstrap,
    Start,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check => f.write_str("use the machine"),
            Self::Place(program) => write!(f, "place {program}"),
            Self::RemoveOld => f.write_str("remove old programs"),
            Self::WriteBootstrap => f.write_str("write the bootstrap payload"),
            Self::Start => f.write_str("start the agent"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("its directory {} is missing", .0.display())]
    NoRoot(PathBuf),
    #[error("agents do not run on {0}")]
    System(String),
    #[error("{program} is for {of}, the machine is {is}")]
    Architecture { program: &'static str, of: Architecture, is: String },
    #[error("the disk is full: {} has {free} bytes, and {needed} are needed", directory.display())]
    NoRoom { directory: PathBuf, needed: u64, free: u64 },
    /// What was copied is not what was to be copied.
    #[error("its SHA-256 is {}, not {expected}", found.as_ref().map_or("unknown", Digest::as_str))]
    Corrupt { expected: Digest, found: Option<Digest> },
    #[error("it is {node}, generation {generation}, of the cluster {cluster} already")]
    Occupied { cluster: ClusterName, node: NodeId, generation: Generation },
    #[error("{} is malformed", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl Error {
    /// Whether the same call fails the same way until somebody changes the machine or the program.
    pub fn is_permanent(&self) -> bool {
        match &self.cause {
            Cause::System(_) | Cause::Architecture { .. } | Cause::Occupied { .. } | Cause::Unreadable { .. } => true,
            Cause::NoRoot(_) | Cause::NoRoom { .. } | Cause::Corrupt { .. } | Cause::Transport(_) => false,
        }
    }
}
