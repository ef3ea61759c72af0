//! The contract of [`Leadership`] and [`Store`] as a suite that every implementation runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloudtik_brain::access::{Acceptance, GrantRecord};
use cloudtik_brain::{ClusterRecord, Planned, Record};
use cloudtik_model::access::Role;
use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};
use cloudtik_model::event::{Event, What};
use cloudtik_model::node::NodeRecord;
use cloudtik_model::report::ServiceState;
use cloudtik_model::{AdministratorName, Epoch, Generation, NodeId, NodeTypeName, Timestamp};

use super::{Error, KEPT_EVENTS, KEPT_OF_NODE, LAST_EPOCH, Leadership, Store};

/// Runs the whole suite. Each call of `open` opens the same cluster's records anew, as a head that starts does; there are
/// none at the first. Whatever was opened before is closed by then. Panics with the clause that does not hold.
pub fn check(mut open: impl FnMut() -> Arc<dyn Leadership>) {
    a_commit_is_remembered_by_the_next_leadership(&mut open);
    epochs_only_grow(&mut open);
    a_leadership_that_ended_writes_nothing(&mut open);
    old_events_go_and_positions_stay(&mut open);
    a_node_has_a_share_of_the_log(&mut open);
    revisions_are_kept_until_they_are_forgotten(&mut open);
    grants_are_kept_until_they_are_forgotten(&mut open);
}

fn worker() -> NodeId {
    NodeId::new("w1").expect("valid")
}

fn worker_record() -> NodeRecord {
    NodeRecord::requested(worker(), Generation(1), NodeTypeName::new("default").expect("valid"), Timestamp(1))
}

fn event(node: &NodeId) -> Record {
    let what = What::CreateFailed { error: "no".to_owned() };
    Record::Event(Event { node: Some(node.clone()), generation: Some(Generation(1)), ..Event::new(Timestamp(1), what) })
}

fn begin(leadership: &dyn Leadership) -> (super::Remembered, Arc<dyn Store>) {
    leadership.begin(b"another secret", Epoch(0)).expect("a leadership begins")
}

fn a_commit_is_remembered_by_the_next_leadership(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    let leadership = open();
    let (first, store) = leadership.begin(b"secret", Epoch(0)).expect("the first leadership begins");
    assert_eq!(first.epoch, Epoch(1));
    assert_eq!(
        (first.memory.nodes.len(), first.memory.requests.len(), first.memory.plan.len()),
        (0, 0, 0),
        "the suite starts with nothing"
    );
    let holds = vec![Planned { request: 7, bundle: 0, count: 2 }];
    let plan = |holds: &[Planned]| Record::Plan { node: worker(), holds: holds.to_vec() };
    let wants = RequestedCapacity::More { node_type: NodeTypeName::new("default").expect("valid"), count: 1 };
    let ask = ResourceRequest { name: "job".to_owned(), number: 7, at: Timestamp(1), until: None, wants, reason: String::new() };
    let cluster = ClusterRecord { stopping: true, ..ClusterRecord::default() };
    let records = [
        Record::Node(worker_record()),
        Record::Cluster(cluster.clone()),
        event(&worker()),
        event(&NodeId::head()),
        plan(&holds),
        Record::ResourceRequest(ask.clone()),
    ];
    assert_eq!(store.commit(&records).expect("commits"), 2, "the position of the last event");
    assert_eq!(store.commit(&[]).expect("commits nothing"), 2, "the position of the last event");
    drop((leadership, store));

    let leadership = open();
    let (second, store) = begin(&*leadership);
    assert_eq!(second.join_secret, b"secret", "the first join secret is kept");
    assert_eq!(second.memory.nodes, [worker_record()]);
    assert_eq!(second.memory.cluster, cluster);
    assert_eq!((second.memory.plan, second.memory.requests), (BTreeMap::from([(worker(), holds)]), vec![ask.clone()]));
    store.commit(&[plan(&[]), Record::ResourceRequestGone { name: ask.name }]).expect("commits");
    assert_eq!(store.events(0, 10, Some(&worker())).expect("reads").iter().map(|e| e.position).collect::<Vec<_>>(), [1]);
    assert_eq!(store.events(2, 10, None).expect("reads").iter().map(|e| e.position).collect::<Vec<_>>(), [2]);
    assert_eq!(store.events(0, 1, None).expect("reads").len(), 1, "no more than wanted");
    assert_eq!(store.events(3, 10, None).expect("reads"), []);
    drop((leadership, store));

    let memory = begin(&*open()).0.memory;
    assert_eq!((memory.plan.len(), memory.requests.len()), (0, 0), "what is gone is not remembered");
}

fn epochs_only_grow(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    let leadership = open();
    let before = begin(&*leadership).0.epoch;
    assert_eq!(begin(&*leadership).0.epoch, Epoch(before.0 + 1));
    let seen = Epoch(before.0 + 1_000);
    assert_eq!(leadership.begin(b"", seen).expect("begins").0.epoch, Epoch(seen.0 + 1), "later than what was seen");
    for last in [LAST_EPOCH, Epoch(u64::MAX)] {
        let exhausted = leadership.begin(b"", last);
        assert!(matches!(exhausted, Err(Error::EpochsExhausted(_))), "no epoch wraps: {exhausted:?}");
    }
    drop(leadership);
    assert_eq!(begin(&*open()).0.epoch, Epoch(seen.0 + 2), "a refused leadership counts for nothing");
}

fn a_leadership_that_ended_writes_nothing(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    let leadership = open();
    let (old, ended) = begin(&*leadership);
    let last = ended.commit(&[event(&worker())]).expect("the holder commits");
    let (new, store) = begin(&*leadership);
    let is_refused =
        |result: Result<(), Error>| matches!(result, Err(Error::Superseded { own, by }) if own == old.epoch && by == new.epoch);
    assert!(is_refused(ended.commit(&[event(&worker())]).map(drop)), "a commit of an ended leadership is refused");
    assert!(is_refused(ended.put_revision(9, b"late")), "and a description");
    assert!(is_refused(ended.forget_revisions_before(9)), "and its removal");
    assert_eq!(store.commit(&[]).expect("the new holder commits"), last, "nothing of it was written");
    assert_eq!(store.revisions().expect("reads"), []);
}

fn old_events_go_and_positions_stay(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    let leadership = open();
    let (_, store) = begin(&*leadership);
    let of_all = Record::Event(Event::new(Timestamp(1), What::Resume));
    let (page, mut last) = (vec![of_all; 10_000], 0);
    for _ in 0..=KEPT_EVENTS / 10_000 {
        last = store.commit(&page).expect("commits");
    }
    assert_eq!(store.events(last, 10, None).expect("reads").len(), 1);
    let kept = store.events(last + 1 - KEPT_EVENTS, usize::MAX, None).expect("reads");
    assert_eq!((kept.len() as u64, kept[0].position), (KEPT_EVENTS, last + 1 - KEPT_EVENTS));
    let all = store.events(0, usize::MAX, None).expect("reads");
    assert!((all.len() as u64) < KEPT_EVENTS * 2, "{} events are kept", all.len());
}

fn a_node_has_a_share_of_the_log(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    let leadership = open();
    let (_, store) = begin(&*leadership);
    let (flapping, other) = (NodeId::new("flaps").expect("valid"), NodeId::new("other").expect("valid"));
    let ready = || What::ServiceChanged { service: "a/b".parse().expect("a key"), state: ServiceState::Ready, detail: String::new() };
    let flap = Record::Event(Event { node: Some(flapping.clone()), ..Event::new(Timestamp(1), ready()) });
    let first = store.commit(&[event(&other), event(&flapping), event(&other)]).expect("commits");
    for _ in 0..10 {
        store.commit(&vec![flap.clone(); 1_000]).expect("commits");
    }
    let last = store.commit(&[event(&other)]).expect("commits");
    let of = |node| store.events(0, usize::MAX, Some(node)).expect("reads");
    let positions = |node| of(node).iter().map(|e| e.position).collect::<Vec<_>>();
    assert_eq!(positions(&other), [first - 2, first, last], "what others did stays");
    let kept = of(&flapping);
    assert_eq!(kept.len() as u64, KEPT_OF_NODE + 1, "the share of its services, and what else happened to it");
    assert_eq!((kept[0].position, kept[1].position), (first - 1, last - KEPT_OF_NODE), "its oldest go");
    assert!(kept.iter().is_sorted_by_key(|e| e.position), "in their order");
    assert_eq!(
        store.events(last - 2, 1, Some(&flapping)).expect("reads")[0].position,
        last - 2,
        "from a position on, and no more than wanted"
    );
    let all = store.events(first - 2, usize::MAX, None).expect("reads");
    assert_eq!(all.len() as u64, KEPT_OF_NODE + 4, "what is gone of a node is gone of all");
}

fn grants_are_kept_until_they_are_forgotten(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    let grant = |number, accepted| GrantRecord {
        number,
        name: AdministratorName::new("ada").expect("valid"),
        role: Role::Operator,
        granted_at: Timestamp(1),
        granted_by: cloudtik_model::Actor::LOCAL,
        expires: Timestamp(9),
        token: "digest".to_owned(),
        accept_by: Timestamp(5),
        accepted,
        revoked: None,
    };
    let accepted = Acceptance { at: Timestamp(2), key: "key".to_owned(), from: "127.0.0.1".to_owned() };
    {
        let leadership = open();
        let (_, store) = begin(&*leadership);
        assert_eq!(store.grants().expect("reads"), []);
        store.commit(&[Record::Grant(grant(1, None)), Record::Grant(grant(2, None)), event(&worker())]).expect("commits");
        store.commit(&[Record::GrantGone { number: 1 }, Record::Grant(grant(2, Some(accepted.clone())))]).expect("commits");
    }
    let leadership = open();
    let (_, store) = begin(&*leadership);
    assert_eq!(store.grants().expect("reads"), [grant(2, Some(accepted))]);
}

fn revisions_are_kept_until_they_are_forgotten(open: &mut impl FnMut() -> Arc<dyn Leadership>) {
    {
        let leadership = open();
        let (_, store) = begin(&*leadership);
        for revision in [1, 2, 10] {
            store.put_revision(revision, format!("revision {revision}").as_bytes()).expect("keeps");
        }
        store.put_revision(2, b"again").expect("replaces");
        store.forget_revisions_before(2).expect("forgets");
    }
    let leadership = open();
    let (_, store) = begin(&*leadership);
    let expected = [(2, b"again".to_vec()), (10, b"revision 10".to_vec())];
    assert_eq!(store.revisions().expect("reads"), expected);
}
