//! The node's health: its load for heartbeats, and `/healthz` and `/metrics` over mutual TLS.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloudtik_model::job::JobReportState;
use cloudtik_protocol::clock::ClusterClock;
use cloudtik_protocol::logging::LogRateLimiter;
use cloudtik_protocol::pki::Peer;
use cloudtik_protocol::tls::ServerIdentity;
use cloudtik_protocol::transport::{Caller, serve_tls};
use cloudtik_protocol::wire;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::load::{DiskProbe, Meter};
use crate::metrics;
use crate::reports::{Jobs, Reports};

/// The load is measured at most this often.
const LOAD_EVERY: Duration = Duration::from_secs(5);
/// A disk that has not answered for so long has no figure any more.
const DISK_PATIENCE: Duration = Duration::from_secs(30);
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
    load: Mutex<Latest>,
    meter: Arc<Mutex<Meter>>,
    disk: Arc<DiskProbe>,
}

/// What the last looks saw. Looks run on threads of their own: one that does not come back holds up nothing, and its figure
/// gets old and then absent.
#[derive(Default)]
struct Latest {
    load: wire::Load,
    /// When the last look at processes began, and whether it is under way.
    processes: Look,
    disk: Look,
}

#[derive(Default)]
struct Look {
    begun: Option<Instant>,
    is_under_way: bool,
}

impl Look {
    /// Whether a look is due; notes that it begins.
    fn begin(&mut self) -> bool {
        let is_due = !self.is_under_way && self.begun.is_none_or(|at| at.elapsed() >= LOAD_EVERY);
        if is_due {
            (self.begun, self.is_under_way) = (Some(Instant::now()), true);
        }
        is_due
    }

    fn is_overdue(&self) -> bool {
        self.is_under_way && self.begun.is_some_and(|at| at.elapsed() >= DISK_PATIENCE)
    }
}

impl Health {
    /// `disk` says how much room there is; it may block.
    pub fn new(home: &Path, clock: ClusterClock, meter: Meter, disk: Arc<DiskProbe>) -> Self {
        Self(Arc::new(Inner {
            home: home.to_owned(),
            started: Instant::now(),
            linked: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            clock,
            looking: Arc::default(),
            load: Mutex::default(),
            meter: Arc::new(Mutex::new(meter)),
            disk,
        }))
    }

    /// Notes whether the link is up; returns whether it was.
    pub fn linked(&self, linked: bool) -> bool {
        self.0.linked.swap(linked, Ordering::Relaxed)
    }

    pub fn count_refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The load as it was last seen, if it differs noticeably from `last`. Never blocks; begins another look where one is due.
    pub fn load_if_changed(&self, reports: &Reports, last: &mut Option<wire::Load>) -> Option<wire::Load> {
        let load = {
            let mut latest = self.latest();
            if latest.processes.begin() {
                self.look_at_processes(reports);
            }
            if latest.disk.begin() {
                self.look_at_disk();
            }
            if latest.disk.is_overdue() {
                latest.load.disk_free = None;
            }
            // Until the first look has come back there is nothing to say.
            (latest.load != wire::Load::default()).then_some(latest.load)?
        };
        let differs = |a: u64, b: u64, whole: u64| a.abs_diff(b) * NOTICEABLE > whole;
        let news = last.as_ref().is_none_or(|last| {
            differs(last.cpu_permille.into(), load.cpu_permille.into(), 1000)
                || differs(last.gpu_permille.unwrap_or(0).into(), load.gpu_permille.unwrap_or(0).into(), 1000)
                || differs(last.memory_used, load.memory_used, load.memory_total)
                || match (last.disk_free, load.disk_free) {
                    (Some(before), Some(now)) => differs(before, now, before.max(1)),
                    (before, now) => before != now,
                }
        });
        news.then(|| {
            *last = Some(load);
            load
        })
    }

    fn latest(&self) -> std::sync::MutexGuard<'_, Latest> {
        self.0.load.lock().expect("nothing panics while holding the lock")
    }

    fn look_at_processes(&self, reports: &Reports) {
        let (own, meter) = (self.clone(), self.0.meter.clone());
        // What people run on the node is below the agent itself.
        let agent = std::process::id() as i32;
        let services = reports.latest().into_values().filter_map(|r| r.pid);
        let jobs = reports.latest_jobs().into_values().filter_map(|job| match job.state {
            JobReportState::Running { pid, .. } => Some(pid),
            _ => None,
        });
        let roots: Vec<i32> = services.chain(jobs).map(|pid| pid as i32).chain([agent]).collect();
        tokio::task::spawn_blocking(move || {
            let load = meter.lock().expect("nothing panics while holding the lock").measure(roots.into_iter());
            let mut latest = own.latest();
            latest.load = wire::Load { disk_free: latest.load.disk_free, ..load };
            latest.processes.is_under_way = false;
        });
    }

    fn look_at_disk(&self) {
        let (own, disk) = (self.clone(), self.0.disk.clone());
        tokio::task::spawn_blocking(move || {
            let free = disk(&own.0.home);
            let mut latest = own.latest();
            latest.load.disk_free = free;
            latest.disk.is_under_way = false;
        });
    }

    /// Serves `/healthz` and `/metrics` to whoever has a certificate of the cluster.
    pub async fn serve(self, listener: TcpListener, identity: ServerIdentity, reports: Reports, stop: CancellationToken) {
        let health = self.clone();
        let service = tower::service_fn(move |request: Request<Incoming>| {
            let (health, reports) = (health.clone(), reports.clone());
            async move { Ok::<_, Infallible>(health.answer(&request, &reports).await) }
        });
        let lines = Arc::new(LogRateLimiter::default());
        let refused = move |refused: cloudtik_protocol::transport::Refused| {
            self.count_refused();
            if let Some(left_out) = lines.allow() {
                tracing::warn!(from = ?refused.from, left_out, "refused: {}", refused.reason);
            }
        };
        serve_tls(listener, identity, service, refused, stop).await;
    }

    async fn answer(&self, request: &Request<Incoming>, reports: &Reports) -> Response<Full<Bytes>> {
        // Not administrators: only the head knows whether a person's certificate still counts.
        if !matches!(request.extensions().get::<Caller>(), Some(Caller::Certified(Peer::Head | Peer::Node { .. }))) {
            self.count_refused();
            return plain(StatusCode::FORBIDDEN, "a certificate of a node of this cluster is needed\n");
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => plain(StatusCode::OK, "ok\n"),
            (&Method::GET, "/metrics") => {
                let agent = metrics::Agent {
                    uptime: self.0.started.elapsed(),
                    linked: self.0.linked.load(Ordering::Relaxed),
                    refused: self.0.refused.load(Ordering::Relaxed),
                    clock_offset: self.0.clock.offset() as f64 / 1e3,
                    jobs: running(&reports.latest_jobs()),
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

fn running(jobs: &Jobs) -> usize {
    jobs.values().filter(|job| job.state.pid().is_some()).count()
}

#[cfg(test)]
mod tests {
    use cloudtik_model::job::{JobEnd, JobReport};
    use cloudtik_model::{JobId, Timestamp};

    use super::*;
    use crate::load::Gpus;

    /// A health whose disk answers what comes through the sender, and hangs until then.
    fn with_hanging_disk() -> (Health, std::sync::mpsc::Sender<Option<u64>>) {
        let (answer, answers) = std::sync::mpsc::channel();
        let answers = Mutex::new(answers);
        let disk = move |_: &Path| answers.lock().expect("no panic").recv().ok().flatten();
        (Health::new(Path::new("/"), ClusterClock::default(), Meter::new(None, Gpus::new()), Arc::new(disk)), answer)
    }

    async fn next_load(health: &Health, last: &mut Option<wire::Load>) -> wire::Load {
        let reports = Reports::new();
        let look = async {
            loop {
                if let Some(load) = health.load_if_changed(&reports, last) {
                    return load;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look).await.expect("a load within 20 s")
    }

    #[tokio::test]
    async fn a_disk_that_hangs_keeps_nothing_else_from_being_told() {
        let (health, answer) = with_hanging_disk();
        let mut last = None;
        let load = next_load(&health, &mut last).await;
        assert!(load.memory_total > 0 && load.disk_free.is_none(), "{load:?}");
        answer.send(Some(7 << 30)).expect("the disk is asked");
        assert_eq!(next_load(&health, &mut last).await.disk_free, Some(7 << 30));
    }

    #[test]
    fn jobs_that_run_are_counted_in_the_metrics() {
        let (now, end) = (Timestamp(1), JobEnd::Succeeded);
        let states = [
            JobReportState::Running { pid: 1, started: now },
            JobReportState::Preparing,
            JobReportState::Running { pid: 2, started: now },
            JobReportState::Ended { started: now, at: now, end: end.clone(), lost_output: 0 },
            JobReportState::Unstarted { end },
        ];
        let reports = Reports::new();
        for (id, state) in (1..).zip(states) {
            reports.put_job(JobReport { id: JobId(id), attempt: 1, state });
        }
        let jobs = running(&reports.latest_jobs());
        let agent = metrics::Agent { uptime: Duration::ZERO, linked: true, refused: 0, clock_offset: 0.0, jobs };
        let text = metrics::render(&agent, &reports.latest());
        assert!(text.lines().any(|line| line == "cloudtik_jobs_running 2"), "{text}");
    }
}
