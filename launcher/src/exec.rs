//! `exec` and `attach`: a program on one node or on all.

pub mod typed;

use std::io::IsTerminal;

use cloudtik_model::natural;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Exec, Target};
use crate::client::Client;
use crate::failure::{Failure, USAGE};
use crate::output::Printer;
use crate::session::{Lines, Reading, Session, Stream, exit_status, forward_input};
use crate::terminal::{RawMode, size};

/// The exit status of a program whose terminal is gone: 128 + SIGHUP.
const HUNG_UP: u8 = 129;

/// What a program said and how it ended, for programs.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub node: String,
    pub exit_code: u8,
    pub stdout: String,
    pub stderr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Outcome {
    /// Follows a program to its end, keeping what it says.
    pub async fn of(node: &str, session: &mut Session) -> Result<Self, Failure> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit_code = session
            .follow(|stream, bytes| {
                match stream {
                    Stream::Out => stdout.extend_from_slice(bytes),
                    Stream::Error => stderr.extend_from_slice(bytes),
                }
                Reading::GoesOn
            })
            .await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self { node: node.to_owned(), exit_code, stdout: text(stdout), stderr: text(stderr), error: None })
    }
}

pub async fn exec(printer: &Printer, arguments: &Exec) -> Result<u8, Failure> {
    let client = Client::connect(&arguments.cluster).await?;
    let line = format!("cloudtik exec {}", client.place.name);
    if arguments.all {
        return exec_all(printer, &client, &arguments.command, &format!("{line} --all")).await;
    }
    let line = arguments.node.as_ref().map_or_else(|| line.clone(), |node| format!("{line} --node {node}"));
    exec_one(printer, &client, arguments).await.map_err(|failure| match typed::hint(&line, failure.code, &arguments.command) {
        Some(hint) if failure.hint.is_none() => failure.hint(hint),
        _ => failure,
    })
}

async fn exec_one(printer: &Printer, client: &Client, arguments: &Exec) -> Result<u8, Failure> {
    let node = arguments.node.as_deref().unwrap_or("head");
    if arguments.terminal {
        return in_terminal(printer, client, node, arguments.command.clone()).await;
    }
    let execute = wire::Execute { command: arguments.command.clone(), ..Default::default() };
    let mut session = Session::open(client, node, What::Execute(execute)).await?;
    forward_input(vec![session.input.clone()]);
    if printer.is_json() {
        let outcome = Outcome::of(node, &mut session).await?;
        printer.json(&outcome);
        return Ok(outcome.exit_code);
    }
    session.follow(|stream, bytes| printer.copy(stream, bytes)).await
}

/// Runs a command on every node at once; each gets a copy of the input, if somebody pipes one in.
async fn exec_all(printer: &Printer, client: &Client, command: &[String], line: &str) -> Result<u8, Failure> {
    let nodes: Vec<String> = client.status().await?.nodes.iter().filter(|n| n.agent.is_some()).map(|n| n.id.to_string()).collect();
    let (mut running, mut inputs) = (tokio::task::JoinSet::new(), Vec::new());
    let has_input = !std::io::stdin().is_terminal();
    let is_json = printer.is_json();
    for node in nodes {
        let execute = wire::Execute { command: command.to_vec(), ..Default::default() };
        let opened = Session::open(client, &node, What::Execute(execute)).await;
        if let Ok(session) = &opened {
            if has_input {
                inputs.push(session.input.clone());
            } else {
                session.input.tell(Frame::EndOfInput(true)).await;
            }
        }
        let printer = printer.clone();
        running.spawn(async move {
            let result = async {
                let mut session = opened?;
                if is_json {
                    return Outcome::of(&node, &mut session).await;
                }
                let (mut out, mut error) = (Lines::default(), Lines::default());
                let prefixed = |stream, lines: Vec<String>| {
                    let text: String = lines.iter().map(|line| format!("{node}: {line}\n")).collect();
                    printer.copy(stream, text.as_bytes())
                };
                let exit_code = session
                    .follow(|stream, bytes| {
                        let lines = if stream == Stream::Out { &mut out } else { &mut error };
                        prefixed(stream, lines.take(bytes))
                    })
                    .await?;
                for (stream, lines) in [(Stream::Out, &mut out), (Stream::Error, &mut error)] {
                    let _ = prefixed(stream, lines.rest().into_iter().collect());
                }
                Ok(Outcome { node: node.clone(), exit_code, stdout: String::new(), stderr: String::new(), error: None })
            };
            let failed = |failure: Failure| Outcome {
                node: node.clone(),
                exit_code: failure.code,
                stdout: String::new(),
                stderr: String::new(),
                error: Some(failure.message),
            };
            result.await.unwrap_or_else(failed)
        });
    }
    if has_input {
        forward_input(inputs);
    }
    let mut outcomes = Vec::new();
    while let Some(joined) = running.join_next().await {
        let outcome = joined.map_err(|e| Failure::failed(e.to_string()))?;
        match &outcome.error {
            _ if is_json => {}
            Some(error) => printer.say(&format!("{}: {error}", outcome.node)),
            None if outcome.exit_code != 0 => printer.say(&format!("{}: ended with status {}", outcome.node, outcome.exit_code)),
            None => {}
        }
        outcomes.push(outcome);
    }
    outcomes.sort_by(|a, b| natural::compare(&a.node, &b.node));
    if is_json {
        printer.json(&outcomes);
    } else if let Some(hint) =
        outcomes.iter().find_map(|outcome| outcome.error.as_ref().and_then(|_| typed::hint(line, outcome.exit_code, command)))
    {
        printer.say(&format!("\nhint: {hint}"));
    }
    Ok(outcomes.iter().map(|o| o.exit_code).max().unwrap_or(0))
}

pub async fn attach(printer: &Printer, cluster: Target<'_>, node: Option<String>) -> Result<u8, Failure> {
    let client = Client::connect(cluster).await?;
    let shell = vec!["sh".to_owned(), "-c".to_owned(), "exec \"${SHELL:-/bin/bash}\" -l".to_owned()];
    in_terminal(printer, &client, node.as_deref().unwrap_or("head"), shell).await
}

async fn in_terminal(printer: &Printer, client: &Client, node: &str, command: Vec<String>) -> Result<u8, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(USAGE, "there is no terminal here").hint("leave out -t, or use `exec` instead of `attach`"));
    }
    let current = || size().map(|(rows, columns)| wire::TerminalSize { rows, columns });
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    let execute =
        wire::Execute { command, terminal: true, size: current(), environment: [("TERM".to_owned(), term)].into(), ..Default::default() };
    let mut session = Session::open(client, node, What::Execute(execute)).await?;
    let raw = RawMode::enter()?;
    forward_input(vec![session.input.clone()]);
    let mut resized = signal(SignalKind::window_change())?;
    let result = loop {
        tokio::select! {
            next = session.next() => match next {
                Ok(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => {
                    if printer.copy(Stream::Out, &bytes) == Reading::Ended {
                        // Letting go of the session ends the program, as a terminal that is gone does.
                        break Ok(HUNG_UP);
                    }
                }
                Ok(Frame::Exit(exit)) => break exit_status(exit),
                Ok(_) => {}
                Err(failure) => break Err(failure),
            },
            _ = resized.recv() => {
                if let Some(size) = current() {
                    session.input.tell(Frame::Resize(size)).await;
                }
            }
        }
    };
    drop(raw);
    result
}
