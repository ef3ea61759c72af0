use std::fmt;

use crate::Bytes;
use crate::goal::Limits;
use crate::job::{Job, JobEnd, JobRef, JobStateName, JobWait, Loss};
use crate::report;

impl Job {
    /// How it ended, or what it waits for, or that it runs.
    pub fn message(&self) -> String {
        match (&self.end, &self.waits_for) {
            (Some(end), _) => end.to_string(),
            (None, Some(wait)) => format!("waits for {wait}"),
            (None, None) if self.cancelled.is_some() => "is being cancelled".to_owned(),
            (None, None) => self.state.to_string(),
        }
    }
}

impl JobStateName {
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for JobStateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for JobEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeded"),
            Self::Failed { exit_code } => write!(f, "failed: exit {exit_code}"),
            Self::Killed { signal, out_of_memory: false } => write!(f, "failed: killed by {}", signal_name(*signal)),
            Self::Killed { signal, out_of_memory: true } => {
                write!(f, "failed: memory limit reached, killed by {}", signal_name(*signal))
            }
            Self::TimedOut => f.write_str("timed out"),
            Self::Cancelled => f.write_str("was cancelled"),
            Self::NotStarted { why } => write!(f, "failed: cannot start ({why})"),
            Self::Lost { why } => write!(f, "was lost: {why}"),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "the node that it ran on is gone",
            Self::Shim => "the process that watched over it was killed, so that its end was not seen",
            Self::Directory => "its directory was removed",
        })
    }
}

impl fmt::Display for JobWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("the head's node to connect"),
            Self::Parallel { running, limit } => write!(f, "its turn: {running} jobs run, the limit is {limit}"),
            Self::Service { service, report: None } => write!(f, "{service}: no report yet"),
            Self::Service { service, report: Some(of) } => {
                write!(f, "{service}: {}", report::describe(of.state, &of.detail, of.failure.as_ref()))
            }
            Self::Room { needs, free } => write!(f, "room on the head's node: it reserves {needs}, and {free} is free"),
            Self::Starts { starting } => write!(f, "its turn: {starting} jobs are starting"),
            Self::Turn { after } => write!(f, "its turn: job {after} waits for room on the head's node before it"),
            Self::Pause { .. } => f.write_str("the pause before its next attempt"),
            Self::ClusterTakenDown => f.write_str("nothing any more: the cluster is being taken down"),
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus = self.cpu_millis.map(|millis| match millis {
            1_000 => "1 cpu".to_owned(),
            whole if whole.is_multiple_of(1_000) => format!("{} cpus", whole / 1_000),
            part => format!("{} cpus", part as f64 / 1_000.0),
        });
        let memory = self.memory.map(|bytes| format!("{} of memory", Bytes(bytes)));
        match (cpus, memory) {
            (Some(cpus), Some(memory)) => write!(f, "{cpus} and {memory}"),
            (Some(one), None) | (None, Some(one)) => f.write_str(&one),
            (None, None) => f.write_str("nothing"),
        }
    }
}

impl fmt::Display for JobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// As `signal(7)` calls those that end programs.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}
