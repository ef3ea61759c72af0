//! Why the cluster has the size that it has, as the brain saw it when that last changed: for `why` when nothing happens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::demand::{Counted, Quantity, RequestedCapacity, ResourceRequest};
use crate::policy::{Hours, Metric};
use crate::reason::{InstanceReport, Obstacle, Reason, Trouble};
use crate::spec::Offer;
use crate::{MoneyPerHour, NodeId, NodeTypeName, Timestamp};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// When it last changed.
    pub at: Timestamp,
    pub types: BTreeMap<NodeTypeName, TypeOutlook>,
    /// What is asked for and has no room.
    pub unmet: Vec<Unmet>,
    /// What each policy sees.
    pub policies: BTreeMap<String, PolicySays>,
    /// Why nothing is made or ended at all, if that is so.
    #[serde(default)]
    pub held: Option<Blocked>,
    /// What everything that may exist costs.
    #[serde(default)]
    pub cost: MoneyPerHour,
}

/// What is asked for by hand, beside how things stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub requests: Vec<RequestView>,
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
    pub sources: Vec<Source>,
    /// Why nothing is made of it just now.
    pub blocked: Vec<Blocked>,
    /// Workers above the number that is wanted, and why they are still there.
    pub surplus: BTreeMap<NodeId, Obstacle>,
    /// Workers that are not ready, and what went wrong last; a few of them where there are many.
    #[serde(default)]
    pub troubles: BTreeMap<NodeId, Trouble>,
}

/// Something that was asked for and cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmet {
    /// The name of the request.
    pub source: String,
    /// What of it has no room.
    pub what: Vec<Counted>,
    pub why: Vec<UnmetCause>,
}

/// Who wants how many workers of a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Source {
    Minimum {
        count: u32,
    },
    Requests {
        count: u32,
        requests: Vec<NamedRequest>,
    },
    Policy {
        policy: String,
        count: u32,
        says: PolicySays,
    },
    /// Limits leave so many of what policies want.
    Limits {
        count: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRequest {
    pub name: String,
    pub wants: RequestedCapacity,
}

/// Why no machine of a type is made just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Blocked {
    OnHold {
        /// As somebody wrote it; empty if nothing was said.
        reason: String,
    },
    /// It failed too often in a row.
    Paused {
        why: Reason,
    },
    TypeMaximum {
        max: u32,
        /// So many of them are on their way out or set aside.
        leaving: u32,
    },
    ClusterMaximum {
        max: u32,
    },
    Budget {
        budget: MoneyPerHour,
        left: MoneyPerHour,
        price: MoneyPerHour,
    },
    /// The provider had none.
    Unavailable {
        offers: Vec<UnavailableOffer>,
    },
    NotOffered,
    ResourcesUnknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableOffer {
    pub offer: Offer,
    pub why: ShortageCause,
}

/// Why there is none of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum ShortageCause {
    NoCapacity {
        /// What the provider said.
        error: String,
    },
    /// The account may have no more of it.
    Quota {
        /// What the provider said.
        error: String,
    },
    /// The provider took a spot machine away before it was ever ready.
    Reclaimed { instance: InstanceReport },
}

/// Why something has no room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum UnmetCause {
    ClusterMaximum {
        max: u32,
    },
    BudgetLeaves {
        budget: MoneyPerHour,
        left: MoneyPerHour,
    },
    /// No machine of these types is made just now.
    Blocked {
        types: Vec<NodeTypeName>,
        by: Blocked,
    },
    /// These would have room, and take no work.
    Quarantined {
        nodes: Vec<NodeId>,
    },
    /// Machines of other types would hold all of it, but machines in use are not exchanged.
    MachinesInUse,
    NoTypeHoldsIt,
    /// All that may be made of these types is too little.
    CannotHoldAll {
        types: Vec<NodeTypeName>,
    },
    /// No type offers these resources.
    NotOffered {
        resources: Vec<String>,
    },
    /// Too few machines for all of it were to be had: it is tried less and less often.
    TriedLater {
        times: u32,
    },
    NeedsWorkers {
        more: u32,
        max: u32,
        left: u32,
    },
    NeedsMoney {
        more: MoneyPerHour,
        budget: MoneyPerHour,
        left: MoneyPerHour,
    },
}

/// What of a request has no room, or is not there or coming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum Shortfall {
    NoRoom { what: Vec<Counted>, why: Vec<UnmetCause> },
    AboveTypeMaximum { present: u32, wanted: u32, node_type: NodeTypeName, max: u32 },
    Missing { present: u32, wanted: u32, why: Option<Blocked> },
}

/// What a policy sees, and what it makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct PolicySays {
    pub sees: PolicyView,
    /// What it would ask for, where its own maximum is lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond_max: Option<BeyondMax>,
    /// The number that it wants and that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<PolicyWait>,
}

impl From<PolicyView> for PolicySays {
    fn from(sees: PolicyView) -> Self {
        Self { sees, beyond_max: None, waits: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeyondMax {
    pub asked: u32,
    pub max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyWait {
    pub count: u32,
    pub until: Timestamp,
    /// It waits longer than it says, because it changed direction again and again.
    pub flaps: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "sees", rename_all = "kebab-case")]
pub enum PolicyView {
    UnknownTimeZone {
        time_zone: String,
    },
    ScheduleOn {
        hours: Hours,
    },
    ScheduleOff {
        hours: Hours,
    },
    LoadUnknown {
        metric: Metric,
        window_s: u64,
    },
    /// An average over the window, in percent.
    Load {
        metric: Metric,
        percent: u64,
        nodes: u64,
        window_s: u64,
        level: LoadLevel,
    },
    SignalUnknown {
        signal: String,
        cause: SignalProblem,
    },
    Signal {
        signal: String,
        value: Quantity,
        /// For signals of what waits: so many nodes have other work.
        at_work: Option<u32>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "level", rename_all = "kebab-case")]
pub enum LoadLevel {
    Saturated,
    Above {
        percent: u32,
    },
    Below {
        percent: u32,
    },
    /// Below, but some nodes left just now whose work has not come to the others yet.
    BelowSinceSomeLeft {
        percent: u32,
    },
    Between {
        low: u32,
        high: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum SignalProblem {
    /// It runs, and its agent cannot read the signal.
    Unreadable {
        node: NodeId,
    },
    NoServiceReady {
        runtime: String,
    },
}

/// A request for people, and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct RequestView {
    #[serde(flatten)]
    pub request: ResourceRequest,
    /// What of it has no room now, and why.
    pub unmet: Option<Shortfall>,
    /// All of it is there, on nodes that are ready.
    #[serde(default)]
    pub ready: bool,
    /// Where what it wants room for is planned.
    #[serde(default)]
    pub nodes: Vec<NodeId>,
}

crate::worded::worded!(RequestView, Source, Blocked, UnmetCause, Shortfall, PolicySays, ShortageCause);
