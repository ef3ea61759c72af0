//! Statuses from the head: in pages, or as changes of what was known.

use cloudtik_model::status::{Node, Runtime, Status};
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::admin_client::AdminClient;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use tonic::{Code, Status as Answer, Streaming};

/// How often a status is asked for from its first page, where the head does not keep it for long enough.
const ATTEMPTS: usize = 3;

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Answer> {
    let malformed =
        |e| Answer::internal(format!("the head's answer is not understood: {e}; this cloudtik and the head may differ in version"));
    serde_json::from_slice(json).map_err(malformed)
}

/// The whole status, of one moment.
pub async fn fetch(mut admin: AdminClient<Channel>) -> Result<Status, Answer> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match fetch_pages(&mut admin).await {
            Err(answer) if answer.code() == Code::Aborted && left > 0 => {}
            result => return result,
        }
    }
}

async fn fetch_pages(admin: &mut AdminClient<Channel>) -> Result<Status, Answer> {
    let mut page = admin.status(wire::StatusRequest::default()).await?.into_inner();
    let mut status: Status = parse(&page.summary)?;
    loop {
        for runtime in &page.runtimes {
            status.runtimes.push(parse(runtime)?);
        }
        for node in &page.nodes {
            status.nodes.push(parse(node)?);
        }
        if page.next_page_token.is_empty() {
            return Ok(status);
        }
        page = admin.status(wire::StatusRequest { page_token: page.next_page_token, page_size: 0 }).await?.into_inner();
    }
}

/// The status whenever it changes.
pub struct Statuses {
    changes: Streaming<wire::StatusChange>,
    known: Known,
}

/// What the changes add up to.
#[derive(Default)]
struct Known(Option<Status>);

impl Statuses {
    pub async fn open(mut admin: AdminClient<Channel>) -> Result<Self, Answer> {
        Ok(Self { changes: admin.watch(wire::Empty {}).await?.into_inner(), known: Known::default() })
    }

    /// The next status; nothing after the end of the stream.
    pub async fn message(&mut self) -> Result<Option<Status>, Answer> {
        while let Some(change) = self.changes.message().await? {
            if let Some(status) = self.known.take_in(&change)? {
                return Ok(Some(status.clone()));
            }
        }
        Ok(None)
    }
}

impl Known {
    /// Takes a part of a change in. With the last part what is known is of one moment.
    fn take_in(&mut self, change: &wire::StatusChange) -> Result<Option<&Status>, Answer> {
        if !change.summary.is_empty() {
            let mut summary: Status = parse(&change.summary)?;
            if let Some(known) = self.0.take() {
                (summary.runtimes, summary.nodes) = (known.runtimes, known.nodes);
            }
            self.0 = Some(summary);
        }
        let Some(known) = &mut self.0 else { return Err(Answer::internal("the head sent changes of nothing")) };
        known.runtimes.retain(|runtime| !change.gone_runtimes.iter().any(|gone| gone == runtime.name.as_str()));
        if !change.gone_nodes.is_empty() {
            let gone: std::collections::HashSet<&str> = change.gone_nodes.iter().map(String::as_str).collect();
            known.nodes.retain(|node| !gone.contains(node.id.as_str()));
        }
        for runtime in &change.runtimes {
            let runtime: Runtime = parse(runtime)?;
            match known.runtimes.iter_mut().find(|known| known.name == runtime.name) {
                Some(known) => *known = runtime,
                None => known.runtimes.push(runtime),
            }
        }
        let mut new = Vec::new();
        for node in &change.nodes {
            let node: Node = parse(node)?;
            match known.nodes.binary_search_by(|known| known.id.cmp(&node.id)) {
                Ok(at) => known.nodes[at] = node,
                Err(_) => new.push(node),
            }
        }
        if !new.is_empty() {
            known.nodes.extend(new);
            known.nodes.sort_by(|a, b| a.id.cmp(&b.id));
        }
        if !change.complete {
            return Ok(None);
        }
        for (node, age) in known.nodes.iter_mut().zip(&change.heartbeat_ages) {
            node.heartbeat_age_ms = age.checked_sub(1);
        }
        Ok(Some(known))
    }
}

#[cfg(test)]
mod tests {
    use cloudtik_model::status::{Head, Phase};
    use cloudtik_model::{ClusterName, Epoch, Generation, NodeId, NodeTypeName, Timestamp};

    use super::*;

    fn node(id: &str, state: &str) -> Node {
        Node {
            id: NodeId::new(id).expect("valid"),
            kind: "worker".to_owned(),
            node_type: NodeTypeName::new("default").expect("valid"),
            generation: Generation(1),
            state: state.to_owned(),
            reason: None,
            address: None,
            instance: None,
            since: Timestamp(1),
            heartbeat_age_ms: None,
            agent: None,
            cpus: None,
            memory: None,
            runtimes: Default::default(),
            services: Vec::new(),
        }
    }

    fn json(value: &impl serde::Serialize) -> bytes::Bytes {
        serde_json::to_vec(value).expect("becomes JSON").into()
    }

    #[test]
    fn changes_add_up_to_the_status() {
        let head = Head {
            address: "h:1".to_owned(),
            epoch: Epoch(1),
            version: String::new(),
            pid: 1,
            started: Timestamp(1),
            software_limit: None,
        };
        let mut summary = Status {
            cluster: ClusterName::new("demo").expect("valid"),
            phase: Phase::Converging,
            ready: false,
            revision: 1,
            waiting_for: Vec::new(),
            fetching: Vec::new(),
            lacks_only_room: false,
            alarms: Vec::new(),
            jobs: Default::default(),
            head,
            nodes: Vec::new(),
            runtimes: Vec::new(),
        };
        let mut known = Known::default();
        assert!(known.take_in(&wire::StatusChange { complete: true, ..Default::default() }).is_err(), "changes of nothing");
        let first = wire::StatusChange { summary: json(&summary), nodes: vec![json(&node("w2", "joined"))], ..Default::default() };
        assert!(known.take_in(&first).expect("is taken in").is_none(), "a part is not shown");
        let nodes = ["w10", "head"].map(|id| json(&node(id, "ready"))).to_vec();
        let second = wire::StatusChange { nodes, heartbeat_ages: vec![1, 0, 8], complete: true, ..Default::default() };
        let shown =
            |status: &Status| status.nodes.iter().map(|n| (n.id.to_string(), n.state.clone(), n.heartbeat_age_ms)).collect::<Vec<_>>();
        let status = known.take_in(&second).expect("is taken in").expect("is whole");
        let expect = |nodes: &[(&str, &str, Option<u64>)]| {
            nodes.iter().map(|(id, state, age)| ((*id).to_owned(), (*state).to_owned(), *age)).collect::<Vec<_>>()
        };
        assert_eq!(shown(status), expect(&[("head", "ready", Some(0)), ("w2", "joined", None), ("w10", "ready", Some(7))]));
        summary.ready = true;
        let third = wire::StatusChange {
            summary: json(&summary),
            nodes: vec![json(&node("w2", "ready"))],
            gone_nodes: vec!["w10".to_owned()],
            heartbeat_ages: vec![3, 4],
            complete: true,
            ..Default::default()
        };
        let status = known.take_in(&third).expect("is taken in").expect("is whole");
        assert!(status.ready);
        assert_eq!(shown(status), expect(&[("head", "ready", Some(2)), ("w2", "ready", Some(3))]));
    }
}
