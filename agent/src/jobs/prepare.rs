//! What an attempt needs before it begins: its files from the head, its directory, the description for its shim.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloudtik_model::job::{JobFile, JobStart, JobStream, layout};
use cloudtik_protocol::files::{PRIVATE, RemoveError, create_private_directory_in_place, remove_tree, write_atomically};
use tokio::sync::watch;
use tokio::task::JoinError;

use super::attempt::{ATTEMPT_VARIABLE, Attempt, ID_VARIABLE};
use crate::cgroup;
use crate::environment::environment;
use crate::exec::program;
use crate::fetch::{self, Source, Wanted};
use crate::home::Home;
use crate::shim::{Once, RUN_FILE, Run};

/// Before a fetch is tried again; it grows to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So often a file whose content is not what its digest says is fetched.
const FETCHES: u32 = 3;
/// How the programs begin that a job brings along: scripts, and binaries.
const PROGRAMS: [&[u8]; 2] = [b"#!", b"\x7fELF"];

/// Why an attempt cannot begin. The message is for people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no command was given")]
    NoCommand,
    #[error("{0:?} is no name of a file")]
    Name(String),
    #[error("cannot fetch {name}")]
    Fetch { name: String, source: fetch::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Remove(#[from] RemoveError),
    #[error(transparent)]
    Program(#[from] program::Error),
    #[error("it could not be prepared")]
    Interrupted(#[from] JoinError),
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}

/// Clears what an earlier agent prepared: it is not to be run while it is being replaced. The attempt's lock is held meanwhile, as it
/// is for the other steps. To be awaited to its end, as [`finish`] is: what blocks goes on whoever waits for it.
pub async fn begin(attempt: &Attempt, start: &JobStart) -> Result<(), Error> {
    let (own, wanted) = (attempt.clone(), start.files.clone());
    let clearing = tokio::task::spawn_blocking(move || {
        let run = own.directory().join(RUN_FILE);
        match fs::remove_file(&run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot_write(&run)(error)),
            _ => {}
        }
        if let Some(file) = wanted.into_iter().find(|file| !JobFile::is_name(&file.name)) {
            return Err(Error::Name(file.name));
        }
        let files = own.files();
        create_private_directory_in_place(&files).map_err(cannot_write(&files))
    });
    clearing.await?
}

/// Fetches the job's files, for as long as the head cannot be reached.
pub async fn fetch_files(source: &Source, attempt: &Attempt, start: &JobStart) -> Result<(), Error> {
    for (number, file) in start.files.iter().enumerate() {
        fetch_file(source, file, &attempt.files().join(number.to_string())).await?;
    }
    Ok(())
}

/// Lays the files and writes `run.json`.
pub async fn finish(home: &Home, attempt: &Attempt, start: &JobStart) -> Result<(), Error> {
    let process = format!("job-{}", attempt.id);
    let groups = cgroup::limit(home, process, start.limits.clone()).await;
    let variables = environment_of(attempt, start);
    let path = variables.get("PATH").map(OsString::from).unwrap_or_default();
    let run = Run {
        command: start.command.clone(),
        environment: variables.into_iter().collect(),
        stop_signal: start.stop.signal,
        stop_grace_ms: start.stop.grace_ms,
        // The part that is written, and the one before.
        log_max_bytes: start.log_max_bytes / 2,
        log_keep: 1,
        groups,
        leaves_children: false,
        starts: attempt.number,
        identity: String::new(),
        artifacts: Vec::new(),
        once: Some(Once {
            work: attempt.work(),
            stdout: home.path().join(layout::log(attempt.id, JobStream::Stdout)),
            stderr: home.path().join(layout::log(attempt.id, JobStream::Stderr)),
            attempt: attempt.number,
            timeout_ms: start.timeout_ms,
        }),
    };
    let (own, files) = (attempt.clone(), start.files.clone());
    let laying = tokio::task::spawn_blocking(move || {
        lay_files(&own, &files)?;
        let program = run.command.first().ok_or(Error::NoCommand)?;
        program::check(program, &path, &own.work())?;
        let target = own.directory().join(RUN_FILE);
        let text = serde_json::to_vec(&run).expect("texts and numbers become JSON");
        write_atomically(&target, &text, 0o600).map_err(cannot_write(&target))
    });
    laying.await?
}

/// Its own variables count over those that every process has, but not over those by which it is known.
fn environment_of(attempt: &Attempt, start: &JobStart) -> BTreeMap<String, String> {
    let mut all = environment(&attempt.work(), &start.environment);
    all.insert(ID_VARIABLE.to_owned(), attempt.id.to_string());
    all.insert(ATTEMPT_VARIABLE.to_owned(), attempt.number.to_string());
    all
}

async fn fetch_file(source: &Source, file: &JobFile, part: &Path) -> Result<(), Error> {
    let failed = |source| Error::Fetch { name: file.name.clone(), source };
    let (mut pause, mut damaged, mut last) = (FIRST_PAUSE, 0, String::new());
    loop {
        let wanted = Wanted { name: &file.name, digest: &file.digest, size: file.size };
        let mut result = source.fetch(wanted, part, &watch::Sender::new(String::new())).await;
        if result.is_ok() {
            let (part, digest) = (part.to_owned(), file.digest.clone());
            result = tokio::task::spawn_blocking(move || fetch::verify(&part, &digest).map(drop)).await?;
        }
        match result {
            Ok(()) => return Ok(()),
            Err(fetch::Error::Digest) if damaged + 1 < FETCHES => damaged += 1,
            Err(error) if error.may_pass() => {
                let text = error.to_string();
                if text != last {
                    tracing::warn!(file = file.name, "cannot fetch a job's file yet: {text}");
                    last = text;
                }
            }
            Err(error) => return Err(failed(error)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Makes the working directory afresh, with the files that were fetched.
fn lay_files(attempt: &Attempt, files: &[JobFile]) -> Result<(), Error> {
    let work = attempt.work();
    remove_tree(&work)?;
    create_private_directory_in_place(&work).map_err(cannot_write(&work))?;
    for (number, file) in files.iter().enumerate() {
        let (part, target) = (attempt.files().join(number.to_string()), work.join(&file.name));
        let laid = (|| {
            let mut start = Vec::new();
            File::open(&part)?.take(4).read_to_end(&mut start)?;
            let mode = if PROGRAMS.iter().any(|program| start.starts_with(program)) { PRIVATE } else { 0o600 };
            fs::set_permissions(&part, Permissions::from_mode(mode))?;
            fs::rename(&part, &target)
        })();
        laid.map_err(cannot_write(&target))?;
    }
    Ok(())
}
