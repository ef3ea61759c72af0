//! Files and directories as every program of a cluster handles them.
//!
//! Owns: small files that are either the old or the new one, whatever happens in between; directories that only their owner
//! can enter; the removal of trees, which never enters a mount; whether a directory is still there. Must never: know what
//! the files mean.

mod presence;
mod tree;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

pub use presence::Presence;
pub use tree::{KERNEL_FILE_SYSTEMS, Mounts, RemoveError, mounts_below, refuse_mounts, remove_tree, unescape_octal};

/// The permission bits of every directory that keeps state.
pub const PRIVATE: u32 = 0o700;

/// Replaces `path` by a file with `content` and the permission bits `mode`, durably: after a crash there is the old
/// file or the new one. A failure (a full disk) leaves the old one.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    let temporary = directory.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes a directory that only its owner can enter, whatever the process's umask. Parents that are missing are made the
/// same way; those that exist are left as they are.
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    create_missing_directories(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE))
}

/// Makes the directories of a path that are missing, for their owner only; those that exist are left as they are.
pub fn create_missing_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(path)
}

/// Makes a directory that only its owner can enter, in a parent that must exist. One that exists is fine, and is closed
/// to others.
pub fn create_private_directory_in_place(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(PRIVATE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        result => result?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("goal.json");
        write_atomically(&path, b"old", 0o600).expect("writes");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let missing = directory.path().join("no").join("such");
        assert!(write_atomically(&missing, b"x", 0o600).is_err());
        assert_eq!(fs::read(&path).expect("there"), b"old");
        assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1, "no temporary file is left");
    }
}
