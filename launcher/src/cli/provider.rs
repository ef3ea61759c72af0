//! The arguments of `provider`.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::engine::{ArgValueCompleter, PathCompleter};

const LIST: &str = "\
Examples:
  # List the providers that this program has
  cloudtik provider list";

const CHECK: &str = "\
Examples:
  # Check the provider of a cluster file
  cloudtik provider check cluster.toml

  # The same with few machines, where they cost, and without a question
  cloudtik provider check cluster.toml --machines 3 --yes

  # Print the clause that does not hold
  cloudtik provider check cluster.toml --yes -o json | jq .breach";

#[derive(Subcommand)]
pub enum Provider {
    /// List the providers that this program has
    #[command(after_help = LIST)]
    List,
    /// Check a provider: create machines, look at them and delete them
    #[command(
        long_about = "Check a provider: create machines, look at them and delete them.\n\n\
            Runs the contract of providers on the provider of a cluster file, as a\n\
            cluster of its own. The machines' agents find no head. Everything that was\n\
            created is deleted at the end, or on Ctrl-C.",
        after_help = CHECK
    )]
    Check {
        /// File of a cluster whose [provider] is checked
        #[arg(add = ArgValueCompleter::new(PathCompleter::file()))]
        file: PathBuf,
        /// Machines that are there at once, for lists of several pages
        #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        machines: u32,
        /// Do not ask whether to create machines
        #[arg(long, short)]
        yes: bool,
    },
}
