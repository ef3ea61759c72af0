//! A node's agent and its services, as far as the head can tell.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::Session;
use cloudtik_model::demand::Quantity;
use cloudtik_model::report::{Facts, Load, ServiceReport, ServiceState};
use cloudtik_model::{Epoch, Generation, InstanceId, NodeId, NodeTypeName, Resources, ServiceKey, Timestamp};

#[derive(Debug, Clone)]
pub struct Agent {
    pub node: NodeId,
    pub generation: Generation,
    pub node_type: NodeTypeName,
    pub instance: InstanceId,
    pub key: String,
    pub joined: bool,
    pub link: Option<Session>,
    /// The process is gone until it is restarted.
    pub dead: bool,
    /// It does nothing until then (paused, or its machine hangs).
    pub frozen_until: u64,
    /// Nothing reaches it, and nothing of it arrives, until then.
    pub cut_until: u64,
    /// Since when it has been alive, unpaused and reachable.
    pub well_since: u64,
    /// When a head last heard it.
    pub heard: u64,
    /// Until when something was wrong with the node itself, and not with the head or its network.
    pub own_fault_until: u64,
    pub epoch: Epoch,
    pub version: u64,
    pub revision: u64,
    /// As it was last said.
    pub load: Option<Load>,
    /// It works, where no scenario says how much.
    pub busy: bool,
    /// Whether it worked, as a head heard last.
    pub heard_busy: bool,
    /// Numbers that its services give, by service.
    pub signals: BTreeMap<ServiceKey, BTreeMap<String, Quantity>>,
    pub services: BTreeMap<ServiceKey, Service>,
}

#[derive(Debug, Clone)]
pub struct Service {
    pub state: ServiceState,
    /// Changes with every start of the process.
    pub process: u32,
    /// Starts after the first.
    pub restarts: u32,
}

impl Agent {
    pub fn is_well(&self, now: u64) -> bool {
        !self.dead && self.frozen_until <= now && self.cut_until <= now
    }

    pub fn facts(&self, resources: Resources) -> Facts {
        Facts {
            agent_version: "simulated".to_owned(),
            cpus: resources.cpus,
            memory: resources.memory,
            gpus: resources.gpus,
            address: "10.0.0.1".to_owned(),
            health_port: 7071,
            ..Facts::default()
        }
    }

    pub fn reports(&self, now: u64) -> Vec<ServiceReport> {
        let report = |(key, service): (&ServiceKey, &Service)| ServiceReport {
            key: key.clone(),
            state: service.state,
            detail: String::new(),
            pid: Some(service.process),
            restarts: service.restarts,
            since: Timestamp(now),
            goal_version: self.version,
            gauges: self.signals.get(key).cloned().unwrap_or_default(),
            failure: None,
            log: Vec::new(),
        };
        self.services.iter().map(report).collect()
    }

    /// Takes a goal; returns the services that begin to start. A head whose leadership is over is refused.
    pub fn take_goal(
        &mut self,
        epoch: Epoch,
        version: u64,
        placed: &BTreeSet<ServiceKey>,
        start: &BTreeSet<ServiceKey>,
        next_process: &mut u32,
    ) -> Option<Vec<ServiceKey>> {
        if epoch < self.epoch {
            return None;
        }
        self.epoch = epoch;
        if version < self.version {
            return Some(Vec::new());
        }
        self.version = version;
        for (key, service) in &mut self.services {
            if !placed.contains(key) {
                service.state = ServiceState::Stopped;
            }
        }
        let mut starting = Vec::new();
        for key in placed {
            let known = self.services.get(key).map(|s| s.state);
            let runs =
                matches!(known, Some(ServiceState::Starting | ServiceState::Ready | ServiceState::Backoff | ServiceState::Unhealthy));
            if runs {
                continue;
            }
            let state = if start.contains(key) { ServiceState::Starting } else { ServiceState::Waiting };
            if state == ServiceState::Starting {
                *next_process += 1;
                starting.push(key.clone());
            }
            let restarts = self.services.get(key).map_or(0, |service| service.restarts + 1);
            self.services.insert(key.clone(), Service { state, process: *next_process, restarts });
        }
        Some(starting)
    }
}
