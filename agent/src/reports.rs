//! The latest of every service and job, for the link to send and for `/metrics` to show.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloudtik_model::job::JobReport;
use cloudtik_model::report::ServiceReport;
use cloudtik_model::{JobId, ServiceKey};
use tokio::sync::watch;

pub type Services = BTreeMap<ServiceKey, ServiceReport>;
pub type Jobs = BTreeMap<JobId, JobReport>;

/// A cheap handle on the node's reports.
#[derive(Debug, Clone)]
pub struct Reports {
    services: Arc<watch::Sender<Services>>,
    jobs: Arc<watch::Sender<Jobs>>,
}

impl Reports {
    pub fn new() -> Self {
        Self { services: Arc::new(watch::Sender::new(BTreeMap::new())), jobs: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    pub fn put(&self, report: ServiceReport) {
        put(&self.services, report.key.clone(), report);
    }

    pub fn remove(&self, key: &ServiceKey) {
        self.services.send_if_modified(|all| all.remove(key).is_some());
    }

    pub fn subscribe(&self) -> watch::Receiver<Services> {
        self.services.subscribe()
    }

    pub fn latest(&self) -> Services {
        self.services.borrow().clone()
    }

    pub fn put_job(&self, report: JobReport) {
        put(&self.jobs, report.id, report);
    }

    pub fn remove_job(&self, id: JobId) {
        self.jobs.send_if_modified(|all| all.remove(&id).is_some());
    }

    pub fn subscribe_jobs(&self) -> watch::Receiver<Jobs> {
        self.jobs.subscribe()
    }

    pub fn latest_jobs(&self) -> Jobs {
        self.jobs.borrow().clone()
    }
}

fn put<K: Ord, R: PartialEq + Clone>(all: &watch::Sender<BTreeMap<K, R>>, key: K, report: R) {
    all.send_if_modified(|all| all.insert(key, report.clone()).as_ref() != Some(&report));
}
