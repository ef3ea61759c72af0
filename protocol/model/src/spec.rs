//! What the brain decides from: the validated description of a cluster, reduced to what decisions need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{MoneyPerHour, NodeTypeName, Resources, ServiceKey};

/// What a cluster is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Grows with every accepted change; nodes' goals are made from one revision.
    pub revision: u64,
    pub workers: BTreeMap<NodeTypeName, WorkerType>,
    /// Never more workers than this, of all types together.
    pub max_workers: u32,
    #[serde(default)]
    pub budget: Option<MoneyPerHour>,
    pub services: Vec<ServicePlacement>,
    /// The change restarts processes that run, so nodes take it one after the other.
    #[serde(default)]
    pub rolling: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerType {
    pub min: u32,
    pub max: u32,
    #[serde(default)]
    pub price: Option<MoneyPerHour>,
    /// What is known before a node of the type reports itself.
    #[serde(default)]
    pub resources: Option<Resources>,
}

/// A service and the nodes that it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlacement {
    pub key: ServiceKey,
    pub role: Role,
    /// Services that must be ready, wherever they are placed, before this one starts.
    #[serde(default)]
    pub after: Vec<ServiceKey>,
}

/// On which nodes a service runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Head,
    Workers,
    All,
    NodeType(NodeTypeName),
}

impl Role {
    /// Whether a service of this role runs on a node of `node_type`.
    pub fn covers(&self, node_type: &NodeTypeName) -> bool {
        let is_head = node_type.as_str() == NodeTypeName::HEAD;
        match self {
            Self::Head => is_head,
            Self::Workers => !is_head,
            Self::All => true,
            Self::NodeType(wanted) => wanted == node_type,
        }
    }
}

impl Spec {
    /// The services placed on nodes of a type.
    pub fn services_on<'a>(&'a self, node_type: &'a NodeTypeName) -> impl Iterator<Item = &'a ServicePlacement> {
        self.services.iter().filter(move |s| s.role.covers(node_type))
    }
}
