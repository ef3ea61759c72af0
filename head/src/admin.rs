//! The services for people: setting a head up, and administration.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cloudtik_brain::{Input, Reply, Request as Question};
use cloudtik_model::event::Event;
use cloudtik_model::report::ServiceState;
use cloudtik_model::status::{Change, Plan};
use cloudtik_model::{NodeId, NodeTypeName, RuntimeName, ServiceKey, Timestamp};
use cloudtik_protocol::pki::{self, Peer};
use cloudtik_protocol::transport::Caller;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_runtimes::View;
use cloudtik_runtimes::changes::compare;
use serde::Serialize;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::artifacts::ArtifactStore;
use crate::identity::Keys;
use crate::mind::{Mind, Stopped};
use crate::revisions::{Description, Revisions};
use crate::sessions::{Program, Sessions};
use crate::settings::Settings;
use crate::status;
use crate::store::Store;
use crate::telemetry::Telemetry;

/// Statuses are sent at most this often.
const WATCH_PAUSE: Duration = Duration::from_millis(40);
/// What is being fetched is looked at this often while somebody watches.
const WATCH_TICK: Duration = Duration::from_millis(500);
/// Events are read from the store in pages of so many.
const EVENT_PAGE: usize = 500;
/// How long a caller waits for a head that is just starting.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// The most that an uploaded job may have, in bytes.
const MAX_JOB: usize = 256 << 20;

/// What administration works on; a cheap handle.
#[derive(Clone)]
pub struct Head {
    pub settings: Arc<Settings>,
    pub started: Timestamp,
    pub mind: Mind,
    pub store: Arc<Store>,
    pub revisions: Revisions,
    pub artifacts: ArtifactStore,
    pub sessions: Sessions,
    pub telemetry: Telemetry,
    pub view: View,
    pub tasks: TaskTracker,
    /// One description is taken at a time.
    pub applying: Arc<Mutex<()>>,
}

impl Head {
    async fn status_document(&self) -> Result<cloudtik_model::status::Status, Status> {
        let snapshot = self.mind.ask(|brain| brain.snapshot()).await.map_err(stopped)?;
        let latest = self.revisions.latest();
        Ok(status::compose(&status::Sources {
            settings: &self.settings,
            started: self.started,
            snapshot: &snapshot,
            planner: latest.as_ref().map(|(_, _, planner)| &**planner),
            view: &self.view,
            fetching: self.artifacts.progress(),
        }))
    }

    async fn request(&self, input: impl FnOnce(Question) -> Input) -> Result<Response<wire::Document>, Status> {
        match self.mind.request(input).await.map_err(stopped)? {
            Ok(Reply::Done { message }) => document(&BTreeMap::from([("message", message)])),
            Ok(Reply::Admit { .. }) => Err(Status::internal("an unexpected answer")),
            Err(refusal) => Err(Status::failed_precondition(refusal)),
        }
    }

    async fn events(&self, from: u64, node: Option<NodeId>) -> Result<Vec<Event>, Status> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.events(from, EVENT_PAGE, node.as_ref()));
        read.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| Status::internal(e.to_string()))
    }

    async fn apply(&self, description: Description, plan_only: bool) -> Result<Plan, Status> {
        let _one = self.applying.lock().await;
        let planner = description.planner().map_err(Status::invalid_argument)?;
        if planner.cluster().name != self.settings.cluster {
            let message = format!("the file describes the cluster {}, this is {}", planner.cluster().name, self.settings.cluster);
            return Err(Status::invalid_argument(message));
        }
        let latest = self.revisions.latest();
        let stopping = self.mind.ask(|brain| brain.snapshot().cluster.stopping).await.map_err(stopped)?;
        let old = latest.as_ref().filter(|_| !stopping).map(|(_, _, planner)| &**planner);
        let (mut plan, rolling) = compare(old, &planner);
        plan.changes.extend(self.workers_to_go(&planner).await?);
        let unchanged = latest.as_ref().is_some_and(|(_, known, _)| *known == description) && !stopping;
        if plan_only || unchanged {
            return Ok(plan);
        }
        let revision = self.revisions.next();
        let (store, document) = (self.store.clone(), serde_json::to_vec(&description).map_err(|e| Status::internal(e.to_string()))?);
        tokio::task::spawn_blocking(move || store.put_revision(revision, &document))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::internal(e.to_string()))?;
        let spec = planner.spec(revision, rolling);
        self.revisions.put(revision, description, planner);
        self.mind.tell(Input::Specified { spec }).await;
        // Answered once it is stored.
        self.mind.ask(|_| ()).await.map_err(stopped)?;
        Ok(plan)
    }

    /// The workers that a description would let go, which nobody should learn afterwards.
    async fn workers_to_go(&self, planner: &cloudtik_runtimes::Planner) -> Result<Vec<Change>, Status> {
        // The revision's number decides nothing here.
        let spec = planner.spec(0, false);
        let excess = self.mind.ask(move |brain| brain.excess(&spec)).await.map_err(stopped)?;
        let change = |(name, present, wanted): (NodeTypeName, usize, usize)| {
            let going = present - wanted;
            let workers = if going == 1 { "worker" } else { "workers" };
            let detail = format!("{present} are there, {wanted} are wanted");
            Change { action: "destroy".to_owned(), what: format!("{going} {workers} of type {name}"), detail }
        };
        Ok(excess.into_iter().map(change).collect())
    }

    /// Refuses what is meant for a node that there is not.
    async fn must_exist(&self, node: &NodeId) -> Result<(), Status> {
        let wanted = node.clone();
        let view = self.mind.ask(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        view.map(drop).ok_or_else(|| Status::not_found(format!("there is no node {node}")))
    }

    /// Has a program run on a node, over the link that the brain accepted.
    async fn open_program(&self, node: &NodeId, execute: wire::Execute) -> Result<Program, Status> {
        let wanted = node.clone();
        let view = self.mind.ask(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        let view = view.ok_or_else(|| Status::not_found(format!("there is no node {node}")))?;
        let session = view.link.ok_or_else(|| Status::unavailable(format!("{node} has no link just now")))?;
        self.sessions.open(session, node, execute)
    }

    /// Starts what a client asked for. A submission's bytes come first, so it reads the client's frames.
    async fn open(&self, request: wire::OpenRequest, frames: &mut Streaming<wire::SessionFrame>) -> Result<Program, Status> {
        let node = if request.node.is_empty() { NodeId::head() } else { parse("node", &request.node)? };
        match request.what {
            Some(What::Execute(execute)) => self.open_program(&node, execute).await,
            Some(What::Logs(logs)) => {
                let home = self.home_of(&node).await?;
                let path = if logs.service.is_empty() {
                    format!("{home}/agent.log")
                } else {
                    let key: ServiceKey = parse("service", &logs.service)?;
                    format!("{home}/services/{}/{}/log", key.runtime, key.service)
                };
                let mut command = vec!["tail".to_owned(), "-n".to_owned(), logs.lines.to_string()];
                command.extend(logs.follow.then(|| "-F".to_owned()));
                command.push(path);
                self.open_program(&node, wire::Execute { command, ..Default::default() }).await
            }
            Some(What::Submit(submit)) => self.submit(submit, frames).await,
            None => Err(Status::invalid_argument("this head does not know what is to be opened; upgrade it")),
        }
    }

    async fn home_of(&self, node: &NodeId) -> Result<String, Status> {
        let wanted = node.clone();
        let found = self.mind.ask(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        let view = found.ok_or_else(|| Status::not_found(format!("there is no node {node}")))?;
        view.facts.map(|f| f.home).ok_or_else(|| Status::unavailable(format!("{node} has not linked yet")))
    }

    async fn submit(&self, submit: wire::Submit, frames: &mut Streaming<wire::SessionFrame>) -> Result<Program, Status> {
        let name = submit.file_name.rsplit('/').next().filter(|n| !n.is_empty() && *n != "." && *n != "..").unwrap_or("job").to_owned();
        let runtime = if submit.runtime.is_empty() { None } else { Some(parse::<RuntimeName>("runtime", &submit.runtime)?) };
        let (_, _, planner) = self.revisions.latest().ok_or_else(|| Status::failed_precondition("the cluster runs nothing yet"))?;
        let head = self.mind.ask(|brain| brain.node(&NodeId::head())).await.map_err(stopped)?;
        let head = head.ok_or_else(|| Status::unavailable("the head's own node is not there yet"))?;
        let context = status::context(&head).ok_or_else(|| Status::unavailable("the head's own agent has not linked yet"))?;
        let directory = format!("jobs/{}", pki::hex(&pki::random::<6>()));
        let file = format!("{}/{directory}/{name}", context.home);
        let available = |wanted: &_| self.artifacts.availability(wanted);
        let job = planner.job(runtime.as_ref(), &file, &submit.arguments, &self.view, &context, &available);
        let job = job.map_err(|e| Status::failed_precondition(e.to_string()))?;
        match head.services.get(&job.needs) {
            Some(service) if service.state == ServiceState::Ready => {}
            Some(service) => {
                return Err(Status::unavailable(format!("{} is {}, not ready: {}", job.needs, service.state.name(), service.detail)));
            }
            None => return Err(Status::unavailable(format!("{} does not run yet", job.needs))),
        }
        self.upload(&directory, &name, frames).await?;
        let execute =
            wire::Execute { command: job.command, environment: job.environment.into_iter().collect(), directory, ..Default::default() };
        self.open_program(&NodeId::head(), execute).await
    }

    /// Writes the client's bytes to a file on the head's node.
    async fn upload(&self, directory: &str, name: &str, frames: &mut Streaming<wire::SessionFrame>) -> Result<(), Status> {
        let command = ["sh", "-c", "umask 077; exec cat > \"$1\"", "sh", name].map(str::to_owned).to_vec();
        let execute = wire::Execute { command, directory: directory.to_owned(), ..Default::default() };
        let mut program = self.open_program(&NodeId::head(), execute).await?;
        let mut size = 0;
        loop {
            let frame = frames.message().await?.and_then(|f| f.frame);
            match frame {
                Some(Frame::Stdin(bytes)) => {
                    size += bytes.len();
                    if size > MAX_JOB {
                        return Err(Status::invalid_argument(format!("a job may have at most {} MiB", MAX_JOB >> 20)));
                    }
                    program.to_agent.send(frame_of(Frame::Stdin(bytes))).await.map_err(|_| Status::unavailable("the upload broke off"))?;
                }
                Some(Frame::EndOfInput(_)) => break,
                Some(Frame::Signal(_)) => return Err(Status::cancelled("cancelled before the job began")),
                Some(_) => {}
                None => return Err(Status::cancelled("the client went away")),
            }
        }
        let _ = program.to_agent.send(frame_of(Frame::EndOfInput(true))).await;
        let mut complaint = String::new();
        while let Some(frame) = program.from_agent.recv().await {
            match frame?.frame {
                Some(Frame::Stderr(bytes)) => complaint.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Frame::Exit(wire::Exit { code: 0, .. })) => return Ok(()),
                Some(Frame::Exit(exit)) => {
                    return Err(Status::internal(format!("the upload failed with status {}: {}{complaint}", exit.code, exit.error)));
                }
                _ => {}
            }
        }
        Err(Status::unavailable("the upload broke off"))
    }
}

/// The gRPC service. It waits for the head to be there: a client may call while it is still being set up.
#[derive(Clone)]
pub struct AdminService {
    pub head: watch::Receiver<Option<Head>>,
    pub telemetry: Telemetry,
}

impl AdminService {
    async fn head<T>(&self, request: &Request<T>) -> Result<Head, Status> {
        match request.extensions().get::<Caller>() {
            Some(Caller::LocalUser | Caller::Certified(Peer::Admin { .. })) => {}
            _ => {
                self.telemetry.refuse("not-an-administrator");
                return Err(Status::permission_denied("an administrator's certificate is needed"));
            }
        }
        let mut head = self.head.clone();
        let ready = tokio::time::timeout(START_PATIENCE, head.wait_for(Option::is_some)).await;
        let ready = ready.map_err(|_| Status::unavailable("the head is still being set up"))?;
        ready.map_err(|_| Status::unavailable("the head is stopping"))?.clone().ok_or_else(|| Status::unavailable("the head is stopping"))
    }
}

type Documents = Pin<Box<dyn Stream<Item = Result<wire::Document, Status>> + Send>>;

#[tonic::async_trait]
impl wire::admin_server::Admin for AdminService {
    type WatchStream = Documents;
    type EventsStream = Documents;
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::SessionFrame, Status>> + Send>>;

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

    async fn status(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        document(&self.head(&request).await?.status_document().await?)
    }

    async fn watch(&self, request: Request<wire::Empty>) -> Result<Response<Self::WatchStream>, Status> {
        let head = self.head(&request).await?;
        let (sender, receiver) = mpsc::channel(1);
        let tasks = head.tasks.clone();
        tasks.spawn(async move {
            let mut changes = head.mind.changes();
            let mut last = None;
            loop {
                let Ok(mut status) = head.status_document().await else { return };
                // Time passing is no news.
                let ages: Vec<_> = status.nodes.iter_mut().map(|n| n.heartbeat_age_ms.take()).collect();
                if last.as_ref() != Some(&status) {
                    last = Some(status.clone());
                    status.nodes.iter_mut().zip(ages).for_each(|(node, age)| node.heartbeat_age_ms = age);
                    if sender.send(document(&status).map(Response::into_inner)).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(WATCH_PAUSE).await;
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(WATCH_TICK) => {}
                    () = sender.closed() => return,
                }
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
            let (mut from, mut last) = (request.from.max(1), head.mind.events());
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
        let (mut from, mut events) = (0, Vec::new());
        loop {
            let page = head.events(from, Some(node.clone())).await?;
            let full = page.len() == EVENT_PAGE;
            from = page.last().map_or(from, |e| e.position + 1);
            events.extend(page);
            if !full {
                break;
            }
        }
        let wanted = node.clone();
        let view = head.mind.ask(move |brain| brain.node(&wanted)).await.map_err(stopped)?;
        if events.is_empty() && view.is_none() {
            return Err(Status::not_found(format!("there is no node {node}, and there never was")));
        }
        #[derive(Serialize)]
        struct Explanation {
            node: NodeId,
            record: Option<cloudtik_model::node::NodeRecord>,
            events: Vec<Event>,
        }
        document(&Explanation { node, record: view.map(|v| v.record), events })
    }

    async fn scale(&self, request: Request<wire::ScaleRequest>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let wire::ScaleRequest { node_type, workers } = request.into_inner();
        let node_type = parse::<NodeTypeName>("node type", if node_type.is_empty() { NodeTypeName::DEFAULT } else { &node_type })?;
        head.request(|request| Input::Scale { request, node_type, workers }).await
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

    async fn dump(&self, request: Request<wire::Empty>) -> Result<Response<wire::Document>, Status> {
        let head = self.head(&request).await?;
        let snapshot = head.mind.ask(|brain| brain.snapshot()).await.map_err(stopped)?;
        #[derive(Serialize)]
        struct Dump {
            status: cloudtik_model::status::Status,
            cluster: cloudtik_brain::ClusterRecord,
            nodes: Vec<cloudtik_model::node::NodeRecord>,
            revision: Option<(u64, Description)>,
            events: Vec<Event>,
        }
        let from = head.mind.events().borrow().saturating_sub(EVENT_PAGE as u64);
        document(&Dump {
            status: head.status_document().await?,
            cluster: snapshot.cluster.clone(),
            nodes: snapshot.nodes.iter().map(|n| n.record.clone()).collect(),
            revision: head.revisions.latest().map(|(n, description, _)| (n, description)),
            events: head.events(from, None).await?,
        })
    }

    async fn session(&self, request: Request<Streaming<wire::SessionFrame>>) -> Result<Response<Self::SessionStream>, Status> {
        let head = self.head(&request).await?;
        let mut frames = request.into_inner();
        let Some(wire::SessionFrame { frame: Some(Frame::Open(open)) }) = frames.message().await? else {
            return Err(Status::invalid_argument("the first frame must open something"));
        };
        let (sender, receiver) = mpsc::channel(32);
        let tasks = head.tasks.clone();
        tasks.spawn(async move {
            let opened = tokio::select! {
                opened = head.open(open, &mut frames) => opened,
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

/// Setting a head up, on its Unix socket.
#[derive(Clone)]
pub struct SetupService {
    pub keys: Arc<Keys>,
}

#[tonic::async_trait]
impl wire::setup_server::Setup for SetupService {
    async fn certificate_request(&self, request: Request<wire::Empty>) -> Result<Response<wire::CertificateRequestReply>, Status> {
        local_only(&request)?;
        let certificate_request = self.keys.request().map_err(|e| Status::internal(format!("{e:#}")))?.into();
        let expires_at = self.keys.expires_at();
        Ok(Response::new(wire::CertificateRequestReply {
            certificate_request,
            installed: expires_at.is_some(),
            expires_at: expires_at.unwrap_or(0),
        }))
    }

    async fn install_certificate(&self, request: Request<wire::InstallCertificateRequest>) -> Result<Response<wire::Empty>, Status> {
        local_only(&request)?;
        let certificate = request.into_inner().certificate;
        self.keys.install(&certificate).map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        Ok(Response::new(wire::Empty {}))
    }
}

fn local_only<T>(request: &Request<T>) -> Result<(), Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::LocalUser) => Ok(()),
        _ => Err(Status::permission_denied("a head is set up on its Unix socket")),
    }
}

fn document(value: &impl Serialize) -> Result<Response<wire::Document>, Status> {
    let json = serde_json::to_vec(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::new(wire::Document { json: json.into() }))
}

fn frame_of(frame: Frame) -> wire::SessionFrame {
    wire::SessionFrame { frame: Some(frame) }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(what: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|e| Status::invalid_argument(format!("{what}: {e}")))
}

fn stopped(_: Stopped) -> Status {
    Status::unavailable("the head is stopping")
}
