//! The scenario: what is asked for when, and what becomes of it; shortages, loads and signals; what breaks.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_brain::{Input, NewRequest, Reply, Request};
use cloudtik_model::demand::{Quantity, RequestedCapacity};
use cloudtik_model::refusal::Refusal;
use cloudtik_model::report::Load;
use cloudtik_model::scenario::{Demand, Scenario, Times};
use cloudtik_model::simulation::{Arrival, Work};
use cloudtik_model::spec::{Market, Offer};
use cloudtik_model::{Actor, InstanceId, NodeTypeName, ServiceKey};

use super::{SimEvent, World};
use crate::random::Random;
use crate::work::Fluid;

/// How things stood is looked at so often within a scenario.
const SAMPLES: u64 = 240;
/// What was refused is asked for again after so many milliseconds, also if nothing was given back: nodes come and go.
const REFUSED_PAUSE: u64 = 600_000;
/// From a change of load to its being told, beside what heartbeats tell, in milliseconds.
const LOAD_PAUSE: u64 = 5_000;
/// A load that moved less than this, in thousandths, is told by heartbeats only.
const LOAD_MOVE: u32 = 20;
/// So many of those that were refused ask again at a time, in turn.
const QUEUE: usize = 16;
/// Before somebody who finds no head tries again, in milliseconds.
const PATIENCE: u64 = 100;

/// What choices are about, beside tables: how long demands run, how long machines last.
const RUNS: u64 = 100;
const LIVES: u64 = 101;

/// Something of the scenario.
#[derive(Debug, Clone)]
pub(super) enum Scripted {
    /// One of a table begins, for the so-manieth time.
    Begins(Table, usize, u32),
    Ends(Table, usize),
    /// The arrival says what it wants, or that it is done.
    Speaks(usize),
    /// Some of those that were refused ask again.
    QueueMoves {
        /// Their time has come; else something was given back.
        in_time: bool,
    },
    IsDone(usize),
    Breaks(InstanceId),
    IsTaken(InstanceId),
    HeadCrashes,
    /// The nodes of a type say how busy they are.
    TellLoads(NodeTypeName),
    Sample,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Demand,
    Load,
    Signal,
    Shortage,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    /// Everything that came, as it is told in the end.
    pub arrivals: Vec<Arrival>,
    /// Beside each arrival.
    stages: Vec<Stage>,
    /// Who waits for an answer of the head.
    asked: BTreeMap<u64, usize>,
    /// Arrivals whose request stands and is not there yet.
    expecting: BTreeSet<usize>,
    /// Arrivals that were refused.
    refused: BTreeSet<usize>,
    /// Some of them will ask again.
    queue_moves: bool,
    /// Who asks first when something is given back: everybody's turn comes.
    next_refused: usize,
    /// Some of them may be there now.
    pub look_again: bool,
    /// Some that run may have lost room.
    pub look_back: bool,
    /// Those that run and lack some of their room.
    short: BTreeSet<usize>,
    pub work: BTreeMap<NodeTypeName, Fluid>,
    /// Types whose load moved, which will be told soon.
    load_moved: BTreeSet<NodeTypeName>,
    signals: BTreeMap<String, u64>,
    /// Which agent tells the signals of a service.
    tellers: BTreeMap<ServiceKey, InstanceId>,
    /// By shortage, how often it holds just now.
    shortages: Vec<u32>,
    /// Core-milliseconds for which demands were done.
    demands_done: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody said yes yet.
    Asking,
    Expecting,
    Running {
        since: u64,
        cores: u64,
    },
    Leaving,
    Gone,
}

impl Script {
    /// Arrivals that have no room yet.
    pub fn waiting(&self) -> u32 {
        self.stages.iter().filter(|stage| matches!(stage, Stage::Asking | Stage::Expecting)).count() as u32
    }

    /// What became of the work of load tables; and all core-milliseconds of work and of demands.
    pub fn work_done(&mut self, now: u64) -> (BTreeMap<NodeTypeName, Work>, f64) {
        let mut done = self.demands_done;
        for stage in &self.stages {
            if let Stage::Running { since, cores } = stage {
                done += (now - since) as f64 * *cores as f64 / 1_000.0;
            }
        }
        let mut work = BTreeMap::new();
        for (name, fluid) in &mut self.work {
            fluid.advance(now);
            done += fluid.done();
            work.insert(name.clone(), fluid.summary());
        }
        (work, done)
    }
}

/// Cores of what is asked for, in thousandths.
fn cores_of(wants: &RequestedCapacity) -> u64 {
    match wants {
        RequestedCapacity::Bundles { bundles, .. } => bundles.iter().map(|b| b.bundle.cpus.0 * u64::from(b.count)).sum(),
        RequestedCapacity::Workers { .. } | RequestedCapacity::More { .. } => 0,
    }
}

impl World {
    /// Choices that depend on the scenario's seed and on what they are about only.
    fn chance(&self, parts: &[u64]) -> Random {
        Random::stream(self.setup.seed, parts)
    }

    fn script_after(&mut self, delay: u64, scripted: Scripted) {
        self.after(delay, SimEvent::Scripted(scripted));
    }

    fn times_of(&self, table: Table, index: usize) -> Option<(Times, Option<u64>)> {
        let scenario = self.setup.scenario.as_ref()?;
        match table {
            Table::Demand => scenario.demands.get(index).map(|demand| (demand.times, None)),
            Table::Load => scenario.loads.get(index).map(|load| (load.times, load.lasts_ms)),
            Table::Signal => scenario.signals.get(index).map(|signal| (signal.times, signal.lasts_ms)),
            Table::Shortage => scenario.shortages.get(index).map(|shortage| (shortage.times, shortage.lasts_ms)),
        }
    }

    /// Puts the whole scenario down.
    pub(super) fn begin(&mut self, scenario: &Scenario) {
        let tables = [
            (Table::Demand, scenario.demands.len()),
            (Table::Load, scenario.loads.len()),
            (Table::Signal, scenario.signals.len()),
            (Table::Shortage, scenario.shortages.len()),
        ];
        for (table, count) in tables {
            for index in 0..count {
                if let Some((times, _)) = self.times_of(table, index) {
                    self.script_after(times.at_ms, Scripted::Begins(table, index, 1));
                }
            }
        }
        self.script.shortages = vec![0; scenario.shortages.len()];
        for load in &scenario.loads {
            self.script.work.entry(load.node_type.clone()).or_default();
        }
        self.script_after(0, Scripted::Sample);
        self.let_head_fail();
    }

    fn let_head_fail(&mut self) {
        if let Some(mean) = self.setup.scenario.as_ref().and_then(|scenario| scenario.head_lasts_ms) {
            let lasts = self.random.lasting(mean);
            self.script_after(lasts, Scripted::HeadCrashes);
        }
    }

    /// Machines do not live for ever.
    pub(super) fn let_it_fail(&mut self, id: &InstanceId, market: Market) {
        let Some(model) = self.setup.scenario.as_ref().map(|scenario| scenario.provider.clone()) else { return };
        let letters = id.as_str().bytes().map(u64::from);
        let mut chance = self.chance(&std::iter::once(LIVES).chain(letters).collect::<Vec<_>>());
        if let Some(mean) = model.machine_lasts_ms {
            let lasts = chance.lasting(mean);
            self.script_after(lasts, Scripted::Breaks(id.clone()));
        }
        if let Some(mean) = model.spot_lasts_ms.filter(|_| market == Market::Spot) {
            let lasts = chance.lasting(mean);
            self.script_after(lasts, Scripted::IsTaken(id.clone()));
        }
    }

    pub(super) fn play(&mut self, scripted: Scripted) {
        match scripted {
            Scripted::IsDone(arrival) => self.finish(arrival),
            Scripted::TellLoads(node_type) => self.tell_loads(&node_type),
            Scripted::Speaks(arrival) => self.speak(arrival),
            Scripted::QueueMoves { in_time } => self.serve_refused(in_time),
            Scripted::Ends(table, index) => self.change(table, index, false),
            // Afterwards nothing new begins, and nothing goes wrong any more.
            _ if self.peaceful => {}
            Scripted::Begins(table, index, time) => {
                let Some((times, lasts)) = self.times_of(table, index) else { return };
                if table == Table::Demand {
                    self.arrive(index, time)
                } else {
                    self.change(table, index, true)
                }
                if let Some(lasts) = lasts {
                    self.script_after(lasts, Scripted::Ends(table, index));
                }
                if let Some(every) = times.every_ms.filter(|_| times.most.is_none_or(|most| time < most)) {
                    // What comes is the same whatever the cluster does.
                    let mut chance = self.chance(&[table as u64, index as u64, u64::from(time)]);
                    let gap = if times.random { chance.lasting(every).max(1) } else { every };
                    self.script_after(gap, Scripted::Begins(table, index, time + 1));
                }
            }
            Scripted::Breaks(id) => {
                if self.provider.get(&id).is_some_and(|machine| !machine.broken) {
                    self.accounts.mishaps.machines_broke += 1;
                    self.break_machine(&id);
                }
            }
            Scripted::IsTaken(id) => {
                if self.provider.get(&id).is_some() {
                    self.accounts.mishaps.spot_taken += 1;
                    let silence = self.setup.pace.silence;
                    self.close_link(&id, "the machine was taken away", silence);
                    self.end_machine(&id);
                }
            }
            Scripted::HeadCrashes => {
                if self.brain.is_some() {
                    self.accounts.mishaps.head_crashes += 1;
                    self.crash();
                }
                self.let_head_fail();
            }
            Scripted::Sample => {
                self.sample();
                self.tell_signals();
                let gap = (self.setup.length / SAMPLES).max(1);
                self.script_after(gap, Scripted::Sample);
            }
        }
    }

    /// A load, a signal or a shortage begins or ends.
    fn change(&mut self, table: Table, index: usize, begins: bool) {
        let Some(scenario) = &self.setup.scenario else { return };
        let changed = |value: u64, by: u64| if begins { value + by } else { value.saturating_sub(by) };
        match table {
            Table::Demand => {}
            Table::Shortage => self.script.shortages[index] = changed(self.script.shortages[index].into(), 1) as u32,
            Table::Load => {
                let (node_type, cores) = (scenario.loads[index].node_type.clone(), scenario.loads[index].cores.0);
                if let Some(fluid) = self.script.work.get_mut(&node_type) {
                    fluid.advance(self.now);
                    fluid.rate = changed(fluid.rate, cores);
                }
                self.load_moved(&node_type);
            }
            Table::Signal => {
                let signal = &scenario.signals[index];
                let value = self.script.signals.entry(signal.signal.clone()).or_default();
                *value = changed(*value, signal.value.0);
                self.tell_signals();
            }
        }
    }

    pub(super) fn is_short_by_script(&self, node_type: &NodeTypeName, offer: &Offer) -> bool {
        let Some(scenario) = &self.setup.scenario else { return false };
        let mut holds = scenario.shortages.iter().zip(&self.script.shortages).filter(|(_, holds)| **holds > 0);
        holds.any(|(shortage, _)| shortage.is_of(node_type, offer))
    }

    fn arrive(&mut self, demand: usize, time: u32) {
        let Some(name) = self.setup.scenario.as_ref().and_then(|s| s.demands.get(demand)).map(|d| d.name.clone()) else { return };
        let request = format!("{name}-{time}");
        let arrival = Arrival { demand: name, request, at_ms: self.now, waited_ms: None, lost: 0, done_ms: None, refused: None };
        self.script.arrivals.push(arrival);
        self.script.stages.push(Stage::Asking);
        self.speak(self.script.arrivals.len() - 1);
    }

    fn demand_of(&self, arrival: usize) -> Option<&Demand> {
        let name = &self.script.arrivals.get(arrival)?.demand;
        self.setup.scenario.as_ref()?.demands.iter().find(|demand| demand.name == *name)
    }

    /// Asks the head for what an arrival wants, or gives it back, unless an answer is on its way.
    fn speak(&mut self, arrival: usize) {
        let stage = self.script.stages[arrival];
        let is_over = self.peaceful && matches!(stage, Stage::Asking);
        if is_over || !matches!(stage, Stage::Asking | Stage::Leaving) {
            return;
        }
        if self.script.asked.values().any(|asking| *asking == arrival) {
            return;
        }
        if self.brain.is_none() || self.stored.cluster.spec.is_none() {
            return self.script_after(PATIENCE, Scripted::Speaks(arrival));
        }
        self.next += 1;
        let number = self.next;
        let request = Request::new(number, Actor::LOCAL);
        let name = self.script.arrivals[arrival].request.clone();
        let input = if stage == Stage::Leaving {
            Input::Revoke { request, name, now: false }
        } else {
            let Some(demand) = self.demand_of(arrival) else { return };
            let (wants, reason) = (demand.wants.clone(), demand.name.clone());
            let asked = NewRequest { name: Some(name), wants: wants.clone(), additive: true, until: None, reason };
            self.asked_for.insert(number, wants);
            Input::Scale { request, asked }
        };
        self.script.asked.insert(number, arrival);
        self.hear(1, self.epoch, input);
    }

    /// The head crashed: whoever waits for an answer asks again.
    pub(super) fn ask_again(&mut self) {
        for arrival in std::mem::take(&mut self.script.asked).into_values() {
            self.script_after(PATIENCE, Scripted::Speaks(arrival));
        }
    }

    /// The head's answer to somebody of the scenario.
    pub(super) fn answer(&mut self, request: u64, result: &Result<Reply, Refusal>) {
        let Some(arrival) = self.script.asked.remove(&request) else { return };
        let now = self.now;
        let script = &mut self.script;
        match (script.stages[arrival], result) {
            (Stage::Asking, Ok(_)) => {
                script.stages[arrival] = Stage::Expecting;
                script.refused.remove(&arrival);
                script.expecting.insert(arrival);
                script.look_again = true;
            }
            (Stage::Asking, Err(why)) => {
                script.arrivals[arrival].refused = Some(why.to_string());
                script.refused.insert(arrival);
                if !std::mem::replace(&mut script.queue_moves, true) {
                    self.script_after(REFUSED_PAUSE, Scripted::QueueMoves { in_time: true });
                }
            }
            (Stage::Leaving, _) => {
                script.stages[arrival] = Stage::Gone;
                script.arrivals[arrival].done_ms = Some(now);
                if !script.refused.is_empty() {
                    self.script_after(1, Scripted::QueueMoves { in_time: false });
                }
            }
            _ => {}
        }
    }

    /// Some of those that were refused ask again, in turn.
    fn serve_refused(&mut self, in_time: bool) {
        // Who asks because something was given back asks again in his time all the same.
        self.script.queue_moves &= !in_time;
        let refused = &self.script.refused;
        let from = self.script.next_refused;
        let turn: Vec<usize> = refused.range(from..).chain(refused.range(..from)).copied().take(QUEUE).collect();
        self.script.next_refused = turn.last().map_or(0, |last| last + 1);
        for arrival in turn {
            self.speak(arrival);
        }
    }

    /// Counts those that run and lost some of their room, once until they have it again.
    fn look_at_losses(&mut self) {
        let Some(brain) = &self.brain else { return };
        let script = &mut self.script;
        let has_room = |arrivals: &[Arrival], arrival: usize| brain.is_ready(&arrivals[arrival].request);
        if script.look_again {
            let Script { short, arrivals, .. } = &mut *script;
            short.retain(|arrival| !has_room(arrivals, *arrival));
        }
        if std::mem::take(&mut script.look_back) {
            for arrival in 0..script.arrivals.len() {
                let runs = matches!(script.stages[arrival], Stage::Running { .. }) && !script.short.contains(&arrival);
                if runs && !has_room(&script.arrivals, arrival) {
                    script.arrivals[arrival].lost += 1;
                    script.short.insert(arrival);
                }
            }
        }
    }

    /// Those whose room is there by now begin to work.
    pub(super) fn look_at_arrivals(&mut self) {
        self.look_at_losses();
        if !std::mem::take(&mut self.script.look_again) {
            return;
        }
        let Some(brain) = &self.brain else { return };
        let arrivals = &self.script.arrivals;
        let there: Vec<usize> = self.script.expecting.iter().copied().filter(|a| brain.is_ready(&arrivals[*a].request)).collect();
        for arrival in there {
            let Some((runs, cores)) = self.demand_of(arrival).map(|demand| (demand.runs, cores_of(&demand.wants))) else { continue };
            self.script.expecting.remove(&arrival);
            self.script.stages[arrival] = Stage::Running { since: self.now, cores };
            let of = &mut self.script.arrivals[arrival];
            of.waited_ms = Some(self.now - of.at_ms);
            if let Some(runs) = runs {
                let runs = self.chance(&[RUNS, arrival as u64]).within(runs);
                self.script_after(runs, Scripted::IsDone(arrival));
            }
        }
    }

    fn finish(&mut self, arrival: usize) {
        self.script.short.remove(&arrival);
        if let Stage::Running { since, cores } = self.script.stages[arrival] {
            self.script.demands_done += (self.now - since) as f64 * cores as f64 / 1_000.0;
            self.script.stages[arrival] = Stage::Leaving;
            self.speak(arrival);
        }
    }

    /// How busy a node is.
    pub(super) fn load_of(&mut self, id: &InstanceId) -> Option<Load> {
        let agent = self.agents.get(id)?;
        if self.setup.scenario.is_none() {
            return Some(Load { cpu: if agent.busy { 600 } else { 0 }, ..Load::default() });
        }
        let node_type = &agent.node_type;
        let Some(fluid) = self.script.work.get_mut(node_type) else { return Some(Load::default()) };
        fluid.advance(self.now);
        Some(fluid.load())
    }

    /// Heartbeats may be far apart: what load policies live on is told between them too.
    pub(super) fn load_moved(&mut self, node_type: &NodeTypeName) {
        if self.script.load_moved.insert(node_type.clone()) {
            self.script_after(LOAD_PAUSE, Scripted::TellLoads(node_type.clone()));
        }
    }

    fn tell_loads(&mut self, node_type: &NodeTypeName) {
        self.script.load_moved.remove(node_type);
        let Some(fluid) = self.script.work.get_mut(node_type) else { return };
        fluid.advance(self.now);
        let (load, worked_off) = (fluid.load(), fluid.worked_off_in());
        let moved = |before: Option<Load>| before.is_none_or(|before| before.cpu.abs_diff(load.cpu) >= LOAD_MOVE);
        let (now, epoch) = (self.now, self.epoch);
        let mut told = Vec::new();
        for agent in self.agents.values_mut().filter(|a| a.node_type == *node_type && a.is_well(now) && moved(a.load)) {
            if let Some(session) = agent.link {
                agent.load = Some(load);
                told.push(Input::heartbeat(session, agent.node.clone(), 0, Some(load)));
            }
        }
        for input in told {
            self.hear(1, epoch, input);
        }
        if let Some(span) = worked_off.filter(|_| self.script.load_moved.insert(node_type.clone())) {
            self.script_after(span.max(LOAD_PAUSE), Scripted::TellLoads(node_type.clone()));
        }
    }

    /// One node's service tells each signal: the head's, or the first that runs it.
    pub(super) fn tell_signals(&mut self) {
        for (signal, value) in self.script.signals.clone() {
            let Some((runtime, name)) = signal.split_once('.') else { continue };
            let of_runtime = || self.spec.services.iter().filter(|placement| placement.key.runtime.as_str() == runtime);
            let on_head = of_runtime().find(|placement| placement.role.covers(&NodeTypeName::head()));
            let Some(key) = on_head.or_else(|| of_runtime().next()).map(|placement| placement.key.clone()) else { continue };
            let mut linked = self.agents.values().filter(|agent| agent.link.is_some() && agent.services.contains_key(&key));
            let Some(teller) = linked.next().map(|agent| agent.instance.clone()) else { continue };
            let before = self.script.tellers.insert(key.clone(), teller.clone()).filter(|before| *before != teller);
            if let Some(agent) = before.and_then(|before| self.agents.get_mut(&before)) {
                agent.signals.remove(&key);
                let id = agent.instance.clone();
                self.report(&id);
            }
            let Some(agent) = self.agents.get_mut(&teller) else { continue };
            let told = agent.signals.entry(key).or_default().insert(name.to_owned(), Quantity(value));
            if told != Some(Quantity(value)) {
                self.report(&teller);
            }
        }
    }

    fn report(&mut self, id: &InstanceId) {
        let Some(agent) = self.agents.get(id) else { return };
        let Some(session) = agent.link else { return };
        let (node, services) = (agent.node.clone(), agent.reports(self.now));
        self.hear(3, self.epoch, Input::Reported { session, node, complete: false, services, jobs: Vec::new() });
    }
}
