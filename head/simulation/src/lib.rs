//! A world for the brain: simulated agents, a simulated provider that fails and lies, a head that crashes at any moment
//! and pauses, people who scale and kill. Time is virtual and every choice comes from one seed, so a world happens again
//! exactly.
//!
//! Owns: the world, its faults, and the promises checked at every step. Must never: touch a clock, a file or a network;
//! decide anything that the brain decides.
//!
//! | module | is |
//! |---|---|
//! | `setup` | what a world is made from: a seed, or a scenario that a person wrote |
//! | `faults` | what goes wrong in a seeded world |
//! | `world` | what happens when: `head`, `nodes`, `sim_event`; what people and trouble do: `trouble`, `script`; what is checked of every step: `checks`, `job_checks`; jobs: `jobs`; what it amounts to: `accounts` |
//! | `provider`, `agent`, `node_jobs`, `work` | the provider, the agents, jobs on the head's node, and work that keeps cores busy |
//! | `event_index`, `promises` | what stored events tell, and what is told of a promise that did not hold |
//! | `agenda`, `random` | what is due next, and choices from a seed |
//! | `replay` | a head's recorded life, lived again |

mod agenda;
mod agent;
mod event_index;
mod faults;
mod node_jobs;
mod promises;
mod provider;
mod random;
pub mod replay;
mod setup;
mod work;
mod world;

pub use faults::Faults;
pub use promises::Violation;
pub use random::Random;
pub use setup::{Pace, Setup};
pub use world::{Stats, World};

/// Runs the world of a seed to its end.
pub fn run(seed: u64) -> Result<Stats, Violation> {
    World::new(Setup::of_seed(seed)).run()
}
