//! The workspace of local clusters: a directory.

use std::fs;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use cloudtik_files::{RemoveError, create_private_directory, remove_tree};
use cloudtik_model::ClusterName;

use crate::{Error, WorkspaceProvider};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkspace {
    /// The directory of this workspace.
    pub directory: PathBuf,
}

impl LocalWorkspace {
    fn clusters_directory(&self) -> PathBuf {
        self.directory.join("clusters")
    }

    /// Where a cluster of this workspace keeps itself.
    pub fn cluster_directory(&self, cluster: &ClusterName) -> PathBuf {
        self.clusters_directory().join(cluster.as_str())
    }
}

#[async_trait]
impl WorkspaceProvider for LocalWorkspace {
    async fn create(&self) -> Result<(), Error> {
        let failed = |e| Error::transient(format!("create {}", self.directory.display()), e);
        create_private_directory(&self.directory).map_err(failed)?;
        create_private_directory(&self.clusters_directory()).map_err(failed)
    }

    async fn exists(&self) -> Result<bool, Error> {
        Ok(self.clusters_directory().is_dir())
    }

    async fn delete(&self) -> Result<(), Error> {
        let clusters = self.clusters().await?;
        if let Some(cluster) = clusters.first() {
            return Err(Error::Mismatch(format!("cluster {cluster} still lives in it")));
        }
        remove_tree(&self.directory).map_err(|error| match error {
            RemoveError::Mounted(_) => {
                Error::Undeletable { what: format!("the workspace {}", self.directory.display()), source: error.into() }
            }
            RemoveError::Io { source, .. } => Error::transient(format!("remove {}", self.directory.display()), source),
        })
    }

    async fn clusters(&self) -> Result<Vec<ClusterName>, Error> {
        let entries = match fs::read_dir(self.clusters_directory()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::transient("read the workspace", error)),
        };
        let mut names: Vec<ClusterName> =
            entries.flatten().filter_map(|e| ClusterName::new(e.file_name().to_string_lossy()).ok()).collect();
        names.sort();
        Ok(names)
    }
}
