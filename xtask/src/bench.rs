//! Figures that the project promises, printed: sizes, memory, processor time.

mod detect;
mod fleet;
mod nodes;
mod scale;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use self::detect::detect;
pub use self::fleet::fleet;
pub use self::nodes::nodes;
pub use self::scale::scale;
use crate::{cargo, repository, run};

/// How long idle programs are watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Clock ticks per second in `/proc`.
const TICKS: f64 = 100.0;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// Sizes of the stripped programs, resident memory and idle processor time of a head with three agents, and the time
/// from nothing to a ready cluster.
pub fn footprint() -> Result<(), String> {
    let programs = build()?;
    for name in ["cloudtik", "cloudtik-head", "cloudtik-agent", "cloudtik-virtual"] {
        let size = fs::metadata(programs.join(name)).map_err(|e| e.to_string())?.len();
        println!("{name:<16} {:>6.2} MB on disk", size as f64 / 1e6);
    }
    let help: Vec<f64> = (0..21)
        .map(|_| {
            let begun = Instant::now();
            let _ = Command::new(programs.join("cloudtik")).arg("--help").output();
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    println!("cloudtik --help  {:>6.1} ms (median of 21)", median(help));

    let home = std::env::temp_dir().join(format!("cloudtik-bench-{}", std::process::id()));
    let result = cluster(&programs, &home);
    let _ = ours(&programs, &home, &["down", "bare", "--yes"]).output();
    let _ = fs::remove_dir_all(&home);
    result
}

/// Decisions of the brain, as it is shipped.
pub fn decide() -> Result<(), String> {
    run(&mut cargo(&["bench", "-p", "cloudtik-brain", "--bench", "decide"]))
}

/// The released programs' directory, once they are built.
fn build() -> Result<PathBuf, String> {
    crate::build()?;
    Ok(repository().join("target/release"))
}

fn ours(programs: &Path, home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(programs.join("cloudtik"));
    command.args(arguments).env("CLOUDTIK_HOME", home).current_dir(repository());
    command
}

fn cluster(programs: &Path, home: &Path) -> Result<(), String> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let up = ours(programs, home, &["up", "examples/bare.toml", "--timings"]).output().map_err(|e| e.to_string())?;
        if !up.status.success() {
            return Err(String::from_utf8_lossy(&up.stderr).into_owned());
        }
        times.push(begun.elapsed().as_secs_f64());
        if times.len() < 5 {
            ours(programs, home, &["down", "bare", "--yes"]).output().map_err(|e| e.to_string())?;
        } else {
            eprint!("{}", String::from_utf8_lossy(&up.stderr));
        }
    }
    println!("up, 3 workers    {:>6.2} s from nothing to ready (median of 5)", median(times));
    sleep(Duration::from_secs(3));
    let all = processes(home);
    let before: Vec<f64> = all.iter().map(|(pid, ..)| seconds(*pid)).collect();
    sleep(WATCHED);
    for ((pid, name, node), before) in all.iter().zip(before) {
        let share = (seconds(*pid) - before) / WATCHED.as_secs_f64() * 100.0;
        println!("{name:<16} {:>6.1} MB resident, {share:>5.2} % of a core when idle ({node})", resident(*pid) as f64 / 1e6);
    }
    Ok(())
}

/// The heads, agents and shims below a directory.
fn processes(home: &Path) -> Vec<(i32, String, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if !line.contains(&*home.to_string_lossy()) {
            continue;
        }
        let program = PathBuf::from(line.split(' ').next().unwrap_or_default());
        let mut name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if line.contains(" shim ") {
            name = "shim".to_owned();
        }
        let node = line.split("/nodes/").nth(1).and_then(|r| r.split([' ', '/']).next()).unwrap_or("head").to_owned();
        found.push((pid, name, node));
    }
    found.sort_by(|a, b| (&a.1, &a.2).cmp(&(&b.1, &b.2)));
    found
}

fn seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}

fn resident(pid: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split(' ').nth(1).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0) * PAGE
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
