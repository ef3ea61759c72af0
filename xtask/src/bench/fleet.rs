//! What a head costs for many agents.

use std::process::Command;

use super::build;
use crate::{cargo, run};

/// Sizes of fleets, if none is asked for.
const FLEETS: [&str; 3] = ["100", "1000", "4000"];

/// Processor time and memory of a head for fleets of agents that this machine carries in one process.
pub fn fleet(agents: Option<&str>) -> Result<(), String> {
    let programs = build()?;
    let asked = agents.map(|agents| [agents]);
    let fleets: &[&str] = asked.as_ref().map_or(&FLEETS, |one| one);
    for agents in fleets {
        let mut command: Command = cargo(&["test", "-p", "cloudtik-tests", "--bench", "fleet", "--"]);
        run(command.arg(&programs).arg(agents))?;
    }
    Ok(())
}
