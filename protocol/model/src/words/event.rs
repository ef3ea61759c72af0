use std::fmt;

use super::{after_colon, list};
use crate::actor::Actor;
use crate::demand::{Counted, RequestedCapacity};
use crate::event::{
    Activity, Again, Event, Launch, NotChosen, PolicyChange, Purpose, Replan, RequestDetails, Scale, ScaleIn, ScaleInChoice, StateName,
    TypeChoice, What,
};
use crate::node::Evidence;
use crate::report::{self, ServiceState};

impl Event {
    /// What happened.
    pub fn message(&self) -> String {
        match self.more {
            0 => self.what.to_string(),
            more => format!("{} ({more} more like it since the last event)", self.what),
        }
    }

    /// What happened, and which person asked for it if one did.
    pub fn sentence(&self) -> String {
        match &self.actor {
            Some(actor @ (Actor::LocalUser { .. } | Actor::Administrator { .. })) => format!("{} (by {actor})", self.message()),
            _ => self.message(),
        }
    }

    /// The facts behind it, by name: evidence, alternatives, inputs.
    pub fn details(&self) -> Vec<(String, String)> {
        match &self.what {
            What::NodeDown { evidence } | What::InstanceLost { evidence } => evidence_details(evidence),
            What::Launch(launch) => launch_details(launch),
            What::ReplacedBy { node, generation } => vec![named("replaced by", format!("{node} (generation {generation})"))],
            What::ScaleIn(decision) => scale_in_details(decision),
            What::PolicyChanged(change) => policy_details(change),
            What::Scale(scale) => request_details(&scale.request),
            What::Revoke { request } => request_details(request),
            _ => Vec::new(),
        }
    }
}

fn named(name: &str, text: impl ToString) -> (String, String) {
    (name.to_owned(), text.to_string())
}

fn evidence_details(evidence: &[Evidence]) -> Vec<(String, String)> {
    evidence.iter().enumerate().map(|(i, e)| (format!("evidence {}", i + 1), e.kind.to_string())).collect()
}

fn launch_details(launch: &Launch) -> Vec<(String, String)> {
    let mut details = Vec::new();
    match &launch.purpose {
        Purpose::Count { source, .. } => {
            details.push(named("wanted by", source.as_ref().map(ToString::to_string).unwrap_or_default()));
        }
        Purpose::Room { needs, requests, choice } => {
            details.extend([named("asked by", list(requests)), named("for", counted(needs))]);
            match choice {
                TypeChoice::AsFor { node } => details.push(named("reasons", format!("as for {node}"))),
                TypeChoice::Not { types } => details.extend(types.iter().map(|(name, why)| (format!("not {name}"), why.to_string()))),
            }
        }
    }
    details.push(named("offer", &launch.offer));
    details.extend(launch.replaces.as_ref().map(|(node, of)| named("replaces", format!("{node} (generation {of})"))));
    details.sort();
    details
}

fn scale_in_details(decision: &ScaleIn) -> Vec<(String, String)> {
    let sources: Vec<String> = decision.sources.iter().map(ToString::to_string).collect();
    vec![
        named("of its type", format!("{} running or starting, {} desired by count", decision.present, decision.wanted)),
        named("wanted of its type", sources.join("; ")),
        named("what it does", &decision.activity),
        named("why this one", decision.choice),
    ]
}

fn policy_details(change: &PolicyChange) -> Vec<(String, String)> {
    vec![
        named("asks for", change.asked.map_or_else(String::new, |asked| asked.to_string())),
        named("follows", &change.policy),
        named("saw", &change.says),
        named("within", format!("{} to {}", change.least, change.most)),
    ]
}

fn request_details(request: &RequestDetails) -> Vec<(String, String)> {
    let mut details: Vec<(String, String)> =
        request.ends_in_s.map(|seconds| named("ends", format!("{seconds} s later"))).into_iter().collect();
    if !request.reason.is_empty() {
        details.push(named("reason", &request.reason));
    }
    details.extend([named("request", &request.name), named("wants", &request.wants)]);
    details
}

/// Bundles in a row, such as `2 × 4 cpus, 1 × 1 gpu`.
pub(super) fn counted(of: &[Counted]) -> String {
    of.iter().map(|b| format!("{} × {}", b.count, b.bundle)).collect::<Vec<_>>().join(", ")
}

impl StateName {
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Launched => "launched",
            Self::Joined => "joined",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Terminating => "terminating",
            Self::Gone => "gone",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for What {
    #[expect(clippy::too_many_lines, reason = "one line for each thing that can happen")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeadStarted { epoch } => write!(f, "head started, epoch {epoch}"),
            Self::SpecificationAccepted { revision } => write!(f, "specification {revision} accepted"),
            Self::HeadDelayed { seconds } => {
                write!(f, "the head was delayed by up to {seconds} s; all deadlines are extended by that")
            }
            Self::StateChanged { from, to, why } => write!(f, "{from} → {to}: {why}"),
            Self::ListFailed { error } => write!(f, "listing instances failed: {error}"),
            Self::AgentRestartFailed { error } => write!(f, "the agent could not be restarted: {error}"),
            Self::RebootFailed { error } => write!(f, "it could not be rebooted: {error}"),
            Self::NodeDown { .. } => f.write_str("the node is down"),
            Self::InstanceLost { .. } => f.write_str("the node's instance is lost"),
            Self::NodeFailed { why } => why.fmt(f),
            Self::Launch(launch) => launch.fmt(f),
            Self::ReplacedBy { node, .. } => write!(f, "{node} replaces it"),
            Self::CreateFailed { error } => write!(f, "create failed: {error}"),
            Self::RestartAgent { cause } => write!(f, "restart the agent: {cause}"),
            Self::Reboot => f.write_str("reboot: its agent could not be brought back"),
            Self::Replace => f.write_str("replace: milder recovery steps failed"),
            Self::ScaleIn(decision) => write!(f, "scale in {}: {}", decision.node, decision.why),
            Self::DeleteOrphan { instance, owner, of } => write!(f, "delete the orphan {instance} ({owner}, generation {of})"),
            Self::BrakeReleased => f.write_str("the brake is released: too few workers miss heartbeats for a common cause"),
            Self::OfferUnavailable { node_type, offer, why, pause_s } => {
                write!(f, "{node_type}, {offer}: {why}; not tried for {pause_s} s")
            }
            Self::TypeResumed { node_type } => write!(f, "type {node_type} is tried again"),
            Self::PolicyBegan { policy, node_type, count, hours } => {
                write!(f, "policy {policy} begins: {count} workers of type {node_type} ({hours})")
            }
            Self::PolicyEnded { policy, hours } => write!(f, "policy {policy} ends ({hours})"),
            Self::PolicyChanged(change) => {
                let PolicyChange { policy, before, now, says, .. } = &**change;
                write!(f, "policy {}: {before} → {now} workers of type {}: {says}", policy.name, policy.node_type)
            }
            Self::RequestEnded { request, wants } => write!(f, "the request {request} ended: {wants}"),
            Self::RequestWithoutType { request } => write!(f, "the request {request} ended: its node type was removed"),
            Self::PlacementsMoved { requests } => {
                let requests = list(requests);
                write!(f, "placements of {requests} on it move to other nodes: other requests need what only this type has")
            }
            Self::PlacementsReplanned { why: Replan::Better } => {
                f.write_str("placements were replanned: nodes become free, or waiting requests fit")
            }
            Self::PlacementsReplanned { why: Replan::ToFit } => {
                f.write_str("placements were replanned: otherwise not all of them would fit")
            }
            Self::PlacementsReplanned { why: Replan::MachinesUnavailable } => {
                f.write_str("expected machines are not available: placements return to where they were")
            }
            Self::RolloutComplete { revision } => write!(f, "the roll-out of revision {revision} is complete"),
            Self::Hold { reason } => write!(f, "hold: held on request{}", after_colon(reason)),
            Self::Resume => f.write_str("resume"),
            Self::Quarantine { reason } if reason.is_empty() => f.write_str("quarantine: quarantined on request"),
            Self::Quarantine { reason } => write!(f, "quarantine: {reason}"),
            Self::Release => f.write_str("release"),
            Self::Kill => f.write_str("kill-node"),
            Self::Drain => f.write_str("drain"),
            Self::Down => f.write_str("down"),
            Self::ResumeRollout { revision } => write!(f, "rollout resume: revision {revision} is tried again"),
            Self::Scale(scale) => write!(f, "scale: {scale}"),
            Self::Revoke { request } => write!(f, "revoke: {} was revoked ({})", request.wants, request.name),
            Self::Exec { program } => write!(f, "exec {program}"),
            Self::JobSubmitted { job, name } => write!(f, "submit: job {job} ({name})"),
            Self::JobCancelRequested { job, name } => write!(f, "jobs cancel: job {job} ({name})"),
            Self::JobDeleted { job, name } => write!(f, "jobs delete: job {job} ({name})"),
            Self::JobStarted { job, name, attempt: 1 } => write!(f, "job {job} ({name}) started"),
            Self::JobStarted { job, name, attempt } => write!(f, "job {job} ({name}) started, attempt {attempt}"),
            Self::JobEnded { job, name, end, .. } => write!(f, "job {job} ({name}) {end}"),
            Self::JobRetried { job, name, attempt, attempts, pause_s, end } => {
                write!(f, "job {job} ({name}) {end}; attempt {} of {attempts} follows in {pause_s} s", attempt + 1)
            }
            Self::AccessGranted { name, role } => write!(f, "access granted to {name} as {role}"),
            Self::AccessAccepted { name, role, from } => write!(f, "{name} accepted access as {role}, from {from}"),
            Self::AccessRevoked { name, role } => write!(f, "access of {name} as {role} revoked"),
            Self::Refused { refusal } => refusal.fmt(f),
            Self::ScaleRefused { refusal } => write!(f, "scale: {refusal}"),
            Self::RevokeRefused { refusal } => write!(f, "revoke: {refusal}"),
            Self::JoinRefused { claimed, of, address, refusal } => {
                write!(f, "refused the join of {claimed} (generation {of}, from {address}): {refusal}")
            }
            Self::ConnectionRefused { claimed, of, refusal } => {
                write!(f, "refused the connection of {claimed} (generation {of}): {refusal}")
            }
            Self::NotReplaced { why } => write!(f, "it is not being replaced: {why}"),
            Self::LossNotReplaced { instance, why } => {
                write!(f, "the provider reports: {instance}; it is not being replaced: {why}")
            }
            Self::KeptOnHold { instance } => {
                write!(f, "it is kept while the cluster is on hold, but the provider reports: {instance}")
            }
            Self::KeptAboveLimit { limit, why } => write!(f, "it is {limit} and stays: {why}"),
            Self::RolloutHeld { revision, on, problem } => write!(
                f,
                "the roll-out of revision {revision} is held: it failed on {on}: {problem}; correct the cluster's file and run \
                 `cloudtik up`, or `cloudtik rollout undo`, or `cloudtik rollout resume` to try it again"
            ),
            Self::PolicyFlaps { policy, wait_s } => {
                write!(f, "policy {policy} flaps: it now waits {wait_s} s before it changes direction")
            }
            Self::TypePaused { node_type, pause_s, attempts, why } => write!(
                f,
                "creation of node type {node_type} is paused for {pause_s} s: {attempts} attempts in a row failed, the last: {why}"
            ),
            Self::GoalRefused { error } => write!(f, "the agent refused its goal, which will be sent again: {error}"),
            Self::DeleteFailed { error } => write!(f, "delete failed and will be retried: {error}"),
            Self::OrphanDeleteFailed { instance, error } => {
                write!(f, "delete of the orphan {instance} failed and will be retried: {error}")
            }
            Self::Throttled { error } => write!(f, "the provider throttles calls; slowing down: {error}"),
            Self::Brake { silent, workers } => write!(
                f,
                "{silent} of {workers} workers stopped sending heartbeats at once: no node is terminated for missed heartbeats until that \
                 ends"
            ),
            Self::ServicesIgnored { service, kept } => write!(
                f,
                "it reports {service} and more than {kept} other services that it is not to run; they are ignored: look at what runs there, and replace the node if its agent is not to be trusted"
            ),
            Self::ClockOff { behind_s } => {
                let how = if *behind_s < 0 { "ahead of" } else { "behind" };
                write!(
                    f,
                    "its clock is {} s {how} the head's; the cluster tolerates this, but its services may not",
                    behind_s.unsigned_abs()
                )
            }
            Self::MemoryUsedUp { kills } => write!(f, "{kills}"),
            Self::HeadProblem { error } => f.write_str(error),
            Self::ServiceFailed { service, failure, restart_in_ms } => {
                write!(f, "{service} {}", report::describe_failure(failure, *restart_in_ms))
            }
            Self::ServiceChanged { service, state: ServiceState::Backoff, detail } => {
                f.write_str(&report::sentence(service, ServiceState::Backoff, detail, None))
            }
            Self::ServiceChanged { service, state, detail } => write!(f, "{service} is {}{}", state.name(), after_colon(detail)),
        }
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {} (generation {}): ", self.node, self.generation)?;
        match &self.purpose {
            Purpose::Count { missing, node_type, .. } => write!(f, "{missing} more of type {node_type} desired")?,
            Purpose::Room { needs, .. } => write!(f, "room for {}", counted(needs))?,
        }
        match &self.replaces {
            Some((node, of)) => write!(f, "; it replaces {node} (generation {of})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NotChosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked { by } => by.fmt(f),
            Self::Lacks { what } => what.fmt(f),
            Self::PreferredDoesNotFit { max_workers, budget } => {
                write!(f, "the preferred choice does not fit within max_workers {max_workers}")?;
                match budget {
                    Some(budget) => write!(f, " and the budget {budget}"),
                    None => Ok(()),
                }
            }
            Self::LowerPriority { its, chosen } => write!(f, "its priority is lower ({its} against {chosen})"),
            Self::GpusNotNeeded => f.write_str("it has GPUs, which this work does not need"),
            Self::MaximumReached { max } => write!(f, "its maximum of {max} is reached"),
            Self::SameCost => f.write_str("it costs the same"),
            Self::MoreExpensive { nodes, price, chosen } => write!(f, "more expensive for this: {nodes} at {price} against {chosen}"),
            Self::CheaperTogether => f.write_str("this is cheaper for all demands together"),
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReadyYet => f.write_str("it was not ready yet"),
            Self::Idle { for_s } => write!(f, "idle for {for_s} s"),
            Self::ServesJobs { runtime } => write!(f, "a job of {runtime} runs or waits"),
            Self::BusyOrUnknown => f.write_str("busy, or its load is not known"),
        }
    }
}

impl fmt::Display for ScaleInChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllRemoved => "all workers are removed",
            Self::AboveLimits => {
                "first what is not desired, then nodes with placements, then nodes desired by count, then minima; the most expensive first"
            }
            Self::NotNeeded => "of nodes without placements: not ready first, then idle, then the most expensive, then the newest",
            Self::TypeRemoved => "its node type was removed, and all its nodes with it",
        })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, numbers, replaced, instead_of, more_because, again } = self;
        match (&request.wants, numbers) {
            (RequestedCapacity::Workers { node_type, .. } | RequestedCapacity::More { node_type, .. }, Some((was, now))) => {
                write!(f, "{node_type}: {was} → {now} workers")?;
            }
            (wants, _) => write!(f, "{}: {wants}", request.name)?,
        }
        if !replaced.is_empty() {
            write!(f, ", replacing {}", list(replaced))?;
        }
        if let Some(old) = instead_of {
            write!(f, ", instead of {old}")?;
        }
        if let Some(source) = more_because {
            write!(f, "; there are more, because of {source}")?;
        }
        f.write_str(match again {
            None => "",
            Some(Again::Lasts) => "; it now lasts until it is revoked",
            Some(Again::EndChanged) => "; its end was changed",
            Some(Again::Same) => "; the same request existed already",
        })
    }
}
