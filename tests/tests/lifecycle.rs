//! A cluster's life as its user sees it.

use std::time::Duration;

use cloudtik_tests::{Cluster, repository};

#[test]
fn up_scale_kill_drain_down() {
    let cluster = Cluster::new("life", "[workers.default]\nmin = 2\nmax = 4");
    let plan = cluster.run(&["up", &cluster.file.display().to_string(), "--plan"]).ok();
    assert!(plan.out.contains("+ create head") && plan.out.contains("2 workers"), "{}", plan.out);
    assert!(!cluster.directory().exists(), "a plan makes nothing");

    cluster.up();
    let status = cluster.status();
    let ids: Vec<&str> = status.nodes.iter().map(|n| n.id.as_str()).collect();
    assert_eq!((status.ready, ids), (true, vec!["head", "w1", "w2"]));
    assert!(status.nodes.iter().all(|n| n.state == "ready" && n.agent.is_some()), "{status:#?}");

    let again = cluster.up();
    assert!(again.err.contains("nothing to do"), "{}", again.err);
    assert!(again.took < Duration::from_secs(1), "an unchanged file took {:?}", again.took);
    assert_eq!(cluster.status().revision, 1, "an unchanged file is no new revision");

    cluster.run(&["scale", "life", "--workers", "4"]).ok();
    cluster.wait("four workers", Duration::from_secs(20), |s| s.ready && s.nodes.len() == 5);
    let refused = cluster.run(&["scale", "life", "--workers", "5"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    cluster.run(&["scale", "life", "--workers", "2"]).ok();
    let status = cluster.wait("two workers", Duration::from_secs(20), |s| s.ready && s.nodes.len() == 3);
    assert_eq!(status.nodes.last().map(|n| n.id.as_str()), Some("w2"), "the newest go first");

    let before = cluster.node("w1");
    cluster.run(&["kill-node", "life", "w1", "--yes"]).ok();
    let status =
        cluster.wait("the replacement", Duration::from_secs(20), |s| s.ready && s.nodes.iter().all(|n| n.instance != before.instance));
    assert_eq!(status.nodes.len(), 3);
    assert_eq!(cluster.run(&["kill-node", "life", "head", "--yes"]).code, 5, "the head is not killed");
    assert_eq!(cluster.run(&["kill-node", "life", "w77", "--yes"]).code, 4);
    let unasked = cluster.run(&["kill-node", "life", "w2"]);
    assert_eq!(unasked.code, 2, "destruction is asked for: {unasked:?}");

    cluster.run(&["drain", "life", "w2", "--yes"]).ok();
    cluster.wait("the drained node's replacement", Duration::from_secs(20), |s| s.ready && s.nodes.len() == 3);
    let why = cluster.run(&["why", "life", "w1"]).ok();
    assert!(why.out.contains("killed on request"), "{}", why.out);
    assert!(why.out.contains("kill-node (by the local user"), "{}", why.out);
    assert_eq!(cluster.run(&["why", "life", "nobody"]).code, 4);

    // Workers that would go are shown, and asked for.
    cluster.write("[workers.default]\nmin = 1\nmax = 1");
    let unasked = cluster.run(&["up", &cluster.file.display().to_string()]);
    assert!(unasked.code == 2 && unasked.out.contains("destroy 1 worker"), "{unasked:?}");
    assert_eq!(cluster.status().nodes.len(), 3, "nothing was changed");
    cluster.up();
    cluster.wait("one worker", Duration::from_secs(20), |s| s.ready && s.nodes.len() == 2);

    cluster.down();
    cluster.assert_nothing_left();
    assert_eq!(cluster.run(&["status", "life"]).code, 4);
}

#[test]
fn a_runtime_of_ones_own_runs_and_rolls() {
    let folder = repository().join("examples/runtimes/webserver").display().to_string();
    let own = |greeting: &str| {
        format!(
            "[workers.default]\nmin = 2\n[runtimes.webserver]\npath = \"{folder}\"\n[runtimes.webserver.properties]\ngreeting = \"{greeting}\""
        )
    };
    let cluster = Cluster::new("own", &own("good day"));
    cluster.up();
    let address = cluster.node("w2").address.expect("an address");
    let page = || cluster.run(&["exec", "own", "--", "/usr/bin/python3", "-c", &fetch(&address)]).ok().out;
    assert!(page().contains("good day from w2 of own"), "{}", page());
    let pids = |s: &cloudtik_model::status::Status| -> Vec<Option<u32>> {
        s.nodes.iter().flat_map(|n| &n.services).filter(|s| s.name == "webserver/web").map(|s| s.pid).collect()
    };
    let before = pids(&cluster.status());

    cluster.write(&own("good night"));
    let plan = cluster.run(&["up", &cluster.file.display().to_string(), "--plan"]).ok();
    assert!(plan.out.contains("restarts webserver/web, node by node"), "{}", plan.out);
    cluster.up();
    assert!(page().contains("good night from w2 of own"), "{}", page());
    let after = pids(&cluster.status());
    assert!(before.iter().zip(&after).all(|(b, a)| b != a), "every process was restarted: {before:?} {after:?}");
    // Node by node: w1 was ready again before w2 took the change.
    let events = cluster.events();
    let position = |text: &str| events.iter().rposition(|e| e.contains(text)).unwrap_or_else(|| panic!("no {text}: {events:#?}"));
    assert!(position("w1 preparing → ready") < position("w2 ready → preparing: applying revision 2"), "{events:#?}");

    // A process that dies is started again by its agent.
    let pid = after[0].expect("it runs") as i32;
    cloudtik_tests::send(pid, nix::sys::signal::Signal::SIGKILL);
    cluster.wait("the restart", Duration::from_secs(20), |s| s.ready && pids(s)[0].is_some_and(|p| p as i32 != pid));

    cluster.write("[workers.default]\nmin = 2");
    cluster.up();
    assert!(cluster.processes().iter().all(|(_, line)| !line.contains("http.server")), "{:?}", cluster.processes());
}

fn fetch(address: &str) -> String {
    format!("import urllib.request as u; print(u.urlopen('http://{address}:8000/').read().decode())")
}

#[test]
fn two_clusters_of_one_user_stand_side_by_side() {
    let (one, two) = (Cluster::new("one", "[workers.default]\nmin = 1"), Cluster::new("two", "[workers.default]\nmin = 1"));
    one.up();
    two.up();
    assert_ne!(one.status().head.address, two.status().head.address);
    one.down();
    one.assert_nothing_left();
    assert!(two.status().ready, "the other goes on");
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let cluster = Cluster::new("bad", "[workers.default]\nmin = 2\nmax = 1\nmemry = \"1GiB\"");
    let file = cluster.file.display().to_string();
    let ran = cluster.run(&["up", &file]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("did you mean `memory`?") && ran.err.contains("less than `min`"), "{}", ran.err);
    assert!(!cluster.directory().exists());
    assert_eq!(cluster.run(&["up", "/no/such.toml"]).code, 4);
    assert_eq!(cluster.run(&["status", "bda"]).code, 4);
    assert_eq!(cluster.run(&["status"]).code, 4, "there is no cluster to mean");
    assert_eq!(cluster.run(&["down"]).code, 2, "what destroys is named");
    assert_eq!(cluster.run(&["down", &file, "--yes"]).code, 3, "the file is broken, so it names no cluster");

    // A broken cluster file and the runtimes that it asks for are told of at once, to programs too.
    cluster.write("[workers.default]\nmin = \"1\"\n[runtimes.sprak]\n[runtimes.mine]\npath = \"./nowhere\"");
    let ran = cluster.run(&["up", &file, "-o", "json"]);
    let document: serde_json::Value = serde_json::from_str(&ran.err).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    let lines: Vec<_> = document["problems"].as_array().expect("problems").iter().map(|p| p["line"].as_u64()).collect();
    assert_eq!((ran.code, lines), (3, vec![Some(6), Some(7), Some(8)]), "{document:#}");
    assert_eq!(document["exit_code"], 3);
    let relative = cluster.command(&["list"]).env("CLOUDTIK_HOME", "state").output().expect("runs");
    assert_eq!(relative.status.code(), Some(2), "the clusters must not depend on where one stands: {relative:?}");

    cluster.write("[workers.default]\nmin = 1");
    cluster.up();
    let before = cluster.status();
    cluster.write("[workers.default]\nmin = 1\n[runtimes.sprak]");
    let ran = cluster.run(&["up", &file]);
    assert!(ran.code == 3 && ran.err.contains("did you mean `spark`?"), "{ran:?}");
    assert_eq!(cluster.status().revision, before.revision);
}
