//! Tab completion: of commands and flags, and of the names of workspaces, clusters, their nodes and the shipped runtimes. Shells ask
//! this program each time, so that what they offer is what there is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use clap::{Arg, CommandFactory, Parser};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use clap_complete::env::Shells;
use cloudtik_model::{NodeId, natural};
use cloudtik_runtimes::Catalog;

use crate::cli::{Arguments, Command};
use crate::clusters;
use crate::failure::{Failure, USAGE};
use crate::output::Printer;
use crate::workspace;

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

fn matching(current: &OsStr, all: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    all.filter(|name| name.starts_with(&*current)).map(CompletionCandidate::new).collect()
}

/// Names of this user's clusters, and files that describe one.
pub fn clusters() -> impl ValueCompleter {
    |current: &OsStr| {
        let mut found = matching(current, clusters::all().unwrap_or_default().into_iter().map(|place| place.name.to_string()));
        found.extend(files().complete(current));
        found
    }
}

/// Files that may describe a cluster.
pub fn files() -> impl ValueCompleter {
    |current: &OsStr| {
        let is_toml = |path: &std::path::Path| path.extension().is_some_and(|e| e == "toml");
        clap_complete::engine::PathCompleter::file().filter(is_toml).complete(current)
    }
}

/// Names of this user's workspaces, and of those of clusters that the user was given access to.
pub fn workspaces() -> impl ValueCompleter {
    |current: &OsStr| {
        let own = workspace::names().unwrap_or_default().into_iter().map(String::from);
        let places = clusters::all().unwrap_or_default();
        let mut names: Vec<String> = own.chain(places.iter().map(|place| place.workspace_name())).collect();
        names.sort_by(|a, b| natural::compare(a, b));
        names.dedup();
        matching(current, names.into_iter())
    }
}

/// Names of this user's workspaces, and files that describe one.
pub fn workspaces_and_files() -> impl ValueCompleter {
    |current: &OsStr| {
        let mut found = matching(current, workspace::names().unwrap_or_default().into_iter().map(String::from));
        found.extend(files().complete(current));
        found
    }
}

/// Nodes of this user's clusters: which cluster is meant is not known while a line is being typed.
pub fn nodes() -> impl ValueCompleter {
    |current: &OsStr| {
        let places = clusters::all().unwrap_or_default();
        let instances = places.iter().filter_map(|place| std::fs::read_dir(place.nodes()).ok()).flatten().flatten();
        let names = instances.filter_map(|i| Some(i.file_name().to_string_lossy().rsplit_once('.')?.0.to_owned()));
        let names: BTreeSet<NodeId> = names.filter_map(|name| name.parse().ok()).collect();
        let names = names.iter().map(NodeId::to_string);
        matching(current, names)
    }
}

pub fn runtimes() -> impl ValueCompleter {
    |current: &OsStr| matching(current, Catalog::shipped().iter().map(|m| m.name.to_string()))
}
