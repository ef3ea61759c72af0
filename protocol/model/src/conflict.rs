//! Requests that another description of the cluster would end or leave without room, as data. The words are in `words`.

use serde::{Deserialize, Serialize};

use crate::NodeTypeName;
use crate::refusal::{NoRoom, Refusal};

/// Requests that a description leaves no room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct RequestConflict {
    /// By name; a few of them where there are many.
    pub requests: Vec<String>,
    /// So many further ones are not named.
    #[serde(default)]
    pub more: usize,
    pub why: ConflictCause,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "code", rename_all = "kebab-case")]
pub enum ConflictCause {
    /// The request ends.
    TypeRemoved,
    NoLongerFits {
        why: Refusal,
    },
    AboveTypeMaximum {
        node_type: NodeTypeName,
        wanted: u32,
        max: u32,
    },
    NoRoom {
        why: NoRoom,
    },
}

crate::worded::worded!(RequestConflict, ConflictCause);
