//! Nodes as isolated parts of this machine's kernel.
//!
//! A node has network, process, mount, host name, IPC and control group namespaces of its own, an address on the bridge of
//! its workspace, a writable layer over the machine's root, and limits of memory and processors. An instance is a directory
//! and, while it runs, a first process; nothing but that process holds the node's namespaces, so that its end is the end of
//! all that the node is on the machine, whatever ended it.
//!
//! Owns: how such nodes and their workspaces are made, found and removed, and what is left of them after an accident. Must
//! never: decide, retry, or remember anything that is not on the machine.

mod boot;
mod bridge;
mod failure;
mod ground;
mod groups;
mod init;
mod instance;
mod kind;
mod names;
mod netlink;
mod network;
mod processes;
pub mod program;
mod provider;
mod range;
mod remote;
mod root;
mod service;
mod settings;
mod sweep;
pub mod testing;
mod workspace;

use std::path::{Path, PathBuf};

pub use instance::instance_id;
pub use kind::Virtual;
pub use provider::VirtualProvider;
pub use range::{InvalidRange, Range};
pub use remote::{RemoteProvider, open};
pub use settings::Settings;
pub use sweep::{Leftover, sweep};
pub use workspace::VirtualWorkspace;

/// A path as names are derived from it: absolute, without symbolic links as far as it exists.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in path.ancestors() {
        if let Ok(real) = above.canonicalize() {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path
}
