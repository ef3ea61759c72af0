//! The arguments of `rollout`.

use clap::Subcommand;

use super::AnyCluster;

const STATUS: &str = "\
Examples:
  # Print the state of the roll-out as JSON
  cloudtik rollout status demo -o json";

const RESUME: &str = "\
Examples:
  # Retry after the cause was removed
  cloudtik rollout resume demo";

const UNDO: &str = "\
Examples:
  # Go back without being asked
  cloudtik rollout undo demo --yes";

#[derive(Subcommand)]
pub enum RolloutCommand {
    /// Show how far the newest revision has come, and why it is held
    #[command(after_help = STATUS)]
    Status {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// Retry a roll-out that is held because it failed on a node
    #[command(after_help = RESUME)]
    Resume {
        #[command(flatten)]
        cluster: AnyCluster,
    },
    /// Go back to what the cluster ran before the roll-out
    #[command(after_help = UNDO)]
    Undo {
        #[command(flatten)]
        cluster: AnyCluster,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
}
