//! The log of events in the embedded database: by position, and by node, so that a node's are found and counted without a look
//! at all others.

use cloudtik_model::NodeId;
use cloudtik_model::event::{Event, EventKind};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};

use super::embedded::{failed, parse, text};
use super::{Error, KEPT_EVENTS, KEPT_OF_NODE};

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// By node, class and position.
const OF_NODES: TableDefinition<'_, (&str, u8, u64), ()> = TableDefinition::new("events-of-nodes");
/// By node and class, how many there are.
const COUNTS: TableDefinition<'_, (&str, u8), u64> = TableDefinition::new("event-counts");

/// What services did, and everything else: the one must not push out the other.
const CLASSES: [u8; 2] = [0, 1];

fn class(event: &Event) -> u8 {
    u8::from(event.kind != EventKind::Service)
}

/// The log as a transaction writes to it.
pub struct EventLog<'t> {
    events: Table<'t, u64, &'static [u8]>,
    of_nodes: Table<'t, (&'static str, u8, u64), ()>,
    counts: Table<'t, (&'static str, u8), u64>,
    operation: &'static str,
}

impl<'t> EventLog<'t> {
    pub fn open(write: &'t WriteTransaction, operation: &'static str) -> Result<Self, Error> {
        Ok(Self {
            events: write.open_table(EVENTS).map_err(failed(operation))?,
            of_nodes: write.open_table(OF_NODES).map_err(failed(operation))?,
            counts: write.open_table(COUNTS).map_err(failed(operation))?,
            operation,
        })
    }

    /// The position of the last event, 0 if there is none.
    pub fn last(&self) -> Result<u64, Error> {
        Ok(self.events.last().map_err(failed(self.operation))?.map_or(0, |(position, _)| position.value()))
    }

    /// Stores an event that has its position, and removes the oldest of its node and class beyond their share.
    pub fn add(&mut self, event: &Event) -> Result<(), Error> {
        self.events.insert(event.position, text(event).as_slice()).map_err(failed(self.operation))?;
        let Some(node) = &event.node else { return Ok(()) };
        let class = class(event);
        self.of_nodes.insert((node.as_str(), class, event.position), ()).map_err(failed(self.operation))?;
        let count = self.count(node, class, 1)?;
        if count > KEPT_OF_NODE {
            let oldest = self.of_nodes.range((node.as_str(), class, 0)..=(node.as_str(), class, u64::MAX));
            let oldest = oldest.map_err(failed(self.operation))?.next().transpose().map_err(failed(self.operation))?;
            if let Some(position) = oldest.map(|(key, _)| key.value().2) {
                self.events.remove(position).map_err(failed(self.operation))?;
                self.forget(node, class, position)?;
            }
        }
        Ok(())
    }

    /// Removes the oldest beyond what is kept of all.
    pub fn trim(&mut self) -> Result<(), Error> {
        while self.events.len().map_err(failed(self.operation))? > KEPT_EVENTS {
            let removed = self.events.pop_first().map_err(failed(self.operation))?;
            let removed = removed.and_then(|(_, value)| parse::<Event>("event", value.value()).ok());
            if let Some(event) = removed
                && let Some(node) = &event.node
            {
                self.forget(node, class(&event), event.position)?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, node: &NodeId, class: u8, position: u64) -> Result<(), Error> {
        if self.of_nodes.remove((node.as_str(), class, position)).map_err(failed(self.operation))?.is_some() {
            self.count(node, class, -1)?;
        }
        Ok(())
    }

    /// Changes how many events of a node and class there are; returns how many that is now.
    fn count(&mut self, node: &NodeId, class: u8, change: i64) -> Result<u64, Error> {
        let key = (node.as_str(), class);
        let before = self.counts.get(key).map_err(failed(self.operation))?.map_or(0, |count| count.value());
        let now = before.saturating_add_signed(change);
        match now {
            0 => drop(self.counts.remove(key).map_err(failed(self.operation))?),
            _ => drop(self.counts.insert(key, now).map_err(failed(self.operation))?),
        }
        Ok(now)
    }
}

/// Events from a position on in their order, at most `limit`, of one node if it is given.
pub fn read(read: &ReadTransaction, from: u64, limit: usize, node: Option<&NodeId>) -> Result<Vec<Event>, Error> {
    let operation = "reading";
    let events = read.open_table(EVENTS).map_err(failed(operation))?;
    let mut found = Vec::new();
    let Some(node) = node else {
        for entry in events.range(from..).map_err(failed(operation))?.take(limit) {
            let (_, value) = entry.map_err(failed(operation))?;
            found.push(parse("event", value.value())?);
        }
        return Ok(found);
    };
    let of_nodes = read.open_table(OF_NODES).map_err(failed(operation))?;
    let mut positions = Vec::new();
    for class in CLASSES {
        for entry in of_nodes.range((node.as_str(), class, from)..=(node.as_str(), class, u64::MAX)).map_err(failed(operation))?.take(limit)
        {
            positions.push(entry.map_err(failed(operation))?.0.value().2);
        }
    }
    positions.sort_unstable();
    for position in positions.into_iter().take(limit) {
        if let Some(value) = events.get(position).map_err(failed(operation))? {
            found.push(parse("event", value.value())?);
        }
    }
    Ok(found)
}
