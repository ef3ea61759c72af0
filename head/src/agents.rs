//! The agent's program for machines that have none: served by digest to nodes that are expected, which have nothing but their join
//! token and the pinned root certificate. A token opens nothing else.

use std::collections::BTreeMap;
use std::io::{self, Read, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use cloudtik_model::program::{AgentProgram, Architecture, Digest};
use cloudtik_model::{Generation, NodeId};
use cloudtik_protocol::logging::LogRateLimiter;
use cloudtik_providers::machine::{AGENT, placed_digest, served_link};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::bus::Admission;
use crate::runner::BrainHandle;
use crate::telemetry::Telemetry;

/// Downloads at once; others are told to come again.
const MAX_DOWNLOADS: usize = 32;
/// How long a download may keep others out.
const MAX_DOWNLOAD_TIME: Duration = Duration::from_secs(120);
/// Seconds after which others come again.
const RETRY_AFTER_SECONDS: &str = "1";
/// Bytes of a program in one piece.
const CHUNK: usize = 64 << 10;
/// Between two looks at whether other programs were placed.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// Which node asks, beside its token.
const NODE: &str = "cloudtik-node";
const GENERATION: &str = "cloudtik-generation";

/// The programs that are placed on the head's node to be served. A cheap handle.
#[derive(Clone)]
pub struct AgentPrograms {
    /// None where no programs are placed.
    directory: Option<PathBuf>,
    known: watch::Sender<Arc<Vec<AgentProgram>>>,
}

impl AgentPrograms {
    /// Those of a directory of programs. Blocks.
    pub fn open(directory: Option<PathBuf>) -> Self {
        let known = directory.as_deref().map(scan).unwrap_or_default();
        Self { directory, known: watch::Sender::new(Arc::new(known)) }
    }

    /// What a node that is made now may fetch.
    pub fn current(&self) -> Vec<AgentProgram> {
        self.known.borrow().to_vec()
    }

    /// The file of a digest. One that newer nodes are not told of may be here for those that were.
    fn file(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{AGENT}-{digest}")))
    }

    /// Notices programs that are placed while the head runs.
    pub async fn follow(self, stop: CancellationToken) {
        let Some(directory) = &self.directory else { return };
        let mut seen: Option<SystemTime> = None;
        while stop.run_until_cancelled(tokio::time::sleep(SCAN_INTERVAL)).await.is_some() {
            let directory = directory.clone();
            let look = move || {
                let changed = std::fs::metadata(&directory).and_then(|found| found.modified()).ok();
                (changed != seen).then(|| (changed, scan(&directory)))
            };
            if let Ok(Some((changed, programs))) = tokio::task::spawn_blocking(look).await {
                seen = changed;
                self.known.send_replace(Arc::new(programs));
            }
        }
    }
}

/// For each architecture the program that was placed to be served, else the one that this machine runs itself.
fn scan(directory: &Path) -> Vec<AgentProgram> {
    let mut found = BTreeMap::new();
    let own = placed(directory, AGENT).map(|program| (program.arch, program));
    let served = |arch: Architecture| {
        let program = placed(directory, &served_link(AGENT, arch)).filter(|program| program.arch == arch)?;
        Some((arch, program))
    };
    found.extend(own);
    found.extend(Architecture::ALL.into_iter().filter_map(served));
    found.into_values().collect()
}

fn placed(directory: &Path, link: &str) -> Option<AgentProgram> {
    let name = std::fs::read_link(directory.join(link)).ok()?;
    let sha256 = placed_digest(AGENT, name.to_str()?)?;
    let file = std::fs::File::open(directory.join(&name)).ok()?;
    let size = file.metadata().ok()?.len();
    let mut first_bytes = Vec::new();
    file.take(20).read_to_end(&mut first_bytes).ok()?;
    Some(AgentProgram { arch: Architecture::of_program(&first_bytes)?, sha256, size })
}

/// What serving takes.
#[derive(Clone)]
pub struct AgentDownloads {
    programs: AgentPrograms,
    admission: Admission,
    brain: BrainHandle,
    telemetry: Telemetry,
    scope: TaskScope,
    permits: Arc<Semaphore>,
    lines: Arc<LogRateLimiter>,
}

impl AgentDownloads {
    pub fn new(programs: AgentPrograms, admission: Admission, brain: BrainHandle, telemetry: Telemetry, scope: TaskScope) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_DOWNLOADS));
        Self { programs, admission, brain, telemetry, scope, permits, lines: Arc::default() }
    }

    fn refuse(&self, reason: &'static str, status: StatusCode, message: String) -> Response {
        self.telemetry.refuse(reason);
        if let Some(left_out) = self.lines.allow() {
            tracing::warn!(reason, left_out, "refused: {message}");
        }
        (status, format!("{message}\n")).into_response()
    }
}

pub fn router(downloads: AgentDownloads) -> Router {
    Router::new()
        .route("/agent", get(list))
        .route("/agent/{sha256}", get(fetch))
        .layer(middleware::from_fn_with_state(downloads.clone(), expected))
        .with_state(downloads)
}

/// One of the downloads that may be under way, which is free again when the last of these is dropped.
type DownloadPermit = Arc<DropGuard>;

/// What downloads end with.
#[derive(Clone)]
pub struct TaskScope {
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl TaskScope {
    /// Keeps a permit until the download ends, and no longer than `longest`: a connection whose other end is gone blocks
    /// for as long as the kernel repeats its packets, and others must not be refused meanwhile.
    fn limit(&self, permit: OwnedSemaphorePermit, longest: Duration) -> DropGuard {
        let ended = self.stop.child_token();
        let guard = ended.clone().drop_guard();
        self.tasks.spawn(async move {
            let _permit = permit;
            let _ = tokio::time::timeout(longest, ended.cancelled()).await;
        });
        guard
    }
}

/// Lets nodes through that are expected, as many at once as there is room for. A wrong token is refused before the
/// brain hears of it.
async fn expected(State(downloads): State<AgentDownloads>, mut request: Request, next: Next) -> Response {
    let Some((node, generation, token)) = claim(request.headers()) else {
        let message = format!("a join token is needed, with the headers {NODE} and {GENERATION}");
        return downloads.refuse("agent-token", StatusCode::UNAUTHORIZED, message);
    };
    if !downloads.admission.is_token(&node, generation, token) {
        let message = format!("the token is not that of {node}, generation {generation}");
        return downloads.refuse("agent-token", StatusCode::UNAUTHORIZED, message);
    }
    let Ok(permit) = downloads.permits.clone().try_acquire_owned() else {
        let again = [(header::RETRY_AFTER, RETRY_AFTER_SECONDS)];
        return (StatusCode::SERVICE_UNAVAILABLE, again, "too many downloads at once\n").into_response();
    };
    let asked = node.clone();
    match downloads.brain.query(move |brain| brain.expects(&asked, generation)).await {
        Ok(true) => {}
        Ok(false) => {
            let message = format!("{node}, generation {generation}, is not expected");
            return downloads.refuse("agent-unexpected", StatusCode::FORBIDDEN, message);
        }
        Err(_) => return (StatusCode::SERVICE_UNAVAILABLE, "the head is stopping\n").into_response(),
    }
    request.extensions_mut().insert::<DownloadPermit>(Arc::new(downloads.scope.limit(permit, MAX_DOWNLOAD_TIME)));
    next.run(request).await
}

fn claim(headers: &HeaderMap) -> Option<(NodeId, Generation, &str)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let token = text(header::AUTHORIZATION.as_str())?.strip_prefix("Bearer ")?;
    Some((text(NODE)?.parse().ok()?, Generation(text(GENERATION)?.parse().ok()?), token))
}

#[derive(Serialize)]
struct Listing {
    agents: Vec<AgentProgram>,
}

async fn list(State(downloads): State<AgentDownloads>) -> Json<Listing> {
    Json(Listing { agents: downloads.programs.current() })
}

async fn fetch(
    State(downloads): State<AgentDownloads>,
    Extension(permit): Extension<DownloadPermit>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    let unknown = |name: &str| (StatusCode::NOT_FOUND, format!("there is no agent with the SHA-256 {name}\n")).into_response();
    let Ok(digest) = name.parse::<Digest>() else { return unknown(&name) };
    let Some(path) = downloads.programs.file(&digest) else { return unknown(digest.as_str()) };
    let mut file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return unknown(digest.as_str()),
        Err(error) => return unreadable(&error),
    };
    let size = match file.metadata().await {
        Ok(metadata) => metadata.len(),
        Err(error) => return unreadable(&error),
    };
    let wanted = headers.get(header::RANGE).and_then(|range| part_of(range, size));
    let (status, first, last) = match wanted {
        None => (StatusCode::OK, 0, size),
        Some(ByteRange::Satisfiable(first, last)) => (StatusCode::PARTIAL_CONTENT, first, last),
        Some(ByteRange::Unsatisfiable) => {
            let all = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, all).into_response();
        }
    };
    if let Err(error) = file.seek(SeekFrom::Start(first)).await {
        return unreadable(&error);
    }
    let pieces = ReaderStream::with_capacity(file.take(last - first), CHUNK).map(move |piece| {
        let _held_until_the_end = &permit;
        piece
    });
    let mut response = Response::new(Body::from_stream(pieces));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(last - first));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = HeaderValue::from_str(&format!("bytes {first}-{}/{size}", last - 1))
    {
        headers.insert(header::CONTENT_RANGE, range);
    }
    response
}

fn unreadable(error: &io::Error) -> Response {
    tracing::error!("cannot read an agent's program: {error}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

#[derive(Debug, PartialEq, Eq)]
enum ByteRange {
    /// From the first byte until before the last.
    Satisfiable(u64, u64),
    /// It begins where nothing is any more.
    Unsatisfiable,
}

/// The one range that a header asks for; none, so that everything is sent, where it asks for something else (RFC 9110, 14.2).
fn part_of(range: &HeaderValue, size: u64) -> Option<ByteRange> {
    let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last = if last.is_empty() { size } else { last.parse::<u64>().ok()?.checked_add(1)?.min(size) };
    match first {
        _ if first >= size => Some(ByteRange::Unsatisfiable),
        _ if first < last => Some(ByteRange::Satisfiable(first, last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_download_that_stalls_keeps_others_out_for_a_time() {
        let (scope, permits) = (TaskScope { tasks: TaskTracker::new(), stop: CancellationToken::new() }, Arc::new(Semaphore::new(2)));
        let take = |longest| scope.limit(permits.clone().try_acquire_owned().expect("is free"), longest);
        let longest = Duration::from_millis(100);
        let (ended, _stalled) = (take(MAX_DOWNLOAD_TIME), take(longest));
        let begun = tokio::time::Instant::now();
        assert!(permits.clone().try_acquire_owned().is_err());
        drop(ended);
        let free = permits.clone().acquire_owned().await.expect("the one that ended is free at once");
        let other = permits.clone().acquire_owned().await.expect("the other one is not counted any more after a while");
        assert!(begun.elapsed() >= longest);
        drop((free, other));
    }

    #[test]
    fn ranges_are_parts_of_the_file() {
        let part = |range: &str| part_of(&HeaderValue::from_str(range).expect("valid"), 100);
        assert_eq!(part("bytes=0-"), Some(ByteRange::Satisfiable(0, 100)));
        assert_eq!(part("bytes=40-"), Some(ByteRange::Satisfiable(40, 100)));
        assert_eq!(part("bytes=40-49"), Some(ByteRange::Satisfiable(40, 50)));
        assert_eq!(part("bytes=99-200"), Some(ByteRange::Satisfiable(99, 100)));
        assert_eq!(part("bytes=100-"), Some(ByteRange::Unsatisfiable));
        for other in [
            "bytes=-5",
            "bytes=5-4",
            "bytes=1-2,4-5",
            "lines=1-",
            "bytes=x-",
            "bytes=18446744073709551616-",
            "bytes=1-18446744073709551615",
        ] {
            assert_eq!(part(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_placed_to_be_served_counts_before_what_the_head_runs_itself() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let place = |link: &str, machine: Option<u8>, byte: u8| {
            let digest = Digest::of_bytes(&[byte; 32]);
            let mut program = b"#!/bin/sh\n".to_vec();
            if let Some(machine) = machine {
                program = [&[0x7f, b'E', b'L', b'F', 2, 1], [0; 12].as_slice(), &[machine, 0]].concat();
            }
            let name = format!("{AGENT}-{digest}");
            std::fs::write(directory.path().join(&name), &program).expect("writes");
            std::os::unix::fs::symlink(name, directory.path().join(link)).expect("links");
            digest
        };
        assert_eq!(scan(directory.path()), []);
        let script = place(AGENT, None, 1);
        assert_eq!(scan(directory.path()), [], "a script is for no machine in particular");
        let served = place("cloudtik-agent.x86_64", Some(62), 2);
        place("cloudtik-agent.aarch64", Some(62), 3);
        let digests = |programs: Vec<AgentProgram>| programs.into_iter().map(|p| (p.arch, p.sha256, p.size)).collect::<Vec<_>>();
        assert_eq!(digests(scan(directory.path())), [(Architecture::X86_64, served, 20)], "what is for another machine is not served");
        let programs = AgentPrograms::open(Some(directory.path().to_owned()));
        assert!(programs.file(&script).is_some_and(|file| file.exists()), "old ones are there by their digest");
        std::fs::remove_file(directory.path().join("cloudtik-agent.x86_64")).expect("removes");
        std::fs::remove_file(directory.path().join(AGENT)).expect("removes");
        let own = place(AGENT, Some(62), 4);
        assert_eq!(digests(scan(directory.path())), [(Architecture::X86_64, own, 20)]);
    }

    #[test]
    fn a_claim_is_whole_or_none() {
        let headers = |lines: &[(&'static str, &str)]| {
            lines
                .iter()
                .map(|(name, value)| (name.parse().expect("valid"), HeaderValue::from_str(value).expect("valid")))
                .collect::<HeaderMap>()
        };
        let whole = [("authorization", "Bearer secret"), (NODE, "w1"), (GENERATION, "2")];
        let read = headers(&whole);
        assert_eq!(claim(&read), Some((NodeId::new("w1").expect("valid"), Generation(2), "secret")));
        for left_out in 0..whole.len() {
            let rest: Vec<_> = whole.iter().enumerate().filter(|(n, _)| *n != left_out).map(|(_, line)| *line).collect();
            assert_eq!(claim(&headers(&rest)), None, "{rest:?}");
        }
        assert_eq!(claim(&headers(&[("authorization", "Basic secret"), whole[1], whole[2]])), None);
        assert_eq!(claim(&headers(&[whole[0], (NODE, "../x"), whole[2]])), None);
    }
}
