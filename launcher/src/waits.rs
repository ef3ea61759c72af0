//! Waiting for what was asked for: a request that is to be met, a node that is to go.

use std::time::Duration;

use cloudtik_model::demand::RequestedCapacity;
use cloudtik_model::outlook::{RequestView, Size};
use cloudtik_model::status::{Node, Status};
use cloudtik_model::{Generation, NodeId};
use tokio::time::Instant;

use crate::client::Client;
use crate::failure::{FAILED, Failure, NOT_FOUND, TIMED_OUT};
use crate::output::{first_of, short};
use crate::terminal::Progress;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(150);

/// What a look found.
enum Look {
    Done,
    Waiting(String),
    /// It will never be done, for this reason.
    Failed(String),
}

/// Looks until it is done, through restarts of the head. `what` names what is waited for.
async fn until(
    client: &Client,
    what: &str,
    timeout: Duration,
    mut look: impl AsyncFnMut(&Client) -> Result<Look, Failure>,
) -> Result<(), Failure> {
    let mut client = client.clone();
    let (deadline, name) = (Instant::now() + timeout, client.place.name.clone());
    let mut progress = Progress::new();
    progress.phase(&format!("{name}: waiting for {what}"));
    let mut last = String::new();
    loop {
        match look(&client).await {
            Ok(Look::Done) => return Ok(()),
            Ok(Look::Waiting(state)) => {
                progress.waiting(&format!("{name}: {state}"));
                last = state;
            }
            Ok(Look::Failed(why)) => return Err(Failure::failed(why)),
            // The head was restarted.
            Err(failure) if failure.code == TIMED_OUT || failure.code == FAILED => client = client.reconnect().await?,
            Err(failure) => return Err(failure),
        }
        progress.catch_up();
        if Instant::now() + PAUSE > deadline {
            let failure = Failure::new(TIMED_OUT, format!("{what} took longer than {}: {last}", short(timeout)));
            return Err(failure.hint(format!("it goes on; `cloudtik why {name}` shows what it waits for")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the latest request for this is met, and no worker is left beyond the number asked for.
pub async fn for_request(client: &Client, wants: &RequestedCapacity, name: Option<&str>, timeout: Duration) -> Result<(), Failure> {
    let cluster = client.place.name.clone();
    until(client, "the request", timeout, async |client: &Client| {
        let size = client.outlook().await?;
        let same = |request: &&RequestView| request.request.wants == *wants && name.is_none_or(|name| request.request.name == name);
        let Some(request) = size.requests.iter().filter(same).max_by_key(|request| request.request.number) else {
            return Ok(Look::Failed("the request was withdrawn, or its time is over".to_owned()));
        };
        if !request.ready {
            return Ok(Look::Waiting(format!("request {} {}", request.request.name, state_of(request))));
        }
        if let Some(more) = beyond(&size, wants) {
            return Ok(Look::Waiting(more));
        }
        Ok(leaving(&client.status().await?, wants).map_or(Look::Done, Look::Waiting))
    })
    .await
    .map_err(|failure| if failure.code == NOT_FOUND { Failure::new(FAILED, format!("{cluster} was taken down")) } else { failure })
}

/// Workers of the type that are to go.
fn beyond(size: &Size, wants: &RequestedCapacity) -> Option<String> {
    let RequestedCapacity::Workers { node_type, .. } = wants else { return None };
    let of_type = size.outlook.types.get(node_type)?;
    let more = of_type.present.checked_sub(of_type.wanted).filter(|more| *more > 0)?;
    Some(format!("{more} more {node_type} workers than desired are to be removed"))
}

/// Workers of the type that are on their way out.
fn leaving(status: &Status, wants: &RequestedCapacity) -> Option<String> {
    let RequestedCapacity::Workers { node_type, .. } = wants else { return None };
    let is_leaving = |node: &&Node| node.node_type == *node_type && ["draining", "terminating"].contains(&node.state.as_str());
    let names: Vec<&str> = status.nodes.iter().filter(is_leaving).map(|node| node.id.as_str()).collect();
    (!names.is_empty()).then(|| format!("waiting for the removal of {}", names.join(", ")))
}

/// Waits until this incarnation of a node is deleted.
pub async fn for_removal(client: &Client, node: &NodeId, generation: Generation, timeout: Duration) -> Result<(), Failure> {
    until(client, &format!("the removal of {node}"), timeout, async |client: &Client| {
        let status = client.status().await?;
        let found = status.nodes.iter().find(|n| n.id == *node && n.generation == generation);
        Ok(match found {
            None => Look::Done,
            Some(left) => {
                let why = left.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                Look::Waiting(format!("{node} is {}{why}", left.state))
            }
        })
    })
    .await
}

/// Nodes of a request that are named, at most.
const MAX_NODES: usize = 4;

/// What has become of a request, in words.
pub fn state_of(request: &RequestView) -> String {
    let on = if request.nodes.is_empty() { String::new() } else { format!(" on {}", first_of(&request.nodes, MAX_NODES)) };
    match &request.unmet {
        Some(unmet) if on.is_empty() => format!("waits: {unmet}"),
        Some(unmet) => format!("waits: {unmet}; the rest is{on}"),
        None if request.ready => format!("ready{on}"),
        None => format!("coming{on}"),
    }
}
