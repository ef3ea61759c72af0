//! The requests that stand: numbers of workers, and room.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};

/// What was asked for and stands: numbers of workers, and room.
#[derive(Debug, Default)]
pub(crate) struct RequestTable {
    numbers: BTreeMap<String, ResourceRequest>,
    pub(super) room: BTreeMap<String, ResourceRequest>,
    /// When those end that do, on the monotonic clock.
    pub(super) ends: BTreeMap<String, u64>,
    /// The last number that was made a name of.
    last: u64,
    /// The number of the last that came.
    newest: u64,
}

impl RequestTable {
    pub(crate) fn new(mut all: Vec<ResourceRequest>) -> Self {
        let mut requests = Self::default();
        // Those of a store that knew no numbers come in the order of their times.
        all.sort_by(|a, b| (a.number, a.at, &a.name).cmp(&(b.number, b.at, &b.name)));
        for mut request in all {
            request.number = request.number.max(requests.next_number());
            requests.newest = request.number;
            requests.insert(request);
        }
        requests
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.newest += 1;
        self.newest
    }

    pub(super) fn get(&self, name: &str) -> Option<&ResourceRequest> {
        self.numbers.get(name).or_else(|| self.room.get(name))
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len() + self.room.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ResourceRequest> {
        self.numbers.values().chain(self.room.values())
    }

    /// Those that want a number of workers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = &ResourceRequest> {
        self.numbers.values()
    }

    pub(super) fn insert(&mut self, request: ResourceRequest) {
        let of = if request.wants.node_type().is_some() { &mut self.numbers } else { &mut self.room };
        of.insert(request.name.clone(), request);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<ResourceRequest> {
        self.ends.remove(name);
        self.numbers.remove(name).or_else(|| self.room.remove(name))
    }

    /// The names of those in whose place a new one stands.
    pub(super) fn replaced_by(&self, name: &str, wants: &RequestedCapacity, additive: bool) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        match (wants.node_type(), additive) {
            // A number for a type stands in the place of every earlier one, by whatever name.
            (Some(of), false) => {
                names.extend(self.numbers.values().filter(|a| a.wants.node_type() == Some(of)).map(|a| a.name.clone()));
            }
            (None, false) => names.extend(self.room.keys().cloned()),
            (_, true) => {}
        }
        if self.numbers.contains_key(name) || self.room.contains_key(name) {
            names.insert(name.to_owned());
        }
        names
    }

    pub(super) fn free_name(&mut self) -> String {
        loop {
            self.last += 1;
            let name = format!("request-{}", self.last);
            if !self.numbers.contains_key(&name) && !self.room.contains_key(&name) {
                return name;
            }
        }
    }
}
