//! HTTP beside gRPC on the same port: `/metrics`, `/healthz`, `/readyz`, and discovery for Prometheus
//! (<https://prometheus.io/docs/prometheus/latest/http_sd/>).

use std::collections::BTreeMap;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cloudtik_model::status::Phase;
use cloudtik_model::{NodeId, address};
use cloudtik_protocol::exposition::{CONTENT_TYPE, Exposition};
use cloudtik_protocol::pki::Peer;
use cloudtik_protocol::transport::Caller;
use serde::Serialize;

use crate::admin::Head;

/// The label that the shipped Prometheus takes its `job` from.
const JOB_LABEL: &str = "__meta_cloudtik_job";

/// One group of targets, as Prometheus reads it.
#[derive(Serialize)]
struct Target {
    targets: Vec<String>,
    labels: BTreeMap<String, String>,
}

pub fn router(head: Head) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/discovery/prometheus", get(discovery))
        .layer(middleware::from_fn_with_state(head.clone(), certified))
        .with_state(head)
}

/// Whoever has a certificate of the cluster, or is let in by the Unix socket.
async fn certified(State(head): State<Head>, request: Request, next: Next) -> Response {
    let admitted = match request.extensions().get::<Caller>() {
        // A certificate outlives its node.
        Some(Caller::Certified(Peer::Node { id, generation })) => {
            let (id, generation) = (id.clone(), *generation);
            head.brain.query(move |brain| brain.is_member(&id, generation)).await.unwrap_or(false)
        }
        Some(Caller::Certified(_) | Caller::LocalUser) => true,
        _ => false,
    };
    match admitted {
        true => next.run(request).await,
        false => (StatusCode::FORBIDDEN, "a certificate of this cluster is needed\n").into_response(),
    }
}

async fn readyz(State(head): State<Head>) -> Response {
    match head.brain.query(cloudtik_brain::Brain::current_phase).await {
        Ok(Phase::Ready) => (StatusCode::OK, "ready\n").into_response(),
        Ok(phase) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", phase.name())).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
    }
}

async fn metrics(State(head): State<Head>) -> Response {
    let mut text = Exposition::default();
    head.telemetry.render(&mut text);
    if let Ok(picture) = head.board.fresh().await {
        let summary = picture.summary();
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for state in picture.states() {
            *states.entry(state).or_default() += 1;
        }
        text.family("cloudtik_nodes", "gauge", "Nodes by state.");
        for (state, count) in states {
            text.sample("cloudtik_nodes", &[("state", state)], count);
        }
        text.single("cloudtik_head_epoch", "gauge", "The number of the head's leadership.", summary.head.epoch.0);
        text.single(
            "cloudtik_cluster_ready",
            "gauge",
            "Whether everything that was asked for is ready.",
            u8::from(summary.phase == Phase::Ready),
        );
        text.single("cloudtik_alarms", "gauge", "Alarms that hold.", summary.alarms.len());
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text.finish()).into_response()
}

async fn discovery(State(head): State<Head>) -> Response {
    let Ok(nodes) = head.board.nodes(|node| (!node.record.life.is_leaving()).then(|| node.clone())).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let target = |address: String, scheme: &str, path: &str, job: &str, node: &NodeId| Target {
        targets: vec![address],
        labels: BTreeMap::from([
            ("__scheme__".to_owned(), scheme.to_owned()),
            ("__metrics_path__".to_owned(), path.to_owned()),
            (JOB_LABEL.to_owned(), job.to_owned()),
            ("node".to_owned(), node.to_string()),
        ]),
    };
    let mut targets = vec![target(head.view.bus.clone(), "https", "/metrics", "cloudtik-head", &NodeId::head())];
    let planner = head.revisions.latest().map(|(_, _, planner)| planner);
    for node in &nodes {
        let (Some(facts), id) = (&node.facts, &node.record.id) else { continue };
        targets.push(target(address::with_port(&facts.address, facts.health_port), "https", "/metrics", "cloudtik-agent", id));
        for (key, port, path) in planner.iter().flat_map(|p| p.metrics(&node.record.node_type)) {
            // A service that does not run has no metrics to scrape.
            if node.services.get(&key).is_some_and(|s| s.pid.is_some()) {
                targets.push(target(address::with_port(&facts.address, port), "http", &path, &key.to_string(), id));
            }
        }
    }
    Json(targets).into_response()
}
