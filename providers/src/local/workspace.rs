//! The workspace of local clusters: a directory.

use std::fs;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use cloudtik_model::ClusterName;

use crate::{Error, WorkspaceProvider};

#[derive(Debug, Clone)]
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
        fs::create_dir_all(self.clusters_directory()).map_err(|e| Error::transient(format!("making {}", self.directory.display()), e))
    }

    async fn exists(&self) -> Result<bool, Error> {
        Ok(self.clusters_directory().is_dir())
    }

    async fn delete(&self) -> Result<(), Error> {
        let clusters = self.clusters().await?;
        if let Some(cluster) = clusters.first() {
            return Err(Error::Mismatch(format!("cluster {cluster} still lives in it")));
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::transient(format!("removing {}", self.directory.display()), error))
            }
            _ => Ok(()),
        }
    }

    async fn clusters(&self) -> Result<Vec<ClusterName>, Error> {
        let entries = match fs::read_dir(self.clusters_directory()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::transient("reading the workspace", error)),
        };
        let mut names: Vec<ClusterName> =
            entries.flatten().filter_map(|e| ClusterName::new(e.file_name().to_string_lossy()).ok()).collect();
        names.sort();
        Ok(names)
    }
}
