//! Whether one node does something, as far as that was said. Nothing of it is stored.

use cloudtik_model::report::Load;

use super::history::History;

/// The autoscaler's part of a node's entry.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// How busy it was.
    pub(super) load: History,
    /// Since when it has had nothing to do; nothing if it works, or nobody said so yet.
    pub(super) idle_since: Option<u64>,
    /// When the last of what was planned on it went, in this head's life.
    pub(super) free_since: u64,
}

impl Usage {
    /// Of a node that is new: it has nothing to do.
    pub(crate) fn new(now: u64) -> Self {
        Self { idle_since: Some(now), ..Self::default() }
    }

    /// Of a node that an earlier head knew: whether it works is not known.
    pub(crate) fn unknown() -> Self {
        Self::default()
    }

    pub(crate) fn add_load(&mut self, now: u64, load: Load) {
        self.load.add(now, load);
    }

    pub(crate) fn clear_load(&mut self) {
        self.load.clear();
    }
}
