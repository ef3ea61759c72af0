use std::fmt;

use crate::report;
use crate::wait::{RevisionWaits, Wait, WorkersMissing};

/// Something in brackets, if there is something.
fn bracketed(of: Option<&impl fmt::Display>) -> String {
    of.map(|of| format!(" ({of})")).unwrap_or_default()
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Specification => f.write_str("a specification"),
            Self::Workers { missing, node_type, why } => {
                let workers = if *missing == 1 { "worker" } else { "workers" };
                write!(f, "{missing} more {workers} of type {node_type}{}", bracketed(why.as_ref()))
            }
            Self::Removal { node, why } => {
                write!(f, "removal of {node}, whose node type was removed")?;
                why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
            }
            Self::Room { unmet } => write!(f, "room for {} ({}): {}", unmet.what(), unmet.source, unmet.why()),
            Self::Heartbeat { node } => write!(f, "a heartbeat from {node}"),
            Self::Gone { node, state, undeletable: false } => write!(f, "{node} to be gone ({state})"),
            Self::Gone { node, state, undeletable: true } => write!(f, "{node} to be gone ({state}; it cannot be deleted)"),
            Self::State { node, state } => write!(f, "{node} ({state})"),
            Self::Service { service, node, report: None } => write!(f, "{service} on {node}: no report yet"),
            Self::Service { service, node, report: Some(of) } => {
                write!(f, "{service} on {node}: {}", report::describe(of.state, &of.detail, of.failure.as_ref()))
            }
            Self::Stop { service, node, state } => write!(f, "{service} on {node} to stop ({})", state.name()),
            Self::Revision { node, revision, why } => {
                write!(f, "{node} to apply revision {revision}{}", bracketed(why.as_ref()))
            }
            Self::Goal { node } => write!(f, "{node} to apply its goal"),
        }
    }
}

impl fmt::Display for WorkersMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnHold => f.write_str("the cluster is on hold: `cloudtik resume`"),
            Self::Leaving { count } => write!(f, "{count} still leaving"),
            Self::Blocked { by } => by.fmt(f),
        }
    }
}

impl fmt::Display for RevisionWaits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RolloutHeld => f.write_str("its roll-out is held"),
            Self::Obstacle { why } => why.fmt(f),
        }
    }
}
