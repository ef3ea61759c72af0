//! Running the ecosystems' clients, and knowing from what they print and write how far they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::fetch::Say;
use super::progress::Step;

/// Between two looks at how far a client is.
const LOOK: Duration = Duration::from_millis(500);
/// Characters of a client's complaint that are passed on.
const MAX_COMPLAINT_CHARACTERS: usize = 300;
/// Lines of a client's complaint that are passed on.
const MAX_COMPLAINT_LINES: usize = 6;

/// How a client's progress is known.
#[derive(Debug, Clone)]
pub enum Track {
    /// It is not.
    Doing(&'static str),
    /// From the announcements of `pip` and the size of the announced file, which it writes below this directory.
    Pip { directory: PathBuf, file: Option<(String, Option<u64>)>, step: Option<&'static str>, is_single: bool },
    /// From the files of this directory, which come to so many bytes in the end.
    Files { directory: PathBuf, total: Option<u64> },
}

impl Track {
    pub fn pip(directory: &Path, is_single: bool) -> Self {
        Self::Pip { directory: directory.to_owned(), file: None, step: None, is_single }
    }

    /// Takes a line that the client printed.
    fn line(&mut self, line: &str) {
        let Self::Pip { file, step, .. } = self else { return };
        let line = line.trim();
        if let Some(announced) = line.strip_prefix("Downloading ") {
            *file = Some(announcement(announced));
            *step = None;
        } else if line.starts_with("Preparing metadata") || line.starts_with("Installing build dependencies") {
            *step = Some("preparing");
        } else if line.starts_with("Installing collected packages") {
            *step = Some("installing");
        }
    }

    /// The step, where it is known without a look at files.
    fn known(&self) -> Option<Step> {
        match self {
            Self::Doing(what) => Some(Step::doing(what)),
            Self::Pip { step: Some(what), .. } => Some(Step::doing(what)),
            Self::Pip { file: None, .. } => Some(Step::doing("looking for a version")),
            Self::Pip { .. } | Self::Files { .. } => None,
        }
    }

    /// The step by a look at what the client has written. Blocks: there may be many files.
    fn look(&self) -> Step {
        match self {
            Self::Doing(what) => Step::doing(what),
            Self::Pip { step: Some(what), .. } => Step::doing(what),
            Self::Pip { file: None, .. } => Step::doing("looking for a version"),
            Self::Pip { directory, file: Some((name, total)), is_single, .. } => {
                // While pip copies a file it is there twice.
                let what = if *is_single { String::new() } else { name.clone() };
                Step::Downloading { what, done: largest(directory, name), total: *total }
            }
            Self::Files { directory, total } => {
                let done = size_of(directory);
                Step::Downloading { what: String::new(), done: total.map_or(done, |total| done.min(total)), total: *total }
            }
        }
    }
}

/// `pyspark-4.3.0.tar.gz (456.0 MB)`: the file's name, and its size in bytes as far as that says it.
fn announcement(text: &str) -> (String, Option<u64>) {
    let (url, size) = match text.rsplit_once(" (") {
        Some((url, size)) => (url, size.strip_suffix(')')),
        None => (text, None),
    };
    let name = url.rsplit('/').next().unwrap_or(url).to_owned();
    let bytes = size.and_then(|size| {
        let (number, unit) = size.split_once(' ')?;
        let unit = match unit {
            "bytes" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            _ => return None,
        };
        Some((number.parse::<f64>().ok()? * unit) as u64)
    });
    (name, bytes)
}

/// Runs a client to its end; returns what it printed. An error carries what it complained of last.
pub async fn run(mut command: Command, name: &str, mut track: Track, say: Say<'_>) -> anyhow::Result<String> {
    // In the head's own process group, so that its shim ends them with a head that is killed.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot run {name}; is it installed?"))?;
    let (out, mut err) = child.stdout.take().zip(child.stderr.take()).context("the client has no pipes")?;
    let mut lines = BufReader::new(out).split(b'\n');
    let (mut printed, mut complaint) = (String::new(), Vec::new());
    let complaining = async {
        // What cannot be read is not complained of.
        let _ = err.read_to_end(&mut complaint).await;
    };
    {
        tokio::pin!(complaining);
        let (mut is_printing, mut is_complaining) = (true, true);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // At most one look at a time, on a thread that may block.
        let mut looking = JoinSet::new();
        let mut last_known = None;
        while is_printing || is_complaining {
            tokio::select! {
                line = lines.next_segment(), if is_printing => match line {
                    Ok(Some(line)) => {
                        let line = String::from_utf8_lossy(&line);
                        track.line(&line);
                        printed.push_str(&line);
                        printed.push('\n');
                    }
                    Ok(None) | Err(_) => is_printing = false,
                },
                () = &mut complaining, if is_complaining => is_complaining = false,
                Some(Ok(step)) = looking.join_next(), if !looking.is_empty() => say(step),
                _ = ticks.tick() => if track.known().is_none() && looking.is_empty() {
                    let track = track.clone();
                    looking.spawn_blocking(move || track.look());
                },
            }
            let known = track.known();
            if known != last_known {
                known.clone().into_iter().for_each(say);
                last_known = known;
            }
        }
    }
    let status = child.wait().await?;
    if status.success() {
        return Ok(printed);
    }
    let complaint = if complaint.is_empty() { printed } else { String::from_utf8_lossy(&complaint).into_owned() };
    let lines: Vec<&str> = complaint.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut last = lines[lines.len().saturating_sub(MAX_COMPLAINT_LINES)..].join("; ");
    // Clients list everything that there is instead; the end of a complaint says what is wrong.
    if let Some((at, _)) = last.char_indices().rev().nth(MAX_COMPLAINT_CHARACTERS) {
        last = format!("…{}", &last[at..]);
    }
    bail!("{name} ended with {status}: {last}")
}

/// Bytes in a directory, as far as they can be counted while a client writes there.
fn size_of(directory: &Path) -> u64 {
    let mut size = 0;
    walk(directory, &mut |_, bytes| size += bytes);
    size
}

/// The size of the largest file of a name below a directory.
fn largest(directory: &Path, name: &str) -> u64 {
    let mut most = 0;
    walk(directory, &mut |path, bytes| {
        if path.file_name().is_some_and(|file| file == name) {
            most = most.max(bytes);
        }
    });
    most
}

fn walk(directory: &Path, file: &mut dyn FnMut(&Path, u64)) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk(&entry.path(), file),
            Ok(metadata) => file(&entry.path(), metadata.len()),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_announcements_of_pip_carry_name_and_size() {
        assert_eq!(announcement("pyspark-4.3.0.tar.gz (456.0 MB)"), ("pyspark-4.3.0.tar.gz".to_owned(), Some(456_000_000)));
        assert_eq!(announcement("http://mirror/simple/py4j-0.10.whl (203 kB)"), ("py4j-0.10.whl".to_owned(), Some(203_000)));
        assert_eq!(announcement("six.whl"), ("six.whl".to_owned(), None));
    }

    #[test]
    fn a_file_that_pip_copies_is_counted_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut track = Track::pip(directory.path(), true);
        assert_eq!(track.look(), Step::doing("looking for a version"));
        track.line("  Downloading big-1.tar.gz (2.0 MB)");
        for place in ["tmp/pip-unpack-x", "downloads"] {
            let place = directory.path().join(place);
            fs::create_dir_all(&place).expect("makes");
            fs::write(place.join("big-1.tar.gz"), vec![0; 2_000_000]).expect("writes");
            fs::write(place.join("unpacked"), vec![0; 500]).expect("writes");
        }
        assert_eq!(track.look(), Step::Downloading { what: String::new(), done: 2_000_000, total: Some(2_000_000) });
        track.line("  Preparing metadata (setup.py): started");
        assert_eq!(track.look(), Step::doing("preparing"));
    }

    #[tokio::test]
    async fn a_client_that_fails_is_quoted() {
        let said = Mutex::new(Vec::new());
        let say = |step: Step| said.lock().expect("no panic").push(step);
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo fine; echo one >&2; echo two >&2; exit 3"]);
        let error = run(shell, "the client", Track::Doing("working"), &say).await.expect_err("it fails");
        assert_eq!(error.to_string(), "the client ended with exit status: 3: one; two");
        assert_eq!(*said.lock().expect("no panic"), [Step::doing("working")]);
    }

    #[tokio::test]
    async fn a_client_that_prints_much_is_not_looked_at_for_each_line() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let said = Mutex::new(0_u32);
        let say = |_: Step| *said.lock().expect("no panic") += 1;
        let mut shell = Command::new("sh");
        shell.args(["-c", "seq 3000"]);
        let begun = std::time::Instant::now();
        let track = Track::Files { directory: directory.path().to_owned(), total: None };
        assert_eq!(run(shell, "the client", track, &say).await.expect("it ends").lines().count(), 3_000);
        let most = 1 + begun.elapsed().as_millis() / LOOK.as_millis();
        let said = *said.lock().expect("no panic");
        assert!(u128::from(said) <= most, "{said} looks, {most} at most");
    }
}
