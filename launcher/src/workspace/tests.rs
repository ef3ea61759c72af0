//! What is asked and said, on a workspace whose resources cost something and whose steps can be held up.

use std::sync::Mutex;

use async_trait::async_trait;
use cloudtik_model::{ClusterName, MoneyPerHour, WorkspaceName};
use cloudtik_providers::workspace::{Desired, Found, Presence, ResourceId, Status, Step};
use cloudtik_providers::{Error, WorkspaceProvider};
use tokio::sync::Notify;

use super::change::{Said, Verb, Verdict, question, verdict};
use super::show::{State, plan_lines};
use super::*;
use crate::cli::Format;
use crate::failure::INTERRUPTED;

const RESOURCES: [(&str, Cost); 3] = [("network", Cost::Free), ("gateway", Cost::PerHour(MoneyPerHour(45_000))), ("role", Cost::Free)];

/// A cloud whose second resource waits until the test lets its step end.
#[derive(Default)]
struct Cloud {
    made: Mutex<Vec<ResourceId>>,
    /// A step that waits has begun.
    begun: Notify,
    go_on: Notify,
}

fn name() -> WorkspaceName {
    WorkspaceName::new("dev").expect("a name")
}

fn desired() -> Vec<Desired> {
    RESOURCES.iter().map(|(id, cost)| Desired { id: ResourceId::new(*id), summary: format!("the {id}"), cost: *cost }).collect()
}

fn status(presence: &[Presence]) -> Status {
    let found = |((id, _), presence): (&(&str, Cost), &Presence)| Found {
        id: ResourceId::new(*id),
        presence: presence.clone(),
        outputs: Default::default(),
    };
    Status { resources: RESOURCES.iter().zip(presence).map(found).collect(), clusters: Vec::new() }
}

#[async_trait]
impl WorkspaceProvider for Cloud {
    fn name(&self) -> String {
        "dev".to_owned()
    }

    fn desired(&self) -> Vec<Desired> {
        desired()
    }

    async fn status(&self) -> Result<Status, Error> {
        let made = self.made.lock().expect("no panic while it is held");
        let presence = |(id, _): &(&str, Cost)| {
            if made.iter().any(|made| made.as_str() == *id) { Presence::Present } else { Presence::Missing }
        };
        Ok(status(&RESOURCES.iter().map(presence).collect::<Vec<_>>()))
    }

    async fn apply(&self, step: &Step) -> Result<(), Error> {
        if step.resource.as_str() == "gateway" {
            self.begun.notify_one();
            self.go_on.notified().await;
        }
        self.made.lock().expect("no panic while it is held").push(step.resource.clone());
        Ok(())
    }
}

fn plan(presence: &[Presence]) -> Plan {
    Plan::to_reach(&desired(), &status(presence))
}

const DIFFERS: Presence = Presence::Differs { differences: Vec::new() };

#[test]
fn a_person_is_asked_what_costs_and_what_changes_or_removes() {
    use Presence::{Missing, Present};
    let asked = |verb, presence: &[Presence]| question(&name(), verb, &plan(presence));
    assert_eq!(asked(Verb::Create, &[Missing, Missing, Missing]).as_deref(), Some("Create the workspace dev, for 0.045/h?"));
    assert_eq!(asked(Verb::Create, &[Missing, Present, Missing]), None, "what is free is not asked");
    assert_eq!(asked(Verb::Update, &[DIFFERS, Present, Present]).as_deref(), Some("Change the workspace dev?"));
    let removal = Plan::to_remove("dev", &desired(), &status(&[Present, Present, Present])).expect("no cluster is in it");
    assert_eq!(question(&name(), Verb::Delete, &removal).as_deref(), Some("Delete the workspace dev?"));

    assert_eq!(needs_a_person(&plan(&[Missing, Missing, Missing])).as_deref(), Some("what is missing costs 0.045/h"));
    assert_eq!(needs_a_person(&plan(&[Missing, Present, DIFFERS])), None, "`up` makes and mends what is free");
    assert_eq!(needs_a_person(&removal).as_deref(), Some("the role would be removed"));
}

#[test]
fn a_file_is_applied_by_the_command_that_is_for_it() {
    let said = |kind, text| Said { kind, text };
    let (north, south) = (said("cloud", "region = 'north'"), said("cloud", "region = 'south'"));
    let north_again = said("cloud", "# ours\nregion = \"north\"");
    let other = said("local", "");
    for (verb, file, applied, has_directory, expected) in [
        (Verb::Create, north, None, false, Verdict::Apply),
        (Verb::Create, north, Some(north_again), true, Verdict::Apply),
        (Verb::Create, north, Some(south), false, Verdict::OtherDefinition),
        (Verb::Create, north, Some(other), true, Verdict::OtherProvider),
        (Verb::Update, north, None, false, Verdict::NothingThere),
        (Verb::Update, north, None, true, Verdict::Apply),
        (Verb::Update, north, Some(south), true, Verdict::Apply),
        (Verb::Update, north, Some(other), true, Verdict::OtherProvider),
    ] {
        assert_eq!(verdict(verb, file, applied, has_directory), expected, "{verb:?} {file:?} {applied:?}");
    }
}

#[test]
fn a_cluster_is_in_a_workspace_of_its_own_provider() {
    let demo = ClusterName::new("demo").expect("a name");
    on_the_same(&demo, "local", &name(), "local").expect("it is the same");
    let failure = on_the_same(&demo, "local", &name(), "cloud").expect_err("it is another");
    let says = "the cluster demo is on the provider `local`, and its workspace dev is on `cloud`";
    assert_eq!((failure.code, failure.message.as_str()), (INVALID, says));
}

#[test]
fn a_plan_is_shown_with_what_each_step_costs() {
    let lines = plan_lines(&plan(&[DIFFERS, Presence::Missing, Presence::Present]));
    assert_eq!(lines, ["  ~ change network: the network: ", "  + create gateway: the gateway, 0.045/h", "  costs 0.045/h while it exists"]);
}

#[test]
fn a_state_is_told_from_what_is_there() {
    use Presence::{Deleting, Missing, Present};
    let state = |presence: &[Presence]| State::of(&desired(), &status(presence));
    assert_eq!(state(&[Present, Present, Present]), State::Complete);
    assert_eq!(state(&[Present, Missing, DIFFERS]), State::Incomplete);
    assert_eq!(state(&[Present, DIFFERS, Present]), State::Differs);
    assert_eq!(state(&[Present, Deleting, Missing]), State::Deleting);
    assert_eq!(state(&[Missing, Missing, Missing]), State::Missing);
    // What the definition does not have any more is to go.
    let extra = Status { clusters: vec![ClusterName::new("demo").expect("a name")], ..status(&[Present, Present, Present]) };
    assert_eq!(State::of(&desired()[..2], &extra), State::Differs);
    // What could be there, and is neither to be there nor is.
    assert_eq!(State::of(&desired()[..2], &status(&[Present, DIFFERS, Missing])), State::Differs);
}

#[tokio::test]
async fn an_interrupt_lets_the_step_end_and_the_next_run_goes_on() {
    let (cloud, printer) = (Cloud::default(), Printer::new(Format::Json));
    let mut interrupts = 0;
    let interrupted = async || {
        if interrupts > 0 {
            std::future::pending::<()>().await;
        }
        cloud.begun.notified().await;
        interrupts += 1;
        cloud.go_on.notify_one();
    };
    let plan = cloud.plan().await.expect("plans");
    let failure = steps::apply(&printer, &cloud, &plan, "go on", interrupted).await.expect_err("it was interrupted");
    assert_eq!((failure.code, failure.message.as_str()), (INTERRUPTED, "interrupted: 2 of 3 steps hold"));
    assert_eq!(failure.hint.as_deref(), Some("go on"));

    let rest = cloud.plan().await.expect("plans");
    assert_eq!(rest.steps.iter().map(|step| step.resource.as_str()).collect::<Vec<_>>(), ["role"]);
    steps::apply(&printer, &cloud, &rest, "go on", async || std::future::pending().await).await.expect("goes on");
    assert!(cloud.plan().await.expect("plans").is_empty());
}

#[tokio::test]
async fn a_second_interrupt_does_not_wait_for_the_step() {
    let (cloud, printer) = (Cloud::default(), Printer::new(Format::Json));
    let mut has_begun = false;
    let interrupted = async || {
        if !has_begun {
            cloud.begun.notified().await;
            has_begun = true;
        }
    };
    let plan = cloud.plan().await.expect("plans");
    // The step never ends.
    let failure = steps::apply(&printer, &cloud, &plan, "go on", interrupted).await.expect_err("it was interrupted");
    assert_eq!((failure.code, failure.message.as_str()), (INTERRUPTED, "interrupted within a step, which may hold or not"));
}
