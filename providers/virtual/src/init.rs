//! The first process of a node: it enters namespaces of its own, makes the node's network and root, starts the agent and
//! starts it again whenever it ends, and waits for processes whose parents are gone. When it ends, the kernel ends
//! everything else on the node and lets its namespaces go: nothing else holds them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_model::bootstrap::NODE_HOME_VARIABLE;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, setsid};
use rustix::thread::CapabilitySet;

use crate::boot::{GO, SEPARATE};
use crate::ground::in_user_namespace;
use crate::groups::Hierarchies;
use crate::instance::{Machine, Place, record_ready};
use crate::names::NODE_LINK;
use crate::netlink::Netlink;
use crate::root;

/// Between the end of an agent and the start of the next: twice as long each time, until one has run for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const RAN_WELL: Duration = Duration::from_secs(10);
/// How long processes may take to end when the node stops.
const ENDING: Duration = Duration::from_secs(2);
/// The agent's log is started afresh beyond this many bytes; the last one is kept.
const MAX_LOG: u64 = 8 << 20;

/// Runs as the first process of the instance in a directory. Standard input is the instance's lock, standard output the
/// way to whoever starts the node, standard error the instance's log.
pub fn main(directory: &Path) -> io::Result<()> {
    let place = Place::new(directory);
    let mut starter = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut lock = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let ground = if in_user_namespace() { Some(watch_ground(&place)?) } else { None };
    let begun = begin(&place, &mut starter, &mut lock);
    // Nobody is to wait for this end as long as the node runs.
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&nothing)?;
    let machine = match begun {
        Ok(Some(machine)) => machine,
        Ok(None) => return Ok(()),
        Err(error) => {
            let _ = writeln!(starter, "{error}");
            return Err(error);
        }
    };
    let said = writeln!(starter);
    drop(starter);
    // Whoever started it may be gone by now; the node is there.
    drop(said);
    supervise(&place, &machine, ground.as_ref())
}

/// Where an ordinary user's workspace has namespaces of its own, standard error is a descriptor that tells of their end.
/// From here on it is the log.
fn watch_ground(place: &Place) -> io::Result<OwnedFd> {
    let ground = io::stderr().as_fd().try_clone_to_owned()?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(place.log())?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(ground)
}

/// Sets the node up. None if whoever starts it is gone before the point of no return.
fn begin(place: &Place, starter: &mut UnixStream, lock: &mut File) -> io::Result<Option<Machine>> {
    let machine = place.read()?;
    let hierarchies = Hierarchies::find()?;
    let group = machine.group();
    hierarchies.enter(&group)?;
    setsid()?;
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(own).map_err(|e| failed("enter namespaces of its own", e))?;
    hierarchies.enter_init(&group)?;
    starter.write_all(&[SEPARATE])?;
    let mut answer = [0];
    match starter.read(&mut answer) {
        Ok(1) if answer[0] == GO => {}
        _ => return Ok(None),
    }
    connect(&machine).map_err(|e| io::Error::new(e.kind(), format!("cannot set up the network: {e}")))?;
    sethostname(machine.node.as_str()).map_err(|e| failed("set the host name", e))?;
    for error in root::enter(place, &machine, &hierarchies, in_user_namespace())? {
        eprintln!("not shown on this node: {error}");
    }
    // Where memory runs out, something else is ended.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // What changes the whole machine is not for a node.
    for capability in [CapabilitySet::SYS_MODULE, CapabilitySet::SYS_TIME, CapabilitySet::SYS_RAWIO] {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    record_ready(lock)?;
    Ok(Some(machine))
}

fn connect(machine: &Machine) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let lo = netlink.link("lo")?.ok_or_else(missing)?;
    netlink.add_address(lo.index, Ipv4Addr::LOCALHOST, crate::range::Range::of(Ipv4Addr::LOCALHOST, 8))?;
    netlink.set_up(lo.index, true)?;
    let own = netlink.link(NODE_LINK)?.ok_or_else(missing)?;
    netlink.add_address(own.index, machine.address, machine.range)?;
    netlink.set_up(own.index, true)?;
    netlink.add_default_route(machine.range.gateway())
}

fn failed(operation: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("cannot {operation}: {error}"))
}

/// The agent, or when the next one is to be started.
enum Agent {
    Runs { child: Child, since: Instant },
    Pauses { until: Instant },
}

/// Keeps the agent running until the node is told to stop.
fn supervise(place: &Place, machine: &Machine, ground: Option<&OwnedFd>) -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1]);
    signals.thread_block()?;
    let waiting = nix::sys::signalfd::SignalFd::new(&signals)?;
    let mut pause = FIRST_PAUSE;
    let mut agent = Agent::Pauses { until: Instant::now() };
    loop {
        if let Agent::Pauses { until } = agent
            && until <= Instant::now()
        {
            agent = match start_agent(place, machine) {
                Ok(child) => Agent::Runs { child, since: Instant::now() },
                Err(error) => {
                    eprintln!("cannot start {}: {error}", machine.agent.display());
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    Agent::Pauses { until: Instant::now() + pause }
                }
            };
        }
        let longest = match &agent {
            Agent::Pauses { until } => Some(until.saturating_duration_since(Instant::now())),
            Agent::Runs { .. } => None,
        };
        match wait(&waiting, ground, longest)? {
            Some(Signal::SIGTERM | Signal::SIGINT) => return stop(),
            Some(Signal::SIGUSR1) => {
                if let Agent::Runs { child, .. } = &mut agent {
                    child.kill()?;
                    // The next one comes at once.
                    pause = FIRST_PAUSE / 2;
                }
            }
            _ => {}
        }
        for ended in reap() {
            if let Agent::Runs { child, since } = &agent
                && ended.as_raw() == child.id().cast_signed()
            {
                pause = if since.elapsed() > RAN_WELL { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                agent = Agent::Pauses { until: Instant::now() + pause };
            }
        }
    }
}

/// Waits for a signal, or for so long. The end of the workspace's namespaces is told as [`Signal::SIGTERM`].
fn wait(waiting: &nix::sys::signalfd::SignalFd, ground: Option<&OwnedFd>, longest: Option<Duration>) -> io::Result<Option<Signal>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = match longest {
        Some(longest) => PollTimeout::try_from(longest.max(Duration::from_millis(1)).min(LONGEST_PAUSE)).unwrap_or(PollTimeout::ZERO),
        None => PollTimeout::NONE,
    };
    let all = [Some(waiting.as_fd()), ground.map(AsFd::as_fd)];
    let mut all: Vec<PollFd<'_>> = all.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut all, timeout) {
        Ok(0) | Err(Errno::EINTR) => return Ok(None),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let has_ended = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    if all.get(1).is_some_and(has_ended) {
        return Ok(Some(Signal::SIGTERM));
    }
    let signal = waiting.read_signal()?;
    Ok(signal.and_then(|signal| Signal::try_from(signal.ssi_signo.cast_signed()).ok()))
}

/// The processes that have ended, children and those that were left by their parents.
fn reap() -> Vec<Pid> {
    let mut ended = Vec::new();
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match status {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => ended.push(pid),
            WaitStatus::StillAlive => break,
            _ => {}
        }
    }
    ended
}

fn start_agent(place: &Place, machine: &Machine) -> io::Result<Child> {
    let home = place.home();
    let path = home.join("agent.log");
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_LOG) {
        std::fs::rename(&path, path.with_extension("log.1"))?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    let output: OwnedFd = log.try_clone()?.into();
    let mut command = Command::new(&machine.agent);
    command.args(["run", "--lead-session", "--home"]).arg(&home).env(NODE_HOME_VARIABLE, &home).current_dir(&home);
    let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn()?;
    // It is born as this process is, which is never ended for want of memory.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
    Ok(child)
}

/// Ends everything on the node, and with this process the node.
fn stop() -> io::Result<()> {
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
    let until = Instant::now() + ENDING;
    while Instant::now() < until && !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
