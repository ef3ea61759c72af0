//! The words for people: every typed reason, cause, refusal and actor is put into English here and nowhere else.
//!
//! Nothing that decides, stores or checks reads these texts; they may change at any time. Each type serializes with a stable
//! code and its fields.

use std::fmt;

use crate::actor::Actor;
use crate::event::Event;

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalUser { uid: None } => f.write_str("the local user"),
            Self::LocalUser { uid: Some(uid) } => write!(f, "the local user with uid {uid}"),
            Self::Administrator { name, role } => write!(f, "{name}, {role}"),
            Self::Agent { node } => write!(f, "the agent of {node}"),
            Self::Head => f.write_str("the head"),
        }
    }
}

impl Event {
    /// What happened, and which person asked for it if one did.
    pub fn sentence(&self) -> String {
        match &self.actor {
            Some(actor @ (Actor::LocalUser { .. } | Actor::Administrator { .. })) => format!("{} (by {actor})", self.message),
            _ => self.message.clone(),
        }
    }
}
