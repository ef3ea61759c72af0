//! Applies a plan step by step.

use std::time::Duration;

use tokio::sync::watch;

use super::{Plan, Step, WorkspaceProvider};
use crate::Error;

/// How long a step is repeated that fails in a way that passes.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts of one step.
    pub attempts: u32,
    /// The first pause between two attempts; each is twice the one before, unless the provider names one.
    pub pause: Duration,
    /// No pause is longer.
    pub longest: Duration,
}

impl Default for Patience {
    /// About five minutes: gateways of clouds take two or three to be made and to be gone.
    fn default() -> Self {
        Self { attempts: 16, pause: Duration::from_millis(500), longest: Duration::from_secs(30) }
    }
}

/// What happens while a plan is applied.
#[derive(Debug)]
pub enum Event<'a> {
    Started {
        number: usize,
        of: usize,
        step: &'a Step,
    },
    /// The step failed in a way that passes, and is repeated after the pause.
    Waiting {
        step: &'a Step,
        error: &'a Error,
        pause: Duration,
    },
    Done {
        number: usize,
        of: usize,
        step: &'a Step,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It was asked to stop; so many steps were applied.
    Stopped {
        applied: usize,
    },
}

/// A step failed; those before it hold.
#[derive(Debug, thiserror::Error)]
#[error("step {} of {of} failed: {}", applied + 1, step.summary)]
pub struct StepFailed {
    pub step: Box<Step>,
    pub applied: usize,
    pub of: usize,
    pub source: Error,
}

/// Applies the steps in order. Stops between two steps, or two attempts of one, when `stop` becomes true; a call to the
/// provider is never cut off.
pub async fn run(
    provider: &dyn WorkspaceProvider,
    plan: &Plan,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
    mut progress: impl FnMut(Event<'_>),
) -> Result<Outcome, StepFailed> {
    let of = plan.steps.len();
    for (applied, step) in plan.steps.iter().enumerate() {
        if *stop.borrow() {
            return Ok(Outcome::Stopped { applied });
        }
        progress(Event::Started { number: applied + 1, of, step });
        let (mut attempt, mut pause) = (1, patience.pause);
        while let Err(error) = provider.apply(step).await {
            if !passes(&error) || attempt >= patience.attempts {
                return Err(StepFailed { step: Box::new(step.clone()), applied, of, source: error });
            }
            let wait = error.retry_after().unwrap_or(pause).min(patience.longest);
            progress(Event::Waiting { step, error: &error, pause: wait });
            // A sender that is gone asks for nothing any more; then only the pause ends.
            let stopped = async {
                if stop.wait_for(|stop| *stop).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stopped => return Ok(Outcome::Stopped { applied }),
            }
            attempt += 1;
            pause = pause.saturating_mul(2);
        }
        progress(Event::Done { number: applied + 1, of, step });
    }
    Ok(Outcome::Done)
}

/// Whether the same call may succeed without anybody's doing.
fn passes(error: &Error) -> bool {
    matches!(error, Error::Throttled { .. } | Error::Transient { .. })
}
