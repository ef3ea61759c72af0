//! Why the cluster has the size that it has, as the brain saw it when that last changed: for `why` when nothing happens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::demand::AskView;
use crate::{MoneyPerHour, NodeId, NodeTypeName, Timestamp};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// When it last changed.
    pub at: Timestamp,
    pub types: BTreeMap<NodeTypeName, TypeOutlook>,
    /// What is asked for and has no room.
    pub unmet: Vec<Unmet>,
    /// What each policy sees.
    pub policies: BTreeMap<String, String>,
    /// Why nothing is made or ended at all, if that is so.
    #[serde(default)]
    pub held: Option<String>,
    /// What everything that may exist costs.
    #[serde(default)]
    pub cost: MoneyPerHour,
}

/// What is asked for by hand, beside how things stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub requests: Vec<AskView>,
    pub outlook: Outlook,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeOutlook {
    /// Workers that are there or on their way.
    pub present: u32,
    /// Workers that are wanted, without those that bundles need.
    pub wanted: u32,
    /// Workers beyond those, on which requests for room lie.
    #[serde(default)]
    pub for_room: u32,
    /// Who wants how many, the deciding one first.
    pub sources: Vec<String>,
    /// Why nothing is made of it just now.
    pub blocked: Vec<String>,
    /// Workers that nobody wants, and why they are still there.
    pub surplus: BTreeMap<NodeId, String>,
    /// Workers that are not ready, and what went wrong last; a few of them where there are many.
    #[serde(default)]
    pub troubles: BTreeMap<NodeId, String>,
}

/// Something that was asked for and cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmet {
    /// The name of who asks.
    pub source: String,
    pub what: String,
    pub why: String,
}
