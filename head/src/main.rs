//! `cloudtik-head`.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

/// The head of a CloudTik cluster.
#[derive(Parser)]
#[command(name = "cloudtik-head", version)]
struct Arguments {
    /// The head's directory, which holds head.json.
    #[arg(long, required_unless_present = "replay")]
    state: Option<PathBuf>,
    /// Do not serve: live the life of an earlier head again, from its recording, and print what came of it as JSON.
    #[arg(long, conflicts_with = "state")]
    replay: Option<PathBuf>,
}

/// The mind of this very program decides again.
fn replay(file: &Path) -> ExitCode {
    let replayed = std::fs::File::open(file).map_err(cloudtik_simulation::replay::Error::Read);
    match replayed.and_then(|file| cloudtik_simulation::replay::replay(BufReader::new(file))) {
        Ok(replayed) => {
            println!("{}", serde_json::to_string(&replayed).expect("a replay becomes JSON"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", cloudtik_protocol::logging::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.replay {
        return replay(file);
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
