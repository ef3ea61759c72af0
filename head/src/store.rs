//! What the head remembers. A step of the brain is one commit: after a crash it happened whole or not at all, and what was
//! acknowledged is on the disk.
//!
//! The seam: a [`Leadership`] is won, and gives the [`Store`] that its holder writes to. Each write is fenced by the epoch of
//! the leadership: once a later one has begun, the earlier holder's writes fail with [`Error::Superseded`] and change
//! nothing. A head acts only after a commit, so that it needs no other word of having lost.
//!
//! [`EmbeddedDatabase`] is a database in the head's directory. The suite in `conformance` holds for every implementation.

#[cfg(test)]
pub mod conformance;
mod embedded;
mod events;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use cloudtik_brain::access::GrantRecord;
use cloudtik_brain::{Memory, Record};
use cloudtik_model::event::Event;
use cloudtik_model::{Epoch, NodeId};

pub use embedded::{EmbeddedDatabase, FILE};

/// Events that are kept, at the least; older ones go.
pub const KEPT_EVENTS: u64 = 100_000;
/// Of what services did on one node, and of what else happened to it, so many are kept at most: a node that never comes to rest
/// must not push out what explains others. As many as `why` shows.
pub const KEPT_OF_NODE: u64 = 2_000;
/// Goals are numbered by the epoch in the upper half of 64 bits: later epochs would wrap them.
pub const LAST_EPOCH: Epoch = Epoch(u32::MAX as u64);
/// The layout of what is stored. A head refuses a store of another one.
pub const FORMAT: u64 = 3;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} the store failed")]
    Database { operation: &'static str, source: Box<redb::Error> },
    #[error("{} is missing or empty, and the cluster's state with it: restore it, or take the cluster down", .0.display())]
    Lost(PathBuf),
    #[error("the stored {what} is unreadable")]
    Corrupt { what: &'static str, source: serde_json::Error },
    #[error("the store has format {0}, newer than this head understands ({FORMAT}); run a newer cloudtik-head")]
    Newer(u64),
    #[error(
        "the store has format {0}, which this head does not read ({FORMAT}); go on with the version of cloudtik that made it, or take the cluster down"
    )]
    Older(u64),
    /// Nothing was written: another head leads by now.
    #[error("a head with epoch {} leads by now; this one has epoch {}", by.0, own.0)]
    Superseded { own: Epoch, by: Epoch },
    #[error("no epoch follows {}: the store's epoch is damaged", .0.0)]
    EpochsExhausted(Epoch),
}

/// Everything that a brain is rebuilt from.
#[derive(Debug)]
pub struct Remembered {
    pub epoch: Epoch,
    pub memory: Memory,
    pub join_secret: Vec<u8>,
}

/// Who may lead a cluster: one head at a time.
pub trait Leadership: Send + Sync + Debug {
    /// Begins a leadership, whose epoch is later than every earlier one's and than `seen`, before anything is said in its
    /// name. Of the join secrets that were ever handed over here the first is kept. Blocks.
    ///
    /// # Errors
    /// [`Error::Newer`], [`Error::Older`] and [`Error::Corrupt`] where the records cannot be understood: no leadership has begun then.
    fn begin(&self, join_secret: &[u8], seen: Epoch) -> Result<(Remembered, Arc<dyn Store>), Error>;
}

/// The records of one cluster, for the holder of one leadership. Every method blocks until the disk has answered.
pub trait Store: Send + Sync + Debug {
    /// Stores the records of a step in their order, all or none. Events get the positions that follow the last one.
    /// Returns the position of the last event, 0 if there never was one.
    fn commit(&self, records: &[Record]) -> Result<u64, Error>;

    /// Events from a position on in their order, at most `limit`, of one node if it is given. At least the last
    /// [`KEPT_EVENTS`] are there, except that of a node only the last [`KEPT_OF_NODE`] of its services are, and as many others.
    fn events(&self, from: u64, limit: usize, node: Option<&NodeId>) -> Result<Vec<Event>, Error>;

    /// The grants of access that are kept, by number.
    fn grants(&self) -> Result<Vec<GrantRecord>, Error>;

    /// Keeps a description of the cluster under its revision.
    fn put_revision(&self, revision: u64, document: &[u8]) -> Result<(), Error>;

    /// Removes the descriptions of earlier revisions.
    fn forget_revisions_before(&self, revision: u64) -> Result<(), Error>;

    /// The descriptions that are kept, by revision.
    fn revisions(&self) -> Result<Vec<(u64, Vec<u8>)>, Error>;
}
