//! How a service lets its work go before it is stopped for good: told by a signal, a command or a request.

use std::time::Duration;

use cloudtik_model::goal::{self, DrainBy};
use cloudtik_model::report::ServiceState;
use nix::sys::signal::Signal;

use super::ServiceTask;
use crate::gauge;

/// Between two looks at how much work a service that is being drained still has.
const DRAIN_LOOK: Duration = Duration::from_millis(500);

impl ServiceTask {
    /// Lets the service's work go, as its goal said while there was one; false if it is wanted again meanwhile.
    pub(super) async fn drain(&mut self) -> bool {
        let Some((service, drain)) = self.last.clone().and_then(|s| s.drain.clone().map(|d| (s, d))) else { return true };
        let Some(running) = self.running.as_ref().filter(|r| r.ready) else { return true };
        let (shim, process) = (running.state.shim, running.state.process);
        self.report(ServiceState::Stopping, "draining");
        tracing::info!(service = %self.key, "draining");
        let environment = self.environment(&service);
        let work = service.gauges.iter().find(|g| g.name == goal::Gauge::WORK).cloned();
        let letting_go = async {
            match &drain.by {
                DrainBy::Signal(number) => {
                    let signal = Signal::try_from(*number).map_err(|e| e.to_string())?;
                    process.signal(signal).map_err(|e| e.to_string())?;
                }
                DrainBy::Command(command) => {
                    let probe = goal::Check::Command { command: command.clone() };
                    crate::probe::check(&probe, &environment).await.map_err(|e| e.to_string())?;
                }
                DrainBy::Request { method, url, body } => {
                    let (status, _) = crate::probe::exchange(method, url, body).await.map_err(|e| e.to_string())?;
                    if !(200..300).contains(&status) {
                        return Err(format!("{url} answered {status}"));
                    }
                }
            }
            // A signal says nothing of when it was followed; without a number to look at, the end of the process does.
            let Some(work) = work else {
                return if matches!(drain.by, DrainBy::Signal(_)) { std::future::pending().await } else { Ok(()) };
            };
            loop {
                tokio::time::sleep(DRAIN_LOOK).await;
                if gauge::read(&work).await.is_ok_and(|left| left.0 == 0) {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            result = letting_go => if let Err(error) = result {
                tracing::warn!(service = %self.key, "cannot drain it: {error}");
                self.left_work = format!("it could not be told to drain: {error}");
            },
            _ = shim.ended() => {}
            () = tokio::time::sleep(Duration::from_millis(drain.timeout_ms)) => {
                tracing::warn!(service = %self.key, "it has not drained within {} ms", drain.timeout_ms);
                self.left_work = format!("it had not drained after {} s", drain.timeout_ms / 1_000);
            }
            changed = self.desired.changed() => return changed.is_ok() && self.desired.borrow().service.is_none(),
        }
        true
    }
}
