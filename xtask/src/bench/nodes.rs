//! What virtual nodes cost.

use super::build;
use crate::{cargo, run, setup};

/// Nodes that are made.
const NODES: &str = "100";

/// Time to create nodes of the virtual provider, beside that of the bare namespaces, and their memory beside their agents.
pub fn nodes() -> Result<(), String> {
    if !setup::is_root() {
        return Err("links and control groups are made by root; run it as root".to_owned());
    }
    let programs = build()?;
    run(cargo(&["run", "--quiet", "-p", "cloudtik-virtual", "--example", "nodes", "--"]).arg(&programs).arg(NODES))
}
