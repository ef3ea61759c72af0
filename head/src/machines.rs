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

    /// Goes on with other settings. Calls under way end as they began.
    pub fn set(&self, settings: &Value) -> Result<(), Error> {
        if self.current.borrow().0 == *settings {
            return Ok(());
        }
        let provider = Self::provider(&self.kept, settings)?;
        self.current.send_replace((settings.clone(), provider));
        Ok(())
    }

    /// Tells the brain whenever the provider says that its machines may have changed.
    pub async fn tell_changes(self, brain: BrainHandle, stop: CancellationToken) {
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
