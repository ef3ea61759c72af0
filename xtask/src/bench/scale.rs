//! From `cloudtik scale` to the provider's create call: from the start of the command to the new node's directory, which is
//! the first thing that the local provider makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{build, ours};

const TIMES: usize = 100;
/// Longer than any launch or departure takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn scale() -> Result<(), String> {
    let programs = build()?;
    let home = std::env::temp_dir().join(format!("cloudtik-scale-{}", std::process::id()));
    fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    let result = measure(&programs, &home);
    let _ = ours(&programs, &home, &["down", "scale", "--yes"]).output();
    let _ = fs::remove_dir_all(&home);
    result
}

fn measure(programs: &Path, home: &Path) -> Result<(), String> {
    let file = home.join("cluster.toml");
    let text = "[cluster]\nname = \"scale\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 0\nmax = 1\n";
    fs::write(&file, text).map_err(|e| e.to_string())?;
    let up = ours(programs, home, &["up", &file.display().to_string()]).output().map_err(|e| e.to_string())?;
    if !up.status.success() {
        return Err(String::from_utf8_lossy(&up.stderr).into_owned());
    }
    let nodes = home.join("workspaces/default/clusters/scale/nodes");
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        let mut command = ours(programs, home, &["scale", "scale", "--workers", "1"]);
        let mut running = command.stdout(Stdio::null()).spawn().map_err(|e| e.to_string())?;
        wait(|| worker(&nodes).is_some())?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        running.wait().map_err(|e| e.to_string())?;
        let _ = ours(programs, home, &["status", "scale", "--wait"]).output();
        ours(programs, home, &["scale", "scale", "--workers", "0"]).output().map_err(|e| e.to_string())?;
        wait(|| worker(&nodes).is_none())?;
        let _ = ours(programs, home, &["status", "scale", "--wait"]).output();
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "cloudtik scale → the provider's create: {:.1} ms median, {:.1} ms p99, {:.1} ms most ({TIMES} times)",
        at(50),
        at(99),
        at(100)
    );
    Ok(())
}

/// The directory of a worker, as soon as there is one.
fn worker(nodes: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(nodes).ok()?.flatten().map(|e| e.path());
    entries.find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("w1.")))
}

fn wait(is_so: impl Fn() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("nothing came of it in {} s", PATIENCE.as_secs()));
        }
        sleep(Duration::from_micros(200));
    }
    Ok(())
}
