//! How instances that are directories of this machine come to be in use.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cloudtik_model::node::Instance;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Hold;

/// Mounts a file system below the directory of an instance, which only a person may end. Needs the right to mount.
#[derive(Debug, Clone)]
pub struct MountBelow {
    /// The directory that has those of the instances.
    nodes: PathBuf,
}

impl MountBelow {
    /// None where this process may not mount.
    pub fn new(nodes: &Path) -> Option<Self> {
        nix::unistd::geteuid().is_root().then(|| Self { nodes: nodes.to_owned() })
    }

    fn point(&self, instance: &Instance) -> PathBuf {
        self.nodes.join(instance.id.as_str()).join("held")
    }
}

#[async_trait]
impl Hold for MountBelow {
    async fn hold(&self, instance: &Instance) {
        let point = self.point(instance);
        fs::create_dir(&point).expect("the instance is a directory");
        mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).expect("root may mount");
    }

    async fn release(&self, instance: &Instance) {
        umount2(&self.point(instance), MntFlags::MNT_DETACH).expect("it is mounted");
    }
}
