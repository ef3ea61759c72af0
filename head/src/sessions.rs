//! Programs run on nodes for somebody: the head asks the agent to open a stream of its own and joins the two ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_brain::Session;
use cloudtik_model::NodeId;
use cloudtik_protocol::wire::head_frame::Topic;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{pki, wire};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::hub::Hub;

/// Frames that wait in each direction; beyond that the sender waits.
const QUEUE: usize = 32;
/// How long an agent may take to open its end.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// A cheap handle.
#[derive(Clone)]
pub struct Sessions {
    hub: Hub,
    pending: Arc<Mutex<BTreeMap<String, Pending>>>,
    tasks: TaskTracker,
}

struct Pending {
    node: NodeId,
    /// Frames for the agent.
    outgoing: mpsc::Receiver<wire::SessionFrame>,
    /// Frames from the agent.
    incoming: mpsc::Sender<Result<wire::SessionFrame, Status>>,
}

/// One running program, seen from the head. Dropping the sender ends it.
pub struct Program {
    pub to_agent: mpsc::Sender<wire::SessionFrame>,
    pub from_agent: mpsc::Receiver<Result<wire::SessionFrame, Status>>,
}

impl Sessions {
    pub fn new(hub: Hub, tasks: TaskTracker) -> Self {
        Self { hub, pending: Arc::default(), tasks }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Pending>> {
        self.pending.lock().expect("nothing panics while holding the lock")
    }

    /// Has a program run on a node, or a log sent, over one of its links.
    pub fn open(&self, session: Session, node: &NodeId, what: wire::OpenSession) -> Result<Program, Status> {
        let id = pki::hex(&pki::random::<16>());
        let (to_agent, outgoing) = mpsc::channel(QUEUE);
        let (incoming, from_agent) = mpsc::channel(QUEUE);
        self.pending().insert(id.clone(), Pending { node: node.clone(), outgoing, incoming });
        let kind = wire::command::Kind::OpenSession(what);
        if !self.hub.send(session, Topic::Command(wire::Command { id: id.clone(), kind: Some(kind) })) {
            self.pending().remove(&id);
            return Err(Status::unavailable(format!("lost the connection to {node}")));
        }
        let (own, node) = (self.clone(), node.clone());
        self.tasks.spawn(async move {
            tokio::time::sleep(ATTACH_TIMEOUT).await;
            own.refused(&id, &format!("{node} did not open the session in time"));
        });
        Ok(Program { to_agent, from_agent })
    }

    /// The agent cannot, or did not, open its end.
    pub fn refused(&self, id: &str, error: &str) {
        let pending = self.pending().remove(id);
        if let Some(pending) = pending {
            let _ = pending.incoming.try_send(Err(Status::unavailable(error.to_owned())));
        }
    }

    /// The agent's end is open: joins it with whoever asked. Only the node that was asked may.
    pub fn attach(&self, id: &str, node: &NodeId, mut frames: Streaming<wire::SessionFrame>) -> Option<mpsc::Receiver<wire::SessionFrame>> {
        let pending = {
            let mut all = self.pending();
            if all.get(id).is_none_or(|p| p.node != *node) {
                return None;
            }
            all.remove(id)?
        };
        let Pending { outgoing, incoming, .. } = pending;
        let node = node.clone();
        self.tasks.spawn(async move {
            loop {
                let message = tokio::select! {
                    message = frames.message() => message,
                    // Whoever asked is gone: letting go of the stream tells the agent, whatever else waits in it.
                    () = incoming.closed() => return,
                };
                match message {
                    Ok(Some(frame)) => {
                        let is_last = matches!(frame.frame, Some(Frame::Exit(_)));
                        if incoming.send(Ok(frame)).await.is_err() || is_last {
                            return;
                        }
                    }
                    Ok(None) | Err(_) => {
                        let message = format!("{node} went away while the program ran");
                        let _ = incoming.send(Err(Status::unavailable(message))).await;
                        return;
                    }
                }
            }
        });
        Some(outgoing)
    }
}
