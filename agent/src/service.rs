//! One service: prepared, started under a shim, probed, restarted and stopped, as its goal says.
//!
//! ```text
//! Waiting → Fetching → Starting → Ready ⇄ Unhealthy        (held, artifacts, process, readiness, health)
//!               ↑          └────────┴──→ Backoff ─┐        (the process ended)
//!               └─────────────────────────────────┘
//! any → Stopping → Stopped                                 (no longer in the goal, or to be restarted changed)
//! ```

mod drain;
mod files;
mod tail;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use cloudtik_model::demand::Quantity;
use cloudtik_model::report::{FailureCause, ServiceFailure, ServiceReport, ServiceState};
use cloudtik_model::{ServiceKey, Timestamp, goal};
use cloudtik_protocol::logging::plain;
use cloudtik_protocol::pki::sha256_hex;
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::artifacts::Artifacts;
use crate::cgroup::{self, Groups};
use crate::clock::now;
use crate::environment::environment;
use crate::gauge;
use crate::home::Home;
use crate::probe::{Unmet, probe};
use crate::reports::Reports;
use crate::shim::{Launched, Run, State, launch};

/// On top of a service's own grace, before its shim is given up.
const STOP_SLACK: Duration = Duration::from_secs(5);
/// Failed health probes, in multiples of what makes a service unhealthy, until it is restarted.
const UNHEALTHY_PATIENCE: u32 = 4;
/// A service that is not ready after this shows what its log says.
const SLOW_START: Duration = Duration::from_secs(20);
/// Between two looks at the log of a service that is slow to start.
const LOG_LOOK: Duration = Duration::from_secs(10);

/// What one service is to be.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// None: not to run any more.
    pub service: Option<Arc<goal::Service>>,
    /// What it needs to be fetched.
    pub artifacts: Vec<goal::Artifact>,
    /// Of the goal that says so.
    pub version: u64,
}

/// What services share.
#[derive(Debug, Clone)]
pub struct ServiceContext {
    pub home: Home,
    pub reports: Reports,
    pub artifacts: Artifacts,
    /// One task for each service.
    pub tasks: TaskTracker,
}

pub struct ServiceTask {
    key: ServiceKey,
    directory: PathBuf,
    desired: watch::Receiver<Desired>,
    around: ServiceContext,
    running: Option<Running>,
    /// Ends in a row.
    failures: u32,
    starts: u32,
    state: ServiceState,
    detail: String,
    since: Timestamp,
    /// Of the goal that was taken last: what is reported is meant by it.
    version: u64,
    /// The numbers that it gave last.
    gauges: BTreeMap<String, Quantity>,
    /// Why it did not let all of its work go before it was stopped for good.
    left_work: String,
    /// How it failed last, until it has worked for a while.
    failure: Option<ServiceFailure>,
    /// The last lines of its log while it fails, and when they were read.
    log: (Vec<String>, Option<Instant>),
    /// What it was last to be: how it is drained is asked for when it is in no goal any more.
    last: Option<Arc<goal::Service>>,
}

struct Running {
    state: State,
    started: Instant,
    ready: bool,
    failed_probes: u32,
    /// Bytes of the log before this process; 0 if an earlier agent started it.
    log_from: u64,
}

impl ServiceTask {
    pub fn new(key: ServiceKey, desired: watch::Receiver<Desired>, around: ServiceContext) -> Self {
        let directory = around.home.service(&key);
        let since = now();
        Self {
            key,
            directory,
            desired,
            around,
            running: None,
            failures: 0,
            starts: 0,
            state: ServiceState::Waiting,
            detail: String::new(),
            since,
            version: 0,
            gauges: BTreeMap::new(),
            last: None,
            left_work: String::new(),
            failure: None,
            log: (Vec::new(), None),
        }
    }

    /// Runs until the service is not to run any more and does not, or until its sender is gone (the agent ends), which
    /// leaves the process as it is.
    pub async fn run(mut self) {
        self.adopt().await;
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let Some(service) = desired.service else {
                self.version = desired.version;
                if self.running.is_some() {
                    if self.drain().await {
                        self.stop("no longer in the goal").await;
                    }
                    // It may be in the goal again by now.
                    continue;
                }
                let left = std::mem::take(&mut self.left_work);
                self.report(ServiceState::Stopped, &left);
                return;
            };
            let last = self.last.replace(service.clone());
            if let (Some(last), Some(running)) = (last, &mut self.running) {
                // What another check says is not known yet.
                running.ready &= last.readiness == service.readiness;
                if last.health != service.health {
                    running.failed_probes = 0;
                }
            }
            let changed = self.running.as_ref().is_some_and(|r| r.state.identity != identity(&service));
            // What goes on by an earlier goal, because what the present one needs is not there yet, is not what was asked for.
            if !(changed && service.hold) {
                self.version = desired.version;
            }
            let result = if self.running.is_some() && changed && !service.hold {
                self.stop("its goal changed").await;
                Ok(())
            } else if self.running.is_some() {
                self.attend(&service).await
            } else if service.hold {
                self.report(ServiceState::Waiting, &format!("for {}", service.waits_for));
                self.changed().await
            } else {
                self.prepare_and_start(&service, &desired.artifacts).await
            };
            if let Err(Ended) = result {
                return;
            }
        }
    }

    /// Takes over the process that an earlier agent started.
    async fn adopt(&mut self) {
        let (directory, key) = (self.directory.clone(), self.key.clone());
        if let Ok(Some(state)) = tokio::task::spawn_blocking(move || files::adopt(&directory, &key)).await {
            self.starts = state.starts;
            self.running = Some(Running { state, started: Instant::now(), ready: false, failed_probes: 0, log_from: 0 });
        }
    }

    /// Waits until the goal changes.
    async fn changed(&mut self) -> Result<(), Ended> {
        self.desired.changed().await.map_err(|_| Ended)
    }

    async fn prepare_and_start(&mut self, service: &goal::Service, artifacts: &[goal::Artifact]) -> Result<(), Ended> {
        for artifact in artifacts {
            let progress = watch::Sender::new(String::new());
            let mut seen = progress.subscribe();
            let store = self.around.artifacts.clone();
            let fetch = store.ensure(artifact, progress);
            tokio::pin!(fetch);
            self.report(ServiceState::Fetching, &artifact.name);
            loop {
                tokio::select! {
                    result = &mut fetch => {
                        if let Err(error) = result {
                            let why = plain(&format!("{}: {error:#}", artifact.name));
                            tracing::warn!(service = %self.key, "cannot fetch {why}");
                            return self.back_off(service, FailureCause::NotStarted { why: format!("cannot fetch {why}") }).await;
                        }
                        break;
                    }
                    Ok(()) = seen.changed() => {
                        let far = seen.borrow_and_update().clone();
                        self.report(ServiceState::Fetching, &format!("{}: {far}", artifact.name));
                    }
                    changed = self.desired.changed() => return changed.map_err(|_| Ended),
                }
            }
        }
        self.report(ServiceState::Starting, "");
        match self.start(service).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let why = plain(&format!("{error:#}"));
                tracing::warn!(service = %self.key, "cannot start: {why}");
                self.back_off(service, FailureCause::NotStarted { why }).await
            }
        }
    }

    async fn start(&mut self, service: &goal::Service) -> anyhow::Result<()> {
        // A node's directory that was deleted does not come back.
        let home = self.around.home.path().to_owned();
        if !tokio::fs::metadata(&home).await.is_ok_and(|m| m.is_dir()) {
            bail!("the node's directory {} is gone", home.display());
        }
        let (directory, goal) = (self.directory.clone(), service.clone());
        let name = format!("{}.{}", self.key.runtime, self.key.service);
        // What the head leaves when it ends, such as agents that it started, must not end with a group.
        let groups = if self.key.runtime.is_own() && !service.limits.any() {
            Groups::default()
        } else {
            cgroup::limit(&self.around.home, name, service.limits.clone()).await
        };
        let run = Run {
            command: service.command.clone(),
            environment: self.environment(service),
            stop_signal: service.stop.signal,
            stop_grace_ms: service.stop.grace_ms,
            log_max_bytes: service.log.max_bytes,
            log_keep: service.log.keep,
            groups,
            leaves_children: self.key.runtime.is_own(),
            starts: self.starts + 1,
            identity: identity(service),
            artifacts: service.artifacts.clone(),
            once: None,
        };
        let writing = move || files::write(&directory, &goal, &run).map(|()| tail::length(&directory));
        let log_from = tokio::task::spawn_blocking(writing).await??;
        match launch(&self.directory).await? {
            Launched::Started | Launched::Occupied => {}
            Launched::Begun => bail!("its shim takes it for a run that happens once"),
            Launched::Failed(why) => bail!("{why}"),
        }
        let directory = self.directory.clone();
        let Some(state) = tokio::task::spawn_blocking(move || files::read_state(&directory)).await? else {
            self.adopt().await;
            bail!("the shim's state is unreadable");
        };
        self.starts += 1;
        tracing::info!(service = %self.key, pid = state.process.pid, "started");
        self.running = Some(Running { state, started: Instant::now(), ready: false, failed_probes: 0, log_from });
        Ok(())
    }

    fn environment(&self, service: &goal::Service) -> Vec<(String, String)> {
        environment(&self.directory, &service.environment).into_iter().collect()
    }

    /// Probes the running process until it ends or the goal changes.
    async fn attend(&mut self, service: &goal::Service) -> Result<(), Ended> {
        let environment = self.environment(service);
        let Some(running) = &self.running else { return Ok(()) };
        let shim = running.state.shim;
        let ended = shim.ended();
        tokio::pin!(ended);
        // The report takes the goal's version at once: what runs is what is wanted.
        let state = match (running.ready, &service.readiness) {
            (true, _) | (false, None) if running.failed_probes == 0 => ServiceState::Ready,
            (true, _) => ServiceState::Unhealthy,
            _ => ServiceState::Starting,
        };
        if let Some(running) = &mut self.running {
            running.ready |= state == ServiceState::Ready;
        }
        self.report(state, "");
        let mut next = Instant::now();
        let settled = Duration::from_millis(service.restart.settled_ms);
        let latest = watch::Sender::new(self.gauges.clone());
        let mut numbers = latest.subscribe();
        let reading = gauge::follow(&service.gauges, latest);
        tokio::pin!(reading);
        loop {
            let Some(running) = &self.running else { return Ok(()) };
            let current = if running.ready { service.health.as_ref() } else { service.readiness.as_ref() };
            let look = async {
                let Some(current) = current else { return std::future::pending().await };
                tokio::time::sleep_until(next).await;
                probe(current, &environment).await
            };
            tokio::select! {
                _ = &mut ended => return self.ended(service).await,
                changed = self.desired.changed() => return changed.map_err(|_| Ended),
                () = &mut reading, if running.ready => {}
                // It has worked for a while: what was before is over.
                () = tokio::time::sleep_until(running.started + settled), if running.ready && self.failure.is_some() => {
                    (self.failure, self.log) = (None, (Vec::new(), None));
                    self.report(self.state, &self.detail.clone());
                }
                Ok(()) = numbers.changed() => {
                    self.gauges.clone_from(&numbers.borrow_and_update());
                    self.report(self.state, &self.detail.clone());
                }
                result = look => {
                    let current = current.expect("a probe was made");
                    next = Instant::now() + Duration::from_millis(current.interval_ms);
                    if self.judge(result, current, service).await {
                        self.stop("its health checks failed for too long").await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes a probe's result in; true if the service is to be restarted for it.
    async fn judge(&mut self, result: Result<(), Unmet>, probe: &goal::Probe, service: &goal::Service) -> bool {
        let Some(running) = &mut self.running else { return false };
        let patience = probe.failures;
        match result {
            Ok(()) => {
                let is_slow_start = !running.ready;
                running.ready = true;
                running.failed_probes = 0;
                // What it said while it was slow, or unhealthy, is of no use any more.
                if self.failure.is_none() && (is_slow_start || self.state != ServiceState::Ready) {
                    self.log = (Vec::new(), None);
                }
                self.report(ServiceState::Ready, "");
            }
            Err(unmet) if !running.ready => {
                let (started, log_from) = (running.started, running.log_from);
                let is_due = self.log.1.is_none_or(|at| at.elapsed() >= LOG_LOOK);
                if started.elapsed() >= SLOW_START && is_due {
                    self.read_log(log_from, service).await;
                }
                self.report(ServiceState::Starting, &unmet.waiting(&probe.waiting));
            }
            Err(unmet) => {
                running.failed_probes += 1;
                let (failed, log_from, seen) = (running.failed_probes, running.log_from, unmet.to_string());
                if failed >= patience {
                    if self.state != ServiceState::Unhealthy {
                        self.read_log(log_from, service).await;
                    }
                    self.report(ServiceState::Unhealthy, &seen);
                }
                if failed < patience.saturating_mul(UNHEALTHY_PATIENCE) {
                    return false;
                }
                self.read_log(log_from, service).await;
                self.failure = Some(ServiceFailure { cause: FailureCause::Unhealthy { seen }, at: now(), restart_in_ms: 0 });
                return true;
            }
        }
        false
    }

    async fn ended(&mut self, service: &goal::Service) -> Result<(), Ended> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let (directory, shim) = (self.directory.clone(), running.state.shim);
        let cause = match tokio::task::spawn_blocking(move || files::exit(&directory, shim)).await {
            Ok(Some(exit)) => FailureCause::Crashed { exit_code: exit.code, how: exit.to_string() },
            _ => FailureCause::Crashed { exit_code: None, how: "its shim was killed, which ends it".to_owned() },
        };
        if running.started.elapsed() >= Duration::from_millis(service.restart.settled_ms) {
            self.failures = 0;
        }
        tracing::warn!(service = %self.key, "{cause}");
        self.read_log(running.log_from, service).await;
        self.back_off(service, cause).await
    }

    async fn read_log(&mut self, from: u64, service: &goal::Service) {
        let (directory, service) = (self.directory.clone(), service.clone());
        let reading = tokio::task::spawn_blocking(move || tail::last_lines(&directory, from, &service));
        self.log = (reading.await.unwrap_or_default(), Some(Instant::now()));
    }

    /// Waits before the next start, longer each time in a row.
    async fn back_off(&mut self, service: &goal::Service, cause: FailureCause) -> Result<(), Ended> {
        let policy = &service.restart;
        let delay = policy.first_ms.saturating_mul(1 << self.failures.min(20)).min(policy.longest_ms);
        self.failures += 1;
        let detail = cause.to_string();
        self.failure = Some(ServiceFailure { cause, at: now(), restart_in_ms: delay });
        self.report(ServiceState::Backoff, &detail);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(delay)) => Ok(()),
            changed = self.desired.changed() => changed.map_err(|_| Ended),
        }
    }

    async fn stop(&mut self, why: &str) {
        let Some(running) = self.running.take() else { return };
        self.report(ServiceState::Stopping, why);
        tracing::info!(service = %self.key, pid = running.state.process.pid, "stopping: {why}");
        let grace = running.state.stop_grace_ms;
        let _ = running.state.shim.signal(Signal::SIGTERM);
        let patience = Duration::from_millis(grace) + STOP_SLACK;
        if tokio::time::timeout(patience, running.state.shim.ended()).await.is_err() {
            tracing::error!(service = %self.key, "its shim does not end; it is killed");
            let _ = running.state.shim.signal(Signal::SIGKILL);
            let _ = running.state.process.kill_group();
        }
    }

    /// What the service says and what is said of it goes to people: without its secrets.
    fn without_secrets(&self, text: &str) -> String {
        match &self.last {
            Some(service) if !text.is_empty() => tail::without_secrets(text, service),
            _ => text.to_owned(),
        }
    }

    fn shown(&self, cause: FailureCause) -> FailureCause {
        match cause {
            FailureCause::Unhealthy { seen } => FailureCause::Unhealthy { seen: self.without_secrets(&seen) },
            FailureCause::NotStarted { why } => FailureCause::NotStarted { why: self.without_secrets(&why) },
            crashed @ FailureCause::Crashed { .. } => crashed,
        }
    }

    fn report(&mut self, state: ServiceState, detail: &str) {
        if state != self.state {
            self.state = state;
            self.since = now();
        }
        self.detail = self.without_secrets(detail);
        let failure = self.failure.clone().map(|failure| ServiceFailure { cause: self.shown(failure.cause), ..failure });
        if state != ServiceState::Ready {
            self.gauges.clear();
        }
        self.around.reports.put(ServiceReport {
            key: self.key.clone(),
            state,
            detail: self.detail.clone(),
            pid: self.running.as_ref().map(|r| r.state.process.pid as u32),
            restarts: self.starts.saturating_sub(1),
            since: self.since,
            goal_version: self.version,
            gauges: self.gauges.clone(),
            failure,
            log: self.log.0.clone(),
        });
    }
}

/// The agent ends; the service goes on without it.
struct Ended;

/// What a process was started from, in short.
fn identity(service: &goal::Service) -> String {
    sha256_hex(service.process_identity().as_bytes())
}
