//! `simulate`: decisions in virtual time, made by the head's own program. This one only shows them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_config::scenario;
use cloudtik_model::event::EventKind;
use cloudtik_model::simulation::{Arrival, Replayed, Request, Simulated};
use serde::de::DeserializeOwned;

use crate::chart::{Column, columns, spark, squeeze};
use crate::cli::Simulate;
use crate::clusters::program;
use crate::described::{Described, describe, read_text};
use crate::events;
use crate::failure::{FAILED, Failure, INVALID, NOT_FOUND};
use crate::output::{Printer, columns_of_output, local, short};
use crate::terminal::Progress;

const WHERE_RECORDINGS_ARE: &str =
    "`[head] record = true` makes a head write record-EPOCH.jsonl into `head/` of the cluster's directory, which `cloudtik info` shows";
/// Columns of a chart, at most and at least.
const WIDTHS: std::ops::RangeInclusive<usize> = 20..=96;
/// Columns beside a chart.
const MARGIN: usize = 11;
/// Lines of a chart.
const HEIGHT: usize = 8;

pub fn run(printer: &Printer, arguments: &Simulate) -> Result<u8, Failure> {
    if let Some(recording) = &arguments.replay {
        return replay(printer, recording);
    }
    let (Some(file), Some(demand)) = (&arguments.file, &arguments.demand) else {
        return Err(Failure::failed("nothing to simulate").hint("cloudtik simulate CLUSTER.toml --demand FILE"));
    };
    let (demand_name, text) = read_text(demand)
        .map_err(|failure| if failure.code == NOT_FOUND { failure.hint("examples/scenarios has some") } else { failure })?;
    // Everything is read before anything is run.
    let mut all = Vec::new();
    for file in [Some(file), arguments.compare.as_ref()].into_iter().flatten() {
        all.push((file, describe(file)?));
    }
    // A signal that one of them follows is part of the comparison.
    let followed = all.iter().flat_map(|(_, described)| scenario::followed(&described.cluster)).collect();
    for (_, described) in &all {
        scenario::read(&demand_name, &text, &described.cluster, Some(&followed)).map_err(|e| Failure::invalid(vec![e]))?;
    }
    let mut progress = Progress::new();
    let mut documents = Vec::new();
    for (file, described) in &all {
        progress.phase(&format!("simulating {}", file.display()));
        let begun = Instant::now();
        let simulated: Simulated = ask_head(&request(described, &text, arguments.seed))?;
        documents.push((file.display().to_string(), simulated, begun.elapsed()));
    }
    drop(progress);
    if printer.is_json() {
        match &documents[..] {
            [(_, one, _)] => printer.json(one),
            several => printer.json(&several.iter().map(|(_, simulated, _)| simulated).collect::<Vec<_>>()),
        }
        return Ok(0);
    }
    for (file, simulated, took) in &documents {
        show(printer, file, simulated, *took, arguments.decisions);
    }
    if let [(first, a, _), (second, b, _)] = &documents[..] {
        compare(printer, (first, a), (second, b));
    }
    Ok(0)
}

fn request(described: &Described, scenario: &str, seed: Option<u64>) -> Request {
    let files = described
        .folders
        .iter()
        .flat_map(|(runtime, folder)| folder.iter().map(move |(path, text)| (format!("{runtime}/{path}"), text.clone())));
    Request { cluster_file: described.text.clone(), runtime_files: files.collect(), scenario: scenario.to_owned(), seed }
}

/// Has the head's program simulate.
fn ask_head(request: &Request) -> Result<Simulated, Failure> {
    let question = serde_json::to_vec(request).map_err(|e| Failure::failed(e.to_string()))?;
    run_head(Command::new(program("cloudtik-head")?).arg("--simulate"), &question).map_err(|said| Failure::new(FAILED, said))
}

/// Runs the head's program, which does not serve; what it says on standard error is why it failed.
fn run_head<T: DeserializeOwned>(command: &mut Command, question: &[u8]) -> Result<T, String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot run {}: {e}", command.get_program().display()))?;
    // It reads all of it before it writes anything; if it ends earlier, its own words tell why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(question));
    let ran = child.wait_with_output().map_err(|e| e.to_string())?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        return Err(if said.is_empty() { format!("the head's program ended: {}", ran.status) } else { said });
    }
    serde_json::from_slice(&ran.stdout).map_err(|e| format!("the head's answer is malformed: {e}"))
}

fn show(printer: &Printer, file: &str, simulated: &Simulated, took: Duration, all_decisions: bool) {
    let span = short(Duration::from_millis(simulated.length_ms));
    let (start, seed) = (local(simulated.start, "%Y-%m-%d %H:%M %Z"), simulated.seed);
    printer.line(&format!("{} ({file}): {span} from {start}, seed {seed}, in {:.1} s", simulated.cluster, took.as_secs_f64()));
    printer.line("");
    draw(printer, simulated);
    let most_cost = simulated.samples.iter().map(|sample| sample.cost.0).max().unwrap_or(0);
    let rows: Vec<Vec<String>> = simulated
        .types
        .iter()
        .map(|(name, of)| {
            let cost = if simulated.unpriced.contains(name) { "unknown".to_owned() } else { money(of.cost) };
            vec![name.to_string(), of.launched.to_string(), of.most.to_string(), format!("{:.1}", of.node_hours), cost]
        })
        .collect();
    printer.table(&["TYPE", "LAUNCHED", "MOST", "NODE HOURS", "COST"], &rows);
    let (total, used) = (money(simulated.cost), simulated.used * 100.0);
    let most_cost = cloudtik_model::MoneyPerHour(most_cost);
    let known = if simulated.unpriced.is_empty() { "" } else { " as far as prices are known" };
    printer.line(&format!("all of it: {total}, up to {most_cost}{known}; {used:.0} % of the cores' time was used"));
    let demands = waits(simulated);
    if !demands.is_empty() {
        printer.line("");
        let rows: Vec<Vec<String>> = demands.iter().map(|(name, waits)| waits.row(name)).collect();
        printer.table(&["DEMAND", "CAME", "SERVED", "WAITED: MEDIAN", "95 %", "MOST"], &rows);
    }
    for (name, waits) in &demands {
        if let Some(why) = waits.why {
            let never = if waits.never > 0 { format!(", {} of them for good", waits.never) } else { String::new() };
            printer.line(&format!("{name}: {} of {} refused at first{never}; the last because {why}", waits.refused, waits.came));
        }
        if waits.lost > 0 {
            let times = if waits.lost == 1 { "once".to_owned() } else { format!("{} times", waits.lost) };
            printer.line(&format!("{name}: room that ran work was lost {times}"));
        }
    }
    if !simulated.work.is_empty() {
        printer.line("");
        let rows: Vec<Vec<String>> = simulated
            .work
            .iter()
            .map(|(name, work)| {
                let left = format!("{:.1}", work.left);
                vec![name.to_string(), format!("{:.0}", work.core_hours), wait(work.mean_wait_ms), wait(work.longest_wait_ms), left]
            })
            .collect();
        printer.table(&["WORK FOR", "CORE HOURS", "WAITED: MEAN", "MOST", "CORE HOURS LEFT"], &rows);
    }
    printer.line("");
    tell_mishaps(printer, simulated);
    let count = |kind: EventKind| simulated.decisions.iter().filter(|event| event.kind == kind).count();
    let (decisions, alarms, refusals) = (count(EventKind::Decision), count(EventKind::Alarm), count(EventKind::Refusal));
    let all = if all_decisions { "" } else { "; `--decisions` prints them" };
    let number = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let told = [number(decisions, "decision"), number(alarms, "alarm"), number(refusals, "refusal")].join(", ");
    printer.line(&format!("{told}{all}"));
    if all_decisions {
        simulated.decisions.iter().for_each(|event| printer.line(&events::describe(event)));
    }
    printer.line("");
}

/// Workers, money and waiting over time.
fn draw(printer: &Printer, simulated: &Simulated) {
    let of_sample = |sample: &cloudtik_model::simulation::Sample| {
        let sum = |of: fn(&cloudtik_model::simulation::Count) -> u32| sample.types.values().map(of).sum::<u32>();
        Column { full: sum(|count| count.ready).into(), pale: sum(|count| count.coming + count.other).into() }
    };
    let width = columns_of_output().map_or(*WIDTHS.end(), |columns| columns.saturating_sub(MARGIN)).clamp(*WIDTHS.start(), *WIDTHS.end());
    let all: Vec<Column> = simulated.samples.iter().map(of_sample).collect();
    let most = all.iter().map(|column| column.full + column.pale).fold(0.0, f64::max);
    let workers = squeeze(&all, width);
    for (row, line) in columns(&workers, HEIGHT, most).iter().enumerate() {
        let label = if row == 0 { format!("{most:.0}") } else { String::new() };
        printer.line(&format!("{label:>9} ┤{line}"));
    }
    printer.line(&format!("{:>9} └{}", 0, "─".repeat(workers.len())));
    let lines: Vec<(String, Vec<f64>)> = simulated
        .types
        .keys()
        .map(|name| {
            let of = |sample: &cloudtik_model::simulation::Sample| {
                sample.types.get(name).map_or(0.0, |count| f64::from(count.ready + count.coming + count.other))
            };
            (name.to_string(), simulated.samples.iter().map(of).collect())
        })
        .chain([
            ("cost".to_owned(), simulated.samples.iter().map(|sample| sample.cost.0 as f64).collect()),
            ("waiting".to_owned(), simulated.samples.iter().map(|sample| f64::from(sample.waiting)).collect()),
        ])
        .collect();
    for (name, values) in lines {
        let name: String = name.chars().take(9).collect();
        printer.line(&format!("{name:>9}  {}", spark(&values, workers.len())));
    }
    let marks = ["█ ready", "░ coming, leaving or silent"].join("   ");
    let end = cloudtik_model::Timestamp(simulated.start.0 + simulated.length_ms);
    let (begin, end) = (local(simulated.start, "%m-%d %H:%M"), local(end, "%m-%d %H:%M"));
    let gap = workers.len().saturating_sub(begin.len() + end.len()).max(2);
    printer.line(&format!("{:>9}  {begin}{}{end}", "", " ".repeat(gap)));
    printer.line(&format!("{:>9}  {marks}", ""));
    printer.line("");
}

/// How long the arrivals of one demand waited.
#[derive(Default)]
struct Waits<'s> {
    came: usize,
    waited: Vec<u64>,
    /// Those that were refused at least once, and why the last was.
    refused: usize,
    /// Of those, the ones that never had room.
    never: usize,
    /// How often one of them lost some of its room while it ran.
    lost: u32,
    why: Option<&'s str>,
}

impl Waits<'_> {
    /// The wait that so many percent did not exceed: nearest rank.
    fn percentile(&self, percent: usize) -> Option<u64> {
        let rank = (self.waited.len() * percent).div_ceil(100).max(1);
        self.waited.get(rank - 1).copied()
    }

    fn row(&self, name: &str) -> Vec<String> {
        let percentile = |percent| self.percentile(percent).map_or_else(|| "-".to_owned(), wait);
        let (came, served) = (self.came.to_string(), self.waited.len().to_string());
        vec![name.to_owned(), came, served, percentile(50), percentile(95), percentile(100)]
    }
}

fn waits(simulated: &Simulated) -> Vec<(&str, Waits<'_>)> {
    let mut all: Vec<(&str, Waits<'_>)> = Vec::new();
    for Arrival { demand, waited_ms, refused, lost, .. } in &simulated.arrivals {
        let index = all.iter().position(|(name, _)| name == demand).unwrap_or_else(|| {
            all.push((demand, Waits::default()));
            all.len() - 1
        });
        let waits = &mut all[index].1;
        waits.came += 1;
        waits.waited.extend(*waited_ms);
        waits.lost += lost;
        waits.refused += usize::from(refused.is_some());
        waits.never += usize::from(refused.is_some() && waited_ms.is_none());
        waits.why = refused.as_deref().or(waits.why);
    }
    all.iter_mut().for_each(|(_, waits)| waits.waited.sort_unstable());
    all
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn tell_mishaps(printer: &Printer, simulated: &Simulated) {
    let mishaps = &simulated.mishaps;
    let all = [
        (mishaps.machines_broke, "machines broke"),
        (mishaps.spot_taken, "spot machines were taken away"),
        (mishaps.calls_failed, "calls failed"),
        (mishaps.calls_throttled, "calls were rate-limited"),
        (mishaps.calls_without_stock, "calls found no capacity"),
        (mishaps.head_crashes, "times the head crashed"),
    ];
    let told: Vec<String> = all.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{} {what}", grouped(*count))).collect();
    if !told.is_empty() {
        printer.line(&told.join(", "));
    }
}

fn compare(printer: &Printer, (first, a): (&str, &Simulated), (second, b): (&str, &Simulated)) {
    let difference = |a: f64, b: f64| {
        // What rounds to nothing has no sign.
        let percent = ((b / a - 1.0) * 1_000.0).round() / 10.0;
        match percent {
            _ if a <= 0.0 => "-".to_owned(),
            0.0 => "0.0 %".to_owned(),
            percent => format!("{percent:+.1} %"),
        }
    };
    let number = |what: &str, a: f64, b: f64, text: fn(f64) -> String| vec![what.to_owned(), text(a), text(b), difference(a, b)];
    let launched = |of: &Simulated| of.types.values().map(|of| of.launched as f64).sum::<f64>();
    let hours = |of: &Simulated| of.types.values().map(|of| of.node_hours).sum::<f64>();
    let mut rows = vec![
        number("cost", a.cost, b.cost, money),
        number("node hours", hours(a), hours(b), |n| format!("{n:.1}")),
        number("launched", launched(a), launched(b), |n| format!("{n:.0}")),
        number("cores' time used", a.used, b.used, |n| format!("{:.0} %", n * 100.0)),
    ];
    for ((name, a), (_, b)) in waits(a).iter().zip(&waits(b)) {
        rows.push(vec![
            format!("{name}: served"),
            format!("{} of {}", a.waited.len(), a.came),
            format!("{} of {}", b.waited.len(), b.came),
            String::new(),
        ]);
        for (percent, what) in [(50, "median wait"), (95, "95 % waited at most")] {
            if let (Some(a), Some(b)) = (a.percentile(percent), b.percentile(percent)) {
                rows.push(number(&format!("{name}: {what}"), a as f64, b as f64, |ms| wait(ms as u64)));
            }
        }
    }
    for (name, a) in &a.work {
        if let Some(b) = b.work.get(name) {
            rows.push(number(&format!("work for {name}: mean wait"), a.mean_wait_ms as f64, b.mean_wait_ms as f64, |ms| wait(ms as u64)));
        }
    }
    printer.table(&["", first, second, "CHANGE"], &rows);
}

fn money(amount: f64) -> String {
    format!("{amount:.2}")
}

/// A wait for people: less than a second is none.
fn wait(ms: u64) -> String {
    if ms < 1_000 { "0s".to_owned() } else { short(Duration::from_millis(ms)) }
}

/// Lives a head's life again and says whether it decides the same.
fn replay(printer: &Printer, file: &Path) -> Result<u8, Failure> {
    if let Err(error) = std::fs::File::open(file) {
        let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { INVALID };
        return Err(Failure::new(code, format!("cannot read {}: {error}", file.display())).hint(WHERE_RECORDINGS_ARE));
    }
    let head = program("cloudtik-head")?;
    let replayed: Replayed = run_head(Command::new(head).arg("--replay").arg(file), &[])
        .map_err(|said| Failure::new(INVALID, format!("cannot replay {}: {said}", file.display())).hint(WHERE_RECORDINGS_ARE))?;
    let code = if replayed.differs.is_some() { FAILED } else { 0 };
    if printer.is_json() {
        printer.json(&replayed);
        return Ok(code);
    }
    for event in replayed.events.iter().filter(|e| e.kind != EventKind::Service) {
        printer.line(&events::describe(event));
    }
    printer.line("");
    let Replayed { version, epoch, inputs, .. } = &replayed;
    match &replayed.differs {
        None => {
            let cut_off = if replayed.cut_off { "; the last line was cut off" } else { "" };
            printer.line(&format!("{inputs} inputs of epoch {epoch} (version {version}): every decision is identical{cut_off}"));
        }
        Some(difference) => {
            printer
                .line(&format!("line {} of epoch {epoch} (version {version}) is decided otherwise: {}", difference.line, difference.input));
            for decided in &difference.decided {
                printer.line(&format!("  now: {decided}"));
            }
        }
    }
    Ok(code)
}
