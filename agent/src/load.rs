//! How busy the node is: the whole machine, or, where several nodes share one, what this node's services, its agent and what
//! people run through it take of their part.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cloudtik_model::Resources;
use cloudtik_protocol::wire;
use sysinfo::System;

use crate::process::{TICKS, usage};

/// GPUs are looked at this often: asking takes their driver a while.
const GPU_EVERY: Duration = Duration::from_secs(10);
/// How long their driver may take to answer.
const GPU_TIMEOUT: Duration = Duration::from_secs(5);
/// No GPU has said anything.
const UNKNOWN: u32 = u32::MAX;

/// How many bytes may still be written below a directory; none if that is not known.
pub type DiskProbe = dyn Fn(&Path) -> Option<u64> + Send + Sync;

/// What the file system of a directory says. Blocks for as long as the file system does not answer.
pub fn disk_free(directory: &Path) -> Option<u64> {
    nix::sys::statvfs::statvfs(directory).ok().map(|s| s.blocks_available() * s.fragment_size())
}

/// Measures from one look to the next.
pub struct Meter {
    /// What this node may use of the machine, if that is not all.
    share: Option<Resources>,
    system: System,
    /// Of the node's processes at the last look.
    last: Option<(Instant, u64)>,
    gpus: Gpus,
}

impl Meter {
    pub fn new(share: Option<Resources>, gpus: Gpus) -> Self {
        Self { share, system: System::new().expect("a Linux system can be looked at"), last: None, gpus }
    }

    /// Looks; `roots` are the processes that the node runs, with everything below them. Blocks. Says nothing about disks.
    pub fn measure(&mut self, roots: impl Iterator<Item = i32>) -> wire::Load {
        let (disk_free, gpu_permille) = (None, self.gpus.busy());
        let Some(share) = self.share else {
            self.system.refresh_cpu_usage();
            self.system.refresh_memory();
            return wire::Load {
                cpu_permille: (self.system.global_cpu_usage() * 10.0) as u32,
                memory_used: self.system.used_memory(),
                memory_total: self.system.total_memory(),
                disk_free,
                gpu_permille,
            };
        };
        let (ticks, memory_used) = usage(roots);
        let now = Instant::now();
        let cpu = self.last.replace((now, ticks)).map_or(0.0, |(then, before)| {
            let seconds = now.duration_since(then).as_secs_f64().max(0.001);
            ticks.saturating_sub(before) as f64 / TICKS / seconds / f64::from(share.cpus.max(1))
        });
        wire::Load { cpu_permille: (cpu * 1_000.0).min(1_000.0) as u32, memory_used, memory_total: share.memory.0, disk_free, gpu_permille }
    }
}

/// The machine's GPUs.
#[derive(Debug, Clone)]
pub struct Gpus(Arc<AtomicU32>);

impl Gpus {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU32::new(UNKNOWN)))
    }

    /// How many there are.
    pub fn count() -> u32 {
        let nvidia = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |all| all.flatten().count());
        (nvidia + amd().count()) as u32
    }

    fn busy(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|n| *n != UNKNOWN)
    }

    /// Keeps looking at how busy they are; returns at once where there are none.
    pub async fn follow(self) {
        if Self::count() == 0 {
            return;
        }
        loop {
            let looking = tokio::task::spawn_blocking(|| {
                let busy = amd().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok());
                busy.map(|percent| percent * 10).collect::<Vec<u32>>()
            });
            let mut shares = looking.await.unwrap_or_default();
            shares.extend(nvidia().await);
            let average = shares.iter().sum::<u32>().checked_div(shares.len() as u32).unwrap_or(UNKNOWN);
            self.0.store(average, Ordering::Relaxed);
            tokio::time::sleep(GPU_EVERY).await;
        }
    }
}

/// The files in which AMD's driver says how busy each of its GPUs is, in hundredths.
fn amd() -> impl Iterator<Item = std::path::PathBuf> {
    let cards = fs::read_dir("/sys/class/drm").into_iter().flatten().flatten();
    cards.map(|card| card.path().join("device/gpu_busy_percent")).filter(|path| path.exists())
}

async fn nvidia() -> Vec<u32> {
    let asked = tokio::process::Command::new("nvidia-smi")
        .args(["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let Ok(Ok(answer)) = tokio::time::timeout(GPU_TIMEOUT, asked).await else { return Vec::new() };
    let text = String::from_utf8_lossy(&answer.stdout);
    text.lines().filter_map(|line| line.trim().parse::<u32>().ok()).map(|percent| percent * 10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_child_counts() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh");
        let share = Resources { cpus: 1, memory: cloudtik_model::Bytes(1 << 30), gpus: 0 };
        let mut meter = Meter::new(Some(share), Gpus::new());
        let mut most = 0;
        // A machine that is busy with other things gives it less than a core: any noticeable share will do.
        for _ in 0..50 {
            most = most.max(meter.measure([child.id() as i32].into_iter()).cpu_permille);
            if most > 100 {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(most > 100, "{most}");
    }
}
