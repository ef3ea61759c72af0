//! What the node is: read once when the agent starts.

use std::fs;
use std::path::Path;

use cloudtik_model::Bytes;
use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::report::{Facts, Java};
use cloudtik_protocol::{HEALTH_PORT, VERSION};
use sysinfo::System;

use crate::load::Gpus;

/// Where Java installations stand on Linux.
const JAVA_PARENTS: [&str; 3] = ["/usr/lib/jvm", "/opt", "/usr/java"];

pub fn gather(home: &Path, artifacts: &Path, bootstrap: &Bootstrap, address: &str) -> Facts {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let given = bootstrap.resources;
    Facts {
        clock_offset_s: 0,
        agent_version: VERSION.to_owned(),
        agent_pid: std::process::id(),
        hostname: System::host_name().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        cpus: given.map_or(cpus, |r| r.cpus),
        memory: given.map_or_else(total_memory, |r| r.memory),
        gpus: given.map_or_else(Gpus::count, |r| r.gpus),
        address: address.to_owned(),
        health_port: HEALTH_PORT,
        home: home.display().to_string(),
        artifacts: artifacts.display().to_string(),
        javas: javas(),
    }
}

fn total_memory() -> Bytes {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Bytes(kibibytes.unwrap_or(0) << 10)
}

/// The Java installations of the host, by the `release` file that each has.
fn javas() -> Vec<Java> {
    let mut found = Vec::new();
    let candidates = JAVA_PARENTS.iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten();
    for entry in candidates {
        let Ok(home) = entry.path().canonicalize() else { continue };
        let Ok(release) = fs::read_to_string(home.join("release")) else { continue };
        if !home.join("bin/java").exists() {
            continue;
        }
        let version = release.lines().find_map(|l| l.strip_prefix("JAVA_VERSION=")).unwrap_or_default().trim_matches('"');
        // `17.0.15` is 17, and `1.8.0_292` is 8.
        let mut parts = version.split(['.', '_', '-', '+']);
        let major = match (parts.next(), parts.next()) {
            (Some("1"), Some(minor)) => minor.parse(),
            (Some(major), _) => major.parse(),
            _ => continue,
        };
        if let Ok(major) = major {
            found.push(Java { home: home.display().to_string(), major });
        }
    }
    found.sort_by(|a, b| (a.major, &a.home).cmp(&(b.major, &b.home)));
    found.dedup();
    found
}
