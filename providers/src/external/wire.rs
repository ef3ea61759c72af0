//! The documents that go over the executable's standard streams, one a line. `docs/providers/external.md` describes them.

use std::path::Path;
use std::time::Duration;

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::Instance;
use cloudtik_model::spec::Market;
use cloudtik_model::{Generation, InstanceId, MoneyPerHour, NodeId, NodeTypeName, ShapeName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::workspace::{Action, Cost, Desired, Found, ResourceId};
use crate::{Capabilities, CreateNode, DeleteNode, Error};

/// The version of the protocol.
pub const PROTOCOL: u32 = 1;

#[derive(Debug, Serialize)]
pub struct Request<'a> {
    pub id: u64,
    /// The executable is ended if it has not answered after this.
    pub deadline_ms: u64,
    #[serde(flatten)]
    pub call: Call<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call<'a> {
    Start { protocol: u32, cluster: &'a str, workspace: &'a str, settings: &'a Value, agent: &'a Path },
    List { page: Option<&'a str> },
    Create { nodes: Vec<Creation<'a>> },
    Delete { nodes: Vec<Deletion<'a>> },
    Describe { instance: &'a InstanceId },
    RestartAgent { node: &'a NodeId, generation: Generation, instance: &'a InstanceId, force: bool },
    Reboot { node: &'a NodeId, generation: Generation, instance: &'a InstanceId },
    WorkspaceStatus,
    WorkspaceApply { action: Action, resource: &'a ResourceId },
}

impl Call<'_> {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::List { .. } => "list",
            Self::Create { .. } => "create",
            Self::Delete { .. } => "delete",
            Self::Describe { .. } => "describe",
            Self::RestartAgent { .. } => "restart-agent",
            Self::Reboot { .. } => "reboot",
            Self::WorkspaceStatus => "workspace-status",
            Self::WorkspaceApply { .. } => "workspace-apply",
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Creation<'a> {
    node: &'a NodeId,
    generation: Generation,
    node_type: &'a NodeTypeName,
    shape: Option<&'a ShapeName>,
    market: Market,
    zone: Option<&'a str>,
    bootstrap: &'a Bootstrap,
}

impl<'a> From<&'a CreateNode> for Creation<'a> {
    fn from(request: &'a CreateNode) -> Self {
        Self {
            node: &request.bootstrap.node,
            generation: request.bootstrap.generation,
            node_type: &request.node_type,
            shape: request.shape.as_ref(),
            market: request.offer.market,
            zone: request.offer.zone.as_deref(),
            bootstrap: &request.bootstrap,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Deletion<'a> {
    node: &'a NodeId,
    generation: Generation,
    instance: &'a InstanceId,
}

impl<'a> From<&'a DeleteNode> for Deletion<'a> {
    fn from(request: &'a DeleteNode) -> Self {
        Self { node: &request.node, generation: request.generation, instance: &request.instance }
    }
}

/// A line of the executable.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Answer(Answer),
    Event { event: Event },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub id: u64,
    pub result: Option<Value>,
    pub error: Option<Failed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Changed,
}

/// How a call, or an item of one, failed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    code: Code,
    message: String,
    #[serde(default)]
    quota: Option<String>,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
    #[serde(default)]
    used_by: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Code {
    StockOut,
    Quota,
    Throttled,
    Permission,
    NotFound,
    Conflict,
    Mismatch,
    Undeletable,
    Transient,
    Permanent,
}

impl Failed {
    /// The error of the operation that failed.
    pub fn into_error(self, operation: &str) -> Error {
        let Self { code, message, quota, action, retry_after_ms, used_by } = self;
        match code {
            Code::StockOut => Error::StockOut(message),
            Code::Quota => Error::Quota { quota: quota.unwrap_or_else(|| "of the account".to_owned()), message },
            Code::Throttled => Error::Throttled { message, retry_after: retry_after_ms.map(Duration::from_millis) },
            Code::Permission => Error::Permission { action: action.unwrap_or(message) },
            Code::NotFound => Error::NotFound(message),
            Code::Conflict => Error::Conflict { what: message, used_by },
            Code::Mismatch => Error::Mismatch(message),
            Code::Undeletable => Error::Undeletable { what: message.clone(), source: message.into() },
            Code::Transient => Error::transient(operation, message),
            Code::Permanent => Error::permanent(operation, message),
        }
    }
}

/// The answer to `start`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    pub protocol: u32,
    pub capabilities: CapabilitiesDocument,
    /// Resources that the clusters of a workspace share; what others depend on comes first.
    #[serde(default)]
    pub workspace: Vec<Shared>,
}

/// [`Capabilities`] as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilitiesDocument {
    #[serde(default)]
    restart_agent: bool,
    #[serde(default)]
    reboot_ms: Option<u64>,
    #[serde(default)]
    owned_machines: bool,
    #[serde(default)]
    visibility_ms: u64,
    batch: usize,
}

impl From<CapabilitiesDocument> for Capabilities {
    fn from(document: CapabilitiesDocument) -> Self {
        Self {
            restart_agent: document.restart_agent,
            reboot: document.reboot_ms.map(Duration::from_millis),
            owned_machines: document.owned_machines,
            visibility: Duration::from_millis(document.visibility_ms),
            batch: document.batch.max(1),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    id: String,
    summary: String,
    /// Such as `0.045/h`; free where nothing is said.
    #[serde(default)]
    price: Option<String>,
}

impl TryFrom<Shared> for Desired {
    type Error = Error;

    fn try_from(shared: Shared) -> Result<Self, Error> {
        let Shared { id, summary, price } = shared;
        let cost = match price {
            None => Cost::Free,
            Some(price) => {
                let unread = |e| Error::permanent(format!("read the price {price:?} of the workspace's {id}"), e);
                Cost::PerHour(price.parse::<MoneyPerHour>().map_err(unread)?)
            }
        };
        Ok(Self { id: ResourceId::new(id), summary, cost })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    pub instances: Vec<Instance>,
    #[serde(default)]
    pub next: Option<String>,
}

/// An answer to each item, in their order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Items {
    pub items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    #[serde(default)]
    pub instance: Option<Instance>,
    #[serde(default)]
    pub error: Option<Failed>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    pub instance: Instance,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceStatus {
    pub resources: Vec<Found>,
}

/// An answer that says nothing but that it worked.
#[derive(Debug, Deserialize)]
pub struct Done {}
