//! The head of a cluster that is brought up: its node, what it runs, and its certificate.

use std::collections::BTreeMap;
use std::path::Path;

use cloudtik_model::bootstrap::Bootstrap;
use cloudtik_model::spec::Offer;
use cloudtik_model::{HeadSettings, NodeId, NodeTypeName, Resources, ServiceKey, goal};
use cloudtik_protocol::files::{create_private_directory, write_atomically};
use cloudtik_protocol::wire::setup_client::SetupClient;
use cloudtik_protocol::{BUS_PORT, pki, wire};
use cloudtik_providers::machine::HEAD;
use cloudtik_providers::{CreateNode, DeleteNode, inherited_environment};
use cloudtik_registry::registry;

use crate::client::Client;
use crate::clusters::{ClusterPaths, artifacts};
use crate::described::Described;
use crate::failure::{Failure, TIMED_OUT};
use crate::head_node::{self, HeadNode};
use crate::programs;
use crate::takeover;

/// Between two heartbeats of an agent.
const HEARTBEAT_MS: u64 = 1_000;

/// Makes the head's node, or starts what is left of it.
pub async fn make(described: &Described, paths: &ClusterPaths) -> Result<(), Failure> {
    let known = HeadNode::of(paths).await?;
    let (node, generation) = (NodeId::head(), known.generation());
    let head_directory = paths.head();
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| Failure::failed(format!("cannot use {path}: {e}"))
    };
    create_private_directory(&paths.directory).map_err(failed(&paths.directory))?;
    create_private_directory(&head_directory).map_err(failed(&head_directory))?;
    let root = pki::Root::load_or_generate(&paths.name, &paths.ca())?;
    let is_made = known.is_made();
    if let Some(lost) = head_node::lost_state(paths).await {
        return Err(lost);
    }
    let (provider, address) = match paths.remembered() {
        // Another file is noted once the head has it.
        Some(remembered) if known != HeadNode::Missing => (remembered.provider, remembered.head_address),
        _ => {
            let (provider, address) = paths.settle(described).await?;
            paths.remember(&takeover::remembered(described, provider.clone(), address.clone()))?;
            (provider, address)
        }
    };
    let artifacts = artifacts()?;
    let unpacked = artifacts.join("unpacked");
    let token = pki::hex(&pki::random::<32>());
    let nodes = registry().nodes(&provider)?;
    let instance_of = |generation| described.provider.machines().map(|machines| machines.instance_of(&node, generation));
    if let HeadNode::Lost(last) = known {
        // Its head runs on, and has the store that the next one is to open.
        if let Some(instance) = instance_of(last)? {
            nodes.delete_one(&DeleteNode { node: node.clone(), generation: last, instance }).await?;
        }
    } else if !is_made && !head_directory.join(HeadSettings::FILE).exists() {
        // What is left of a cluster of this name whose directory was removed while it ran.
        registry().end_leftovers(&paths.nodes())?;
    }
    programs::place(paths).await?;
    let programs = paths.programs();
    if !is_made {
        let settings = HeadSettings {
            cluster: paths.name.clone(),
            address: address.clone(),
            ca: root.certificate_pem(),
            head_token_sha256: pki::sha256_hex(token.as_bytes()),
            generation,
            instance: instance_of(generation)?,
            artifacts,
            unpacked: Some(unpacked.clone()),
            provider,
            programs: Some(programs.bin()),
            heartbeat_ms: HEARTBEAT_MS,
            record: described.cluster.head.record,
        };
        let path = head_directory.join(HeadSettings::FILE);
        let text = serde_json::to_vec(&settings).map_err(|e| Failure::failed(e.to_string()))?;
        write_atomically(&path, &text, 0o600).map_err(failed(&path))?;
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let resources =
        described.cluster.head.memory.map(|memory| Resources { cpus: described.cluster.head.cpus.unwrap_or(cpus), memory, gpus: 0 });
    let bootstrap = Bootstrap {
        cluster: paths.name.clone(),
        node,
        generation,
        node_type: NodeTypeName::head(),
        head: format!("{address}:{BUS_PORT}"),
        ca: root.certificate_pem(),
        token,
        address: None,
        resources,
        pinned: vec![head_service(&programs.program(HEAD), &head_directory)],
        artifacts: Some(unpacked.display().to_string()),
        heartbeat_ms: HEARTBEAT_MS,
        dead_man_ms: None,
        power_off: Vec::new(),
        agents: Vec::new(),
        made_at: std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as i64),
    };
    nodes.create_one(&CreateNode { node_type: NodeTypeName::head(), shape: None, offer: Offer::default(), bootstrap }).await?;
    Ok(())
}

/// The head as a service of its own node: its agent brings it back.
fn head_service(program: &Path, state: &Path) -> goal::Service {
    let key: ServiceKey = "cloudtik/head".parse().expect("a valid key");
    // The head runs the ecosystem's clients, which are configured by the user's environment.
    let environment: BTreeMap<String, String> = inherited_environment().collect();
    goal::Service {
        key,
        command: vec![program.display().to_string(), "--state".to_owned(), state.display().to_string()],
        environment,
        files: Vec::new(),
        directories: Vec::new(),
        artifacts: Vec::new(),
        hold: false,
        waits_for: String::new(),
        gauges: Vec::new(),
        drain: None,
        readiness: None,
        health: None,
        stop: goal::Stop { signal: 15, grace_ms: 3_000 },
        // Nothing else can bring it back, so it is never waited for long.
        restart: goal::Restart { first_ms: 20, longest_ms: 500, settled_ms: 5_000 },
        log: goal::Log::default(),
        limits: goal::Limits::default(),
    }
}

/// Has the head's intermediate key certified by the root, unless it is for a good while.
pub async fn install_identity(client: &Client, described: &Described, paths: &ClusterPaths) -> Result<(), Failure> {
    let mut setup = SetupClient::new(client.channel.clone());
    let reply = setup.certificate_request(wire::Empty {}).await?.into_inner();
    let left = reply.expires_at - std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64);
    // An older head does not say when its certificate ends.
    let is_good = reply.expires_at == 0 || left > pki::INTERMEDIATE_LIFETIME.as_secs() as i64 / 3;
    if reply.installed && is_good {
        return Ok(());
    }
    let root = pki::Root::load_or_generate(&described.cluster.name, &paths.ca())?;
    let certificate = root.sign_intermediate(&reply.certificate_request, pki::INTERMEDIATE_LIFETIME)?.to_vec().into();
    setup.install_certificate(wire::InstallCertificateRequest { certificate }).await?;
    Ok(())
}

pub async fn trouble(paths: &ClusterPaths, failure: Failure) -> Failure {
    let message = format!("the head does not answer: {}", failure.message);
    let Some(home) = head_node::directory(paths).await else { return Failure::new(TIMED_OUT, message) };
    let logs = [home.join("services/cloudtik/head/log"), home.join("agent.log")];
    let mut message = message;
    for path in &logs {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if let Some(line) = text.lines().rev().find(|l| l.contains("ERROR") || l.contains("error")) {
            message = format!("{message}\n  {}: {line}", path.display());
        }
    }
    Failure::new(TIMED_OUT, message).hint(format!("its logs: {} and {}", logs[0].display(), logs[1].display()))
}
