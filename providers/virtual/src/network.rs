//! What is remembered of a workspace's network: its range, and who has which of its addresses.
//!
//! ```text
//! range            the range of addresses
//! nat              there if nodes reach what is outside
//! addresses/IP     a link to the directory of the instance that has it, or to the directory of the nodes of a cluster,
//!                  whose head has it
//! lock             held while addresses are given and taken
//! ```
//!
//! An address is free when the directory of its owner is gone: nothing must be tidied up after a deletion that broke off.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use cloudtik_files::{create_private_directory_in_place, write_atomically};

use crate::range::Range;

const RANGE: &str = "range";
const NAT: &str = "nat";
const ADDRESSES: &str = "addresses";
const LOCK: &str = "lock";

#[derive(Debug, Clone)]
pub struct Network(PathBuf);

impl Network {
    pub fn of(workspace: &Path) -> Self {
        Self(workspace.join("network"))
    }

    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The range; none where the network was not made.
    pub fn range(&self) -> io::Result<Option<Range>> {
        match fs::read_to_string(self.0.join(RANGE)) {
            Ok(text) => text.parse().map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn has_nat(&self) -> bool {
        self.0.join(NAT).exists()
    }

    /// Makes the directory and writes the range.
    pub fn create(&self, range: Range) -> io::Result<()> {
        create_private_directory_in_place(&self.0)?;
        create_private_directory_in_place(&self.0.join(ADDRESSES))?;
        write_atomically(&self.0.join(RANGE), range.to_string().as_bytes(), 0o600)
    }

    pub fn note_nat(&self, nat: bool) -> io::Result<()> {
        if nat { write_atomically(&self.0.join(NAT), b"", 0o600) } else { missing_is_fine(fs::remove_file(self.0.join(NAT))) }
    }

    /// Removes all that is remembered. First the range, so that what is left of it is no network.
    pub fn remove(&self) -> Result<(), cloudtik_files::RemoveError> {
        let failed = |source| cloudtik_files::RemoveError::Io { path: self.0.clone(), source };
        missing_is_fine(fs::remove_file(self.0.join(RANGE))).map_err(failed)?;
        cloudtik_files::remove_tree(&self.0)
    }

    /// Whoever holds this may give and take addresses.
    pub fn lock(&self) -> io::Result<File> {
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(self.0.join(LOCK))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Every address that somebody has, with the directory of its owner, which may be gone.
    pub fn owners(&self) -> io::Result<Vec<(Ipv4Addr, PathBuf)>> {
        let entries = match fs::read_dir(self.0.join(ADDRESSES)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut owners = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(address) = entry.file_name().to_string_lossy().parse::<Ipv4Addr>() else { continue };
            match fs::read_link(entry.path()) {
                Ok(owner) => owners.push((address, owner)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        owners.sort();
        Ok(owners)
    }

    /// The address that an owner has, or else a free one, which it has from now on; none where all are taken. The lock
    /// must be held until the owner's directory is there.
    pub fn take(&self, range: Range, owner: &Path) -> io::Result<Option<Ipv4Addr>> {
        let owners = self.owners()?;
        if let Some((address, _)) = owners.iter().find(|(address, path)| path == owner && range.contains(*address)) {
            return Ok(Some(*address));
        }
        let is_taken = |path: &Path| path.symlink_metadata().is_ok();
        let taken: BTreeSet<Ipv4Addr> = owners.iter().filter(|(_, path)| is_taken(path)).map(|(address, _)| *address).collect();
        let Some(free) = range.nodes().find(|address| !taken.contains(address)) else { return Ok(None) };
        let path = self.address(free);
        missing_is_fine(fs::remove_file(&path))?;
        symlink(owner, path)?;
        Ok(Some(free))
    }

    /// Takes back what an owner has.
    pub fn release(&self, owner: &Path) -> io::Result<()> {
        for (address, _) in self.owners()?.iter().filter(|(_, path)| path == owner) {
            missing_is_fine(fs::remove_file(self.address(*address)))?;
        }
        Ok(())
    }

    fn address(&self, address: Ipv4Addr) -> PathBuf {
        self.0.join(ADDRESSES).join(address.to_string())
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_owner_and_is_free_once_its_owner_is_gone() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let network = Network::of(directory.path());
        let range: Range = "10.77.0.0/29".parse().expect("valid");
        assert_eq!(network.range().expect("reads"), None);
        network.create(range).expect("makes");
        assert_eq!(network.range().expect("reads"), Some(range));
        let owner = |name: &str| directory.path().join(name);
        let take = |name: &str| {
            let _lock = network.lock().expect("locks");
            let address = network.take(range, &owner(name)).expect("looks");
            fs::create_dir_all(owner(name)).expect("makes");
            address.map(|a| a.octets()[3])
        };
        let taken = ["a", "b", "c", "d", "e", "f"].map(take);
        assert_eq!(taken, [Some(2), Some(3), Some(4), Some(5), Some(6), None], "the range has five");
        assert_eq!(take("b"), Some(3), "who has one keeps it");
        fs::remove_dir(owner("c")).expect("removes");
        assert_eq!(take("f"), Some(4), "what nobody has any more is given again");
        network.release(&owner("a")).expect("releases");
        assert_eq!(network.owners().expect("reads").len(), 4);
    }
}
