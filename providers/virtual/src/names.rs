//! The names of everything that the provider makes on the machine, derived from paths, so that what is found is
//! recognised without memory.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cloudtik_model::{ClusterName, InstanceId};

/// Bridges of workspaces begin with this, so that rules can name all of them.
pub const BRIDGE_PREFIX: &str = "ctb";
/// Host ends of nodes' links.
pub const LINK_PREFIX: &str = "ctv";
/// Tables of packet rules, and control groups of workspaces.
pub const PREFIX: &str = "cloudtik-";
/// The node's end of its link.
pub const NODE_LINK: &str = "eth0";
/// A link's name is at most this long (IFNAMSIZ without its zero).
const MAX_LINK: usize = 15;

/// What stands for a workspace in names: of its directory, which is absolute.
pub fn workspace_tag(workspace: &Path) -> String {
    tag(workspace, MAX_LINK - BRIDGE_PREFIX.len())
}

pub fn bridge(workspace: &Path) -> String {
    format!("{BRIDGE_PREFIX}{}", workspace_tag(workspace))
}

/// The host's end of the link of the instance in a directory.
pub fn link(instance: &Path) -> String {
    format!("{LINK_PREFIX}{}", tag(instance, MAX_LINK - LINK_PREFIX.len()))
}

pub fn table(workspace: &Path) -> String {
    format!("{PREFIX}{}", workspace_tag(workspace))
}

/// The control group of a workspace, below the root of a hierarchy.
pub fn workspace_group(workspace: &Path) -> PathBuf {
    PathBuf::from(format!("{PREFIX}{}", workspace_tag(workspace)))
}

/// The control group of an instance, below the root of a hierarchy.
pub fn group(workspace: &Path, cluster: &ClusterName, instance: &InstanceId) -> PathBuf {
    workspace_group(workspace).join(cluster.as_str()).join(instance.as_str())
}

/// The 60 lowest bits of the path's FNV-1a hash, five in each character.
fn tag(path: &Path, length: usize) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    (0..length).map(|n| char::from(DIGITS[(hash >> (5 * n)) as usize & 31])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let (one, other) = (Path::new("/state/workspaces/dev"), Path::new("/state/workspaces/dew"));
        for name in [bridge(one), link(one)] {
            assert_eq!(name.len(), MAX_LINK, "{name}");
        }
        assert_ne!(bridge(one), bridge(other));
        assert_eq!(link(one), link(Path::new("/state/workspaces/dev")), "a name is the same whoever asks");
    }
}
