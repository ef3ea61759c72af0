//! `cloudtik-head`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// The head of a CloudTik cluster.
#[derive(Parser)]
#[command(name = "cloudtik-head", version)]
struct Arguments {
    /// The head's directory, which holds head.json.
    #[arg(long)]
    state: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
    let result = runtime.block_on(cloudtik_head::serve(&arguments.state));
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
