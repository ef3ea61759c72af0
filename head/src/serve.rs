//! Puts a head together, and takes it apart in order.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::middleware;
use cloudtik_brain::{Brain, Config, Input, Memory};
use cloudtik_model::node::{NodeRecord, NodeState};
use cloudtik_model::{Actor, NodeId, NodeTypeName, Timestamp};
use cloudtik_protocol::clock::ClusterClock;
use cloudtik_protocol::logging::LogRateLimiter;
use cloudtik_protocol::tls::ServerIdentity;
use cloudtik_protocol::transport::{Refused, serve_tls};
use cloudtik_protocol::wire::{access_server, admin_server, artifacts_server, bus_server, join_server, setup_server};
use cloudtik_protocol::{BUS_PORT, MAX_FRAME, pki};
use cloudtik_providers::NodeProvider;
use cloudtik_runtimes::{View, changes};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::access::{Access, AccessService};
use crate::admin::{AdminService, Head, SetupService, authorize};
use crate::agents::{self, AgentDownloads, AgentPrograms, TaskScope};
use crate::artifacts::ArtifactStore;
use crate::board::{self, StatusBoard};
use crate::bus::{Admission, BusService};
use crate::driver::{self, Driver};
use crate::goals::{GoalSources, Goals};
use crate::http;
use crate::hub::Hub;
use crate::identity::{Authority, Keys};
use crate::jobs::{JobFiles, JobSources, Jobs};
use crate::machines::MachinesHandle;
use crate::place::Place;
use crate::recorder::Recorder;
use crate::revisions::Revisions;
use crate::runner::effects::EffectQueue;
use crate::runner::{BrainHandle, BrainRunner, system_clock};
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::store::{self, EmbeddedDatabase, Leadership};
use crate::supersession::Supersession;
use crate::telemetry::Telemetry;

/// How long the brain may take to answer before the service manager is no longer told that the head scope.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest time between two looks at the head's own certificate: short, because a machine may sleep meanwhile and a
/// description may want shorter scope.
const RENEWAL_CHECK: Duration = Duration::from_secs(5);
/// How long what runs may take to end when the head stops.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Runs a head until it is told to stop.
pub async fn serve(state: &Path) -> anyhow::Result<()> {
    let settings = Arc::new(Settings::read(state)?);
    let root = pki::parse_chain(settings.ca.as_bytes())?.into_iter().next().context("head.json has no root certificate")?;
    let keys = Arc::new(Keys::open(state, &settings.cluster, &root)?);
    let is_new = keys.expires_at().is_none();
    let leadership = EmbeddedDatabase::open(&state.join(store::FILE), is_new).context("opening the store")?;
    let (supersession, seen) = Supersession::check(state)?;
    let (remembered, store) = leadership.begin(&pki::random::<32>(), seen)?;
    supersession.settled()?;
    let (stop, tasks, telemetry) = (CancellationToken::new(), TaskTracker::new(), Telemetry::default());

    let access = Access::open(store.clone(), telemetry.clone())?;
    let ready = watch::Sender::new(None);
    let admin = AdminService { keys: keys.clone(), head: ready.subscribe(), telemetry: telemetry.clone() };
    let setup = SetupService { keys: keys.clone() };
    let local = Routes::new(admin_server::AdminServer::new(admin.clone()).max_decoding_message_size(MAX_FRAME))
        .add_service(setup_server::SetupServer::new(setup));
    let local = local.into_axum_router().layer(middleware::from_fn_with_state(access.clone(), authorize));
    let gone = Place::serve(state, local, &tasks, &stop)?;
    let revisions = Revisions::load(&*store, &remembered.join_secret)?;
    let machines = MachinesHandle::open(&settings.provider, revisions.provider_settings())?;

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let authority = tokio::select! {
        authority = keys.authority() => authority.context("loading the head's identity")?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        () = gone.cancelled() => return abandon(&settings, &machines).await,
    };
    let address: IpAddr = settings.address.parse().with_context(|| format!("{:?} is no address", settings.address))?;
    let own = authority.own(address, revisions.certificate_lifetime())?;
    let identity = ServerIdentity::new(&settings.cluster, &root, &own, &ClusterClock::default())?;
    let client = watch::Sender::new(driver::client_config(&root, &own)?);
    let listener = TcpListener::bind((address, BUS_PORT)).await.with_context(|| format!("listening on {address}:{BUS_PORT}"))?;

    let view = View { head_address: settings.address.clone(), bus: SocketAddr::new(address, BUS_PORT).to_string() };
    let (epoch, join_secret) = (remembered.epoch, remembered.join_secret.clone());
    tracing::info!(cluster = %settings.cluster, epoch = epoch.0, address = view.bus, "head starts");
    let hub = Hub::new(epoch, telemetry.clone());
    let sessions = Sessions::new(hub.clone(), tasks.clone());
    let artifacts = ArtifactStore::open(&settings.artifacts, tasks.clone())?;
    let job_files = JobFiles::open(state).context("opening the files of jobs")?;
    let effects = EffectQueue::default();
    let config = brain_config(&settings, &*machines.provider_now());
    let memory = own_node(&settings, remembered.memory);
    let admission = Admission::new(&settings, join_secret.clone(), &memory.nodes);
    let recorder = if settings.record || revisions.latest().is_some_and(|(_, _, planner)| planner.cluster().head.record) {
        Recorder::open(state, epoch).inspect_err(|error| tracing::warn!("nothing is recorded: {error}")).ok()
    } else {
        None
    };
    let begin = move |now, recorder: Option<&mut Recorder>| {
        if let Some(recorder) = recorder {
            recorder.begin(&config, epoch, &memory, now);
        }
        Brain::restore(config, epoch, memory, now)
    };
    let (brain, mut failed) = BrainRunner::start(begin, recorder, store.clone(), effects.clone(), telemetry.clone(), system_clock());
    access.announce_to(brain.clone());
    let goals = Goals::new(GoalSources {
        epoch,
        brain: brain.clone(),
        hub: hub.clone(),
        revisions: revisions.clone(),
        artifacts: artifacts.clone(),
        view: view.clone(),
        tasks: tasks.clone(),
    });
    let board = StatusBoard::new(board::Sources {
        settings: settings.clone(),
        started: Timestamp(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)),
        brain: brain.clone(),
        revisions: revisions.clone(),
        artifacts: artifacts.clone(),
        view: view.clone(),
    });
    let jobs = Jobs::new(JobSources {
        cluster: settings.cluster.clone(),
        epoch,
        brain: brain.clone(),
        board: board.clone(),
        hub: hub.clone(),
        revisions: revisions.clone(),
        artifacts: artifacts.clone(),
        view: view.clone(),
        files: job_files.clone(),
        tasks: tasks.clone(),
    });
    let agents = AgentPrograms::open(settings.programs.clone());
    let driver = Driver {
        settings: settings.clone(),
        join_secret,
        machines: machines.clone(),
        brain: brain.clone(),
        hub: hub.clone(),
        revisions: revisions.clone(),
        goals: goals.clone(),
        jobs: jobs.clone(),
        view: view.clone(),
        agents: agents.clone(),
        telemetry: telemetry.clone(),
        tasks: tasks.clone(),
        stop: stop.clone(),
        client: client.subscribe(),
    };
    tasks.spawn(driver.run(effects));
    tasks.spawn(agents.clone().follow(stop.clone()));
    tasks.spawn(goals.follow_artifacts(stop.clone()));
    tasks.spawn(machines.clone().forward_changes(brain.clone(), stop.clone()));
    brain.send(Input::Started).await;
    resume(&settings, &brain, &revisions).await?;

    let head = Head {
        settings: settings.clone(),
        machines: machines.clone(),
        brain: brain.clone(),
        board,
        store,
        revisions: revisions.clone(),
        artifacts: artifacts.clone(),
        sessions: sessions.clone(),
        telemetry: telemetry.clone(),
        view,
        tasks: tasks.clone(),
        applying: Arc::new(Mutex::new(())),
        access: access.clone(),
        jobs,
        root_digest: authority.root_digest(),
        actor: Actor::Head,
    };
    let accepting = AccessService {
        access: access.clone(),
        authority: authority.clone(),
        cluster: settings.cluster.clone(),
        revisions: revisions.clone(),
        telemetry: telemetry.clone(),
    };
    let watched_brain = brain.clone();
    let scope = TaskScope { tasks: tasks.clone(), stop: stop.clone() };
    let downloads = AgentDownloads::new(agents, admission.clone(), brain.clone(), telemetry.clone(), scope);
    let bus = BusService {
        settings: settings.clone(),
        admission,
        authority: authority.clone(),
        revisions: revisions.clone(),
        epoch,
        proof: authority.prove_epoch(epoch).context("proving that this head leads")?,
        root: root.clone(),
        supersession: supersession.clone(),
        brain,
        hub: hub.clone(),
        sessions,
        artifacts,
        job_files,
        telemetry: telemetry.clone(),
        tasks: tasks.clone(),
    };
    let routes = Routes::new(bus_server::BusServer::new(bus.clone()).max_decoding_message_size(MAX_FRAME))
        .add_service(join_server::JoinServer::new(bus.clone()))
        .add_service(artifacts_server::ArtifactsServer::new(bus))
        .add_service(access_server::AccessServer::new(accepting))
        .add_service(admin_server::AdminServer::new(admin).max_decoding_message_size(MAX_FRAME));
    let router = routes.into_axum_router().merge(http::router(head.clone())).merge(agents::router(downloads));
    let router = router.layer(middleware::from_fn_with_state(access, authorize));
    let lines = Arc::new(LogRateLimiter::default());
    let refused = move |refused: Refused| {
        telemetry.refuse("handshake");
        if let Some(left_out) = lines.allow() {
            tracing::warn!(from = ?refused.from, left_out, "refused: {}", refused.reason);
        }
    };
    tasks.spawn(serve_tls(listener, identity.clone(), router, refused, stop.clone()));
    tasks.spawn(Renewal { authority, revisions, address, root, identity, client, own }.run(stop.clone()));
    tasks.spawn(head.clone().tidy(stop.clone()));
    ready.send_replace(Some(head));
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);

    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            () = gone.cancelled() => break Ok(()),
            error = &mut failed => {
                // What was decided is not stored, so nothing may be done in its name: start again from what is.
                break match error {
                    Ok(error) => Err(anyhow::Error::new(error)),
                    Err(_) => Err(anyhow::anyhow!("the brain's thread ended")),
                };
            }
            epoch = supersession.heard() => {
                break Err(anyhow::anyhow!("a node has seen epoch {}: this head's store is older than the cluster", epoch.0));
            }
            () = progress(&watched_brain, watchdog.unwrap_or(Duration::MAX)), if watchdog.is_some() => {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    };
    if !gone.is_cancelled() {
        tracing::info!("head stops; nodes go on");
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    hub.dismiss_all("the head stops");
    ready.send_replace(None);
    stop.cancel();
    tasks.close();
    let _ = tokio::time::timeout(SHUTDOWN, tasks.wait()).await;
    if gone.is_cancelled() {
        return abandon(&settings, &machines).await;
    }
    result
}

/// Returns after a pause, once the brain has answered: a timer alone would vouch for a brain that is stuck.
async fn progress(brain: &BrainHandle, pause: Duration) {
    tokio::time::sleep(pause).await;
    while tokio::time::timeout(PROGRESS_TIMEOUT, brain.query(|_| ())).await.is_err() {
        tracing::error!("the brain has not answered for {} s", PROGRESS_TIMEOUT.as_secs());
    }
}

/// The state was removed: nothing that runs can be accounted for any more, and no other head will come. The nodes end with
/// this head, where their processes can be told without any record.
async fn abandon(settings: &Settings, machines: &MachinesHandle) -> anyhow::Result<()> {
    tracing::error!("the head's state was removed while it ran: the nodes of {} end, and the head with them", settings.cluster);
    machines.provider_now().purge().await.context("ending the nodes")
}

/// A description that was stored when the head was killed, before the brain took it: it takes it now.
async fn resume(settings: &Settings, brain: &BrainHandle, revisions: &Revisions) -> anyhow::Result<()> {
    let known = brain.query(|brain| brain.spec().map_or(0, |s| s.revision)).await?;
    let Some((latest, _, planner)) = revisions.latest().filter(|(n, _, _)| *n > known) else { return Ok(()) };
    let (_, steps) = changes::compare(revisions.get(known).as_deref(), &planner);
    brain.send(Input::Specified { spec: settings.spec(&planner, latest, steps), actor: Actor::Head }).await;
    Ok(())
}

fn brain_config(settings: &Settings, provider: &dyn NodeProvider) -> Config {
    let capabilities = provider.capabilities();
    Config {
        heartbeat: settings.heartbeat_ms,
        visibility: capabilities.visibility.as_millis() as u64,
        can_restart_agent: capabilities.restart_agent,
        reboot_time: capabilities.reboot.map(|time| time.as_millis() as u64),
        machines_are_owned: capabilities.owned_machines,
        ..Config::default()
    }
}

/// The records to start from. The head's own node was made by the launcher, so it is launched from the beginning.
fn own_node(settings: &Settings, mut memory: Memory) -> Memory {
    let nodes = &mut memory.nodes;
    let id = NodeId::head();
    let known = nodes.iter().any(|n| n.id == id && n.generation == settings.generation);
    if !known {
        nodes.retain(|n| n.id != id);
        let now = Timestamp(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64));
        let mut record = NodeRecord::requested(id.clone(), settings.generation, NodeTypeName::head(), now);
        record.life = NodeState::Launched;
        record.address = Some(settings.address.clone());
        record.instance = settings.instance.clone();
        nodes.push(record);
    }
    memory
}

/// Renews the head's own certificate while it serves: when a third of its life is left, and when the root has certified
/// the head anew.
struct Renewal {
    authority: Authority,
    revisions: Revisions,
    address: IpAddr,
    root: rustls::pki_types::CertificateDer<'static>,
    identity: ServerIdentity,
    client: watch::Sender<Arc<rustls::ClientConfig>>,
    own: pki::Identity,
}

impl Renewal {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let pause = self.until_due().clamp(Duration::from_millis(500), RENEWAL_CHECK);
            let is_due = tokio::select! {
                () = stop.cancelled() => return,
                () = self.authority.replaced() => true,
                () = tokio::time::sleep(pause) => false,
            };
            if (is_due || self.until_due().is_zero())
                && let Err(error) = self.renew()
            {
                tracing::error!("cannot renew the head's certificate: {error:#}");
            }
        }
    }

    fn until_due(&self) -> Duration {
        let Some(Ok((begins, ends))) = self.own.chain.first().map(pki::validity) else { return Duration::ZERO };
        let made = begins + pki::BACKDATE.as_secs() as i64;
        // The description may want a shorter life by now.
        let life = (ends - made).min(self.revisions.certificate_lifetime().as_secs() as i64);
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64);
        Duration::from_secs((made + life * 2 / 3 - now).max(0) as u64)
    }

    fn renew(&mut self) -> anyhow::Result<()> {
        let own = self.authority.own(self.address, self.revisions.certificate_lifetime())?;
        self.identity.replace(&own)?;
        self.client.send_replace(driver::client_config(&self.root, &own)?);
        self.own = own;
        Ok(())
    }
}
