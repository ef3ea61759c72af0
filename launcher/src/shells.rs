//! How shells ask for completions: the script that a shell runs, and the command by which a line is completed.

use std::ffi::OsString;

use clap::{Arg, CommandFactory, Parser};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, PathCompleter};
use clap_complete::env::Shells;

use crate::cli::{Arguments, Command};
use crate::failure::{Failure, USAGE};
use crate::output::Printer;

/// Prints what a shell runs to know how to ask.
pub fn print(printer: &Printer, shell: Shell) -> Result<(), Failure> {
    let (shells, name) = (Shells::builtins(), shell.to_string());
    let known = shells.completer(&name).ok_or_else(|| Failure::new(USAGE, format!("there are no completions for {name}")))?;
    let mut out = Vec::new();
    known.write_registration("COMPLETE", "cloudtik", "cloudtik", "cloudtik", &mut out)?;
    printer.raw(&out);
    Ok(())
}

/// The command by which a line is completed. What follows a job's file is the job's: no flag of ours is offered there.
pub fn command() -> clap::Command {
    if !completes_job() {
        return Arguments::command();
    }
    let words = Arg::new("words").num_args(0..).allow_hyphen_values(true).add(ArgValueCompleter::new(PathCompleter::file()));
    let submit = clap::Command::new("submit").disable_help_flag(true).arg(words);
    clap::Command::new("cloudtik").disable_help_flag(true).disable_help_subcommand(true).subcommand(submit)
}

/// Whether the word that a shell asks about comes after a job's file: what stands before it is a whole command.
fn completes_job() -> bool {
    let words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    let asked = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|index| index.parse().ok());
    let before = words.get(..asked.unwrap_or(words.len().saturating_sub(1))).unwrap_or_default();
    // Flags before the command would have to be known to skip them.
    before.get(1).is_some_and(|word| word == "submit")
        && Arguments::try_parse_from(before).is_ok_and(|read| matches!(read.command, Command::Submit(_)))
}
