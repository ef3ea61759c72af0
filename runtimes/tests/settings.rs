//! Properties in cluster files: what is refused when the file is read, and what a person is told.

use std::collections::BTreeMap;

use cloudtik_config::Cluster;
use cloudtik_runtimes::{Catalog, Folder, Manifest};

/// What is said of a cluster file with these properties of Spark; nothing if it is valid.
fn said(workers: &str, properties: &str) -> String {
    let text = format!(
        "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\n{workers}\n[runtimes.spark.properties]\n{properties}\n"
    );
    let cluster = Cluster::read("cluster.toml", &text).expect("well formed");
    let checked = Catalog::of_cluster(&cluster.runtimes, &BTreeMap::new(), "cluster.toml", &text)
        .and_then(|catalog| catalog.check_properties(&cluster, "cluster.toml", &text).map_err(|e| vec![e]));
    checked.err().into_iter().flatten().map(|problems| problems.render(false, 100)).collect()
}

const SMALL: &str = "cpus = 1\nmemory = \"2GiB\"";

#[test]
fn properties_that_do_not_exist_or_have_impossible_values_are_refused_with_their_place() {
    let properties = "\
executor_core = 2
executor_memory = \"lots\"
executor_cores = \"2\"
job_share = 1.5
event_log_age = \"a week\"
driver_memory = \"1m\"
python = \"bin/python\"
retention = \"2d\"
\"spark.executor.memory\" = 512
\"spark.my key\" = 1
\"Spark.speculation\" = true";
    insta::assert_snapshot!("misfits", said(SMALL, properties));
}

#[test]
fn what_no_worker_has_room_for_is_refused_with_its_place() {
    let several = |text: &str| said(SMALL, text);
    insta::assert_snapshot!("too-large-for-workers", several("executor_cores = 64\nexecutor_memory = \"8g\""));
    // By the runtime's own names, too.
    let own = several("\"spark.executor.cores\" = 64\n\"spark.executor.memory\" = \"8g\"");
    assert!(own.contains("`spark.executor.cores` is 64, and no worker has more than 1 core for spark"), "{own}");
    assert!(own.contains("`spark.executor.memory` is 8g, and no worker has more than 1.5GiB for spark"), "{own}");
    assert_eq!(said("cpus = 64\nmemory = \"16GiB\"", "executor_cores = 64\nexecutor_memory = \"8g\""), "");
    // One large type is enough, and what nobody described may be.
    let large = format!("{SMALL}\n[workers.large]\nmin = 0\nmax = 2\ncpus = 64\nmemory = \"16GiB\"");
    assert_eq!(said(&large, "executor_cores = 64"), "");
    assert_eq!(said("min = 1", "executor_cores = 64"), "");
    assert_ne!(said(&large.replace("max = 2", "max = 0"), "executor_cores = 64"), "", "there will be none of that type");
}

#[test]
fn every_usual_form_of_a_value_is_taken() {
    let good = "\
executor_cores = 1
executor_memory = \"1GiB\"
driver_memory = \"1500M\"
daemon_memory = \"128m\"
job_share = 1
event_log_age = \"24h\"
python = \"python3\"
\"spark.sql.shuffle.partitions\" = 8
\"spark.executor.extraJavaOptions\" = \"-Dx=a\\\\b\\n\"";
    assert_eq!(said(SMALL, good), "");
}

#[test]
fn broken_declarations_of_properties_are_explained() {
    let text = "\
[runtime]
name = \"mine\"
version = \"1\"
[properties]
a = { type = \"integer\" }
b = { default = \"lots\", type = \"size\" }
c = { default = 1, type = \"intger\" }
d = { default = 5, max = 4 }
e = { default = \"x\", min = \"a\" }
f = { default = 1, within = \"worker.cpu\" }
g = { default = \"x\", choices = [\"y\", \"z\"] }
[services.web]
role = \"all\"
command = [\"/x\"]
";
    let folder = Folder::from([("runtime.toml".to_owned(), text.to_owned())]);
    let problems = Manifest::read("mine", &folder).expect_err("broken");
    insta::assert_snapshot!("broken-properties", problems.render(false, 100));
}
