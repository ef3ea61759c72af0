use std::fmt;

use super::list;
use crate::answer::{AfterDrain, Answer};
use crate::outlook::Blocked;

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = |reason: &String| Blocked::OnHold { reason: reason.clone() };
        match self {
            Self::AlreadyOnHold { reason } => {
                write!(f, "the cluster is already on hold ({}); `cloudtik resume` ends that", held(reason))
            }
            Self::OnHold => f.write_str("no node is created, replaced or removed until `cloudtik resume`"),
            Self::NotOnHold => f.write_str("the cluster was not on hold"),
            Self::Resumed { retried } if retried.is_empty() => f.write_str("resumed"),
            Self::Resumed { retried } => write!(f, "resumed; retrying {}", list(retried)),
            Self::AlreadyQuarantined { node, why } => {
                write!(f, "{node} is already quarantined ({why}); `cloudtik release` ends that")
            }
            Self::Quarantined { node } => write!(
                f,
                "{node} is quarantined: it keeps running, is not managed, and counts only towards maxima and budget; \
                 `cloudtik release` ends that"
            ),
            Self::Released { node } => write!(f, "{node} is a regular worker again"),
            Self::Killed { node, on_hold } => {
                let when = if *on_hold { " after `cloudtik resume`" } else { "" };
                write!(f, "{node} is being killed; it will be replaced{when} if the cluster needs it")
            }
            Self::Draining { node, then } => write!(f, "{node} is being drained; {then}"),
            Self::RemovedOnHold { node } => write!(f, "{node} is removed although the cluster is on hold"),
            Self::AlreadyLeaving { node, state } => write!(f, "{node} is already {state}"),
            Self::ShuttingDown => f.write_str("all workers are being terminated"),
            Self::Scaled { scale, waits: None, .. } => write!(f, "{scale}"),
            Self::Scaled { scale, waits: Some(_), on_hold: Some(reason) } => {
                write!(f, "{scale}; no node is created for it until `cloudtik resume` ({})", held(reason))
            }
            Self::Scaled { scale, waits: Some(waits), on_hold: None } => write!(f, "{scale}; it waits: {waits}"),
            Self::Revoked { request } => write!(f, "{} was revoked ({})", request.wants, request.name),
            Self::JobSubmitted { job, name, again: false } => write!(f, "job {job} ({name}) is submitted"),
            Self::JobSubmitted { job, name, again: true } => write!(f, "job {job} ({name}) was submitted before"),
            Self::JobCancelled { job, name } => write!(f, "job {job} ({name}) is cancelled and does not start"),
            Self::JobCancelling { job, name } => write!(f, "job {job} ({name}) is being ended"),
            Self::JobDeleted { job, name } => write!(f, "job {job} ({name}) and its output are deleted"),
            Self::RolloutResumed { revision } => write!(f, "the roll-out of revision {revision} is tried again"),
            Self::RolloutUndone { from, revision } => {
                write!(
                    f,
                    "what revision {from} ran is rolled out again, as revision {revision}; what else was changed since stays, and the cluster's file still has what was undone"
                )
            }
        }
    }
}

impl fmt::Display for AfterDrain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReplaced => f.write_str("it is above the desired count and will not be replaced"),
            Self::CountLowered { requests } => {
                write!(f, "the desired count drops by one, and {} asks for one fewer", list(requests))
            }
            Self::Replaced { on_hold } => {
                let when = if *on_hold { " after `cloudtik resume`" } else { "" };
                write!(f, "it will be replaced{when}, to keep the desired count of its type")
            }
        }
    }
}
