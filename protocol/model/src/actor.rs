//! Who asked for something.

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::{AdministratorName, NodeId};

/// Who asked: it goes with every request into what is stored of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "actor", rename_all = "kebab-case")]
pub enum Actor {
    /// Whoever the permissions of the head's socket let in.
    LocalUser {
        /// As the kernel says it; unknown where it does not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
    },
    /// An administrator with a certificate.
    Administrator { name: AdministratorName, role: Role },
    /// The agent of a node.
    Agent { node: NodeId },
    /// The head itself.
    Head,
}

impl Actor {
    /// A user of the head's machine of whom no more is known.
    pub const LOCAL: Self = Self::LocalUser { uid: None };
}
