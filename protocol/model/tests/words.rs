//! What is stored has codes and fields; what is printed has the words beside them.

use cloudtik_model::alarm::Alarm;
use cloudtik_model::answer::{AfterDrain, Answer};
use cloudtik_model::conflict::{ConflictCause, RequestConflict};
use cloudtik_model::demand::{RequestedCapacity, ResourceRequest};
use cloudtik_model::event::{Event, ScaleIn, ScaleInChoice, StateName, What};
use cloudtik_model::node::{DialOutcome, Evidence, EvidenceKind, NodeState};
use cloudtik_model::outlook::{RequestView, Source};
use cloudtik_model::printed::Printed;
use cloudtik_model::reason::{Reason, Trouble};
use cloudtik_model::{Actor, NodeId, NodeTypeName, Timestamp};
use serde_json::{Value, json};

fn w1() -> NodeId {
    NodeId::new("w1").expect("valid")
}

fn stored(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(of).expect("JSON")
}

fn printed(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(Printed(of)).expect("JSON")
}

#[test]
fn an_event_is_stored_by_code_and_printed_with_its_words() {
    let why = Reason::AboveTypeMaximum { max: 3 };
    let what = What::StateChanged { from: StateName::Ready, to: StateName::Draining, why };
    let event = Event { node: Some(w1()), actor: Some(Actor::LOCAL), ..Event::new(Timestamp(1_709_210_096_789), what) };
    let plain = stored(&event);
    assert_eq!(
        plain,
        json!({"position": 0, "at": 1_709_210_096_789u64, "node": "w1", "generation": null, "kind": "node", "actor": {"actor": "local-user"},
            "what": {"code": "state-changed", "from": "ready", "to": "draining", "why": {"code": "above-type-maximum", "max": 3}}})
    );
    assert_eq!(serde_json::from_value::<Event>(plain).expect("an event"), event);

    let shown = printed(&event);
    assert_eq!(shown["at"], "2024-02-29T12:34:56.789Z");
    assert_eq!(shown["message"], "ready → draining: above the type's maximum of 3");
    assert_eq!(shown["what"]["code"], "state-changed");
    assert_eq!(shown["what"]["why"]["message"], "above the type's maximum of 3");
    assert_eq!(event.sentence(), "ready → draining: above the type's maximum of 3 (by the local user)");
}

#[test]
fn facts_behind_an_event_are_fields_and_are_printed_by_name() {
    let decision = ScaleIn {
        node: w1(),
        why: Reason::NotNeeded,
        sources: vec![Source::Minimum { count: 1 }],
        present: 2,
        wanted: 1,
        activity: cloudtik_model::event::Activity::Idle { for_s: 60 },
        choice: ScaleInChoice::NotNeeded,
    };
    let event = Event::new(Timestamp(0), What::ScaleIn(Box::new(decision)));
    assert_eq!(serde_json::from_value::<Event>(stored(&event)).expect("an event"), event);
    let shown = printed(&event);
    assert_eq!(shown["message"], "scale in w1: no longer needed");
    assert_eq!(shown["details"]["wanted of its type"], "minimum 1");
    assert_eq!(shown["what"]["sources"][0], json!({"code": "minimum", "count": 1, "message": "minimum 1"}));

    let evidence = vec![Evidence { at: Timestamp(0), kind: EvidenceKind::DialBack { outcome: DialOutcome::TimedOut } }];
    let verdict = Event::new(Timestamp(0), What::NodeDown { evidence });
    assert_eq!(serde_json::from_value::<Event>(stored(&verdict)).expect("an event"), verdict);
    assert_eq!(printed(&verdict)["details"]["evidence 1"], "dial-back: no answer in time");
}

#[test]
fn a_state_carries_its_reason_as_data() {
    let life = NodeState::Quarantined { reason: Reason::Quarantined { reason: "its disk is slow".to_owned() } };
    let plain = stored(&life);
    assert_eq!(plain, json!({"state": "quarantined", "reason": {"code": "quarantined", "reason": "its disk is slow"}}));
    assert_eq!(serde_json::from_value::<NodeState>(plain).expect("a state"), life);
    assert_eq!(printed(&life)["reason"]["message"], "its disk is slow");
}

/// Two events say the same again whatever amounts they name, and not if anything else differs.
#[test]
fn events_repeat_each_other_by_what_they_are_about() {
    use cloudtik_model::report::FailureCause;
    let crash = |code: i32, restart_in_ms| {
        let failure = FailureCause::Crashed { exit_code: Some(code), how: format!("exit {code}") };
        Event::new(Timestamp(restart_in_ms), What::ServiceFailed { service: "queue/q".parse().expect("a key"), failure, restart_in_ms })
    };
    assert!(crash(1, 200).repeats(&crash(1, 400)));
    assert!(!crash(1, 200).repeats(&crash(2, 200)));
    assert!(!crash(1, 200).repeats(&Event { node: Some(w1()), ..crash(1, 200) }));
}

/// A field that is called like the words would stand there twice, which readers refuse.
#[test]
fn no_printed_document_names_a_field_twice() {
    #[derive(serde::Deserialize)]
    struct Worded {
        message: String,
    }
    let error = || "no route to host".to_owned();
    let texts = [
        serde_json::to_string(&Printed(&What::ListFailed { error: error() })),
        serde_json::to_string(&Printed(&What::GoalRefused { error: error() })),
        serde_json::to_string(&Printed(&What::Throttled { error: error() })),
        serde_json::to_string(&Printed(&Reason::CreateFailed { error: error() })),
        serde_json::to_string(&Printed(&Trouble::AgentRestartFailed { error: error() })),
    ];
    for text in texts.map(|text| text.expect("JSON")) {
        let read: Worded = serde_json::from_str(&text).unwrap_or_else(|problem| panic!("{problem}: {text}"));
        assert!(read.message.ends_with(&error()), "{text}");
    }
}

#[test]
fn alarms_answers_and_requests_have_codes_and_are_printed_with_their_words() {
    let alarm = Alarm::TypePaused { node_type: NodeTypeName::new("gpu").expect("valid"), why: Reason::OfferGone };
    let plain = stored(&alarm);
    assert_eq!(plain, json!({"code": "type-paused", "node_type": "gpu", "why": {"code": "offer-gone"}}));
    assert_eq!(serde_json::from_value::<Alarm>(plain).expect("an alarm"), alarm);
    assert_eq!(printed(&alarm)["message"], alarm.to_string());

    let answer = Answer::Draining { node: w1(), then: AfterDrain::Replaced { on_hold: false } };
    let plain = stored(&answer);
    assert_eq!(plain, json!({"code": "draining", "node": "w1", "then": {"then": "replaced", "on_hold": false}}));
    assert_eq!(serde_json::from_value::<Answer>(plain).expect("an answer"), answer);
    assert_eq!(printed(&answer)["message"], "w1 is being drained; it will be replaced, to keep the desired count of its type");

    let conflict = RequestConflict { requests: vec!["job".to_owned()], more: 2, why: ConflictCause::TypeRemoved };
    let shown = printed(&conflict);
    assert_eq!((&shown["message"], &shown["why"]["code"]), (&json!("requests job and 2 more"), &json!("type-removed")));

    let wants = RequestedCapacity::Workers { node_type: NodeTypeName::new("gpu").expect("valid"), count: 2 };
    let request = ResourceRequest { name: "two".to_owned(), number: 1, at: Timestamp(0), until: None, wants, reason: String::new() };
    let view = RequestView { request, unmet: None, ready: true, nodes: vec![w1()] };
    assert_eq!(serde_json::from_value::<RequestView>(stored(&view)).expect("a request"), view);
    let shown = printed(&view);
    assert_eq!((&shown["description"], &shown["name"]), (&json!("2 workers of type gpu"), &json!("two")));
}
