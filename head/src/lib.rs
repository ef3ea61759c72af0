//! The head's body: everything that acts.
//!
//! Owns: the bus, the store, provider calls, artifacts, the gRPC and HTTP services. Must never: decide what the cluster
//! should do; that is the brain's (`head/brain`), whose actions it executes and to whom it brings what came of them.
//!
//! | module | does |
//! |---|---|
//! | `runner` | the thread on which the brain runs: inputs in, one commit, effects out |
//! | `goals` | plans what each node is to run, and sends it |
//! | `jobs` | the files of jobs, what they are to run, and telling the head's node |
//! | `driver` | executes effects: provider calls, dial-backs |
//! | `store` | records, events and revisions: the seam, and one embedded database behind it |
//! | `hub` | the agents' links |
//! | `bus` | the gRPC services for agents: join, bus, artifacts |
//! | `access` | who may use the cluster: grants, and what becomes of them |
//! | `board` | the status, made once for all who look |
//! | `admin` | the gRPC services for people: setup, administration |
//! | `sessions` | programs run on nodes for somebody |
//! | `place` | the head's socket and directory, watched while it serves |
//! | `artifacts` | software by content, fetched once |
//! | `revisions` | descriptions of the cluster as they were accepted, and their planners |
//! | `simulate` | scenarios and recordings, in virtual time |
//! | `agents` | the agent's program, served to machines that have nothing but a join token |
//! | `http` | `/metrics`, `/healthz`, `/readyz`, discovery for Prometheus |
//! | `serve` | puts all of it together |

pub mod settings;
pub mod simulate;

mod access;
mod admin;
mod agents;
mod artifacts;
mod board;
mod bus;
mod driver;
mod goals;
mod http;
mod hub;
mod identity;
mod jobs;
mod machines;
mod place;
mod recorder;
mod revisions;
mod runner;
mod serve;
mod sessions;
mod status;
mod store;
mod supersession;
mod telemetry;

pub use serve::serve;
