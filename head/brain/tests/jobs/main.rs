//! Jobs in the brain, one rule at a time: who is taken, who starts, how they end, what is kept.

mod bench;
mod ends;
mod orders;
mod queue;
mod requests;
mod retention;

use bench::{Bench, command, limits, rules};
