//! `cloudtik`, the command line.
//!
//! Owns: what a person types and sees, making a workspace and a head, and talking to the head as any other client does.
//! Must never: decide what a cluster does, or do what the head can do.

mod access;
mod cache;
mod chart;
mod cli;
mod client;
mod cluster_statuses;
mod clusters;
mod completion;
mod described;
mod doctor;
mod down;
mod events;
mod exec;
mod failing;
mod failure;
mod fold;
mod head_node;
mod init;
mod interrupts;
mod jobs;
mod lock;
mod logs;
mod orphans;
mod output;
mod pause;
mod programs;
mod provider;
mod reader;
mod remote;
mod rollout;
mod runtime;
mod session;
mod shells;
mod show;
mod simulate;
mod statuses;
mod steer;
mod streams;
mod submit;
mod takeover;
mod terminal;
mod transfer;
mod up;
mod validate;
mod waits;
mod watch;
mod workspace;
mod zone;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::cli::{Command, Format, Target};
use crate::failure::{Failure, USAGE};
use crate::output::Printer;
use crate::reader::while_read;

fn main() -> ExitCode {
    // Answers a shell that asks how a line can go on, and ends; else nothing.
    clap_complete::CompleteEnv::with_factory(shells::command).complete();
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(error)
            if error.use_stderr()
                && let Some(failure) = missing_separator(&error) =>
        {
            let format = if wants_json(std::env::args_os()) { Format::Json } else { Format::Text };
            Printer::new(format).failure(&failure);
            return ExitCode::from(failure.code);
        }
        // Programs are told in their own way what is wrong with a line.
        Err(error) if error.use_stderr() && wants_json(std::env::args_os()) => {
            let text = error.to_string();
            let message = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            let (message, hint) = message.split_once("\n\n").map_or((message, None), |(first, rest)| (first, Some(rest.trim())));
            let failure = Failure { hint: hint.map(str::to_owned), ..Failure::new(USAGE, message) };
            Printer::new(Format::Json).failure(&failure);
            return ExitCode::from(USAGE);
        }
        Err(error) if error.use_stderr() => error.exit(),
        // Help, or the version.
        Err(error) => {
            let printer = Printer::new(Format::Text);
            printer.wrote(error.print().and_then(|()| std::io::stdout().flush()));
            return ExitCode::from(printer.finish(Ok(0)));
        }
    };
    let printer = Printer::new(arguments.output);
    cloudtik_protocol::tls::install_crypto();
    let result = match arguments.command {
        // What needs no head needs no runtime either.
        Command::Completions { shell } => shells::print(&printer, shell).map(|()| 0),
        Command::Version => {
            printer.version();
            Ok(0)
        }
        Command::Init { file, name } => init::run(&printer, &file, &name).map(|()| 0),
        Command::Validate { files } => validate::run(&printer, &files).map(|()| 0),
        Command::Simulate(arguments) => simulate::run(&printer, &arguments),
        Command::Runtime { command } => runtime::run(&printer, command).map(|()| 0),
        command => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let is_only_output = command.is_only_output();
                let result = runtime.block_on(async {
                    tokio::select! {
                        result = run(&printer, command) => result,
                        () = printer.output_ended(), if is_only_output => Ok(0),
                    }
                });
                // A thread that reads a terminal must not hold up the end.
                runtime.shutdown_background();
                result
            }
            Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
        },
    };
    ExitCode::from(printer.finish(result))
}

/// Whether a line lacks nothing but the `--` of `exec`.
fn missing_separator(error: &clap::Error) -> Option<Failure> {
    let line: Vec<_> = std::env::args_os().collect();
    matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::MissingRequiredArgument)
        .then(|| exec::typed::without_separator(&line))?
}

/// Whether a line that cannot be read asks for JSON.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let all: Vec<String> = arguments.take_while(|argument| argument != "--").map(|a| a.to_string_lossy().into_owned()).collect();
    let joined = all.iter().any(|argument| ["-ojson", "-o=json", "--output=json"].contains(&argument.as_str()));
    joined || all.windows(2).any(|pair| ["-o", "--output"].contains(&pair[0].as_str()) && pair[1] == "json")
}

/// Runs a command; the number is the exit status, which some commands carry from elsewhere.
async fn run(printer: &Printer, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Up(arguments) => up::run(printer, &arguments).await.map(|()| 0),
        Command::Down(arguments) => down::run(printer, &arguments).await.map(|()| 0),
        Command::Status { cluster, watch: true, .. } => while_read(watch::status(printer, (&cluster).into())).await.map(|()| 0),
        Command::Status { cluster, wait, timeout, .. } => {
            show::status(printer, (&cluster).into(), wait.then_some(timeout)).await.map(|()| 0)
        }
        Command::Info { cluster } => show::info(printer, (&cluster).into()).await.map(|()| 0),
        Command::Nodes { cluster } => show::nodes(printer, (&cluster).into()).await.map(|()| 0),
        Command::Runtimes { cluster } => show::runtimes(printer, (&cluster).into()).await.map(|()| 0),
        Command::List => show::list(printer).await.map(|()| 0),
        Command::Events { cluster, follow: true, node, from } => {
            while_read(events::events(printer, (&cluster).into(), true, node, from)).await.map(|()| 0)
        }
        Command::Events { cluster, follow, node, from } => events::events(printer, (&cluster).into(), follow, node, from).await.map(|()| 0),
        Command::Why { cluster, what } => events::why(printer, (&cluster).into(), what).await.map(|()| 0),
        Command::Scale(arguments) => steer::scale(printer, &arguments).await.map(|()| 0),
        Command::Requests { cluster } => steer::requests(printer, (&cluster).into()).await.map(|()| 0),
        Command::Revoke { cluster, name, now } => steer::revoke(printer, (&cluster).into(), &name, now).await.map(|()| 0),
        Command::Hold { cluster, reason } => steer::hold(printer, (&cluster).into(), reason).await.map(|()| 0),
        Command::Resume { cluster } => steer::resume(printer, (&cluster).into()).await.map(|()| 0),
        Command::Cache { command } => cache::run(printer, &command).await.map(|()| 0),
        Command::Rollout { command } => rollout::run(printer, command).await.map(|()| 0),
        Command::Quarantine { cluster, node, reason } => steer::quarantine(printer, (&cluster).into(), &node, reason).await.map(|()| 0),
        Command::Release { cluster, node } => steer::release(printer, (&cluster).into(), &node).await.map(|()| 0),
        Command::KillNode { cluster, node, yes } => steer::kill_node(printer, (&cluster).into(), &node, yes).await.map(|()| 0),
        Command::Drain { cluster, node, yes, wait, timeout } => {
            steer::drain(printer, (&cluster).into(), &node, yes, wait.then_some(timeout)).await.map(|()| 0)
        }
        Command::Exec(arguments) => exec::exec(printer, &arguments).await,
        Command::Attach { cluster, node } => exec::attach(printer, (&cluster).into(), node).await,
        Command::Submit(arguments) => submit::submit(printer, &arguments).await,
        Command::Jobs { command } => jobs::run(printer, command).await,
        Command::Logs(arguments) if arguments.follow => while_read(logs::logs(printer, &arguments)).await.map(|()| 0),
        Command::Logs(arguments) => logs::logs(printer, &arguments).await.map(|()| 0),
        Command::Upload { cluster, from, to, node } => transfer::upload(printer, (&cluster).into(), &from, &to, node).await.map(|()| 0),
        Command::Download { cluster, from, to, node } => transfer::download(printer, (&cluster).into(), &from, &to, node).await.map(|()| 0),
        Command::Doctor { cluster, workspace } => {
            let target = cluster.as_deref().map(|cluster| Target { cluster: Some(cluster), workspace: workspace.as_deref() });
            doctor::run(printer, target).await
        }
        Command::Provider { command } => provider::run(printer, command).await,
        Command::Access { command } => access::run(printer, command).await.map(|()| 0),
        Command::Workspace { command } => workspace::run(printer, &command).await.map(|()| 0),
        Command::Dump { cluster } => show::dump(printer, (&cluster).into()).await.map(|()| 0),
        Command::Completions { .. }
        | Command::Version
        | Command::Init { .. }
        | Command::Validate { .. }
        | Command::Runtime { .. }
        | Command::Simulate(_) => Ok(0),
    }
}
