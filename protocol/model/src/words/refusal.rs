use std::fmt;

use super::list;
use crate::NodeTypeName;
use crate::refusal::{Lack, NoRoom, Refusal, ShortLimit};

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode { node } => write!(f, "there is no node {node}; `cloudtik nodes` lists the nodes"),
            Self::HeadNode => f.write_str("that is the head's node: `cloudtik down` takes the whole cluster down"),
            Self::AlreadyInState { node, state } => write!(f, "{node} is already {state}"),
            Self::CannotQuarantine { node, state } => write!(f, "{node} is {state} and cannot be quarantined"),
            Self::NotQuarantined { node, quarantined } if quarantined.is_empty() => {
                write!(f, "{node} is not quarantined; no node is quarantined")
            }
            Self::NotQuarantined { node, quarantined } => {
                write!(f, "{node} is not quarantined; quarantined: {}", list(quarantined))
            }
            Self::CannotDrain { node, why } => write!(f, "{node} cannot be drained now: {why}; `kill-node` removes it regardless"),
            Self::NoRolloutHeld => f.write_str("no roll-out is held"),
            Self::NoSpecification => f.write_str("the cluster has no specification yet"),
            Self::ClusterTakenDown => f.write_str("the cluster is being taken down"),
            Self::EndsBeforeStart => f.write_str("it would end before it starts"),
            Self::InvalidRequestName { name } => {
                write!(f, "{name:?} is not a valid request name: use letters, digits, '-', '_' and '.', at most 63")
            }
            Self::TooManyRequests { max } => write!(f, "{max} requests exist already; revoke some"),
            Self::UnknownNodeType { node_type, known } => {
                write!(f, "there is no node type {node_type}; there is {}", list(known))
            }
            Self::OutOfBounds { node_type, count, min, max } => {
                write!(f, "{count} workers of type {node_type} are not between its min {min} and max {max}")
            }
            Self::AboveTypeMaximum { node_type, count, max } => {
                write!(f, "that would be {count} workers of type {node_type}, above its max {max}")
            }
            Self::NoMoreWorkers => f.write_str("a request for 0 more workers has no effect"),
            Self::EmptyBundle => f.write_str("a request for capacity needs at least one bundle that is not empty"),
            Self::TooManyBundles { count, max } => write!(f, "{count} bundles are more than {max}"),
            Self::TooManyForSpread { count, max_workers } => {
                write!(f, "{count} bundles, each on a node of its own, need more than the cluster's max_workers {max_workers}")
            }
            Self::UnknownResource { resource, known } if known.is_empty() => {
                write!(f, "no node type offers the resource {resource}; no node type declares custom resources")
            }
            Self::UnknownResource { resource, known } => {
                write!(f, "no node type offers the resource {resource}; there is {}", list(known))
            }
            Self::NoTypeFits { bundle, lacks } => {
                let lacks: Vec<String> = lacks.iter().map(|(name, lack)| format!("{name} {lack}")).collect();
                write!(f, "no node type has {bundle}: {}", lacks.join("; "))
            }
            Self::NoRoom { why } => why.fmt(f),
            Self::UnknownRequest { name, known } if known.is_empty() => {
                write!(f, "there is no request {name}; there are no requests")
            }
            Self::UnknownRequest { name, known } => write!(f, "there is no request {name}; there is {}", list(known)),
            Self::UnknownJob { job, known } if known.is_empty() => write!(f, "there is no job {job}; the cluster has no jobs"),
            Self::UnknownJob { job, known } => write!(f, "there is no job {job}; there is {}", list(known)),
            Self::JobNameTaken { name, job, state } => {
                write!(f, "job {job} has the name {name} and is {state}; choose another name, or `cloudtik jobs delete` it")
            }
            Self::TooManyJobs { max } => write!(f, "{max} jobs wait already; cancel some"),
            Self::JobTooLarge { needs, has } => {
                write!(f, "the job reserves {needs}, and the head's node has {has}: no room will ever do")
            }
            Self::JobAlreadyEnded { job, name, state } => write!(f, "job {job} ({name}) has ended: {state}"),
            Self::JobNotEnded { job, name, state } => {
                write!(f, "job {job} ({name}) is {state}; only a job that has ended is deleted: `cloudtik jobs cancel` it first")
            }
            Self::JobWithoutSubmission => f.write_str("the job names no submission, or a malformed one"),
            Self::NotAMember => f.write_str("no such node in this cluster"),
            Self::OtherGeneration { node, generation, current } => {
                write!(f, "generation {generation} of {node} is not the current one, {current}")
            }
            Self::KeyAlreadyUsed => f.write_str("the join token was used by another key"),
            Self::WrongToken => f.write_str("the join token is wrong"),
            Self::LaunchNotConfirmed { node } => write!(f, "the launch of {node} is not confirmed yet; try again"),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaximumIsZero => f.write_str("has a maximum of 0"),
            Self::Undeclared => f.write_str("does not say what it offers"),
            Self::HasNone { resource } => write!(f, "has no {resource}"),
            Self::HasOnly { bundle } => write!(f, "has only {bundle}"),
        }
    }
}

fn numbers(of: &[(NodeTypeName, u32)]) -> String {
    of.iter().map(|(name, n)| format!("{n} of type {name}")).collect::<Vec<_>>().join(" and ")
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyWorkers { numbers: of, max_workers, needed } => {
                write!(f, "{} exceed the cluster's max_workers {max_workers}; raise it to {needed}", numbers(of))
            }
            Self::TooExpensive { numbers: of, cost, budget } => {
                write!(f, "{} would bring the cluster to {cost}, its budget is {budget}", numbers(of))
            }
            Self::Takes { numbers: of, limits } => {
                let takes = numbers(of);
                write!(f, "there is no room for all of it: with what is asked for already it takes {takes}, but ")?;
                if limits.is_empty() {
                    return f.write_str("the maxima and the budget leave no room for it");
                }
                let limits: Vec<String> = limits.iter().map(ToString::to_string).collect();
                f.write_str(&limits.join(", and "))
            }
        }
    }
}

impl fmt::Display for ShortLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxWorkers { max, needed } => write!(f, "max_workers is {max}, {needed} are needed"),
            Self::Budget { budget, needed } => write!(f, "the budget is {budget}, {needed} is needed"),
            Self::TypeMaximum { node_type, max, needed } => write!(f, "workers.{node_type}.max is {max}, {needed} are needed"),
        }
    }
}
