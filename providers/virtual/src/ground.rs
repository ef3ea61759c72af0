//! Whose namespaces a workspace lies in: the machine's own for root. For an ordinary user a user and a network namespace of
//! the workspace's own, which one process holds; it ends with the workspace, and with it every node.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_providers::local::inherited_environment;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid, setsid};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bridge::{Bridge, Found};
use crate::failure::Failure;
use crate::instance::{record, record_ready};
use crate::network::Network;
use crate::processes::FirstProcess;

/// Held by the process that holds the namespaces of a workspace.
const LOCK: &str = "ground.lock";
/// Between two looks at whether the workspace is there.
const LOOK: Duration = Duration::from_millis(500);
/// How long a process may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether this process may work in the machine's own namespaces.
pub fn is_root() -> bool {
    geteuid().is_root() && !in_user_namespace()
}

/// Whether this process is root only within a user namespace.
pub fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}

/// The namespaces of a workspace.
#[derive(Debug, Clone)]
pub struct Ground {
    workspace: PathBuf,
}

impl Ground {
    pub fn of(workspace: &Path) -> Self {
        Self { workspace: workspace.to_owned() }
    }

    fn lock_file(&self) -> PathBuf {
        Network::of(&self.workspace).directory().join(LOCK)
    }

    /// The process that holds them, if it runs.
    pub fn holder(&self) -> io::Result<Option<FirstProcess>> {
        match fs::read_to_string(self.lock_file()) {
            Ok(text) => Ok(FirstProcess::parse(&text).filter(|holder| holder.is_ready && holder.is_alive())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the namespaces, if they are not there, with the help of the program beside the provider.
    pub fn create(&self, program: &Path) -> Result<(), Failure> {
        if self.holder().map_err(|e| Failure::io("look at the namespaces of the workspace", e))?.is_some() {
            return Ok(());
        }
        run(program, "make-ground", &self.workspace, &())
    }

    /// Ends the holder and with it all that is in the namespaces.
    pub fn remove(&self) -> Result<(), Failure> {
        let failed = |e| Failure::io("end the namespaces of the workspace", e);
        let until = Instant::now() + PATIENCE;
        while let Some(holder) = self.holder().map_err(failed)? {
            holder.signal(Signal::KILL).map_err(failed)?;
            if Instant::now() > until {
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "their holder does not end")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Takes this process, which has one thread, into the namespaces. What is returned becomes readable when they end; none
    /// where the machine's own are meant.
    pub fn enter(&self) -> Result<Option<OwnedFd>, Failure> {
        if is_root() {
            return Ok(None);
        }
        let missing = || {
            let workspace = self.workspace.display();
            Failure::NotFound(format!("the namespaces of the workspace at {workspace}; make the workspace again"))
        };
        let failed = |e: io::Error| Failure::io("enter the namespaces of the workspace", e);
        let holder = self.holder().map_err(failed)?.ok_or_else(missing)?;
        let pid = Pid::from_raw(holder.pid).ok_or_else(missing)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        if !holder.is_alive() {
            return Err(missing());
        }
        setns(process.as_fd(), CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
        Ok(Some(process))
    }

    /// Does something to the bridge, in the namespaces that it is in.
    pub fn work(&self, program: &Path, work: &Work) -> Result<Found, Failure> {
        if is_root() { work.perform() } else { run(program, "work", &self.workspace, work) }
    }
}

/// What is done to a bridge.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    Find(Bridge),
    Create(Bridge),
    Remove(Bridge),
}

impl Work {
    pub fn perform(&self) -> Result<Found, Failure> {
        match self {
            Self::Find(bridge) => bridge.find(),
            Self::Create(bridge) => bridge.create().map(|()| None),
            Self::Remove(bridge) => bridge.remove().map(|()| None),
        }
    }
}

/// Has the program beside the provider do something.
pub fn run<T: DeserializeOwned>(program: &Path, verb: &str, directory: &Path, input: &impl Serialize) -> Result<T, Failure> {
    let exchange = || -> io::Result<Result<T, Failure>> {
        let mut command = Command::new(program);
        command
            .arg(verb)
            .arg(directory)
            .env_clear()
            .envs(inherited_environment())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(input)?)?;
        }
        let ended = child.wait_with_output()?;
        serde_json::from_slice(&ended.stdout).map_err(|_| {
            let text = String::from_utf8_lossy(&ended.stderr);
            io::Error::other(format!("it ended with {}: {}", ended.status, text.trim()))
        })
    };
    exchange().map_err(|e| Failure::io(format!("run {} {verb}", program.display()), e))?
}

/// In a process of its own: makes the namespaces of a workspace and leaves a process that holds them.
pub fn make(workspace: &Path) -> Result<(), Failure> {
    let ground = Ground::of(workspace);
    let failed = |e| Failure::io("make the namespaces of the workspace", e);
    let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(ground.lock_file());
    let mut lock = file.map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    while lock.try_lock().is_err() {
        if ground.holder().map_err(failed)?.is_some() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let (user, group) = (geteuid(), getegid());
    let forbidden = |errno| forbidden(errno, |setting| fs::read_to_string(setting).ok());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(forbidden)?;
    let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text).map_err(failed);
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {user} 1"))?;
    map("gid_map", format!("0 {group} 1"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(forbidden)?;
    let program = std::env::current_exe().map_err(failed)?;
    let held: OwnedFd = lock.try_clone().map_err(failed)?.into();
    let (mut said, says) = io::pipe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("ground").arg(workspace).current_dir("/").stdin(held).stdout(says).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    let noted = record(&mut lock, child.id().cast_signed()).and_then(|()| record_ready(&mut lock));
    let ready = noted.and_then(|()| said.read_exact(&mut [0]));
    if let Err(error) = ready {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(error));
    }
    Ok(())
}

/// Holds the namespaces of a workspace as long as it is there. Standard input is the lock, standard output hears that it
/// has begun.
pub fn hold(workspace: &Path) -> io::Result<()> {
    setsid()?;
    let lock = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    io::stdout().write_all(b"\n")?;
    io::stdout().flush()?;
    nix::unistd::dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
    let ground = Ground::of(workspace);
    while ground.lock_file().exists() {
        std::thread::sleep(LOOK);
    }
    drop(lock);
    Ok(())
}

/// In a process of its own: removes a directory, also what only root of the user namespace may.
pub fn remove(directory: &Path) -> Result<(), Failure> {
    let failed = |e| Failure::io(format!("remove {}", directory.display()), e);
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| forbidden(errno, |setting| fs::read_to_string(setting).ok()))?;
    let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text).map_err(failed);
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {user} 1"))?;
    map("gid_map", format!("0 {group} 1"))?;
    cloudtik_files::remove_tree(directory).map_err(|e| failed(io::Error::other(e)))
}

/// Why the kernel refuses namespaces to an ordinary user: the setting that says so.
fn forbidden(errno: Errno, read: impl Fn(&str) -> Option<String>) -> Failure {
    let is = |setting: &str, value: &str| read(&format!("/proc/sys/{}", setting.replace('.', "/"))).is_some_and(|v| v.trim() == value);
    let told = |setting: &str, value: &str, wanted: &str| {
        Failure::Forbidden(format!(
            "namespaces for ordinary users: the kernel's setting {setting} is {value}; have it set (sysctl -w {setting}={wanted}), or run as root"
        ))
    };
    if errno == Errno::ENOSPC || errno == Errno::EUSERS {
        for setting in ["user.max_user_namespaces", "user.max_net_namespaces"] {
            if is(setting, "0") {
                return told(setting, "0", "10000");
            }
        }
        return Failure::Forbidden("more namespaces: the kernel's setting user.max_user_namespaces is reached".to_owned());
    }
    if is("kernel.unprivileged_userns_clone", "0") {
        return told("kernel.unprivileged_userns_clone", "0", "1");
    }
    if is("kernel.apparmor_restrict_unprivileged_userns", "1") {
        return told("kernel.apparmor_restrict_unprivileged_userns", "1", "0");
    }
    Failure::Forbidden(format!("namespaces for ordinary users: {errno}; what this runs in forbids them; run as root"))
}

/// Reads what is to be done from standard input.
pub fn input<T: DeserializeOwned>() -> Result<T, Failure> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).map_err(|e| Failure::io("read what is to be done", e))?;
    serde_json::from_slice(&text).map_err(|e| Failure::io("read what is to be done", e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_namespaces_is_named() {
        let forbids = |errno, set: &[(&str, &str)]| {
            let read = |path: &str| set.iter().find(|(name, _)| path.ends_with(name)).map(|(_, value)| format!("{value}\n"));
            match forbidden(errno, read) {
                Failure::Forbidden(message) => message,
                other => panic!("{other}"),
            }
        };
        let clone = forbids(Errno::EPERM, &[("kernel/unprivileged_userns_clone", "0")]);
        assert!(clone.contains("sysctl -w kernel.unprivileged_userns_clone=1"), "{clone}");
        let apparmor =
            forbids(Errno::EACCES, &[("kernel/unprivileged_userns_clone", "1"), ("kernel/apparmor_restrict_unprivileged_userns", "1")]);
        assert!(apparmor.contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"), "{apparmor}");
        let limit = forbids(Errno::ENOSPC, &[("user/max_user_namespaces", "0")]);
        assert!(limit.contains("sysctl -w user.max_user_namespaces=10000"), "{limit}");
        assert!(forbids(Errno::EPERM, &[]).contains("run as root"));
    }
}
