//! What can be typed.

mod access;
mod cache;
mod cluster;
mod examples;
mod jobs;
mod provider;
mod rollout;
mod runtime;
mod submit;
mod values;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::engine::ArgValueCompleter;

pub use self::access::Access;
pub use self::cache::Cache;
pub use self::cluster::{AnyCluster, NamedCluster, Target};
pub use self::jobs::{Jobs, NamedJob};
pub use self::provider::Provider;
pub use self::rollout::RolloutCommand;
pub use self::runtime::Runtime;
pub use self::submit::Submit;
pub use self::workspace::{ChangeWorkspace, DeleteWorkspace, Workspace};
use crate::completion;
pub use crate::output::Format;
use crate::output::has_colour;

/// Reads the command line. Help and errors carry codes only where both streams take them; clap alone also goes by whether
/// `CI` is set.
pub fn parse() -> Result<Arguments, clap::Error> {
    let takes_codes = has_colour(&std::io::stdout()) && has_colour(&std::io::stderr());
    let colour = if takes_codes { ColorChoice::Auto } else { ColorChoice::Never };
    Arguments::from_arg_matches(&Arguments::command().color(colour).try_get_matches()?)
}

/// Create and run self-recovering clusters of analytics and AI services
#[derive(Parser)]
#[command(name = "cloudtik", version, after_help = examples::EXIT_CODES, max_term_width = examples::COLUMNS)]
pub struct Arguments {
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Create a cluster, or apply the changes of its file to a running one
    #[command(after_help = examples::UP)]
    Up(Up),
    /// Delete a cluster, with all of its nodes
    #[command(after_help = examples::DOWN)]
    Down(Down),
    /// Show a cluster: its phase, nodes, runtimes and consoles
    #[command(after_help = examples::STATUS)]
    Status {
        #[command(flatten)]
        cluster: AnyCluster,
        /// Wait until the cluster is ready
        #[arg(long)]
        wait: bool,
        /// Longest time to wait, such as 90s or 5m
        #[arg(long, default_value = "5m", value_name = "TIME", requires = "wait", value_parser = values::timeout)]
        timeout: Duration,
        /// Show every change until Ctrl-C
        #[arg(short, long, conflicts_with = "wait")]
        watch: bool,
    },
    /// Show how to reach a cluster: head, consoles, directories
    #[command(after_help = examples::INFO)]
    Info {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// List the nodes of a cluster
    #[command(after_help = examples::NODES)]
    Nodes {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// List the services of a cluster's runtimes, and their consoles
    #[command(after_help = examples::RUNTIMES)]
    Runtimes {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// List your clusters on this machine
    #[command(after_help = examples::LIST)]
    List,
    /// List the events of a cluster
    #[command(after_help = examples::EVENTS)]
    Events {
        #[command(flatten)]
        cluster: AnyCluster,
        /// Print new events as they happen
        #[arg(short, long)]
        follow: bool,
        /// Only events of this node
        #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
        /// First event to print, by its number
        #[arg(long, default_value_t = 0, value_name = "POSITION")]
        from: u64,
    },
    /// Explain a cluster's size, a node's state, a job or a decision
    #[command(after_help = examples::WHY)]
    Why {
        #[command(flatten)]
        cluster: AnyCluster,
        /// Node, such as `w1`, name of a job, or the number of an event
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        what: Option<String>,
    },
    /// Request workers, or resources for work
    #[command(after_help = examples::SCALE)]
    Scale(Scale),
    /// List the requests that were made with `scale`
    #[command(after_help = examples::REQUESTS)]
    Requests {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// Withdraw a request that was made with `scale`
    ///
    /// Workers that become free are removed once they have been idle for the
    /// cluster's `idle_after`, as every idle worker is.
    #[command(after_help = examples::REVOKE)]
    Revoke {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Name of the request, as shown by `cloudtik requests`
        name: String,
        /// Remove idle workers without waiting for `idle_after`
        #[arg(long)]
        now: bool,
    },
    /// Stop the head from creating, replacing and removing nodes
    #[command(after_help = examples::HOLD)]
    Hold {
        #[command(flatten)]
        cluster: AnyCluster,
        /// Reason, shown to other users
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// End a hold, and retry paused node types at once
    #[command(after_help = examples::RESUME)]
    Resume {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// Show, resume or undo the roll-out of a new revision
    #[command(after_help = examples::ROLLOUT)]
    Rollout {
        #[command(subcommand)]
        command: RolloutCommand,
    },
    /// Set a node aside: it keeps running and is replaced within limits
    #[command(after_help = examples::QUARANTINE)]
    Quarantine {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
        /// Reason, shown to other users
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Return a quarantined node to its cluster
    #[command(after_help = examples::RELEASE)]
    Release {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
    },
    /// Simulate a cluster in virtual time, or replay a head's recording
    #[command(after_help = examples::SIMULATE)]
    Simulate(Simulate),
    /// Kill a node at once; it is replaced if the cluster needs it
    #[command(after_help = examples::KILL_NODE)]
    KillNode {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
    /// Stop the services of a node gracefully, then delete the node
    #[command(after_help = examples::DRAIN)]
    Drain {
        #[command(flatten)]
        cluster: NamedCluster,
        /// Node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
        /// Wait until the node is deleted
        #[arg(long)]
        wait: bool,
        /// Longest time to wait, such as 90s or 5m
        #[arg(long, default_value = "5m", value_name = "TIME", requires = "wait", value_parser = values::timeout)]
        timeout: Duration,
    },
    /// Run a command on a node, or on all nodes
    #[command(after_help = examples::EXEC)]
    Exec(Exec),
    /// Open a shell on a node
    #[command(after_help = examples::ATTACH)]
    Attach {
        #[command(flatten)]
        cluster: AnyCluster,
        /// Node, such as `w1`; the head's node by default
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
    },
    /// Run a job on a cluster and follow it
    #[command(
        override_usage = "cloudtik submit [OPTIONS] <CLUSTER> <FILE> [ARGUMENT]...",
        after_help = examples::SUBMIT
    )]
    Submit(Submit),
    /// List, follow, wait for, cancel and delete jobs
    #[command(after_help = jobs::JOBS)]
    Jobs {
        #[command(subcommand)]
        command: Jobs,
    },
    /// Print the logs of services
    #[command(after_help = examples::LOGS)]
    Logs(Logs),
    /// Copy a file or folder to a node
    #[command(after_help = examples::UPLOAD)]
    Upload {
        #[command(flatten)]
        cluster: NamedCluster,
        /// File or folder on this machine
        from: PathBuf,
        /// Folder on the node, or new name there
        to: OsString,
        /// Node, such as `w1`; the head's node by default
        #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
    },
    /// Copy a file or folder from a node
    #[command(after_help = examples::DOWNLOAD)]
    Download {
        #[command(flatten)]
        cluster: NamedCluster,
        /// File or folder on the node
        from: OsString,
        /// Folder on this machine, or new name here
        to: PathBuf,
        /// Node, such as `w1`; the head's node by default
        #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
    },
    /// Check this machine, and optionally a cluster, for problems
    #[command(after_help = examples::DOCTOR)]
    Doctor {
        /// Name of a cluster, or path of its file, to be checked too
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: Option<String>,
        /// Workspace of the cluster, if several have one of that name
        #[arg(long, requires = "cluster", add = ArgValueCompleter::new(completion::workspaces()))]
        workspace: Option<String>,
    },
    /// Grant others access to a cluster, or accept access to theirs
    #[command(after_help = examples::ACCESS)]
    Access {
        #[command(subcommand)]
        command: Access,
    },
    /// Print everything that the head knows as JSON, without secrets
    #[command(after_help = examples::DUMP)]
    Dump {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// List or remove the software that this machine keeps for clusters
    #[command(after_help = examples::CACHE)]
    Cache {
        #[command(subcommand)]
        command: Cache,
    },
    /// Create and look after workspaces: what clusters share
    #[command(after_help = workspace::WORKSPACE)]
    Workspace {
        #[command(subcommand)]
        command: Workspace,
    },
    /// List the shipped runtimes; write and check your own
    #[command(after_help = examples::RUNTIME)]
    Runtime {
        #[command(subcommand)]
        command: Runtime,
    },
    /// List the providers of machines; check one of your own
    #[command(after_help = examples::PROVIDER)]
    Provider {
        #[command(subcommand)]
        command: Provider,
    },
    /// Print the completion script of a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// Shell that the script is for
        shell: clap_complete::Shell,
    },
    /// Write a commented cluster file to start from
    #[command(after_help = examples::INIT)]
    Init {
        /// File to write; `-` is standard output
        #[arg(default_value = "cluster.toml")]
        file: PathBuf,
        /// Name of the cluster
        #[arg(long, default_value = "demo")]
        name: cloudtik_model::ClusterName,
    },
    /// Check cluster files without creating anything
    #[command(after_help = examples::VALIDATE)]
    Validate {
        /// Cluster files; `-` is standard input
        #[arg(required = true, value_name = "FILE", add = ArgValueCompleter::new(completion::files()))]
        files: Vec<PathBuf>,
    },
    /// Print the version
    #[command(after_help = examples::VERSION)]
    Version,
}

impl Command {
    /// Whether nothing is left to do once nobody reads what the command prints.
    pub fn is_only_output(&self) -> bool {
        matches!(self, Self::Events { .. } | Self::Logs(_) | Self::Status { watch: true, .. } | Self::Jobs { command: Jobs::Logs { .. } })
    }
}

#[derive(Args)]
pub struct Up {
    /// Cluster file; `-` is standard input
    #[arg(add = ArgValueCompleter::new(completion::files()))]
    pub file: PathBuf,
    /// Only show what would be created, changed or destroyed
    #[arg(long)]
    pub plan: bool,
    /// Do not ask before nodes are destroyed or services restarted
    #[arg(short, long)]
    pub yes: bool,
    /// Return once the head has the file, without waiting for the cluster
    #[arg(long)]
    pub no_wait: bool,
    /// Print how long each step took
    #[arg(long)]
    pub timings: bool,
    /// Longest time to wait, such as 90s or 30m
    #[arg(long, default_value = "30m", value_name = "TIME", value_parser = values::timeout)]
    pub timeout: Duration,
}

#[derive(Args)]
pub struct Down {
    #[command(flatten)]
    pub cluster: NamedCluster,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
    /// Succeed if there is no such cluster
    #[arg(long)]
    pub if_exists: bool,
    /// Longest time for workers to stop gracefully; then they are killed
    #[arg(long, default_value = "90s", value_name = "TIME", value_parser = values::timeout)]
    pub timeout: Duration,
}

#[derive(Args)]
pub struct Simulate {
    /// Cluster file; `-` is standard input
    #[arg(required_unless_present = "replay", conflicts_with = "replay", requires = "demand", value_name = "CLUSTER.toml")]
    pub file: Option<PathBuf>,
    /// Scenario: the demand on the cluster, and its mishaps
    #[arg(long, value_name = "FILE", requires = "file")]
    pub demand: Option<PathBuf>,
    /// Second cluster file, to be simulated in the same scenario
    #[arg(long, value_name = "OTHER.toml", requires = "demand")]
    pub compare: Option<PathBuf>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", requires = "demand")]
    pub seed: Option<u64>,
    /// Print every decision, not only their number
    #[arg(long, requires = "demand")]
    pub decisions: bool,
    /// Recording of a head to replay
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
}

#[derive(Args)]
pub struct Scale {
    #[command(flatten)]
    pub cluster: AnyCluster,
    /// Number of workers of a type, between its min and max
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub workers: Option<u32>,
    /// Node type of --workers
    #[arg(long = "type", value_name = "TYPE", requires = "workers")]
    pub node_type: Option<String>,
    /// Room for this number of cores
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<u32>,
    /// Room for this number of GPUs
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub gpus: Option<u32>,
    /// Room for this much memory, such as 64Gi
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<cloudtik_model::Bytes>,
    /// Room for these amounts of the cluster's custom resources
    #[arg(long, value_name = "NAME=N", value_delimiter = ',', value_parser = values::resource)]
    pub resources: Vec<(String, u32)>,
    /// Room for bundles that each fit on one node: JSON, or @FILE
    #[arg(long, value_name = "JSON")]
    pub bundles: Option<String>,
    /// All of it, or nothing
    #[arg(long, conflicts_with = "workers")]
    pub gang: bool,
    /// Each bundle on a node of its own
    #[arg(long, conflicts_with = "workers")]
    pub spread: bool,
    /// Add the request to earlier ones instead of replacing them
    #[arg(long)]
    pub add: bool,
    /// Name of the request
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Lifetime of the request, such as 90s, 30m, 2h or 7d
    #[arg(long = "for", value_name = "TIME", value_parser = values::span)]
    pub lasts: Option<Duration>,
    /// Wait until the request is met
    #[arg(long)]
    pub wait: bool,
    /// Longest time to wait, such as 90s or 5m
    #[arg(long, default_value = "5m", value_name = "TIME", requires = "wait", value_parser = values::timeout)]
    pub timeout: Duration,
    /// Reason, shown to other users
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Args)]
pub struct Exec {
    #[command(flatten)]
    pub cluster: AnyCluster,
    /// Node, such as `w1`; the head's node by default
    #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
    pub node: Option<String>,
    /// Run it on every node; the exit status is the highest one
    #[arg(long, conflicts_with_all = ["node", "terminal"])]
    pub all: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub terminal: bool,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Args)]
pub struct Logs {
    #[command(flatten)]
    pub cluster: AnyCluster,
    /// Print new lines as they are written
    #[arg(short, long)]
    pub follow: bool,
    /// Only logs of this node
    #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
    pub node: Option<String>,
    /// Only logs of this runtime's services
    #[arg(long, add = ArgValueCompleter::new(completion::runtimes()))]
    pub runtime: Option<String>,
    /// Number of lines from the end of each log
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    pub lines: u32,
}
