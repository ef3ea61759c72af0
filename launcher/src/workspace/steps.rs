//! Applies a plan, says how far it came, and stops where it is interrupted.

use std::cell::RefCell;
use std::pin::pin;

use cloudtik_providers::workspace::{Action, Event, Outcome, Patience, Plan, Step, WorkspaceProvider, run};
use tokio::sync::watch;

use crate::failure::{Failure, INTERRUPTED, chain};
use crate::output::{Printer, short};
use crate::terminal::Progress;

/// Applies all steps. The first interrupt lets the present step end; the second does not wait for it. `left` is what a person does
/// where not all steps hold.
pub async fn apply(
    printer: &Printer,
    workspace: &dyn WorkspaceProvider,
    plan: &Plan,
    left: &str,
    mut interrupted: impl AsyncFnMut(),
) -> Result<(), Failure> {
    let name = workspace.name();
    let progress = RefCell::new(Progress::new());
    let (stop, stopped) = watch::channel(false);
    let mut running = pin!(run(workspace, plan, Patience::default(), stopped, |event| {
        tell(printer, &mut progress.borrow_mut(), &name, &event);
    }));
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            () = interrupted() => {
                if stop.send_replace(true) {
                    return Err(Failure::new(INTERRUPTED, "interrupted within a step, which may hold or not").hint(left));
                }
                progress.borrow_mut().phase(&format!("{name}: interrupted; the present step ends first, unless Ctrl-C is pressed again"));
            }
        }
    };
    let of = plan.steps.len();
    match outcome {
        Ok(Outcome::Done) => Ok(()),
        Ok(Outcome::Stopped { applied }) => Err(Failure::new(INTERRUPTED, format!("interrupted: {applied} of {of} steps hold")).hint(left)),
        Err(failed) => {
            let message = format!("the workspace {name}: {}", chain(&failed));
            Err(Failure { message, ..Failure::from(failed.source) }.hint(left))
        }
    }
}

fn tell(printer: &Printer, progress: &mut Progress, workspace: &str, event: &Event<'_>) {
    match event {
        Event::Started { number, of, step } => {
            progress.waiting(&format!("{workspace}: {} (step {number} of {of})", doing(step)));
        }
        Event::Waiting { step, error, pause } => {
            progress.waiting(&format!("{workspace}: {}, again in {}: {}", doing(step), short(*pause), chain(error)));
        }
        Event::Done { step, .. } if !printer.is_json() => progress.keep(&format!("{} {}", done(step.action), step.summary)),
        Event::Done { .. } => {}
    }
}

fn doing(step: &Step) -> String {
    let verb = match step.action {
        Action::Create => "creating",
        Action::Change => "changing",
        Action::Remove => "removing",
    };
    format!("{verb} {}", step.summary)
}

fn done(action: Action) -> &'static str {
    match action {
        Action::Create => "created",
        Action::Change => "changed",
        Action::Remove => "removed",
    }
}
