//! The arguments of `runtime`.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::engine::ArgValueCompleter;

use crate::completion;

const LIST: &str = "\
Examples:
  # List the shipped runtimes
  cloudtik runtime list";

const CHECK: &str = "\
Examples:
  # Check a runtime of your own
  cloudtik runtime check ./my-runtime";

const RENDER: &str = "\
Examples:
  # Print the files and commands of Spark on a worker
  cloudtik runtime render cluster.toml --runtime spark --node w1";

const NEW: &str = "\
Examples:
  # Write my-runtime/runtime.toml
  cloudtik runtime new my-runtime";

#[derive(Subcommand)]
pub enum Runtime {
    /// List the shipped runtimes
    #[command(after_help = LIST)]
    List,
    /// Check the folder of a runtime
    #[command(after_help = CHECK)]
    Check {
        /// Folder of the runtime
        folder: PathBuf,
    },
    /// Print the files and commands of a runtime on a node; nothing is run
    #[command(after_help = RENDER)]
    Render {
        /// Cluster file; `-` is standard input
        #[arg(add = ArgValueCompleter::new(completion::files()))]
        file: PathBuf,
        /// Only this runtime
        #[arg(long, add = ArgValueCompleter::new(completion::runtimes()))]
        runtime: Option<String>,
        /// Node: `head`, or a worker such as `w1`
        #[arg(long, default_value = "head")]
        node: String,
    },
    /// Write the folder of a new runtime to start from
    #[command(after_help = NEW)]
    New {
        /// Name of the runtime, and of its folder
        name: String,
    },
}
