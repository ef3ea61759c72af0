//! The services for agents: joining, the bus, sessions' far ends and artifacts.

mod admission;
mod pace;

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use cloudtik_brain::{Input, Reply, Session};
use cloudtik_model::job::{JobEnd, JobReport, JobReportState};
use cloudtik_model::report::Facts;
use cloudtik_model::{Actor, Epoch, Generation, NodeId};
use cloudtik_protocol::convert::{
    MAX_SERVICES, bounded, bounded_facts, load_from_wire, memory_kills_from_wire, proof_from_wire, proof_to_wire, report_from_wire,
};
use cloudtik_protocol::pki::{self, EpochProof, Peer};
use cloudtik_protocol::transport::Caller;
use cloudtik_protocol::wire::agent_frame::Topic;
use cloudtik_protocol::wire::head_frame::Topic as HeadTopic;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{PROTOCOL_VERSION, VERSION, wire};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub use self::admission::Admission;
use self::pace::Pace;
use crate::artifacts::ArtifactStore;
use crate::hub::Hub;
use crate::identity::Authority;
use crate::jobs::JobFiles;
use crate::revisions::Revisions;
use crate::runner::BrainHandle;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::supersession::Supersession;
use crate::telemetry::Telemetry;

/// Bytes of an archive in one message.
const CHUNK: usize = 256 << 10;
/// Messages of an archive that wait to be sent.
const CHUNKS: usize = 4;
/// Bytes of an agent's own words that are kept.
const MAX_WORDS: usize = 1_000;
/// Jobs of one report that are looked at: more do not run at once.
const MAX_JOB_REPORTS: usize = 20_000;
/// Bytes of an address that a caller names.
const MAX_ADDRESS: usize = 64;

/// What the services for agents share.
#[derive(Clone)]
pub struct BusService {
    pub settings: Arc<Settings>,
    pub admission: Admission,
    pub authority: Authority,
    pub revisions: Revisions,
    pub epoch: Epoch,
    /// That this epoch began.
    pub proof: EpochProof,
    pub root: CertificateDer<'static>,
    pub supersession: Supersession,
    pub brain: BrainHandle,
    pub hub: Hub,
    pub sessions: Sessions,
    pub artifacts: ArtifactStore,
    pub job_files: JobFiles,
    pub telemetry: Telemetry,
    pub tasks: tokio_util::task::TaskTracker,
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl BusService {
    fn refuse(&self, reason: &'static str, status: Status) -> Status {
        self.telemetry.refuse(reason);
        tracing::warn!(reason, "refused: {}", status.message());
        status
    }

    /// The node that called, by its certificate.
    fn node<T>(&self, request: &Request<T>) -> Result<(NodeId, Generation), Status> {
        match request.extensions().get::<Caller>() {
            Some(Caller::Certified(Peer::Node { id, generation })) => Ok((id.clone(), *generation)),
            _ => Err(self.refuse("not-a-node", Status::unauthenticated("a node's certificate is needed"))),
        }
    }

    /// The node that called, if it is the present one and not on its way out: a certificate outlives its node.
    async fn member<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let (node, generation) = self.node(request)?;
        let wanted = node.clone();
        let present = self.brain.query(move |brain| brain.is_member(&wanted, generation)).await;
        if present.unwrap_or(false) {
            return Ok(node);
        }
        Err(self.refuse(
            "not-a-member",
            Status::permission_denied(format!("{node}, generation {generation}, is no longer part of this cluster")),
        ))
    }

    fn check_version(&self, version: u32) -> Result<(), Status> {
        if version == PROTOCOL_VERSION {
            return Ok(());
        }
        let advice = if version < PROTOCOL_VERSION { "upgrade the agent" } else { "upgrade the head" };
        let message = format!("the agent speaks protocol {version}, the head {PROTOCOL_VERSION}: {advice}");
        Err(self.refuse("protocol-version", Status::failed_precondition(message)))
    }

    /// Brings the frames of one link to the brain until it ends; says why.
    async fn listen(&self, session: Session, node: &NodeId, generation: Generation, mut frames: Streaming<wire::AgentFrame>) -> String {
        let mut pace = Pace::new(Instant::now());
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return "the agent closed it".to_owned(),
                Err(status) => return broken_by(&status),
            };
            if !matches!(frame.topic, Some(Topic::Heartbeat(_) | Topic::Goodbye(_)) | None)
                && let Some(due) = pace.take(Instant::now())
            {
                tokio::time::sleep_until(due).await;
            }
            match frame.topic {
                Some(Topic::Heartbeat(heartbeat)) => {
                    self.brain.heartbeat(session, node, heartbeat.load.as_ref().map(load_from_wire));
                }
                Some(Topic::Report(report)) => {
                    if report.services.len() > MAX_SERVICES {
                        self.telemetry.refuse("malformed-frame");
                        return format!("the agent reports {} services, more than the {MAX_SERVICES} of a report", report.services.len());
                    }
                    let mut services = Vec::new();
                    for service in &report.services {
                        match report_from_wire(service) {
                            Ok(service) => services.extend(service),
                            Err(error) => {
                                self.telemetry.refuse("malformed-frame");
                                return format!("the agent sent what this head cannot read: {error}");
                            }
                        }
                    }
                    let jobs = match read_job_reports(&report.jobs) {
                        Ok(jobs) => jobs,
                        Err(error) => {
                            self.telemetry.refuse("malformed-frame");
                            return format!("the agent reports of jobs what this head cannot read: {error}");
                        }
                    };
                    self.brain.send(Input::Reported { session, node: node.clone(), complete: report.complete, services, jobs }).await;
                }
                Some(Topic::MemoryKills(kills)) => match memory_kills_from_wire(&kills) {
                    Ok(kills) => self.brain.send(Input::MemoryUsedUp { session, node: node.clone(), kills }).await,
                    Err(error) => {
                        self.telemetry.refuse("malformed-frame");
                        return format!("the agent sent what this head cannot read: {error}");
                    }
                },
                Some(Topic::GoalAck(ack)) => {
                    let refusal = (!ack.refusal.is_empty()).then(|| bounded(&ack.refusal, MAX_WORDS));
                    self.brain.send(Input::GoalAcknowledged { session, node: node.clone(), version: ack.version, refusal }).await;
                }
                Some(Topic::Identity(request)) => self.renew(session, node, generation, &request.certificate_request).await,
                Some(Topic::Result(result)) => self.sessions.refused(&result.id, &result.error),
                Some(Topic::Goodbye(goodbye)) => return bounded(&goodbye.reason, MAX_WORDS),
                Some(Topic::Hello(_)) => return "the agent said hello twice".to_owned(),
                // A newer agent's topic.
                None => {}
            }
        }
    }

    fn certify(
        &self,
        request: &[u8],
        node: &NodeId,
        generation: Generation,
        address: &str,
    ) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        self.authority.certify(request, node, generation, address, self.revisions.certificate_lifetime())
    }

    /// Renews a node's certificate: for the key that it joined with and no other.
    async fn renew(&self, session: Session, node: &NodeId, generation: Generation, request: &[u8]) {
        let address = self.brain.query({
            let node = node.clone();
            move |brain| brain.node(&node).map(|n| (n.record.key, n.record.generation, n.record.address))
        });
        let granted = match (pki::request_fingerprint(request), address.await) {
            (Ok(key), Ok(Some((known, present, address)))) if known.as_ref() == Some(&key) && present == generation => {
                self.certify(request, node, generation, &address.unwrap_or_default()).map_err(|e| format!("{e:#}"))
            }
            (Err(error), _) => Err(error.to_string()),
            _ => Err("the key is not the one that the node joined with".to_owned()),
        };
        let reply = match granted {
            Ok(chain) => wire::IdentityReply { chain: chain.iter().map(|c| c.to_vec().into()).collect(), refusal: String::new() },
            Err(refusal) => {
                self.telemetry.refuse("renewal");
                tracing::warn!(%node, "refused to renew a certificate: {refusal}");
                wire::IdentityReply { chain: Vec::new(), refusal }
            }
        };
        self.hub.send(session, HeadTopic::Identity(reply));
    }
}

fn read_job_reports(reports: &[Bytes]) -> serde_json::Result<Vec<JobReport>> {
    let read = |report: &Bytes| {
        let mut report: JobReport = serde_json::from_slice(report)?;
        if let JobReportState::Unstarted { end: JobEnd::NotStarted { why } } = &mut report.state {
            *why = bounded(why, MAX_WORDS);
        }
        Ok(report)
    };
    reports.iter().take(MAX_JOB_REPORTS).map(read).collect()
}

fn now_ms() -> i64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as i64)
}

/// Why a stream broke. Of what the operating system says, a case has its own words; else the innermost error says it, since outer
/// ones only name the layers of the protocol.
fn broken_by(status: &Status) -> String {
    let causes = || std::iter::successors(std::error::Error::source(status), |e| e.source());
    let io = |e: &'_ (dyn std::error::Error + 'static)| match e.downcast_ref::<h2::Error>() {
        Some(error) => error.get_io().map(io::Error::kind),
        None => e.downcast_ref::<io::Error>().map(io::Error::kind),
    };
    match causes().find_map(io) {
        Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe) => {
            "it was closed without a goodbye, as when the agent is killed".to_owned()
        }
        Some(ErrorKind::TimedOut) => "the agent's machine does not answer".to_owned(),
        _ => causes().last().map_or_else(|| status.message().to_owned(), ToString::to_string),
    }
}

#[tonic::async_trait]
impl wire::join_server::Join for BusService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        let join = request.into_inner();
        self.check_version(join.protocol_version)?;
        let invalid = |error: &dyn std::fmt::Display| self.refuse("malformed-join", Status::invalid_argument(error.to_string()));
        let node: NodeId = join.node.parse().map_err(|e| invalid(&e))?;
        let generation = Generation(join.generation);
        let key = pki::request_fingerprint(&join.certificate_request).map_err(|e| invalid(&e))?;
        let token = self.admission.is_token(&node, generation, &join.token);
        if !token && !self.admission.has_joined(&node, generation, &key) {
            let message = format!("{node}, generation {generation}, needs its join token, or the key that it joined with");
            return Err(self.refuse("join-token", Status::permission_denied(message)));
        }
        // The address is the caller's word: only the log shows it.
        let (address, joined) = (bounded(&join.address, MAX_ADDRESS), key.clone());
        let actor = Actor::Agent { node: node.clone() };
        let asked = self.brain.request(actor, |request| Input::JoinAsked { request, node, generation, key, token, address }).await;
        match asked {
            Ok(Ok(Reply::Admit { node, generation, address })) => {
                self.admission.note(node.clone(), generation, joined);
                let chain = self.certify(&join.certificate_request, &node, generation, &address);
                let chain = chain.map_err(|e| Status::internal(format!("{e:#}")))?;
                tracing::info!(%node, %generation, address, version = join.agent_version, "joined");
                Ok(Response::new(wire::JoinReply { chain: chain.iter().map(|c| c.to_vec().into()).collect() }))
            }
            Ok(Err(refusal)) => Err(self.refuse("join", Status::permission_denied(refusal.to_string()))),
            Ok(Ok(Reply::Done { .. })) | Err(_) => Err(Status::unavailable("the head is stopping")),
        }
    }
}

#[tonic::async_trait]
impl wire::bus_server::Bus for BusService {
    type ConnectStream = Frames<wire::HeadFrame>;
    type SessionStream = Frames<wire::SessionFrame>;

    async fn connect(&self, request: Request<Streaming<wire::AgentFrame>>) -> Result<Response<Self::ConnectStream>, Status> {
        let (node, generation) = self.node(&request)?;
        let mut frames = request.into_inner();
        let Some(wire::AgentFrame { topic: Some(Topic::Hello(hello)) }) = frames.message().await? else {
            return Err(self.refuse("no-hello", Status::invalid_argument("the first frame must be a hello")));
        };
        self.check_version(hello.protocol_version)?;
        if hello.node != node.as_str() || hello.generation != generation.0 {
            let message = format!("{node}, generation {generation}, says that it is {}, generation {}", hello.node, hello.generation);
            return Err(self.refuse("foreign-id", Status::permission_denied(message)));
        }
        if hello.epoch > self.epoch.0 {
            // A proof is enough, whoever shows it. To ask for a member would be wrong: this head may not know the node just
            // because its store is older than the cluster.
            let proof = hello.epoch_proof.map(proof_from_wire).unwrap_or_default();
            if !proof.proves(&self.root, &self.settings.cluster, Epoch(hello.epoch)) {
                let message = format!("{node} names epoch {}, later than {}, without a proof", hello.epoch, self.epoch.0);
                return Err(self.refuse("unproven-epoch", Status::permission_denied(message)));
            }
            self.supersession.note(Epoch(hello.epoch));
            let message = format!("{node} has seen epoch {}, this head is of {}", hello.epoch, self.epoch.0);
            return Err(self.refuse("superseded", Status::failed_precondition(message)));
        }
        let malformed = |error: String| self.refuse("malformed-frame", Status::invalid_argument(error));
        let facts: Facts = serde_json::from_slice(&hello.facts).map_err(|e| malformed(format!("malformed facts: {e}")))?;
        let (facts, left_out) = bounded_facts(facts).map_err(|e| malformed(e.to_string()))?;
        if left_out > 0 {
            tracing::warn!(%node, left_out, "the agent names more Java installations than are kept");
        }
        let (session, outgoing) = self.hub.open();
        let heartbeat_ms = self.settings.heartbeat_ms as u32;
        let welcome = wire::Welcome {
            protocol_version: PROTOCOL_VERSION,
            head_version: VERSION.to_owned(),
            heartbeat_ms,
            time_ms: now_ms(),
            epoch_proof: Some(proof_to_wire(&self.proof)),
        };
        self.hub.send(session, HeadTopic::Welcome(welcome));
        let own = self.clone();
        // All of it in one task: a caller that goes away in the middle must not leave half a link.
        self.tasks.spawn(async move {
            own.brain.send(Input::LinkOpened { session, node: node.clone(), generation, facts }).await;
            // Heartbeats do not wait behind other inputs: none is taken before the brain knows the connection.
            let _ = own.brain.query(|_| ()).await;
            let cause = own.listen(session, &node, generation, frames).await;
            own.hub.close(session);
            own.brain.send(Input::LinkClosed { session, node, cause }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn session(&self, request: Request<Streaming<wire::SessionFrame>>) -> Result<Response<Self::SessionStream>, Status> {
        let node = self.member(&request).await?;
        let mut frames = request.into_inner();
        let Some(wire::SessionFrame { frame: Some(Frame::Attach(id)) }) = frames.message().await? else {
            return Err(self.refuse("malformed-frame", Status::invalid_argument("the first frame must attach")));
        };
        let Some(outgoing) = self.sessions.attach(&id, &node, frames) else {
            return Err(self.refuse("foreign-session", Status::not_found("no request waits for this session")));
        };
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing).map(Ok))))
    }
}

#[tonic::async_trait]
impl wire::artifacts_server::Artifacts for BusService {
    type FetchStream = Frames<wire::Chunk>;

    async fn fetch(&self, request: Request<wire::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        self.member(&request).await?;
        let request = request.into_inner();
        let Some(path) = self.artifacts.archive(&request.digest).or_else(|| self.job_files.path(&request.digest)) else {
            self.artifacts.restore(&request.digest);
            return Err(Status::not_found("the head does not have this artifact"));
        };
        let mut file = tokio::fs::File::open(path).await.map_err(|e| Status::internal(format!("cannot read the artifact: {e}")))?;
        file.seek(std::io::SeekFrom::Start(request.offset)).await.map_err(|e| Status::internal(e.to_string()))?;
        let (sender, receiver) = mpsc::channel(CHUNKS);
        self.tasks.spawn(async move {
            loop {
                let mut data = Vec::with_capacity(CHUNK);
                let chunk = match (&mut file).take(CHUNK as u64).read_to_end(&mut data).await {
                    Ok(0) => return,
                    Ok(_) => Ok(wire::Chunk { data: data.into() }),
                    Err(error) => Err(Status::internal(format!("cannot read the artifact: {error}"))),
                };
                let failed = chunk.is_err();
                if sender.send(chunk).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_stream_is_told_without_the_layers_of_the_protocol() {
        let broken = |kind: ErrorKind| broken_by(&Status::from_error(Box::new(io::Error::new(kind, "peer closed: https://docs.rs/"))));
        let killed = "it was closed without a goodbye, as when the agent is killed";
        assert_eq!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].map(broken), [killed, killed]);
        assert_eq!(broken(ErrorKind::TimedOut), "the agent's machine does not answer");
        assert_eq!(broken(ErrorKind::HostUnreachable), "peer closed: https://docs.rs/");
        assert_eq!(broken_by(&Status::internal("h2 protocol error")), "h2 protocol error");
    }
}
