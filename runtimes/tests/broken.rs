//! Broken runtime folders and runtimes that a cluster cannot have, and what a person is told about each.

use std::collections::BTreeMap;

use cloudtik_config::Cluster;
use cloudtik_runtimes::{Catalog, Folder, Manifest};

const HEAD: &str = "[runtime]\nname = \"mine\"\nversion = \"1\"\n";

const FILES: [(&str, &str); 14] = [
    ("empty", ""),
    ("no-services", "[runtime]\nname = \"mine\"\nversion = \"1\"\n"),
    ("unknown-role", "[services.web]\nrole = \"worker\"\ncommand = [\"/x\"]\n"),
    ("no-command", "[services.web]\nrole = \"all\"\n"),
    ("command-not-a-list", "[services.web]\nrole = \"all\"\ncommand = \"/x\"\n"),
    ("broken-template", "[services.web]\nrole = \"all\"\ncommand = [\"{{ node.address\"]\n"),
    ("missing-file", "[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\n[services.web.files]\n\"a.conf\" = \"indx.html\"\n"),
    ("file-outside", "[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\n[services.web.files]\n\"../a.conf\" = \"index.html\"\n"),
    ("unknown-predecessor", "[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\nafter = [\"wbe\"]\n"),
    (
        "circle",
        "[services.a]\nrole = \"all\"\ncommand = [\"/x\"]\nafter = [\"b\"]\n[services.b]\nrole = \"all\"\ncommand = [\"/x\"]\nafter = [\"a\"]\n",
    ),
    ("port-too-large", "[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\nports = { web = 70000 }\n"),
    ("metrics-of-no-port", "[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\nmetrics = [{ port = \"web\" }]\n"),
    (
        "artifact-without-checksum",
        "[artifacts.x]\nurl = \"https://example.org/x.tar\"\n[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\n",
    ),
    (
        "probe-and-stop",
        "[services.web]\nrole = \"all\"\ncommand = [\"/x\"]\nreadiness = { tpc = \"a:1\" }\nstop = { signal = \"TREM\", grace = \"10\" }\n",
    ),
];

#[test]
fn each_broken_folder_is_explained() {
    for (name, text) in FILES {
        let text = if text.is_empty() {
            String::new()
        } else if text.starts_with("[runtime]") {
            text.to_owned()
        } else {
            format!("{HEAD}{text}")
        };
        let folder = Folder::from([("runtime.toml".to_owned(), text), ("index.html".to_owned(), "x".to_owned())]);
        let problems = Manifest::read("mine", &folder).expect_err(name);
        insta::assert_snapshot!(name, problems.render(false, 100));
    }
}

#[test]
fn a_misspelt_property_is_explained() {
    let text = "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[runtimes.prometheus.properties]\nretenton = \"2d\"\n";
    let cluster = Cluster::read("cluster.toml", text).expect("well formed");
    let problems = Catalog::of_cluster(&cluster.runtimes, &BTreeMap::new(), "cluster.toml", text).expect_err("no such property");
    insta::assert_snapshot!("misspelt-property", problems.iter().map(|p| p.render(false, 100)).collect::<String>());
}

#[test]
fn a_runtime_that_the_cluster_cannot_have_is_explained() {
    let text = "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[runtimes.sprak]\n[runtimes.mine]\npath = \"./nowhere\"\n";
    let cluster = Cluster::read("cluster.toml", text).expect("well formed");
    let problems = Catalog::of_cluster(&cluster.runtimes, &BTreeMap::new(), "cluster.toml", text).expect_err("unknown runtimes");
    insta::assert_snapshot!("unknown-runtimes", problems.iter().map(|p| p.render(false, 100)).collect::<String>());
}
