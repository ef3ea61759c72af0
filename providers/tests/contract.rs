//! The contract of providers on a fake that behaves as clouds do: its list comes in pages and lags behind, what was
//! deleted is listed for a while, calls carry a limited number of items, are throttled and fail in ways that pass, and machines
//! may be in use. Faults put into it are found by the suite.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::{Generation, InstanceId, NodeId};
use cloudtik_providers::conformance::{Breach, Checked, Hold, check, request};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider};

/// A breach of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    LaunchesTwice,
    ListsFirstPageOnly,
    NeverListsTheNewest,
    AnswersOutOfOrder,
    BatchEndsAtTheFirstFailure,
    DeletesByInstanceAlone,
    FailsOnWhatIsGone,
    KeepsWhatItDeletes,
    DeletesWhatIsInUse,
    IsAlwaysThrottled,
}

/// How many lists miss what was just made.
const LISTS_BEHIND: u32 = 2;
const PAGE: usize = 2;
const BATCH: usize = 3;

struct Fake {
    fault: Fault,
    machines: Mutex<Vec<Machine>>,
    in_use: Mutex<BTreeSet<InstanceId>>,
    calls: AtomicU32,
}

struct Machine {
    instance: Instance,
    unseen: u32,
}

impl Fake {
    fn new(fault: Fault) -> Self {
        Self { fault, machines: Mutex::new(Vec::new()), in_use: Mutex::default(), calls: AtomicU32::new(0) }
    }

    /// Every third call is one too many.
    fn throttle(&self) -> Result<(), Error> {
        let is_one_too_many = self.calls.fetch_add(1, Ordering::Relaxed) % 3 == 2;
        if !is_one_too_many && self.fault != Fault::IsAlwaysThrottled {
            return Ok(());
        }
        Err(Error::Throttled { message: "slow down".to_owned(), retry_after: Some(Duration::from_millis(1)) })
    }

    fn create_now(&self, request: &CreateNode) -> Instance {
        let mut machines = self.machines.lock().expect("no other holder panics");
        let (node, generation) = (&request.bootstrap.node, request.bootstrap.generation);
        let known = machines.iter().find(|m| m.instance.node == *node && m.instance.generation == generation);
        if let (Some(machine), true) = (known, self.fault != Fault::LaunchesTwice) {
            return machine.instance.clone();
        }
        let number = machines.len() + 1;
        let instance = Instance {
            id: InstanceId::new(format!("i-{number}")).expect("valid"),
            node: node.clone(),
            generation,
            address: Some(format!("10.0.0.{number}")),
            state: InstanceState::Running,
        };
        machines.push(Machine { instance: instance.clone(), unseen: LISTS_BEHIND });
        instance
    }

    fn delete_now(&self, request: &DeleteNode) -> Result<(), Error> {
        let mut machines = self.machines.lock().expect("no other holder panics");
        let Some(machine) = machines.iter_mut().find(|m| m.instance.id == request.instance) else {
            return Ok(());
        };
        let matches = machine.instance.node == request.node && machine.instance.generation == request.generation;
        if !matches && self.fault != Fault::DeletesByInstanceAlone {
            return Err(Error::Mismatch(request.instance.to_string()));
        }
        if machine.instance.state == InstanceState::Terminated && self.fault == Fault::FailsOnWhatIsGone {
            return Err(Error::NotFound(request.instance.to_string()));
        }
        let is_in_use = self.in_use.lock().expect("no other holder panics").contains(&request.instance);
        if is_in_use && self.fault != Fault::DeletesWhatIsInUse {
            return Err(Error::Conflict { what: request.instance.to_string(), used_by: vec!["a disk".to_owned()] });
        }
        if self.fault != Fault::KeepsWhatItDeletes {
            machine.instance.state = InstanceState::Terminated;
        }
        Ok(())
    }

    fn page(&self, number: usize) -> Vec<Instance> {
        let mut machines = self.machines.lock().expect("no other holder panics");
        if number == 0 {
            machines.iter_mut().for_each(|m| m.unseen = m.unseen.saturating_sub(1));
        }
        let newest = machines.len().saturating_sub(1);
        let hidden = |index: usize| self.fault == Fault::NeverListsTheNewest && index == newest;
        let seen = machines.iter().enumerate().filter(|(index, m)| m.unseen == 0 && !hidden(*index));
        seen.map(|(_, m)| m.instance.clone()).skip(number * PAGE).take(PAGE).collect()
    }
}

#[async_trait]
impl NodeProvider for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities { restart_agent: false, reboot: None, owned_machines: false, visibility: Duration::from_millis(100), batch: BATCH }
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.throttle()?;
        let mut all = Vec::new();
        for number in 0.. {
            let page = self.page(number);
            let is_last = page.len() < PAGE || self.fault == Fault::ListsFirstPageOnly;
            all.extend(page);
            if is_last {
                break;
            }
        }
        Ok(all)
    }

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        assert!(requests.len() <= BATCH, "a call carries no more than the provider takes");
        let mut answers: Vec<_> = requests.iter().map(|request| self.throttle().map(|()| self.create_now(request))).collect();
        if self.fault == Fault::AnswersOutOfOrder {
            answers.reverse();
        }
        answers
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        assert!(requests.len() <= BATCH, "a call carries no more than the provider takes");
        let mut has_failed = false;
        let mut answer = |request: &DeleteNode| {
            if has_failed && self.fault == Fault::BatchEndsAtTheFirstFailure {
                return Err(Error::permanent("go on", "an item failed"));
            }
            self.throttle()?;
            self.delete_now(request).inspect_err(|_| has_failed = true)
        };
        requests.iter().map(&mut answer).collect()
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        let machines = self.machines.lock().expect("no other holder panics");
        let known = machines.iter().find(|m| m.instance.id == *instance).map(|m| m.instance.clone());
        known.ok_or_else(|| Error::NotFound(instance.to_string()))
    }

    async fn restart_agent(&self, _: &NodeId, _: Generation, instance: &InstanceId, _: bool) -> Result<(), Error> {
        Err(Error::NotFound(instance.to_string()))
    }

    async fn reboot(&self, _: &NodeId, _: Generation, instance: &InstanceId) -> Result<(), Error> {
        Err(Error::NotFound(instance.to_string()))
    }
}

#[async_trait]
impl Hold for Fake {
    async fn hold(&self, instance: &Instance) {
        self.in_use.lock().expect("no other holder panics").insert(instance.id.clone());
    }

    async fn release(&self, instance: &Instance) {
        self.in_use.lock().expect("no other holder panics").remove(&instance.id);
    }
}

/// What the suite says of a provider with a fault.
fn outcome(fault: Fault) -> Result<(), Breach> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let fake = Fake::new(fault);
    let request = |node: &NodeId, generation: Generation| request(node, generation, "10.0.0.254:9", "ca");
    let checked = Checked { provider: &fake, request: &request, many: 10, hold: Some(&fake) };
    let outcome = runtime.block_on(check(&checked, &mut |_| {}));
    let machines = fake.machines.lock().expect("no other holder panics");
    let is_left = machines.iter().any(|machine| machine.instance.state != InstanceState::Terminated);
    // Some faults leave no way to find or to delete it.
    let may_leave = [Fault::KeepsWhatItDeletes, Fault::NeverListsTheNewest, Fault::ListsFirstPageOnly, Fault::BatchEndsAtTheFirstFailure];
    assert!(!is_left || may_leave.contains(&fault), "{fault:?}: what the suite made is deleted");
    outcome
}

#[test]
fn a_provider_with_pages_throttling_and_a_list_that_lags_keeps_the_contract() {
    outcome(Fault::None).expect("keeps it");
}

#[test]
fn the_suite_finds_each_breach_of_the_contract() {
    let faults = [
        (Fault::LaunchesTwice, "create is idempotent in node and generation"),
        (Fault::ListsFirstPageOnly, "the list shows what was created, once"),
        (Fault::NeverListsTheNewest, "the list shows what was created, once"),
        (Fault::AnswersOutOfOrder, "answers are in the order of the requests"),
        (Fault::BatchEndsAtTheFirstFailure, "an item that fails leaves the others of its batch alone"),
        (Fault::DeletesByInstanceAlone, "node and instance must match"),
        (Fault::FailsOnWhatIsGone, "deleting what is gone succeeds"),
        (Fault::KeepsWhatItDeletes, "only the deleted instance is gone"),
        (Fault::DeletesWhatIsInUse, "what is in use is not deleted"),
        (Fault::IsAlwaysThrottled, "the suite starts without instances"),
    ];
    for (fault, clause) in faults {
        let breach = outcome(fault).expect_err("the suite passes a provider with a fault");
        assert_eq!(breach.clause, clause, "{fault:?}: {breach}");
    }
}
