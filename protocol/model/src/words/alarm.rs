use std::fmt;

use crate::alarm::{Alarm, Misfit};
use crate::outlook::Blocked;

/// Types of workers that are named when none fits.
const NAMED_ROOMS: usize = 3;

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Brake => f.write_str("many workers stopped sending heartbeats at once; terminations are on hold"),
            Self::OnHold { reason } => {
                let held = Blocked::OnHold { reason: reason.clone() };
                write!(f, "{held}; no node is created, replaced or removed until `cloudtik resume`")
            }
            Self::TypePaused { node_type, why } => write!(f, "creation of node type {node_type} is paused: {why}"),
            Self::RolloutHeld { revision, node, problem } => {
                write!(f, "the roll-out of revision {revision} is held: it failed on {node}: {problem} (`cloudtik rollout status`)")
            }
            Self::PolicyFlaps { policy, wait_s } => {
                write!(f, "policy {policy} flaps: it waits {wait_s} s before it changes direction")
            }
            Self::PolicyWithoutSignal { policy, says } => write!(f, "policy {policy} cannot read its signal: {says}"),
            // Why, and what to do, is said once: with the node.
            Self::Undeletable { node } => write!(f, "{node} cannot be deleted; `cloudtik nodes` says why"),
            Self::JobsCannotRun(misfit) => misfit.fmt(f),
            Self::More { count } => write!(f, "{count} more"),
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runtime, part, needs, rooms, advice } = self;
        write!(f, "jobs of {runtime} cannot run: each {part} needs {} and {} on one worker", cores(needs.cpu_millis), needs.memory)?;
        for room in rooms.iter().take(NAMED_ROOMS) {
            let cpus = cores(u64::from(room.cpus) * 1_000);
            write!(f, "; a worker of type {} has {cpus} and {} for {runtime}", room.node_type, room.memory)?;
        }
        if !advice.is_empty() {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

fn cores(millis: u64) -> String {
    match millis {
        1_000 => "1 core".to_owned(),
        n if n.is_multiple_of(1_000) => format!("{} cores", n / 1_000),
        n => format!("{} cores", n as f64 / 1_000.0),
    }
}
