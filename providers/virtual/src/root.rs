//! A node's file system: a writable layer over the host's, with what is the node's own on top. It is made in the node's
//! mount namespace, and is gone with it; what was written stays in the instance's `disk`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cloudtik_files::{KERNEL_FILE_SYSTEMS, create_missing_directories, remove_tree, unescape_octal};
use nix::libc::O_PATH;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};

use crate::groups::Hierarchies;
use crate::instance::{Machine, Place};
use crate::service;

/// The directory below the cluster's nodes that holds the file of all nodes' names.
pub const HOSTS_DIRECTORY: &str = ".hosts";
pub const HOSTS_FILE: &str = "hosts";
/// Where a node sees the directory of the names, and what else comes from outside.
const OUTSIDE: &str = "/run/cloudtik";
/// Where the host's root is while the node's is being made.
const HOST: &str = "/.host";
/// The kind of file system that shows the machine's firmware, which a node must not write.
const FIRMWARE: &str = "efivarfs";
/// What nodes have of their own, so that nothing below is taken from the host.
const OWN: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// Makes the node's root and enters it. What could be left out is returned: file systems of the host that are not shown.
pub fn enter(place: &Place, machine: &Machine, hierarchies: &Hierarchies, is_user: bool) -> io::Result<Vec<io::Error>> {
    let nothing = None::<&Path>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(|e| about("keep mounts private in", Path::new("/"), e))?;
    prepare(place, machine)?;
    let below = host_mounts(&fs::read("/proc/self/mountinfo")?, place, machine);

    // Paths in options are short and without odd characters this way.
    chdir(place.path()).map_err(|e| about("enter", place.path(), e))?;
    let mut left_out = if is_user { compose(place, &below)? } else { layer(place, &below)? };

    let brought = brought(place, machine)?;
    let devices: Vec<(&str, File)> = DEVICES.iter().filter_map(|name| Some((*name, open(&Path::new("/dev").join(name)).ok()?))).collect();
    let temporary = open(&place.disk().join("tmp"))?;
    let agent = open(&machine.agent)?;
    let host = inside(&place.root(), Path::new(HOST));
    fs::create_dir_all(&host)?;
    pivot_root(&place.root(), &host).map_err(|e| about("change to", &place.root(), e))?;
    chdir("/")?;
    kernel(hierarchies, &mut left_out)?;
    device_files(&devices)?;
    bind(&temporary, Path::new("/tmp"), true)?;
    file_system("tmpfs", Path::new("/run"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    for hidden in machine.hidden.iter().chain([&machine.nodes]) {
        create_missing_directories(hidden)?;
        file_system("tmpfs", hidden, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755,size=1m")?;
    }
    for (source, target, writable) in &brought {
        bind(source, target, *writable)?;
    }
    // It may lie where the node has directories of its own.
    if !machine.agent.exists() {
        bind(&agent, &machine.agent, false)?;
    }
    umount2(HOST, MntFlags::MNT_DETACH).map_err(|e| about("let go", Path::new(HOST), e))?;
    fs::remove_dir(HOST)?;
    Ok(left_out)
}

/// What the node sees of the machine's own directories: each with where, and whether it may write there.
fn brought(place: &Place, machine: &Machine) -> io::Result<Vec<(File, PathBuf, bool)>> {
    let mut brought = Vec::new();
    for shared in &machine.shared {
        if !shared.exists() {
            create_missing_directories(shared)?;
        }
        brought.push((open(shared)?, shared.clone(), true));
    }
    if machine.node.is_head() {
        let service = machine.nodes.join(service::DIRECTORY);
        brought.push((open(&service)?, service, false));
    }
    brought.push((open(&place.home())?, place.home(), true));
    brought.push((open(&machine.nodes.join(HOSTS_DIRECTORY))?, PathBuf::from(OUTSIDE), false));
    Ok(brought)
}

/// Makes the directories of the disk, empties what does not outlast a start, and writes what a node has of its own in `/etc`.
fn prepare(place: &Place, machine: &Machine) -> io::Result<()> {
    let disk = place.disk();
    remove_tree(&disk.join("tmp")).map_err(io::Error::other)?;
    for name in ["upper/etc", "work", "tmp", "mounts"] {
        create_missing_directories(&disk.join(name))?;
    }
    for (name, mode) in [("upper", 0o755), ("upper/etc", 0o755), ("tmp", 0o1777)] {
        fs::set_permissions(disk.join(name), fs::Permissions::from_mode(mode))?;
    }
    create_missing_directories(&place.root())?;
    let etc = disk.join("upper/etc");
    let hosts = Path::new(OUTSIDE).join(HOSTS_FILE);
    if fs::read_link(etc.join("hosts")).ok().as_deref() != Some(&hosts) {
        remove(&etc.join("hosts"))?;
        symlink(&hosts, etc.join("hosts"))?;
    }
    fs::write(etc.join("hostname"), format!("{}\n", machine.node))?;
    // A link of the host's leads to where the node has nothing.
    remove(&etc.join("resolv.conf"))?;
    fs::write(etc.join("resolv.conf"), resolvers(machine.nat))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The name servers that the node can reach. A loopback address is the host's own.
fn resolvers(nat: bool) -> String {
    const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let is_local = |line: &&str| line.split_whitespace().nth(1).is_some_and(|address| address.starts_with("127.") || address == "::1");
    let mut lines: Vec<String> = Vec::new();
    for text in FILES.iter().filter_map(|file| fs::read_to_string(file).ok()).take_while(|_| nat) {
        let (servers, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("nameserver"));
        lines.extend(servers.iter().filter(|line| !is_local(line)).map(ToString::to_string));
        if !lines.is_empty() {
            lines.extend(others.iter().filter(|line| line.starts_with("search") || line.starts_with("options")).map(ToString::to_string));
            return lines.join("\n") + "\n";
        }
    }
    "# This node reaches no name server; the nodes of its cluster are in /etc/hosts.\n".to_owned()
}

/// A file system of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostMount {
    point: PathBuf,
    is_read_only: bool,
    /// It is not shown.
    is_apart: bool,
}

/// The file systems of the host that nodes see besides the root, those below others last.
fn host_mounts(mountinfo: &[u8], place: &Place, machine: &Machine) -> Vec<HostMount> {
    let own = OWN.iter().map(PathBuf::from);
    let apart: Vec<PathBuf> =
        own.chain(machine.hidden.clone()).chain(machine.shared.clone()).chain([machine.nodes.clone(), place.path().to_owned()]).collect();
    let mut found: Vec<HostMount> = Vec::new();
    for line in mountinfo.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let Some(separator) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(point), Some(options), Some(kind)) = (fields.get(4), fields.get(5), fields.get(separator + 1)) else { continue };
        let point = PathBuf::from(std::ffi::OsStr::from_bytes(&unescape_octal(point)));
        if point == Path::new("/") {
            continue;
        }
        let is_apart = KERNEL_FILE_SYSTEMS.iter().chain([&FIRMWARE]).any(|k| k.as_bytes() == *kind)
            || apart.iter().any(|path| point.starts_with(path));
        let is_read_only = options.split(|b| *b == b',').any(|option| option == b"ro");
        found.retain(|other| other.point != point);
        found.push(HostMount { point, is_read_only, is_apart });
    }
    found.sort_by(|a, b| a.point.cmp(&b.point));
    found
}

/// One writable layer over the host's root, and one over each of its other file systems.
fn layer(place: &Place, below: &[HostMount]) -> io::Result<Vec<io::Error>> {
    overlay("/", Path::new("disk/upper"), Path::new("disk/work"), "", &place.root())?;
    let mut left_out = Vec::new();
    for (number, found) in below.iter().filter(|found| !found.is_apart).enumerate() {
        let directory = PathBuf::from("disk/mounts").join(number.to_string());
        let layers = (!found.is_read_only).then(|| (directory.join("upper"), directory.join("work")));
        left_out.extend(show(&found.point, layers, "", &inside(&place.root(), &found.point)).err());
    }
    Ok(left_out)
}

/// The same for an ordinary user, for whom the kernel lays no layer over a directory that file systems are mounted below:
/// one over each directory without such.
fn compose(place: &Place, below: &[HostMount]) -> io::Result<Vec<io::Error>> {
    file_system("tmpfs", &place.root(), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755,size=16m")?;
    let mut left_out = Vec::new();
    let mut pending = vec![PathBuf::from("/")];
    let mut number = 0;
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                left_out.push(io::Error::new(error.kind(), format!("cannot read {}: {error}", directory.display())));
                continue;
            }
        };
        for entry in entries.flatten() {
            let (path, target) = (entry.path(), inside(&place.root(), &entry.path()));
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_symlink() {
                symlink(fs::read_link(&path)?, &target)?;
                continue;
            }
            if !kind.is_dir() && !kind.is_file() {
                continue;
            }
            if kind.is_dir() {
                fs::create_dir(&target)?;
            } else {
                File::create(&target)?;
            }
            let own = below.iter().find(|found| found.point == path);
            if own.is_some_and(|found| found.is_apart) || OWN.iter().any(|own| Path::new(own) == path) {
                continue;
            }
            if below.iter().any(|found| found.point != path && found.point.starts_with(&path)) {
                pending.push(path);
                continue;
            }
            number += 1;
            let is_layered = kind.is_dir() && !own.is_some_and(|found| found.is_read_only);
            let layers = is_layered.then(|| (inside(Path::new("disk/upper"), &path), PathBuf::from(format!("disk/mounts/{number}"))));
            left_out.extend(show(&path, layers, ",userxattr", &target).err());
        }
    }
    Ok(left_out)
}

/// Shows a directory or file of the host: with a writable layer where one is given, else read-only.
fn show(path: &Path, layers: Option<(PathBuf, PathBuf)>, user: &str, target: &Path) -> io::Result<()> {
    let source = open(path)?;
    let is_directory = source.metadata()?.is_dir();
    if let Some((upper, work)) = layers.filter(|_| is_directory) {
        create_missing_directories(&upper)?;
        create_missing_directories(&work)?;
        fs::set_permissions(&upper, source.metadata()?.permissions())?;
        let lower = format!("/proc/self/fd/{}", source.as_raw_fd());
        if overlay(&lower, &upper, &work, user, target).is_ok() {
            return Ok(());
        }
    }
    // Not every file system can lie below a layer.
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(from.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| about("show", path, e))?;
    read_only(target)
}

fn overlay(lower: &str, upper: &Path, work: &Path, user: &str, target: &Path) -> io::Result<()> {
    let options = format!("lowerdir={lower},upperdir={},workdir={}{user}", upper.display(), work.display());
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|e| about("lay a writable layer at", target, e))
}

/// The node's own view of the kernel. What would change the host is read-only.
fn kernel(hierarchies: &Hierarchies, left_out: &mut Vec<io::Error>) -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    file_system("proc", Path::new("/proc"), quiet, "")?;
    for path in ["/proc/sys/net", "/proc/sys", "/proc/sysrq-trigger"].map(Path::new).iter().filter(|path| path.exists()) {
        mount(Some(*path), *path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).map_err(|e| about("protect", path, e))?;
        // Its network's settings are the node's own.
        if !path.ends_with("net") {
            read_only(path)?;
        }
    }
    file_system("sysfs", Path::new("/sys"), quiet | MsFlags::MS_RDONLY, "")?;
    if let Err(error) = control_groups(hierarchies, quiet) {
        left_out.push(error);
    }
    Ok(())
}

/// The hierarchies that limit memory and processors, in which the node's own group is the root.
fn control_groups(hierarchies: &Hierarchies, quiet: MsFlags) -> io::Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let separate: Vec<&String> = [&hierarchies.memory, &hierarchies.cpu].into_iter().flatten().map(|(_, options)| options).collect();
    if separate.is_empty() {
        return if hierarchies.unified.is_some() { file_system("cgroup2", top, quiet, "") } else { Ok(()) };
    }
    file_system("tmpfs", top, quiet, "mode=755,size=64k")?;
    for options in separate {
        let point = top.join(options);
        if !point.exists() {
            fs::create_dir(&point)?;
            file_system("cgroup", &point, quiet, options)?;
        }
    }
    Ok(())
}

fn device_files(devices: &[(&str, File)]) -> io::Result<()> {
    let dev = Path::new("/dev");
    file_system("tmpfs", dev, MsFlags::MS_NOSUID, "mode=755,size=64k")?;
    for (name, source) in devices {
        bind(source, &dev.join(name), true)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(name))?;
    }
    file_system("devpts", &dev.join("pts"), quiet, "newinstance,ptmxmode=0666,mode=620")?;
    file_system("tmpfs", &dev.join("shm"), quiet | MsFlags::MS_NODEV, "mode=1777")?;
    file_system("mqueue", &dev.join("mqueue"), quiet | MsFlags::MS_NODEV, "")
}

fn file_system(kind: &str, target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some(kind), target, Some(kind), flags, Some(options)).map_err(|e| about(&format!("mount {kind} at"), target, e))
}

/// Shows an open directory or file at a path, which is made if it is missing.
fn bind(source: &File, target: &Path, writable: bool) -> io::Result<()> {
    if source.metadata()?.is_dir() {
        create_missing_directories(target)?;
    } else if !target.exists() {
        create_missing_directories(target.parent().unwrap_or(Path::new("/")))?;
        File::create(target)?;
    }
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(from.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| about("show", target, e))?;
    if writable { Ok(()) } else { read_only(target) }
}

fn read_only(target: &Path) -> io::Result<()> {
    // A mount that came from a namespace with more rights keeps what it forbids.
    let flags = statvfs(target).map(|found| found.flags()).unwrap_or(FsFlags::empty());
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.into_iter().filter(|(has, _)| flags.contains(*has)).map(|(_, flag)| flag).collect::<MsFlags>();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(|e| about("protect", target, e))
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_PATH).open(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display())))
}

/// An absolute path as it is below a root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn about(operation: &str, path: &Path, errno: nix::Error) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("cannot {operation} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use cloudtik_model::{ClusterName, Generation, NodeId};

    use super::*;

    #[test]
    fn file_systems_of_the_host_are_shown_but_for_the_kernel_s_and_what_is_the_node_s_own() {
        let machine = Machine {
            cluster: ClusterName::new("demo").expect("valid"),
            node: NodeId::new("w1").expect("valid"),
            generation: Generation(1),
            address: Ipv4Addr::new(10, 77, 0, 2),
            range: "10.77.0.0/20".parse().expect("valid"),
            workspace: "/state/dev".into(),
            nodes: "/state/dev/nodes".into(),
            agent: "/usr/bin/cloudtik-agent".into(),
            resources: None,
            shared: Vec::new(),
            hidden: vec!["/secret".into()],
            nat: false,
        };
        let mountinfo = b"21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            22 21 0:5 / /proc rw - proc proc rw\n\
            23 21 254:1 / /home rw,relatime shared:3 - ext4 /dev/vdb rw\n\
            24 21 254:2 / /home/my\\040disk ro,relatime - squashfs /dev/vdc ro\n\
            25 21 0:30 / /run/user rw - tmpfs tmpfs rw\n\
            26 21 0:31 / /secret/box rw - tmpfs tmpfs rw\n\
            27 21 0:32 / /state/dev/nodes/w1.1/home/x rw - ext4 /dev/vdd rw\n";
        let found = host_mounts(mountinfo, &Place::new("/state/dev/nodes/w1.1"), &machine);
        let shown: Vec<_> = found.iter().filter(|f| !f.is_apart).map(|f| (f.point.to_str().expect("text"), f.is_read_only)).collect();
        let expected = [("/home", false), ("/home/my disk", true)];
        assert_eq!(shown, expected);
    }
}
