//! `/metrics`: the machine under the names that dashboards for Prometheus' node exporter know, and the agent's own.
//!
//! Names, units and labels follow <https://github.com/prometheus/node_exporter>.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use cloudtik_model::ServiceKey;
use cloudtik_model::report::{ServiceReport, ServiceState};
use cloudtik_protocol::VERSION;
use cloudtik_protocol::exposition::Exposition;
use cloudtik_protocol::files::{KERNEL_FILE_SYSTEMS, unescape_octal};

use crate::process::TICKS;

/// What the agent knows of itself.
pub struct Agent {
    pub uptime: Duration,
    pub linked: bool,
    pub refused: u64,
    pub clock_offset: f64,
    /// Jobs that run.
    pub jobs: usize,
}

/// Sectors in `/proc/diskstats` have 512 bytes whatever the disk.
const SECTOR: u64 = 512;
/// File systems of other machines: asking one whose server is gone would wait for ever.
const REMOTE: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "afs", "fuse.sshfs"];
/// Further file systems whose use says nothing: their space is what was packed into them, or none.
const FIXED: [&str; 2] = ["procfs", "squashfs"];

pub fn render(agent: &Agent, services: &BTreeMap<ServiceKey, ServiceReport>) -> String {
    let mut text = Exposition::default();
    own(&mut text, agent, services);
    let stat = read("/proc/stat");
    processors(&mut text, &stat);
    memory(&mut text);
    load(&mut text);
    file_systems(&mut text);
    disks(&mut text);
    networks(&mut text);
    system(&mut text, &stat);
    text.finish()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn own(text: &mut Exposition, agent: &Agent, services: &BTreeMap<ServiceKey, ServiceReport>) {
    text.family("cloudtik_agent_info", "gauge", "The agent's version.");
    text.sample("cloudtik_agent_info", &[("version", VERSION)], 1);
    let help = "How far this machine's clock is behind the head's; 0 while that is less than a minute.";
    text.single("cloudtik_agent_clock_offset_seconds", "gauge", help, agent.clock_offset);
    text.single("cloudtik_agent_uptime_seconds", "gauge", "Seconds since the agent started.", agent.uptime.as_secs_f64());
    text.single("cloudtik_agent_linked", "gauge", "Whether the link to the head is up.", u8::from(agent.linked));
    text.single("cloudtik_agent_refused_total", "counter", "Connections and requests refused.", agent.refused);
    text.single("cloudtik_jobs_running", "gauge", "Jobs that run on this node.", agent.jobs);
    text.family("cloudtik_service_ready", "gauge", "Whether a service is ready.");
    for (key, report) in services {
        text.sample("cloudtik_service_ready", &[("service", &key.to_string())], u8::from(report.state == ServiceState::Ready));
    }
    text.family("cloudtik_service_restarts_total", "counter", "Starts of a service after its first.");
    for (key, report) in services {
        text.sample("cloudtik_service_restarts_total", &[("service", &key.to_string())], report.restarts);
    }
}

fn processors(text: &mut Exposition, stat: &str) {
    const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    text.family("node_cpu_seconds_total", "counter", "Seconds the CPUs spent in each mode.");
    for line in stat.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(cpu) = fields.next().and_then(|f| f.strip_prefix("cpu")).filter(|n| !n.is_empty()) else { continue };
        for (mode, ticks) in MODES.iter().zip(fields) {
            let seconds = ticks.parse::<f64>().unwrap_or(0.0) / TICKS;
            text.sample("node_cpu_seconds_total", &[("cpu", cpu), ("mode", mode)], seconds);
        }
    }
}

fn memory(text: &mut Exposition) {
    for line in read("/proc/meminfo").lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let mut fields = rest.split_ascii_whitespace();
        let Some(value) = fields.next().and_then(|v| v.parse::<u64>().ok()) else { continue };
        let (value, unit) = if fields.next() == Some("kB") { (value << 10, "_bytes") } else { (value, "") };
        let name = name.replace('(', "_").replace(')', "");
        let metric = format!("node_memory_{}{unit}", in_small_letters(&name));
        text.single(&metric, "gauge", &format!("Memory information field {name}{unit}."), value);
    }
}

/// The node exporter's name of a field, as Prometheus' conventions have it: without capitals, and without the ending that
/// is for counters. The prometheus runtime gives it back its capitals, for dashboards.
fn in_small_letters(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    name.strip_suffix("_total").unwrap_or(&name).to_owned()
}

fn load(text: &mut Exposition) {
    let load = read("/proc/loadavg");
    for (name, value) in ["node_load1", "node_load5", "node_load15"].iter().zip(load.split_ascii_whitespace()) {
        text.single(name, "gauge", &format!("{}m load average.", name.trim_start_matches("node_load")), value);
    }
}

fn file_systems(text: &mut Exposition) {
    let mounts = read("/proc/self/mounts");
    let mut seen = BTreeSet::new();
    let mut samples = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [device, point, kind, options, ..] = fields.as_slice() else { continue };
        let is_left_out = [&KERNEL_FILE_SYSTEMS[..], &FIXED, &REMOTE].iter().any(|kinds| kinds.contains(kind));
        if is_left_out || !seen.insert((device.to_string(), point.to_string())) {
            continue;
        }
        let point = String::from_utf8_lossy(&unescape_octal(point.as_bytes())).into_owned();
        let Ok(stat) = nix::sys::statvfs::statvfs(point.as_str()) else { continue };
        let block = stat.fragment_size();
        let values = [
            stat.blocks() * block,
            stat.blocks_free() * block,
            stat.blocks_available() * block,
            stat.files(),
            stat.files_free(),
            u64::from(options.split(',').any(|o| o == "ro")),
        ];
        samples.push(((*device).to_owned(), (*kind).to_owned(), point, values));
    }
    const NAMES: [(&str, &str); 6] = [
        ("node_filesystem_size_bytes", "Filesystem size in bytes."),
        ("node_filesystem_free_bytes", "Filesystem free space in bytes."),
        ("node_filesystem_avail_bytes", "Filesystem space available to non-root users in bytes."),
        ("node_filesystem_files", "Filesystem total file nodes."),
        ("node_filesystem_files_free", "Filesystem total free file nodes."),
        ("node_filesystem_readonly", "Filesystem read-only status."),
    ];
    for (i, (name, help)) in NAMES.iter().enumerate() {
        text.family(name, "gauge", help);
        for (device, kind, point, values) in &samples {
            text.sample(name, &[("device", device), ("fstype", kind), ("mountpoint", point)], values[i]);
        }
    }
}

/// What a column of the kernel's table means: name, help, index, factor.
type Column = (&'static str, &'static str, usize, f64);

fn disks(text: &mut Exposition) {
    // <https://www.kernel.org/doc/Documentation/iostats.txt>, counted after the device's name.
    const COLUMNS: [Column; 8] = [
        ("node_disk_reads_completed_total", "The total number of reads completed successfully.", 0, 1.0),
        ("node_disk_read_bytes_total", "The total number of bytes read successfully.", 2, SECTOR as f64),
        ("node_disk_read_time_seconds_total", "The total number of seconds spent by all reads.", 3, 0.001),
        ("node_disk_writes_completed_total", "The total number of writes completed successfully.", 4, 1.0),
        ("node_disk_written_bytes_total", "The total number of bytes written successfully.", 6, SECTOR as f64),
        ("node_disk_write_time_seconds_total", "This is the total number of seconds spent by all writes.", 7, 0.001),
        ("node_disk_io_time_seconds_total", "Total seconds spent doing I/Os.", 9, 0.001),
        ("node_disk_io_time_weighted_seconds_total", "The weighted # of seconds spent doing I/Os.", 10, 0.001),
    ];
    let table = read("/proc/diskstats");
    let rows: Vec<(&str, Vec<&str>)> = table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            let device = fields.next()?;
            let hidden = device.starts_with("loop") || device.starts_with("ram");
            (!hidden).then(|| (device, fields.collect()))
        })
        .collect();
    columns(text, &COLUMNS, "device", &rows);
}

fn networks(text: &mut Exposition) {
    const COLUMNS: [Column; 8] = [
        ("node_network_receive_bytes_total", "Network device statistic receive_bytes.", 0, 1.0),
        ("node_network_receive_packets_total", "Network device statistic receive_packets.", 1, 1.0),
        ("node_network_receive_errs_total", "Network device statistic receive_errs.", 2, 1.0),
        ("node_network_receive_drop_total", "Network device statistic receive_drop.", 3, 1.0),
        ("node_network_transmit_bytes_total", "Network device statistic transmit_bytes.", 8, 1.0),
        ("node_network_transmit_packets_total", "Network device statistic transmit_packets.", 9, 1.0),
        ("node_network_transmit_errs_total", "Network device statistic transmit_errs.", 10, 1.0),
        ("node_network_transmit_drop_total", "Network device statistic transmit_drop.", 11, 1.0),
    ];
    let table = read("/proc/net/dev");
    let rows: Vec<(&str, Vec<&str>)> = table
        .lines()
        .filter_map(|line| {
            let (device, rest) = line.split_once(':')?;
            Some((device.trim(), rest.split_ascii_whitespace().collect()))
        })
        .collect();
    columns(text, &COLUMNS, "device", &rows);
}

fn columns(text: &mut Exposition, columns: &[Column], label: &str, rows: &[(&str, Vec<&str>)]) {
    for (name, help, index, factor) in columns {
        text.family(name, "counter", help);
        for (key, fields) in rows {
            let Some(value) = fields.get(*index).and_then(|f| f.parse::<f64>().ok()) else { continue };
            text.sample(name, &[(label, key)], value * factor);
        }
    }
}

fn system(text: &mut Exposition, stat: &str) {
    let field = |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.split_ascii_whitespace().next()?.parse::<u64>().ok());
    let fields = [
        ("btime ", "node_boot_time_seconds", "gauge", "Node boot time, in unixtime."),
        ("ctxt ", "node_context_switches_total", "counter", "Total number of context switches."),
        ("intr ", "node_intr_total", "counter", "Total number of interrupts serviced."),
        ("processes ", "node_forks_total", "counter", "Total number of forks."),
        ("procs_running ", "node_procs_running", "gauge", "Number of processes in runnable state."),
        ("procs_blocked ", "node_procs_blocked", "gauge", "Number of processes blocked waiting for I/O to complete."),
    ];
    for (key, name, kind, help) in fields {
        if let Some(value) = field(key) {
            text.single(name, kind, help, value);
        }
    }
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0.0, |d| d.as_secs_f64());
    text.single("node_time_seconds", "gauge", "System time in seconds since epoch (1970).", now);
    let files = read("/proc/sys/fs/file-nr");
    let mut files = files.split_ascii_whitespace();
    if let (Some(allocated), Some(maximum)) = (files.next(), files.nth(1)) {
        text.single("node_filefd_allocated", "gauge", "File descriptor statistics: allocated.", allocated);
        text.single("node_filefd_maximum", "gauge", "File descriptor statistics: maximum.", maximum);
    }
    if let Ok(uname) = nix::sys::utsname::uname() {
        let text_of = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
        let labels = [
            ("domainname", "(none)".to_owned()),
            ("machine", text_of(uname.machine())),
            ("nodename", text_of(uname.nodename())),
            ("release", text_of(uname.release())),
            ("sysname", text_of(uname.sysname())),
            ("version", text_of(uname.version())),
        ];
        let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        text.family("node_uname_info", "gauge", "Labeled system information as provided by the uname system call.");
        text.sample("node_uname_info", &labels, 1);
    }
}
