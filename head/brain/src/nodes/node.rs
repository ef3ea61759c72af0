//! What the head knows of one node beside its record, none of which outlives the head.

use std::collections::BTreeMap;

use cloudtik_model::ServiceKey;
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::report::{Facts, ServiceReport};

use super::membership::Watch;
use crate::Session;
use crate::autoscaler::Usage;
use crate::placement::GoalState;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) record: NodeRecord,
    pub(crate) link: Option<Session>,
    pub(crate) facts: Option<Facts>,
    pub(crate) services: BTreeMap<ServiceKey, ServiceReport>,
    /// It reported more services that it is not to run than are kept, and that was said.
    pub(crate) ignores_services: bool,
    pub(crate) goal: GoalState,
    pub(crate) usage: Usage,
    pub(crate) watch: Watch,
    /// A provider call of this node that has not come back.
    pub(crate) in_flight: bool,
    /// Failed calls in a row.
    pub(crate) failures: u32,
    /// Why it could not be deleted when that was tried last.
    pub(crate) undeletable: Option<String>,
    /// Not before this is the next call made.
    pub(crate) not_before: u64,
    /// When it entered its state, on the brain's clock.
    pub(crate) entered: u64,
    /// Since when it prepares for the first time, links that blink included.
    pub(crate) preparing_since: Option<u64>,
    /// When to look at it again, if nothing comes before.
    pub(crate) timer: Option<u64>,
    /// From when on it counts as one that works: a while after it was ready first, or 0 if an earlier head saw that.
    pub(crate) at_work: Option<u64>,
    /// When it was learned that its instance exists.
    pub(crate) adopted: u64,
    /// Since when lists have not shown its instance.
    pub(crate) unlisted_since: Option<u64>,
    /// When a call that may have made an instance, and had no answer, was last under way.
    pub(crate) uncertain: Option<u64>,
}

impl Node {
    pub(crate) fn new(mut record: NodeRecord, now: u64) -> Self {
        // A verdict of an earlier head counts as suspicion: nothing is done to what was not seen again.
        if let NodeState::Down { evidence } = record.life {
            record.life = NodeState::Suspect { evidence };
        }
        Self {
            uncertain: None,
            timer: None,
            preparing_since: None,
            link: None,
            facts: None,
            services: BTreeMap::new(),
            ignores_services: false,
            goal: GoalState::new(now),
            usage: Usage::new(now),
            watch: Watch::since(now),
            in_flight: false,
            failures: 0,
            undeletable: None,
            not_before: 0,
            entered: now,
            at_work: record.was_ready.then_some(0),
            record,
            adopted: 0,
            unlisted_since: None,
        }
    }

    pub(crate) fn is_worker(&self) -> bool {
        !self.record.id.is_head()
    }
}
