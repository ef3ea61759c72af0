//! The status, made once for all who look. The brain is looked at in pages, so that its thread is never held for long; what did
//! not change from one picture to the next is shared, and whoever follows is sent what changed.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloudtik_brain::{NodeView, Snapshot};
use cloudtik_model::status::{Node, Runtime, Status};
use cloudtik_model::{NodeId, Timestamp};
use cloudtik_protocol::wire;
use cloudtik_runtimes::View;
use serde::Serialize;

use crate::artifacts::ArtifactStore;
use crate::revisions::Revisions;
use crate::runner::{BrainHandle, Stopped};
use crate::settings::Settings;
use crate::status;

/// Nodes that the brain is asked for at once.
const NODES: usize = 256;
/// Bytes of one message, unless a single item is larger: well below the limit of a message.
const PART: usize = 1 << 20;
/// Where a runtime can be reached, at most: what is sent of one runtime must fit into a message.
const MAX_ENDPOINTS: usize = 20_000;
/// Pictures of which somebody has read a part, at most, and for how long they are kept.
const KEPT: usize = 8;
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Followers have a picture made at most this often, and so seldom that the brain spends a twentieth of its time on it.
const PAUSE: Duration = Duration::from_millis(40);
const SHARE: u32 = 20;

/// The status at one moment.
#[derive(Debug)]
pub struct Picture {
    number: u64,
    /// The brain's count of changes before it was looked at.
    changes: u64,
    begun: Instant,
    /// How long the brain was held for it, all pages together.
    held: Duration,
    /// Without runtimes and nodes.
    summary: Status,
    runtimes: Vec<Arc<Runtime>>,
    /// In the brain's order, without the ages of heartbeats.
    nodes: Vec<Arc<Node>>,
    heartbeat_ages: Vec<Option<u64>>,
}

/// What a picture is made from.
pub struct Sources {
    pub settings: Arc<Settings>,
    pub started: Timestamp,
    pub brain: BrainHandle,
    pub revisions: Revisions,
    pub artifacts: ArtifactStore,
    pub view: View,
}

/// A cheap handle.
#[derive(Clone)]
pub struct StatusBoard(Arc<Inner>);

struct Inner {
    sources: Sources,
    /// How many pictures were asked for.
    tickets: AtomicU64,
    latest: tokio::sync::Mutex<Latest>,
    kept: Mutex<VecDeque<(Instant, Arc<Picture>)>>,
}

#[derive(Default)]
struct Latest {
    /// Whoever asked up to this ticket is answered by the picture.
    ticket: u64,
    picture: Option<Arc<Picture>>,
}

impl StatusBoard {
    pub fn new(sources: Sources) -> Self {
        Self(Arc::new(Inner { sources, tickets: AtomicU64::new(0), latest: Default::default(), kept: Mutex::default() }))
    }

    /// A picture that was begun after this call. Those who ask while one is being made share the next.
    pub async fn fresh(&self) -> Result<Arc<Picture>, Stopped> {
        let ticket = self.0.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        let mut latest = self.0.latest.lock().await;
        if latest.ticket >= ticket
            && let Some(picture) = &latest.picture
        {
            return Ok(picture.clone());
        }
        let answered = self.0.tickets.load(Ordering::SeqCst);
        let picture = Arc::new(self.make(latest.picture.clone()).await?);
        *latest = Latest { ticket: answered, picture: Some(picture.clone()) };
        Ok(picture)
    }

    /// Waits until a picture would differ from what a follower has, and makes it, or takes the one that another follower had made.
    pub async fn after(&self, known: &Picture, tick: Duration) -> Result<Arc<Picture>, Stopped> {
        let mut changes = self.0.sources.brain.changes();
        loop {
            let latest = self.0.latest.lock().await.picture.clone();
            if let Some(newer) = latest.as_ref().filter(|latest| latest.number > known.number) {
                return Ok(newer.clone());
            }
            let latest = latest.as_deref().unwrap_or(known);
            let pause = PAUSE.max(latest.held * SHARE).saturating_sub(latest.begun.elapsed());
            tokio::time::sleep(pause).await;
            let is_fetching = self.0.sources.artifacts.progress() != latest.summary.fetching;
            if *changes.borrow_and_update() != latest.changes || is_fetching {
                let still = self.0.latest.lock().await.picture.as_ref().is_none_or(|now| now.number <= known.number);
                return if still { self.fresh().await } else { continue };
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Err(Stopped::Shutdown) },
                () = tokio::time::sleep(tick) => {}
            }
        }
    }

    /// Looks at every node, a page at a time.
    pub async fn nodes<T: Send + 'static>(
        &self,
        look: impl Fn(&NodeView) -> Option<T> + Clone + Send + 'static,
    ) -> Result<Vec<T>, Stopped> {
        let (mut found, mut after) = (Vec::new(), None::<NodeId>);
        loop {
            let look = look.clone();
            let page = move |brain: &cloudtik_brain::Brain| {
                let page = brain.page(after.as_ref(), NODES);
                let next = (page.len() == NODES).then(|| page.last().map(|node| node.view.record.id.clone())).flatten();
                (page.iter().filter_map(|node| look(&node.view)).collect::<Vec<_>>(), next)
            };
            let (page, next) = self.0.sources.brain.query(page).await?;
            found.extend(page);
            match next {
                Some(next) => after = Some(next),
                None => return Ok(found),
            }
        }
    }

    async fn make(&self, last: Option<Arc<Picture>>) -> Result<Picture, Stopped> {
        let begun = Instant::now();
        let changes = *self.0.sources.brain.changes().borrow();
        let (snapshot, held) = self.look().await?;
        let own = self.clone();
        let is_small = snapshot.nodes.len() <= NODES;
        let compose = move || own.compose(&snapshot, last.as_deref(), changes, begun, held);
        if is_small {
            return Ok(compose());
        }
        tokio::task::spawn_blocking(compose).await.map_err(|_| Stopped::Shutdown)
    }

    /// The brain's word on everything. A small cluster is seen at one moment, a large one page by page.
    async fn look(&self) -> Result<(Snapshot, Duration), Stopped> {
        let brain = &self.0.sources.brain;
        let first = |brain: &cloudtik_brain::Brain| {
            let begun = Instant::now();
            (brain.overview(), brain.page(None, NODES), begun.elapsed())
        };
        let (overview, mut nodes, mut held) = brain.query(first).await?;
        let mut is_whole = nodes.len() < NODES;
        while !is_whole {
            let after = nodes.last().map(|node| node.view.record.id.clone());
            let next = move |brain: &cloudtik_brain::Brain| {
                let begun = Instant::now();
                (brain.page(after.as_ref(), NODES), begun.elapsed())
            };
            let (page, took) = brain.query(next).await?;
            is_whole = page.len() < NODES;
            nodes.extend(page);
            held += took;
        }
        Ok((Snapshot::assemble(overview, nodes), held))
    }

    fn compose(&self, snapshot: &Snapshot, last: Option<&Picture>, changes: u64, begun: Instant, held: Duration) -> Picture {
        let sources = &self.0.sources;
        let latest = sources.revisions.latest();
        let mut status = status::compose(&status::Sources {
            settings: &sources.settings,
            started: sources.started,
            snapshot,
            planner: latest.as_ref().map(|(_, _, planner)| &**planner),
            view: &sources.view,
            fetching: sources.artifacts.progress(),
        });
        let mut nodes = std::mem::take(&mut status.nodes);
        // Time passing is no news.
        let heartbeat_ages = nodes.iter_mut().map(|node| node.heartbeat_age_ms.take()).collect();
        let mut runtimes = std::mem::take(&mut status.runtimes);
        runtimes.iter_mut().for_each(bound);
        Picture {
            number: last.map_or(0, |last| last.number) + 1,
            changes,
            begun,
            held,
            summary: status,
            runtimes: shared(runtimes, last.map_or(&[], |last| &last.runtimes), |runtime| &runtime.name),
            nodes: shared(nodes, last.map_or(&[], |last| &last.nodes), |node| &node.id),
            heartbeat_ages,
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Arc<Picture>)>> {
        self.0.kept.lock().expect("nothing panics while holding the lock")
    }

    /// A page of the status, which is made for the first one.
    pub async fn page(&self, request: &wire::StatusRequest) -> Result<wire::StatusPage, tonic::Status> {
        let moved_on = || tonic::Status::aborted("the page token is too old; ask for the first page again");
        let (picture, offset) = if request.page_token.is_empty() {
            (self.fresh().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?, 0)
        } else {
            let token = request.page_token.split_once('.').and_then(|(n, at)| Some((n.parse::<u64>().ok()?, at.parse::<usize>().ok()?)));
            let (number, offset) = token.ok_or_else(|| tonic::Status::invalid_argument("not a page token"))?;
            let found = self.kept().iter().find(|(at, picture)| picture.number == number && at.elapsed() < KEPT_FOR).cloned();
            (found.ok_or_else(moved_on)?.1, offset)
        };
        let (mut page, next) = picture.page(offset, request.page_size as usize);
        if let Some(next) = next {
            page.next_page_token = format!("{}.{next}", picture.number);
            self.keep(picture);
        }
        Ok(page)
    }

    fn keep(&self, picture: Arc<Picture>) {
        let mut kept = self.kept();
        kept.retain(|(at, known)| at.elapsed() < KEPT_FOR && known.number != picture.number);
        kept.push_back((Instant::now(), picture));
        while kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

/// Leaves out endpoints beyond what a message holds, and says how many.
fn bound(runtime: &mut Runtime) {
    runtime.endpoints_left_out = runtime.endpoints.len().saturating_sub(MAX_ENDPOINTS);
    runtime.endpoints.truncate(MAX_ENDPOINTS);
}

/// Items of which those that are as they were are shared with the picture before.
fn shared<T: PartialEq, K: Eq + Hash>(items: Vec<T>, before: &[Arc<T>], key: impl Fn(&T) -> &K) -> Vec<Arc<T>> {
    let known: HashMap<&K, &Arc<T>> = before.iter().map(|item| (key(item), item)).collect();
    let share = |item: T| match known.get(key(&item)) {
        Some(same) if ***same == item => (*same).clone(),
        _ => Arc::new(item),
    };
    items.into_iter().map(share).collect()
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("documents become JSON").into()
}

impl Picture {
    /// The whole document.
    pub fn status(&self) -> Status {
        Status {
            runtimes: self.runtimes.iter().map(|runtime| (**runtime).clone()).collect(),
            nodes: (0..self.nodes.len()).map(|at| self.node(at)).collect(),
            ..self.summary.clone()
        }
    }

    pub fn states(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.state.as_str())
    }

    pub fn summary(&self) -> &Status {
        &self.summary
    }

    fn node(&self, at: usize) -> Node {
        Node { heartbeat_age_ms: self.heartbeat_ages[at], ..(*self.nodes[at]).clone() }
    }

    /// What fits into a page from an item on, and which item the next page begins with.
    fn page(&self, offset: usize, limit: usize) -> (wire::StatusPage, Option<usize>) {
        let mut page = wire::StatusPage::default();
        if offset == 0 {
            page.summary = json(&self.summary);
        }
        let (mut size, first_node, all) = (page.summary.len(), self.runtimes.len(), self.runtimes.len() + self.nodes.len());
        for at in offset..all {
            let item = if at < first_node { json(&*self.runtimes[at]) } else { json(&self.node(at - first_node)) };
            let is_full = size > 0 && size + item.len() > PART || limit > 0 && page.nodes.len() >= limit;
            if is_full {
                return (page, Some(at));
            }
            size += item.len();
            if at < first_node { page.runtimes.push(item) } else { page.nodes.push(item) }
        }
        (page, None)
    }

    /// What is different from an earlier picture, in parts; nothing if only time has passed.
    pub fn changes_since(&self, before: Option<&Self>) -> Vec<wire::StatusChange> {
        let mut parts = Parts::default();
        if before.is_none_or(|before| before.summary != self.summary) {
            let item = json(&self.summary);
            let part = parts.room_for(item.len());
            part.summary = item;
        }
        let (new, gone) = differences(&self.runtimes, before.map_or(&[], |before| &before.runtimes), |runtime| &runtime.name);
        for at in new {
            let item = json(&*self.runtimes[at]);
            parts.room_for(item.len()).runtimes.push(item);
        }
        for name in gone {
            parts.room_for(name.as_str().len()).gone_runtimes.push(name.to_string());
        }
        let (new, gone) = differences(&self.nodes, before.map_or(&[], |before| &before.nodes), |node| &node.id);
        for at in new {
            let item = json(&self.node(at));
            parts.room_for(item.len()).nodes.push(item);
        }
        for id in gone {
            parts.room_for(id.as_str().len()).gone_nodes.push(id.to_string());
        }
        if parts.all.is_empty() {
            return Vec::new();
        }
        let last = parts.room_for(self.nodes.len() * 4);
        last.heartbeat_ages = self.heartbeat_ages.iter().map(|age| age.map_or(0, |age| age.saturating_add(1))).collect();
        last.complete = true;
        parts.all
    }
}

/// Which items are new or different, by their place, and the keys of those that are gone.
fn differences<'a, T, K: Eq + Hash>(now: &'a [Arc<T>], before: &'a [Arc<T>], key: impl Fn(&'a T) -> &'a K) -> (Vec<usize>, Vec<&'a K>) {
    let mut known: HashMap<&K, &Arc<T>> = before.iter().map(|item| (key(item), item)).collect();
    let mut new = Vec::new();
    for (at, item) in now.iter().enumerate() {
        // What did not change is the same allocation: see `shared`.
        if known.remove(key(item)).is_none_or(|before| !Arc::ptr_eq(before, item)) {
            new.push(at);
        }
    }
    let gone = before.iter().map(|item| key(item)).filter(|key| known.contains_key(key)).collect();
    (new, gone)
}

/// A change in parts that each fit into a message.
#[derive(Default)]
struct Parts {
    all: Vec<wire::StatusChange>,
    /// Bytes of the last part.
    size: usize,
}

impl Parts {
    fn room_for(&mut self, size: usize) -> &mut wire::StatusChange {
        if self.all.is_empty() || self.size > 0 && self.size + size > PART {
            self.all.push(wire::StatusChange::default());
            self.size = 0;
        }
        self.size += size;
        self.all.last_mut().expect("one was pushed")
    }
}

#[cfg(test)]
mod tests;
