//! How the parts of a cluster talk.
//!
//! Owns: the wire contract (`proto/cloudtik.proto`) and its conversion to and from the plain types, the public key
//! infrastructure of a cluster, mutual TLS with identities that can be replaced while serving, and small files that
//! survive a crash. Must never: decide anything, or keep state of a head or an agent.

pub mod clock;
pub mod convert;
pub mod ending;
pub mod exposition;
pub mod logging;
pub mod pki;
pub mod readiness;
pub mod tls;
pub mod transport;

pub use cloudtik_files as files;

/// The generated types of the contract. They stay at the edges of the head, the agent and the launcher.
#[allow(clippy::all, reason = "generated code")]
pub mod wire {
    tonic::include_proto!("cloudtik.v1");
}

mod admin_methods {
    include!(concat!(env!("OUT_DIR"), "/admin_methods.rs"));
}
pub use admin_methods::AdminMethod;

impl AdminMethod {
    /// The method that a request's path names.
    pub fn of_path(path: &str) -> Option<Self> {
        let name = path.strip_prefix(Self::PREFIX)?;
        Self::ALL.iter().copied().find(|method| method.name() == name)
    }

    /// What the paths of all methods begin with.
    pub const PREFIX: &str = "/cloudtik.v1.Admin/";
}

/// Peers of another version than this refuse each other with a word on which of them to upgrade.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest frame on the bus or the admin service, in bytes. Goals and cluster files are the largest.
pub const MAX_FRAME: usize = 4 << 20;

/// Bytes of a session's input that may be on their way to its program.
pub const STDIN_WINDOW: usize = 1 << 20;

/// The longest file of a job, in bytes.
pub const MAX_JOB: u64 = 256 << 20;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The port of the head's bus, joins, artifacts and administration.
pub const BUS_PORT: u16 = 7070;

/// The port of an agent's `/healthz` and `/metrics`.
pub const HEALTH_PORT: u16 = 7071;
