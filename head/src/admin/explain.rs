//! What a node is and why: its record, its events, what runs on it, and what took its place.

use std::collections::VecDeque;

use cloudtik_brain::NodeView;
use cloudtik_model::event::{Event, What};
use cloudtik_model::node::NodeRecord;
use cloudtik_model::status::Service;
use cloudtik_model::{Generation, NodeId};
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
    let of_this = || events.iter().rev().filter(|e| generation.is_none() || e.generation == generation);
    let name = |node: &NodeId, generation: Generation| format!("{node} (generation {generation})");
    let replaced_by = of_this().find_map(|event| match &event.what {
        What::ReplacedBy { node, generation } => Some(name(node, *generation)),
        _ => None,
    });
    let replaces = of_this().find_map(|event| match &event.what {
        What::Launch(launch) => launch.replaces.as_ref().map(|(node, generation)| name(node, *generation)),
        _ => None,
    });
    Explanation {
        replaced_by,
        replaces,
        services: view.iter().flat_map(|v| v.services.values()).map(Service::of).collect(),
        record: view.map(|v| v.record),
        node,
        events,
        left_out,
    }
}
