//! A large cluster, for a long time: machines break, spot machines are taken away, calls fail, the head crashes, and work
//! comes and goes. `CLOUDTIK_DAYS=365` makes it a year.

use std::collections::BTreeMap;

use cloudtik_model::demand::{Bundle, Counted, Quantity, RequestedCapacity};
use cloudtik_model::policy::{Metric, Policy, Rule};
use cloudtik_model::scenario::{Demand, Load, ProviderModel, Scenario, Shortage, Span, Times};
use cloudtik_model::spec::{Market, Role, ServicePlacement, Spec, Spot, WorkerType};
use cloudtik_model::{Bytes, ClusterName, MoneyPerHour, NodeTypeName, Resources, Timestamp};
use cloudtik_simulation::{Setup, World};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Days of the test command.
const DAYS: u64 = 2;

fn name(text: &str) -> NodeTypeName {
    NodeTypeName::new(text).expect("a valid name")
}

/// A thousand workers at most, of three types, and a budget that is less than all of them cost.
fn cluster() -> Spec {
    let kind = |min, max, cpus, gpus, price| WorkerType {
        min,
        max,
        price: Some(MoneyPerHour(price)),
        resources: Some(Resources { cpus, memory: Bytes(u64::from(cpus) << 32), gpus }),
        ..WorkerType::default()
    };
    let mut spot = kind(0, 800, 16, 0, 800_000);
    spot.spot = Some(Spot { price: Some(MoneyPerHour(250_000)), or_on_demand: true });
    spot.zones = vec!["a".to_owned(), "b".to_owned()];
    let load = Rule::Load { metric: Metric::Cpu, high: 800, low: 400, window_ms: 5 * MINUTE };
    Spec {
        workers: BTreeMap::from([
            (name("default"), kind(200, 700, 8, 0, 400_000)),
            (name("spot"), spot),
            (name("gpu"), kind(0, 40, 16, 4, 4_000_000)),
        ]),
        max_workers: 1_000,
        budget: Some(MoneyPerHour(420_000_000)),
        services: vec![ServicePlacement {
            key: "a/worker".parse().expect("a valid key"),
            role: Role::Workers,
            after: Vec::new(),
            membership: None,
            drain_ms: 0,
        }],
        policies: vec![Policy {
            name: "load".to_owned(),
            node_type: name("default"),
            least: 200,
            most: 700,
            pause_ms: 10 * MINUTE,
            rule: load,
        }],
        ..Spec::default()
    }
}

fn scenario(days: u64) -> Scenario {
    let demand = |name: &str, bundle: Bundle, count, gang, times, runs| Demand {
        name: name.to_owned(),
        wants: RequestedCapacity::Bundles { bundles: vec![Counted { bundle, count }], gang, spread: false },
        times,
        runs: Some(runs),
    };
    let cpus = |n: u64| Bundle { cpus: Quantity(n * 1_000), ..Bundle::default() };
    let gpu = Bundle { gpus: Quantity::ONE, ..cpus(4) };
    let every = |at_ms, every_ms, random| Times { at_ms, every_ms: Some(every_ms), random, most: None };
    Scenario {
        length_ms: days * DAY,
        start: Timestamp(1_767_571_200_000),
        seed: 1,
        provider: ProviderModel {
            boot: Span { least: 30_000, most: 90_000 },
            call: Span { least: 1_000, most: 4_000 },
            service: Span { least: 2_000, most: 10_000 },
            fails: 20,
            calls_per_second: Some(40),
            machine_lasts_ms: Some(30 * DAY),
            spot_lasts_ms: Some(12 * HOUR),
        },
        head_lasts_ms: Some(12 * HOUR),
        shortages: vec![
            Shortage {
                node_type: Some(name("spot")),
                zone: None,
                market: Some(Market::Spot),
                times: every(9 * HOUR, DAY, false),
                lasts_ms: Some(40 * MINUTE),
            },
            Shortage {
                node_type: None,
                zone: Some("a".to_owned()),
                market: None,
                times: every(2 * HOUR, 7 * HOUR, true),
                lasts_ms: Some(20 * MINUTE),
            },
        ],
        demands: vec![
            demand("nightly", cpus(4), 3_000, false, every(HOUR, DAY, false), Span { least: 2 * HOUR, most: 3 * HOUR }),
            demand("notebook", cpus(2), 1, false, every(0, 10 * MINUTE, true), Span { least: 20 * MINUTE, most: 3 * HOUR }),
            demand("training", gpu, 32, true, every(10 * HOUR, 5 * HOUR, true), Span { least: HOUR, most: 2 * HOUR }),
        ],
        loads: vec![
            Load { node_type: name("default"), cores: Quantity(900_000), times: Times::default(), lasts_ms: None },
            Load { node_type: name("default"), cores: Quantity(2_500_000), times: every(8 * HOUR, DAY, false), lasts_ms: Some(10 * HOUR) },
        ],
        signals: Vec::new(),
    }
}

#[test]
fn nothing_leaks_and_nothing_overshoots_in_the_long_run() {
    let days = std::env::var("CLOUDTIK_DAYS").ok().and_then(|text| text.parse().ok()).unwrap_or(DAYS);
    // Every machine that is made is held against every limit; in the end nothing may be left that nobody knows.
    let world = World::new(Setup::of_scenario(cluster(), scenario(days), 2 * HOUR));
    let simulated = world.simulate(ClusterName::new("large").expect("a valid name")).unwrap_or_else(|violation| panic!("{violation}"));
    let launched: u64 = simulated.types.values().map(|of| of.launched).sum();
    let most: u32 = simulated.samples.iter().map(|s| s.types.values().map(|c| c.ready + c.coming + c.other).sum()).max().unwrap_or(0);
    let served = simulated.arrivals.iter().filter(|arrival| arrival.waited_ms.is_some()).count();
    println!(
        "{days} days: {} inputs, {launched} machines, {most} at once at most, {served} of {} demands served, {:.0} spent, {:?}",
        simulated.steps,
        simulated.arrivals.len(),
        simulated.cost,
        simulated.mishaps
    );
    // A cluster to which nothing happens would prove nothing.
    let mishaps = simulated.mishaps;
    assert!(launched > 100 * days && most > 700, "{launched} machines, {most} at once");
    assert!(mishaps.machines_broke > days && mishaps.spot_taken > days && mishaps.head_crashes > 0 && mishaps.calls_failed > days);
    assert!(served * 10 > simulated.arrivals.len() * 9, "{served} of {} demands were served", simulated.arrivals.len());
}
