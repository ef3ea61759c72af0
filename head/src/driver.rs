//! Executes the brain's actions. It has no choice to make: what cannot be done comes back to the brain as an input.

mod batches;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use cloudtik_brain::{Action, Failure, FailureKind, Input};
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::node::DialOutcome;
use cloudtik_model::spec::Offer;
use cloudtik_model::{Generation, NodeId, NodeTypeName};
use cloudtik_protocol::logging::chain;
use cloudtik_protocol::{pki, tls};
use cloudtik_providers::{CreateNode, DeleteNode, Error, NodeProvider};
use cloudtik_runtimes::View;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::AgentPrograms;
use crate::goals::Goals;
use crate::hub::Hub;
use crate::jobs::Jobs;
use crate::machines::MachinesHandle;
use crate::revisions::{Revisions, Undescribed};
use crate::runner::BrainHandle;
use crate::runner::effects::{Effect, EffectQueue};
use crate::settings::Settings;
use crate::telemetry::Telemetry;

/// A dial-back that takes longer is no answer.
const DIAL_TIMEOUT: Duration = Duration::from_millis(800);
/// Between two attempts of a dial-back. A packet of a handshake that is lost is sent again after a second only, so that one
/// attempt alone says little of a link that loses packets.
const DIAL_STAGGER: Duration = Duration::from_millis(150);
/// How long a provider may take to answer a call.
const CALL_DEADLINE: Duration = Duration::from_secs(50);
/// Calls of the provider under way at once.
const PARALLEL_CALLS: usize = 32;
/// Dial-backs under way at once: each holds a socket.
const PARALLEL_DIALS: usize = 256;

/// What may be under way at once.
struct Limits {
    calls: Arc<Semaphore>,
    dials: Arc<Semaphore>,
}

/// What is due now and can be asked for together.
#[derive(Default)]
struct Due {
    creations: Vec<CreateNode>,
    deletions: Vec<DeleteNode>,
}

/// What executing needs.
pub struct Driver {
    pub settings: Arc<Settings>,
    pub join_secret: Vec<u8>,
    pub machines: MachinesHandle,
    pub brain: BrainHandle,
    pub hub: Hub,
    pub revisions: Revisions,
    pub goals: Goals,
    pub jobs: Jobs,
    pub view: View,
    /// What nodes may fetch that have no agent.
    pub agents: AgentPrograms,
    pub telemetry: Telemetry,
    pub tasks: TaskTracker,
    /// The head stops: no further call is begun.
    pub stop: CancellationToken,
    /// For dialling back: the head's identity as it is now.
    pub client: watch::Receiver<Arc<rustls::ClientConfig>>,
}

impl Driver {
    /// Executes effects until the brain's runner ends.
    pub async fn run(self, effects: EffectQueue) {
        let limits = Limits { calls: Arc::new(Semaphore::new(PARALLEL_CALLS)), dials: Arc::new(Semaphore::new(PARALLEL_DIALS)) };
        while let Some(effect) = effects.next().await {
            let mut due = Due::default();
            for effect in std::iter::once(effect).chain(effects.take_ready()) {
                self.execute(effect, &limits, &mut due);
            }
            self.call_in_batches("create", due.creations, &limits.calls, batches::create);
            self.call_in_batches("delete", due.deletions, &limits.calls, batches::delete);
        }
    }

    /// Begins an effect, or puts it to those that one call can carry; never waits.
    fn execute(&self, effect: Effect, limits: &Limits, due: &mut Due) {
        let calls = &limits.calls;
        match effect.action {
            Action::Create { node, generation, node_type, revision, offer } => {
                match self.create_request(&node, generation, &node_type, revision, offer) {
                    Ok(request) => due.creations.push(request),
                    Err(error) => self.refuse_creation(node, generation, &error),
                }
            }
            Action::Delete { node, generation, instance } => due.deletions.push(DeleteNode { node, generation, instance }),
            Action::RestartAgent { node, generation, instance, force } => self.call("restart-agent", calls, move |provider| async move {
                let result = in_time(provider.restart_agent(&node, generation, &instance, force)).await;
                (result.is_ok(), Input::AgentRestarted { node, generation, result: result.map_err(failure) })
            }),
            Action::Reboot { node, generation, instance } => self.call("reboot", calls, move |provider| async move {
                let result = in_time(provider.reboot(&node, generation, &instance)).await;
                (result.is_ok(), Input::Rebooted { node, generation, result: result.map_err(failure) })
            }),
            // Not behind the others: what they lead to is seen by it.
            Action::ListInstances { number } => self.call("list", &Arc::new(Semaphore::new(1)), move |provider| async move {
                let result = in_time(provider.list()).await;
                (result.is_ok(), Input::Listed { number, result: result.map_err(failure) })
            }),
            Action::DialBack { node, generation, address, port } => {
                let (brain, tls, dials) = (self.brain.clone(), self.client.borrow().clone(), limits.dials.clone());
                let name = tls::server_name(&pki::node_name(&self.settings.cluster, &node));
                self.tasks.spawn(async move {
                    let _permit = dials.acquire().await;
                    let outcome = dial_back(&address, port, &name, tls).await;
                    brain.send(Input::DialedBack { node, generation, outcome }).await;
                });
            }
            Action::SendGoal { node, order } => {
                if let Some(view) = effect.node {
                    self.goals.set(node, order, view);
                }
            }
            Action::SendJobs { order, .. } => {
                if let Some(view) = effect.node {
                    self.jobs.set(order, view);
                }
            }
            Action::CloseLink { session, cause } => self.hub.dismiss(session, &cause.to_string()),
            // The runner has answered it.
            Action::Reply { .. } => {}
        }
    }

    /// Calls the provider with as many requests at a time as it takes, and gives the brain the answer to each.
    fn call_in_batches<R, W>(
        &self,
        operation: &'static str,
        requests: Vec<R>,
        calls: &Arc<Semaphore>,
        call: fn(Arc<dyn NodeProvider>, Vec<R>) -> W,
    ) where
        R: Clone + Send + 'static,
        W: Future<Output = Vec<(bool, Input)>> + Send + 'static,
    {
        if self.stop.is_cancelled() {
            return;
        }
        let provider = self.machines.provider_now();
        for batch in batches::split(&requests, provider.capabilities().batch) {
            let (provider, brain, telemetry, calls) = (provider.clone(), self.brain.clone(), self.telemetry.clone(), calls.clone());
            self.tasks.spawn(async move {
                let _permit = calls.acquire().await;
                for (worked, input) in call(provider, batch).await {
                    telemetry.call(operation, worked);
                    brain.send(input).await;
                }
            });
        }
    }

    fn call<F, W>(&self, operation: &'static str, calls: &Arc<Semaphore>, work: F)
    where
        F: FnOnce(Arc<dyn NodeProvider>) -> W + Send + 'static,
        W: Future<Output = (bool, Input)> + Send,
    {
        if self.stop.is_cancelled() {
            return;
        }
        let provider = self.machines.provider_now();
        let (brain, telemetry, calls) = (self.brain.clone(), self.telemetry.clone(), calls.clone());
        self.tasks.spawn(async move {
            let _permit = calls.acquire().await;
            let (worked, input) = work(provider).await;
            telemetry.call(operation, worked);
            brain.send(input).await;
        });
    }

    /// What is not described is not created: a machine made from defaults is another one than was asked for.
    fn refuse_creation(&self, node: NodeId, generation: Generation, error: &Undescribed) {
        let failure = Failure { message: chain(error), retry_after: None, kind: FailureKind::Permanent };
        let brain = self.brain.clone();
        self.tasks.spawn(async move { brain.send(Input::Created { node, generation, result: Err(failure) }).await });
    }

    fn create_request(
        &self,
        node: &NodeId,
        generation: Generation,
        node_type: &NodeTypeName,
        revision: u64,
        offer: Offer,
    ) -> Result<CreateNode, Undescribed> {
        let (workers, dead_man) = self.revisions.workers(revision, node_type)?;
        let resources = self.settings.resources_of(Some(&workers));
        Ok(CreateNode {
            offer,
            shape: workers.shape.clone(),
            node_type: node_type.clone(),
            bootstrap: Bootstrap {
                cluster: self.settings.cluster.clone(),
                node: node.clone(),
                generation,
                node_type: node_type.clone(),
                head: self.view.bus.clone(),
                ca: self.settings.ca.clone(),
                token: pki::join_token(&self.join_secret, node, generation),
                address: None,
                resources: Some(resources),
                pinned: Vec::new(),
                artifacts: self.settings.unpacked.as_ref().map(|p| p.display().to_string()),
                heartbeat_ms: self.settings.heartbeat_ms,
                dead_man_ms: dead_man.map(|timer| timer.as_millis() as u64),
                // The local machine is not the node's own.
                power_off: Vec::new(),
                agents: self.agents.current(),
                made_at: std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as i64),
            },
        })
    }
}

/// A call that does not come back is taken for one that failed and may yet have its effect.
async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| Err(no_answer()))
}

fn no_answer() -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer in {} s", CALL_DEADLINE.as_secs()));
    Error::transient("get an answer from the provider", source)
}

fn failure(error: Error) -> Failure {
    let retry_after = error.retry_after().map(|d| d.as_millis() as u64);
    let kind = match &error {
        Error::StockOut(_) => FailureKind::StockOut,
        Error::Quota { .. } => FailureKind::Quota,
        Error::Throttled { .. } => FailureKind::Throttled,
        other if other.is_permanent() => FailureKind::Permanent,
        _ => FailureKind::Transient,
    };
    Failure { message: chain(&error), retry_after, kind }
}

/// Asks a node's health port whether its agent answers, again and again until it does or the time is over.
async fn dial_back(address: &str, port: u16, name: &rustls::pki_types::ServerName<'static>, tls: Arc<rustls::ClientConfig>) -> DialOutcome {
    let mut attempts = JoinSet::new();
    let mut next = tokio::time::interval(DIAL_STAGGER);
    let until_answered = async {
        loop {
            tokio::select! {
                _ = next.tick() => {
                    attempts.spawn(ask(address.to_owned(), port, name.clone(), tls.clone()));
                }
                Some(Ok(answer)) = attempts.join_next() => match answer {
                    Ok(true) => return DialOutcome::Answered,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return DialOutcome::Refused,
                    _ => {}
                },
            }
        }
    };
    tokio::time::timeout(DIAL_TIMEOUT, until_answered).await.unwrap_or(DialOutcome::TimedOut)
}

async fn ask(address: String, port: u16, name: rustls::pki_types::ServerName<'static>, tls: Arc<rustls::ClientConfig>) -> io::Result<bool> {
    let stream = TcpStream::connect((address, port)).await?;
    stream.set_nodelay(true)?;
    let mut stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// The client side of an identity.
pub fn client_config(root: &CertificateDer<'static>, identity: &pki::Identity) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    Ok(tls::client_config(root, Some(identity))?)
}
