//! `cloudtik rollout`: how far a new revision has come, going on with it, going back.

use cloudtik_model::status::{Plan, Rollout, RolloutState};
use cloudtik_protocol::wire;

use crate::cli::{RolloutCommand, Target};
use crate::client::{Client, document};
use crate::failure::Failure;
use crate::output::{Printer, ago, first_of};
use crate::steer::print_answer;
use crate::up::in_a_line;

/// Nodes that are named, at most.
const MAX_NODES: usize = 8;

pub async fn run(printer: &Printer, command: RolloutCommand) -> Result<(), Failure> {
    match command {
        RolloutCommand::Status { cluster } => status(printer, (&cluster).into()).await,
        RolloutCommand::Resume { cluster } => {
            let client = Client::connect(&cluster).await?;
            let answer = client.admin().rollout_resume(wire::Empty {}).await?;
            print_answer(printer, answer.into_inner())
        }
        RolloutCommand::Undo { cluster, yes } => undo(printer, (&cluster).into(), yes).await,
    }
}

async fn rollout(client: &Client) -> Result<Rollout, Failure> {
    document(client.admin().rollout_status(wire::Empty {}).await?.into_inner())
}

async fn status(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let rollout = rollout(&client).await?;
    if printer.is_json() {
        printer.json(&rollout);
        return Ok(());
    }
    describe(&rollout, &client.place.name.to_string()).iter().for_each(|line| printer.line(line));
    Ok(())
}

/// What is to be said of a roll-out, line by line.
fn describe(rollout: &Rollout, cluster: &str) -> Vec<String> {
    let Rollout { revision, state, from, nodes, updated, ready, outdated, failure } = rollout;
    let mut lines = vec![format!("revision {revision}: {}", state.name())];
    if *state == RolloutState::Complete && outdated.is_empty() {
        lines[0].push_str(&format!(", {ready} of {nodes} nodes are ready with it"));
        return lines;
    }
    lines.push(format!("  nodes   {updated} of {nodes} have it, {ready} are ready with it"));
    if !outdated.is_empty() {
        lines.push(format!("  without {}", first_of(outdated, MAX_NODES)));
    }
    if let Some(from) = from {
        lines.push(format!("  before  revision {from}"));
    }
    if let Some(failure) = failure {
        lines.push(format!("  failed  on {}, {} ago: {}", failure.node, ago(failure.since), failure.problem));
        lines.push(String::new());
        lines.push("No further node takes it. Correct the cluster's file and run `cloudtik up`, or:".to_owned());
        lines.push(format!("  cloudtik rollout undo {cluster}      go back to what nodes ran before"));
        lines.push(format!("  cloudtik rollout resume {cluster}    try it again"));
    }
    lines
}

async fn undo(printer: &Printer, cluster: Target<'_>, yes: bool) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    if let Rollout { from: Some(from), .. } = rollout(&client).await? {
        let plan = client.admin().rollout_undo(wire::RolloutUndoRequest { plan_only: true }).await?;
        let plan: Plan = document(plan.into_inner())?;
        printer.say(&format!("{} goes back to what revision {from} ran; what else was changed since stays:", client.place.name));
        plan.changes.iter().for_each(|change| printer.say(&in_a_line(change)));
        let question = format!("Roll {} back? Services restart where they have the newer revision.", client.place.name);
        printer.confirm_async(&question, yes).await?;
    }
    let answer = client.admin().rollout_undo(wire::RolloutUndoRequest { plan_only: false }).await?;
    print_answer(printer, answer.into_inner())
}

#[cfg(test)]
mod tests {
    use cloudtik_model::reason::ServiceProblem;
    use cloudtik_model::report::FailureCause;
    use cloudtik_model::status::RolloutFailure;
    use cloudtik_model::{Generation, NodeId, Timestamp};

    use super::*;

    #[test]
    fn a_held_roll_out_says_where_it_failed_and_what_to_do() {
        let node = |id: &str| NodeId::new(id).expect("a valid id");
        let failure = RolloutFailure {
            node: node("w1"),
            generation: Generation(1),
            since: Timestamp(0),
            problem: ServiceProblem::Failed {
                service: "web/web".parse().expect("a key"),
                cause: FailureCause::Crashed { exit_code: Some(3), how: "exit 3".to_owned() },
            },
        };
        let held = Rollout {
            revision: 3,
            state: RolloutState::Held,
            from: Some(1),
            nodes: 4,
            updated: 2,
            ready: 1,
            outdated: vec![node("w2"), node("w3")],
            failure: Some(failure),
        };
        let lines = describe(&held, "demo").join("\n");
        for part in ["revision 3: held", "2 of 4 have it", "w2, w3", "on w1,", "web/web crashed (exit 3)", "cloudtik rollout undo demo"] {
            assert!(lines.contains(part), "{part} is missing:\n{lines}");
        }
        let complete = Rollout { state: RolloutState::Complete, outdated: Vec::new(), failure: None, updated: 4, ready: 4, ..held };
        assert_eq!(describe(&complete, "demo"), ["revision 3: complete, 4 of 4 nodes are ready with it"]);
    }
}
