//! The contract of [`NodeProvider`].

use std::collections::BTreeMap;
use std::time::Instant;

use async_trait::async_trait;
use cloudtik_model::node::{Instance, InstanceState};
use cloudtik_model::{Generation, InstanceId, NodeId};

use super::{Breach, FIRST_PAUSE, LONGEST_PAUSE, Told, clause, patiently, pause_before, with_causes, works};
use crate::{CreateNode, DeleteNode, Error, NodeProvider};

/// Puts a machine in use by something that only a person can end, and ends that again.
#[async_trait]
pub trait Hold: Send + Sync {
    async fn hold(&self, instance: &Instance);
    async fn release(&self, instance: &Instance);
}

/// What the suite runs on.
pub struct Checked<'a> {
    /// Without instances at first.
    pub provider: &'a dyn NodeProvider,
    /// What is to be created for a node and a generation.
    pub request: &'a (dyn Fn(&NodeId, Generation) -> CreateNode + Send + Sync),
    /// Machines that are there at once where many are made; more than a page of the provider's list and than a batch.
    pub many: usize,
    /// How machines come to be in use, where the suite can bring that about.
    pub hold: Option<&'a dyn Hold>,
}

/// Runs the whole suite. Whatever it made is deleted, also where a clause does not hold.
pub async fn check(checked: &Checked<'_>, told: Told<'_>) -> Result<(), Breach> {
    let result = run(checked, told).await;
    if result.is_err() {
        // The breach says more than what deleting may fail with.
        let _ = clear(checked.provider).await;
    }
    result
}

/// Deletes whatever a check made that did not come to its end.
pub async fn clear(provider: &dyn NodeProvider) -> Result<(), Error> {
    // What was made last may not be listed yet.
    let latest = Instant::now() + provider.capabilities().visibility;
    loop {
        patiently(|| provider.purge()).await?;
        if Instant::now() >= latest {
            return Ok(());
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

async fn run(checked: &Checked<'_>, told: Told<'_>) -> Result<(), Breach> {
    let Checked { provider, request, .. } = *checked;
    let (w1, w2) = (node("w1"), node("w2"));
    let first = Generation(1);
    clause(told, "a call carries an item at least", provider.capabilities().batch > 0, || "0".to_owned())?;
    lists(checked, told, &[], "the suite starts without instances").await?;

    let created = create(checked, &[request(&w1, first)]).await?.remove(0);
    let holds = (&created.node, created.generation) == (&w1, first);
    clause(told, "an instance carries its node and generation", holds, || format!("{created:?}"))?;
    let again = create(checked, &[request(&w1, first)]).await?.remove(0);
    let holds = (&again.id, &again.address) == (&created.id, &created.address);
    clause(told, "create is idempotent in node and generation", holds, || format!("{created:?}, then {again:?}"))?;

    // One of them is there already.
    let made = create(checked, &[request(&w2, first), request(&w1, first), request(&w1, Generation(2))]).await?;
    let [other, again, newer] = <[Instance; 3]>::try_from(made).expect("as many as were asked for");
    let holds = (&other.node, other.generation, &newer.node, newer.generation) == (&w2, first, &w1, Generation(2));
    clause(told, "answers are in the order of the requests", holds, || format!("{other:?}, {newer:?}"))?;
    clause(told, "create is idempotent in a batch", created.id == again.id, || format!("{created:?}, then {again:?}"))?;
    let ids = [&created.id, &other.id, &newer.id];
    clause(told, "every launch has an id of its own", ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2], || format!("{ids:?}"))?;
    let addresses = [&created.address, &other.address, &newer.address];
    let differ = addresses[0] != addresses[1] && addresses[0] != addresses[2] && addresses[1] != addresses[2];
    clause(told, "addresses differ", differ || addresses.contains(&&None), || format!("{addresses:?}"))?;

    lists(checked, told, &[&created, &other, &newer], "the list shows what was created, once").await?;
    let described = works("an instance is described", patiently(|| provider.describe(&other.id)).await)?;
    let holds = (&described.id, &described.node, described.generation) == (&other.id, &w2, first);
    clause(told, "an instance is described as it is", holds, || format!("{described:?}"))?;

    refuses_mismatches(checked, told, &created, &other).await?;
    lists(checked, told, &[&created, &other, &newer], "a refused deletion deletes nothing").await?;
    restarts(checked, told, &created, &other).await?;
    lists(checked, told, &[&created, &other, &newer], "a reboot keeps the instance").await?;
    stays_while_in_use(checked, told, &other).await?;

    let deletion = DeleteNode::of(&created);
    works("an instance is deleted", patiently(|| provider.delete_one(&deletion)).await)?;
    works("deleting what is gone succeeds", patiently(|| provider.delete_one(&deletion)).await)?;
    told("deleting what is gone succeeds");
    lists(checked, told, &[&other, &newer], "only the deleted instance is gone").await?;
    let described = patiently(|| provider.describe(&created.id)).await;
    let holds = match &described {
        Err(Error::NotFound(_)) => true,
        Ok(described) => described.state == InstanceState::Terminated,
        Err(_) => false,
    };
    clause(told, "what is gone is not described", holds, || format!("{described:?}"))?;

    // What is gone, what does not match, and what is there.
    let wrong = DeleteNode { node: w2.clone(), ..DeleteNode::of(&newer) };
    let answers = delete_all(checked, &[DeleteNode::of(&created), wrong, DeleteNode::of(&other)]).await?;
    let holds = matches!(answers[..], [Ok(()), Err(Error::Mismatch(_)), Ok(())]);
    clause(told, "an item that fails leaves the others of its batch alone", holds, || format!("{answers:?}"))?;
    lists(checked, told, &[&newer], "of a batch only what matches is deleted").await?;
    many_at_once(checked, told, &newer).await?;
    let deletion = DeleteNode::of(&newer);
    works("an instance is deleted", patiently(|| provider.delete_one(&deletion)).await)?;
    lists(checked, told, &[], "nothing is left").await
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

async fn refuses_mismatches(checked: &Checked<'_>, told: Told<'_>, created: &Instance, other: &Instance) -> Result<(), Breach> {
    let wrong = [
        ("node and instance must match", DeleteNode { node: other.node.clone(), ..DeleteNode::of(created) }),
        ("generation and instance must match", DeleteNode { generation: Generation(2), ..DeleteNode::of(created) }),
    ];
    for (text, request) in wrong {
        let answer = patiently(|| checked.provider.delete_one(&request)).await;
        clause(told, text, matches!(answer, Err(Error::Mismatch(_))), || format!("{answer:?}"))?;
    }
    Ok(())
}

async fn restarts(checked: &Checked<'_>, told: Told<'_>, created: &Instance, other: &Instance) -> Result<(), Breach> {
    let provider = checked.provider;
    let DeleteNode { node, generation, instance } = DeleteNode::of(created);
    let (never, unknown) = (Generation(9), InstanceId::new(format!("{node}.9")).expect("valid"));
    if provider.capabilities().restart_agent {
        for force in [false, true] {
            let restarted = patiently(|| provider.restart_agent(&node, generation, &instance, force)).await;
            works("an agent is restarted", restarted)?;
        }
        told("an agent is restarted, also by force");
        let missing = provider.restart_agent(&node, never, &unknown, true).await;
        clause(told, "the agent of no instance cannot be restarted", missing.is_err(), || format!("{missing:?}"))?;
    }
    if provider.capabilities().reboot.is_some() {
        works("an instance is rebooted", patiently(|| provider.reboot(&node, generation, &instance)).await)?;
        let mismatch = patiently(|| provider.reboot(&other.node, generation, &instance)).await;
        let holds = matches!(mismatch, Err(Error::Mismatch(_)));
        clause(told, "node and instance must match for a reboot", holds, || format!("{mismatch:?}"))?;
        let missing = provider.reboot(&node, never, &unknown).await;
        clause(told, "what is not there cannot be rebooted", missing.is_err(), || format!("{missing:?}"))?;
    }
    Ok(())
}

async fn stays_while_in_use(checked: &Checked<'_>, told: Told<'_>, used: &Instance) -> Result<(), Breach> {
    let Some(hold) = checked.hold else { return Ok(()) };
    hold.hold(used).await;
    let deletion = DeleteNode::of(used);
    let answer = patiently(|| checked.provider.delete_one(&deletion)).await;
    let holds = matches!(answer, Err(Error::Conflict { .. } | Error::Undeletable { .. }));
    clause(told, "what is in use is not deleted", holds, || format!("{answer:?}"))?;
    let described = patiently(|| checked.provider.describe(&used.id)).await;
    let holds = described.as_ref().is_ok_and(|described| described.state != InstanceState::Terminated);
    clause(told, "what could not be deleted stays", holds, || format!("{described:?}"))?;
    hold.release(used).await;
    Ok(())
}

/// More than a page and a batch: each is there once, and all go.
async fn many_at_once(checked: &Checked<'_>, told: Told<'_>, present: &Instance) -> Result<(), Breach> {
    let requests: Vec<_> = (0..checked.many).map(|n| (checked.request)(&node(&format!("many-{n}")), Generation(1))).collect();
    let made = create(checked, &requests).await?;
    let all: Vec<&Instance> = made.iter().chain([present]).collect();
    lists(checked, told, &all, "many instances are all listed").await?;
    let deletions: Vec<_> = made.iter().map(DeleteNode::of).collect();
    for answer in delete_all(checked, &deletions).await? {
        works("many instances are deleted", answer)?;
    }
    lists(checked, told, &[present], "many instances go together").await
}

/// Creates all, by calls as large as the provider takes; items that fail in ways that pass are repeated.
async fn create(checked: &Checked<'_>, requests: &[CreateNode]) -> Result<Vec<Instance>, Breach> {
    let answers =
        all_items(checked, requests, "creation", |batch: Vec<CreateNode>| async move { checked.provider.create(&batch).await }).await?;
    answers.into_iter().map(|answer| works("an instance is created", answer)).collect()
}

/// Deletes all, in the same way.
async fn delete_all(checked: &Checked<'_>, requests: &[DeleteNode]) -> Result<Vec<Result<(), Error>>, Breach> {
    all_items(checked, requests, "deletion", |batch: Vec<DeleteNode>| async move { checked.provider.delete(&batch).await }).await
}

async fn all_items<R: Clone, T, F: Future<Output = Vec<Result<T, Error>>>>(
    checked: &Checked<'_>,
    requests: &[R],
    what: &str,
    call: impl Fn(Vec<R>) -> F,
) -> Result<Vec<Result<T, Error>>, Breach> {
    let mut answers: BTreeMap<usize, Result<T, Error>> = BTreeMap::new();
    let mut open: Vec<usize> = (0..requests.len()).collect();
    let mut attempt = 0;
    while !open.is_empty() {
        let (mut again, mut pause) = (Vec::new(), FIRST_PAUSE);
        for numbers in open.chunks(checked.provider.capabilities().batch.max(1)) {
            let batch: Vec<R> = numbers.iter().map(|number| requests[*number].clone()).collect();
            let of_batch = call(batch).await;
            if of_batch.len() != numbers.len() {
                let clause = format!("every item of a {what} has an answer");
                return Err(Breach { clause, found: format!("{} answers to {} items", of_batch.len(), numbers.len()) });
            }
            for (number, answer) in numbers.iter().zip(of_batch) {
                match answer.as_ref().err().and_then(|error| pause_before(attempt, error)) {
                    Some(wanted) => {
                        pause = pause.max(wanted);
                        again.push(*number);
                    }
                    None => drop(answers.insert(*number, answer)),
                }
            }
        }
        open = again;
        attempt += 1;
        if !open.is_empty() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(answers.into_values().collect())
}

/// Looks at the list until it shows exactly `expected`, for as long as the provider may lag behind.
async fn lists(checked: &Checked<'_>, told: Told<'_>, expected: &[&Instance], text: &str) -> Result<(), Breach> {
    let mut expected: Vec<_> = expected.iter().map(|i| (i.id.clone(), i.node.clone(), i.generation)).collect();
    expected.sort();
    let latest = Instant::now() + checked.provider.capabilities().visibility;
    let mut pause = FIRST_PAUSE;
    loop {
        let is_last = Instant::now() >= latest;
        let instances = match patiently(|| checked.provider.list()).await {
            Ok(instances) => instances,
            Err(error) => return Err(Breach { clause: text.to_owned(), found: with_causes(&error) }),
        };
        let alive = instances.into_iter().filter(|i| i.state != InstanceState::Terminated);
        let mut listed: Vec<_> = alive.map(|i| (i.id, i.node, i.generation)).collect();
        listed.sort();
        if listed == expected || is_last {
            return clause(told, text, listed == expected, || format!("listed {listed:?}, expected {expected:?}"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
