//! The node's health: its load for heartbeats, and `/healthz` and `/metrics` over mutual TLS.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloudtik_protocol::clock::ClusterClock;
use cloudtik_protocol::logging::Seldom;
use cloudtik_protocol::tls::ServerIdentity;
use cloudtik_protocol::transport::{Caller, serve_tls};
use cloudtik_protocol::wire;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::load::Meter;
use crate::metrics;
use crate::reports::Reports;

/// The load is measured at most this often.
const LOAD_EVERY: Duration = Duration::from_secs(5);
/// How long a look at the machine may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// A change of the load below this share of the whole is not worth a message.
const NOTICEABLE: u64 = 20;

/// A cheap handle.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    home: std::path::PathBuf,
    started: Instant,
    linked: AtomicBool,
    refused: AtomicU64,
    clock: ClusterClock,
    /// Held while the machine is looked at for `/metrics`.
    looking: Arc<tokio::sync::Mutex<()>>,
    load: Mutex<(Option<Instant>, Meter, wire::Load)>,
}

impl Health {
    pub fn new(home: &Path, clock: ClusterClock, meter: Meter) -> Self {
        Self(Arc::new(Inner {
            home: home.to_owned(),
            started: Instant::now(),
            linked: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            clock,
            looking: Arc::default(),
            load: Mutex::new((None, meter, wire::Load::default())),
        }))
    }

    /// Notes whether the link is up; returns whether it was.
    pub fn linked(&self, linked: bool) -> bool {
        self.0.linked.swap(linked, Ordering::Relaxed)
    }

    pub fn count_refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The load, if it differs noticeably from `last`.
    pub fn load_if_changed(&self, reports: &Reports, last: &mut Option<wire::Load>) -> Option<wire::Load> {
        let mut guard = self.0.load.lock().expect("nothing panics while holding the lock");
        let (measured, meter, load) = &mut *guard;
        if measured.is_none_or(|at| at.elapsed() >= LOAD_EVERY) {
            *measured = Some(Instant::now());
            // What people run on the node is below the agent itself.
            let own = std::process::id() as i32;
            let roots = reports.latest().into_values().filter_map(|r| r.pid).map(|pid| pid as i32);
            *load = meter.measure(&self.0.home, roots.chain([own]));
        }
        let differs = |a: u64, b: u64, whole: u64| a.abs_diff(b) * NOTICEABLE > whole;
        let news = last.as_ref().is_none_or(|last| {
            differs(last.cpu_permille.into(), load.cpu_permille.into(), 1000)
                || differs(last.gpu_permille.unwrap_or(0).into(), load.gpu_permille.unwrap_or(0).into(), 1000)
                || differs(last.memory_used, load.memory_used, load.memory_total)
                || differs(last.disk_free, load.disk_free, last.disk_free.max(1))
        });
        news.then(|| {
            *last = Some(*load);
            *load
        })
    }

    /// Serves `/healthz` and `/metrics` to whoever has a certificate of the cluster.
    pub async fn serve(self, listener: TcpListener, identity: ServerIdentity, reports: Reports, stop: CancellationToken) {
        let health = self.clone();
        let service = tower::service_fn(move |request: Request<Incoming>| {
            let (health, reports) = (health.clone(), reports.clone());
            async move { Ok::<_, Infallible>(health.answer(&request, &reports).await) }
        });
        let lines = Arc::new(Seldom::default());
        let refused = move |refused: cloudtik_protocol::transport::Refused| {
            self.count_refused();
            if let Some(left_out) = lines.allow() {
                tracing::warn!(from = ?refused.from, left_out, "refused: {}", refused.reason);
            }
        };
        serve_tls(listener, identity, service, refused, stop).await;
    }

    async fn answer(&self, request: &Request<Incoming>, reports: &Reports) -> Response<Full<Bytes>> {
        if !matches!(request.extensions().get::<Caller>(), Some(Caller::Certified(_))) {
            self.count_refused();
            return plain(StatusCode::FORBIDDEN, "a certificate of this cluster is needed\n");
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => plain(StatusCode::OK, "ok\n"),
            (&Method::GET, "/metrics") => {
                let agent = metrics::Agent {
                    uptime: self.0.started.elapsed(),
                    linked: self.0.linked.load(Ordering::Relaxed),
                    refused: self.0.refused.load(Ordering::Relaxed),
                    clock_offset: self.0.clock.offset() as f64 / 1e3,
                };
                // On a thread of its own, and one at a time: looking at disks may take long, and heartbeats must not wait.
                let Ok(looking) = tokio::time::timeout(LOOK_TIMEOUT, self.0.looking.clone().lock_owned()).await else {
                    return plain(StatusCode::SERVICE_UNAVAILABLE, "the last look at this machine has not come back\n");
                };
                let reports = reports.latest();
                let rendered = tokio::task::spawn_blocking(move || {
                    let text = metrics::render(&agent, &reports);
                    drop(looking);
                    text
                });
                let Ok(Ok(text)) = tokio::time::timeout(LOOK_TIMEOUT, rendered).await else {
                    return plain(StatusCode::SERVICE_UNAVAILABLE, "looking at this machine takes too long\n");
                };
                let mut response = plain(StatusCode::OK, &text);
                let kind = header::HeaderValue::from_static(cloudtik_protocol::exposition::CONTENT_TYPE);
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            _ => plain(StatusCode::NOT_FOUND, "there is /healthz and /metrics\n"),
        }
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response
}
