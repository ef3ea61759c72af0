//! Whether a directory that a program lives in is still there.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, fstat, statat};
use rustix::io::Errno;

/// A directory that is held open, so that its removal can be told from its renaming and from another one that has its
/// name by now.
#[derive(Debug)]
pub struct Presence {
    directory: File,
    essential: Vec<&'static str>,
}

impl Presence {
    /// Watches a directory, in which at least one of the `essential` files is at any time while it is in use.
    pub fn of(directory: &Path, essential: &[&'static str]) -> io::Result<Self> {
        Ok(Self { directory: File::open(directory)?, essential: essential.to_vec() })
    }

    /// Whether the directory was removed, or emptied of all its essential files. What cannot be told is no.
    pub fn is_gone(&self) -> bool {
        if fstat(&self.directory).is_ok_and(|directory| directory.st_nlink == 0) {
            return true;
        }
        let is_missing = |name: &&str| matches!(statat(&self.directory, *name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        self.essential.iter().all(is_missing)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn removal_and_emptying_are_told_from_renaming() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let make = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).expect("makes");
            fs::write(path.join("one"), "").expect("writes");
            fs::write(path.join("two"), "").expect("writes");
            (Presence::of(&path, &["one", "two"]).expect("opens"), path)
        };
        let (renamed, path) = make("renamed");
        fs::rename(&path, parent.path().join("elsewhere")).expect("renames");
        assert!(!renamed.is_gone());
        let (emptied, path) = make("emptied");
        fs::remove_file(path.join("one")).expect("removes");
        assert!(!emptied.is_gone(), "one of its files is there");
        fs::remove_file(path.join("two")).expect("removes");
        assert!(emptied.is_gone());
        let (removed, path) = make("removed");
        fs::remove_dir_all(&path).expect("removes");
        fs::create_dir(&path).expect("another one of that name");
        assert!(removed.is_gone());
    }
}
