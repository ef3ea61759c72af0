//! Jobs: programs that run to their end for a user, each once for every attempt, with a record.
//!
//! A job runs on the head's node under a shim, in a directory of its own. What is to run comes to the agent as a document of its own
//! ([`JobGoals`]) beside the node's goal; what became of it comes back as [`JobReport`]s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::goal::{Limits, Stop};
use crate::id::{JobId, JobName};
use crate::wait::WaitingService;
use crate::{Actor, Epoch, Generation, NodeId, RuntimeName, ServiceKey, Timestamp};

/// What somebody wants to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Unique among the jobs that are kept; made from the file's name and the job's number if it is left out.
    #[serde(default)]
    pub name: Option<JobName>,
    /// Made by whoever submits, once for each submission: the same again is the same job. At most [`Self::MAX_SUBMISSION`] bytes.
    pub submission: String,
    #[serde(flatten)]
    pub work: Work,
    /// Of the job itself, behind its file or program.
    #[serde(default)]
    pub arguments: Vec<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Laid into the job's directory before it starts. A runtime's file is the first.
    #[serde(default)]
    pub files: Vec<JobFile>,
    /// What its processes may use at most, and what of the node is reserved for it.
    #[serde(default)]
    pub limits: Limits,
    /// Milliseconds from the start of an attempt until it is ended.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Further attempts after one that fails.
    #[serde(default)]
    pub retries: u32,
}

impl JobSpec {
    pub const MAX_SUBMISSION: usize = 64;
    pub const MAX_RETRIES: u32 = 100;
    /// Of the texts of a job together, as [`Self::text_size`] counts them.
    pub const MAX_TEXTS: usize = 256 << 10;

    /// A job without a name, arguments, files and limits of its own.
    pub fn new(submission: impl Into<String>, work: Work) -> Self {
        Self {
            name: None,
            submission: submission.into(),
            work,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            files: Vec::new(),
            limits: Limits::default(),
            timeout_ms: None,
            retries: 0,
        }
    }

    /// Bytes of its texts (names, arguments, environment, options) as JSON has them.
    pub fn text_size(&self) -> usize {
        let (program, options) = match &self.work {
            Work::Command { program } => (Some(program), [].as_slice()),
            Work::Runtime { options, .. } => (None, options.as_slice()),
        };
        let of_options = options.iter().flat_map(|option| match &option.value {
            JobOptionValue::Text(text) | JobOptionValue::File(text) => [&option.name, text],
        });
        let of_environment = self.environment.iter().flat_map(|(name, value)| [name, value]);
        // A digest stands beside each name.
        let files: usize = self.files.iter().map(|file| json_size(&file.name) + 128).sum();
        files
            + program.into_iter().chain(&self.arguments).chain(of_environment).chain(of_options).map(|text| json_size(text)).sum::<usize>()
    }
}

/// Bytes of a text in JSON, with what stands around it.
fn json_size(text: &str) -> usize {
    let size = |byte: u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    4 + text.bytes().map(size).sum::<usize>()
}

/// Who runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
pub enum Work {
    /// A runtime, as the `[submit]` of its folder says. The first of the job's files is what it runs.
    Runtime {
        /// Without one, the only runtime that takes jobs; always there once the job is stored.
        #[serde(default)]
        runtime: Option<RuntimeName>,
        #[serde(default)]
        options: Vec<JobOption>,
    },
    /// The node itself: a program with the job's arguments. Without a `/` in it, the program is looked for on the path.
    Command { program: String },
}

impl Work {
    pub fn runtime(&self) -> Option<&RuntimeName> {
        match self {
            Self::Runtime { runtime, .. } => runtime.as_ref(),
            Self::Command { .. } => None,
        }
    }
}

/// An option for the runtime, such as `conf`, in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOption {
    pub name: String,
    #[serde(flatten)]
    pub value: JobOptionValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOptionValue {
    Text(String),
    /// The name of one of the job's files.
    File(String),
}

/// A file that a job brings along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFile {
    /// As [`Self::is_name`] allows.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content, in hexadecimal; empty until the head has it.
    #[serde(default)]
    pub digest: String,
}

impl JobFile {
    /// Bytes of a name: what Linux' file systems allow.
    pub const MAX_NAME: usize = 255;

    /// Whether a text can be the name of a job's file: not empty, at most [`Self::MAX_NAME`] bytes, without `/` and zero bytes, and
    /// neither `.` nor `..`.
    pub fn is_name(text: &str) -> bool {
        !matches!(text, "" | "." | "..") && text.len() <= Self::MAX_NAME && !text.contains(['/', '\0'])
    }
}

/// Where a job stands, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum JobState {
    /// It waits for its turn, or for the pause before its next attempt to end.
    Queued {
        /// It does not start before.
        #[serde(default)]
        not_before: Option<Timestamp>,
    },
    /// Its agent is told to start it, and has not said yet what became of that.
    Starting {
        since: Timestamp,
        generation: Generation,
    },
    Running {
        started: Timestamp,
        generation: Generation,
        pid: u32,
    },
    /// For good.
    Ended {
        at: Timestamp,
        end: JobEnd,
    },
}

impl JobState {
    pub fn name(&self) -> JobStateName {
        match self {
            Self::Queued { .. } => JobStateName::Queued,
            Self::Starting { .. } => JobStateName::Starting,
            Self::Running { .. } => JobStateName::Running,
            Self::Ended { end, .. } => end.name(),
        }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    /// The generation of the node that an attempt belongs to, if one is under way.
    pub fn generation(&self) -> Option<Generation> {
        match self {
            Self::Starting { generation, .. } | Self::Running { generation, .. } => Some(*generation),
            Self::Queued { .. } | Self::Ended { .. } => None,
        }
    }

    /// When the attempt that runs was started.
    pub fn started(&self) -> Option<Timestamp> {
        if let Self::Running { started, .. } = self { Some(*started) } else { None }
    }
}

/// What a job's state is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStateName {
    Queued,
    Starting,
    Running,
    Succeeded,
    Failed,
    TimedOut,
    Cancelled,
    Lost,
}

/// How a job, or one attempt of it, ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "kebab-case")]
pub enum JobEnd {
    Succeeded,
    /// It ended by itself with another status than 0.
    Failed {
        exit_code: i32,
    },
    /// A signal that nobody sent on the job's behalf ended it.
    Killed {
        signal: i32,
        /// The kernel did, because a memory limit was reached.
        #[serde(default)]
        out_of_memory: bool,
    },
    /// It ran longer than it may.
    TimedOut,
    /// Somebody wanted it ended.
    Cancelled,
    /// It could not be started.
    NotStarted {
        why: String,
    },
    /// What became of it is not known: it ended with its node, or with its shim.
    Lost {
        why: Loss,
    },
}

impl JobEnd {
    pub fn name(&self) -> JobStateName {
        match self {
            Self::Succeeded => JobStateName::Succeeded,
            Self::Failed { .. } | Self::Killed { .. } | Self::NotStarted { .. } => JobStateName::Failed,
            Self::TimedOut => JobStateName::TimedOut,
            Self::Cancelled => JobStateName::Cancelled,
            Self::Lost { .. } => JobStateName::Lost,
        }
    }
}

/// Why it is not known what became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The node that it ran on is gone; another one has its id.
    Node,
    /// The process that watched over it was killed.
    Shim,
    /// Its directory was removed.
    Directory,
}

/// What a job that is queued waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum JobWait {
    /// The head's node is not connected.
    Node,
    /// As many jobs run as may.
    Parallel { running: u32, limit: u32 },
    /// The service that runs it is not ready.
    Service { service: ServiceKey, report: Option<WaitingService> },
    /// What it reserves is not free on the node.
    Room { needs: Limits, free: Limits },
    /// A job before it reserves what is not free yet, and what is free is kept for that one.
    Turn { after: JobId },
    /// So many are starting, and what is to run of them is as much as the node is told at once.
    Starts { starting: u32 },
    /// The pause before its next attempt.
    Pause { until: Timestamp },
    /// The cluster is being taken down.
    ClusterTakenDown,
}

/// One attempt that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Unknown if it never ran.
    #[serde(default)]
    pub started: Option<Timestamp>,
    pub ended: Timestamp,
    #[serde(flatten)]
    pub end: JobEnd,
    /// Bytes of its output that could not be kept: beyond the limit, or the disk was full.
    #[serde(default)]
    pub lost_output: u64,
}

impl Attempt {
    /// Of one job, the last so many are kept.
    pub const KEPT: usize = 20;
}

/// That somebody wants a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancellation {
    pub at: Timestamp,
    pub by: Actor,
}

/// A job for people: `cloudtik jobs list -o json`, `jobs status -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Job {
    pub id: JobId,
    pub name: JobName,
    pub state: JobStateName,
    #[serde(default)]
    pub runtime: Option<RuntimeName>,
    /// The file or program, and its arguments.
    pub command: Vec<String>,
    pub submitted: Timestamp,
    pub by: Actor,
    /// The attempt that runs, or ran last; 0 if there was none.
    pub attempt: u32,
    /// So many there may be.
    pub attempts: u32,
    /// Of the present attempt, or the last.
    #[serde(default)]
    pub started: Option<Timestamp>,
    #[serde(default)]
    pub ended: Option<Timestamp>,
    #[serde(default)]
    pub end: Option<JobEnd>,
    #[serde(default)]
    pub pid: Option<u32>,
    /// What it waits for, while it is queued.
    #[serde(default)]
    pub waits_for: Option<JobWait>,
    #[serde(default)]
    pub cancelled: Option<Cancellation>,
    /// Attempts that are over, the last [`Attempt::KEPT`].
    pub history: Vec<Attempt>,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    #[serde(default)]
    pub limits: Limits,
}

impl Job {
    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }
}

/// The jobs in `cloudtik status -o json`: those that have not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsSummary {
    pub queued: u32,
    /// Starting and running ones, the first [`Self::NAMED`] of them.
    pub running: Vec<RunningJob>,
    /// So many more run, which are not named.
    #[serde(default)]
    pub running_left_out: u32,
}

impl JobsSummary {
    pub const NAMED: usize = 20;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningJob {
    pub id: JobId,
    pub name: JobName,
    #[serde(default)]
    pub runtime: Option<RuntimeName>,
    /// Unknown while it is starting.
    #[serde(default)]
    pub started: Option<Timestamp>,
}

/// What a job is named by on the command line: its number or its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobRef {
    Id(JobId),
    Name(JobName),
}

impl std::str::FromStr for JobRef {
    type Err = crate::id::InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<u64>() {
            Ok(number) => Ok(Self::Id(JobId(number))),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

/// What the head's node has to do with jobs. A document beside the node's goal: the latest counts, it is kept on the node's disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobGoals {
    pub node: NodeId,
    pub generation: Generation,
    pub epoch: Epoch,
    /// Grows with every document that the head makes for the node, across its leaderships.
    pub version: u64,
    /// Jobs that have not ended, as far as the head knows.
    #[serde(default)]
    pub jobs: Vec<JobGoal>,
    /// Jobs that have ended and whose output is kept. What is in neither list is removed from the node.
    #[serde(default)]
    pub kept: Vec<JobId>,
}

/// One attempt of a job on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobGoal {
    pub id: JobId,
    /// From 1. A higher one begins when the one before has ended.
    pub attempt: u32,
    /// How to start it. It is started once: never if the node has begun it before, whatever became of that. Absent if it is known to
    /// have begun, or is not to begin any more.
    #[serde(default)]
    pub start: Option<JobStart>,
    /// It is to end: first by its signal, after its grace by SIGKILL; one that has not begun never does.
    #[serde(default)]
    pub cancel: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStart {
    /// Program and arguments.
    pub command: Vec<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Fetched from the head by their digests and laid into the job's directory.
    #[serde(default)]
    pub files: Vec<JobFile>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    #[serde(default)]
    pub stop: Stop,
    /// Of each of its two logs, in bytes: the last half of that at least is kept.
    pub log_max_bytes: u64,
}

/// What the agent saw of the last attempt of a job. Reported again after every reconnect until the job is in no list of the head's as one
/// that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    pub id: JobId,
    pub attempt: u32,
    #[serde(flatten)]
    pub state: JobReportState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum JobReportState {
    /// Its files are being fetched; it has not begun.
    Preparing,
    Running {
        pid: u32,
        started: Timestamp,
    },
    Ended {
        started: Timestamp,
        at: Timestamp,
        end: JobEnd,
        /// Bytes of its output that could not be kept.
        #[serde(default)]
        lost_output: u64,
    },
    /// It never began: it could not be started, was cancelled before, or is unknown here though it should have begun.
    Unstarted {
        end: JobEnd,
    },
}

impl JobReportState {
    /// Of the process that runs.
    pub fn pid(&self) -> Option<u32> {
        if let Self::Running { pid, .. } = self { Some(*pid) } else { None }
    }
}

/// What a job's two outputs are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobStream {
    Stdout,
    Stderr,
}

/// Where jobs are on their node, relative to the agent's directory.
///
/// ```text
/// jobs.json                     the latest JobGoals
/// jobs/ID/stdout  stderr        what all attempts printed, with older parts beside them
/// jobs/ID/ATTEMPT/              the files of its shim
/// jobs/ID/ATTEMPT/work/         where it runs, with its files; removed when it has ended
/// ```
pub mod layout {
    use super::{JobId, JobStream};

    pub const GOALS: &str = "jobs.json";
    pub const JOBS: &str = "jobs";

    pub fn job(id: JobId) -> String {
        format!("{JOBS}/{id}")
    }

    pub fn log(id: JobId, stream: JobStream) -> String {
        let name = match stream {
            JobStream::Stdout => "stdout",
            JobStream::Stderr => "stderr",
        };
        format!("{}/{name}", job(id))
    }

    pub fn attempt(id: JobId, attempt: u32) -> String {
        format!("{}/{attempt}", job(id))
    }

    pub fn work(id: JobId, number: u32) -> String {
        format!("{}/work", attempt(id, number))
    }
}

crate::worded::worded!(Job);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_any_text_but_those_that_lead_elsewhere() {
        let longest = "x".repeat(JobFile::MAX_NAME);
        for name in ["a b", "ä\n'\"$(x)", "-rf", "...", ".hidden", "*", &longest] {
            assert!(JobFile::is_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "/", "nul\0", &format!("{longest}x")] {
            assert!(!JobFile::is_name(name), "{name:?}");
        }
    }
}
