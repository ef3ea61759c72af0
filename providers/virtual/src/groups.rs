//! Control groups of nodes: their limits of memory and processor time, by version 1 or 2, whichever has the controller
//! (Linux: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`).
//!
//! A node has a group of the same name in every hierarchy that serves it, and sees that group as the root. Under version 2
//! its processes begin in a group [`INIT`] inside, since a group that has processes cannot divide its resources.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloudtik_model::Resources;

/// The file that lists a group's processes, and takes new ones.
const PROCESSES: &str = "cgroup.procs";
/// The file of version 1 that takes single threads. The kernel stops all forks of the machine to change the group of a whole
/// process, which takes it milliseconds; not so for a thread that changes its own.
const THREADS: &str = "tasks";
/// How often processes that are being stopped are looked for again: they start others meanwhile.
const GATHERINGS: u32 = 16;
/// The group of version 2 that a node's first process begins in.
pub const INIT: &str = "init";
/// Microseconds over which processor time is counted.
const PERIOD: u64 = 100_000;
/// How long the kernel may take to let a group go whose processes have ended.
const REMOVAL: Duration = Duration::from_secs(2);

/// Where hierarchies are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1: mount point and the options that mount the same hierarchy again.
    pub memory: Option<(PathBuf, String)>,
    pub cpu: Option<(PathBuf, String)>,
    /// Version 2.
    pub unified: Option<PathBuf>,
}

/// What of the wanted limits the machine enforces, and why not all.
#[derive(Debug, Default)]
pub struct Enforced {
    pub memory: bool,
    pub cpu: bool,
    pub failures: Vec<io::Error>,
}

impl Hierarchies {
    /// Of this machine.
    pub fn find() -> io::Result<Self> {
        Ok(Self::read(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// From the text of `/proc/self/mountinfo`.
    fn read(mounts: &str) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(point) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut after = after.split(' ');
            let (kind, options) = (after.next().unwrap_or(""), after.nth(1).unwrap_or(""));
            let controllers = || options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).collect::<Vec<_>>().join(",");
            let has = |controller: &str| kind == "cgroup" && options.split(',').any(|o| o == controller);
            if has("memory") && found.memory.is_none() {
                found.memory = Some((point.clone(), controllers()));
            }
            if has("cpu") && found.cpu.is_none() {
                found.cpu = Some((point.clone(), controllers()));
            }
            if kind == "cgroup2" && found.unified.is_none() {
                found.unified = Some(point);
            }
        }
        found
    }

    /// Where a group lies in each hierarchy.
    fn places(&self, group: &Path) -> Vec<PathBuf> {
        let separate = [&self.memory, &self.cpu].into_iter().flatten().map(|(point, _)| point.join(group));
        let mut places: Vec<PathBuf> = separate.chain(self.unified.iter().map(|point| point.join(group))).collect();
        places.sort();
        places.dedup();
        places
    }

    /// The roots of all hierarchies.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.places(Path::new(""))
    }

    /// Makes the groups of a node and sets its limits. What the machine does not enforce is told, and is no failure: the
    /// node goes without.
    pub fn create(&self, group: &Path, resources: Option<Resources>) -> Enforced {
        let mut enforced = Enforced::default();
        let limits = resources.unwrap_or_default();
        let quota = (limits.cpus > 0).then(|| u64::from(limits.cpus) * PERIOD);
        let memory = (limits.memory.0 > 0).then_some(limits.memory.0);
        if let Some((point, _)) = &self.memory {
            let made = make(point, group).and_then(|group| memory.map_or(Ok(()), |bytes| limit_memory_v1(&group, bytes)));
            enforced.note(made, |e| e.memory = true);
        }
        if let Some((point, _)) = &self.cpu {
            let made = make(point, group).and_then(|group| {
                let Some(quota) = quota else { return Ok(()) };
                set(&group, "cpu.cfs_period_us", &PERIOD.to_string())?;
                set(&group, "cpu.cfs_quota_us", &quota.to_string())
            });
            enforced.note(made, |e| e.cpu = true);
        }
        if let Some(point) = &self.unified {
            let made = self.create_unified(point, group, memory, quota, &mut enforced);
            enforced.note(made, |_| {});
        }
        enforced
    }

    fn create_unified(
        &self,
        point: &Path,
        group: &Path,
        memory: Option<u64>,
        quota: Option<u64>,
        enforced: &mut Enforced,
    ) -> io::Result<()> {
        let offered = fs::read_to_string(point.join("cgroup.controllers"))?;
        let offers = |controller: &str| offered.split_whitespace().any(|c| c == controller);
        let wanted: Vec<&str> = ["memory", "cpu"].into_iter().filter(|c| offers(c)).collect();
        let mut above = point.to_owned();
        for name in group {
            enable(&above, &wanted)?;
            above.push(name);
            make_one(&above)?;
        }
        // Each change of a process's group takes the kernel milliseconds.
        if !wanted.is_empty() {
            make_one(&above.join(INIT))?;
        }
        if wanted.contains(&"memory") {
            if let Some(bytes) = memory {
                set(&above, "memory.max", &bytes.to_string())?;
                // Where there is no swap there is no such file.
                let _ = set(&above, "memory.swap.max", "0");
            }
            enforced.memory = true;
        }
        if wanted.contains(&"cpu") {
            if let Some(quota) = quota {
                set(&above, "cpu.max", &format!("{quota} {PERIOD}"))?;
            }
            enforced.cpu = true;
        }
        Ok(())
    }

    /// Puts this process, which has one thread, into the groups of a node. What it starts is born in them.
    ///
    /// Where version 1 limits nodes, version 2 only stops them, and processes get into its group when that is asked for.
    pub fn enter(&self, group: &Path) -> io::Result<()> {
        let places = self.places(group).into_iter().filter(|place| place.exists());
        let (separate, unified): (Vec<_>, Vec<_>) = places.partition(|place| place.join(THREADS).exists());
        separate.iter().try_for_each(|place| set(place, THREADS, "0"))?;
        let is_needed = |place: &&PathBuf| separate.is_empty() || place.join(INIT).exists();
        unified.iter().filter(is_needed).try_for_each(|place| set(place, PROCESSES, "0"))
    }

    /// Where processes of a node begin.
    pub fn entrances(&self, group: &Path) -> Vec<PathBuf> {
        let begin = |place: PathBuf| if place.join(INIT).exists() { place.join(INIT) } else { place };
        self.places(group).into_iter().filter(|place| place.exists()).map(begin).collect()
    }

    /// Goes one group further inside, where this process sees its group of version 2 as the root already.
    pub fn enter_init(&self, group: &Path) -> io::Result<()> {
        let inner = self.unified.iter().map(|point| point.join(group).join(INIT));
        inner.filter(|place| place.exists()).try_for_each(|place| set(&place, PROCESSES, "0"))
    }

    /// Removes a group and those inside of it, whose processes have ended.
    pub fn remove(&self, group: &Path) -> io::Result<()> {
        let until = Instant::now() + REMOVAL;
        self.places(group).iter().try_for_each(|place| remove(place, until))
    }

    /// Removes what lies above a group and is empty now.
    pub fn remove_empty(&self, group: &Path) {
        for point in self.roots() {
            for above in group.ancestors().filter(|path| !path.as_os_str().is_empty()) {
                // One that has others' groups in it stays.
                let _ = fs::remove_dir(point.join(above));
            }
        }
    }

    /// The names below a group, in all hierarchies.
    pub fn children(&self, group: &Path) -> Vec<String> {
        let mut names: Vec<String> = self.places(group).iter().flat_map(|place| directories(place)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The processes in a group and in those inside of it, as this process's own namespace numbers them.
    pub fn processes(&self, group: &Path) -> Vec<i32> {
        let mut found = Vec::new();
        for place in self.places(group) {
            collect(&place, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// How many processes of the group the kernel killed because its memory was used up.
    pub fn memory_kills(&self, group: &Path) -> u64 {
        let count = |text: String| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        let files = self.places(group).into_iter().flat_map(|place| [place.join("memory.events"), place.join("memory.oom_control")]);
        files.filter_map(|file| count(fs::read_to_string(file).ok()?)).sum()
    }

    /// Stops the processes of a group where they are, or lets them go on; false where the machine cannot.
    pub fn freeze(&self, group: &Path, frozen: bool) -> io::Result<bool> {
        let Some(place) = self.unified.as_ref().map(|point| point.join(group)) else { return Ok(false) };
        if !place.join("cgroup.freeze").exists() {
            return Ok(false);
        }
        if frozen {
            self.gather(group, &place);
        }
        set(&place, "cgroup.freeze", if frozen { "1" } else { "0" }).map(|()| true)
    }
}

impl Hierarchies {
    /// Takes the processes of a node into its group of version 2. Those that end meanwhile are no concern.
    fn gather(&self, group: &Path, unified: &Path) {
        for _ in 0..GATHERINGS {
            let mut inside = Vec::new();
            collect(unified, &mut inside);
            let outside: Vec<i32> = self.processes(group).into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                return;
            }
            for pid in outside {
                let _ = set(unified, PROCESSES, &pid.to_string());
            }
        }
    }
}

impl Enforced {
    fn note(&mut self, made: io::Result<()>, holds: impl FnOnce(&mut Self)) {
        match made {
            Ok(()) => holds(self),
            Err(error) => self.failures.push(error),
        }
    }
}

fn limit_memory_v1(group: &Path, bytes: u64) -> io::Result<()> {
    set(group, "memory.limit_in_bytes", &bytes.to_string())?;
    // Without accounting of swap there is no such file.
    let _ = set(group, "memory.memsw.limit_in_bytes", &bytes.to_string());
    Ok(())
}

fn make(point: &Path, group: &Path) -> io::Result<PathBuf> {
    let mut path = point.to_owned();
    for name in group {
        path.push(name);
        make_one(&path)?;
    }
    Ok(path)
}

fn make_one(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(about("making", group, error)),
        _ => Ok(()),
    }
}

/// Lets the children of a group have limits of these kinds.
fn enable(group: &Path, controllers: &[&str]) -> io::Result<()> {
    let enabled = fs::read_to_string(group.join("cgroup.subtree_control"))?;
    let missing = controllers.iter().filter(|c| !enabled.split_whitespace().any(|e| e == **c));
    missing.into_iter().try_for_each(|controller| set(group, "cgroup.subtree_control", &format!("+{controller}")))
}

fn set(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    fs::write(&path, value).map_err(|error| about("writing to", &path, error))
}

fn about(operation: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{operation} {}: {error}", path.display()))
}

fn directories(group: &Path) -> Vec<String> {
    let entries = fs::read_dir(group).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.iter().filter(|entry| is_directory(entry)).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn remove(group: &Path, until: Instant) -> io::Result<()> {
    for child in directories(group) {
        remove(&group.join(child), until)?;
    }
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > until => return Err(about("removing", group, error)),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn collect(group: &Path, found: &mut Vec<i32>) {
    let own = fs::read_to_string(group.join(PROCESSES)).unwrap_or_default();
    found.extend(own.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in directories(group) {
        collect(&group.join(child), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::read(mounts);
        assert_eq!(found.memory, Some(("/sys/fs/cgroup/memory".into(), "memory".to_owned())));
        assert_eq!(found.cpu, Some(("/sys/fs/cgroup/cpu,cpuacct".into(), "cpu,cpuacct".to_owned())));
        assert_eq!(found.unified, Some("/sys/fs/cgroup/unified".into()));
        let found = Hierarchies::read("30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(found, Hierarchies { memory: None, cpu: None, unified: Some("/sys/fs/cgroup".into()) });
    }
}
