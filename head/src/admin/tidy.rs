//! The removal of what is kept and needed no more: software, beyond the limit of the cluster's file, and old descriptions.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use cloudtik_brain::Brain;
use cloudtik_config::cluster::DEFAULT_SOFTWARE_LIMIT;
use cloudtik_model::Bytes;
use cloudtik_runtimes::NodeContext;
use cloudtik_runtimes::planner::{Availability, Wanted};
use tokio_util::sync::CancellationToken;

use super::Head;
use crate::status;

/// Between two looks; the first is as long after the start, when agents have connected.
const EVERY: Duration = Duration::from_secs(600);

impl Head {
    /// Tidies up now and then, until `stop`.
    pub async fn tidy(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            if let Err(status) = self.forget_old_revisions().await {
                tracing::warn!("old descriptions are kept: {}", status.message());
            }
            self.collect_software().await;
        }
    }

    async fn collect_software(&self) {
        // Nodes, and the earliest revision that one may run or a roll-out go back to.
        let look = |brain: &Brain| {
            let nodes = brain.snapshot().nodes.into_iter().filter(|node| node.record.life.may_exist());
            let contexts: Option<Vec<NodeContext>> = nodes.map(|node| status::context(&node)).collect();
            contexts.zip(brain.oldest_revision().into_iter().chain(brain.rollout().from).min())
        };
        // What a node needs that has not said what it is, is not known: nothing is removed meanwhile.
        let Ok(Some((contexts, oldest))) = self.brain.query(look).await else { return };
        let own = self.clone();
        let collecting = tokio::task::spawn_blocking(move || {
            let Some(needed) = own.needed_software(&contexts, oldest) else { return };
            let limit = own.revisions.latest().map_or(DEFAULT_SOFTWARE_LIMIT, |(_, _, planner)| planner.cluster().head.software_limit);
            match own.artifacts.collect(limit.0, &needed, SystemTime::now()) {
                Ok(collected) if collected.removed_bytes > 0 => tracing::info!(
                    removed = collected.removed.len(),
                    "removed {} of software that no goal needs; {} are left, the limit is {limit}",
                    Bytes(collected.removed_bytes),
                    Bytes(collected.kept_bytes),
                ),
                Ok(_) => {}
                Err(error) => tracing::warn!("cannot remove software that is not needed: {error}"),
            }
        });
        if let Err(error) = collecting.await {
            tracing::error!("removing software: {error}");
        }
    }

    /// The digests of what any node may need by any revision from `oldest` on; nothing if that cannot be told.
    fn needed_software(&self, contexts: &[NodeContext], oldest: u64) -> Option<BTreeSet<String>> {
        let needed = RefCell::new(BTreeSet::new());
        let note = |wanted: &Wanted| {
            let availability = self.artifacts.availability(wanted);
            if let Availability::Here(artifact) = &availability {
                needed.borrow_mut().insert(artifact.digest.clone());
            }
            availability
        };
        for revision in oldest..self.revisions.next() {
            // One that was never given to a node or cannot be read: whether a node runs it is not known.
            let planner = self.revisions.get(revision)?;
            for context in contexts {
                planner.plan(&self.view, context, &BTreeSet::new(), &note).ok()?;
            }
        }
        Some(needed.into_inner())
    }
}
