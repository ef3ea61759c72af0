//! What the head counts of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_protocol::VERSION;
use cloudtik_protocol::exposition::Exposition;

/// Upper bounds of the buckets of a step's time, in seconds.
const STEP_BUCKETS: [f64; 8] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

/// A cheap handle on the head's metrics.
#[derive(Debug, Clone, Default)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    commits: AtomicU64,
    links: AtomicI64,
    steps: Mutex<Steps>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    calls: Mutex<BTreeMap<(&'static str, bool), u64>>,
}

#[derive(Debug, Default)]
struct Steps {
    buckets: [u64; STEP_BUCKETS.len()],
    count: u64,
    seconds: f64,
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
        let seconds = took.as_secs_f64();
        let mut steps = self.0.steps.lock().expect("nothing panics while holding the lock");
        steps.count += 1;
        steps.seconds += seconds;
        for (bucket, bound) in steps.buckets.iter_mut().zip(STEP_BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
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
        let name = "cloudtik_head_step_seconds";
        out.family(name, "histogram", "Time of one step: deciding and storing.");
        let steps = self.0.steps.lock().expect("nothing panics while holding the lock");
        for (count, bound) in steps.buckets.iter().zip(STEP_BUCKETS) {
            out.sample(&format!("{name}_bucket"), &[("le", &bound.to_string())], count);
        }
        out.sample(&format!("{name}_bucket"), &[("le", "+Inf")], steps.count);
        out.sample(&format!("{name}_sum"), &[], steps.seconds);
        out.sample(&format!("{name}_count"), &[], steps.count);
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
