//! The workspace of local clusters: a directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cloudtik_files::create_private_directory_in_place;
use cloudtik_model::ClusterName;

use crate::Error;
use crate::workspace::{Action, Cost, Desired, Found, Presence, ResourceId, Status, Step, WorkspaceProvider};

const DIRECTORY: &str = "directory";
const CLUSTERS: &str = "clusters";
/// What others may not do in it.
const OTHERS: u32 = 0o077;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWorkspace {
    /// The directory of this workspace.
    pub directory: PathBuf,
}

impl LocalWorkspace {
    fn clusters_directory(&self) -> PathBuf {
        self.directory.join(CLUSTERS)
    }

    /// Where a cluster of this workspace keeps itself.
    pub fn cluster_directory(&self, cluster: &ClusterName) -> PathBuf {
        self.clusters_directory().join(cluster.as_str())
    }

    /// The names in the directory of clusters; none where that is missing, or is none.
    fn names(&self) -> Result<Vec<String>, Error> {
        let read = fs::read_dir(self.clusters_directory()).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match read {
            Ok(entries) => Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
            Err(error) => Err(failure("read", &self.clusters_directory(), error)),
        }
    }

    fn clusters(&self) -> Result<Vec<ClusterName>, Error> {
        let mut names: Vec<ClusterName> = self.names()?.into_iter().filter_map(|name| ClusterName::new(name).ok()).collect();
        names.sort();
        Ok(names)
    }

    fn path_of(&self, resource: &ResourceId) -> Result<PathBuf, Error> {
        match resource.as_str() {
            DIRECTORY => Ok(self.directory.clone()),
            CLUSTERS => Ok(self.clusters_directory()),
            other => Err(Error::NotFound(format!("a local workspace has no {other}"))),
        }
    }

    fn in_use(&self, clusters: &[ClusterName]) -> Error {
        let used_by = clusters.iter().map(ToString::to_string).collect();
        Error::Conflict { what: format!("the workspace {}", self.name()), used_by }
    }

    /// Removes the locks of clusters that are gone. One that is held belongs to a command that makes a cluster just now.
    fn remove_locks(&self) -> Result<(), Error> {
        for name in self.names()? {
            let path = self.clusters_directory().join(&name);
            let cluster = name.strip_prefix('.').and_then(|name| name.strip_suffix(".lock"));
            let Some(Ok(cluster)) = cluster.map(ClusterName::new) else { continue };
            let failed = |e| failure("remove", &path, e);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            match file.try_lock() {
                Ok(()) => fs::remove_file(&path).or_else(gone).map_err(failed)?,
                Err(fs::TryLockError::WouldBlock) => return Err(self.in_use(&[cluster])),
                Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Removes one directory, which must be empty: files of others are never deleted with it.
    fn remove(&self, path: &Path) -> Result<(), Error> {
        let clusters = self.clusters()?;
        if !clusters.is_empty() {
            return Err(self.in_use(&clusters));
        }
        if path == self.clusters_directory() {
            self.remove_locks()?;
        }
        fs::remove_dir(path).or_else(gone).map_err(|error| match error.kind() {
            // A cluster may have come meanwhile.
            io::ErrorKind::DirectoryNotEmpty => match self.clusters() {
                Ok(clusters) if !clusters.is_empty() => self.in_use(&clusters),
                _ => Error::Undeletable { what: path.display().to_string(), source: error.into() },
            },
            io::ErrorKind::ResourceBusy | io::ErrorKind::NotADirectory => {
                Error::Undeletable { what: path.display().to_string(), source: error.into() }
            }
            io::ErrorKind::PermissionDenied => Error::Permission { action: format!("removal of {}", path.display()) },
            _ => failure("remove", path, error),
        })
    }
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn presence(path: &Path) -> Result<Presence, Error> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Ok(Presence::Differs { differences: vec!["it is not a directory".to_owned()] }),
        Ok(found) if found.permissions().mode() & OTHERS != 0 => {
            Ok(Presence::Differs { differences: vec!["others may enter it".to_owned()] })
        }
        Ok(_) => Ok(Presence::Present),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Presence::Missing),
        Err(error) => Err(failure("read", path, error)),
    }
}

/// Nothing that a disk refuses passes by itself.
fn failure(operation: &str, path: &Path, error: io::Error) -> Error {
    Error::permanent(format!("{operation} {}", path.display()), error)
}

#[async_trait]
impl WorkspaceProvider for LocalWorkspace {
    fn name(&self) -> String {
        self.directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    fn desired(&self) -> Vec<Desired> {
        let one =
            |id, path: PathBuf| Desired { id: ResourceId::new(id), summary: format!("the directory {}", path.display()), cost: Cost::Free };
        vec![one(DIRECTORY, self.directory.clone()), one(CLUSTERS, self.clusters_directory())]
    }

    async fn status(&self) -> Result<Status, Error> {
        let mut resources = Vec::new();
        for desired in self.desired() {
            let path = self.path_of(&desired.id)?;
            let presence = presence(&path)?;
            let outputs = BTreeMap::from([("path".to_owned(), path.display().to_string())]);
            resources.push(Found { id: desired.id, presence, outputs });
        }
        Ok(Status { resources, clusters: self.clusters()? })
    }

    async fn apply(&self, step: &Step) -> Result<(), Error> {
        let path = self.path_of(&step.resource)?;
        match step.action {
            Action::Create | Action::Change => create_private_directory_in_place(&path).map_err(|e| failure("create", &path, e)),
            Action::Remove => self.remove(&path),
        }
    }
}
