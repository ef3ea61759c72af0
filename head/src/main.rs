//! `cloudtik-head`.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use cloudtik_head::simulate;
use serde::Serialize;

/// The head of a CloudTik cluster.
#[derive(Parser)]
#[command(name = "cloudtik-head", version)]
struct Arguments {
    /// The head's directory, which holds head.json.
    #[arg(long, required_unless_present_any = ["replay", "simulate"])]
    state: Option<PathBuf>,
    /// Do not serve: live the life of an earlier head again, from its recording, and print what came of it as JSON.
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    replay: Option<PathBuf>,
    /// Do not serve: simulate what a request on standard input asks for, and print what came of it as JSON.
    #[arg(long, conflicts_with_all = ["state", "replay"])]
    simulate: bool,
}

fn print(answer: anyhow::Result<impl Serialize>) -> ExitCode {
    let written = answer.and_then(|answer| {
        let mut out = BufWriter::new(std::io::stdout());
        serde_json::to_writer(&mut out, &answer)?;
        Ok(out.flush()?)
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.replay {
        return print(simulate::replay(file));
    }
    if arguments.simulate {
        return print(simulate::simulate(std::io::stdin()));
    }
    let Some(state) = arguments.state else { return ExitCode::FAILURE };
    cloudtik_protocol::logging::start();
    cloudtik_protocol::tls::install_crypto();
    if let Err(error) = cloudtik_protocol::transport::raise_file_limit() {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(cloudtik_head::serve(&state));
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
