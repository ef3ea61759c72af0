//! The program beside the provider: what must be done in a process of its own. Not for people.

use std::path::PathBuf;
use std::process::ExitCode;

use cloudtik_virtual::program;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().and_then(|verb| verb.into_string().ok());
    program::run(verb.as_deref(), arguments.next().map(PathBuf::from).as_deref())
}
