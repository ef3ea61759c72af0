//! Scenarios: what `cloudtik simulate` puts a cluster through.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity};
use cloudtik_model::policy::Rule;
use cloudtik_model::scenario::{Demand, Load, ProviderModel, Scenario, Shortage, Signal, Span, Times};
use cloudtik_model::spec::Market;
use cloudtik_model::{Bytes, NodeTypeName, RuntimeName, Timestamp};

use crate::Cluster;
use crate::diagnostics::InvalidFile;
use crate::reader::{At, Problems, Table, nearest, read_file};
use crate::workers::MAX_WORKERS;

/// Two years: beyond that, nobody waits for the answer.
const LONGEST: Duration = Duration::from_secs(2 * 366 * 24 * 3600);
/// Things that come more often than this are not told apart.
const SHORTEST_GAP: Duration = Duration::from_secs(1);
/// Requests are called after their demand, with a number.
const LONGEST_NAME: usize = 50;
/// A Monday, at midnight, in the time zone UTC.
const DEFAULT_START: Timestamp = Timestamp(1_767_571_200_000);

/// About what clouds take for a virtual machine that boots from an image.
const BOOT: Span = Span { least: 30_000, most: 90_000 };
/// About what clouds take to answer that a machine is being made.
const CALL: Span = Span { least: 1_000, most: 4_000 };
/// From a process that starts to its port that answers.
const SERVICE: Span = Span { least: 2_000, most: 10_000 };

const MARKETS: [Market; 2] = [Market::OnDemand, Market::Spot];

struct Start(Timestamp);

impl FromStr for Start {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let moment: jiff::Timestamp = text.parse().map_err(|_| format!("{text:?} is not a time, such as \"2026-03-02T00:00:00Z\""))?;
        let ms = u64::try_from(moment.as_millisecond()).map_err(|_| format!("{text:?} is before 1970"))?;
        Ok(Self(Timestamp(ms)))
    }
}

/// Reads a scenario for a cluster. `name` is what problems call the file. Signals must be followed by some policy, if
/// `followed` says which are.
pub fn read(name: &str, text: &str, cluster: &Cluster, followed: Option<&BTreeSet<String>>) -> Result<Scenario, InvalidFile> {
    read_file(name, text, |root, problems| read_scenario(root, cluster, followed, problems))
}

/// The signals that policies of a cluster follow.
pub fn followed(cluster: &Cluster) -> impl Iterator<Item = String> {
    cluster.scaling.iter().filter_map(|scaling| match &scaling.policy.rule {
        Rule::Signal { signal, .. } => Some(signal.clone()),
        Rule::Load { .. } | Rule::Schedule { .. } => None,
    })
}

fn read_scenario(root: &mut Table<'_>, cluster: &Cluster, followed: Option<&BTreeSet<String>>, problems: &Problems) -> Option<Scenario> {
    let length = root.duration("length");
    if !root.has("length") {
        root.problem("`length` is missing: how long to simulate", Some("add length = \"1d\"".to_owned()));
    }
    if let Some(length) = length.as_ref().filter(|l| l.value > LONGEST) {
        problems.note(length.span.clone(), "`length` is more than two years", None);
    }
    let start = root.parse::<Start>("start").map_or(DEFAULT_START, |at| at.value.0);
    let seed = root.integer("seed", 0, u64::MAX).map_or(1, |seed| seed.value);
    let provider = root.table("provider").map(|mut table| {
        let model = read_provider(&mut table);
        table.finish();
        model
    });
    let head_lasts_ms = root.table("head").and_then(|mut table| {
        let lasts = table.duration("lasts");
        table.finish();
        lasts.map(|lasts| ms(lasts.value))
    });
    let mut reader = Reader { cluster, followed, length: length.as_ref().map(|l| l.value), problems };
    let shortages = each(root, "shortage", |table| reader.shortage(table));
    let mut names = BTreeSet::new();
    let mut number = 0;
    let demands = each(root, "demand", |table| {
        number += 1;
        let demand = reader.demand(table, number)?;
        if !names.insert(demand.name.clone()) {
            table.problem(format!("there are two demands called {}", demand.name), Some("give each a `name` of its own".to_owned()));
        }
        Some(demand)
    });
    let loads = each(root, "load", |table| reader.load(table));
    let signals = each(root, "signal", |table| reader.signal(table));
    Some(Scenario {
        length_ms: ms(length?.value),
        start,
        seed,
        provider: provider.unwrap_or_else(default_provider),
        head_lasts_ms,
        shortages,
        demands,
        loads,
        signals,
    })
}

fn default_provider() -> ProviderModel {
    ProviderModel {
        boot: BOOT,
        call: CALL,
        service: SERVICE,
        fails: 0,
        calls_per_second: None,
        machine_lasts_ms: None,
        spot_lasts_ms: None,
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn each<T>(root: &mut Table<'_>, key: &str, mut read: impl FnMut(&mut Table<'_>) -> Option<T>) -> Vec<T> {
    let mut all = Vec::new();
    for mut table in root.tables(key) {
        all.extend(read(&mut table));
        table.finish();
    }
    all
}

fn read_provider(table: &mut Table<'_>) -> ProviderModel {
    let default = default_provider();
    let span = |found: Option<At<(Duration, Duration)>>, default: Span| {
        found.map_or(default, |at| Span { least: ms(at.value.0), most: ms(at.value.1) })
    };
    ProviderModel {
        boot: span(table.durations("boot", Duration::ZERO), default.boot),
        call: span(table.durations("call", Duration::ZERO), default.call),
        service: span(table.durations("service", Duration::ZERO), default.service),
        fails: table.float("fails", 0.0, 0.9).map_or(0, |share| (share.value * 1_000.0).round() as u32),
        calls_per_second: table.integer("calls_per_second", 1, 1_000_000).map(|n| n.value as u32),
        machine_lasts_ms: table.duration("machines_last").map(|d| ms(d.value)),
        spot_lasts_ms: table.duration("spot_machines_last").map(|d| ms(d.value)),
    }
}

struct Reader<'r> {
    cluster: &'r Cluster,
    followed: Option<&'r BTreeSet<String>>,
    length: Option<Duration>,
    problems: &'r Problems,
}

impl Reader<'_> {
    fn times(&mut self, table: &mut Table<'_>) -> Times {
        let at = table.duration("at");
        if let Some(at) = at.as_ref().filter(|at| self.length.is_some_and(|length| at.value >= length)) {
            self.problems.note(
                at.span.clone(),
                "it would begin after the end of the simulation",
                Some("lengthen `length`, or let it begin earlier".to_owned()),
            );
        }
        let every = table.duration("every");
        if let Some(every) = every.as_ref().filter(|e| e.value < SHORTEST_GAP) {
            self.problems.note(every.span.clone(), "`every` is less than a second", Some("raise `count` instead".to_owned()));
        }
        let (has_random, has_most) = (table.has("random"), table.has("times"));
        let (random, most) = (table.boolean("random").unwrap_or(false), table.integer("times", 1, u64::from(u32::MAX)));
        if every.is_none() && (has_random || has_most) {
            table.problem("`random` and `times` have no effect without `every`", Some("add every = \"10m\"".to_owned()));
        }
        Times {
            at_ms: at.map_or(0, |at| ms(at.value)),
            every_ms: every.map(|every| ms(every.value)),
            random,
            most: most.map(|most| most.value as u32),
        }
    }

    fn node_type(&mut self, table: &mut Table<'_>) -> Option<At<NodeTypeName>> {
        let found = table.parse::<NodeTypeName>("workers")?;
        if !self.cluster.workers.contains_key(&found.value) {
            let known = self.cluster.workers.keys().map(NodeTypeName::as_str);
            let help = nearest(found.value.as_str(), known.clone()).map(|near| format!("did you mean `{near}`?"));
            let help = help.unwrap_or_else(|| format!("there is {}", known.collect::<Vec<_>>().join(", ")));
            let message = format!("the cluster {} has no node type {}", self.cluster.name, found.value);
            self.problems.note(found.span.clone(), message, Some(help));
        }
        Some(found)
    }

    /// The type that is meant where none is named.
    fn node_type_or_default(&mut self, table: &mut Table<'_>) -> Option<NodeTypeName> {
        if let Some(found) = self.node_type(table) {
            return Some(found.value);
        }
        let default = NodeTypeName::new(NodeTypeName::DEFAULT).ok().filter(|name| self.cluster.workers.contains_key(name));
        if default.is_none() && !table.has("workers") {
            let known: Vec<&str> = self.cluster.workers.keys().map(NodeTypeName::as_str).collect();
            table.problem("the node type is missing", Some(format!("add workers = \"TYPE\"; there is {}", known.join(", "))));
        }
        default
    }

    fn shortage(&mut self, table: &mut Table<'_>) -> Option<Shortage> {
        let node_type = self.node_type(table).map(|found| found.value);
        let zone = table.text("zone");
        if let Some(zone) = zone.as_ref().filter(|zone| !self.cluster.workers.values().any(|w| w.zones.contains(&zone.value))) {
            self.problems.note(zone.span.clone(), format!("no node type is made in the zone {}", zone.value), None);
        }
        let market = table.text("market").and_then(|text| {
            let found = MARKETS.into_iter().find(|market| market.name() == text.value);
            if found.is_none() {
                let names: Vec<&str> = MARKETS.iter().map(|market| market.name()).collect();
                let message = format!("there is no market {:?}", text.value);
                self.problems.note(text.span, message, Some(format!("markets: {}", names.join(", "))));
            }
            found
        });
        let (times, lasts) = (self.times(table), table.duration("lasts"));
        Some(Shortage { node_type, zone: zone.map(|z| z.value), market, times, lasts_ms: lasts.map(|l| ms(l.value)) })
    }

    fn demand(&mut self, table: &mut Table<'_>, number: usize) -> Option<Demand> {
        let name = table.parse::<RuntimeName>("name");
        if let Some(name) = name.as_ref().filter(|name| name.value.as_str().len() > LONGEST_NAME) {
            self.problems.note(name.span.clone(), format!("the name of a demand has at most {LONGEST_NAME} characters"), None);
        }
        let name = name.map_or_else(|| format!("demand-{number}"), |name| name.value.to_string());
        let wants = self.wants(table);
        let (times, runs) = (self.times(table), table.durations("runs", Duration::from_millis(1)));
        Some(Demand { name, wants: wants?, times, runs: runs.map(|at| Span { least: ms(at.value.0), most: ms(at.value.1) }) })
    }

    fn wants(&mut self, table: &mut Table<'_>) -> Option<RequestedCapacity> {
        const ROOM: [&str; 7] = ["cpus", "memory", "gpus", "resources", "count", "gang", "spread"];
        let number = table.integer("more", 1, MAX_WORKERS);
        if let Some(number) = number {
            for key in ROOM.into_iter().filter(|key| table.has(key)) {
                table.problem(format!("`more` asks for whole workers, `{key}` for room: not both"), None);
            }
            // Known all the same, so that they are not called unknown.
            let _ = self.bundle(table);
            return Some(RequestedCapacity::More { node_type: self.node_type_or_default(table)?, count: number.value as u32 });
        }
        let (bundle, count, gang, spread) = self.bundle(table);
        if bundle.is_nothing() {
            // Known all the same, so that it is not called unknown.
            let _ = table.text("workers");
            let help = Some("add cpus = 4, memory = \"8GiB\", gpus = 1 or [demand.resources]; or more = 2 for two workers".to_owned());
            table.problem("the demand asks for nothing", help);
            return None;
        }
        if table.has("workers") {
            let help = Some("leave it out: room is found on whatever type is the cheapest; or add more = 2".to_owned());
            table.problem("`workers` names a type, and room is asked for on any", help);
            let _ = table.text("workers");
        }
        Some(RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count }], gang, spread })
    }

    fn bundle(&mut self, table: &mut Table<'_>) -> (Bundle, u32, bool, bool) {
        let (cpus, gpus) = (self.quantity(table, "cpus"), self.quantity(table, "gpus"));
        let memory = table.parse::<Bytes>("memory").map(|m| m.value).unwrap_or_default();
        let mut bundle = Bundle { cpus: cpus.unwrap_or_default(), memory, gpus: gpus.unwrap_or_default(), ..Bundle::default() };
        if let Some(mut inner) = table.table("resources") {
            for name in inner.names::<RuntimeName>() {
                let known = self.cluster.workers.values().flat_map(|w| w.resources.keys());
                if !known.clone().any(|known| known == name.value.as_str()) {
                    let message = format!("no node type offers {}", name.value);
                    let help = nearest(name.value.as_str(), known.map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
                    self.problems.note(name.span.clone(), message, help);
                }
                if let Some(amount) = self.quantity(&mut inner, name.value.as_str()) {
                    bundle.resources.insert(name.value.to_string(), amount);
                }
            }
        }
        let count = table.integer("count", 1, 1_000_000).map_or(1, |count| count.value as u32);
        (bundle, count, table.boolean("gang").unwrap_or(false), table.boolean("spread").unwrap_or(false))
    }

    fn quantity(&mut self, table: &mut Table<'_>, key: &str) -> Option<Quantity> {
        let number = table.float(key, 0.0, 1e9)?;
        match Quantity::try_from(number.value) {
            Ok(quantity) => Some(quantity),
            Err(error) => {
                self.problems.note(number.span, error.to_string(), None);
                None
            }
        }
    }

    fn load(&mut self, table: &mut Table<'_>) -> Option<Load> {
        let node_type = self.node_type_or_default(table);
        if !table.has("cores") {
            table.problem("`cores` is missing: how many cores the work keeps busy", Some("add cores = 16".to_owned()));
        }
        let cores = self.quantity(table, "cores");
        let (times, lasts) = (self.times(table), table.duration("lasts"));
        Some(Load { node_type: node_type?, cores: cores?, times, lasts_ms: lasts.map(|l| ms(l.value)) })
    }

    fn signal(&mut self, table: &mut Table<'_>) -> Option<Signal> {
        let signal = table.require_text("signal", "\"spark.cores\"");
        if let (Some(signal), Some(followed)) = (&signal, self.followed)
            && !followed.contains(&signal.value)
        {
            let help = nearest(&signal.value, followed.iter().map(String::as_str)).map(|near| format!("did you mean `{near}`?"));
            let help = help.or_else(|| followed.first().map(|known| format!("one follows {known}")));
            self.problems.note(signal.span.clone(), format!("no policy follows the signal {:?}", signal.value), help);
        }
        if !table.has("value") {
            table.problem("`value` is missing", Some("add value = 40".to_owned()));
        }
        let value = self.quantity(table, "value");
        let (times, lasts) = (self.times(table), table.duration("lasts"));
        Some(Signal { signal: signal?.value, value: value?, times, lasts_ms: lasts.map(|l| ms(l.value)) })
    }
}
