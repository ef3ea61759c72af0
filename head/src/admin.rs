//! The services for people: setting a head up, and administration.

mod access;
mod apply;
mod authorize;
mod explain;
mod jobs;
mod programs;
mod roles;
mod rollout;
mod setup;
mod tidy;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudtik_brain::{Input, NewRequest, Reply, Request as Question};
use cloudtik_model::answer::Answer;
use cloudtik_model::demand::RequestedCapacity;
use cloudtik_model::event::Event;
use cloudtik_model::job::Job;
use cloudtik_model::outlook::Size;
use cloudtik_model::printed::Printed;
use cloudtik_model::refusal::RefusalKind;
use cloudtik_model::{Actor, NodeId, Timestamp};
use cloudtik_protocol::readiness::setting_up;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_runtimes::View;
use serde::Serialize;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub use self::authorize::authorize;
use self::authorize::{User, needs};
pub use self::setup::SetupService;
use crate::access::Access;
use crate::artifacts::ArtifactStore;
use crate::board::StatusBoard;
use crate::identity::Keys;
use crate::jobs::Jobs;
use crate::machines::MachinesHandle;
use crate::revisions::{Description, Revisions};
use crate::runner::{BrainHandle, Stopped};
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::store::Store;
use crate::telemetry::Telemetry;

/// Bytes of one part of a dump.
const DUMP_PART: usize = 1 << 20;
/// What is being fetched is looked at this often while somebody watches.
const WATCH_TICK: Duration = Duration::from_millis(500);
/// Events are read from the store in pages of so many.
const EVENT_PAGE: usize = 500;
/// Events of a node that explain it, at most.
const EXPLAINED: usize = 2_000;
/// How long a caller waits for a head that is just starting.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// What administration works on; a cheap handle.
#[derive(Clone)]
pub struct Head {
    pub settings: Arc<Settings>,
    pub machines: MachinesHandle,
    pub brain: BrainHandle,
    pub board: StatusBoard,
    pub store: Arc<dyn Store>,
    pub revisions: Revisions,
    pub artifacts: ArtifactStore,
    pub sessions: Sessions,
    pub telemetry: Telemetry,
    pub view: View,
    pub tasks: TaskTracker,
    /// One description is taken at a time.
    pub applying: Arc<Mutex<()>>,
    pub access: Access,
    pub jobs: Jobs,
    /// SHA-256 of the cluster's root certificate, in hexadecimal.
    pub root_digest: String,
    /// For whom this copy of the handle asks.
    pub actor: Actor,
}

impl Head {
    async fn request(&self, input: impl FnOnce(Question) -> Input) -> Result<Response<wire::Document>, Status> {
        document(&self.answer(input).await?)
    }

    async fn answer(&self, input: impl FnOnce(Question) -> Input) -> Result<Answer, Status> {
        match self.brain.request(self.actor.clone(), input).await.map_err(stopped)? {
            Ok(Reply::Done { answer }) => Ok(answer),
            Ok(Reply::Admit { .. }) => Err(Status::internal("an unexpected answer")),
            Err(refusal) => Err(match refusal.kind() {
                RefusalKind::Unknown => Status::not_found(refusal.to_string()),
                RefusalKind::Malformed => Status::invalid_argument(refusal.to_string()),
                RefusalKind::Declined => Status::failed_precondition(refusal.to_string()),
            }),
        }
    }

    async fn events(&self, from: u64, node: Option<NodeId>) -> Result<Vec<Event>, Status> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.events(from, EVENT_PAGE, node.as_ref()));
        read.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| Status::internal(e.to_string()))
    }

    /// Refuses what is meant for a node that there is not.
    async fn must_exist(&self, node: &NodeId) -> Result<(), Status> {
        let wanted = node.clone();
        let view = self.brain.query(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        view.map(drop).ok_or_else(|| Status::not_found(format!("there is no node {node}")))
    }
}

/// The gRPC service. It waits for the head to be there: a client may call while it is still being set up.
#[derive(Clone)]
pub struct AdminService {
    pub keys: Arc<Keys>,
    pub head: watch::Receiver<Option<Head>>,
    pub telemetry: Telemetry,
}

impl AdminService {
    async fn head<T>(&self, request: &Request<T>) -> Result<Head, Status> {
        // Whether the role suffices was checked before the request came here.
        let actor = user(request)?.actor();
        if self.keys.expires_at().is_none() {
            // Nothing will come of waiting: whoever holds the root must go on.
            return Err(setting_up());
        }
        let mut head = self.head.clone();
        let ready = tokio::time::timeout(START_PATIENCE, head.wait_for(Option::is_some)).await;
        let ready = ready.map_err(|_| setting_up())?;
        let head = ready.map_err(|_| Status::unavailable("the head is stopping"))?.clone();
        let head = head.ok_or_else(|| Status::unavailable("the head is stopping"))?;
        Ok(Head { actor, ..head })
    }
}

/// Who asks.
fn user<T>(request: &Request<T>) -> Result<User, Status> {
    let user = request.extensions().get::<User>().cloned();
    user.ok_or_else(|| Status::permission_denied("an administrator's certificate is needed"))
}

type Documents = Pin<Box<dyn Stream<Item = Result<wire::Document, Status>> + Send>>;

#[tonic::async_trait]
impl wire::admin_server::Admin for AdminService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::StatusChange, Status>> + Send>>;
    type DumpStream = Documents;
    type EventsStream = Documents;
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::SessionFrame, Status>> + Send>>;
    type JobsListStream = Documents;
    type JobsWatchStream = Documents;

    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let request = request.into_inner();
        let mut runtime_files = BTreeMap::new();
        for (path, content) in request.runtime_files {
            let text = String::from_utf8(content.to_vec()).map_err(|_| Status::invalid_argument(format!("{path} is not text")))?;
            runtime_files.insert(path, text);
        }
        document(&head.apply(Description { cluster_file: request.cluster_file, runtime_files }, request.plan_only).await?)
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusPage>, Status> {
        let head = self.head(&request).await?;
        Ok(Response::new(head.board.page(&request.into_inner()).await?))
    }

    async fn watch(&self, request: Request<wire::Empty>) -> Result<Response<Self::WatchStream>, Status> {
        let head = self.head(&request).await?;
        let (sender, receiver) = mpsc::channel(1);
        let tasks = head.tasks.clone();
        tasks.spawn(async move {
            let Ok(mut known) = head.board.fresh().await else { return };
            let mut parts = known.changes_since(None);
            loop {
                for part in parts {
                    if sender.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
                let next = tokio::select! {
                    next = head.board.after(&known, WATCH_TICK) => next,
                    () = sender.closed() => return,
                };
                let Ok(next) = next else { return };
                parts = next.changes_since(Some(&known));
                known = next;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let head = self.head(&request).await?;
        let request = request.into_inner();
        let node = if request.node.is_empty() { None } else { Some(parse::<NodeId>("node", &request.node)?) };
        let (sender, receiver) = mpsc::channel(64);
        let tasks = head.tasks.clone();
        tasks.spawn(async move {
            let (mut from, mut last) = (request.from.max(1), head.brain.events());
            loop {
                last.borrow_and_update();
                match head.events(from, node.clone()).await {
                    Ok(events) => {
                        let full = events.len() == EVENT_PAGE;
                        for event in events {
                            from = event.position + 1;
                            if sender.send(document(&event).map(Response::into_inner)).await.is_err() {
                                return;
                            }
                        }
                        if full {
                            continue;
                        }
                    }
                    Err(status) => {
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                }
                if !request.follow {
                    return;
                }
                tokio::select! {
                    changed = last.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn explain(&self, request: Request<wire::NodeRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let node: NodeId = parse("node", &request.into_inner().node)?;
        let (mut from, mut events, mut left_out) = (0, VecDeque::new(), 0u64);
        loop {
            let page = head.events(from, Some(node.clone())).await?;
            let full = page.len() == EVENT_PAGE;
            from = page.last().map_or(from, |e| e.position + 1);
            events.extend(page);
            // The latest tell why it is what it is; all of a long life would not fit into one answer.
            while events.len() > EXPLAINED {
                events.pop_front();
                left_out += 1;
            }
            if !full {
                break;
            }
        }
        let wanted = node.clone();
        let view = head.brain.query(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        if events.is_empty() && view.is_none() {
            return Err(Status::not_found(format!("there is no node {node}, and there never was")));
        }
        document(&explain::explanation(node, view, events, left_out))
    }

    async fn scale(&self, request: Request<wire::ScaleRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let scale = request.into_inner();
        let wants: RequestedCapacity =
            serde_json::from_slice(&scale.wants).map_err(|e| Status::invalid_argument(format!("malformed request for a size: {e}")))?;
        let until = (scale.lasts_ms > 0).then(|| Timestamp(now_ms().saturating_add(scale.lasts_ms)));
        let name = (!scale.name.is_empty()).then_some(scale.name);
        let asked = NewRequest { name, wants, additive: scale.additive, until, reason: scale.reason };
        head.request(|request| Input::Scale { request, asked }).await
    }

    async fn outlook(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let size =
            head.brain.query(|brain| Size { requests: brain.request_views(), outlook: brain.outlook().clone() }).await.map_err(stopped)?;
        document(&size)
    }

    async fn revoke(&self, request: Request<wire::RevokeRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let wire::RevokeRequest { name, now } = request.into_inner();
        head.request(|request| Input::Revoke { request, name, now }).await
    }

    async fn hold(&self, request: Request<wire::HoldRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let reason = request.into_inner().reason;
        head.request(|request| Input::Hold { request, reason }).await
    }

    async fn resume(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        head.request(|request| Input::Resume { request }).await
    }

    async fn rollout_status(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        document(&head.brain.query(|brain| brain.rollout()).await.map_err(stopped)?)
    }

    async fn rollout_resume(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        head.request(|request| Input::ResumeRollout { request }).await
    }

    async fn rollout_undo(&self, request: Request<wire::RolloutUndoRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        match request.into_inner().plan_only {
            true => document(&head.plan_undo().await?),
            false => document(&head.undo_rollout().await?),
        }
    }

    async fn quarantine_node(&self, request: Request<wire::QuarantineRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let wire::QuarantineRequest { node, reason } = request.into_inner();
        let node = parse("node", &node)?;
        head.must_exist(&node).await?;
        head.request(|request| Input::Quarantine { request, node, reason }).await
    }

    async fn release_node(&self, request: Request<wire::NodeRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let node = parse("node", &request.into_inner().node)?;
        head.must_exist(&node).await?;
        head.request(|request| Input::Release { request, node }).await
    }

    async fn kill_node(&self, request: Request<wire::NodeRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let node = parse("node", &request.into_inner().node)?;
        head.must_exist(&node).await?;
        head.request(|request| Input::Kill { request, node }).await
    }

    async fn drain_node(&self, request: Request<wire::NodeRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let node = parse("node", &request.into_inner().node)?;
        head.must_exist(&node).await?;
        head.request(|request| Input::Drain { request, node }).await
    }

    async fn shutdown(&self, request: Request<wire::Empty>) -> Result<Response<wire::Empty>, Status> {
        let head = self.head(&request).await?;
        head.request(|request| Input::Shutdown { request }).await?;
        Ok(Response::new(wire::Empty {}))
    }

    async fn dump(&self, request: Request<wire::Empty>) -> Result<Response<Self::DumpStream>, Status> {
        let head = self.head(&request).await?;
        let cluster = head.brain.query(|brain| brain.cluster()).await.map_err(stopped)?;
        #[derive(Serialize)]
        struct Dump {
            status: cloudtik_model::status::Status,
            cluster: cloudtik_brain::ClusterRecord,
            nodes: Vec<cloudtik_model::node::NodeRecord>,
            revision: Option<(u64, Description)>,
            jobs: Vec<Job>,
            events: Vec<Event>,
        }
        let mut jobs = head.list_jobs().await?.to_vec();
        // What is given to a program may be a secret.
        jobs.iter_mut().for_each(|job| job.command.truncate(1));
        let from = head.brain.events().borrow().saturating_sub(EVENT_PAGE as u64);
        // It is for people to read and to send, as it is.
        let dump = serde_json::to_vec(&Printed(&Dump {
            status: head.board.fresh().await.map_err(stopped)?.status(),
            cluster,
            nodes: head.board.nodes(|node| Some(node.record.clone())).await.map_err(stopped)?,
            revision: head.revisions.latest().map(|(n, description, _)| (n, description.without_secrets())),
            jobs,
            events: head.events(from, None).await?,
        }));
        let dump = Bytes::from(dump.map_err(|e| Status::internal(e.to_string()))?);
        let parts: Vec<_> = (0..dump.len()).step_by(DUMP_PART).map(|at| dump.slice(at..dump.len().min(at + DUMP_PART))).collect();
        let parts = parts.into_iter().map(|json| Ok(wire::Document { json }));
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn access_list(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        document(&self.head(&request).await?.access.list())
    }

    async fn access_grant(&self, request: Request<wire::AccessGrantRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        document(&head.grant(request.into_inner()).await?)
    }

    async fn access_revoke(&self, request: Request<wire::AccessRevokeRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        document(&head.revoke(request.into_inner()).await?)
    }

    async fn jobs_submit(&self, request: Request<Streaming<wire::JobUpload>>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        document(&head.submit_job(request.into_inner()).await?)
    }

    async fn jobs_list(&self, request: Request<wire::Empty>) -> Result<Response<Self::JobsListStream>, Status> {
        Ok(Response::new(self.head(&request).await?.job_pages().await?))
    }

    async fn jobs_status(&self, request: Request<wire::JobRequest>) -> Result<Response<wire::Document>, Status> {
        document(&self.head(&request).await?.job(request.get_ref()).await?)
    }

    async fn jobs_watch(&self, request: Request<wire::JobRequest>) -> Result<Response<Self::JobsWatchStream>, Status> {
        Ok(Response::new(self.head(&request).await?.watch_job(request.get_ref()).await?))
    }

    async fn jobs_cancel(&self, request: Request<wire::JobRequest>) -> Result<Response<wire::Document>, Status> {
        document(&self.head(&request).await?.cancel_job(request.get_ref()).await?)
    }

    async fn jobs_delete(&self, request: Request<wire::JobRequest>) -> Result<Response<wire::Document>, Status> {
        document(&self.head(&request).await?.delete_job(request.get_ref()).await?)
    }

    async fn session(&self, request: Request<Streaming<wire::SessionFrame>>) -> Result<Response<Self::SessionStream>, Status> {
        let (head, user) = (self.head(&request).await?, user(&request)?);
        let mut frames = request.into_inner();
        let Some(wire::SessionFrame { frame: Some(Frame::Open(open)) }) = frames.message().await? else {
            return Err(Status::invalid_argument("the first frame must open something"));
        };
        if let Some(what) = &open.what {
            let (name, least) = roles::of_session(what);
            needs(&user, name, least).inspect_err(|_| self.telemetry.refuse("role"))?;
        }
        let (sender, receiver) = mpsc::channel(32);
        let tasks = head.tasks.clone();
        tasks.spawn(async move {
            let opened = tokio::select! {
                opened = head.open(open) => opened,
                () = sender.closed() => return,
            };
            let mut program = match opened {
                Ok(program) => program,
                Err(status) => {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            };
            let mut to_agent = Some(program.to_agent);
            loop {
                tokio::select! {
                    frame = program.from_agent.recv() => match frame {
                        Some(frame) => if sender.send(frame).await.is_err() { return },
                        None => return,
                    },
                    // While the agent does not take what came before, nothing more is read from the client.
                    frame = frames.message(), if to_agent.as_ref().is_some_and(|to| to.capacity() > 0) => match (frame, &to_agent) {
                        (Ok(Some(frame)), Some(to)) => { let _ = to.try_send(frame); }
                        // The client is gone: dropping the sender ends the program.
                        _ => to_agent = None,
                    },
                    () = sender.closed() => return,
                    () = tokio::time::sleep(Duration::from_millis(20)), if to_agent.as_ref().is_some_and(|to| to.capacity() == 0) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn document(value: &impl Serialize) -> Result<Response<wire::Document>, Status> {
    let json = serde_json::to_vec(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::new(wire::Document { json: json.into() }))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|e| Status::invalid_argument(format!("{what}: {e}")))
}

fn stopped(stopped: Stopped) -> Status {
    Status::unavailable(stopped.to_string())
}

fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)
}
