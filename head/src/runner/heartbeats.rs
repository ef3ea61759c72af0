//! Heartbeats on their way to the brain: the latest of each connection, with the moment of its arrival. They never wait
//! behind other inputs and never fill a queue.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use cloudtik_brain::{Heartbeat, Session};
use cloudtik_model::NodeId;
use cloudtik_model::report::Load;
use tokio::sync::Notify;

/// How long the first of several waits for others to be handled with it. Far below the time after which a node is suspect.
const GATHER: Duration = Duration::from_millis(20);

#[derive(Default)]
pub struct HeartbeatLane {
    received: Mutex<BTreeMap<Session, Heartbeat>>,
    arrived: Notify,
}

impl HeartbeatLane {
    fn received(&self) -> std::sync::MutexGuard<'_, BTreeMap<Session, Heartbeat>> {
        self.received.lock().expect("nothing panics while holding the lock")
    }

    /// Puts a heartbeat in the place of an earlier one; a load that was told with that one and not with this stays.
    pub fn put(&self, session: Session, node: &NodeId, at: u64, load: Option<Load>) {
        let mut received = self.received();
        let is_first = received.is_empty();
        match received.get_mut(&session) {
            Some(earlier) => {
                earlier.at = at;
                earlier.load = load.or(earlier.load);
            }
            None => drop(received.insert(session, Heartbeat { session, node: node.clone(), at, load })),
        }
        drop(received);
        if is_first {
            self.arrived.notify_one();
        }
    }

    /// Takes everything that arrived, in the order of connections.
    pub fn take(&self) -> Vec<Heartbeat> {
        std::mem::take(&mut *self.received()).into_values().collect()
    }

    /// Returns a moment after there is something to take.
    pub async fn due(&self) {
        while self.received().is_empty() {
            self.arrived.notified().await;
        }
        tokio::time::sleep(GATHER).await;
    }
}
