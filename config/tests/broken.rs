//! Broken cluster files and scenarios, and what a person is told about each.

use cloudtik_config::Cluster;

const FILES: [(&str, &str); 31] = [
    ("empty", ""),
    ("no-name", "[cluster]\n[provider]\nkind = \"local\"\n"),
    ("misspelt-key", "[cluster]\nnmae = \"demo\"\n[provider]\nkind = \"local\"\n"),
    ("misspelt-table", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[worker.default]\nmin = 1\n"),
    ("name-with-capitals", "[cluster]\nname = \"Demo\"\n[provider]\nkind = \"local\"\n"),
    ("name-with-path", "[cluster]\nname = \"../demo\"\n[provider]\nkind = \"local\"\n"),
    (
        "name-too-long",
        "[cluster]\nname = \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\n[provider]\nkind = \"local\"\n",
    ),
    ("no-provider", "[cluster]\nname = \"demo\"\n"),
    ("provider-without-kind", "[cluster]\nname = \"demo\"\n[provider]\nregion = \"x\"\n"),
    ("min-above-max", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 3\nmax = 2\n"),
    ("min-as-text", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = \"2\"\n"),
    ("min-negative", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = -1\n"),
    ("min-float", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 1.5\n"),
    ("memory-without-unit", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmemory = \"2\"\n"),
    ("price-without-hour", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nprice = \"0.4\"\n"),
    (
        "budget-too-small",
        "[cluster]\nname = \"demo\"\nbudget = \"1/h\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 3\nprice = \"0.4/h\"\n",
    ),
    ("budget-without-prices", "[cluster]\nname = \"demo\"\nbudget = \"1/h\"\n[provider]\nkind = \"local\"\n[workers.default]\n"),
    ("max-workers-too-small", "[cluster]\nname = \"demo\"\nmax_workers = 1\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 2\n"),
    ("type-called-head", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.head]\n"),
    ("runtime-not-a-table", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[runtimes]\nspark = true\n"),
    ("memory-share-too-large", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[runtimes.spark]\nmemory_share = 2.0\n"),
    (
        "scaling-unknown",
        "[cluster]\nname = \"demo\"\nbudget = \"2.00/h\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 1\nmax = 4\nprice = \"0.50/h\"\n[[scaling]]\npolicy = \"laod\"\n[[scaling]]\npolicy = \"load\"\nhihg = 0.5\nmetric = \"disk\"\nworkers = \"gpu\"\n",
    ),
    (
        "scaling-contradictions",
        "[cluster]\nname = \"demo\"\nbudget = \"2.00/h\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 1\nmax = 8\nprice = \"0.50/h\"\n[[scaling]]\npolicy = \"load\"\nhigh = 0.5\nlow = 0.4\nmax = 20\n[[scaling]]\npolicy = \"load\"\n[[scaling]]\npolicy = \"schedule\"\nfrom = \"09:00\"\nuntil = \"17:00\"\ncount = 6\n[[scaling]]\nname = \"night\"\npolicy = \"schedule\"\nfrom = \"25:00\"\nuntil = \"6\"\ntime_zone = \"Mars/Olympus\"\ndays = [\"mon\", \"funday\", \"mon\"]\ncount = 1\nmore = 2\n[[scaling]]\npolicy = \"signal\"\nsignal = \"spark.cores\"\n",
    ),
    (
        "scaling-schedules-together",
        "[cluster]\nname = \"demo\"\nmax_workers = 9\nbudget = \"4/h\"\n[provider]\nkind = \"local\"\n[workers.default]\nmax = 8\nprice = \"0.5/h\"\n[workers.large]\nmin = 0\nmax = 4\nprice = \"1/h\"\n[[scaling]]\npolicy = \"schedule\"\nfrom = \"08:00\"\nuntil = \"18:00\"\ncount = 6\n[[scaling]]\npolicy = \"schedule\"\nworkers = \"large\"\nfrom = \"17:00\"\nuntil = \"20:00\"\nmore = 3\n[[scaling]]\npolicy = \"schedule\"\nname = \"night\"\nworkers = \"large\"\nfrom = \"20:00\"\nuntil = \"08:00\"\nmore = 3\n",
    ),
    (
        "scaling-schedules-in-vain",
        "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmax = 8\n[[scaling]]\npolicy = \"schedule\"\nname = \"day\"\nfrom = \"08:00\"\nuntil = \"18:00\"\ncount = 6\n[[scaling]]\npolicy = \"schedule\"\nname = \"noon\"\nfrom = \"12:00\"\nuntil = \"14:00\"\ndays = [\"mon\"]\ncount = 4\n[[scaling]]\npolicy = \"schedule\"\nname = \"rush\"\nfrom = \"12:00\"\nuntil = \"14:00\"\ncount = 8\n[[scaling]]\npolicy = \"schedule\"\nname = \"always\"\nfrom = \"00:00\"\nuntil = \"00:00\"\ncount = 7\n",
    ),
    (
        "scaling-least-too-much",
        "[cluster]\nname = \"demo\"\nbudget = \"2/h\"\nmax_workers = 6\n[provider]\nkind = \"local\"\n[workers.default]\nmax = 8\nprice = \"0.4/h\"\n[workers.large]\nmin = 0\nmax = 4\nprice = \"1/h\"\n[[scaling]]\npolicy = \"load\"\nmin = 4\nmax = 7\n[[scaling]]\npolicy = \"load\"\nworkers = \"large\"\nmin = 1\n[[scaling]]\npolicy = \"schedule\"\nfrom = \"08:00\"\nuntil = \"09:00\"\nmore = 0\npause = \"1m\"\n[[scaling]]\npolicy = \"laod\"\nworkers = \"defualt\"\n",
    ),
    (
        "scaling-max-below-min",
        "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 3\nmax = 8\ncpus = 2\nmemory = \"1GiB\"\n[[scaling]]\npolicy = \"load\"\nmax = 3\n[[scaling]]\npolicy = \"load\"\nname = \"gpus\"\nmetric = \"gpu\"\n",
    ),
    (
        "scaling-fixed-size",
        "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 2\nmax = 2\n[[scaling]]\npolicy = \"load\"\n",
    ),
    (
        "spot-and-resources",
        "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nspot = true\nzones = [\"a\"]\n[workers.gpu]\ngpus = 1\nspot_price = \"1/h\"\n[workers.gpu.resources]\ncpus = 3\nlicences = 0\n",
    ),
    ("no-toml", "[cluster\nname = demo\n"),
    (
        "many-at-once",
        "[cluster]\nname = \"Demo\"\nbugdet = \"1/h\"\n[provider]\nkind = \"lokal\"\n[workers.gpu]\nmin = \"a\"\nmemroy = \"1GiB\"\n",
    ),
];

#[test]
fn each_broken_file_is_explained() {
    for (name, text) in FILES {
        let problems = Cluster::read("cluster.toml", text).expect_err(name);
        insta::assert_snapshot!(name, problems.render(false, 100));
    }
}

#[test]
fn a_broken_scenario_is_explained() {
    let text = "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmax = 4\n";
    let cluster = Cluster::read("demo.toml", text).expect("valid");
    let scenario = "length = \"3y\"\nstart = \"monday\"\n[provider]\nboot = [\"90s\", \"10s\"]\nfails = 2\nspeed = 3\n\
                    [[demand]]\ncpu = 3\n[[demand]]\nname = \"a\"\nmore = 2\nworkers = \"defalt\"\nevery = \"10ms\"\n\
                    [[demand]]\nname = \"a\"\ncpus = 1\nworkers = \"default\"\nrandom = true\n[demand.resources]\nlicence = 1\n\
                    [[load]]\n[[signal]]\nsignal = \"sparc.cores\"\n[[shortage]]\nmarket = \"sport\"\nzone = \"a\"\n";
    let error = cloudtik_config::scenario::read("day.toml", scenario, &cluster, Some(&Default::default())).expect_err("broken");
    insta::assert_snapshot!("scenario", error.render(false, 100));
}
