//! The latest of every service, for the link to send and for `/metrics` to show.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloudtik_model::ServiceKey;
use cloudtik_model::report::ServiceReport;
use tokio::sync::watch;

/// A cheap handle on the node's reports.
#[derive(Debug, Clone)]
pub struct Reports(Arc<watch::Sender<BTreeMap<ServiceKey, ServiceReport>>>);

impl Reports {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }

    pub fn put(&self, report: ServiceReport) {
        self.0.send_if_modified(|all| all.insert(report.key.clone(), report.clone()).as_ref() != Some(&report));
    }

    pub fn remove(&self, key: &ServiceKey) {
        self.0.send_if_modified(|all| all.remove(key).is_some());
    }

    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<ServiceKey, ServiceReport>> {
        self.0.subscribe()
    }

    pub fn latest(&self) -> BTreeMap<ServiceKey, ServiceReport> {
        self.0.borrow().clone()
    }
}
