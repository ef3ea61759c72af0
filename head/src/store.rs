//! What the head remembers, in one embedded database. A step of the brain is one transaction: after a crash it happened
//! whole or not at all, and what was acknowledged is on the disk.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cloudtik_brain::{ClusterRecord, Memory, Record};
use cloudtik_model::event::Event;
use cloudtik_model::outlook::Outlook;
use cloudtik_model::{Epoch, NodeId};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::de::DeserializeOwned;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const NODES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("nodes");
const ASKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("asks");
/// By node, what is planned on it.
const PLAN: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("plan");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");

/// Events that are kept; older ones go.
const KEPT_EVENTS: u64 = 100_000;
/// The layout of what is stored. A head refuses a store of a newer one.
const FORMAT: u64 = 2;

/// The store in the head's directory.
pub const FILE: &str = "store.redb";

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
}

fn failed<E: Into<redb::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Database { operation, source: Box::new(source.into()) }
}

/// The database of one head.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

/// Everything that a brain is rebuilt from.
#[derive(Debug)]
pub struct Remembered {
    pub epoch: Epoch,
    pub memory: Memory,
    pub join_secret: Vec<u8>,
}

impl Store {
    /// Opens the store; makes it if this head `is_new`. A head that was set up once must not begin again with nothing: it
    /// would take its own nodes for strangers.
    pub fn open(path: &Path, is_new: bool) -> Result<Self, Error> {
        let is_empty = std::fs::metadata(path).map_or(true, |m| m.len() == 0);
        if is_empty && !is_new {
            return Err(Error::Lost(path.to_owned()));
        }
        if is_empty {
            Self::make(path)?;
        }
        let database = Database::open(path).map_err(failed("opening"))?;
        Ok(Self { database })
    }

    /// Makes an empty store beside its place, and moves it there when it is whole: a head that is killed meanwhile leaves
    /// nothing that the next one could not read.
    fn make(path: &Path) -> Result<(), Error> {
        let io = |source| Error::Database { operation: "making", source: Box::new(redb::Error::Io(source)) };
        let draft = path.with_extension("new");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft).map_err(io)?;
        drop(Database::create(&draft).map_err(failed("making"))?);
        file.sync_all().map_err(io)?;
        std::fs::rename(&draft, path).map_err(io)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
    }

    /// Begins a new leadership, later than `seen`: the epoch grows before anything is said in its name. `secret` is kept if
    /// there is none.
    pub fn begin(&self, secret: &[u8], seen: Epoch) -> Result<Remembered, Error> {
        let operation = "starting";
        let write = self.database.begin_write().map_err(failed(operation))?;
        let remembered = {
            let mut meta = write.open_table(META).map_err(failed(operation))?;
            let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_be_bytes);
            let format = meta.get("format").map_err(failed(operation))?.map_or(FORMAT, |v| number(v.value()));
            if format > FORMAT {
                return Err(Error::Newer(format));
            }
            let epoch = meta.get("epoch").map_err(failed(operation))?.map_or(0, |v| number(v.value())).max(seen.0) + 1;
            let known = meta.get("join-secret").map_err(failed(operation))?.map(|v| v.value().to_vec());
            let join_secret = known.unwrap_or_else(|| secret.to_vec());
            meta.insert("format", FORMAT.to_be_bytes().as_slice()).map_err(failed(operation))?;
            meta.insert("epoch", epoch.to_be_bytes().as_slice()).map_err(failed(operation))?;
            meta.insert("join-secret", join_secret.as_slice()).map_err(failed(operation))?;
            let cluster = match meta.get("cluster").map_err(failed(operation))? {
                Some(value) => parse("cluster record", value.value())?,
                None => ClusterRecord::default(),
            };
            let outlook = match meta.get("outlook").map_err(failed(operation))? {
                Some(value) => parse("outlook", value.value())?,
                None => Outlook::default(),
            };
            let table = write.open_table(NODES).map_err(failed(operation))?;
            let mut nodes = Vec::new();
            for entry in table.iter().map_err(failed(operation))? {
                let (_, value) = entry.map_err(failed(operation))?;
                nodes.push(parse("node record", value.value())?);
            }
            let table = write.open_table(ASKS).map_err(failed(operation))?;
            let mut asks = Vec::new();
            for entry in table.iter().map_err(failed(operation))? {
                let (_, value) = entry.map_err(failed(operation))?;
                asks.push(parse("request", value.value())?);
            }
            let table = write.open_table(PLAN).map_err(failed(operation))?;
            let mut plan = BTreeMap::new();
            for entry in table.iter().map_err(failed(operation))? {
                let (node, holds) = entry.map_err(failed(operation))?;
                if let Ok(node) = NodeId::new(node.value()) {
                    plan.insert(node, parse("plan", holds.value())?);
                }
            }
            write.open_table(EVENTS).map_err(failed(operation))?;
            write.open_table(REVISIONS).map_err(failed(operation))?;
            Remembered { epoch: Epoch(epoch), memory: Memory { cluster, asks, outlook, nodes, plan }, join_secret }
        };
        write.commit().map_err(failed(operation))?;
        Ok(remembered)
    }

    /// Stores the records of a step, all or none. Returns the position of the last event.
    pub fn commit(&self, records: &[Record]) -> Result<u64, Error> {
        let operation = "writing to";
        let write = self.database.begin_write().map_err(failed(operation))?;
        let last = {
            let mut meta = write.open_table(META).map_err(failed(operation))?;
            let mut nodes = write.open_table(NODES).map_err(failed(operation))?;
            let mut asks = write.open_table(ASKS).map_err(failed(operation))?;
            let mut plan = write.open_table(PLAN).map_err(failed(operation))?;
            let mut events = write.open_table(EVENTS).map_err(failed(operation))?;
            let mut last = events.last().map_err(failed(operation))?.map_or(0, |(k, _)| k.value());
            for record in records {
                match record {
                    Record::Node(node) => {
                        nodes.insert(node.id.as_str(), text(node).as_slice()).map_err(failed(operation))?;
                    }
                    Record::Cluster(cluster) => {
                        meta.insert("cluster", text(cluster).as_slice()).map_err(failed(operation))?;
                    }
                    Record::Ask(ask) => {
                        asks.insert(ask.name.as_str(), text(ask).as_slice()).map_err(failed(operation))?;
                    }
                    Record::AskGone { name } => {
                        asks.remove(name.as_str()).map_err(failed(operation))?;
                    }
                    Record::Plan { node, holds } if holds.is_empty() => {
                        plan.remove(node.as_str()).map_err(failed(operation))?;
                    }
                    Record::Plan { node, holds } => {
                        plan.insert(node.as_str(), text(holds).as_slice()).map_err(failed(operation))?;
                    }
                    Record::Outlook(outlook) => {
                        meta.insert("outlook", text(outlook).as_slice()).map_err(failed(operation))?;
                    }
                    Record::Event(event) => {
                        last += 1;
                        let event = Event { position: last, ..event.clone() };
                        events.insert(last, text(&event).as_slice()).map_err(failed(operation))?;
                    }
                }
            }
            while events.len().map_err(failed(operation))? > KEPT_EVENTS {
                events.pop_first().map_err(failed(operation))?;
            }
            last
        };
        write.commit().map_err(failed(operation))?;
        Ok(last)
    }

    /// Events from a position on, at most `limit`, of one node if it is given.
    pub fn events(&self, from: u64, limit: usize, node: Option<&NodeId>) -> Result<Vec<Event>, Error> {
        let operation = "reading";
        let read = self.database.begin_read().map_err(failed(operation))?;
        let table = read.open_table(EVENTS).map_err(failed(operation))?;
        let mut events = Vec::new();
        for entry in table.range(from..).map_err(failed(operation))? {
            let (_, value) = entry.map_err(failed(operation))?;
            let event: Event = parse("event", value.value())?;
            if node.is_none_or(|node| event.node.as_ref() == Some(node)) {
                events.push(event);
                if events.len() == limit {
                    break;
                }
            }
        }
        Ok(events)
    }

    /// Keeps a description of the cluster under its revision.
    pub fn put_revision(&self, revision: u64, document: &[u8]) -> Result<(), Error> {
        let operation = "writing to";
        let write = self.database.begin_write().map_err(failed(operation))?;
        write.open_table(REVISIONS).map_err(failed(operation))?.insert(revision, document).map_err(failed(operation))?;
        write.commit().map_err(failed(operation))
    }

    pub fn forget_revisions_before(&self, revision: u64) -> Result<(), Error> {
        let operation = "forgetting descriptions";
        let write = self.database.begin_write().map_err(failed(operation))?;
        write.open_table(REVISIONS).map_err(failed(operation))?.retain_in(..revision, |_, _| false).map_err(failed(operation))?;
        write.commit().map_err(failed(operation))
    }

    pub fn revisions(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let operation = "reading";
        let read = self.database.begin_read().map_err(failed(operation))?;
        let table = read.open_table(REVISIONS).map_err(failed(operation))?;
        let mut all = Vec::new();
        for entry in table.iter().map_err(failed(operation))? {
            let (revision, document) = entry.map_err(failed(operation))?;
            all.push((revision.value(), document.value().to_vec()));
        }
        Ok(all)
    }
}

fn text(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records become JSON")
}

fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Corrupt { what, source })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use cloudtik_brain::Planned;
    use cloudtik_model::demand::{Ask, Wants};
    use cloudtik_model::event::EventKind;
    use cloudtik_model::node::NodeRecord;
    use cloudtik_model::{Generation, NodeTypeName, Timestamp};

    #[test]
    fn a_store_whose_making_was_cut_off_is_made_anew() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("store.redb");
        std::fs::write(directory.path().join("store.new"), [0; 4096]).expect("half a store");
        let store = Store::open(&path, true).expect("opens");
        assert_eq!(store.begin(b"secret", Epoch(0)).expect("begins").epoch, Epoch(1));
        drop(store);
        let names: Vec<_> = std::fs::read_dir(directory.path()).expect("lists").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["store.redb"], "nothing is left of the making");
        Store::open(&path, false).expect("it is one that a head was set up with");
    }

    #[test]
    fn what_was_committed_is_remembered() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("store");
        let id = NodeId::new("w1").expect("valid");
        let node = NodeRecord::requested(id.clone(), Generation(1), NodeTypeName::new("default").expect("valid"), Timestamp(1));
        let event = Event {
            position: 0,
            at: Timestamp(1),
            node: Some(id.clone()),
            generation: Some(Generation(1)),
            kind: EventKind::Decision,
            message: "request".to_owned(),
            details: Default::default(),
            topic: None,
        };
        {
            let store = Store::open(&path, true).expect("opens");
            let first = store.begin(b"secret", Epoch(0)).expect("begins");
            assert_eq!(first.epoch, Epoch(1));
            assert_eq!(
                store.commit(&[Record::Node(node.clone()), Record::Event(event.clone()), Record::Event(event)]).expect("commits"),
                2
            );
        }
        let holds = vec![Planned { request: 7, bundle: 0, count: 2 }];
        let plan = |holds: &[Planned]| Record::Plan { node: id.clone(), holds: holds.to_vec() };
        let wants = Wants::More { node_type: NodeTypeName::new("default").expect("valid"), count: 1 };
        let ask = Ask { name: "job".to_owned(), number: 7, at: Timestamp(1), until: None, wants, reason: String::new() };
        {
            let store = Store::open(&path, true).expect("opens");
            store.commit(&[plan(&holds), Record::Ask(ask.clone())]).expect("commits");
            let memory = store.begin(b"", Epoch(0)).expect("begins").memory;
            assert_eq!((memory.plan, memory.asks), (BTreeMap::from([(id.clone(), holds)]), vec![ask.clone()]));
            store.commit(&[plan(&[]), Record::AskGone { name: ask.name }]).expect("commits");
        }
        let store = Store::open(&path, true).expect("opens");
        let again = store.begin(b"other", Epoch(0)).expect("begins");
        assert_eq!((again.memory.plan.len(), again.memory.asks.len()), (0, 0), "what is gone is not remembered");
        assert_eq!((again.epoch, again.memory.nodes, again.join_secret.as_slice()), (Epoch(3), vec![node], b"secret".as_slice()));
        assert_eq!(store.events(2, 10, Some(&id)).expect("reads").len(), 1);
        assert_eq!(store.events(0, 10, Some(&NodeId::head())).expect("reads").len(), 0);
    }
}
