//! How a head that cannot serve yet says so, and how a head that says nothing is recognised.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The header of an answer that tells what the head is doing instead.
const HEADER: &str = "cloudtik-head-state";
const SETTING_UP: &str = "setting-up";

/// The head waits for whoever holds the root to go on with its set-up, or has just started.
pub fn setting_up() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(HEADER, MetadataValue::from_static(SETTING_UP));
    Status::with_metadata(Code::Unavailable, "the head is still being set up", metadata)
}

/// Whether an answer is [`setting_up`].
pub fn is_setting_up(status: &Status) -> bool {
    status.metadata().get(HEADER).is_some_and(|state| state == SETTING_UP)
}

/// Whether a call ended because the other end of its connection is silent or broke off in the middle: transport errors of the
/// connection itself, as opposed to answers.
pub fn is_silent(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| {
        let is_timeout = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout);
        is_timeout || error.is::<h2::Error>()
    })
}
