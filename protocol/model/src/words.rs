//! The words for people: every typed reason, cause, refusal and actor is put into English here and nowhere else.
//!
//! Nothing that decides, stores or checks reads these texts; they may change at any time. What is stored and sent has a stable
//! `code` and its fields. What `-o json` prints has the words beside it, as `message`.

mod alarm;
mod answer;
mod conflict;
mod event;
mod job;
mod outlook;
mod reason;
mod refusal;
mod wait;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::actor::Actor;
use crate::alarm::Alarm;
use crate::answer::Answer;
use crate::conflict::{ConflictCause, RequestConflict};
use crate::event::{Event, What};
use crate::job::Job;
use crate::outlook::{Blocked, PolicySays, RequestView, ShortageCause, Shortfall, Source, UnmetCause};
use crate::reason::{Obstacle, Reason, ServiceProblem, Trouble};
use crate::refusal::{NoRoom, Refusal};

/// What is printed beside the fields of a value that was serialized under a name by [`crate::worded`].
pub(crate) type Beside = Vec<(&'static str, Value)>;

/// The words of a value that is serialized under a name; nothing for names that have none.
pub(crate) fn beside<T: Serialize + ?Sized>(name: &str, value: &T) -> serde_json::Result<Beside> {
    fn typed<W: DeserializeOwned, T: Serialize + ?Sized>(value: &T) -> serde_json::Result<W> {
        serde_json::from_value(serde_json::to_value(value)?)
    }
    fn message<W: DeserializeOwned + fmt::Display, T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Beside> {
        Ok(vec![("message", Value::String(typed::<W, T>(value)?.to_string()))])
    }
    match name.strip_prefix("cloudtik::") {
        Some("Event") => {
            let event: Event = typed(value)?;
            let details: BTreeMap<String, String> = event.details().into_iter().collect();
            Ok(vec![("message", Value::String(event.message())), ("details", serde_json::to_value(details)?)])
        }
        Some("RequestView") => {
            let view: RequestView = typed(value)?;
            Ok(vec![("description", Value::String(view.request.wants.to_string()))])
        }
        Some("Job") => Ok(vec![("message", Value::String(typed::<Job, T>(value)?.message()))]),
        Some("Alarm") => message::<Alarm, T>(value),
        Some("Answer") => message::<Answer, T>(value),
        Some("RequestConflict") => message::<RequestConflict, T>(value),
        Some("ConflictCause") => message::<ConflictCause, T>(value),
        Some("ShortageCause") => message::<ShortageCause, T>(value),
        Some("What") => message::<What, T>(value),
        Some("Reason") => message::<Reason, T>(value),
        Some("Obstacle") => message::<Obstacle, T>(value),
        Some("ServiceProblem") => message::<ServiceProblem, T>(value),
        Some("Trouble") => message::<Trouble, T>(value),
        Some("Refusal") => message::<Refusal, T>(value),
        Some("NoRoom") => message::<NoRoom, T>(value),
        Some("Source") => message::<Source, T>(value),
        Some("Blocked") => message::<Blocked, T>(value),
        Some("UnmetCause") => message::<UnmetCause, T>(value),
        Some("Shortfall") => message::<Shortfall, T>(value),
        Some("PolicySays") => message::<PolicySays, T>(value),
        _ => Ok(Vec::new()),
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalUser { uid: None } => f.write_str("the local user"),
            Self::LocalUser { uid: Some(uid) } => write!(f, "the local user with uid {uid}"),
            Self::Administrator { name, role } => write!(f, "{name}, {role}"),
            Self::Agent { node } => write!(f, "the agent of {node}"),
            Self::Head => f.write_str("the head"),
        }
    }
}

/// Names in a row.
fn list<T: fmt::Display>(of: &[T]) -> String {
    of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A text behind a colon, if there is one.
fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
