//! The node's goal: kept on its disk, and turned into one task per service.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_model::{ServiceKey, goal};
use cloudtik_protocol::files::write_atomically;
use cloudtik_protocol::logging::plain;
use tokio::sync::watch;

use crate::home::Home;
use crate::service::{Desired, ServiceContext, ServiceTask};

/// A cheap handle on the node's services.
#[derive(Debug, Clone)]
pub struct Converger {
    home: Home,
    around: ServiceContext,
    /// Services that belong to the node itself.
    pinned: Arc<Vec<goal::Service>>,
    state: Arc<Mutex<Tasks>>,
}

#[derive(Debug, Default)]
struct Tasks {
    version: u64,
    /// The stored goal could not be read, and none has come since.
    is_unknown: bool,
    senders: BTreeMap<ServiceKey, watch::Sender<Desired>>,
}

impl Converger {
    /// Starts with the goal that is on the disk: a node goes on without its head.
    pub fn start(home: &Home, around: ServiceContext, pinned: Vec<goal::Service>) -> Self {
        let converger = Self { home: home.clone(), around, pinned: Arc::new(pinned), state: Arc::default() };
        let stored = match fs::read(home.goal()) {
            Ok(text) => serde_json::from_slice::<goal::Goal>(&text).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        match stored {
            Ok(stored) => {
                converger.adopt_leftovers(stored.as_ref());
                converger.apply(stored.as_ref());
            }
            Err(error) => {
                // Unknown is not nothing: what runs goes on until the head says what is to run.
                tracing::error!("the stored goal cannot be read; what runs goes on until the head's comes: {error}");
                converger.lock().is_unknown = true;
                converger.apply(None);
            }
        }
        converger
    }

    /// The version of the goal that is being worked towards; 0 without one.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Takes a goal: on the disk first, then towards it. Older ones than the present are ignored; the present one may
    /// come again with more in it (an artifact that has arrived at the head).
    pub async fn take(&self, goal: goal::Goal) -> Result<(), String> {
        if goal.version < self.version() {
            return Ok(());
        }
        let (path, text) = (self.home.goal(), serde_json::to_vec(&goal).map_err(|e| e.to_string())?);
        let written = tokio::task::spawn_blocking(move || write_atomically(&path, &text, 0o600)).await;
        written.map_err(|e| e.to_string())?.map_err(|e| plain(&format!("cannot write the goal: {e}")))?;
        self.apply(Some(&goal));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.state.lock().expect("nothing panics while holding the lock")
    }

    fn apply(&self, goal: Option<&goal::Goal>) {
        if goal.is_some() && std::mem::take(&mut self.lock().is_unknown) {
            self.adopt_leftovers(goal);
        }
        let mut tasks = self.lock();
        tasks.version = goal.map_or(tasks.version, |g| g.version);
        let version = tasks.version;
        let artifacts = goal.map(|g| g.artifacts.as_slice()).unwrap_or_default();
        let wanted: BTreeMap<&ServiceKey, &goal::Service> =
            self.pinned.iter().chain(goal.iter().flat_map(|g| &g.services)).map(|s| (&s.key, s)).collect();
        for (key, service) in &wanted {
            let artifacts = artifacts.iter().filter(|a| service.artifacts.contains(&a.digest)).cloned().collect();
            let desired = Desired { service: Some(Arc::new((*service).clone())), artifacts, version };
            match tasks.senders.get(*key).filter(|sender| !sender.is_closed()) {
                Some(sender) => {
                    sender.send_replace(desired);
                }
                None => {
                    let (sender, receiver) = watch::channel(desired);
                    self.around.tasks.spawn(ServiceTask::new((*key).clone(), receiver, self.around.clone()).run());
                    tasks.senders.insert((*key).clone(), sender);
                }
            }
        }
        let unwanted: Vec<ServiceKey> = tasks.senders.keys().filter(|k| !wanted.contains_key(k)).cloned().collect();
        for key in unwanted {
            let sender = &tasks.senders[&key];
            if sender.is_closed() {
                // It has stopped, and that was reported under an earlier goal.
                tasks.senders.remove(&key);
                self.around.reports.remove(&key);
            } else {
                sender.send_replace(Desired { service: None, artifacts: Vec::new(), version });
            }
        }
    }

    /// Services that run from an earlier goal and are in none any more: they are tasks too, so that they are stopped.
    fn adopt_leftovers(&self, goal: Option<&goal::Goal>) {
        let known: BTreeSet<&ServiceKey> = self.pinned.iter().chain(goal.iter().flat_map(|g| &g.services)).map(|s| &s.key).collect();
        let Ok(runtimes) = fs::read_dir(self.home.services()) else { return };
        for runtime in runtimes.flatten() {
            let Ok(services) = fs::read_dir(runtime.path()) else { continue };
            for service in services.flatten() {
                let name = format!("{}/{}", runtime.file_name().to_string_lossy(), service.file_name().to_string_lossy());
                let Ok(key) = name.parse::<ServiceKey>() else { continue };
                if !known.contains(&key) && service.path().join(crate::shim::STATE_FILE).exists() {
                    let (sender, receiver) = watch::channel(Desired::default());
                    self.around.tasks.spawn(ServiceTask::new(key.clone(), receiver, self.around.clone()).run());
                    self.lock().senders.insert(key, sender);
                }
            }
        }
    }

    /// Stops everything that is not the node's own, without forgetting the goal; returns how long that may take.
    pub fn stop_all(&self) -> Duration {
        let tasks = self.lock();
        let mut longest = Duration::ZERO;
        for (_, sender) in tasks.senders.iter().filter(|(key, _)| !key.runtime.is_own()) {
            sender.send_if_modified(|desired| {
                let Some(service) = desired.service.take() else { return false };
                let drain = service.drain.as_ref().map_or(0, |d| d.timeout_ms);
                longest = longest.max(Duration::from_millis(drain.saturating_add(service.stop.grace_ms)));
                true
            });
        }
        longest
    }

    /// Ends the tasks and leaves the processes.
    pub fn release(&self) {
        self.lock().senders.clear();
    }
}
