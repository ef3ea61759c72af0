//! The arguments of `workspace`.

// No doc comments on the structs: clap would take them for the command's own.

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use crate::completion;

pub const WORKSPACE: &str = "\
Examples:
  # Create the workspace that a file describes
  cloudtik workspace create workspace.toml

  # List the workspaces, and the clusters in each
  cloudtik workspace list

A workspace holds what clusters share on a provider. `cloudtik up` creates
one that costs nothing by itself; docs/workspace-file.md describes the file.";

const CREATE: &str = "\
Examples:
  # Show what would be created, and what it costs
  cloudtik workspace create workspace.toml --plan

  # Create it, or complete it after an interruption
  cloudtik workspace create workspace.toml

  # Create it in a script, whatever it costs
  cloudtik workspace create workspace.toml --yes";

const UPDATE: &str = "\
Examples:
  # Show what would be changed
  cloudtik workspace update workspace.toml --plan

  # Change the workspace as its file says by now
  cloudtik workspace update workspace.toml

  # Put back what was changed by others
  cloudtik workspace update dev";

const DELETE: &str = "\
Examples:
  # Delete the workspace \"dev\", after a question
  cloudtik workspace delete dev

  # Delete it in a script, whether it is there or not
  cloudtik workspace delete dev --yes --if-exists

A workspace with clusters is not deleted: take them down first.";

const STATUS: &str = "\
Examples:
  # Show the only workspace: its resources, and the clusters in it
  cloudtik workspace status

  # Print whether the workspace \"dev\" is complete
  cloudtik workspace status dev -o json | jq .state";

const LIST: &str = "\
Examples:
  # List the workspaces, and the clusters in each
  cloudtik workspace list";

#[derive(Subcommand)]
pub enum Workspace {
    /// Create a workspace, or complete one that is not whole
    #[command(after_help = CREATE)]
    Create(ChangeWorkspace),
    /// Change a workspace as its file says
    #[command(after_help = UPDATE)]
    Update(ChangeWorkspace),
    /// Delete a workspace that has no clusters
    #[command(after_help = DELETE)]
    Delete(DeleteWorkspace),
    /// Show the resources of a workspace, and the clusters in it
    #[command(after_help = STATUS)]
    Status {
        /// Name of the workspace, or path of its file; optional if there is
        /// only one
        #[arg(add = ArgValueCompleter::new(completion::workspaces_and_files()))]
        workspace: Option<String>,
    },
    /// List your workspaces
    #[command(after_help = LIST)]
    List,
}

#[derive(Args)]
pub struct ChangeWorkspace {
    /// Workspace file, or name of a workspace; `-` is standard input
    #[arg(add = ArgValueCompleter::new(completion::workspaces_and_files()))]
    pub workspace: String,
    /// Only show what would be created, changed or removed
    #[arg(long)]
    pub plan: bool,
    /// Do not ask before something costs, is changed or removed
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Args)]
pub struct DeleteWorkspace {
    /// Name of the workspace, or path of its file; `-` is standard input
    #[arg(add = ArgValueCompleter::new(completion::workspaces_and_files()))]
    pub workspace: String,
    /// Only show what would be removed
    #[arg(long)]
    pub plan: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
    /// Succeed if there is no such workspace
    #[arg(long)]
    pub if_exists: bool,
}
