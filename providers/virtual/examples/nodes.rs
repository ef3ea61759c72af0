//! What virtual nodes cost on this machine: the time to create and delete them, beside what the kernel takes for the bare
//! namespaces, and their memory beside their agents. As root: `cargo xtask bench nodes`, which gives the directory of the
//! released programs and the number of nodes.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_providers::workspace::{Patience, WorkspaceProvider, run};
use cloudtik_providers::{CreateNode, DeleteNode, NodeProvider, conformance};
use cloudtik_virtual::{RemoteProvider, Settings, VirtualProvider, VirtualWorkspace, testing};
use tokio::sync::watch;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [programs, count] = words.as_slice() else { return Err("it takes the directory of the programs and a number of nodes".into()) };
    let (program, count) = (Path::new(programs).canonicalize()?.join("cloudtik-virtual"), count.parse()?);
    let home = tempfile::tempdir()?;
    let agent = home.path().join("agent");
    fs::write(&agent, "#!/bin/sh\nexec sleep 1000000\n")?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let directory = home.path().join("bench");
    let workspace = VirtualWorkspace { directory: directory.clone(), range: None, nat: false, program: program.clone() };
    let (_stop, stopped) = watch::channel(false);
    run(&workspace, &workspace.plan().await?, Patience::default(), stopped.clone(), |_| {}).await?;
    fs::create_dir(directory.join("clusters/bench"))?;
    let settings = Settings {
        cluster: ClusterName::new("bench")?,
        nodes: directory.join("clusters/bench/nodes"),
        workspace: directory.clone(),
        agent,
        program,
        shared: Vec::new(),
        for_heads: Vec::new(),
        hidden: Vec::new(),
    };
    let provider = VirtualProvider::new(settings);
    let measured = measure(&provider, count).await;
    provider.purge().await?;
    fs::remove_dir_all(directory.join("clusters/bench"))?;
    run(&workspace, &workspace.delete_plan().await?, Patience::default(), stopped, |_| {}).await?;
    // Only now, so that nodes are removed also where nobody reads it.
    print!("{}", measured?);
    let left = testing::left(&directory);
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}").into()) }
}

async fn measure(provider: &VirtualProvider, count: u32) -> Result<String, Failed> {
    let mut said = String::new();
    // Through the service on the machine, as a cluster's head does it: everything that is measured is the released program.
    provider.create_one(&request("head")?).await?;
    let service = RemoteProvider::new(&provider.settings().nodes);
    let requests = (1..=count).map(|number| request(&format!("w{number}"))).collect::<Result<Vec<_>, _>>()?;
    let kernel_before = kernel_memory()?;
    let (mut bare, mut created) = (Vec::new(), Vec::new());
    for request in &requests {
        // In turns, so that whatever else the machine does meets both.
        bare.push(bare_namespaces()?);
        let begun = Instant::now();
        service.create_one(request).await?;
        created.push(begun.elapsed());
    }
    let kernel = kernel_memory()?.saturating_sub(kernel_before) as f64 / f64::from(count);
    report(&mut said, "bare namespaces, by unshare(1)", &bare)?;
    report(&mut said, "creation, one node after the other", &created)?;
    let ratio = |of: fn(&[Duration]) -> Duration| millis(of(&created)) / millis(of(&bare));
    writeln!(said, "{:<36} {:>8.2} of medians, {:.2} of least", "creation ÷ bare namespaces", ratio(median), ratio(least))?;

    let workers: Vec<_> = testing::list(provider).into_iter().filter(|instance| !instance.node.is_head()).collect();
    let own: u64 = workers.iter().filter_map(|worker| memory(testing::first_process(provider, &worker.id).ok()?)).sum();
    writeln!(said, "{:<36} {:>8.0} KiB for each node (PSS)", "memory of first processes", own as f64 / f64::from(count))?;
    writeln!(said, "{:<36} {kernel:>8.0} KiB for each node and its agent's process", "memory of the kernel")?;

    let mut deleted = Vec::new();
    for worker in &workers {
        let begun = Instant::now();
        service.delete_one(&DeleteNode::of(worker)).await?;
        deleted.push(begun.elapsed());
    }
    report(&mut said, "deletion, one node after the other", &deleted)?;
    let begun = Instant::now();
    for batch in requests.chunks(service.capabilities().batch) {
        service.create(batch).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    let took = millis(begun.elapsed());
    writeln!(said, "{:<36} {took:>8.1} ms for all {count}, {:.1} ms for each", "creation in batches", took / f64::from(count))?;
    Ok(said)
}

fn request(node: &str) -> Result<CreateNode, Failed> {
    Ok(conformance::request(&NodeId::new(node)?, Generation(1), "10.0.0.254:9", "ca"))
}

/// What the kernel alone takes for the namespaces of a node and a process in them. Like a node's creation it starts two programs.
fn bare_namespaces() -> Result<Duration, Failed> {
    let begun = Instant::now();
    let mut command = Command::new("unshare");
    command.args(["--fork", "--pid", "--net", "--mount", "--uts", "--ipc", "--cgroup", "true"]);
    let ended = command.stdin(Stdio::null()).status()?;
    if ended.success() { Ok(begun.elapsed()) } else { Err(format!("unshare ended with {ended}; this needs root").into()) }
}

fn report(said: &mut String, what: &str, took: &[Duration]) -> std::fmt::Result {
    let most = took.iter().max().copied().unwrap_or_default();
    let (median, least, most) = (millis(median(took)), millis(least(took)), millis(most));
    writeln!(said, "{what:<36} {median:>8.1} ms median, {least:.1} ms least, {most:.1} ms most ({} times)", took.len())
}

fn least(took: &[Duration]) -> Duration {
    took.iter().min().copied().unwrap_or_default()
}

fn median(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The memory of a process in KiB, shared pages by their share.
fn memory(process: i32) -> Option<u64> {
    value(&fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?, "Pss:")
}

/// What the kernel has for itself of the machine's memory, in KiB (proc_meminfo(5)). Caches of files are not in it.
fn kernel_memory() -> Result<u64, Failed> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"].iter().filter_map(|name| value(&text, name)).sum())
}

/// A value in KiB that the kernel tells by its name.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().trim_end_matches(" kB").parse().ok()
}
