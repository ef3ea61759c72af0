//! The provider of this cluster's machines, as the latest description sets it.

use std::sync::Arc;
use std::time::Duration;

use cloudtik_brain::Input;
use cloudtik_model::ProviderDocument;
use cloudtik_providers::{Error, NodeProvider};
use cloudtik_registry::registry;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::runner::BrainHandle;

/// The least time between two changes that the brain hears of.
const CHANGES_PAUSE: Duration = Duration::from_millis(200);

/// A cheap handle on the provider; a new description may change its settings.
#[derive(Clone)]
pub struct MachinesHandle {
    /// As the cluster was made with it.
    kept: Arc<ProviderDocument>,
    current: Arc<watch::Sender<(Value, Arc<dyn NodeProvider>)>>,
}

/// Settings with which the provider can go on; none if they are those that it has.
pub struct Prepared(Option<(Value, Arc<dyn NodeProvider>)>);

impl MachinesHandle {
    /// `latest` are the settings of the latest description, if there is one already.
    pub fn open(kept: &ProviderDocument, latest: Option<Value>) -> Result<Self, Error> {
        let kept = Arc::new(kept.clone());
        let settings = latest.unwrap_or_else(|| kept.settings.clone());
        let provider = Self::provider(&kept, &settings)?;
        Ok(Self { kept, current: Arc::new(watch::Sender::new((settings, provider))) })
    }

    fn provider(kept: &ProviderDocument, settings: &Value) -> Result<Arc<dyn NodeProvider>, Error> {
        registry().nodes(&ProviderDocument { settings: settings.clone(), ..kept.clone() })
    }

    pub fn provider_now(&self) -> Arc<dyn NodeProvider> {
        self.current.borrow().1.clone()
    }

    /// Looks whether the provider can go on with other settings, and changes nothing yet.
    pub fn prepare(&self, settings: &Value) -> Result<Prepared, Error> {
        if self.current.borrow().0 == *settings {
            return Ok(Prepared(None));
        }
        Ok(Prepared(Some((settings.clone(), Self::provider(&self.kept, settings)?))))
    }

    /// Goes on with what was prepared. Calls under way end as they began.
    pub fn replace(&self, prepared: Prepared) {
        if let Prepared(Some(next)) = prepared {
            self.current.send_replace(next);
        }
    }

    /// Sends the brain whatever the provider says of changes of its machines.
    pub async fn forward_changes(self, brain: BrainHandle, stop: CancellationToken) {
        let mut current = self.current.subscribe();
        loop {
            let provider = current.borrow_and_update().1.clone();
            tokio::select! {
                () = stop.cancelled() => return,
                // The next provider is listened to from now on. The sender is this handle's own.
                _ = current.changed() => continue,
                () = provider.changed() => brain.send(Input::MachinesChanged).await,
            }
            tokio::time::sleep(CHANGES_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_take_effect_when_they_are_replaced_and_not_before() {
        let settings = |program: &str| json!({ "command": [program], "timeout_ms": 1, "head_address": null, "settings": {}, "shapes": {} });
        let local = json!({ "nodes": "/n", "network": [127, 0, 0], "agent": "/a" });
        let able = json!({ "batch": 1 });
        let site = json!({ "cluster": "c", "workspace": "w", "directory": "/d", "capabilities": able, "head": local });
        let kept = ProviderDocument { kind: "external".parse().expect("a kind"), settings: settings("one"), site };
        let machines = MachinesHandle::open(&kept, None).expect("opens");
        let first = machines.provider_now();
        let is_first = || Arc::ptr_eq(&machines.provider_now(), &first);

        assert!(machines.prepare(&json!({ "command": 1 })).is_err());
        let prepared = machines.prepare(&settings("two")).expect("can go on");
        assert!(is_first(), "nothing has changed yet");
        machines.replace(prepared);
        assert!(!is_first());
        let second = machines.provider_now();
        machines.replace(machines.prepare(&settings("two")).expect("the same"));
        assert!(Arc::ptr_eq(&machines.provider_now(), &second), "the same settings change nothing");
    }
}
