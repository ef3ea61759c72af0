//! The head's own node, which the launcher makes: whether it is there, and which of its generations.

use std::path::PathBuf;

use cloudtik_model::node::Instance;
use cloudtik_model::status::Change;
use cloudtik_model::{Generation, HeadSettings};
use cloudtik_providers::machines_of;
use cloudtik_registry::registry;

use crate::clusters::ClusterPaths;
use crate::failure::{Failure, REFUSED};

/// What the head keeps beyond its settings, once it has run.
const STORE: &str = "store.redb";

/// What there is of the head's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadNode {
    /// It was never made, or nothing is left of it.
    Missing,
    /// Its machine is there, be its head there just now or not.
    Made(Instance),
    /// Its machine is gone, and the head's state is there: another generation of it can go on with that.
    Lost(Generation),
}

impl HeadNode {
    pub async fn of(paths: &ClusterPaths) -> Result<Self, Failure> {
        let told = paths.head_settings().map(|head| head.generation);
        let generation = told.unwrap_or(Generation(1));
        let heads = match paths.provider() {
            Some(known) => machines_of(registry().require(&known.kind)?)?.heads(&known.settings, &known.site).await?,
            None => Vec::new(),
        };
        if let Some(head) = heads.into_iter().find(|head| head.generation == generation) {
            return Ok(Self::Made(head));
        }
        Ok(match told {
            Some(generation) if paths.head().join(STORE).exists() => Self::Lost(generation),
            _ => Self::Missing,
        })
    }

    pub fn is_made(&self) -> bool {
        matches!(self, Self::Made(_))
    }

    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// The generation that is there, or that is to be made.
    pub fn generation(&self) -> Generation {
        match self {
            Self::Missing => Generation(1),
            Self::Made(head) => head.generation,
            Self::Lost(Generation(last)) => Generation(last + 1),
        }
    }
}

/// The failure of whatever needs a head whose state was removed; nothing if it was not.
pub async fn lost_state(paths: &ClusterPaths) -> Option<Failure> {
    let head = paths.head();
    if head.join(HeadSettings::FILE).exists() || !HeadNode::of(paths).await.is_ok_and(|node| node.is_made()) {
        return None;
    }
    let message = format!("the head's state in {} was removed: {} cannot go on", head.display(), paths.name);
    Some(Failure::new(REFUSED, message).hint(format!("`cloudtik down {} --yes` ends what is left; then bring it up anew", paths.name)))
}

/// The directory of the head's node, if its machine is there.
pub async fn directory(paths: &ClusterPaths) -> Option<PathBuf> {
    match HeadNode::of(paths).await {
        Ok(HeadNode::Made(head)) => Some(paths.nodes().join(head.id.as_str())),
        _ => None,
    }
}

/// The change that bringing a cluster up means whose head lost its node.
pub fn change() -> Change {
    Change {
        action: "create".to_owned(),
        what: "the head's node".to_owned(),
        detail: "its machine is gone; the head goes on with its state, which is there".to_owned(),
        disturbs: false,
    }
}
