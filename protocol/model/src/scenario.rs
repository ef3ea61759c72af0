//! What happens to a simulated cluster: how its provider behaves, and what is asked for when. Times are in milliseconds
//! after the start.

use serde::{Deserialize, Serialize};

use crate::demand::{Quantity, RequestedCapacity};
use crate::spec::{Market, Offer};
use crate::{NodeTypeName, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    pub length_ms: u64,
    /// On the wall clock, for schedules.
    pub start: Timestamp,
    /// Of every choice by chance.
    pub seed: u64,
    pub provider: ProviderModel,
    /// The mean time until the head crashes.
    pub head_lasts_ms: Option<u64>,
    pub shortages: Vec<Shortage>,
    pub demands: Vec<Demand>,
    pub loads: Vec<Load>,
    pub signals: Vec<Signal>,
}

/// How the provider and its machines behave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderModel {
    /// From a machine's creation to its agent's first word.
    pub boot: Span,
    /// From a call to its answer.
    pub call: Span,
    /// From a service's start to its readiness.
    pub service: Span,
    /// Of calls, how many in a thousand fail; half of them after their effect.
    pub fails: u32,
    /// Further calls within a second are refused.
    pub calls_per_second: Option<u32>,
    /// The mean time until a machine breaks.
    pub machine_lasts_ms: Option<u64>,
    /// The mean time until a spot machine is taken away.
    pub spot_lasts_ms: Option<u64>,
}

/// Anything between, evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub least: u64,
    pub most: u64,
}

/// When something comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    pub at_ms: u64,
    /// Again and again.
    pub every_ms: Option<u64>,
    /// After gaps by chance, whose mean is `every_ms`: a Poisson process.
    pub random: bool,
    /// No more often than this.
    pub most: Option<u32>,
}

/// The provider has none of what matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    pub node_type: Option<NodeTypeName>,
    pub zone: Option<String>,
    pub market: Option<Market>,
    pub times: Times,
    /// To the end, if it is not given.
    pub lasts_ms: Option<u64>,
}

impl Shortage {
    pub fn is_of(&self, node_type: &NodeTypeName, offer: &Offer) -> bool {
        self.node_type.as_ref().is_none_or(|of| of == node_type)
            && self.zone.as_ref().is_none_or(|zone| offer.zone.as_ref() == Some(zone))
            && self.market.is_none_or(|market| offer.market == market)
    }
}

/// Something is asked for, waits until it is there, and is given back when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    pub name: String,
    pub wants: RequestedCapacity,
    pub times: Times,
    /// From the moment at which all of it is there; to the end, if it is not given.
    pub runs: Option<Span>,
}

/// Work for a type's cores that nobody asks room for: what policies on load see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub node_type: NodeTypeName,
    /// Cores that it keeps busy, if there are so many; else it waits.
    pub cores: Quantity,
    pub times: Times,
    pub lasts_ms: Option<u64>,
}

/// A number that a runtime gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// `<runtime>.<signal>`.
    pub signal: String,
    pub value: Quantity,
    pub times: Times,
    pub lasts_ms: Option<u64>,
}
