//! How the agent starts a shim.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{BEGUN, OCCUPIED, STARTED};

/// How long a shim may take to say that the process runs.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of starting a shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launched {
    /// The process runs.
    Started,
    /// Another shim has the directory, or the agent itself.
    Occupied,
    /// A run that happens once has begun, or is never to.
    Begun,
    /// Why the process was not started.
    Failed(String),
}

/// Starts the shim of a directory whose `run.json` is written.
pub async fn launch(directory: &Path) -> anyhow::Result<Launched> {
    let mut shim = std::process::Command::new(program());
    shim.arg0("cloudtik-agent").arg("shim").arg(directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut shim = tokio::process::Command::from(shim).spawn().context("cannot start the shim")?;
    let mut said = String::new();
    let out = shim.stdout.take().context("the shim has no output")?;
    // Reaps the shim, should it end while this agent lives; nothing waits for that, and it ends with the agent.
    tokio::spawn(async move {
        let _ = shim.wait().await;
    });
    tokio::time::timeout(START_TIMEOUT, BufReader::new(out).read_line(&mut said)).await.context("the shim does not answer")??;
    Ok(match said.trim() {
        STARTED => Launched::Started,
        OCCUPIED => Launched::Occupied,
        BEGUN => Launched::Begun,
        "" => Launched::Failed("its shim ended without a word".to_owned()),
        why => Launched::Failed(why.to_owned()),
    })
}

/// The running program, not what stands at its path: an upgrade in place may be replacing that just now.
#[cfg(not(test))]
fn program() -> PathBuf {
    "/proc/self/exe".into()
}

/// Tests run in a program of their own. The agent's is built beside it, for the tests of the package that need it.
#[cfg(test)]
pub(crate) fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("this program has a path");
    let program = tests.parent().and_then(Path::parent).expect("in target/PROFILE/deps").join("cloudtik-agent");
    assert!(program.exists(), "{} is not built: run all tests of the package", program.display());
    program
}
