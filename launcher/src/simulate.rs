//! `simulate`: decisions in virtual time, made by the head's own program. This one only shows them.

use std::path::Path;
use std::process::{Command, Stdio};

use cloudtik_model::event::{Event, EventKind};
use serde::{Deserialize, Serialize};

use crate::clusters::program;
use crate::events::describe;
use crate::failure::{FAILED, Failure, INVALID};
use crate::output::Printer;

#[derive(Serialize, Deserialize)]
struct Replayed {
    version: String,
    epoch: u64,
    inputs: u64,
    events: Vec<Event>,
    differs: Option<Difference>,
    cut_off: bool,
}

#[derive(Serialize, Deserialize)]
struct Difference {
    line: u64,
    input: String,
    decided: Vec<String>,
}

/// Lives a head's life again and says whether it decides the same.
pub fn replay(printer: &Printer, file: &Path) -> Result<u8, Failure> {
    let head = program("cloudtik-head")?;
    let ran = Command::new(&head).arg("--replay").arg(file).stdin(Stdio::null()).output();
    let ran = ran.map_err(|e| Failure::failed(format!("cannot run {}: {e}", head.display())))?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        return Err(Failure::new(INVALID, format!("cannot replay {}: {}", file.display(), said.trim()))
            .hint("`[head] record = true` makes a head write record-EPOCH.jsonl into its directory, which `cloudtik info` shows"));
    }
    let replayed: Replayed =
        serde_json::from_slice(&ran.stdout).map_err(|e| Failure::failed(format!("the head's answer is malformed: {e}")))?;
    let code = if replayed.differs.is_some() { FAILED } else { 0 };
    if printer.is_json() {
        printer.json(&replayed);
        return Ok(code);
    }
    for event in replayed.events.iter().filter(|e| e.kind != EventKind::Service) {
        printer.line(&describe(event));
    }
    printer.line("");
    let Replayed { version, epoch, inputs, .. } = &replayed;
    match &replayed.differs {
        None => {
            let cut_off = if replayed.cut_off { "; the last line was cut off" } else { "" };
            printer.line(&format!("{inputs} inputs of epoch {epoch} (version {version}): every decision is identical{cut_off}"));
        }
        Some(difference) => {
            printer
                .line(&format!("line {} of epoch {epoch} (version {version}) is decided otherwise: {}", difference.line, difference.input));
            for decided in &difference.decided {
                printer.line(&format!("  now: {decided}"));
            }
        }
    }
    Ok(code)
}
