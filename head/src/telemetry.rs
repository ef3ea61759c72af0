//! What the head counts of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_protocol::VERSION;
use cloudtik_protocol::exposition::Exposition;

/// Upper bounds of the buckets of a step's time, in seconds.
const STEP_BUCKETS: [f64; 8] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

/// The same of the time that a heartbeat waits. Several are gathered for 20 ms; a node is suspect after 2.5 s.
const WAIT_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A cheap handle on the head's metrics.
#[derive(Debug, Clone, Default)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    commits: AtomicU64,
    links: AtomicI64,
    steps: Histogram<{ STEP_BUCKETS.len() }>,
    heartbeat_waits: Histogram<{ WAIT_BUCKETS.len() }>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    calls: Mutex<BTreeMap<(&'static str, bool), u64>>,
}

/// How many values are below each bound.
#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: Mutex<Counts<N>>,
}

#[derive(Debug)]
struct Counts<const N: usize> {
    buckets: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        Self { bounds, counts: Mutex::new(Counts { buckets: [0; N], count: 0, sum: 0.0 }) }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts<N>> {
        self.counts.lock().expect("nothing panics while holding the lock")
    }

    fn add(&self, seconds: impl IntoIterator<Item = f64>) {
        let mut counts = self.counts();
        for seconds in seconds {
            counts.count += 1;
            counts.sum += seconds;
            for (bucket, bound) in counts.buckets.iter_mut().zip(self.bounds) {
                *bucket += u64::from(seconds <= bound);
            }
        }
    }

    fn render(&self, name: &str, help: &str, out: &mut Exposition) {
        out.family(name, "histogram", help);
        let counts = self.counts();
        for (count, bound) in counts.buckets.iter().zip(self.bounds) {
            out.sample(&format!("{name}_bucket"), &[("le", &bound.to_string())], count);
        }
        out.sample(&format!("{name}_bucket"), &[("le", "+Inf")], counts.count);
        out.sample(&format!("{name}_sum"), &[], counts.sum);
        out.sample(&format!("{name}_count"), &[], counts.count);
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            commits: AtomicU64::default(),
            links: AtomicI64::default(),
            steps: Histogram::new(STEP_BUCKETS),
            heartbeat_waits: Histogram::new(WAIT_BUCKETS),
            refused: Mutex::default(),
            calls: Mutex::default(),
        }
    }
}

impl Telemetry {
    pub fn committed(&self) {
        self.0.commits.fetch_add(1, Ordering::Relaxed);
    }

    pub fn links(&self, change: i64) {
        self.0.links.fetch_add(change, Ordering::Relaxed);
    }

    /// One step of the brain took so long, storing included.
    pub fn stepped(&self, took: Duration) {
        self.0.steps.add([took.as_secs_f64()]);
    }

    /// Heartbeats were handled by the brain, each so long after its arrival.
    pub fn heartbeats_waited(&self, waits: impl IntoIterator<Item = Duration>) {
        self.0.heartbeat_waits.add(waits.into_iter().map(|wait| wait.as_secs_f64()));
    }

    /// A connection, a join or a frame was refused.
    pub fn refuse(&self, reason: &'static str) {
        *self.0.refused.lock().expect("nothing panics while holding the lock").entry(reason).or_default() += 1;
    }

    /// A provider's call came back.
    pub fn call(&self, operation: &'static str, worked: bool) {
        *self.0.calls.lock().expect("nothing panics while holding the lock").entry((operation, worked)).or_default() += 1;
    }

    pub fn render(&self, out: &mut Exposition) {
        out.family("cloudtik_head_info", "gauge", "The head's version.");
        out.sample("cloudtik_head_info", &[("version", VERSION)], 1);
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        out.single("cloudtik_head_commits_total", "counter", "Transactions of the store.", load(&self.0.commits));
        out.single("cloudtik_head_links", "gauge", "Agents whose link is up.", self.0.links.load(Ordering::Relaxed));
        self.0.steps.render("cloudtik_head_step_seconds", "Time of one step: deciding and storing.", out);
        let help = "Time from the arrival of a heartbeat until the brain has handled it.";
        self.0.heartbeat_waits.render("cloudtik_head_heartbeat_wait_seconds", help, out);
        out.family("cloudtik_head_refused_total", "counter", "Connections, joins and frames refused.");
        for (reason, count) in self.0.refused.lock().expect("nothing panics while holding the lock").iter() {
            out.sample("cloudtik_head_refused_total", &[("reason", reason)], count);
        }
        out.family("cloudtik_head_provider_calls_total", "counter", "Calls to the provider.");
        for ((operation, worked), count) in self.0.calls.lock().expect("nothing panics while holding the lock").iter() {
            let outcome = if *worked { "ok" } else { "error" };
            out.sample("cloudtik_head_provider_calls_total", &[("operation", operation), ("outcome", outcome)], count);
        }
    }
}
