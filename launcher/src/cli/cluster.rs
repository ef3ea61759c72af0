//! The cluster that a command is about.

// No doc comments on these: clap would take them for the command's own.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;

pub use crate::clusters::Target;
use crate::completion;

#[derive(Args, Debug, Clone)]
pub struct NamedCluster {
    /// Name of the cluster, or path of its file
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: String,
    /// Workspace of the cluster, if several have one of that name
    #[arg(long, add = ArgValueCompleter::new(completion::workspaces()))]
    pub workspace: Option<String>,
}

#[derive(Args, Debug, Clone)]
pub struct AnyCluster {
    /// Name of the cluster, or path of its file; optional if there is only one
    #[arg(add = ArgValueCompleter::new(completion::clusters()))]
    pub cluster: Option<String>,
    /// Workspace of the cluster, if several have one of that name
    #[arg(long, add = ArgValueCompleter::new(completion::workspaces()))]
    pub workspace: Option<String>,
}

impl<'a> From<&'a NamedCluster> for Target<'a> {
    fn from(named: &'a NamedCluster) -> Self {
        Self { cluster: Some(&named.cluster), workspace: named.workspace.as_deref() }
    }
}

impl<'a> From<&'a AnyCluster> for Target<'a> {
    fn from(any: &'a AnyCluster) -> Self {
        Self { cluster: any.cluster.as_deref(), workspace: any.workspace.as_deref() }
    }
}
