//! What cluster files say of their provider, read by the registry: problems as people see them.

use cloudtik_config::Cluster;
use cloudtik_registry::registry;

const FILES: [(&str, &str); 5] = [
    ("unknown-provider", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"locla\"\n"),
    ("provider-of-another-version", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"aws\"\n"),
    ("unknown-key", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\nregion = \"x\"\n"),
    (
        "spot-and-zones-of-no-provider",
        "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nspot = true\nzones = [\"a\"]\n[workers.gpu]\ngpus = 1\nspot_price = \"1/h\"\n",
    ),
    ("shape-of-no-catalogue", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nshape = \"m5.large\"\n"),
];

#[test]
fn each_problem_is_explained_at_its_place() {
    for (name, text) in FILES {
        let Err(problems) = registry().read("cluster.toml", text) else { panic!("{name} is accepted") };
        insta::assert_snapshot!(name, problems.render(false, 100));
    }
}

#[test]
fn what_the_cluster_file_tells_is_not_told_again() {
    for text in ["", "[provider]\n", "provider = 1\n", "[provider]\nkind = 1\n", "[provider]\nkind = \"LOCAL\"\n"] {
        assert!(Cluster::read("c.toml", text).is_err());
        assert!(registry().read("c.toml", text).is_ok_and(|chosen| chosen.is_none()), "{text:?}");
    }
}
