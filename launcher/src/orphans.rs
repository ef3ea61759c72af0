//! Processes of nodes whose cluster's state was removed while it ran: no other command sees them.

use std::path::{Path, PathBuf};

use cloudtik_model::{ClusterName, NodeId};
use cloudtik_providers::kind::Leftover;
use cloudtik_registry::registry;

use crate::clusters::{CLUSTERS, ClusterPaths, workspaces};
use crate::failure::Failure;

/// What runs of one node that has no directory, or whose cluster has no head's state, any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The cluster as it was.
    pub paths: ClusterPaths,
    /// The directory of the node.
    pub directory: PathBuf,
    pub processes: Vec<i32>,
}

impl Orphan {
    /// The node and its generation.
    pub fn node(&self) -> String {
        self.directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Whether the node was the head's own.
    pub fn is_of_head(&self) -> bool {
        self.node().rsplit_once('.').is_some_and(|(node, _)| node == NodeId::head().as_str())
    }
}

/// The orphans of this user's state directory.
pub fn find() -> Result<Vec<Orphan>, Failure> {
    let workspaces = workspaces()?;
    let found = registry().leftovers(&workspaces)?.into_iter();
    let orphan = |left: Leftover| {
        Some(Orphan { paths: place_of(&workspaces, &left.directory)?, directory: left.directory, processes: left.processes })
    };
    Ok(found.filter_map(orphan).collect())
}

/// The cluster of a node's directory: `WORKSPACE/clusters/CLUSTER/nodes/INSTANCE` below the workspaces.
fn place_of(workspaces: &Path, directory: &Path) -> Option<ClusterPaths> {
    let below: Vec<_> = directory.strip_prefix(workspaces).ok()?.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    let [workspace, clusters, cluster, nodes, _] = below.as_slice() else { return None };
    let name = ClusterName::new(cluster.as_ref()).ok().filter(|_| clusters == CLUSTERS && nodes == "nodes")?;
    Some(ClusterPaths::within(workspaces.join(workspace.as_ref()), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_told_from_the_directory_of_its_node() {
        let paths = place_of(Path::new("/s/workspaces"), Path::new("/s/workspaces/default/clusters/demo/nodes/w1.2")).expect("one");
        assert_eq!((paths.name.as_str(), paths.workspace_name().as_str()), ("demo", "default"));
        assert_eq!(paths.nodes(), Path::new("/s/workspaces/default/clusters/demo/nodes"));
        assert_eq!(place_of(Path::new("/s/workspaces"), Path::new("/s/workspaces/default/clusters/demo")), None);
        assert_eq!(place_of(Path::new("/s/workspaces"), Path::new("/elsewhere/default/clusters/demo/nodes/w1.2")), None);
    }
}
