//! What the brain decided and the driver has not taken yet. Putting something in never waits, so that the brain never waits
//! for the driver, which itself sends inputs to the brain.
//!
//! The queue needs no limit of its own: of goals the latest for each node is kept, and of every other action the brain has at
//! most a few under way for each node and connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use cloudtik_brain::{Action, NodeView};
use cloudtik_model::NodeId;
use tokio::sync::Notify;

/// An action, with what the driver needs to know for it.
#[derive(Debug)]
pub struct Effect {
    pub action: Action,
    pub node: Option<Box<NodeView>>,
}

/// A cheap handle on the queue; one consumer.
#[derive(Clone, Default)]
pub struct EffectQueue(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    order: VecDeque<Slot>,
    goals: BTreeMap<NodeId, Effect>,
    is_closed: bool,
}

enum Slot {
    Goal(NodeId),
    Other(Effect),
}

impl EffectQueue {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while holding the lock")
    }

    pub fn push(&self, effect: Effect) {
        let mut state = self.state();
        match &effect.action {
            Action::SendGoal { node, .. } => {
                let node = node.clone();
                if state.goals.insert(node.clone(), effect).is_none() {
                    state.order.push_back(Slot::Goal(node));
                }
            }
            _ => state.order.push_back(Slot::Other(effect)),
        }
        drop(state);
        self.0.arrived.notify_one();
    }

    /// No more will come: what is left is still taken.
    pub fn close(&self) {
        self.state().is_closed = true;
        self.0.arrived.notify_one();
    }

    /// What is there now, in order, without waiting for more.
    pub fn take_ready(&self) -> Vec<Effect> {
        let mut state = self.state();
        std::iter::from_fn(|| state.pop()).collect()
    }

    /// The next one; none when the queue is closed and empty.
    pub async fn next(&self) -> Option<Effect> {
        loop {
            {
                let mut state = self.state();
                if let Some(effect) = state.pop() {
                    return Some(effect);
                }
                if state.is_closed {
                    return None;
                }
            }
            self.0.arrived.notified().await;
        }
    }
}

impl State {
    fn pop(&mut self) -> Option<Effect> {
        loop {
            match self.order.pop_front()? {
                Slot::Goal(node) => {
                    if let Some(effect) = self.goals.remove(&node) {
                        return Some(effect);
                    }
                }
                Slot::Other(effect) => return Some(effect),
            }
        }
    }
}
