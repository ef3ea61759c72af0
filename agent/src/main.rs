//! The agent: one per node, the head's node too.
//!
//! Owns: the node's link to its head, its health, the convergence to its goal and the processes that follow from it.
//! Must never: know a runtime or a provider by name, or decide what the node is to run.

mod artifacts;
mod cgroup;
mod clock;
mod converge;
mod dialer;
mod environment;
mod epoch;
mod exec;
mod facts;
mod fetch;
mod gauge;
mod health;
mod home;
mod identity;
mod jobs;
mod link;
mod load;
mod memory;
mod metrics;
mod probe;
mod process;
mod pty;
mod reports;
mod run;
mod service;
mod shim;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cloudtik-agent", version, about = "The agent on every node of a CloudTik cluster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node's agent.
    Run {
        /// The agent's directory, which holds bootstrap.json.
        #[arg(long)]
        home: PathBuf,
        /// Return at once and go on in the background.
        #[arg(long)]
        detach: bool,
        /// Become the leader of a session of its own (what --detach starts).
        #[arg(long, hide = true)]
        lead_session: bool,
    },
    /// Own one process of a service or a job (started by `run`).
    #[command(hide = true)]
    Shim {
        /// The shim's directory.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Shim { directory } => return shim::main(&directory),
        Command::Run { home, detach: true, .. } => run::detach(&home),
        Command::Run { home, lead_session, .. } => run::main(&home, lead_session),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
