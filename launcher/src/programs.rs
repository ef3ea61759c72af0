//! Our programs on the machine of the head: each cluster has its own by their digests, so that what its nodes start as changes when
//! it is brought up and not when files beside the launcher do.

use cloudtik_model::program::Architecture;
use cloudtik_providers::ThisMachine;
use cloudtik_providers::machine::{self, AGENT, HEAD, Program};

use crate::clusters::{ClusterPaths, program};
use crate::failure::{Failure, INVALID, chain};

/// Places the programs beside the launcher for a cluster whose directory exists. Returns whether its nodes start other ones from
/// now on.
pub async fn place(paths: &ClusterPaths) -> Result<bool, Failure> {
    let programs = tokio::task::spawn_blocking(found).await.map_err(|e| Failure::failed(e.to_string()))??;
    machine::place(&ThisMachine::default(), &paths.programs(), &programs).await.map_err(|e| Failure::failed(chain(&e)))
}

/// What this machine runs, and agents for machines of other kinds where they are beside it: `cloudtik-agent.aarch64`.
fn found() -> Result<Vec<Program>, Failure> {
    let read = |name: &'static str, file: &str| {
        let path = program(file)?;
        Program::read(name, &path).map_err(|e| Failure::failed(format!("cannot read {}: {e}", path.display())))
    };
    // Side by side: reading all of them is most of what placing takes.
    let (agent, head) = std::thread::scope(|scope| {
        let head = scope.spawn(|| read(HEAD, HEAD));
        (read(AGENT, AGENT), head.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut programs = vec![agent?, head?];
    for arch in Architecture::ALL {
        let file = machine::served_link(AGENT, arch);
        if program(&file).is_err() {
            continue;
        }
        let agent = read(AGENT, &file)?;
        if agent.arch != Some(arch) {
            let is = agent.arch.map_or_else(|| "no program of Linux".to_owned(), |arch| format!("for {arch}"));
            return Err(Failure::new(INVALID, format!("{file}, beside cloudtik, is {is}")).hint("build it for the machine that it names"));
        }
        programs.push(agent.to_serve(arch));
    }
    Ok(programs)
}
