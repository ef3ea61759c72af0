//! What a node is and why: its record, its events, what runs on it, and what took its place.

use std::collections::VecDeque;

use cloudtik_brain::NodeView;
use cloudtik_model::NodeId;
use cloudtik_model::event::Event;
use cloudtik_model::node::NodeRecord;
use cloudtik_model::status::Service;
use serde::Serialize;

/// The document of `Admin.Explain`.
#[derive(Serialize)]
pub(super) struct Explanation {
    node: NodeId,
    record: Option<NodeRecord>,
    /// The node and generation that replaces this one, if it was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_by: Option<String>,
    /// The node and generation that this one replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
    services: Vec<Service>,
    events: VecDeque<Event>,
    /// Earlier events that are not among them.
    left_out: u64,
}

pub(super) fn explanation(node: NodeId, view: Option<NodeView>, events: VecDeque<Event>, left_out: u64) -> Explanation {
    let generation = view.as_ref().map(|v| v.record.generation);
    let detail = |name: &str| {
        let of_this = events.iter().rev().filter(|e| generation.is_none() || e.generation == generation);
        of_this.into_iter().find_map(|e| e.details.get(name).cloned())
    };
    Explanation {
        replaced_by: detail("replaced by"),
        replaces: detail("replaces"),
        services: view.iter().flat_map(|v| v.services.values()).map(Service::of).collect(),
        record: view.map(|v| v.record),
        node,
        events,
        left_out,
    }
}
