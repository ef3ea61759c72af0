//! What goes wrong in a seeded world.

use crate::provider::VISIBILITY;
use crate::random::Random;

/// What goes wrong, in times per thousand where it is a chance.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Per step of the head.
    pub crash: u64,
    /// Per provider call.
    pub call_fails: u64,
    pub call_fails_after: u64,
    /// Per create: there is none of what was asked for.
    pub stock_out: u64,
    /// Per call: there were too many.
    pub throttled: u64,
    /// Per 10 s.
    pub agent_dies: u64,
    pub agent_freezes: u64,
    pub agent_cut: u64,
    pub machine_breaks: u64,
    pub head_pauses: u64,
    /// The head's network is gone for a while: every agent is cut.
    pub all_cut: u64,
    /// Per 10 s: the head's wall clock is set to another time.
    pub clock_jumps: u64,
    /// Per 10 s: somebody scales, kills or drains, or changes the description.
    pub people: u64,
    /// Per 5 s: somebody submits a job; fewer cancel and delete one.
    pub jobs: u64,
    /// Per 5 s: the head's machine is lost, and another one takes its place.
    pub head_replaced: u64,
    pub can_restart_agent: bool,
    pub can_reboot: bool,
    /// How long the provider's list may hide a machine, in milliseconds. 0: it never does, and a call ends with the head
    /// that made it.
    pub visibility: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self {
            crash: 0,
            call_fails: 0,
            call_fails_after: 0,
            stock_out: 0,
            throttled: 0,
            agent_dies: 0,
            agent_freezes: 0,
            agent_cut: 0,
            machine_breaks: 0,
            head_pauses: 0,
            all_cut: 0,
            clock_jumps: 0,
            people: 0,
            jobs: 0,
            head_replaced: 0,
            can_restart_agent: false,
            can_reboot: false,
            visibility: 0,
        }
    }

    /// Seeds differ in what they are about.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let mut some = |most: u64| if random.permille(600) { random.between(0, most) } else { 0 };
        Self {
            crash: some(8),
            call_fails: some(300),
            call_fails_after: some(300),
            stock_out: some(400),
            throttled: some(300),
            agent_dies: some(150),
            agent_freezes: some(100),
            agent_cut: some(100),
            machine_breaks: some(60),
            head_pauses: some(60),
            all_cut: some(40),
            clock_jumps: some(100),
            people: some(300),
            jobs: some(400),
            head_replaced: some(8),
            can_restart_agent: seed.is_multiple_of(2),
            can_reboot: seed % 5 < 2,
            visibility: [VISIBILITY, 0, VISIBILITY / 3, VISIBILITY][(seed % 4) as usize],
        }
    }
}
