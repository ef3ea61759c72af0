//! Jobs keep the workers of their runtimes.

use cloudtik_model::event::Activity;
use cloudtik_model::job::{JobEnd, JobReport, JobReportState, JobSpec, Work};
use cloudtik_model::{JobId, NodeId};

use super::*;

/// A head's node, and two workers of which the description wants none.
fn with_idle_workers() -> World {
    let mut of = spec(&[("default", kind(0, 4, 4, 100))]);
    of.idle_after_ms = 10_000;
    let mut world = World::new(of);
    let mut head = NodeRecord::requested(NodeId::head(), Generation(1), NodeTypeName::head(), Timestamp(MONDAY));
    head.life = NodeState::Launched;
    head.instance = cloudtik_model::InstanceId::new("i-head").ok();
    world.nodes.insert(NodeId::head(), head);
    world.restart();
    world.link(&NodeId::head());
    world.scale_for(2, 5_000);
    world.pass(4_000);
    assert_eq!(world.machines("default"), 2);
    world
}

fn job(runtime: &str) -> JobSpec {
    JobSpec::new(runtime, Work::Runtime { runtime: runtime.parse().ok(), options: Vec::new() })
}

impl World {
    /// So many workers for a while.
    fn scale_for(&mut self, count: u32, milliseconds: u64) {
        let wants = RequestedCapacity::Workers { node_type: name("default"), count };
        let until = Some(Timestamp(self.moment().wall.0 + milliseconds));
        let asked = NewRequest { name: None, wants, additive: false, until, reason: String::new() };
        self.ask(|request| Input::Scale { request, asked }).expect("within the bounds");
    }

    fn submit(&mut self, runtime: &str, needs: Option<&str>) {
        let (spec, needs) = (Box::new(job(runtime)), needs.map(|key| key.parse().expect("a key")));
        self.ask(|request| Input::SubmitJob { request, spec, needs }).expect("taken");
    }

    fn report_job(&mut self, state: JobReportState) {
        let (session, node) = (self.links[&NodeId::head()], NodeId::head());
        let jobs = vec![JobReport { id: JobId(1), attempt: 1, state }];
        self.tell(Input::Reported { session, node, complete: false, services: Vec::new(), jobs });
    }

    fn job_runs(&mut self) {
        let started = self.moment().wall;
        self.report_job(JobReportState::Running { pid: 5, started });
    }

    fn job_ends(&mut self) {
        let at = self.moment().wall;
        self.report_job(JobReportState::Ended { started: at, at, end: JobEnd::Succeeded, lost_output: 0 });
    }

    fn obstacles(&self) -> Vec<&Obstacle> {
        self.outlook.types.get(&name("default")).map(|of| of.surplus.values().collect()).unwrap_or_default()
    }
}

#[test]
fn workers_of_a_job_whose_runtime_says_nothing_are_kept_until_it_ends() {
    for needs in [None, Some("run/master")] {
        let mut world = with_idle_workers();
        world.submit("run", needs);
        world.pass(60_000);
        assert_eq!(world.machines("default"), 2, "the job is queued or starting: {needs:?}");
        assert!(world.obstacles().iter().all(|why| matches!(why, Obstacle::ServesJobs { .. })), "{:?}", world.obstacles());
        if needs.is_some() {
            continue;
        }
        world.job_runs();
        world.pass(60_000);
        assert_eq!(world.machines("default"), 2, "it runs");
        world.restart();
        world.pass(60_000);
        assert_eq!(world.machines("default"), 2, "another head knows it too");
        world.job_ends();
        world.pass(9_000);
        assert_eq!(world.machines("default"), 2, "idleness counts from its end");
        world.pass(5_000);
        assert_eq!(world.machines("default"), 0);
    }
}

#[test]
fn workers_of_other_runtimes_and_of_commands_are_not_kept() {
    let mut world = with_idle_workers();
    world.submit("other", None);
    world.job_runs();
    world.pass(60_000);
    assert_eq!(world.machines("default"), 0);
}

#[test]
fn where_the_runtime_says_how_much_it_does_that_decides_once_the_job_has_started() {
    let mut world = with_idle_workers();
    let gauge = |work: u64| BTreeMap::from([("work".to_owned(), Quantity(work))]);
    for node in ["w1", "w2"] {
        world.gauges.insert(id(node), gauge(0));
        world.report(&id(node));
    }
    world.submit("run", None);
    world.pass(60_000);
    assert_eq!(world.machines("default"), 2, "its driver is still to start");
    world.job_runs();
    world.pass(9_000);
    assert_eq!(world.machines("default"), 2, "idleness counts from its start");
    world.gauges.insert(id("w1"), gauge(1_000));
    world.report(&id("w1"));
    world.pass(5_000);
    assert_eq!((world.machines("default"), world.scaled_in("w2")), (1, 1), "what the job does not use goes");
    world.pass(60_000);
    assert_eq!(world.machines("default"), 1);
}

#[test]
fn what_somebody_wants_gone_at_once_goes_with_its_jobs() {
    let mut world = with_idle_workers();
    world.scale_for(2, 600_000);
    world.submit("run", None);
    world.job_runs();
    world.ask(|request| Input::Revoke { request, name: "workers-default".to_owned(), now: true }).expect("it stands");
    world.pass(5_000);
    assert_eq!(world.machines("default"), 0);
    let told = |what: &What| matches!(what, What::ScaleIn(of) if matches!(of.activity, Activity::ServesJobs { .. }));
    assert_eq!(world.told(told), 2);
}
