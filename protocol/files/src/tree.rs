//! The removal of directory trees. It never leaves the file system that the tree is on, and never enters a mount.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// How directories are opened: a symbolic link is none.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a tree was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Something is mounted at or below the tree. If it was there from the beginning, nothing was removed.
    #[error("{0}; what is mounted is never deleted; unmount it first: {unmount}", unmount = .0.unmount())]
    Mounted(Mounts),
    #[error("cannot remove {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// One mount point or more, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts(Vec<PathBuf>);

impl Mounts {
    /// The command for a shell that unmounts all of them, those below others first.
    pub fn unmount(&self) -> String {
        let quoted = |path: &PathBuf| {
            let text = path.to_string_lossy();
            shlex::try_quote(&text).map_or_else(|_| text.to_string(), Into::into)
        };
        let paths: Vec<String> = self.0.iter().rev().map(quoted).collect();
        format!("umount {}", paths.join(" "))
    }
}

/// Which ones are mounted, as a sentence without its end.
impl fmt::Display for Mounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, path) in self.0.iter().enumerate() {
            let before = if n == 0 {
                ""
            } else if n + 1 == self.0.len() {
                " and "
            } else {
                ", "
            };
            write!(f, "{before}{}", path.display())?;
        }
        f.write_str(if self.0.len() == 1 { " is mounted" } else { " are mounted" })
    }
}

/// The mount points at or below a directory, as this process sees them, in order.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    // The kernel's list has no symbolic links.
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found: Vec<PathBuf> = mount_points(&fs::read("/proc/self/mountinfo")?).filter(|point| point.starts_with(&directory)).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Kinds of file systems that show the kernel, or that are made of others: nothing is kept in them.
pub const KERNEL_FILE_SYSTEMS: [&str; 20] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// The fifth field of each line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), where spaces are written as `\040`.
fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    let points = mountinfo.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    points.map(|field| PathBuf::from(OsString::from_vec(unescape_octal(field))))
}

/// A text in which some bytes stand as a backslash and three octal digits, as the kernel and GNU tar write them.
pub fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Fails with the mounts at or below a directory, if there are any.
pub fn refuse_mounts(directory: &Path) -> Result<(), RemoveError> {
    let mounts = mounts_below(directory).map_err(|source| RemoveError::Io { path: directory.to_owned(), source })?;
    if mounts.is_empty() { Ok(()) } else { Err(RemoveError::Mounted(Mounts(mounts))) }
}

/// Removes a directory with all that is in it, or a file or symbolic link. One that is missing is fine.
///
/// If anything is mounted at or below the directory, nothing is removed. What is mounted while the removal runs is not
/// entered: the removal stops there.
pub fn remove_tree(path: &Path) -> Result<(), RemoveError> {
    let failed = |source: io::Error| RemoveError::Io { path: path.to_owned(), source };
    let device = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.is_dir() => return missing_is_fine(fs::remove_file(path)).map_err(failed),
        Ok(metadata) => std::os::unix::fs::MetadataExt::dev(&metadata),
    };
    refuse_mounts(path)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let parent = fs::File::open(parent).map_err(failed)?;
    let name = CString::new(name.as_bytes()).map_err(|e| failed(e.into()))?;
    remove_directory(parent.as_fd(), &name, path, device)
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A directory that is being emptied.
struct Level {
    name: CString,
    /// Its device and inode.
    identity: (u64, u64),
    /// Directories in it that are still to be removed.
    pending: Vec<CString>,
}

/// Two descriptors are open at a time, however deep the tree is: the way up is `..`, which must lead to where the way down
/// came from.
fn remove_directory(parent: BorrowedFd<'_>, name: &CString, path: &Path, device: u64) -> Result<(), RemoveError> {
    let mut path = path.to_owned();
    let Some((mut current, top)) = enter(parent, name, &path, device)? else { return Ok(()) };
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        if let Some(next) = level.pending.pop() {
            path.push(OsStr::from_bytes(next.to_bytes()));
            match enter(current.as_fd(), &next, &path, device)? {
                Some((entered, below)) => {
                    current = entered;
                    levels.push(below);
                }
                None => drop(path.pop()),
            }
            continue;
        }
        let failed = |errno: Errno| RemoveError::Io { path: path.clone(), source: errno.into() };
        let emptied = level.name.clone();
        levels.pop();
        let Some(above) = levels.last() else { return unlink(parent, &emptied, AtFlags::REMOVEDIR).map_err(failed) };
        let up = match openat(&current, c"..", DIRECTORY, Mode::empty()) {
            Ok(up) => up,
            // Somebody else removes the same tree: the rest of it is found from its top.
            Err(Errno::NOENT) => return remove_directory(parent, name, &top_of(&path, levels.len()), device),
            Err(errno) => return Err(failed(errno)),
        };
        if identity(&up).map_err(failed)? != above.identity {
            let moved = io::Error::other("it was moved while it was removed");
            return Err(RemoveError::Io { path, source: moved });
        }
        unlink(up.as_fd(), &emptied, AtFlags::REMOVEDIR).map_err(failed)?;
        path.pop();
        current = up;
    }
    Ok(())
}

/// The path without its last `depth` names.
fn top_of(path: &Path, depth: usize) -> PathBuf {
    path.ancestors().nth(depth).unwrap_or(path).to_owned()
}

/// Opens a directory and removes what is in it, but for directories. None if it is not there any more.
fn enter(parent: BorrowedFd<'_>, name: &CString, path: &Path, device: u64) -> Result<Option<(OwnedFd, Level)>, RemoveError> {
    let failed = |errno: Errno| RemoveError::Io { path: path.to_owned(), source: errno.into() };
    let directory = match open_directory(parent, name, device) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::XDEV) => return Err(RemoveError::Mounted(Mounts(vec![path.to_owned()]))),
        Err(errno) => return Err(failed(errno)),
    };
    let mut level = Level { name: name.clone(), identity: identity(&directory).map_err(failed)?, pending: Vec::new() };
    let mut others = Vec::new();
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let is_directory = match entry.file_type() {
            // Not every file system says.
            FileType::Unknown => statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory),
            kind => kind == FileType::Directory,
        };
        let of_its_kind = if is_directory { &mut level.pending } else { &mut others };
        of_its_kind.push(entry.file_name().to_owned());
    }
    for other in others {
        let failed = |errno: Errno| RemoveError::Io { path: path.join(OsStr::from_bytes(other.to_bytes())), source: errno.into() };
        unlink(directory.as_fd(), &other, AtFlags::empty()).map_err(failed)?;
    }
    Ok(Some((directory, level)))
}

/// Removes an entry of a directory. One that is missing is fine.
fn unlink(directory: BorrowedFd<'_>, name: &CString, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn identity(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(directory).map(|found| (found.st_dev, found.st_ino))
}

/// Opens a directory without following a symbolic link or crossing a mount, be it of the same file system.
fn open_directory(parent: BorrowedFd<'_>, name: &CString, device: u64) -> Result<OwnedFd, Errno> {
    match openat2(parent, name, DIRECTORY, Mode::empty(), ResolveFlags::NO_XDEV | ResolveFlags::BENEATH) {
        // Older kernels do not have the call, and some sandboxes forbid it: then another file system can be told.
        Err(Errno::NOSYS | Errno::PERM) => {
            let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
            if fstat(&directory)?.st_dev == device { Ok(directory) } else { Err(Errno::XDEV) }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_and_what_its_links_lead_to_stays() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (tree, other) = (directory.path().join("tree"), directory.path().join("other"));
        fs::create_dir_all(tree.join("a/b/c")).expect("makes");
        fs::create_dir(&other).expect("makes");
        fs::write(tree.join("a/b/file"), "x").expect("writes");
        fs::write(other.join("kept"), "x").expect("writes");
        std::os::unix::fs::symlink(&other, tree.join("a/link")).expect("links");
        std::os::unix::fs::symlink(&other, directory.path().join("link")).expect("links");
        remove_tree(&tree).expect("removes");
        remove_tree(&directory.path().join("link")).expect("removes the link");
        remove_tree(&tree).expect("what is missing is fine");
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1);
        assert!(other.join("kept").exists());
    }

    #[test]
    fn mount_points_are_read_with_odd_names() {
        let mountinfo = b"42 27 254:0 /a /tmp/a\\040b\\134c rw,relatime - ext4 /dev/vda rw\n43 27 0:5 / /proc rw - proc proc rw\n";
        let points: Vec<PathBuf> = mount_points(mountinfo).collect();
        assert_eq!(points, [PathBuf::from("/tmp/a b\\c"), PathBuf::from("/proc")]);
    }

    #[test]
    fn the_mounts_at_and_below_a_directory_are_found_and_refused() {
        let found = mounts_below(Path::new("/proc")).expect("reads");
        assert!(found.contains(&PathBuf::from("/proc")), "{found:?}");
        assert!(matches!(refuse_mounts(Path::new("/proc")), Err(RemoveError::Mounted(_))));
        let directory = tempfile::tempdir().expect("temporary directory");
        assert_eq!(mounts_below(directory.path()).expect("reads"), Vec::<PathBuf>::new());
    }

    #[test]
    fn all_mounts_are_named_and_unmounted_from_within_whatever_their_names() {
        let one = RemoveError::Mounted(Mounts(vec!["/n/a b".into()]));
        assert_eq!(one.to_string(), "/n/a b is mounted; what is mounted is never deleted; unmount it first: umount '/n/a b'");
        let mounts = Mounts(vec!["/n/a".into(), "/n/a/it's".into(), "/n/c".into()]);
        assert_eq!(mounts.to_string(), "/n/a, /n/a/it's and /n/c are mounted");
        assert_eq!(mounts.unmount(), "umount /n/c \"/n/a/it's\" /n/a");
    }

    #[test]
    fn another_file_system_is_not_entered_though_the_list_did_not_show_it() {
        let root = fs::File::open("/").expect("opens");
        let device = std::os::unix::fs::MetadataExt::dev(&root.metadata().expect("there"));
        let opened = open_directory(root.as_fd(), &CString::new("proc").expect("a name"), device);
        assert_eq!(opened.err(), Some(Errno::XDEV));
    }
}
