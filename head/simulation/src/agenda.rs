//! What is to happen when, in order; what is due at the same time comes in the order in which it was put down.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
pub struct Agenda<T> {
    entries: BinaryHeap<Entry<T>>,
    last: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: u64,
    number: u64,
    what: T,
}

impl<T> Entry<T> {
    fn rank(&self) -> (u64, u64) {
        (self.at, self.number)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        other.rank().cmp(&self.rank())
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), last: 0 }
    }
}

impl<T> Agenda<T> {
    pub fn put(&mut self, at: u64, what: T) {
        self.last += 1;
        self.entries.push(Entry { at, number: self.last, what });
    }

    /// When the next is due.
    pub fn next(&self) -> Option<u64> {
        self.entries.peek().map(|entry| entry.at)
    }

    pub fn take(&mut self) -> Option<(u64, T)> {
        self.entries.pop().map(|entry| (entry.at, entry.what))
    }
}
