//! What an agent does for its services: probes by command, restarts that are counted, limits, logs that rotate, and
//! nothing left of what tried to hide.

use std::fs;
use std::time::Duration;

use cloudtik_model::status::{Service, Status};
use cloudtik_tests::{Cluster, send, skipped, until};
use nix::sys::signal::Signal;
use nix::unistd::Uid;

const MANIFEST: &str = r#"
[runtime]
name = "probe"
version = "1"

# Ready and healthy by what a command says; chatty, so that its log rotates.
[services.lamp]
role = "workers"
command = ["/bin/sh", "-c", "echo started; while :; do sleep 1; done"]
readiness = { command = ["/usr/bin/test", "-e", "{{ service.data }}/lit"], interval = "50ms" }
health = { command = ["/usr/bin/test", "-e", "{{ service.data }}/lit"], interval = "50ms", failures = 2 }
directories = ["{{ service.data }}"]
stop = { signal = "KILL", grace = "1s" }

[services.glutton]
role = "workers"
command = ["/usr/bin/python3", "-c", "import os, time\nwhile not os.path.exists('{{ service.data }}/eat'): time.sleep(0.05)\nfood = b'x' * (200 << 20)\ntime.sleep(1000)"]
directories = ["{{ service.data }}"]
limits = { memory = "{{ 64 }}MiB", cpus = 0.5 }
"#;

fn service<'a>(status: &'a Status, name: &str) -> &'a Service {
    let all = status.nodes.iter().flat_map(|n| &n.services);
    all.into_iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no {name} in {status:#?}"))
}

fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::new(name, "[workers.default]\nmin = 1\n[runtimes.probe]\npath = \"./probe\"");
    cluster.write_runtime("probe", MANIFEST);
    cluster
}

#[test]
fn services_are_probed_by_command_limited_and_counted() {
    let cluster = cluster("lamps");
    let file = cluster.file.display().to_string();
    cluster.run(&["up", &file, "--yes", "--no-wait"]).ok();
    let data = until("the service's directory", Duration::from_secs(20), || {
        let nodes = fs::read_dir(cluster.directory().join("nodes")).ok()?;
        let data = nodes.flatten().map(|n| n.path()).find(|p| p.to_string_lossy().contains("w1."))?.join("data/probe");
        data.exists().then_some(data)
    });
    let status = cluster.wait("the start", Duration::from_secs(20), |s| {
        s.nodes.iter().flat_map(|n| &n.services).any(|s| s.name == "probe/lamp" && s.pid.is_some())
    });
    assert_eq!(service(&status, "probe/lamp").state, "starting", "its command has not said yes: {status:#?}");
    fs::write(data.join("lit"), "").expect("writes");
    let status = cluster.wait_ready();
    let lamp = service(&status, "probe/lamp").clone();

    // Unhealthy first, restarted when it stays so, and the count outlives the agent.
    fs::remove_file(data.join("lit")).expect("removes");
    let restarted = cluster.wait("a restart", Duration::from_secs(20), |s| service(s, "probe/lamp").restarts > 0);
    assert_ne!(service(&restarted, "probe/lamp").pid, lamp.pid);
    fs::write(data.join("lit"), "").expect("writes");
    let status = cluster.wait_ready();
    let (lamp, agent) = (service(&status, "probe/lamp").clone(), cluster.node("w1").agent.expect("an agent").pid);
    assert!(lamp.restarts > 0);
    send(agent as i32, Signal::SIGTERM);
    let status = cluster.wait("the next agent", Duration::from_secs(20), |s| {
        s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.agent.as_ref().is_some_and(|a| a.pid != agent))
    });
    let after = service(&status, "probe/lamp");
    assert_eq!((after.pid, after.restarts), (lamp.pid, lamp.restarts), "the process and its history are the same");
    let events = cluster.events();
    assert!(events.iter().any(|e| e.contains("probe/lamp is unhealthy")), "{events:#?}");
    // No crash: the agent restarted it for its health.
    let restart = "probe/lamp failed its health checks (/usr/bin/test ended with exit status: 1); it is restarted";
    assert!(events.iter().any(|e| e.contains(restart)) && !events.iter().any(|e| e.contains("lamp crashed")), "{events:#?}");

    limits(&cluster, &data);
    cluster.down();
    cluster.assert_nothing_left();
}

/// Where it may, the agent holds a service to its limits, and says when the kernel ended it for that.
fn limits(cluster: &Cluster, data: &std::path::Path) {
    let groups = cluster.node_home("w1").join("cgroups");
    if !groups.exists() {
        skipped("limits need the right to make control groups (root)");
        assert!(!Uid::effective().is_root() || !std::path::Path::new("/sys/fs/cgroup").is_dir(), "root has that right");
        return;
    }
    let made: Vec<String> = fs::read_to_string(&groups).expect("reads").lines().map(str::to_owned).collect();
    assert!(!made.is_empty() && made.iter().all(|g| fs::metadata(g).is_ok()), "{made:?}");
    let pid = service(&cluster.status(), "probe/glutton").pid.expect("it runs").to_string();
    for group in &made {
        let inside = fs::read_to_string(format!("{group}/cgroup.procs")).expect("reads");
        assert!(inside.lines().any(|line| line == pid), "{group} holds {inside:?}, not {pid}");
        assert_eq!(inside.lines().count(), 1, "the shim itself is not limited: {inside:?}");
    }
    fs::write(data.join("eat"), "").expect("writes");
    until("the kernel's verdict in the events", Duration::from_secs(20), || {
        cluster.events().iter().any(|e| e.contains("probe/glutton crashed (memory limit reached")).then_some(())
    });
    fs::remove_file(data.join("eat")).expect("removes");
    cluster.wait_ready();
    cluster.run(&["kill-node", &cluster.name, "w1", "--yes"]).ok();
    until("the end of its control groups", Duration::from_secs(20), || made.iter().all(|g| fs::metadata(g).is_err()).then_some(()));
}

#[test]
fn what_clears_its_environment_ends_with_its_node_all_the_same() {
    let cluster = Cluster::new("hiding", "[workers.default]\nmin = 1");
    cluster.up();
    let hidden = "env -i setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.2; exec env -i sleep 1001";
    let mut exec = cluster.command(&["exec", "hiding", "--node", "w1", "--", "sh", "-c", hidden]).spawn().expect("runs");
    let sleeps = |seconds: &str| {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_ours = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(cluster.directory()));
            if line == format!("sleep\0{seconds}\0").into_bytes() && is_ours {
                pids.extend(entry.file_name().to_string_lossy().parse::<i32>());
            }
        }
        pids
    };
    until("both processes", Duration::from_secs(10), || (sleeps("1000").len() + sleeps("1001").len() == 2).then_some(()));
    cluster.run(&["kill-node", "hiding", "w1", "--yes"]).ok();
    until("their end", Duration::from_secs(10), || (sleeps("1000").is_empty() && sleeps("1001").is_empty()).then_some(()));
    let _ = exec.wait();
}
