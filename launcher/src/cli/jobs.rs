//! `jobs`: what was submitted.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::cluster::{AnyCluster, NamedCluster};
use super::values;

#[derive(Subcommand)]
pub enum Jobs {
    /// List the jobs of a cluster
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// Show a job: its state, what it waits for, its attempts
    #[command(after_help = STATUS)]
    Status(NamedJob),
    /// Print what a job printed
    #[command(after_help = LOGS)]
    Logs {
        #[command(flatten)]
        job: NamedJob,
        /// Print further output until the job has ended
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines of each of its two outputs
        #[arg(short = 'n', long, value_name = "N")]
        lines: Option<u32>,
    },
    /// Wait until a job has ended; the exit status is the job's
    #[command(after_help = WAIT)]
    Wait {
        #[command(flatten)]
        job: NamedJob,
        /// Longest time to wait, such as 90s or 2h; for ever by default
        #[arg(long, value_name = "TIME", value_parser = values::timeout)]
        timeout: Option<Duration>,
    },
    /// End a job
    #[command(after_help = CANCEL)]
    Cancel {
        #[command(flatten)]
        job: NamedJob,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Delete a job that has ended, with its output
    #[command(after_help = DELETE)]
    Delete {
        #[command(flatten)]
        job: NamedJob,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Args, Debug, Clone)]
pub struct NamedJob {
    #[command(flatten)]
    pub cluster: NamedCluster,
    /// Name or number of the job, as shown by `cloudtik jobs list`
    pub job: String,
}

pub const JOBS: &str = "\
A job runs on the head's node, whatever becomes of the command that submitted
it. It is kept with its output after its end, as `[jobs]` of the cluster's file
says.

Examples:
  # Submit a job, and leave it to itself
  cloudtik submit demo --detach report.py

  # See what there is, and what came of it
  cloudtik jobs list demo
  cloudtik jobs logs demo report-7";

const LIST: &str = "\
Examples:
  # List the jobs of the cluster \"demo\"
  cloudtik jobs list demo

  # Print the names of those that failed
  cloudtik jobs list demo -o json | jq -r '.[]|select(.state==\"failed\").name'";

const STATUS: &str = "\
Examples:
  # Show a job, by its name or its number
  cloudtik jobs status demo report-7
  cloudtik jobs status demo 7";

const LOGS: &str = "\
What the job wrote to its standard error goes to standard error.

Examples:
  # Print all that a job printed so far, and what it will print
  cloudtik jobs logs demo report-7 -f

  # Keep the results of a job
  cloudtik jobs logs demo report-7 > results.txt 2> log.txt";

const WAIT: &str = "\
Examples:
  # Wait for a job, for an hour at most
  cloudtik jobs wait demo report-7 --timeout 1h && echo \"it succeeded\"";

const CANCEL: &str = "\
Examples:
  # End a job: by SIGTERM, and after ten seconds by SIGKILL
  cloudtik jobs cancel demo report-7 --wait";

const DELETE: &str = "\
Examples:
  # Delete a job and its output without a question
  cloudtik jobs delete demo report-7 --yes";
