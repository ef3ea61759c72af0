//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use crate::completion;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: stable and documented.
    Json,
}

const EXIT_CODES: &str = "\
Exit status: 0 done, 1 failed, 2 usage, 3 invalid configuration, 4 not found,
             5 refused, by a limit or by the provider, 6 timed out or not healthy, 7 not authorised.

Get started:
  cloudtik up examples/quickstart.toml
  cloudtik status quickstart";

/// Turn a short description into a running, self-recovering cluster of analytics and AI services.
#[derive(Parser)]
#[command(name = "cloudtik", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Arguments {
    /// How data is printed.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Bring a cluster up, or make a running one what its file says now
    #[command(after_help = "\
Examples:
  cloudtik up cluster.toml             bring it up and wait until it is ready
  cloudtik up cluster.toml --plan      only show what would be made, changed or destroyed
  cloudtik up cluster.toml --timings   say where the time goes")]
    Up(Up),
    /// Take a cluster down; nothing is left behind
    #[command(after_help = "\
Examples:
  cloudtik down demo           asks first
  cloudtik down demo --yes")]
    Down(Down),
    /// Show a cluster: its phase, nodes and runtimes
    #[command(after_help = "\
Examples:
  cloudtik status demo
  cloudtik status demo --wait --timeout 60     wait until it is ready, else end with status 6
  cloudtik status demo -o json | jq .ready")]
    Status {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// Wait until the cluster is ready
        #[arg(long)]
        wait: bool,
        /// Seconds to wait at most
        #[arg(long, default_value_t = 300, value_name = "SECONDS", requires = "wait")]
        timeout: u64,
    },
    /// Show how to reach a cluster: head, consoles, directories
    #[command(after_help = "Example:\n  cloudtik info demo")]
    Info {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
    },
    /// List the nodes of a cluster
    #[command(after_help = "Example:\n  cloudtik nodes demo -o json")]
    Nodes {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
    },
    /// List the runtimes of a cluster and their consoles
    #[command(after_help = "Example:\n  cloudtik runtimes demo")]
    Runtimes {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
    },
    /// List the clusters of this user on this machine
    #[command(after_help = "Example:\n  cloudtik list")]
    List,
    /// Show what happened
    #[command(after_help = "\
Examples:
  cloudtik events demo --node w1
  cloudtik events demo -f               follow until Ctrl-C
  cloudtik events demo -f -o json       one event a line")]
    Events {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// Go on with what happens next
        #[arg(short, long)]
        follow: bool,
        /// Only of this node
        #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
        /// Start at this position
        #[arg(long, default_value_t = 0, value_name = "POSITION")]
        from: u64,
    },
    /// Explain a node, a decision, or why nothing happens
    #[command(after_help = "\
Examples:
  cloudtik why demo              who wants how many workers, what has no room, what is paused or held
  cloudtik why demo w1           evidence, verdicts and decisions about a node
  cloudtik why demo 123          a decision by its number in `cloudtik events`: inputs, alternatives, outcome")]
    Why {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A node, such as `w1`, or the number of an event
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        what: Option<String>,
    },
    /// Set how many workers there are to be, or ask for room
    #[command(after_help = "\
Examples:
  cloudtik scale demo --workers 4
  cloudtik scale demo --workers 2 --type gpu
  cloudtik scale demo --cpus 64 --memory 256GiB          room for so much, on whatever is the cheapest
  cloudtik scale demo --add --gpus 4 --gang --for 2h     beside what was asked for, all or nothing, for two hours
  cloudtik scale demo --bundles '[{\"cpus\": 4, \"memory\": \"8GiB\", \"count\": 3}]' --spread
  cloudtik requests demo                                 what is asked for, and whether it is met")]
    Scale(Scale),
    /// List what was asked for with `scale` and still stands
    #[command(after_help = "Example:\n  cloudtik requests demo -o json")]
    Requests {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
    },
    /// Take back what was asked for with `scale`
    #[command(after_help = "Example:\n  cloudtik revoke demo ask-1")]
    Revoke {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// Of the request, as `cloudtik requests` shows it
        name: String,
    },
    /// Keep the head from making, replacing and letting go of nodes by itself
    #[command(after_help = "Example:\n  cloudtik hold demo --reason \"migrating the network\"")]
    Hold {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// For those who wonder
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let the head decide again; paused node types are tried again at once
    #[command(after_help = "Example:\n  cloudtik resume demo")]
    Resume {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
    },
    /// Set a node aside: it runs on as it is, counts for money and maxima only, and is replaced where those leave room
    #[command(after_help = "Example:\n  cloudtik quarantine demo w2 --reason \"its disk is slow\"")]
    Quarantine {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
        /// For those who wonder
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Take a node back that was set aside
    #[command(after_help = "Example:\n  cloudtik release demo w2")]
    Release {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
    },
    /// See what a cluster would do, in virtual time: in a scenario, or in the recorded life of a head
    #[command(after_help = "\
Examples:
  cloudtik simulate cluster.toml --demand day.toml             how many nodes, what they cost, who waits how long
  cloudtik simulate cluster.toml --demand day.toml --decisions with every decision
  cloudtik simulate old.toml --demand day.toml --compare new.toml
  cloudtik simulate --replay record-0000000001.jsonl           every decision of a head again

Nothing is made. docs/simulate.md says what a scenario is; examples/scenarios has some. `[head] record = true` in a
cluster's file makes its head record what it hears.")]
    Simulate(Simulate),
    /// Kill a node the hard way; it is replaced if the cluster needs it
    #[command(after_help = "Example:\n  cloudtik kill-node demo w1 --yes")]
    KillNode {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Let a node go gently: stop its services, then delete it
    #[command(after_help = "Example:\n  cloudtik drain demo w2 --yes")]
    Drain {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A node, such as `w1`
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Run a command on a node, or on all
    #[command(after_help = "\
Examples:
  cloudtik exec demo -- hostname                on the head's node; the exit status is carried
  cloudtik exec demo --node w1 -t -- top        with a terminal
  cloudtik exec demo --all -- uptime            on every node at once
  cloudtik exec demo -o json -- df -h           status and output as JSON")]
    Exec(Exec),
    /// Open a shell on a node
    #[command(after_help = "Example:\n  cloudtik attach demo w1")]
    Attach {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// The node; the head's if left out
        #[arg(add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
    },
    /// Run a job on the cluster and follow it; Ctrl-C cancels it
    #[command(after_help = "\
Examples:
  cloudtik submit demo wordcount.py /usr/share/common-licenses/GPL-3
  cloudtik submit demo --runtime spark job.py -- --date 2026-01-01")]
    Submit(Submit),
    /// Show the logs of services
    #[command(after_help = "\
Examples:
  cloudtik logs demo                          of the head
  cloudtik logs demo --runtime spark -f       of all of Spark's services, on every node, as they grow
  cloudtik logs demo --node w1                of a node's agent")]
    Logs(Logs),
    /// Copy a file or folder to a node
    #[command(after_help = "Example:\n  cloudtik upload demo ./data /tmp/in --node w1")]
    Upload {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A file or folder here
        from: PathBuf,
        /// A folder there; made if it is missing
        to: String,
        /// The node; the head's if left out
        #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
    },
    /// Copy a file or folder from a node
    #[command(after_help = "Example:\n  cloudtik download demo /tmp/out ./results --node w1")]
    Download {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
        /// A file or folder there
        from: String,
        /// A folder here; made if it is missing
        to: PathBuf,
        /// The node; the head's if left out
        #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
        node: Option<String>,
    },
    /// Look for what is missing or broken, here or in a cluster
    #[command(after_help = "Examples:\n  cloudtik doctor\n  cloudtik doctor demo")]
    Doctor {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: Option<String>,
    },
    /// Print everything that the head knows, without secrets, as JSON
    #[command(after_help = "Example:\n  cloudtik dump demo > demo.json")]
    Dump {
        /// A cluster's name, or the path of its file
        #[arg(add = ArgValueCompleter::new(completion::clusters()))]
        cluster: String,
    },
    /// Work with runtimes: what is shipped, and your own
    #[command(after_help = "\
Examples:
  cloudtik runtime list
  cloudtik runtime new my-runtime
  cloudtik runtime render cluster.toml --runtime spark --node w1")]
    Runtime {
        #[command(subcommand)]
        command: Runtime,
    },
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  cloudtik completions bash > ~/.local/share/bash-completion/completions/cloudtik
  cloudtik completions zsh > ~/.zfunc/_cloudtik
  cloudtik completions fish > ~/.config/fish/completions/cloudtik.fish")]
    Completions { shell: clap_complete::Shell },
    /// Print the version
    #[command(after_help = "Example:\n  cloudtik version -o json")]
    Version,
}

#[derive(Args)]
pub struct Up {
    /// The cluster's file
    pub file: PathBuf,
    /// Only show what would be made, changed or destroyed
    #[arg(long)]
    pub plan: bool,
    /// Do not ask before something is destroyed or restarted
    #[arg(short, long)]
    pub yes: bool,
    /// Return once the head has the description, without waiting for the cluster
    #[arg(long)]
    pub no_wait: bool,
    /// Say where the time went
    #[arg(long)]
    pub timings: bool,
    /// Seconds to wait at most
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Args)]
pub struct Down {
    /// A cluster's name, or the path of its file
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Seconds for the workers to go gently; then they are deleted as they are
    #[arg(long, default_value_t = 90, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Args)]
pub struct Simulate {
    /// A cluster's file
    #[arg(required_unless_present = "replay", conflicts_with = "replay", requires = "demand", value_name = "CLUSTER.toml")]
    pub file: Option<PathBuf>,
    /// What happens to the cluster: a scenario
    #[arg(long, value_name = "FILE", requires = "file")]
    pub demand: Option<PathBuf>,
    /// Another cluster's file, to be put through the same
    #[arg(long, value_name = "OTHER.toml", requires = "demand")]
    pub compare: Option<PathBuf>,
    /// Another life with the same scenario: chance falls differently
    #[arg(long, value_name = "N", requires = "demand")]
    pub seed: Option<u64>,
    /// Print every decision, not only how many there were
    #[arg(long, requires = "demand")]
    pub decisions: bool,
    /// The recording of a head's life
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
}

#[derive(Args)]
pub struct Scale {
    /// A cluster's name, or the path of its file
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: String,
    /// Workers of a type, between its min and max
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub workers: Option<u32>,
    /// The node type of --workers
    #[arg(long = "type", value_name = "TYPE", requires = "workers")]
    pub node_type: Option<String>,
    /// Room for so many cores
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<u32>,
    /// Room for so many GPUs
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub gpus: Option<u32>,
    /// Room for so much memory, such as 64GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<cloudtik_model::Bytes>,
    /// Room for so much of the cluster's own resources
    #[arg(long, value_name = "NAME=N", value_delimiter = ',', value_parser = crate::steer::parse_resource)]
    pub resources: Vec<(String, u32)>,
    /// Room for pieces that each fit on one node: JSON, or @FILE
    #[arg(long, value_name = "JSON")]
    pub bundles: Option<String>,
    /// All of it or nothing
    #[arg(long, conflicts_with = "workers")]
    pub gang: bool,
    /// Each piece on a node of its own
    #[arg(long, conflicts_with = "workers")]
    pub spread: bool,
    /// Beside what was asked for before, and not in its place
    #[arg(long)]
    pub add: bool,
    /// Under which it is listed and revoked
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// For so long, such as 90s, 30m, 2h or 7d; then it ends by itself
    #[arg(long = "for", value_name = "TIME", value_parser = crate::steer::parse_span)]
    pub lasts: Option<std::time::Duration>,
    /// For those who wonder
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Args)]
pub struct Exec {
    /// A cluster's name, or the path of its file
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: String,
    /// The node; the head's if left out
    #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
    pub node: Option<String>,
    /// On every node at once; the exit status is the highest
    #[arg(long, conflicts_with_all = ["node", "terminal"])]
    pub all: bool,
    /// With a terminal
    #[arg(short, long)]
    pub terminal: bool,
    /// The command
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Args)]
pub struct Submit {
    /// A cluster's name, or the path of its file
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: String,
    /// The runtime that is to run it, if several take jobs
    #[arg(long, add = ArgValueCompleter::new(completion::runtimes()))]
    pub runtime: Option<String>,
    /// The job's file here; it is uploaded
    pub file: PathBuf,
    /// Arguments of the job
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

#[derive(Args)]
pub struct Logs {
    /// A cluster's name, or the path of its file
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: String,
    /// Go on as they grow
    #[arg(short, long)]
    pub follow: bool,
    /// Only of this node
    #[arg(long, add = ArgValueCompleter::new(completion::nodes()))]
    pub node: Option<String>,
    /// Of this runtime's services
    #[arg(long, add = ArgValueCompleter::new(completion::runtimes()))]
    pub runtime: Option<String>,
    /// Lines from the end of each
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    pub lines: u32,
}

#[derive(Subcommand)]
pub enum Runtime {
    /// List the runtimes that are shipped
    #[command(after_help = "Example:\n  cloudtik runtime list")]
    List,
    /// Check a runtime's folder
    #[command(after_help = "Example:\n  cloudtik runtime check ./my-runtime")]
    Check { folder: PathBuf },
    /// Show the exact files and commands of a cluster's runtime on a node, with nothing running
    #[command(after_help = "Example:\n  cloudtik runtime render cluster.toml --runtime spark --node w1")]
    Render {
        /// The cluster's file
        file: PathBuf,
        /// Only of this runtime
        #[arg(long, add = ArgValueCompleter::new(completion::runtimes()))]
        runtime: Option<String>,
        /// `head`, or a worker such as `w1`
        #[arg(long, default_value = "head")]
        node: String,
    },
    /// Make a folder to start a runtime of one's own from
    #[command(after_help = "Example:\n  cloudtik runtime new my-runtime")]
    New { name: String },
}
