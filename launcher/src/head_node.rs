//! The head's own node, which the launcher makes: whether it is there, and which of its generations.

use std::path::PathBuf;

use cloudtik_model::status::Change;
use cloudtik_model::{Generation, NodeId};
use cloudtik_providers::local::instance_id;
use serde::Deserialize;

use crate::clusters::Place;
use crate::failure::{Failure, REFUSED};

/// What the head keeps beyond its settings, once it has run.
const STORE: &str = "store.redb";

/// What there is of the head's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNode {
    /// It was never made, or nothing is left of it.
    Missing,
    /// Its directory is there, be its head there just now or not.
    Made(Generation),
    /// Its directory was removed, and the head's state is there: another generation of it can go on with that.
    Lost(Generation),
}

impl HeadNode {
    pub fn of(place: &Place) -> Self {
        let told = generation_of_head(place);
        let generation = told.unwrap_or(Generation(1));
        if directory(place, generation).join("instance.json").exists() {
            return Self::Made(generation);
        }
        match told {
            Some(generation) if place.head().join(STORE).exists() => Self::Lost(generation),
            _ => Self::Missing,
        }
    }

    pub fn is_made(place: &Place) -> bool {
        matches!(Self::of(place), Self::Made(_))
    }

    pub fn is_lost(place: &Place) -> bool {
        matches!(Self::of(place), Self::Lost(_))
    }

    /// The generation that is there, or that is to be made.
    pub fn generation(self) -> Generation {
        match self {
            Self::Missing => Generation(1),
            Self::Made(generation) => generation,
            Self::Lost(Generation(last)) => Generation(last + 1),
        }
    }
}

/// The failure of whatever needs a head whose state was removed; nothing if it was not.
pub fn lost_state(place: &Place) -> Option<Failure> {
    let head = place.head();
    if !HeadNode::is_made(place) || head.join("head.json").exists() {
        return None;
    }
    let message = format!("the head's state in {} was removed: {} cannot go on", head.display(), place.name);
    Some(Failure::new(REFUSED, message).hint(format!("`cloudtik down {} --yes` ends what is left; then bring it up anew", place.name)))
}

/// The directory of a generation of the head's node.
pub fn directory(place: &Place, generation: Generation) -> PathBuf {
    place.nodes().join(instance_id(&NodeId::head(), generation).as_str())
}

/// The generation of its node that the head was made for.
fn generation_of_head(place: &Place) -> Option<Generation> {
    #[derive(Deserialize)]
    struct Settings {
        generation: Generation,
    }
    let text = std::fs::read(place.head().join("head.json")).ok()?;
    serde_json::from_slice::<Settings>(&text).ok().map(|settings| settings.generation)
}

/// The change that bringing a cluster up means whose head lost its node.
pub fn change() -> Change {
    Change {
        action: "create".to_owned(),
        what: "the head's node".to_owned(),
        detail: "its directory was removed; the head goes on with its state, which is there".to_owned(),
        disturbs: false,
    }
}
