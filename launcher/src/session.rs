//! Programs on nodes, followed from here: exec, attach, submit, logs.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cli::{Exec, Logs, Submit};
use crate::client::Client;
use crate::failure::{FAILED, Failure, NOT_FOUND};
use crate::output::Printer;
use crate::terminal::{RawMode, size};

const QUEUE: usize = 16;
const BLOCK: usize = 32 << 10;
const SIGTERM: i32 = 15;
/// From the first interrupt until the program is left to be killed by its agent.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// One running program, seen from here.
pub struct Session {
    pub input: mpsc::Sender<wire::SessionFrame>,
    pub output: Streaming<wire::SessionFrame>,
}

pub fn frame(frame: Frame) -> wire::SessionFrame {
    wire::SessionFrame { frame: Some(frame) }
}

impl Session {
    pub async fn open(client: &Client, node: &str, what: What) -> Result<Self, Failure> {
        let (input, frames) = mpsc::channel(QUEUE);
        let open = Frame::Open(wire::OpenRequest { node: node.to_owned(), what: Some(what) });
        input.send(frame(open)).await.map_err(|_| Failure::failed("the stream is closed"))?;
        let output = client.admin().session(ReceiverStream::new(frames)).await?.into_inner();
        Ok(Self { input, output })
    }

    /// The next piece of output, or the exit.
    pub async fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            match self.output.message().await? {
                Some(wire::SessionFrame { frame: Some(frame @ (Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_))) }) => {
                    return Ok(frame);
                }
                Some(_) => {}
                None => return Err(Failure::failed("the node's end went away")),
            }
        }
    }

    /// Copies output here until the program ends; returns its exit status.
    async fn follow(&mut self, cancels: bool) -> Result<u8, Failure> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut asked = false;
        let mut give_up = std::pin::pin!(tokio::time::sleep(Duration::MAX));
        loop {
            let interrupted = tokio::select! {
                next = self.next() => match next? {
                    Frame::Stdout(bytes) => { write(&mut std::io::stdout(), &bytes); false }
                    Frame::Stderr(bytes) => { write(&mut std::io::stderr(), &bytes); false }
                    Frame::Exit(exit) => return exit_status(exit),
                    _ => false,
                },
                _ = interrupt.recv(), if cancels => true,
                _ = terminate.recv(), if cancels => true,
                () = &mut give_up, if asked => {
                    eprintln!("it does not end; leaving, which ends it the hard way");
                    return Ok(130);
                }
            };
            if interrupted {
                if asked {
                    // Dropping the session ends what is left of it.
                    return Ok(130);
                }
                asked = true;
                give_up.as_mut().reset(tokio::time::Instant::now() + CANCEL_PATIENCE);
                eprintln!("cancelling; once more to leave at once");
                let _ = self.input.send(frame(Frame::Signal(SIGTERM))).await;
            }
        }
    }
}

fn exit_status(exit: wire::Exit) -> Result<u8, Failure> {
    if exit.error.is_empty() {
        return Ok(u8::try_from(exit.code).unwrap_or(FAILED));
    }
    Err(Failure::new(u8::try_from(exit.code).unwrap_or(FAILED), exit.error))
}

fn write(to: &mut impl Write, bytes: &[u8]) {
    if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
        // Nobody reads any more.
        std::process::exit(0);
    }
}

/// Reads standard input on a thread of its own, since it cannot be waited for otherwise.
fn forward_input(to: mpsc::Sender<wire::SessionFrame>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; BLOCK];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(n) if n > 0 => {
                    if to.blocking_send(frame(Frame::Stdin(Bytes::copy_from_slice(&buffer[..n])))).is_err() {
                        return;
                    }
                }
                _ => {
                    let _ = to.blocking_send(frame(Frame::EndOfInput(true)));
                    return;
                }
            }
        }
    });
}

pub async fn exec(printer: &Printer, arguments: &Exec) -> Result<u8, Failure> {
    let client = Client::connect(&arguments.cluster).await?;
    if arguments.all {
        return exec_all(printer, &client, &arguments.command).await;
    }
    let node = arguments.node.as_deref().unwrap_or("head");
    if arguments.terminal {
        return in_terminal(&client, node, arguments.command.clone()).await;
    }
    let execute = wire::Execute { command: arguments.command.clone(), ..Default::default() };
    let mut session = Session::open(&client, node, What::Execute(execute)).await?;
    forward_input(session.input.clone());
    session.follow(true).await
}

async fn exec_all(printer: &Printer, client: &Client, command: &[String]) -> Result<u8, Failure> {
    let nodes: Vec<String> = client.status().await?.nodes.iter().filter(|n| n.agent.is_some()).map(|n| n.id.to_string()).collect();
    let mut running = tokio::task::JoinSet::new();
    for node in nodes {
        let (client, execute) = (client.clone(), wire::Execute { command: command.to_vec(), ..Default::default() });
        running.spawn(async move {
            let result = collect(&client, &node, execute).await;
            (node, result)
        });
    }
    let mut worst = 0;
    while let Some(joined) = running.join_next().await {
        let (node, result) = joined.map_err(|e| Failure::failed(e.to_string()))?;
        match result {
            Ok((lines, code)) => {
                for line in lines.lines() {
                    printer.line(&format!("{node}: {line}"));
                }
                if code != 0 {
                    printer.say(&format!("{node}: ended with status {code}"));
                }
                worst = worst.max(code);
            }
            Err(failure) => {
                printer.say(&format!("{node}: {}", failure.message));
                worst = worst.max(failure.code);
            }
        }
    }
    Ok(worst)
}

/// Runs a program to its end and returns what it said.
async fn collect(client: &Client, node: &str, execute: wire::Execute) -> Result<(String, u8), Failure> {
    let mut session = Session::open(client, node, What::Execute(execute)).await?;
    let _ = session.input.send(frame(Frame::EndOfInput(true))).await;
    let mut said = Vec::new();
    loop {
        match session.next().await? {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => said.extend_from_slice(&bytes),
            Frame::Exit(exit) => return Ok((String::from_utf8_lossy(&said).into_owned(), exit_status(exit)?)),
            _ => {}
        }
    }
}

pub async fn attach(cluster: &str, node: Option<String>) -> Result<u8, Failure> {
    let client = Client::connect(cluster).await?;
    let shell = vec!["sh".to_owned(), "-c".to_owned(), "exec \"${SHELL:-/bin/bash}\" -l".to_owned()];
    in_terminal(&client, node.as_deref().unwrap_or("head"), shell).await
}

async fn in_terminal(client: &Client, node: &str, command: Vec<String>) -> Result<u8, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(crate::failure::USAGE, "there is no terminal here").hint("leave out -t, or use `exec` instead of `attach`")
        );
    }
    let current = || size().map(|(rows, columns)| wire::TerminalSize { rows, columns });
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    let execute =
        wire::Execute { command, terminal: true, size: current(), environment: [("TERM".to_owned(), term)].into(), ..Default::default() };
    let mut session = Session::open(client, node, What::Execute(execute)).await?;
    let raw = RawMode::enter()?;
    forward_input(session.input.clone());
    let mut resized = signal(SignalKind::window_change())?;
    let result = loop {
        tokio::select! {
            next = session.next() => match next {
                Ok(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => write(&mut std::io::stdout(), &bytes),
                Ok(Frame::Exit(exit)) => break exit_status(exit),
                Ok(_) => {}
                Err(failure) => break Err(failure),
            },
            _ = resized.recv() => {
                if let Some(size) = current() {
                    let _ = session.input.send(frame(Frame::Resize(size))).await;
                }
            }
        }
    };
    drop(raw);
    result
}

pub async fn submit(arguments: &Submit) -> Result<u8, Failure> {
    let file = &arguments.file;
    let content = std::fs::read(file).map_err(|e| Failure::new(NOT_FOUND, format!("cannot read {}: {e}", file.display())))?;
    let client = Client::connect(&arguments.cluster).await?;
    let submit = wire::Submit {
        runtime: arguments.runtime.clone().unwrap_or_default(),
        file_name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        arguments: arguments.arguments.clone(),
    };
    let mut session = Session::open(&client, "", What::Submit(submit)).await?;
    let input = session.input.clone();
    let sending = async move {
        for block in content.chunks(BLOCK) {
            if input.send(frame(Frame::Stdin(Bytes::copy_from_slice(block)))).await.is_err() {
                return;
            }
        }
        let _ = input.send(frame(Frame::EndOfInput(true))).await;
    };
    let sender = tokio::spawn(sending);
    let result = session.follow(true).await;
    sender.abort();
    result.map_err(|failure| {
        if failure.hint.is_some() {
            return failure;
        }
        failure.hint(format!("see what the cluster waits for with `cloudtik status {}`", client.place.name))
    })
}

pub async fn logs(printer: &Printer, arguments: &Logs) -> Result<(), Failure> {
    let client = Client::connect(&arguments.cluster).await?;
    let status = client.status().await?;
    let known = |name: &str| status.nodes.iter().any(|n| n.id.as_str() == name);
    if let Some(node) = arguments.node.as_deref().filter(|n| !known(n)) {
        return Err(Failure::new(NOT_FOUND, format!("there is no node {node}")).hint(format!("see `cloudtik nodes {}`", client.place.name)));
    }
    let mut wanted: Vec<(String, String)> = Vec::new();
    match &arguments.runtime {
        Some(runtime) => {
            for node in status.nodes.iter().filter(|n| arguments.node.as_deref().is_none_or(|wanted| n.id.as_str() == wanted)) {
                let services = node.services.iter().filter(|s| s.name.split('/').next() == Some(runtime.as_str()));
                wanted.extend(services.map(|s| (node.id.to_string(), s.name.clone())));
            }
            if wanted.is_empty() {
                let failure = Failure::new(NOT_FOUND, format!("no service of the runtime {runtime} was found"));
                return Err(failure.hint(format!("see `cloudtik runtimes {}`", client.place.name)));
            }
        }
        None => match &arguments.node {
            Some(node) => wanted.push((node.clone(), String::new())),
            None => wanted.push(("head".to_owned(), "cloudtik/head".to_owned())),
        },
    }
    let prefixed = wanted.len() > 1;
    let mut running = tokio::task::JoinSet::new();
    let (lines, mut printed) = mpsc::channel::<String>(64);
    for (node, service) in wanted {
        let (client, lines) = (client.clone(), lines.clone());
        let logs = wire::Logs { service: service.clone(), lines: arguments.lines, follow: arguments.follow };
        running.spawn(async move {
            let prefix = if prefixed { format!("{node} {service}  ") } else { String::new() };
            let mut session = Session::open(&client, &node, What::Logs(logs)).await?;
            let mut rest = Vec::new();
            loop {
                match session.next().await? {
                    Frame::Stdout(bytes) => {
                        rest.extend_from_slice(&bytes);
                        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                            let line: Vec<u8> = rest.drain(..=end).collect();
                            let text = String::from_utf8_lossy(&line[..end]).into_owned();
                            let _ = lines.send(format!("{prefix}{text}")).await;
                        }
                    }
                    Frame::Exit(exit) if exit.code == 0 => return Ok::<(), Failure>(()),
                    Frame::Exit(_) => return Err(Failure::new(NOT_FOUND, format!("{node} has no log of {service} yet"))),
                    _ => {}
                }
            }
        });
    }
    drop(lines);
    while let Some(line) = printed.recv().await {
        printer.line(&line);
    }
    while let Some(joined) = running.join_next().await {
        joined.map_err(|e| Failure::failed(e.to_string()))??;
    }
    Ok(())
}
