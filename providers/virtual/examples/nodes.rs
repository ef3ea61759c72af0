//! What virtual nodes cost on this machine: the time to create and delete them and the memory of their first processes.
//! As root: `cargo build -p cloudtik-virtual && cargo run -p cloudtik-virtual --example nodes -- 100`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_providers::workspace::{Patience, WorkspaceProvider, run};
use cloudtik_providers::{DeleteNode, NodeProvider, conformance};
use cloudtik_virtual::{Settings, VirtualProvider, VirtualWorkspace, testing};
use tokio::sync::watch;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(20), |text| text.parse())?;
    let program = std::env::current_exe()?.parent().and_then(Path::parent).ok_or("no directory of programs")?.join("cloudtik-virtual");
    let home = tempfile::tempdir()?;
    let agent = home.path().join("agent");
    fs::write(&agent, "#!/bin/sh\nexec sleep 1000000\n")?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let directory = home.path().join("bench");
    let workspace = VirtualWorkspace { directory: directory.clone(), range: None, nat: false, program: program.clone() };
    let (_stop, stopped) = watch::channel(false);
    run(&workspace, &workspace.plan().await?, Patience::default(), stopped.clone(), |_| {}).await?;
    fs::create_dir(directory.join("clusters/bench"))?;
    let nodes = directory.join("clusters/bench/nodes");
    let cluster = ClusterName::new("bench")?;
    let settings = Settings {
        cluster,
        nodes,
        workspace: directory.clone(),
        agent,
        program,
        shared: Vec::new(),
        for_heads: Vec::new(),
        hidden: Vec::new(),
    };
    let provider = VirtualProvider::new(settings);

    report("bare namespaces, by unshare(1)", &bare(count)?);
    let (mut created, mut requests) = (Vec::new(), Vec::new());
    for number in 0..count {
        let request = conformance::request(&NodeId::new(format!("w{number}"))?, Generation(1), "10.0.0.254:9", "ca");
        let begun = Instant::now();
        provider.create_one(&request).await?;
        created.push(begun.elapsed());
        requests.push(request);
    }
    report("create, one after the other", &created);
    let memory: u64 = testing::list(&provider).iter().filter_map(|i| memory(testing::first_process(&provider, &i.id).ok()?)).sum();
    println!("{:<34} {:>8.0} KiB each", "memory of a first process (PSS)", memory as f64 / f64::from(count));
    let mut deleted = Vec::new();
    for instance in testing::list(&provider) {
        let begun = Instant::now();
        provider.delete_one(&DeleteNode::of(&instance)).await?;
        deleted.push(begun.elapsed());
    }
    report("delete, one after the other", &deleted);
    let begun = Instant::now();
    for batch in requests.chunks(provider.capabilities().batch) {
        provider.create(batch).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    println!(
        "{:<34} {:>8.1} ms for all, {:.1} ms each",
        "create, in batches",
        millis(begun.elapsed()),
        millis(begun.elapsed()) / f64::from(count)
    );
    provider.purge().await?;
    fs::remove_dir_all(directory.join("clusters/bench"))?;
    run(&workspace, &workspace.delete_plan().await?, Patience::default(), stopped, |_| {}).await?;
    let left = testing::left(&directory);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}").into()) }
}

/// What the kernel alone takes for namespaces of a node and a process in them, with the start of two programs.
fn bare(count: u32) -> Result<Vec<Duration>, Failed> {
    let mut took = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let mut command = Command::new("unshare");
        command.args(["--fork", "--pid", "--net", "--mount", "--uts", "--ipc", "--cgroup", "true"]);
        command.stdin(Stdio::null()).status()?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

fn report(what: &str, took: &[Duration]) {
    let mut sorted = took.to_vec();
    sorted.sort();
    let at = |share: usize| millis(sorted.get((sorted.len() - 1) * share / 100).copied().unwrap_or_default());
    println!("{what:<34} {:>8.1} ms median, {:.1} ms least, {:.1} ms most", at(50), at(0), at(100));
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The memory of a process in KiB, shared pages by their share.
fn memory(process: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
