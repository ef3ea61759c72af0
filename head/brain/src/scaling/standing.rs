//! The requests that stand: numbers of workers, and room.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_model::demand::{Ask, Wants};

/// What was asked for and stands: numbers of workers, and room.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    numbers: BTreeMap<String, Ask>,
    pub(super) room: BTreeMap<String, Ask>,
    /// When those end that do, on the monotonic clock.
    pub(super) ends: BTreeMap<String, u64>,
    /// The last number that was made a name of.
    last: u64,
    /// The number of the last that came.
    newest: u64,
}

impl Asks {
    pub(crate) fn new(mut all: Vec<Ask>) -> Self {
        let mut asks = Self::default();
        // Those of a store that knew no numbers come in the order of their times.
        all.sort_by(|a, b| (a.number, a.at, &a.name).cmp(&(b.number, b.at, &b.name)));
        for mut ask in all {
            ask.number = ask.number.max(asks.next_number());
            asks.newest = ask.number;
            asks.insert(ask);
        }
        asks
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.newest += 1;
        self.newest
    }

    pub(super) fn get(&self, name: &str) -> Option<&Ask> {
        self.numbers.get(name).or_else(|| self.room.get(name))
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len() + self.room.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ask> {
        self.numbers.values().chain(self.room.values())
    }

    /// Those that want a number of workers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = &Ask> {
        self.numbers.values()
    }

    pub(super) fn insert(&mut self, ask: Ask) {
        let of = if ask.wants.node_type().is_some() { &mut self.numbers } else { &mut self.room };
        of.insert(ask.name.clone(), ask);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Ask> {
        self.ends.remove(name);
        self.numbers.remove(name).or_else(|| self.room.remove(name))
    }

    /// The names of those in whose place a new one stands.
    pub(super) fn replaced_by(&self, name: &str, wants: &Wants, additive: bool) -> BTreeSet<String> {
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
            let name = format!("ask-{}", self.last);
            if !self.numbers.contains_key(&name) && !self.room.contains_key(&name) {
                return name;
            }
        }
    }
}
