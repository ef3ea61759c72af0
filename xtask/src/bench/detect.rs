//! How soon the head notices what happens to agents, from the times in its own log.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use super::{build, ours, processes};

/// A quarter of them may be silent at once: fewer than what the brake takes for a common cause.
const WORKERS: usize = 40;
const AT_ONCE: usize = 10;
const ROUNDS: usize = 10;
/// Longer than a verdict takes.
const ROUND: Duration = Duration::from_secs(8);

pub fn detect() -> Result<(), String> {
    let programs = build()?;
    let home = std::env::temp_dir().join(format!("cloudtik-detect-{}", std::process::id()));
    fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    let mut network = Network::make();
    let result = measure(&programs, &home, network.as_ref());
    let _ = ours(&programs, &home, &["down", "detect", "--yes"]).output();
    let _ = fs::remove_dir_all(&home);
    if let Some(network) = &mut network {
        let _ = network.holder.kill();
        let _ = network.holder.wait();
    }
    result
}

fn measure(programs: &Path, home: &Path, network: Option<&Network>) -> Result<(), String> {
    let file = home.join("cluster.toml");
    let text = format!("[cluster]\nname = \"detect\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = {WORKERS}\n");
    fs::write(&file, text).map_err(|e| e.to_string())?;
    let mut up = ours(programs, home, &["up", &file.display().to_string()]);
    if let Some(network) = network {
        let mut inside = network.enter();
        inside.arg(up.get_program()).args(up.get_args()).env("CLOUDTIK_HOME", home);
        up = inside;
    }
    let up = up.output().map_err(|e| e.to_string())?;
    if !up.status.success() {
        return Err(String::from_utf8_lossy(&up.stderr).into_owned());
    }
    sleep(Duration::from_secs(2));

    let mut killed = Vec::new();
    for round in 0..100 {
        let node = format!("w{}", 1 + round % WORKERS);
        let at = signal(home, &node, "-KILL")?;
        killed.push((node, at));
        sleep(Duration::from_millis(200));
    }
    sleep(Duration::from_secs(2));
    print("SIGKILL of an agent → suspicion", &delays(programs, home, &killed, "→ suspect")?);
    print("SIGKILL of an agent → linked again", &delays(programs, home, &killed, "→ ready")?);

    let mut stopped = Vec::new();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        for n in 0..AT_ONCE {
            let node = format!("w{}", 1 + (round * AT_ONCE + n) % WORKERS);
            let at = signal(home, &node, "-STOP")?;
            stopped.push((node, at));
            // At every moment between two heartbeats.
            sleep(Duration::from_millis(97));
        }
        sleep(ROUND.saturating_sub(begun.elapsed()));
    }
    print("SIGSTOP of an agent → verdict", &delays(programs, home, &stopped, "the node is down")?);

    let Some(network) = network else {
        println!("packets dropped → verdict: not measured, since it needs root and nftables");
        return Ok(());
    };
    let mut cut = Vec::new();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        network.nft(&["add", "table", "inet", "cut"])?;
        network.nft(&["add", "chain", "inet", "cut", "out", "{ type filter hook output priority 0; }"])?;
        for n in 0..AT_ONCE {
            let node = format!("w{}", 1 + (round * AT_ONCE + n) % WORKERS);
            let address = address(programs, home, &node)?;
            let rule = format!("add rule inet cut out ip saddr {address} drop; add rule inet cut out ip daddr {address} drop");
            network.nft(&[&rule])?;
            cut.push((node, now()));
            sleep(Duration::from_millis(97));
        }
        sleep(ROUND.saturating_sub(begun.elapsed()));
        network.nft(&["delete", "table", "inet", "cut"])?;
        sleep(Duration::from_secs(5));
    }
    print("packets dropped → verdict", &delays(programs, home, &cut, "the node is down")?);
    Ok(())
}

/// A network namespace of its own.
struct Network {
    holder: Child,
}

impl Network {
    fn make() -> Option<Self> {
        let script = "ip link set lo up && nft list ruleset && echo up && exec sleep 100000";
        let mut command = Command::new("unshare");
        let mut holder = command.args(["--net", "sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut said = String::new();
        let _ = BufReader::new(holder.stdout.take()?).read_line(&mut said);
        if said.trim() != "up" {
            let _ = holder.wait();
            return None;
        }
        Some(Self { holder })
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command
    }

    fn nft(&self, arguments: &[&str]) -> Result<(), String> {
        let output = self.enter().arg("nft").args(arguments).output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

/// Milliseconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)
}

/// Sends a signal to a node's agent; returns when.
fn signal(home: &Path, node: &str, signal: &str) -> Result<u64, String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let wanted = |(_, name, instance): &&(i32, String, String)| name == "cloudtik-agent" && instance.split('.').next() == Some(node);
        if let Some((pid, ..)) = processes(home).iter().find(wanted) {
            let at = now();
            let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
            return if sent.is_ok_and(|s| s.success()) { Ok(at) } else { Err(format!("the agent of {node} cannot be signalled")) };
        }
        if Instant::now() > deadline {
            return Err(format!("{node} has no agent"));
        }
        sleep(Duration::from_millis(10));
    }
}

fn address(programs: &Path, home: &Path, node: &str) -> Result<String, String> {
    let output = ours(programs, home, &["nodes", "detect"]).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(node));
    let found = row.and_then(|row| row.split_whitespace().find(|word| word.starts_with("127.")));
    found.map(str::to_owned).ok_or_else(|| format!("{node} has no address in\n{text}"))
}

/// From each moment to the next event of the node that says so, in milliseconds.
fn delays(programs: &Path, home: &Path, begun: &[(String, u64)], says: &str) -> Result<Vec<f64>, String> {
    let output = ours(programs, home, &["events", "detect", "-o", "json"]).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |line: &str, key: &str| {
        let rest = line.split(&format!("\"{key}\":")).nth(1)?;
        Some(rest.trim_start_matches('"').split([',', '"', '}']).next()?.to_owned())
    };
    let events: Vec<(u64, String, &str)> =
        text.lines().filter_map(|line| Some((milliseconds(&field(line, "at")?)?, field(line, "node")?, line))).collect();
    let delay = |(node, at): &(String, u64)| {
        let found = events.iter().find(|(when, of, line)| when >= at && of == node && line.contains(says));
        found.map(|(when, ..)| (when - at) as f64).ok_or_else(|| format!("nothing says {says:?} of {node} after {at}"))
    };
    begun.iter().map(delay).collect()
}

/// Milliseconds since the Unix epoch of a moment such as `2024-02-29T12:34:56.789Z`.
fn milliseconds(moment: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| moment.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    // Days since the epoch of a civil date: Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html>.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + number(11..13)?) * 60 + number(14..16)?) * 60 + number(17..19)?) * 1_000 + number(20..23)?)
}

fn print(what: &str, delays: &[f64]) {
    let mut sorted = delays.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1];
    println!("{what:<36} {:>6.0} ms median, {:>6.0} ms p99, {:>6.0} ms most ({} times)", at(0.5), at(0.99), at(1.0), sorted.len());
}

#[cfg(test)]
mod tests {
    #[test]
    fn moments_are_read() {
        assert_eq!(super::milliseconds("2024-02-29T12:34:56.789Z"), Some(1_709_210_096_789));
        assert_eq!(super::milliseconds("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(super::milliseconds("yesterday"), None);
    }
}
