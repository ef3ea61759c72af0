//! Where clusters keep themselves on this machine, and how a person names one.
//!
//! ```text
//! $CLOUDTIK_HOME/
//!   artifacts/                                  software, shared by clusters
//!   workspaces/WORKSPACE.toml                   the workspace's definition: `workspace/definition.rs`
//!   workspaces/WORKSPACE/clusters/CLUSTER/
//!     cluster.json                              what the launcher remembers
//!     ca/                                       the cluster's root, which stays with the user
//!     head/                                     the head's state; its Unix socket
//!     nodes/INSTANCE/                           one directory per node
//!     bin/                                      the programs of its nodes, by digest
//!   remote/WORKSPACE/clusters/CLUSTER/          access to a cluster of somebody else: `remote.rs`
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cloudtik_config::Cluster;
use cloudtik_model::{ClusterName, HeadSettings, ProviderDocument, WorkspaceName, natural};
use cloudtik_protocol::{BUS_PORT, HEALTH_PORT};
use cloudtik_providers::kind::ClusterSite;
use cloudtik_providers::machine::{AGENT, Layout};
use cloudtik_registry::registry;
use serde::{Deserialize, Serialize};

use crate::described::{Described, is_standard_input, read_cluster, read_text};
use crate::failure::{Failure, INVALID, NOT_FOUND, USAGE};
use crate::output::{listed, quoted};

/// Below the user's directory of state: the clusters that are reached over the network.
pub const ELSEWHERE: &str = "remote";

/// How a person names a cluster. Without a name it is the only one.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub cluster: Option<&'a str>,
    pub workspace: Option<&'a str>,
}

impl<'a> From<&'a str> for Target<'a> {
    fn from(cluster: &'a str) -> Self {
        Self { cluster: Some(cluster), workspace: None }
    }
}

impl<'a> From<&'a String> for Target<'a> {
    fn from(cluster: &'a String) -> Self {
        Self::from(cluster.as_str())
    }
}

/// Below the user's directory of state.
const WORKSPACES: &str = "workspaces";
/// Below a workspace's directory.
pub const CLUSTERS: &str = "clusters";

/// What the launcher remembers of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Remembered {
    /// The cluster's file, as it was named.
    pub file: PathBuf,
    /// The file that this was, if it was a symbolic link: the link may lead elsewhere by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<PathBuf>,
    /// Where its machines come from.
    pub provider: ProviderDocument,
    /// The address that its head listens on.
    pub head_address: String,
}

/// Where one cluster's files lie on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPaths {
    pub name: ClusterName,
    /// The directory of its workspace.
    pub workspace: PathBuf,
    pub directory: PathBuf,
}

/// The user's directory of state.
pub fn home() -> Result<PathBuf, Failure> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = named("CLOUDTIK_HOME")
        .or_else(|| named("XDG_STATE_HOME").map(|p| p.join("cloudtik")))
        .or_else(|| named("HOME").map(|p| p.join(".local/state/cloudtik")));
    let home = home.ok_or_else(|| Failure::failed("neither CLOUDTIK_HOME nor HOME is set").hint("export CLOUDTIK_HOME=/some/directory"))?;
    if home.to_str().is_none() {
        return Err(Failure::failed(format!("the path {home:?} is not UTF-8")).hint("set CLOUDTIK_HOME to one that is"));
    }
    if home.is_relative() {
        // Another directory to stand in would be another set of clusters.
        let hint = format!("export CLOUDTIK_HOME=\"$PWD/{}\"", home.display());
        return Err(Failure::new(USAGE, format!("the state directory {} is not absolute", home.display())).hint(hint));
    }
    // One spelling: processes are recognised by it.
    if let Ok(known) = home.canonicalize() {
        return Ok(known);
    }
    Ok(home)
}

/// Characters that have a meaning in lists of paths and in patterns, where programs that nodes run take no other spelling.
const SPECIAL: &str = ":,*?[]{}\\";

/// Refuses a state directory below which the programs of nodes could not name their files.
pub fn usable(home: &Path) -> Result<(), Failure> {
    let Some(found) = home.to_string_lossy().chars().find(|c| SPECIAL.contains(*c) || c.is_control()) else { return Ok(()) };
    let message = format!("the path of the state directory {:?} contains {found:?}, which programs on nodes take for something else", home);
    let listed: Vec<String> = SPECIAL.chars().map(String::from).collect();
    Err(Failure::new(USAGE, message).hint(format!("set CLOUDTIK_HOME to a directory whose path has no {}", listed.join(" "))))
}

/// The directories of workspaces, below the user's directory of state.
pub fn workspaces() -> Result<PathBuf, Failure> {
    Ok(home()?.join(WORKSPACES))
}

/// The directory of a workspace.
pub fn workspace(name: &WorkspaceName) -> Result<PathBuf, Failure> {
    Ok(workspaces()?.join(name.as_str()))
}

impl ClusterPaths {
    /// A cluster of the workspace whose directory is given.
    pub fn within(workspace: PathBuf, name: ClusterName) -> Self {
        let directory = workspace.join(CLUSTERS).join(name.as_str());
        Self { name, workspace, directory }
    }

    pub fn of(cluster: &Cluster) -> Result<Self, Failure> {
        if registry().find(&cluster.provider).is_some_and(|kind| kind.machines().is_none()) {
            let what = format!("{} can only be simulated: the provider `{}` creates no machines", cluster.name, cluster.provider);
            return Err(Failure::new(INVALID, what).hint("cloudtik simulate CLUSTER.toml --demand SCENARIO.toml"));
        }
        Ok(Self::within(workspace(&cluster.workspace)?, cluster.name.clone()))
    }

    /// The name of the workspace.
    pub fn workspace_name(&self) -> String {
        self.workspace.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca")
    }

    pub fn head(&self) -> PathBuf {
        self.directory.join("head")
    }

    pub fn socket(&self) -> PathBuf {
        self.head().join("admin.sock")
    }

    pub fn nodes(&self) -> PathBuf {
        self.directory.join("nodes")
    }

    /// Where the cluster's own programs are.
    pub fn programs(&self) -> Layout {
        Layout { root: self.directory.clone(), home: self.nodes() }
    }

    pub fn remembered(&self) -> Option<Remembered> {
        serde_json::from_slice(&fs::read(self.directory.join("cluster.json")).ok()?).ok()
    }

    pub fn remember(&self, remembered: &Remembered) -> Result<(), Failure> {
        let text = serde_json::to_vec(remembered).map_err(|e| Failure::failed(e.to_string()))?;
        let path = self.directory.join("cluster.json");
        cloudtik_protocol::files::write_atomically(&path, &text, 0o600)
            .map_err(|e| Failure::failed(format!("writing {}: {e}", path.display())))
    }

    /// The command that brings the cluster up from its file.
    pub fn up_command(&self) -> String {
        let file = self.remembered().map(|known| known.file).filter(|file| !is_standard_input(file));
        format!("cloudtik up {}", file.map_or_else(|| "CLUSTER.toml".to_owned(), |file| quoted(&file.to_string_lossy())))
    }

    /// What the head was given when it was made, if it was and that is readable.
    pub fn head_settings(&self) -> Option<HeadSettings> {
        serde_json::from_slice(&fs::read(self.head().join(HeadSettings::FILE)).ok()?).ok()
    }

    /// Where the cluster's machines come from, as the launcher or the head keeps it; nothing if neither does.
    pub fn provider(&self) -> Option<ProviderDocument> {
        self.remembered().map(|known| known.provider).or_else(|| self.head_settings().map(|head| head.provider))
    }

    /// Settles what a new cluster keeps for its life; the address is its head's.
    pub async fn settle(&self, described: &Described) -> Result<(ProviderDocument, String), Failure> {
        let (nodes, agent) = (self.nodes(), self.programs().program(AGENT));
        let (workspace, base, chosen) = (self.workspace_name(), described.base()?, &described.provider);
        let site = ClusterSite {
            cluster: &self.name,
            workspace: &workspace,
            base: &base,
            workspace_directory: &self.workspace,
            directory: &self.directory,
            nodes: &nodes,
            agent: &agent,
            programs: &programs_directory()?,
            shared: &[self.programs().bin(), artifacts()?],
            for_heads: &[self.head()],
            state: &workspaces()?,
            ports: &[BUS_PORT, HEALTH_PORT],
        };
        let settled = chosen.machines()?.settle(&chosen.settings, &site).await?;
        let kind = chosen.kind().name().parse().map_err(|e| Failure::failed(format!("{e}")))?;
        Ok((ProviderDocument { kind, settings: chosen.settings.clone(), site: settled.site }, settled.head_address))
    }
}

/// One of our programs: beside this one, or where CLOUDTIK_BIN says.
pub fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_owned));
    let places = std::env::var_os("CLOUDTIK_BIN").map(PathBuf::from).into_iter().chain(own);
    let found = places.map(|p| p.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| {
        Failure::failed(format!("the program {name} was not found next to cloudtik"))
            .hint("build all of it with `cargo build --release`, or set CLOUDTIK_BIN to the directory of the programs")
    })
}

/// The directory of our programs.
pub fn programs_directory() -> Result<PathBuf, Failure> {
    Ok(program(AGENT)?.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Where software is kept, which clusters share.
pub fn artifacts() -> Result<PathBuf, Failure> {
    Ok(home()?.join("artifacts"))
}

/// The cluster that a person means by a name, or by the path of its file; without either it is the only one.
pub fn find<'a>(target: impl Into<Target<'a>>) -> Result<ClusterPaths, Failure> {
    let target = target.into();
    if let Some(paths) = lookup(target)? {
        return Ok(paths);
    }
    let all: Vec<ClusterPaths> = all()?.into_iter().filter(|paths| is_in(paths, target.workspace)).collect();
    let names: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
    let within = target.workspace.map_or_else(|| "on this machine".to_owned(), |workspace| format!("in the workspace {workspace}"));
    let Some(named) = target.cluster else {
        return Err(Failure::new(NOT_FOUND, format!("there is no cluster {within}")).hint(BRING_UP));
    };
    let failure = Failure::new(NOT_FOUND, format!("there is no cluster {named} {within}"));
    Err(match cloudtik_config::reader::nearest(named, names.iter().copied()) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None if names.is_empty() => failure.hint(BRING_UP),
        None => failure.hint(format!("there is: {}", listed(&names))),
    })
}

const BRING_UP: &str = "bring one up with `cloudtik up CLUSTER.toml`";

fn is_in(paths: &ClusterPaths, workspace: Option<&str>) -> bool {
    workspace.is_none_or(|workspace| paths.workspace_name() == workspace)
}

/// The same; nothing if there is no such cluster.
pub fn lookup(target: Target<'_>) -> Result<Option<ClusterPaths>, Failure> {
    if let Some(file) = target.cluster.filter(|named| named.contains('/') || named.ends_with(".toml")) {
        let (name, text) = read_text(Path::new(file))?;
        let (cluster, _) = read_cluster(&name, &text).map_err(|e| Failure::invalid(vec![e]))?;
        if let Some(workspace) = target.workspace.filter(|workspace| *workspace != cluster.workspace.as_str()) {
            let message = format!("the cluster of {file} is in the workspace {}, not {workspace}", cluster.workspace);
            return Err(Failure::new(USAGE, message).hint("leave --workspace out"));
        }
        return ClusterPaths::of(&cluster).map(Some);
    }
    let named = target.cluster.map(ClusterName::new).transpose().map_err(|e| Failure::new(NOT_FOUND, e.to_string()))?;
    let mut matching = all()?;
    matching.retain(|paths| is_in(paths, target.workspace) && named.as_ref().is_none_or(|name| paths.name == *name));
    if matching.len() < 2 {
        return Ok(matching.pop());
    }
    let Some(name) = named else {
        let mut names: Vec<&str> = matching.iter().map(|paths| paths.name.as_str()).collect();
        names.dedup();
        let message = format!("there are {} clusters: say which", matching.len());
        return Err(Failure::new(USAGE, message).hint(format!("name one of: {}", listed(&names))));
    };
    let workspaces: Vec<String> = matching.iter().map(ClusterPaths::workspace_name).collect();
    let message = format!("{} workspaces have a cluster {name}: {}", workspaces.len(), listed(&workspaces));
    Err(Failure::new(USAGE, message).hint(format!("add --workspace {}", workspaces[0])))
}

/// The clusters of this user in a workspace. Those of somebody else are in somebody else's.
pub fn of_workspace(name: &WorkspaceName) -> Result<Vec<ClusterName>, Failure> {
    let own = workspace(name)?;
    Ok(all()?.into_iter().filter(|paths| paths.workspace == own).map(|paths| paths.name).collect())
}

/// Every cluster of this user on this machine, and those that the user was given access to.
pub fn all() -> Result<Vec<ClusterPaths>, Failure> {
    let (home, mut places) = (home()?, Vec::new());
    for root in [WORKSPACES, ELSEWHERE] {
        for workspace in fs::read_dir(home.join(root)).into_iter().flatten().flatten() {
            for cluster in fs::read_dir(workspace.path().join(CLUSTERS)).into_iter().flatten().flatten() {
                if let Ok(name) = ClusterName::new(cluster.file_name().to_string_lossy()) {
                    places.push(ClusterPaths::within(workspace.path(), name));
                }
            }
        }
    }
    places.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| natural::compare(&a.workspace_name(), &b.workspace_name())));
    Ok(places)
}

/// The workspaces of this user: those with a definition, and those with a directory.
pub fn workspace_names() -> Result<Vec<WorkspaceName>, Failure> {
    let workspaces = workspaces()?;
    let entries = match fs::read_dir(&workspaces).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Failure::failed(format!("cannot read {}: {error}", workspaces.display()))),
    };
    let mut names: Vec<WorkspaceName> = entries
        .iter()
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let name = match file.strip_suffix(".toml") {
                Some(name) => name,
                None => entry.path().is_dir().then_some(&*file)?,
            };
            WorkspaceName::new(name).ok()
        })
        .collect();
    names.sort_by(|a, b| natural::compare(a.as_str(), b.as_str()));
    names.dedup();
    Ok(names)
}
