//! Decisions in virtual time, by the brain of this very program: a recording lived again, or a scenario.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::Context;
use cloudtik_config::scenario;
use cloudtik_model::simulation::{Replayed, Request, Simulated};
use cloudtik_simulation::{Setup, World, replay};

use crate::revisions::{Checked, Description};
use crate::settings::{fill_in, resources_without_type};

/// Lives the life of an earlier head again.
pub fn replay(file: &Path) -> anyhow::Result<Replayed> {
    Ok(replay::replay(BufReader::new(File::open(file).context("opening the recording")?))?)
}

/// Simulates what `request`, a [`Request`] in JSON, asks for.
pub fn simulate(request: impl Read) -> anyhow::Result<Simulated> {
    let request: Request = serde_json::from_reader(request).context("reading the request")?;
    let description = Description { cluster_file: request.cluster_file, runtime_files: request.runtime_files };
    let Checked { planner, provider } = description.read().map_err(anyhow::Error::msg)?;
    let cluster = planner.cluster();
    let mut scenario =
        scenario::read("the scenario", &request.scenario, cluster, None).map_err(|e| anyhow::Error::msg(e.render(false, 100)))?;
    scenario.seed = request.seed.unwrap_or(scenario.seed);
    let mut spec = planner.spec(1, cloudtik_model::spec::Steps::default());
    fill_in(&mut spec, cluster, resources_without_type(provider.kind()));
    let world = World::new(Setup::of_scenario(spec, scenario, 0));
    world.simulate(cluster.name.clone()).map_err(|violation| anyhow::Error::msg(violation.to_string()))
}
