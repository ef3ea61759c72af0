//! A job, its options, and what is its own.

// No doc comment on the struct: clap would take it for the command's own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap_complete::engine::{ArgValueCompleter, PathCompleter};
use cloudtik_model::{Bytes, JobName};

use super::cluster::NamedCluster;
use super::values::{self, assignment};
use crate::completion;

#[derive(Args)]
pub struct Submit {
    #[command(flatten)]
    pub cluster: NamedCluster,
    /// Runtime that runs the job, if several take jobs
    #[arg(long, add = ArgValueCompleter::new(completion::runtimes()))]
    pub runtime: Option<String>,
    /// Main class of a .jar that names none
    #[arg(long, value_name = "NAME")]
    pub class: Option<String>,
    /// Setting of the runtime for this job; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub conf: Vec<String>,
    /// Packages that the job needs, as GROUP:NAME:VERSION, separated by commas
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
    pub packages: Vec<String>,
    /// Python files of the job (.py, .zip, .egg), separated by commas; they are
    /// uploaded
    #[arg(long = "py-files", value_name = "FILES", value_delimiter = ',', add = ArgValueCompleter::new(PathCompleter::file()))]
    pub py_files: Vec<PathBuf>,
    /// Files to lay beside the job's own, separated by commas
    #[arg(long, value_name = "FILES", value_delimiter = ',', add = ArgValueCompleter::new(PathCompleter::file()))]
    pub files: Vec<PathBuf>,
    /// Variable of the job's environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub env: Vec<String>,
    /// Name of the job, unique in its cluster; made from its file by default
    #[arg(long)]
    pub name: Option<JobName>,
    /// Return once the job is submitted, and print its name
    #[arg(short, long)]
    pub detach: bool,
    /// Longest time that an attempt may take, such as 90s or 2h
    #[arg(long, value_name = "TIME", value_parser = values::span)]
    pub timeout: Option<Duration>,
    /// Further attempts if the job fails
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub retries: u32,
    /// Processors of the head's node for the job's own process, such as 0.5
    #[arg(long, value_name = "N", value_parser = values::cpus)]
    pub cpus: Option<u64>,
    /// Memory of the head's node for the job's own process, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Run a program of the head's node instead of a file with a runtime:
    /// `--command -- PROGRAM [ARGUMENT]...`
    #[arg(long, conflicts_with_all = ["runtime", "class", "conf", "packages", "py_files"])]
    pub command: bool,
    /// File of the job, which is uploaded, and the job's own arguments:
    /// everything after FILE, also what begins with a dash
    #[arg(required = true, trailing_var_arg = true, value_name = "FILE [ARGUMENT]", add = ArgValueCompleter::new(PathCompleter::file()))]
    job: Vec<OsString>,
}

impl Submit {
    pub fn file(&self) -> &Path {
        Path::new(self.job.first().map_or(OsStr::new(""), OsString::as_os_str))
    }

    pub fn arguments(&self) -> &[OsString] {
        self.job.get(1..).unwrap_or_default()
    }
}
