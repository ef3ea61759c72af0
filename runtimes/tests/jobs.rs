//! Jobs whose parts are larger than any worker: said before they wait for ever.

use std::collections::BTreeMap;

use cloudtik_config::Cluster;
use cloudtik_model::{Bytes, NodeId, NodeTypeName, Resources, RuntimeName};
use cloudtik_runtimes::{Catalog, NodeContext, Planner, View};

/// `spark` has the properties, after what stands in the runtime's own table and a `|`.
fn misfit(workers: &str, spark: &str, there: &[(&str, u32, u64)]) -> Option<String> {
    let (own, properties) = spark.split_once('|').unwrap_or(("", spark));
    let spark = format!("[runtimes.spark]\n{own}\n[runtimes.spark.properties]\n{properties}");
    let text = format!("[cluster]\nname = \"c\"\n[provider]\nkind = \"local\"\n{workers}\n{spark}\n");
    let cluster = Cluster::read("c.toml", &text).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
    let catalog = Catalog::of_cluster(&cluster.runtimes, &BTreeMap::new(), "c.toml", &text).expect("Spark is shipped");
    let head = NodeContext {
        id: NodeId::head(),
        node_type: NodeTypeName::head(),
        address: "10.0.0.1".to_owned(),
        resources: Resources { cpus: 64, memory: Bytes(1 << 40), gpus: 0 },
        home: "/n".to_owned(),
        artifacts: "/a".to_owned(),
        javas: Vec::new(),
    };
    let there: Vec<(NodeTypeName, Resources)> = there
        .iter()
        .map(|(name, cpus, gib)| (NodeTypeName::new(*name).expect("valid"), Resources { cpus: *cpus, memory: Bytes(gib << 30), gpus: 0 }))
        .collect();
    let planner = Planner::new(cluster, catalog);
    let all = planner.misfits(&View::default(), &head, &there);
    let spark = RuntimeName::new("spark").expect("valid");
    let one = planner.misfit(&spark, &View::default(), &head, &there).expect("templates are right");
    assert_eq!(all.first(), one.as_ref());
    one.map(|misfit| misfit.to_string())
}

#[test]
fn executors_larger_than_any_worker_are_said() {
    let small = "[workers.default]\nmin = 1\ncpus = 1\nmemory = \"2GiB\"";
    assert_eq!(misfit(small, "", &[]), None, "the defaults fit");
    let said = misfit(small, "executor_memory = \"8g\"", &[]).expect("too large");
    assert_eq!(
        said,
        "jobs of spark cannot run: each executor needs 1 core and 8GiB on one worker; a worker of type default has 1 core and 1.5GiB for \
         spark; lower executor_cores or executor_memory in [runtimes.spark.properties], or describe larger workers"
    );
    let said = misfit(small, "executor_cores = 4", &[]).expect("too many cores");
    assert!(said.contains("each executor needs 4 cores and 512MiB"), "{said}");
    // What is handed through counts before the property.
    assert!(misfit(small, "\"spark.executor.memory\" = \"8g\"", &[]).is_some());
    assert!(misfit(small, "\"spark.executor.cores\" = 2", &[]).is_some());
    assert_eq!(misfit(small, "executor_memory = \"8g\"\n\"spark.executor.memory\" = \"1g\"", &[]), None);
    // Another share, another type, or a worker that is there and has more than was described.
    assert_eq!(misfit(small, "memory_share = 0.95|executor_memory = \"1800m\"", &[]), None);
    let both = format!("{small}\n[workers.large]\nmin = 0\nmax = 1\ncpus = 16\nmemory = \"64GiB\"");
    assert_eq!(misfit(&both, "executor_memory = \"8g\"", &[]), None, "one of the large type may come");
    assert_eq!(misfit(small, "executor_memory = \"8g\"", &[("default", 4, 16)]), None);
    // What is not known is not too small.
    let unknown = "[workers.default]\nmin = 1";
    assert_eq!(misfit(unknown, "executor_memory = \"8g\"", &[]), None);
    assert!(misfit(unknown, "executor_memory = \"8g\"", &[("default", 4, 4)]).is_some());
}
