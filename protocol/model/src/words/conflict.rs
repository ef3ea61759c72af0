use std::fmt;

use crate::conflict::{ConflictCause, RequestConflict};

impl fmt::Display for RequestConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_one = self.requests.len() == 1 && self.more == 0;
        write!(f, "{} {}", if is_one { "request" } else { "requests" }, self.requests.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

impl fmt::Display for ConflictCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TypeRemoved => f.write_str("ends: its node type was removed"),
            Self::NoLongerFits { why } => write!(f, "no longer fits: {why}"),
            Self::AboveTypeMaximum { node_type, wanted, max } => {
                write!(f, "{wanted} workers of type {node_type} are above its max {max}")
            }
            Self::NoRoom { why } => why.fmt(f),
        }
    }
}
