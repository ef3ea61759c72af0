//! How a bare machine becomes a node: check the machine → place the programs by digest → write the bootstrap payload → start the
//! agent. One sequence for every kind of machine that can be reached ([`Transport`]); machines that cannot be reached do the same
//! by themselves ([`user_data`]).
//!
//! ```text
//! ROOT/bin/cloudtik-agent-SHA256   a program, named by its digest; never changed, and executed only if the digest holds
//! ROOT/bin/cloudtik-agent          a symbolic link to it: what the agent starts as
//! HOME/bootstrap.json              the bootstrap payload, for the agent alone
//! ```
//!
//! Every step can be repeated, and what broke off anywhere goes on with the same call: nothing has its name before it is whole.
//! Calls for one machine come one after the other; the caller sees to that.

mod digests;
mod error;
pub mod systemd;
mod transport;
pub mod user_data;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::program::{Architecture, Digest};

pub use digests::digest_of;
pub use error::{Cause, Error, Step};
pub use transport::{Command, Content, Entry, Machine, Output, Transport, TransportError};

pub const AGENT: &str = "cloudtik-agent";
pub const HEAD: &str = "cloudtik-head";
/// The bootstrap payload, which the agent reads, and from which it removes the token once it has joined.
pub const BOOTSTRAP_FILE: &str = "bootstrap.json";
/// The only operating system that agents run on, as the standard library calls it.
const SYSTEM: &str = "linux";
/// Bytes that stay free on a machine beside its programs.
const RESERVE: u64 = 64 << 20;
/// Bytes of the largest bootstrap payload.
const MAX_BOOTSTRAP: usize = 4 << 20;
/// Permission bits of programs, and of what has secrets in it.
const PROGRAM: u32 = 0o700;
const SECRET: u32 = 0o600;

/// Where things are on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Exists already, unless the sequence may create it.
    pub root: PathBuf,
    /// The agent's directory; its parent exists.
    pub home: PathBuf,
}

impl Layout {
    /// On a machine that is the node's own.
    pub fn of_machine(root: &Path) -> Self {
        Self { root: root.to_owned(), home: root.join("node") }
    }

    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// What a program is started as.
    pub fn program(&self, link: &str) -> PathBuf {
        self.bin().join(link)
    }

    pub fn bootstrap(&self) -> PathBuf {
        self.home.join(BOOTSTRAP_FILE)
    }
}

/// A program to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    name: &'static str,
    /// What leads to it in the directory of programs.
    link: String,
    /// Where it is here.
    file: PathBuf,
    pub digest: Digest,
    pub size: u64,
    /// None for a script, which runs anywhere.
    pub arch: Option<Architecture>,
}

impl Program {
    /// Reads what a file is. One that was placed already is what its name says, whatever its content says by now. Blocks.
    pub fn read(name: &'static str, file: &Path) -> io::Result<Self> {
        let file = file.canonicalize()?;
        let named = file.file_name().and_then(|found| found.to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok());
        let digest = match named {
            Some(digest) => digest,
            None => digest_of(&file)?,
        };
        let mut first_bytes = Vec::new();
        std::fs::File::open(&file)?.take(20).read_to_end(&mut first_bytes)?;
        let size = std::fs::metadata(&file)?.len();
        Ok(Self { name, link: name.to_owned(), digest, size, arch: Architecture::of_program(&first_bytes), file })
    }

    /// The same program, placed to be served to machines of an architecture.
    pub fn to_serve(self, arch: Architecture) -> Self {
        Self { link: served_link(self.name, arch), ..self }
    }

    fn file_name(&self) -> String {
        format!("{}-{}", self.name, self.digest)
    }

    /// Whether it is to run on the machine, rather than to be served.
    fn runs_there(&self) -> bool {
        self.link == self.name
    }
}

/// The link to a program that is served to machines of an architecture.
pub fn served_link(name: &str, arch: Architecture) -> String {
    format!("{name}.{arch}")
}

/// The digest that the name of a placed program says.
pub fn placed_digest(name: &str, file_name: &str) -> Option<Digest> {
    file_name.strip_prefix(name)?.strip_prefix('-')?.parse().ok()
}

/// How the agent is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// In the background, in a session of its own.
    Detached,
    /// By systemd under this name, where that runs the machine; else detached.
    Systemd(String),
}

/// What is to become of a machine.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    pub layout: &'a Layout,
    /// The root is made, if it is missing.
    pub may_create_root: bool,
    pub programs: &'a [Program],
    /// The first one that a machine is given stands. Without one, what is there is started.
    pub bootstrap: Option<&'a Bootstrap>,
    pub start: Start,
}

/// Makes a node of a machine, or goes on with that.
pub async fn run(transport: &dyn Transport, order: &Order<'_>) -> Result<(), Error> {
    let machine = look(transport, order.layout, order.may_create_root).await?;
    let changed = place_on(transport, order.layout, &machine, order.programs).await?;
    if changed {
        remove_old(transport, order.layout, order.programs).await?;
    }
    if let Some(bootstrap) = order.bootstrap {
        write_bootstrap(transport, order.layout, bootstrap).await?;
    }
    start(transport, order, &machine).await
}

/// Places programs alone, and removes those that nothing leads to and nothing runs. Returns whether something else is
/// started from now on.
pub async fn place(transport: &dyn Transport, layout: &Layout, programs: &[Program]) -> Result<bool, Error> {
    let machine = look(transport, layout, false).await?;
    let changed = place_on(transport, layout, &machine, programs).await?;
    remove_old(transport, layout, programs).await?;
    Ok(changed)
}

async fn look(transport: &dyn Transport, layout: &Layout, may_create_root: bool) -> Result<Machine, Error> {
    let at = |cause: Cause| Error { step: Step::Check, cause };
    let machine = transport.inspect(&layout.root, &layout.bin()).await.map_err(|e| at(e.into()))?;
    if machine.has_root {
        return Ok(machine);
    }
    if !may_create_root {
        return Err(at(Cause::NoRoot(layout.root.clone())));
    }
    let root = layout.root.display().to_string();
    let made = transport.run(&Command::new("/bin/mkdir", ["-p", "-m", "700", &root])).await.map_err(|e| at(e.into()))?;
    made.succeeded("mkdir").map_err(|e| at(e.into()))?;
    transport.inspect(&layout.root, &layout.bin()).await.map_err(|e| at(e.into()))
}

/// Everything that speaks against the machine is found before anything on it is changed.
async fn place_on(transport: &dyn Transport, layout: &Layout, machine: &Machine, programs: &[Program]) -> Result<bool, Error> {
    let refuse = |cause| Err(Error { step: Step::Check, cause });
    if machine.system != SYSTEM {
        return refuse(Cause::System(machine.system.clone()));
    }
    for program in programs.iter().filter(|program| program.runs_there()) {
        if let Some(of) = program.arch.filter(|of| of.name() != machine.arch) {
            return refuse(Cause::Architecture { program: program.name, of, is: machine.arch.clone() });
        }
    }
    let is_missing = |program: &&Program| machine.entry(&program.file_name()).is_none();
    let needed = programs.iter().filter(is_missing).map(|program| program.size).sum::<u64>();
    if !transport.shares_files() && needed > 0 && machine.free < needed + RESERVE {
        return refuse(Cause::NoRoom { directory: layout.bin(), needed: needed + RESERVE, free: machine.free });
    }
    let mut changed = false;
    for program in programs {
        changed |= place_one(transport, layout, machine, program).await?;
    }
    Ok(changed)
}

async fn place_one(transport: &dyn Transport, layout: &Layout, machine: &Machine, program: &Program) -> Result<bool, Error> {
    let at = |cause: Cause| Error { step: Step::Place(program.link.clone()), cause };
    let path = layout.bin().join(program.file_name());
    let is_there = machine.entry(&program.file_name()).is_some();
    // What is there may have been damaged since.
    let found = if is_there { transport.digest(&path).await.map_err(|e| at(e.into()))? } else { None };
    if found.as_ref() != Some(&program.digest) {
        let part = layout.bin().join(format!(".{}.part", program.file_name()));
        transport.put(&part, Content::File(&program.file), PROGRAM).await.map_err(|e| at(e.into()))?;
        let copied = transport.digest(&part).await.map_err(|e| at(e.into()))?;
        if copied.as_ref() != Some(&program.digest) {
            transport.remove(&part).await.map_err(|e| at(e.into()))?;
            return Err(at(Cause::Corrupt { expected: program.digest.clone(), found: copied }));
        }
        transport.rename(&part, &path).await.map_err(|e| at(e.into()))?;
    }
    let target = program.file_name();
    if machine.entry(&program.link).and_then(|entry| entry.leads_to.as_ref()) == Some(&target) {
        return Ok(false);
    }
    let link = Content::Link(&target);
    transport.put(&layout.program(&program.link), link, PROGRAM).await.map_err(|e| at(e.into()))?;
    Ok(true)
}

/// Removes programs that no link leads to, unless something runs them: also shims, which outlive their agent.
async fn remove_old(transport: &dyn Transport, layout: &Layout, programs: &[Program]) -> Result<(), Error> {
    let at = |e: TransportError| Error { step: Step::RemoveOld, cause: e.into() };
    let machine = transport.inspect(&layout.root, &layout.bin()).await.map_err(at)?;
    let is_linked = |name: &str| machine.entries.iter().any(|entry| entry.leads_to.as_deref() == Some(name));
    let is_ours = |name: &str| programs.iter().any(|program| placed_digest(program.name, name).is_some());
    for entry in machine.entries.iter().filter(|entry| is_ours(&entry.name) && !is_linked(&entry.name)) {
        let path = layout.bin().join(&entry.name);
        if !transport.is_running(&path).await.map_err(at)? {
            transport.remove(&path).await.map_err(at)?;
        }
    }
    Ok(())
}

async fn write_bootstrap(transport: &dyn Transport, layout: &Layout, bootstrap: &Bootstrap) -> Result<(), Error> {
    let at = |cause: Cause| Error { step: Step::WriteBootstrap, cause };
    let path = layout.bootstrap();
    if let Some(text) = transport.read(&path, MAX_BOOTSTRAP).await.map_err(|e| at(e.into()))? {
        let there: Bootstrap = serde_json::from_slice(&text).map_err(|source| at(Cause::Unreadable { path, source }))?;
        let identity = |of: &Bootstrap| (of.cluster.clone(), of.node.clone(), of.generation);
        let is_same = identity(&there) == identity(bootstrap);
        let Bootstrap { cluster, node, generation, .. } = there;
        return if is_same { Ok(()) } else { Err(at(Cause::Occupied { cluster, node, generation })) };
    }
    let text = serde_json::to_vec(bootstrap).map_err(|source| at(Cause::Unreadable { path: path.clone(), source }))?;
    transport.put(&path, Content::Bytes(&text), SECRET).await.map_err(|e| at(e.into()))
}

/// Starting an agent that runs does nothing: the second one ends by itself.
async fn start(transport: &dyn Transport, order: &Order<'_>, machine: &Machine) -> Result<(), Error> {
    let at = |cause: Cause| Error { step: Step::Start, cause };
    let (agent, home) = (order.layout.program(AGENT), order.layout.home.display().to_string());
    let name = match &order.start {
        Start::Systemd(name) if machine.has_systemd => name,
        _ => return detach(transport, &agent, &home).await.map_err(|e| at(e.into())),
    };
    let text = systemd::unit(&agent, &order.layout.home);
    let unit = systemd::path(name);
    transport.put(&unit, Content::Bytes(text.as_bytes()), 0o644).await.map_err(|e| at(e.into()))?;
    let service = format!("{name}.service");
    for arguments in [vec!["daemon-reload"], vec!["enable", "--now", &service]] {
        let ran = transport.run(&Command::new("systemctl", arguments)).await.map_err(|e| at(e.into()))?;
        ran.succeeded("systemctl").map_err(|e| at(e.into()))?;
    }
    Ok(())
}

async fn detach(transport: &dyn Transport, agent: &Path, home: &str) -> Result<(), TransportError> {
    transport.start(&Command::new(agent, ["run", "--detach", "--home", home])).await
}

#[cfg(test)]
mod tests;
