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

/// The start of a file whose provider is an executable.
const EXTERNAL: &str = "[cluster]\nname = \"demo\"\nbudget = \"1/h\"\n[provider]\nkind = \"external\"\n";

#[test]
fn shapes_say_what_machines_have_and_cost() {
    let text = format!(
        "{EXTERNAL}command = [\"p\"]\n[provider.settings]\nregion = \"north\"\nlimits = {{ most = 3 }}\n[provider.shapes.small]\ncpus = 2\n\
         memory = \"4GiB\"\nprice = \"0.05/h\"\n[workers.default]\nshape = \"small\"\n[workers.own]\nshape = \"small\"\nmemory = \"1GiB\"\n"
    );
    let mut cluster = Cluster::read("c.toml", &text).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
    let chosen = registry().read("c.toml", &text).unwrap_or_else(|e| panic!("{}", e.render(false, 100))).expect("has a provider");
    chosen.fill_in(&mut cluster);
    let of = |name: &str| {
        let workers = &cluster.workers[&name.parse().expect("valid")];
        (workers.cpus, workers.memory.map(|memory| memory.0 >> 30), workers.price.map(|price| price.to_string()))
    };
    assert_eq!(of("default"), (Some(2), Some(4), Some("0.05/h".to_owned())));
    assert_eq!(of("own").1, Some(1), "what a type says itself stands");
    assert_eq!(chosen.settings["settings"], serde_json::json!({ "region": "north", "limits": { "most": 3 } }));
}

#[test]
fn problems_of_external_providers_are_explained() {
    let text = format!(
        "{EXTERNAL}timeout = \"2m\"\nhead_address = \"here\"\n[provider.shapes.small]\ncpus = 2\nmemory = \"4GiB\"\nprize = \"1/h\"\n\
         [provider.shapes.large]\ncpus = 0\n"
    );
    let Err(problems) = registry().read("cluster.toml", &text) else { panic!("it is accepted") };
    insta::assert_snapshot!("external", problems.render(false, 100));
    let text = format!(
        "{EXTERNAL}command = [\"p\"]\n[provider.shapes.small]\ncpus = 2\nmemory = \"4GiB\"\n[workers.a]\nshape = \"smal\"\n[workers.b]\nshape = \"small\"\n\
         [workers.c]\ncpus = 1\n"
    );
    let Err(problems) = registry().read("cluster.toml", &text) else { panic!("it is accepted") };
    insta::assert_snapshot!("external-types", problems.render(false, 100));
}
