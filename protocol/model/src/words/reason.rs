use std::fmt;

use crate::node::{DialOutcome, EvidenceKind};
use crate::reason::{InstanceReport, Obstacle, Reason, RestartCause, ServiceProblem, Trouble};
use crate::refusal::CloseCause;
use crate::report;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KilledOnRequest => f.write_str("killed on request"),
            Self::DrainedOnRequest => f.write_str("drained on request"),
            Self::Quarantined { reason } if reason.is_empty() => f.write_str("quarantined on request"),
            Self::Quarantined { reason } => f.write_str(reason),
            Self::Released => f.write_str("released"),
            Self::ClusterTakenDown => f.write_str("the cluster is being taken down"),
            Self::AboveTypeMaximum { max } => write!(f, "above the type's maximum of {max}"),
            Self::AboveClusterMaximum { max } => write!(f, "above the cluster's maximum of {max}"),
            Self::AboveBudget { budget } => write!(f, "above the budget of {budget}"),
            Self::NotNeeded => f.write_str("no longer needed"),
            Self::Created { instance } => write!(f, "created as {instance}"),
            Self::Found { instance } => write!(f, "found as {instance}"),
            Self::CreateFailed { error } => write!(f, "create failed: {error}"),
            Self::OfferGone => f.write_str("its offer is no longer available"),
            Self::JoinTokenValid => f.write_str("its join token is valid"),
            Self::AgentConnected => f.write_str("its agent connected"),
            Self::ServicesReady => f.write_str("all its services are ready"),
            Self::ApplyingRevision { revision } => write!(f, "applying revision {revision}"),
            Self::Suspected { evidence } => evidence.fmt(f),
            Self::NoHeartbeats => f.write_str("it sends no heartbeats"),
            Self::HeartbeatsResumed => f.write_str("heartbeats resumed"),
            Self::NotRecovered => f.write_str("down and not recovered"),
            Self::ToBeReplaced => f.write_str("to be replaced"),
            Self::InstanceLost => f.write_str("its instance is lost"),
            Self::ProviderReports { instance } => write!(f, "the provider reports: {instance}"),
            Self::NotConnected { within_s } => write!(f, "its agent did not connect within {within_s} s of launch"),
            Self::ServiceFailed { service, tries, cause, detail } => {
                write!(f, "{service} did not start in {tries} tries")?;
                match cause {
                    Some(cause) => write!(f, ": it {cause}"),
                    None if detail.is_empty() => Ok(()),
                    None => write!(f, ": it {detail}"),
                }
            }
            Self::Drained => f.write_str("drained"),
            Self::DrainedWith { service, detail } => write!(f, "drained, but {service}: {detail}"),
            Self::NeverRan => f.write_str("it never ran a service"),
            Self::DrainTimedOut => f.write_str("its services did not stop in time"),
            Self::Disconnected => f.write_str("it is not connected, so it cannot drain"),
            Self::RemovingRemains => f.write_str("removing what exists of it"),
            Self::Deleted => f.write_str("the provider deleted it"),
            Self::NotListed => f.write_str("the provider lists no instance of it"),
        }
    }
}

impl fmt::Display for InstanceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Terminated => "terminated",
            Self::NotListed => "it lists no such instance",
        })
    }
}

impl fmt::Display for EvidenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeartbeatsMissed { for_ms } => write!(f, "no heartbeat for {for_ms} ms"),
            Self::StreamClosed { cause } => write!(f, "lost connection to the agent: {cause}"),
            Self::DialBack { outcome } => write!(f, "dial-back: {outcome}"),
            Self::Provider { says } => write!(f, "the provider reports: {says}"),
            Self::HeadLag { by_ms } => write!(f, "the head was delayed by {by_ms} ms and extended its deadlines"),
        }
    }
}

impl fmt::Display for DialOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "the agent answered",
            Self::Refused => "connection refused",
            Self::TimedOut => "no answer in time",
        })
    }
}

impl fmt::Display for RestartCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReconnected => "it has not reconnected since the head started",
            Self::AgentDead => "the machine answers but its agent does not",
            Self::NodeDown => "the node is down",
            Self::NotConnected => "its agent has not connected",
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QuorumNeedsIt { service, up, members, needed } => {
                write!(f, "{service} would have {up} of {members} members up without it, and needs {needed}")
            }
            Self::QuorumNeedsItBack { service, up, members, needed } => {
                write!(f, "{service} has {up} of {members} members up without it, and needs {needed} to come back")
            }
            Self::QuorumNeedsOthers { service, up, members, needed } => {
                write!(f, "{service} has {up} of {members} members up beside it, and needs {needed}")
            }
            Self::OtherMemberLeaves { service, node } => {
                write!(f, "{service} is losing {node}, and its members leave one at a time")
            }
            Self::MissesHeartbeats => f.write_str("it misses heartbeats, which is decided on its own"),
            Self::RolloutHeld { revision } => {
                write!(f, "the roll-out of revision {revision} is held, and what works stays meanwhile")
            }
            Self::OnTrial { revision } => write!(f, "it takes revision {revision}; whether that works is not known yet"),
            Self::PlacementsMove => f.write_str("its placements move to machines that are still starting: it stays until they are ready"),
            Self::Awaited => f.write_str("a request waits for other nodes that are terminating, and will be placed on it too"),
            Self::Idle { after_s } => write!(f, "idle; removed after {after_s} s of that"),
            Self::ServesJobs { runtime } => write!(f, "a job of {runtime} runs or waits"),
            Self::Busy => f.write_str("busy"),
            Self::LoadUnknown => f.write_str("its load is not known yet"),
        }
    }
}

impl fmt::Display for ServiceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { service, cause } => write!(f, "{service} {cause}"),
            Self::NotReady { service, state, detail } => f.write_str(&report::sentence(service, *state, detail, None)),
            Self::NoSoftware { software, error } => write!(f, "the head cannot fetch {software}: {error}"),
            Self::Ended { times } => write!(f, "services ended {times} times"),
            Self::NotReadyInTime { within_s, problem: None } => write!(f, "not ready within {within_s} s"),
            Self::NotReadyInTime { within_s, problem: Some(problem) } => write!(f, "not ready within {within_s} s; {problem}"),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateFailed { error } => write!(f, "create failed: {error}"),
            Self::AgentRestartFailed { error } => write!(f, "the agent could not be restarted: {error}"),
            Self::Quarantined { reason } if reason.is_empty() => f.write_str("quarantined on request"),
            Self::Quarantined { reason } => write!(f, "quarantined: {reason}"),
            Self::Service { service, state, detail, failure } => f.write_str(&report::sentence(service, *state, detail, failure.as_ref())),
        }
    }
}

impl fmt::Display for CloseCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { refusal } => refusal.fmt(f),
            Self::NewerConnection => f.write_str("the agent opened a newer connection"),
            Self::NodeGone => f.write_str("the node is gone"),
        }
    }
}
