//! What the parts of a cluster talk about, as plain types.
//!
//! Owns: names and ids (parsed once, at the border), moments, resources, money, the life of a node, goals, reports,
//! the specification that the brain decides from, and the documents that people read (`status -o json`).
//! Must never: do input or output, know a wire format, a provider or a runtime by name, or decide anything.

pub mod access;
pub mod actor;
pub mod address;
pub mod alarm;
pub mod answer;
pub mod bootstrap;
pub mod conflict;
pub mod demand;
pub mod event;
pub mod evidence;
pub mod goal;
pub mod head;
pub mod id;
pub mod job;
pub mod money;
pub mod natural;
pub mod node;
pub mod outlook;
pub mod policy;
pub mod printed;
pub mod program;
pub mod reason;
pub mod refusal;
pub mod report;
pub mod resources;
pub mod scenario;
pub mod secret;
mod shape;
pub mod simulation;
pub mod software;
pub mod spec;
pub mod status;
pub mod time;
pub mod wait;
mod worded;
pub mod words;

pub use actor::Actor;
pub use head::{HeadSettings, ProviderDocument};
pub use id::{
    AdministratorName, ClusterName, Epoch, Generation, InstanceId, JobId, JobName, NodeId, NodeTypeName, ProviderKind, RuntimeName,
    ServiceKey, ServiceName, WorkspaceName,
};
pub use money::MoneyPerHour;
pub use resources::{Bytes, Resources};
pub use shape::{Shape, ShapeName};
pub use time::{Moment, Timestamp};
