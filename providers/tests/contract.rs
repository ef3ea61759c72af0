//! The contract of providers on a fake that behaves as clouds do: its list comes in pages and lags behind, what was
//! deleted is listed for a while, and calls carry a limited number of items. Faults put into it are found by the suite.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::{Generation, InstanceId, NodeId};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider, conformance};

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
}

/// How many lists miss what was just made.
const LISTS_BEHIND: u32 = 2;
const PAGE: usize = 2;
const BATCH: usize = 3;

struct Fake {
    fault: Fault,
    machines: Mutex<Vec<Machine>>,
}

struct Machine {
    instance: Instance,
    unseen: u32,
}

impl Fake {
    fn new(fault: Fault) -> Self {
        Self { fault, machines: Mutex::new(Vec::new()) }
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
        let mut answers: Vec<_> = requests.iter().map(|request| Ok(self.create_now(request))).collect();
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
                return Err(Error::unanswered());
            }
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

/// Whether the suite passes.
fn conforms(fault: Fault) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let fake = Fake::new(fault);
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(conformance::check(&fake, |node, generation| conformance::request(node, generation, "10.0.0.254:9", "ca")))
    }))
    .is_ok()
}

#[test]
fn a_provider_with_pages_and_a_list_that_lags_keeps_the_contract() {
    assert!(conforms(Fault::None));
}

#[test]
fn the_suite_finds_each_breach_of_the_contract() {
    let faults = [
        Fault::LaunchesTwice,
        Fault::ListsFirstPageOnly,
        Fault::NeverListsTheNewest,
        Fault::AnswersOutOfOrder,
        Fault::BatchEndsAtTheFirstFailure,
        Fault::DeletesByInstanceAlone,
        Fault::FailsOnWhatIsGone,
        Fault::KeepsWhatItDeletes,
    ];
    let missed: Vec<_> = faults.into_iter().filter(|fault| conforms(*fault)).collect();
    assert_eq!(missed, [], "the suite passes providers with these faults");
}
