//! Limits of services: a control group for each that has limits, version 2 or 1, where the agent has the right to make
//! one. (Linux: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.)
//!
//! Where the node itself has a limit of memory, a service without one has a group all the same, which tells whose processes the
//! kernel killed.
//!
//! Under version 1 a service's group lies inside the agent's own. Under version 2 a group that has processes cannot
//! divide its resources, so there it lies beside the agent's own, under the same parent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloudtik_model::goal::Limits;
use cloudtik_model::report::MemoryLimit;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::home::Home;

/// The file that lists a group's processes, and takes new ones.
const PROCESSES: &str = "cgroup.procs";
/// Microseconds over which processor time is counted.
const PERIOD: u64 = 100_000;
/// Looks at a group whose processes were killed, until it is given up.
const LOOKS: u32 = 200;
/// A limit of version 1 from here on is none.
const UNLIMITED: u64 = 1 << 60;

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    /// One tree for everything.
    Unified { parent: PathBuf, own: PathBuf },
    /// A tree for each.
    Separate { memory: Option<PathBuf>, cpu: Option<PathBuf> },
}

/// The groups of one service: one, or under version 1 one for each kind of limit. None without limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    own: Vec<PathBuf>,
    /// Where the agent, and so the shim, belongs.
    back: Vec<PathBuf>,
}

/// Makes the groups of a service with its limits set, afresh. Without limits of its own and of the node there are none.
fn make(name: &str, limits: &Limits) -> io::Result<Groups> {
    let has_limits = limits.any();
    let found = Hierarchy::find(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?);
    let hierarchy = match found {
        Some(hierarchy) if has_limits || hierarchy.limits_memory() => hierarchy,
        None if has_limits => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no control groups for memory and processors are mounted"));
        }
        _ => return Ok(Groups::default()),
    };
    let of_node = hierarchy.limits_memory();
    let quota = limits.cpu_millis.map(|millis| (millis * PERIOD / 1_000).max(1_000));
    let missing = |what| io::Error::new(io::ErrorKind::Unsupported, format!("no control groups for {what} are mounted"));
    match hierarchy {
        Hierarchy::Unified { parent, own } => {
            enable(&parent, limits.memory.is_some() || of_node, limits.cpu_millis.is_some())?;
            let group = renew(&parent, name)?;
            if let Some(memory) = limits.memory {
                set(&group, "memory.max", &memory.to_string())?;
            }
            if let Some(quota) = quota {
                set(&group, "cpu.max", &format!("{quota} {PERIOD}"))?;
            }
            Ok(Groups { own: vec![group], back: vec![own] })
        }
        Hierarchy::Separate { memory, cpu } => {
            let mut groups = Groups::default();
            if limits.memory.is_some() || of_node {
                let parent = memory.ok_or_else(|| missing("memory"))?;
                let group = renew(&parent, name)?;
                if let Some(bytes) = limits.memory {
                    set(&group, "memory.limit_in_bytes", &bytes.to_string())?;
                }
                groups.own.push(group);
                groups.back.push(parent);
            }
            if let Some(quota) = quota {
                let parent = cpu.ok_or_else(|| missing("processors"))?;
                let group = renew(&parent, name)?;
                set(&group, "cpu.cfs_period_us", &PERIOD.to_string())?;
                set(&group, "cpu.cfs_quota_us", &quota.to_string())?;
                groups.own.push(group);
                groups.back.push(parent);
            }
            Ok(groups)
        }
    }
}

/// The control groups that hold a process of this node to its limits. Without the right to make them it runs without.
pub async fn limit(home: &Home, process: String, limits: Limits) -> Groups {
    let (name, list) = (format!("{}{process}", home.group_prefix()), home.groups());
    let making = tokio::task::spawn_blocking(move || {
        let groups = match make(&name, &limits) {
            // Only to tell whom the kernel killed.
            Err(_) if !limits.any() => Groups::default(),
            made => made?,
        };
        groups.record(&list).map(|()| groups)
    });
    making.await.map_err(io::Error::other).flatten().unwrap_or_else(|error| {
        tracing::warn!("the limits of {process} are not enforced: {error}");
        Groups::default()
    })
}

impl Groups {
    /// Adds the groups to the list of those that were made on this node, so that whoever deletes the node finds them.
    pub fn record(&self, list: &Path) -> io::Result<()> {
        let known = fs::read_to_string(list).unwrap_or_default();
        let new: Vec<_> = self.own.iter().map(|g| g.display().to_string()).filter(|g| !known.lines().any(|k| k == g)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(list)?;
        new.iter().try_for_each(|group| writeln!(file, "{group}"))
    }

    /// Puts this process into the groups; what it starts is born in them.
    pub fn enter(&self) -> io::Result<()> {
        self.own.iter().try_for_each(|group| set(group, PROCESSES, "0"))
    }

    /// Puts this process back where the agent is.
    pub fn leave(&self) {
        for group in &self.back {
            // Where that fails this process shares the service's limits, no more.
            let _ = set(group, PROCESSES, "0");
        }
    }

    /// Kills whatever is left in the groups and removes them.
    pub fn remove(&self) {
        self.own.iter().for_each(|group| remove(group));
    }

    /// Whose limit it was that made the kernel kill a process of these groups; none if it killed none.
    pub fn ran_out_of_memory(&self) -> Option<MemoryLimit> {
        self.own.iter().find(|group| kills(group) > 0).map(|group| limit_reached(group))
    }
}

/// What the kernel killed in the groups of this node since they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kills {
    /// In the agent's own group, where programs of no service run; none where no limit of the node explains it.
    pub own: Option<u64>,
    /// In those of services, by the ends of the groups' names.
    pub services: BTreeMap<String, (u64, MemoryLimit)>,
}

/// Reads what the kernel killed in the agent's group, and in those beside or in it whose names begin as services' do.
pub fn read_kills(prefix: &str) -> io::Result<Kills> {
    let found = Hierarchy::find(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?);
    found.map_or_else(|| Ok(Kills::default()), |hierarchy| hierarchy.kills(prefix))
}

/// How many processes of a group the kernel killed for want of memory, by version 2 or 1.
fn kills(group: &Path) -> u64 {
    count(group, "memory.events", "oom_kill ") + count(group, "memory.oom_control", "oom_kill ")
}

/// Whose limit was reached where the kernel killed a process of a group: its own, or the node's.
fn limit_reached(group: &Path) -> MemoryLimit {
    let reached = count(group, "memory.events", "max ") + count(group, "memory.failcnt", "");
    if reached > 0 { MemoryLimit::Service } else { MemoryLimit::Node }
}

/// The number behind a name in a file of a group; 0 where there is none.
fn count(group: &Path, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(group.join(file)).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

fn remove(group: &Path) {
    let own = std::process::id() as i32;
    for _ in 0..LOOKS {
        match fs::remove_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            _ => return,
        }
        let left = fs::read_to_string(group.join(PROCESSES)).unwrap_or_default();
        for pid in left.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != own) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`.
    fn find(mounts: &str, own: &str) -> Option<Self> {
        let own_path = |controller: Option<&str>| {
            own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                let fits = match controller {
                    Some(controller) => controllers.split(',').any(|c| c == controller),
                    None => controllers.is_empty(),
                };
                fits.then(|| path.to_owned())
            })
        };
        // Root of the mount, where it is mounted, kind, and the options of the kind.
        let mounted: Vec<(&str, &str, &str, &str)> = mounts
            .lines()
            .filter_map(|line| {
                let (before, after) = line.split_once(" - ")?;
                let mut before = before.split(' ').skip(3);
                let (root, point) = (before.next()?, before.next()?);
                let mut after = after.split(' ');
                let (kind, _, options) = (after.next()?, after.next()?, after.next()?);
                kind.starts_with("cgroup").then_some((root, point, kind, options))
            })
            .collect();
        let place = |(root, point, _, _): &(&str, &str, &str, &str), own: String| {
            let inside = if *root == "/" { own.as_str() } else { own.strip_prefix(root).unwrap_or("") };
            Path::new(point).join(inside.trim_start_matches('/'))
        };
        let separate = |controller: &str| {
            let mount = mounted.iter().find(|m| m.2 == "cgroup" && m.3.split(',').any(|o| o == controller))?;
            Some(place(mount, own_path(Some(controller))?))
        };
        let (memory, cpu) = (separate("memory"), separate("cpu"));
        if memory.is_some() || cpu.is_some() {
            return Some(Self::Separate { memory, cpu });
        }
        let mount = mounted.iter().find(|m| m.2 == "cgroup2")?;
        let own = place(mount, own_path(None)?);
        let parent = if own == Path::new(mount.1) { own.clone() } else { own.parent()?.to_owned() };
        Some(Self::Unified { parent, own })
    }

    fn kills(&self, prefix: &str) -> io::Result<Kills> {
        let (parent, own) = match self {
            Self::Unified { parent, own } => (parent, own),
            Self::Separate { memory: Some(memory), .. } => (memory, memory),
            Self::Separate { memory: None, .. } => return Ok(Kills::default()),
        };
        let mut found = Kills { own: self.limits_memory().then(|| kills(own)), services: BTreeMap::new() };
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
            found.services.insert(rest.to_owned(), (kills(&entry.path()), limit_reached(&entry.path())));
        }
        Ok(found)
    }

    /// Whether the group that services' groups lie in has a limit of memory.
    fn limits_memory(&self) -> bool {
        let limit = match self {
            Self::Unified { parent, .. } => fs::read_to_string(parent.join("memory.max")),
            Self::Separate { memory: Some(memory), .. } => fs::read_to_string(memory.join("memory.limit_in_bytes")),
            Self::Separate { memory: None, .. } => return false,
        };
        // `max` is no number.
        limit.is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes < UNLIMITED))
    }
}

/// Lets the children of a group have limits of the kinds that are asked for.
fn enable(parent: &Path, memory: bool, cpu: bool) -> io::Result<()> {
    let enabled = fs::read_to_string(parent.join("cgroup.subtree_control"))?;
    let wanted = [("memory", memory), ("cpu", cpu)];
    for (controller, _) in wanted.iter().filter(|(c, wanted)| *wanted && !enabled.split_whitespace().any(|e| e == *c)) {
        set(parent, "cgroup.subtree_control", &format!("+{controller}"))?;
    }
    Ok(())
}

/// A group without a history: its counts begin at zero.
fn renew(parent: &Path, name: &str) -> io::Result<PathBuf> {
    let group = parent.join(name);
    remove(&group);
    fs::create_dir(&group).map_err(|e| io::Error::new(e.kind(), format!("making {}: {e}", group.display())))?;
    Ok(group)
}

fn set(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("writing {value:?} to {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_version_2_beside_the_agent() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchy::find(mounts, "0::/system.slice/cloudtik-agent.service\n");
        assert_eq!(
            found,
            Some(Hierarchy::Unified {
                parent: "/sys/fs/cgroup/system.slice".into(),
                own: "/sys/fs/cgroup/system.slice/cloudtik-agent.service".into()
            })
        );
        let found = Hierarchy::find(mounts, "0::/\n");
        assert_eq!(
            found,
            Some(Hierarchy::Unified { parent: "/sys/fs/cgroup".into(), own: "/sys/fs/cgroup".into() }),
            "the root is its own parent"
        );
    }

    #[test]
    fn finds_version_1_inside_the_agent_s_own() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /box /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = Hierarchy::find(mounts, "4:memory:/box/a\n1:cpu,cpuacct:/b\n0::/\n");
        let expected =
            Hierarchy::Separate { memory: Some("/sys/fs/cgroup/memory/a".into()), cpu: Some("/sys/fs/cgroup/cpu,cpuacct/b".into()) };
        assert_eq!(found, Some(expected));
        assert_eq!(Hierarchy::find("", ""), None);
    }

    #[test]
    fn whose_limit_was_reached_is_told_from_the_counts_of_either_version() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let groups = Groups { own: vec![directory.path().to_owned()], back: Vec::new() };
        let after = |files: [(&str, &str); 2]| {
            files.iter().for_each(|(file, text)| fs::write(directory.path().join(file), text).expect("writes"));
            let found = groups.ran_out_of_memory();
            files.iter().for_each(|(file, _)| fs::remove_file(directory.path().join(file)).expect("removes"));
            found
        };
        let v1 = |kills: &str, failures: &str| {
            let control = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
            after([("memory.oom_control", &control), ("memory.failcnt", &format!("{failures}\n"))])
        };
        assert_eq!(v1("0", "7"), None, "it only made room");
        assert_eq!(v1("1", "7"), Some(MemoryLimit::Service));
        assert_eq!(v1("1", "0"), Some(MemoryLimit::Node));
        let v2 = |max: &str, kills: &str| {
            after([
                ("memory.events", &format!("low 0\nhigh 0\nmax {max}\noom 0\noom_kill {kills}\noom_group_kill 0\n")),
                ("memory.max", ""),
            ])
        };
        assert_eq!(v2("3", "0"), None);
        assert_eq!(v2("3", "1"), Some(MemoryLimit::Service));
        assert_eq!(v2("0", "2"), Some(MemoryLimit::Node));
    }

    #[test]
    fn a_limit_of_the_node_is_told_from_none() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let own = directory.path().to_owned();
        let separate = Hierarchy::Separate { memory: Some(own.clone()), cpu: None };
        let unified = Hierarchy::Unified { parent: own.clone(), own: own.join("init") };
        for (hierarchy, file, none) in [(separate, "memory.limit_in_bytes", "9223372036854771712\n"), (unified, "memory.max", "max\n")] {
            assert!(!hierarchy.limits_memory(), "the machine's own root has no such file");
            fs::write(own.join(file), none).expect("writes");
            assert!(!hierarchy.limits_memory());
            fs::write(own.join(file), "268435456\n").expect("writes");
            assert!(hierarchy.limits_memory());
        }
    }
}
