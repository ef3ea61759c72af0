//! What clusters share: made when a cluster needs it.

use cloudtik_providers::workspace::{Cost, Patience, WorkspaceProvider, run};
use tokio::sync::watch;

use crate::failure::{Failure, REFUSED, chain};
use crate::output::Printer;

/// Makes what is missing of the workspace of a cluster, if it costs nothing.
pub async fn ensure(printer: &Printer, workspace: &dyn WorkspaceProvider) -> Result<(), Failure> {
    let plan = workspace.plan().await?;
    if plan.is_empty() {
        return Ok(());
    }
    let name = workspace.name();
    let costs = match plan.cost() {
        Cost::Free => None,
        Cost::PerHour(money) => Some(format!("{money}")),
        Cost::Unknown => Some("an amount that the provider does not tell".to_owned()),
    };
    if let Some(costs) = costs {
        let message = format!("the workspace {name} is not complete, and what is missing costs {costs}");
        return Err(Failure::new(REFUSED, message));
    }
    let (_stop, stopped) = watch::channel(false);
    run(workspace, &plan, Patience::default(), stopped, |_| {}).await.map_err(|failed| {
        let message = chain(&failed);
        Failure { message: format!("the workspace {name}: {message}"), ..Failure::from(failed.source) }
    })?;
    if !printer.is_json() {
        printer.say(&format!("made the workspace {name}"));
    }
    Ok(())
}
