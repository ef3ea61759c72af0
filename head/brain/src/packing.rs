//! Bin packing: which demands fit on the nodes that there are, and which new nodes are the cheapest for the rest.
//!
//! Owns: amounts of resources as vectors, the fleet with what is placed on it, and the purchase of new nodes. Knows nothing
//! of clusters, time or policies. Must never: depend on the order of hash maps or on chance: the same input gives the same
//! answer.
//!
//! | module | does |
//! |---|---|
//! | `devices` | what fractions of GPUs take of devices |
//! | `fleet` | demands on nodes that exist or are being made, kept up to date with every change |
//! | `fleet/exchange` | which work could lie elsewhere, for what needs something rare of its node |
//! | `fleet/undo` | where things lay before, and back to that |
//! | `purchase` | the cheapest new nodes for what the fleet has no room for |
//! | `exact` | the optimum, where there is little to look at |
//! | `improve` | makes a purchase cheaper: exact search over few demands at a time |
//! | `tree` | the first of many bins that has room |

pub mod devices;
mod exact;
mod fleet;
mod improve;
mod purchase;
mod tree;

use serde::{Deserialize, Serialize};

pub use fleet::{Before, Exchange, Fleet, Group, GroupId, Members, take_members};
pub(crate) use purchase::MAX_CLASSES;
pub use purchase::{Bin, Class, Content, Kind, Purchase, at_least, first_fit_decreasing, purchase};

/// Cores in thousandths, bytes of memory, GPUs in parts of a device ([`devices`]), and five more that a cluster may name, in thousandths.
pub const DIMENSIONS: usize = 8;
/// The place of GPUs in [`Amounts`].
pub const GPUS: usize = 2;

/// How much of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Amounts(pub [u64; DIMENSIONS]);

impl Amounts {
    /// Thousandths of cores, bytes, parts of GPUs.
    pub fn of(cpus: u64, memory: u64, gpus: u64) -> Self {
        let mut amounts = Self::default();
        (amounts.0[0], amounts.0[1], amounts.0[GPUS]) = (cpus, memory, gpus);
        amounts
    }

    pub fn fits(&self, room: &Self) -> bool {
        self.0.iter().zip(&room.0).all(|(need, room)| need <= room)
    }

    /// How often it fits; what needs nothing fits as often as one likes.
    pub fn copies_in(&self, room: &Self) -> u32 {
        let of_each = self.0.iter().zip(&room.0).filter(|(need, _)| **need > 0).map(|(need, room)| room / need);
        of_each.min().map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
    }

    pub fn times(&self, count: u32) -> Self {
        Self(self.0.map(|n| n.saturating_mul(u64::from(count))))
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_add(other.0[i])))
    }

    /// What is left; never below nothing.
    pub fn minus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].saturating_sub(other.0[i])))
    }

    /// The largest share that it takes of any one resource of `whole`.
    pub fn dominant_share(&self, whole: &Self) -> f64 {
        let share = |(need, whole): (&u64, &u64)| if *need == 0 { 0.0 } else { *need as f64 / (*whole).max(1) as f64 };
        self.0.iter().zip(&whole.0).map(share).fold(0.0, f64::max)
    }

    pub fn wants_gpus(&self) -> bool {
        self.0[GPUS] > 0
    }

    /// What only some nodes have: all but cores and memory.
    pub fn rare(&self) -> Self {
        Self(std::array::from_fn(|i| if i < GPUS { 0 } else { self.0[i] }))
    }

    pub fn is_nothing(&self) -> bool {
        self.0.iter().all(|n| *n == 0)
    }
}
