//! Records the brain's inputs, if that is wanted, so that its decisions can be lived again: `cloudtik simulate --replay`.
//! A recording that cannot go on ends; the head does not.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cloudtik_brain::recording::{FORMAT, Header, Line};
use cloudtik_brain::{Config, Input, Memory, Step};
use cloudtik_model::{Epoch, Moment};
use cloudtik_protocol::VERSION;

/// Bytes of one recording: some days of a small cluster.
const LARGEST: u64 = 1 << 30;
/// Recordings of earlier lives that are kept.
const KEPT: usize = 2;

pub struct Recorder {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    written: u64,
}

impl Recorder {
    /// Begins the recording of a head's life in its directory.
    pub fn open(state: &Path, epoch: Epoch) -> std::io::Result<Self> {
        let mut earlier: Vec<PathBuf> = std::fs::read_dir(state)?.flatten().map(|e| e.path()).filter(|p| is_recording(p)).collect();
        // The epoch has leading zeros: the order of names is that of lives.
        earlier.sort();
        for old in earlier.iter().rev().skip(KEPT) {
            std::fs::remove_file(old)?;
        }
        let path = state.join(format!("record-{:010}.jsonl", epoch.0));
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path)?;
        tracing::info!("the brain's inputs are recorded in {}", path.display());
        Ok(Self { path, file: Some(BufWriter::new(file)), written: 0 })
    }

    pub fn begin(&mut self, config: &Config, epoch: Epoch, memory: &Memory, moment: Moment) {
        let (config, memory) = (config.clone(), memory.clone());
        self.write(&Header { format: FORMAT, version: VERSION.to_owned(), config, epoch, memory, moment });
    }

    pub fn note(&mut self, moment: Moment, input: Input, step: &Step) {
        if self.file.is_some() {
            self.write(&Line { moment, input, step: step.digest() });
        }
    }

    fn write(&mut self, line: &impl serde::Serialize) {
        let Some(file) = &mut self.file else { return };
        let mut text = serde_json::to_vec(line).expect("inputs become JSON");
        text.push(b'\n');
        self.written += text.len() as u64;
        let result = if self.written > LARGEST { Err(std::io::Error::other("it is large enough")) } else { file.write_all(&text) };
        if let Err(error) = result {
            tracing::warn!("{} ends here: {error}", self.path.display());
            self.file = None;
        }
    }

    /// Hands over what was noted, so that a head that is killed leaves it.
    pub fn flush(&mut self) {
        if let Some(Err(error)) = self.file.as_mut().map(BufWriter::flush) {
            tracing::warn!("{} ends here: {error}", self.path.display());
            self.file = None;
        }
    }
}

fn is_recording(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("record-"))
}
