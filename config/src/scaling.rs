//! `[[scaling]]`: policies, and what of them cannot be meant.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use cloudtik_model::demand::Quantity;
use cloudtik_model::policy::{Counts, Hours, Metric, Policy, Rule, Workers as Count};
use cloudtik_model::{MoneyPerHour, NodeTypeName, RuntimeName};

use crate::reader::{At, Problems, Table, nearest};
use crate::workers::{MAX_WORKERS, Workers};

/// Long enough to be no moment's noise, short enough that somebody who waits for workers does not give up.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);
/// Agents measure load every five seconds, and nodes' loads are remembered for an hour.
const WINDOWS: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);
/// A worker that comes takes about a minute on a cloud: before that nothing of the last change can be seen.
const DEFAULT_PAUSE: Duration = Duration::from_secs(120);
/// A policy that may not turn round for longer than this is none.
const LONGEST_PAUSE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Leaves a fifth for what comes while more is made.
const DEFAULT_HIGH: f64 = 0.8;
/// Less than half of `high`, so that one worker more never makes one too many.
const DEFAULT_LOW: f64 = 0.3;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const POLICIES: [&str; 3] = ["load", "schedule", "signal"];
const METRICS: [&str; 3] = ["cpu", "memory", "gpu"];

/// A policy with its place, for problems found later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    pub policy: Policy,
    pub span: Range<usize>,
}

/// Minutes after midnight, written `09:30`; `24:00` is the end of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimeOfDay(u16);

impl FromStr for TimeOfDay {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("{text:?} is not a time of day, such as \"09:30\"");
        let (hours, minutes) = text.split_once(':').ok_or_else(fail)?;
        let number = |digits: &str| digits.parse::<u16>().ok().filter(|_| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()));
        let (hours, minutes) = (number(hours).ok_or_else(fail)?, number(minutes).ok_or_else(fail)?);
        if minutes > 59 || hours * 60 + minutes > 24 * 60 {
            return Err(fail());
        }
        Ok(Self(hours * 60 + minutes))
    }
}

/// Bounds that policies are read against.
pub(crate) struct Bounds<'b> {
    pub types: &'b BTreeMap<NodeTypeName, Workers>,
    pub runtimes: Vec<&'b RuntimeName>,
    pub max_workers: Option<u32>,
    pub budget: Option<MoneyPerHour>,
}

pub(crate) fn read(root: &mut Table<'_>, bounds: &Bounds<'_>, problems: &Problems) -> Vec<Scaling> {
    let mut all: Vec<Scaling> = Vec::new();
    for mut table in root.tables("scaling") {
        let span = table.span();
        let Some(scaling) = read_one(&mut table, bounds, problems) else {
            // Its keys are known only with its kind.
            continue;
        };
        table.finish();
        let policy = &scaling.policy;
        if let Some(other) = all.iter().find(|other| other.policy.name == policy.name) {
            let line_of = if other.span == span { "" } else { " above" };
            let help = Some("give one of them a name of its own: name = \"...\"".to_owned());
            problems.note(span.clone(), format!("there is a policy called {}{line_of} already", policy.name), help);
        }
        let same_measure = |other: &&Scaling| match (&other.policy.rule, &policy.rule) {
            (Rule::Load { metric: a, .. }, Rule::Load { metric: b, .. }) => a == b && other.policy.node_type == policy.node_type,
            (Rule::Signal { signal: a, .. }, Rule::Signal { signal: b, .. }) => a == b && other.policy.node_type == policy.node_type,
            _ => false,
        };
        if let Some(other) = all.iter().find(same_measure) {
            let message =
                format!("it contradicts the policy {}: both follow the same measure for the type {}", other.policy.name, policy.node_type);
            problems.note(span.clone(), message, Some("keep one of them".to_owned()));
        }
        check_beside(&all, &scaling, bounds, problems);
        all.push(scaling);
        check_least(&all, bounds, problems);
    }
    all
}

/// What policies want at the least at any time must be to be had.
fn check_least(all: &[Scaling], bounds: &Bounds<'_>, problems: &Problems) {
    let least = |of: &[Scaling], name: &NodeTypeName, kind: &Workers| {
        let of_policies = of.iter().filter(|s| s.policy.node_type == *name && s.policy.least > 0).map(|s| s.policy.least).max();
        kind.min.max(of_policies.unwrap_or(0))
    };
    let sums = |of: &[Scaling]| -> (u32, MoneyPerHour) {
        let numbers = || bounds.types.iter().map(|(name, kind)| (least(of, name, kind), kind));
        let cost = numbers().filter_map(|(n, kind)| Some(kind.price?.times(n))).sum();
        (numbers().map(|(n, _)| n).fold(0, u32::saturating_add), cost)
    };
    let too_much = |of: &[Scaling]| {
        let (workers, cost) = sums(of);
        let budget = bounds.budget.filter(|budget| cost > *budget);
        match bounds.max_workers.filter(|most| workers > *most) {
            Some(most) => Some(format!("{workers} workers are wanted at the least, max_workers is {most}")),
            None => budget.map(|budget| format!("what is wanted at the least costs {cost}, the budget is {budget}")),
        }
    };
    // The one with which it became too much is told, once.
    let Some((new, before)) = all.split_last() else { return };
    if let (Some(why), None) = (too_much(all), too_much(before)) {
        let message = format!("its `min` cannot be kept beside the types' minima and other policies: {why}");
        problems.note(new.span.clone(), message, None);
    }
}

/// Schedules that could be kept one by one may be too much together.
fn check_beside(others: &[Scaling], new: &Scaling, bounds: &Bounds<'_>, problems: &Problems) {
    let Rule::Schedule { hours: new_hours, .. } = &new.policy.rule else { return };
    let counts = |scaling: &Scaling| match &scaling.policy.rule {
        Rule::Schedule { workers: Count::AtLeast(count), .. } => *count,
        Rule::Schedule { workers: Count::More(more), .. } => {
            bounds.types.get(&scaling.policy.node_type).map_or(0, |of| of.min).saturating_add(*more)
        }
        Rule::Load { .. } | Rule::Signal { .. } => 0,
    };
    let same_type = |other: &&Scaling| other.policy.node_type == new.policy.node_type && other.policy.name != new.policy.name;
    for other in others.iter().filter(same_type) {
        let Rule::Schedule { hours, .. } = &other.policy.rule else { continue };
        let (theirs, ours) = (counts(other), counts(new));
        let nothing = |by: &str, of: &str| format!("{by}: the policy {of} asks for as many at least, whenever it is on");
        let message = if hours.covers(new_hours) && theirs >= ours {
            nothing("it has no effect", &other.policy.name)
        } else if new_hours.covers(hours) && ours >= theirs {
            let by = format!("beside it, the policy {} has no effect", other.policy.name);
            nothing(&by, &new.policy.name)
        } else {
            continue;
        };
        problems.note(new.span.clone(), message, Some("leave one of them out".to_owned()));
    }
    let beside: Vec<&Scaling> = others
        .iter()
        .filter(|other| matches!(&other.policy.rule, Rule::Schedule { hours, .. } if hours.meets(new_hours)))
        .filter(|other| other.policy.node_type != new.policy.node_type)
        .collect();
    for other in beside {
        let wanted = |name: &NodeTypeName, of: &Workers| {
            let of_policies = [other, new].into_iter().filter(|s| s.policy.node_type == *name).map(counts).max();
            of.min.max(of_policies.unwrap_or(0))
        };
        let all: u32 = bounds.types.iter().map(|(name, of)| wanted(name, of)).fold(0, u32::saturating_add);
        let cost: MoneyPerHour = bounds.types.iter().filter_map(|(name, of)| Some(of.price?.times(wanted(name, of)))).sum();
        let what = match (bounds.max_workers, bounds.budget) {
            (Some(most), _) if all > most => format!("{all} workers are wanted then, max_workers is {most}"),
            (_, Some(budget)) if cost > budget => format!("what is wanted then costs {cost}, the budget is {budget}"),
            _ => continue,
        };
        let message = format!("it cannot be kept beside the policy {}, which is on at the same time: {what}", other.policy.name);
        problems.note(new.span.clone(), message, None);
    }
}

fn read_one(table: &mut Table<'_>, bounds: &Bounds<'_>, problems: &Problems) -> Option<Scaling> {
    let span = table.span();
    let kind = table.require_text("policy", "\"load\"")?;
    if !POLICIES.contains(&kind.value.as_str()) {
        let help = nearest(&kind.value, POLICIES.into_iter()).map(|near| format!("did you mean `{near}`?"));
        let help = help.unwrap_or_else(|| format!("policies: {}", POLICIES.join(", ")));
        problems.note(kind.span, format!("there is no policy `{}`", kind.value), Some(help));
        if let Some(of) = table.parse::<NodeTypeName>("workers").filter(|of| !bounds.types.contains_key(&of.value)) {
            problems.note(of.span, format!("there is no node type {}", of.value), None);
        }
        return None;
    }
    let name = table.text("name");
    let node_type = table.parse::<NodeTypeName>("workers");
    let node_type =
        node_type.unwrap_or_else(|| At { value: NodeTypeName::new(NodeTypeName::DEFAULT).expect("a valid name"), span: span.clone() });
    let Some(workers) = bounds.types.get(&node_type.value) else {
        let known: Vec<&str> = bounds.types.keys().map(NodeTypeName::as_str).collect();
        let help = Some(format!("set workers = \"TYPE\"; there is {}", known.join(", ")));
        problems.note(node_type.span, format!("there is no node type {}", node_type.value), help);
        // What else is wrong with it is worth knowing all the same.
        let _ = read_rule(table, &kind.value, None, bounds, problems);
        let _ = (table.integer("min", 0, MAX_WORKERS), table.integer("max", 0, MAX_WORKERS), table.duration("pause"));
        return None;
    };
    if workers.min == workers.max {
        let help = Some(format!("raise `max` of [workers.{}], or leave the policy out", node_type.value));
        let message = format!("it has no effect: the type {} has from {} to {} workers", node_type.value, workers.min, workers.max);
        problems.note(span.clone(), message, help);
    }
    let (least, most) = (table.integer("min", 0, MAX_WORKERS), table.integer("max", 0, MAX_WORKERS));
    if let Some(most) = most.as_ref().filter(|m| m.value > u64::from(workers.max)) {
        let message = format!("`max` is {}, and the type {} has at most {} workers", most.value, node_type.value, workers.max);
        problems.note(most.span.clone(), message, Some("the type's own `max` counts; lower this one, or raise that".to_owned()));
    }
    if let Some(least) = least.as_ref().filter(|l| l.value > most.as_ref().map_or(u64::from(workers.max), |m| m.value)) {
        problems.note(least.span.clone(), format!("`min` is {}, more than it may ask for at most", least.value), None);
    }
    if let Some(most) = most.as_ref().filter(|m| workers.min < workers.max && m.value <= u64::from(workers.min)) {
        let always = workers.min;
        let message = format!("it has no effect: `max` is {}, and the type {} always has {always} workers", most.value, node_type.value);
        problems.note(most.span.clone(), message, Some("raise it, or leave the policy out".to_owned()));
    }
    if let Some((most, max)) = bounds.max_workers.zip(most.as_ref()).filter(|(most, max)| max.value > u64::from(*most)) {
        let help = Some("the cluster's maximum counts; lower this one, or raise that".to_owned());
        problems.note(max.span.clone(), format!("`max` is {}, more than max_workers, {most}", max.value), help);
    }
    let pause = table.duration("pause");
    if let Some(pause) = pause.as_ref().filter(|_| kind.value == "schedule") {
        problems.note(pause.span.clone(), "a schedule begins and ends when it says, without a pause", None);
    }
    if let Some(pause) = pause.as_ref().filter(|p| p.value > LONGEST_PAUSE) {
        problems.note(pause.span.clone(), "`pause` is out of range", Some("at most \"7d\"".to_owned()));
    }
    let pause = pause.map_or(DEFAULT_PAUSE, |p| p.value);
    let rule = read_rule(table, &kind.value, Some((&node_type.value, workers)), bounds, problems)?;
    if let (Rule::Schedule { .. }, Some(bound)) = (&rule, least.as_ref().or(most.as_ref())) {
        let help = Some("it wants what `count` or `more` says".to_owned());
        problems.note(bound.span.clone(), "a schedule has no `min` and `max` of its own", help);
    }
    let name = match name {
        Some(name) if name.value.is_empty() || name.value.len() > 63 => {
            problems.note(name.span, "a policy's name has from 1 to 63 characters", None);
            return None;
        }
        Some(name) => name.value,
        None => format!("{}-{}", kind.value, node_type.value),
    };
    let policy = Policy {
        name,
        node_type: node_type.value,
        least: least.map_or(0, |l| l.value as u32),
        most: most.map_or(workers.max, |m| m.value as u32),
        pause_ms: pause.as_millis() as u64,
        rule,
    };
    Some(Scaling { policy, span })
}

fn read_rule(
    table: &mut Table<'_>,
    kind: &str,
    of: Option<(&NodeTypeName, &Workers)>,
    bounds: &Bounds<'_>,
    problems: &Problems,
) -> Option<Rule> {
    match kind {
        "load" => read_load(table, of, problems),
        "schedule" => read_schedule(table, of, bounds, problems),
        _ => read_signal(table, bounds, problems),
    }
}

fn read_load(table: &mut Table<'_>, of: Option<(&NodeTypeName, &Workers)>, problems: &Problems) -> Option<Rule> {
    let metric = table.text("metric");
    if let (Some(metric), Some((name, _))) =
        (&metric, of.filter(|(_, w)| w.gpus.unwrap_or(u32::from(w.cpus.is_none() || w.memory.is_none())) == 0))
        && metric.value == "gpu"
    {
        problems.note(metric.span.clone(), format!("the type {name} has no GPUs"), None);
    }
    let metric = match metric.as_ref().map_or("cpu", |m| m.value.as_str()) {
        "cpu" => Some(Metric::Cpu),
        "memory" => Some(Metric::Memory),
        "gpu" => Some(Metric::Gpu),
        other => {
            let help = Some(format!("metrics: {}", METRICS.join(", ")));
            problems.note(metric.as_ref().map_or(0..0, |m| m.span.clone()), format!("there is no metric `{other}`"), help);
            None
        }
    };
    let (high, low) = (table.float("high", 0.01, 1.0), table.float("low", 0.0, 1.0));
    let window = table.duration("window");
    if let Some(window) = window.as_ref().filter(|w| !WINDOWS.contains(&w.value)) {
        problems.note(window.span.clone(), "`window` is out of range", Some("from \"5s\" to \"1h\"".to_owned()));
    }
    let window = window.map_or(DEFAULT_WINDOW, |w| w.value);
    let high_share = high.as_ref().map_or(DEFAULT_HIGH, |h| h.value);
    let low_share = low.as_ref().map_or(DEFAULT_LOW.min(high_share / 2.0), |l| l.value);
    if low_share > high_share / 2.0 {
        let at = low.or(high).map_or(table.span(), |at| at.span);
        let help = Some(format!("`low` is at most half of `high`, {}", high_share / 2.0));
        let message = format!(
            "`low` {low_share} and `high` {high_share} contradict each other: a second worker halves the load of the first, and would be removed again"
        );
        problems.note(at, message, help);
    }
    Some(Rule::Load { metric: metric?, high: permille(high_share), low: permille(low_share), window_ms: window.as_millis() as u64 })
}

fn permille(share: f64) -> u32 {
    (share * 1_000.0).round() as u32
}

fn read_schedule(table: &mut Table<'_>, of: Option<(&NodeTypeName, &Workers)>, bounds: &Bounds<'_>, problems: &Problems) -> Option<Rule> {
    let mut days: Vec<u8> = Vec::new();
    let has_days = table.has("days");
    for day in table.texts("days") {
        match DAYS.iter().position(|known| *known == day.value) {
            Some(known) if days.contains(&(known as u8)) => problems.note(day.span, format!("{:?} is there twice", day.value), None),
            Some(known) => days.push(known as u8),
            None => {
                problems.note(day.span, format!("{:?} is not a day of the week", day.value), Some(format!("days: {}", DAYS.join(", "))))
            }
        }
    }
    if has_days && days.is_empty() {
        table.problem("a schedule without days is never on", Some("leave `days` out for every day".to_owned()));
    }
    days.sort_unstable();
    if !has_days {
        days = (0..7).collect();
    }
    let from = table.require::<TimeOfDay>("from", "\"09:00\"");
    let until = table.require::<TimeOfDay>("until", "\"17:00\"");
    let zone = table.text("time_zone");
    let time_zone = zone.as_ref().map_or("UTC", |z| z.value.as_str()).to_owned();
    if let Some(zone) = zone.filter(|z| jiff::tz::TimeZone::get(&z.value).is_err()) {
        let help = Some("a name of the time zone database, such as \"Europe/Berlin\" or \"UTC\"".to_owned());
        problems.note(zone.span, format!("there is no time zone {:?}", zone.value), help);
    }
    let has_number = table.has("count") || table.has("more");
    let (count, more) = (table.integer("count", 0, MAX_WORKERS), table.integer("more", 1, MAX_WORKERS));
    let (workers, span) = match (count, more) {
        (Some(count), None) => (Count::AtLeast(count.value as u32), count.span),
        (None, Some(more)) => (Count::More(more.value as u32), more.span),
        (Some(_), Some(more)) => {
            problems.note(more.span, "`count` says how many there are to be, `more` how many beyond the minimum: not both", None);
            return None;
        }
        // What is wrong with the number is told.
        (None, None) if has_number => return None,
        (None, None) => {
            let help = Some("add count = 4, or more = 2 for two beyond the minimum".to_owned());
            table.problem("a schedule says how many workers it wants", help);
            return None;
        }
    };
    if let Some((name, of_type)) = of {
        let wanted = match workers {
            Count::AtLeast(count) => count,
            Count::More(more) => of_type.min.saturating_add(more),
        };
        if wanted > of_type.max {
            let message = format!("it wants {wanted} workers of type {name}, which has at most {}", of_type.max);
            problems.note(span.clone(), message, Some(format!("raise `max` of [workers.{name}], or ask for fewer")));
        }
        let others: u32 = bounds.types.iter().filter(|(other, _)| *other != name).map(|(_, w)| w.min).sum();
        if let Some(most) = bounds.max_workers.filter(|most| wanted.saturating_add(others) > *most) {
            let message =
                format!("it cannot be kept: {wanted} workers of type {name} beside {others} of others are more than max_workers, {most}");
            problems.note(span.clone(), message, None);
        }
        if wanted <= of_type.min {
            let message = format!("it changes nothing: the type {name} always has at least {} workers", of_type.min);
            problems.note(span.clone(), message, None);
        }
        if let Some(budget) = bounds.budget {
            let others: MoneyPerHour =
                bounds.types.iter().filter(|(other, _)| *other != name).filter_map(|(_, w)| Some(w.price?.times(w.min))).sum();
            let cost: MoneyPerHour = [others, of_type.price.unwrap_or_default().times(wanted)].into_iter().sum();
            if cost > budget {
                let message = format!(
                    "it cannot be kept: {wanted} workers of type {name} and the others' minima cost {cost}, the budget is {budget}"
                );
                problems.note(span, message, None);
            }
        }
    }
    if let (Some(from), Some(until)) = (&from, &until)
        && from.value.0 == 24 * 60
    {
        let help = Some("write from = \"00:00\", and the next day".to_owned());
        problems.note(from.span.start..until.span.end, "a schedule cannot begin at the end of a day", help);
    }
    let hours = Hours { days, from: from?.value.0, until: until?.value.0, time_zone };
    Some(Rule::Schedule { hours, workers })
}

fn read_signal(table: &mut Table<'_>, bounds: &Bounds<'_>, problems: &Problems) -> Option<Rule> {
    let signal = table.require_text("signal", "\"spark.waiting_apps\"");
    let per_worker = table.float("per_worker", 0.001, 1e9);
    if let Some(signal) = &signal {
        let runtime = signal.value.split_once('.').map(|(runtime, _)| runtime);
        match runtime {
            None => {
                let message = format!("{:?} names no signal of a runtime", signal.value);
                problems.note(signal.span.clone(), message, Some("write it as RUNTIME.SIGNAL".to_owned()));
            }
            Some(runtime) if !bounds.runtimes.iter().any(|r| r.as_str() == runtime) => {
                let help = Some(format!("add [runtimes.{runtime}]"));
                problems.note(signal.span.clone(), format!("the cluster does not run {runtime}"), help);
            }
            Some(_) => {}
        }
    }
    let per_worker = per_worker.map_or(Quantity::ONE, |p| Quantity((p.value * 1_000.0).round().max(1.0) as u64));
    // Whether it counts all work or what waits is said by the runtime.
    Some(Rule::Signal { signal: signal?.value, per_worker, counts: Counts::All })
}
