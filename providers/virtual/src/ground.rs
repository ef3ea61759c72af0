//! Whose namespaces a workspace lies in: the machine's own for root, and one user namespace for an ordinary user.

use std::fs;

/// Whether this process may work in the machine's own namespaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this process is root only within a user namespace.
pub fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}
