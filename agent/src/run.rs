//! The agent's body: everything that one node's agent runs, started and stopped in order.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::report::ServiceState;
use cloudtik_protocol::files::Presence;
use cloudtik_protocol::tls::ServerIdentity;
use cloudtik_protocol::{HEALTH_PORT, tls};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::Artifacts;
use crate::converge::Converger;
use crate::dialer::Dialer;
use crate::epoch::Epochs;
use crate::facts;
use crate::fetch::Source;
use crate::health::Health;
use crate::home::Home;
use crate::identity::NodeIdentity;
use crate::jobs::{JobContext, Jobs};
use crate::link::Link;
use crate::load::{Gpus, Meter, disk_free};
use crate::memory::{self, PendingKills};
use crate::process::end_marked;
use crate::reports::Reports;
use crate::service::ServiceContext;

/// The agent's own log is started afresh beyond this many bytes; the last one is kept.
const MAX_LOG: u64 = 8 << 20;
/// Between two looks at whether the node's directory is there.
const HOME_LOOK: Duration = Duration::from_secs(1);
/// How long tasks may take to end when the agent stops.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// Starts the agent in the background, with its output in its log.
pub fn detach(home: &Path) -> anyhow::Result<()> {
    let home = Home::new(&home.canonicalize().with_context(|| format!("there is no directory {}", home.display()))?);
    if std::fs::metadata(home.log()).is_ok_and(|m| m.len() > MAX_LOG) {
        std::fs::rename(home.log(), home.log().with_extension("log.1")).context("rotating the log")?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(home.log()).context("opening the log")?;
    let program = std::env::current_exe().context("finding this program")?;
    Command::new(program)
        .args(["run", "--lead-session", "--home"])
        .arg(home.path())
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the log")?)
        .stderr(log)
        .spawn()
        .context("starting the agent")?;
    Ok(())
}

pub fn main(home: &Path, lead_session: bool) -> anyhow::Result<()> {
    // Whatever started us may have had signals blocked; what we start must not inherit that.
    nix::sys::signal::SigSet::empty().thread_set_mask().context("unblocking signals")?;
    if lead_session {
        nix::unistd::setsid().context("leading a session")?;
    }
    cloudtik_protocol::logging::start();
    tls::install_crypto();
    if let Err(error) = cloudtik_protocol::transport::raise_file_limit() {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
    let home = Home::new(&home.canonicalize().with_context(|| format!("there is no directory {}", home.display()))?);
    let _lock = match lock(&home)? {
        Some(lock) => lock,
        None => {
            tracing::info!("another agent runs here already");
            return Ok(());
        }
    };
    // One thread: an agent mostly waits, and what computes (unpacking, writing) has threads of its own for a while.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(serve(home));
    // A thread that waits for another node's lock must not hold up the end.
    runtime.shutdown_background();
    if let Err(error) = &result {
        tracing::error!("{error:#}");
    }
    result
}

fn lock(home: &Home) -> anyhow::Result<Option<File>> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(home.lock()).context("opening the lock")?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        Err(std::fs::TryLockError::Error(error)) => return Err(error).context("locking"),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

async fn serve(home: Home) -> anyhow::Result<()> {
    let text = std::fs::read(home.bootstrap()).with_context(|| format!("reading {}", home.bootstrap().display()))?;
    let bootstrap: Bootstrap = serde_json::from_slice(&text).context("bootstrap.json is malformed")?;
    let address = match &bootstrap.address {
        Some(address) => address.clone(),
        None => own_address(&bootstrap.head)?,
    };
    let artifacts = bootstrap.artifacts.as_ref().map_or_else(|| home.artifacts(), PathBuf::from);
    let facts = facts::gather(home.path(), &artifacts, &bootstrap, &address);
    let identity = NodeIdentity::load(&home, &bootstrap, &address)?;
    let epochs = Epochs::load(&home.epoch(), identity.root(), &bootstrap.cluster).context("whose leadership counts")?;
    let gpus = Gpus::new();
    let health = Health::new(home.path(), identity.clock().clone(), Meter::new(bootstrap.resources, gpus.clone()), Arc::new(disk_free));
    let reports = Reports::new();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let linked = watch::Sender::new(false);
    // Where the machine is shared, its GPUs are not this node's.
    if bootstrap.resources.is_none() {
        let stop = stop.clone();
        tasks.spawn(async move { stop.run_until_cancelled(gpus.follow()).await });
    }
    let pending_kills = PendingKills::default();
    {
        let (stop, watching) = (stop.clone(), memory::watch(home.clone(), pending_kills.clone()));
        tasks.spawn(async move { stop.run_until_cancelled(watching).await });
    }
    let from = bootstrap.address.as_ref().and_then(|a| a.parse().ok());
    let dialer = Dialer { head: bootstrap.head.clone(), from, cluster: bootstrap.cluster.clone(), identity: identity.clone() };
    let source = Source::head(dialer.clone(), linked.subscribe());
    let around = ServiceContext {
        home: home.clone(),
        reports: reports.clone(),
        artifacts: Artifacts::new(&artifacts, source.clone()),
        tasks: tasks.clone(),
    };
    let is_linked = linked.subscribe();
    let converger = Converger::start(&home, around, bootstrap.pinned.clone());
    let jobs = Jobs::start(JobContext { home: home.clone(), reports: reports.clone(), source, tasks: tasks.clone(), stop: stop.clone() });
    let work = Work { converger: converger.clone(), jobs: jobs.clone(), reports: reports.clone() };
    let listen: SocketAddr = SocketAddr::new(address.parse().with_context(|| format!("{address:?} is no address"))?, HEALTH_PORT);
    tasks.spawn(serve_health(listen, health.clone(), identity.clone(), bootstrap.clone(), reports.clone(), stop.clone()));
    let link = Link {
        home: home.clone(),
        bootstrap: bootstrap.clone(),
        facts,
        identity,
        converger: converger.clone(),
        jobs: jobs.clone(),
        reports,
        pending_kills,
        health,
        epochs,
        dialer,
        linked,
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    tasks.spawn(link.run());
    tracing::info!(node = %bootstrap.node, generation = bootstrap.generation.0, %address, "agent started");
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let patience = bootstrap.dead_man_ms.map(Duration::from_millis);
    let presence = Presence::of(home.path(), &["bootstrap.json", "agent.lock"]).context("watching the node's directory")?;
    let mut gone = std::pin::pin!(home_removed(presence));
    let mut deserted = std::pin::pin!(deserted(is_linked, patience));
    loop {
        tokio::select! {
            () = &mut deserted => {
                end_node(&work, &bootstrap).await;
                tracing::info!("agent stops");
                break;
            }
            () = &mut gone => {
                end_without_home(&work, &bootstrap).await;
                break;
            }
            _ = terminate.recv() => break tell_stop(),
            _ = interrupt.recv() => break tell_stop(),
            () = tokio::time::sleep(watchdog.unwrap_or(Duration::MAX)), if watchdog.is_some() => {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    converger.release();
    jobs.release();
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(SHUTDOWN, tasks.wait()).await.is_err() {
        tracing::warn!("{} tasks did not end in time", tasks.len());
    }
    Ok(())
}

fn tell_stop() {
    tracing::info!("agent stops; the node's services and jobs go on as they are");
}

/// Returns when the head has not been heard for so long that the node is to end.
async fn deserted(mut linked: watch::Receiver<bool>, patience: Option<Duration>) {
    let Some(patience) = patience else { return std::future::pending().await };
    loop {
        if linked.wait_for(|linked| !*linked).await.is_err() {
            return std::future::pending().await;
        }
        match tokio::time::timeout(patience, linked.wait_for(|linked| *linked)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// What the node runs.
struct Work {
    converger: Converger,
    jobs: Jobs,
    reports: Reports,
}

impl Work {
    /// Ends all of it but the head, for so long at most, or for as long as it may take.
    async fn end(&self, limit: Option<Duration>) {
        let longest = self.converger.stop_all().max(self.jobs.stop_all());
        let (mut services, mut jobs) = (self.reports.subscribe(), self.reports.subscribe_jobs());
        let stopped = async {
            let _ = services.wait_for(|all| all.values().all(|s| s.state == ServiceState::Stopped || s.key.runtime.is_own())).await;
            let _ = jobs.wait_for(|all| all.values().all(|job| job.state.pid().is_none())).await;
        };
        if tokio::time::timeout(limit.map_or(longest + SHUTDOWN, |limit| limit.min(longest)), stopped).await.is_err() {
            tracing::warn!("not everything has stopped in time");
        }
    }
}

/// Lets the node's work go, and shuts its machine down if that is the node's own: nobody may be paying attention, and
/// somebody pays. The goal stays on the disk, for a head that comes back after all.
async fn end_node(work: &Work, bootstrap: &Bootstrap) {
    let silent = bootstrap.dead_man_ms.unwrap_or(0) / 1_000;
    tracing::warn!("no contact with the head for {silent} s: this node stops its services and jobs and ends");
    work.end(None).await;
    let Some((program, arguments)) = bootstrap.power_off.split_first() else { return };
    if let Err(error) = tokio::process::Command::new(program).args(arguments).status().await {
        tracing::error!("cannot shut the machine down: {program}: {error}");
    }
}

/// Returns when the node's directory was removed.
async fn home_removed(presence: Presence) {
    let presence = Arc::new(presence);
    loop {
        tokio::time::sleep(HOME_LOOK).await;
        let looked = presence.clone();
        if tokio::task::spawn_blocking(move || looked.is_gone()).await.unwrap_or(false) {
            return;
        }
    }
}

/// Without its directory the node can keep nothing and start nothing: its services end, and its agent says goodbye, so that
/// the head replaces it. The head itself, which has a directory of its own, goes on.
async fn end_without_home(work: &Work, bootstrap: &Bootstrap) {
    tracing::error!("the node's directory was removed: its services end, and its agent");
    work.end(Some(SHUTDOWN)).await;
    if !bootstrap.node.is_head() {
        end_marked();
    }
}

/// Serves the health port once there is a certificate to serve it with.
async fn serve_health(
    listen: SocketAddr,
    health: Health,
    identity: NodeIdentity,
    bootstrap: Bootstrap,
    reports: Reports,
    stop: CancellationToken,
) {
    let mut certificates = identity.subscribe();
    let first = tokio::select! {
        () = stop.cancelled() => return,
        first = certificates.wait_for(Option::is_some) => match first {
            Ok(first) => first.clone(),
            Err(_) => return,
        },
    };
    let Some(first) = first else { return };
    let server = match ServerIdentity::new(&bootstrap.cluster, identity.root(), &first, identity.clock()) {
        Ok(server) => server,
        Err(error) => return tracing::error!("no health port: {error}"),
    };
    let listener = loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => tracing::error!("cannot listen on {listen}, trying again: {error}"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    };
    let renewing = async {
        while certificates.changed().await.is_ok() {
            let renewed = certificates.borrow_and_update().clone();
            if let Some(Err(error)) = renewed.map(|renewed| server.replace(&renewed)) {
                tracing::error!("the renewed certificate is unusable: {error}");
            }
        }
    };
    tokio::select! {
        () = health.serve(listener, server.clone(), reports, stop.clone()) => {}
        () = renewing => {}
    }
}

/// The address of this machine that the head is reached from.
fn own_address(head: &str) -> anyhow::Result<String> {
    let way = |to: SocketAddr| {
        let any = if to.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        // Connecting a datagram socket sends nothing; it only chooses the way.
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    };
    // A name may stand for addresses of both kinds, of which this machine reaches one.
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for to in head.to_socket_addrs().with_context(|| format!("cannot resolve {head}"))? {
        match way(to) {
            Ok(address) if !address.is_unspecified() => return Ok(address.to_string()),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last).with_context(|| format!("no route to the head, {head}"))
}
