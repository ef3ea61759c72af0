//! The verbs of `cloudtik-virtual`, the program that the provider starts.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::{boot, init};

/// Does what a verb says, in the directory that it is about. What becomes of it is written to standard output.
pub fn run(verb: Option<&str>, directory: Option<&Path>) -> ExitCode {
    match (verb, directory) {
        (Some("init"), Some(directory)) => match init::main(directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        (Some("boot"), Some(directory)) => answer(&boot::boot(directory)),
        _ => {
            eprintln!("cloudtik-virtual is started by the virtual provider; it has no use by itself");
            ExitCode::from(2)
        }
    }
}

fn answer<T: serde::Serialize, E: serde::Serialize>(result: &Result<T, E>) -> ExitCode {
    let written = serde_json::to_vec(result).map_err(io::Error::other).and_then(|text| io::stdout().write_all(&text));
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
