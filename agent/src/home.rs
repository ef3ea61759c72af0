//! The agent's directory on its node.

use std::path::{Path, PathBuf};

use cloudtik_model::job::layout;
use cloudtik_model::{JobId, ServiceKey};
use cloudtik_protocol::pki::sha256_hex;

/// ```text
/// bootstrap.json              what the node was given when it was made; without the token once it has joined
/// agent.lock  agent.log       held while an agent runs, with its process id; what it says
/// identity/                   node.key node.crt ca.crt, the latest time that a head told
/// goal.json  epoch            the latest goal; the latest epoch, with its proof
/// memory-kills                how many processes outside of services the kernel killed for want of memory, as far as that was told
/// cgroups                     the control groups that were made here, a path in each line
/// services/RUNTIME/SERVICE/   run.json shim.json exit.json shim.lock log log.1…, the service's files
/// data/RUNTIME/               what services keep
/// jobs.json  jobs/ID/         the latest document of jobs; a job's logs and attempts (cloudtik_model::job::layout)
/// ```
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn bootstrap(&self) -> PathBuf {
        self.0.join("bootstrap.json")
    }
    pub fn lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("agent.log")
    }
    pub fn goal(&self) -> PathBuf {
        self.0.join("goal.json")
    }
    pub fn epoch(&self) -> PathBuf {
        self.0.join("epoch")
    }
    /// How the names of services' control groups begin: short, and different for every node of a machine.
    pub fn group_prefix(&self) -> String {
        format!("cloudtik-{}-", &sha256_hex(self.0.as_os_str().as_encoded_bytes())[..12])
    }
    /// How many processes outside of services the kernel killed, as far as that was told.
    pub fn memory_kills(&self) -> PathBuf {
        self.0.join("memory-kills")
    }
    pub fn groups(&self) -> PathBuf {
        self.0.join("cgroups")
    }
    pub fn identity(&self, file: &str) -> PathBuf {
        self.0.join("identity").join(file)
    }
    pub fn services(&self) -> PathBuf {
        self.0.join("services")
    }
    pub fn service(&self, key: &ServiceKey) -> PathBuf {
        self.services().join(key.runtime.as_str()).join(key.service.as_str())
    }
    pub fn job_goals(&self) -> PathBuf {
        self.0.join(layout::GOALS)
    }
    pub fn jobs(&self) -> PathBuf {
        self.0.join(layout::JOBS)
    }
    pub fn job(&self, id: JobId) -> PathBuf {
        self.0.join(layout::job(id))
    }
    pub fn artifacts(&self) -> PathBuf {
        self.0.join("artifacts")
    }
}
