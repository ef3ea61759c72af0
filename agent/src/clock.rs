//! The time on this node's own clock, which may be wrong.

use cloudtik_model::Timestamp;

pub fn now() -> Timestamp {
    Timestamp(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64))
}
