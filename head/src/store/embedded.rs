//! The records in one embedded database beside the head.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use cloudtik_brain::access::GrantRecord;
use cloudtik_brain::{ClusterRecord, Memory, Record};
use cloudtik_model::event::Event;
use cloudtik_model::outlook::Outlook;
use cloudtik_model::{Epoch, NodeId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;

use super::events::{self, EventLog};
use super::{Error, FORMAT, LAST_EPOCH, Leadership, Remembered, Store};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const NODES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("nodes");
const REQUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("requests");
/// By node, what is planned on it.
const PLAN: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("plan");
/// By number.
const GRANTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("grants");
/// By number.
const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("jobs");
const REVISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("revisions");

/// The store in the head's directory.
pub const FILE: &str = "store.redb";

pub(super) fn failed<E: Into<redb::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Database { operation, source: Box::new(source.into()) }
}

/// The database in a head's directory. It can be opened by one process at a time.
#[derive(Debug)]
pub struct EmbeddedDatabase {
    database: Arc<Database>,
}

/// The database as the holder of a leadership writes to it.
#[derive(Debug)]
struct EmbeddedStore {
    database: Arc<Database>,
    epoch: Epoch,
}

impl EmbeddedDatabase {
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
        Ok(Self { database: Arc::new(database) })
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
}

impl Leadership for EmbeddedDatabase {
    fn begin(&self, join_secret: &[u8], seen: Epoch) -> Result<(Remembered, Arc<dyn Store>), Error> {
        let operation = "starting";
        let write = self.database.begin_write().map_err(failed(operation))?;
        let remembered = {
            let mut meta = write.open_table(META).map_err(failed(operation))?;
            let format = meta.get("format").map_err(failed(operation))?.map_or(FORMAT, |v| number(v.value()));
            if format > FORMAT {
                return Err(Error::Newer(format));
            }
            if format < FORMAT {
                return Err(Error::Older(format));
            }
            let before = meta.get("epoch").map_err(failed(operation))?.map_or(0, |v| number(v.value())).max(seen.0);
            if before >= LAST_EPOCH.0 {
                return Err(Error::EpochsExhausted(Epoch(before)));
            }
            let epoch = before + 1;
            let known = meta.get("join-secret").map_err(failed(operation))?.map(|v| v.value().to_vec());
            let join_secret = known.unwrap_or_else(|| join_secret.to_vec());
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
            let table = write.open_table(REQUESTS).map_err(failed(operation))?;
            let mut requests = Vec::new();
            for entry in table.iter().map_err(failed(operation))? {
                let (_, value) = entry.map_err(failed(operation))?;
                requests.push(parse("request", value.value())?);
            }
            let table = write.open_table(PLAN).map_err(failed(operation))?;
            let mut plan = BTreeMap::new();
            for entry in table.iter().map_err(failed(operation))? {
                let (node, holds) = entry.map_err(failed(operation))?;
                if let Ok(node) = NodeId::new(node.value()) {
                    plan.insert(node, parse("plan", holds.value())?);
                }
            }
            let table = write.open_table(JOBS).map_err(failed(operation))?;
            let mut jobs = Vec::new();
            for entry in table.iter().map_err(failed(operation))? {
                let (_, value) = entry.map_err(failed(operation))?;
                jobs.push(parse("job", value.value())?);
            }
            EventLog::open(&write, operation)?;
            write.open_table(REVISIONS).map_err(failed(operation))?;
            write.open_table(GRANTS).map_err(failed(operation))?;
            Remembered { epoch: Epoch(epoch), memory: Memory { cluster, requests, outlook, nodes, plan, jobs }, join_secret }
        };
        write.commit().map_err(failed(operation))?;
        let store = EmbeddedStore { database: self.database.clone(), epoch: remembered.epoch };
        Ok((remembered, Arc::new(store)))
    }
}

impl EmbeddedStore {
    /// A transaction that no later leadership has preceded.
    fn begin_write(&self, operation: &'static str) -> Result<WriteTransaction, Error> {
        let write = self.database.begin_write().map_err(failed(operation))?;
        let meta = write.open_table(META).map_err(failed(operation))?;
        let by = Epoch(meta.get("epoch").map_err(failed(operation))?.map_or(0, |v| number(v.value())));
        drop(meta);
        if by > self.epoch { Err(Error::Superseded { own: self.epoch, by }) } else { Ok(write) }
    }
}

impl Store for EmbeddedStore {
    fn commit(&self, records: &[Record]) -> Result<u64, Error> {
        let operation = "writing to";
        let write = self.begin_write(operation)?;
        let last = {
            let mut meta = write.open_table(META).map_err(failed(operation))?;
            let mut nodes = write.open_table(NODES).map_err(failed(operation))?;
            let mut requests = write.open_table(REQUESTS).map_err(failed(operation))?;
            let mut plan = write.open_table(PLAN).map_err(failed(operation))?;
            let mut events = EventLog::open(&write, operation)?;
            let mut grants = write.open_table(GRANTS).map_err(failed(operation))?;
            let mut jobs = write.open_table(JOBS).map_err(failed(operation))?;
            let mut last = events.last()?;
            for record in records {
                match record {
                    Record::Node(node) => {
                        nodes.insert(node.id.as_str(), text(node).as_slice()).map_err(failed(operation))?;
                    }
                    Record::Cluster(cluster) => {
                        meta.insert("cluster", text(cluster).as_slice()).map_err(failed(operation))?;
                    }
                    Record::ResourceRequest(ask) => {
                        requests.insert(ask.name.as_str(), text(ask).as_slice()).map_err(failed(operation))?;
                    }
                    Record::ResourceRequestGone { name } => {
                        requests.remove(name.as_str()).map_err(failed(operation))?;
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
                        events.add(&Event { position: last, ..event.clone() })?;
                    }
                    Record::Grant(grant) => {
                        grants.insert(grant.number, text(grant).as_slice()).map_err(failed(operation))?;
                    }
                    Record::GrantGone { number } => {
                        grants.remove(number).map_err(failed(operation))?;
                    }
                    Record::Job(job) => {
                        jobs.insert(job.id.0, text(job).as_slice()).map_err(failed(operation))?;
                    }
                    Record::JobGone { id } => {
                        jobs.remove(id.0).map_err(failed(operation))?;
                    }
                }
            }
            events.trim()?;
            last
        };
        write.commit().map_err(failed(operation))?;
        Ok(last)
    }

    fn events(&self, from: u64, limit: usize, node: Option<&NodeId>) -> Result<Vec<Event>, Error> {
        let read = self.database.begin_read().map_err(failed("reading"))?;
        events::read(&read, from, limit, node)
    }

    fn grants(&self) -> Result<Vec<GrantRecord>, Error> {
        let operation = "reading";
        let read = self.database.begin_read().map_err(failed(operation))?;
        let table = read.open_table(GRANTS).map_err(failed(operation))?;
        let mut all = Vec::new();
        for entry in table.iter().map_err(failed(operation))? {
            let (_, value) = entry.map_err(failed(operation))?;
            all.push(parse("grant", value.value())?);
        }
        Ok(all)
    }

    fn put_revision(&self, revision: u64, document: &[u8]) -> Result<(), Error> {
        let operation = "writing to";
        let write = self.begin_write(operation)?;
        write.open_table(REVISIONS).map_err(failed(operation))?.insert(revision, document).map_err(failed(operation))?;
        write.commit().map_err(failed(operation))
    }

    fn forget_revisions_before(&self, revision: u64) -> Result<(), Error> {
        let operation = "forgetting descriptions";
        let write = self.begin_write(operation)?;
        write.open_table(REVISIONS).map_err(failed(operation))?.retain_in(..revision, |_, _| false).map_err(failed(operation))?;
        write.commit().map_err(failed(operation))
    }

    fn revisions(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
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

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

pub(super) fn text(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records become JSON")
}

pub(super) fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Corrupt { what, source })
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[test]
    fn the_embedded_database_keeps_the_contract() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(FILE);
        let mut is_new = true;
        conformance::check(|| Arc::new(EmbeddedDatabase::open(&path, std::mem::take(&mut is_new)).expect("opens")));
    }

    #[test]
    fn a_store_of_another_format_is_refused_and_left_as_it_is() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for (format, is_expected) in [(FORMAT - 1, true), (FORMAT, false), (FORMAT + 1, true)] {
            let path = directory.path().join(format!("{format}.redb"));
            let database = Database::create(&path).expect("makes");
            let write = database.begin_write().expect("begins");
            write.open_table(META).expect("opens").insert("format", format.to_be_bytes().as_slice()).expect("writes");
            write.commit().expect("commits");
            drop(database);
            let refused =
                EmbeddedDatabase::open(&path, false).expect("opens").begin(b"secret", Epoch(0)).map(|(remembered, _)| remembered.epoch);
            let is_refused = matches!(refused, Err(Error::Older(found) | Error::Newer(found)) if found == format);
            assert_eq!(is_refused, is_expected, "{format}: {refused:?}");
            let database = Database::open(&path).expect("opens");
            let meta = database.begin_read().expect("begins").open_table(META).expect("opens");
            let epoch = meta.get("epoch").expect("reads").map(|v| number(v.value()));
            assert_eq!(epoch, (!is_expected).then_some(1), "{format}: no leadership has begun");
        }
    }

    #[test]
    fn a_store_whose_making_was_cut_off_is_made_anew() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("store.redb");
        std::fs::write(directory.path().join("store.new"), [0; 4096]).expect("half a store");
        let store = EmbeddedDatabase::open(&path, true).expect("opens");
        assert_eq!(store.begin(b"secret", Epoch(0)).expect("begins").0.epoch, Epoch(1));
        drop(store);
        let names: Vec<_> = std::fs::read_dir(directory.path()).expect("lists").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["store.redb"], "nothing is left of the making");
        EmbeddedDatabase::open(&path, false).expect("it is one that a head was set up with");
    }
}
