//! The arguments of `cache`.

use clap::Subcommand;

const LIST: &str = "\
Examples:
  # List the software that is kept, its size and who uses it
  cloudtik cache list

  # Print how many bytes it takes on the disk
  cloudtik cache list -o json | jq .bytes";

const CLEAN: &str = "\
Examples:
  # Remove what no cluster uses, after a question
  cloudtik cache clean

  # Remove it in a script
  cloudtik cache clean --yes

Software of clusters that exist is kept, whether they are reachable or not.
What is removed is fetched again when a cluster needs it.";

#[derive(Subcommand)]
pub enum Cache {
    /// List the software, what it takes on the disk and which clusters use it
    #[command(after_help = LIST)]
    List,
    /// Remove the software that no cluster uses, and unfinished downloads
    #[command(after_help = CLEAN)]
    Clean {
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
}
