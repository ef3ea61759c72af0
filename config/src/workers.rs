//! The types of workers that a cluster has.

use std::collections::BTreeMap;

use cloudtik_model::spec::Spot;
use cloudtik_model::{Bytes, MoneyPerHour, ShapeName};

/// More nodes than any provider gives; a larger number is a mistake.
pub const MAX_WORKERS: u64 = 100_000;

/// One type of worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    pub min: u32,
    pub max: u32,
    /// Of the provider's catalogue; it has resources and a price of its own, which those that are written here replace.
    pub shape: Option<ShapeName>,
    pub cpus: Option<u32>,
    pub memory: Option<Bytes>,
    pub gpus: Option<u32>,
    /// What else one offers, under names of the user's choice.
    pub resources: BTreeMap<String, u32>,
    pub price: Option<MoneyPerHour>,
    /// Where several types would do, the highest is taken first.
    pub priority: i32,
    pub zones: Vec<String>,
    pub spot: Option<Spot>,
}
