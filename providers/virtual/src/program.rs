//! The verbs of `cloudtik-virtual`, the program that the provider starts.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::bridge::Found;
use crate::failure::Failure;
use crate::ground::{Ground, Work};
use crate::{boot, ground, init, remote, service};

/// Does what a verb says, in the directory that it is about. What becomes of it is written to standard output.
pub fn run(verb: Option<&str>, directory: Option<&Path>) -> ExitCode {
    match (verb, directory) {
        (Some("init"), Some(directory)) => exit(init::main(directory)),
        (Some("boot"), Some(directory)) => answer(&boot::boot(directory)),
        (Some("make-ground"), Some(workspace)) => answer(&ground::make(workspace)),
        (Some("ground"), Some(workspace)) => exit(ground::hold(workspace)),
        (Some("work"), Some(workspace)) => answer(&work(workspace)),
        (Some("remove"), Some(directory)) => answer(&ground::remove(directory)),
        (Some("start-service"), Some(nodes)) => exit(service::detach(nodes).map(drop)),
        (Some("serve"), Some(nodes)) => exit(remote::serve(nodes)),
        _ => {
            eprintln!("cloudtik-virtual is started by the virtual provider; it has no use by itself");
            ExitCode::from(2)
        }
    }
}

/// Changes the bridge of a workspace from within its namespaces.
fn work(workspace: &Path) -> Result<Found, Failure> {
    let work: Work = ground::input()?;
    Ground::of(workspace).enter()?;
    work.perform()
}

fn exit(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn answer<T: serde::Serialize, E: serde::Serialize>(result: &Result<T, E>) -> ExitCode {
    let written = serde_json::to_vec(result).map_err(io::Error::other).and_then(|text| io::stdout().write_all(&text));
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
