//! Lives a head's life again from its recording, and says whether every decision is the same.

use std::io::BufRead;

use cloudtik_brain::recording::{FORMAT, Header, Line};
use cloudtik_brain::{Brain, Record};
use cloudtik_model::event::Event;
use cloudtik_model::simulation::{Difference, Replayed};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading the recording failed")]
    Read(#[from] std::io::Error),
    #[error("line {line} is not part of a recording")]
    Malformed { line: u64, source: serde_json::Error },
    #[error("the recording has format {0}, this program reads {FORMAT}")]
    Format(u32),
    #[error("the recording is empty")]
    Empty,
}

pub fn replay(recording: impl BufRead) -> Result<Replayed, Error> {
    let mut lines = recording.lines();
    let first = lines.next().ok_or(Error::Empty)??;
    let header: Header = serde_json::from_str(&first).map_err(|source| Error::Malformed { line: 1, source })?;
    if header.format != FORMAT {
        return Err(Error::Format(header.format));
    }
    let mut replayed = Replayed { version: header.version, epoch: header.epoch.0, ..Replayed::default() };
    let mut brain = Brain::restore(header.config, header.epoch, header.memory, header.moment);
    // By their order, as a store numbers them; which number the first had is not in the recording.
    let (mut number, mut position) = (1, 0);
    let mut lines = lines.peekable();
    while let Some(text) = lines.next() {
        let text = text?;
        number += 1;
        let line: Line = match serde_json::from_str(&text) {
            Ok(line) => line,
            Err(_) if lines.peek().is_none() => {
                replayed.cut_off = true;
                break;
            }
            Err(source) => return Err(Error::Malformed { line: number, source }),
        };
        let input = shown(&line.input);
        let step = brain.handle(line.moment, line.input);
        replayed.inputs += 1;
        let is_same = step.digest() == line.step;
        if !is_same {
            let decided = step.records.iter().map(shown).chain(step.actions.iter().map(shown));
            replayed.differs = Some(Difference { line: number, input, decided: decided.collect() });
        }
        for record in step.records {
            if let Record::Event(event) = record {
                position += 1;
                replayed.events.push(Event { position, ..event });
            }
        }
        if !is_same {
            break;
        }
    }
    Ok(replayed)
}

fn shown(what: &impl serde::Serialize) -> String {
    serde_json::to_string(what).unwrap_or_else(|error| format!("it cannot be shown: {error}"))
}
