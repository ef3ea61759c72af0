//! What answers for the machine of a cluster's nodes: its processes. What it is asked is in `remote.rs`.
//!
//! A node sees nothing of the machine that it is on, so that its head, which makes the other nodes, cannot make them by
//! itself. A service on the machine does, as a cloud's interface would: it answers on a socket that heads' nodes see. It runs
//! as long as the cluster has a head's node, and is started by whoever makes or starts that node.
//!
//! The service is two processes. One has the lock and answers; the other waits for the lock. When either is killed, the one
//! that is left makes another.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_files::{create_private_directory_in_place, write_atomically};
use cloudtik_model::InstanceId;
use cloudtik_providers::local::inherited_environment;

use crate::processes;
use crate::settings::Settings;

/// The directory below that of the nodes which heads' nodes see.
pub const DIRECTORY: &str = ".service";
pub const SOCKET: &str = "socket";
pub const SETTINGS: &str = "settings.json";
const LOCK: &str = "lock";
/// Between two looks at whether the cluster is there, and the process that waits.
pub const LOOK: Duration = Duration::from_millis(500);
/// How long a service may take until it answers.
const START: Duration = Duration::from_secs(10);

/// Makes the directory that heads' nodes see.
fn prepare(settings: &Settings) -> io::Result<PathBuf> {
    let directory = settings.nodes.join(DIRECTORY);
    create_private_directory_in_place(&directory)?;
    let text = serde_json::to_vec(settings)?;
    let path = directory.join(SETTINGS);
    if !fs::read(&path).is_ok_and(|old| old == text) {
        write_atomically(&path, &text, 0o600)?;
    }
    Ok(directory)
}

/// Starts the service of a cluster unless it runs, and waits until it answers.
pub fn start(settings: &Settings) -> io::Result<()> {
    let directory = prepare(settings)?;
    let until = Instant::now() + START;
    let mut begun = false;
    loop {
        if std::os::unix::net::UnixStream::connect(directory.join(SOCKET)).is_ok() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it does not answer; see {}/log", directory.display())));
        }
        if !begun && lock(&directory, false)?.is_some() {
            begun = true;
            let mut command = Command::new(&settings.program);
            command.arg("start-service").arg(&settings.nodes).env_clear().envs(inherited_environment()).current_dir("/");
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("{} ended with {status}", settings.program.display())));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The lock; without patience none if somebody has it.
pub fn lock(directory: &Path, patience: bool) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(directory.join(LOCK))?;
    if patience {
        file.lock()?;
        return Ok(Some(file));
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Starts a process of the service, which goes on by itself.
pub fn detach(nodes: &Path) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(nodes.join(DIRECTORY).join("log"))?;
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.arg("serve").arg(nodes).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn()
}

/// Ends the service of a cluster.
pub fn stop(nodes: &Path, within: Duration) -> io::Result<()> {
    let of_cluster = || Ok(processes::doing("serve")?.into_iter().filter(|(_, of)| of == nodes).map(|(process, _)| process).collect());
    processes::end(of_cluster, within)
}

/// Whether the cluster has a head's node; what cannot be told is yes.
pub fn has_head(nodes: &Path) -> bool {
    match fs::read_dir(nodes) {
        Ok(entries) => entries.flatten().any(|entry| is_head(&entry.file_name().to_string_lossy())),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn is_head(name: &str) -> bool {
    let id = InstanceId::new(name).ok();
    id.and_then(|id| crate::instance::parse_instance(&id)).is_some_and(|(node, _)| node.is_head())
}
