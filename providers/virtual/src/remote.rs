//! The machines of a cluster through its service: how it is asked from a node, and how it answers on the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

use async_trait::async_trait;
use cloudtik_model::bootstrap::{Bootstrap, NODE_HOME_VARIABLE};
use cloudtik_model::node::Instance;
use cloudtik_model::spec::Offer;
use cloudtik_model::{Generation, InstanceId, NodeId, NodeTypeName, ShapeName};
use cloudtik_providers::{Capabilities, CreateNode, DeleteNode, Error, NodeProvider, WireError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::provider::VirtualProvider;
use crate::service::{DIRECTORY, LOOK, SETTINGS, SOCKET, detach, has_head, lock};
use crate::settings::{CAPABILITIES, Settings};

/// Bytes of a request: a batch of bootstrap payloads is far smaller.
const MAX_REQUEST: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    List,
    Create(Vec<Creation>),
    Delete(Vec<Deletion>),
    Describe(InstanceId),
    RestartAgent { node: NodeId, generation: Generation, instance: InstanceId, force: bool },
    Reboot { node: NodeId, generation: Generation, instance: InstanceId },
}

/// [`CreateNode`] as it is sent.
#[derive(Debug, Serialize, Deserialize)]
struct Creation {
    node_type: NodeTypeName,
    shape: Option<ShapeName>,
    offer: Offer,
    bootstrap: Bootstrap,
}

/// [`DeleteNode`] as it is sent.
#[derive(Debug, Serialize, Deserialize)]
struct Deletion {
    node: NodeId,
    generation: Generation,
    instance: InstanceId,
}

/// The machines of a cluster: directly, or on one of its nodes through the service.
pub fn open(settings: Settings) -> Arc<dyn NodeProvider> {
    let provider = VirtualProvider::new(settings);
    let home = std::env::var_os(NODE_HOME_VARIABLE).map(PathBuf::from);
    if home.is_some_and(|home| home.starts_with(&provider.settings().nodes)) {
        Arc::new(RemoteProvider::new(&provider.settings().nodes))
    } else {
        Arc::new(provider)
    }
}

/// The machines of a cluster, through the service.
#[derive(Debug, Clone)]
pub struct RemoteProvider {
    socket: PathBuf,
}

impl RemoteProvider {
    /// Of the cluster whose instances are in a directory.
    pub fn new(nodes: &Path) -> Self {
        Self { socket: nodes.join(DIRECTORY).join(SOCKET) }
    }

    async fn send<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(&serde_json::to_vec(request)?).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<Result<T, WireError>, io::Error>(serde_json::from_slice(&answer)?)
        };
        match exchange.await {
            Ok(answer) => answer.map_err(Error::from),
            Err(error) => Err(Error::transient("ask the machine of this cluster", error)),
        }
    }

    /// Sends a batch; a failure of the whole call is the answer for each item.
    async fn send_batch<T: DeserializeOwned>(&self, request: &Request, items: usize) -> Vec<Result<T, Error>> {
        match self.send::<Vec<Result<T, WireError>>>(request).await {
            Ok(answers) if answers.len() == items => answers.into_iter().map(|answer| answer.map_err(Error::from)).collect(),
            Ok(_) => (0..items).map(|_| Err(Error::unanswered())).collect(),
            Err(error) => error.for_each(items),
        }
    }
}

#[async_trait]
impl NodeProvider for RemoteProvider {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn list(&self) -> Result<Vec<Instance>, Error> {
        self.send(&Request::List).await
    }

    async fn create(&self, requests: &[CreateNode]) -> Vec<Result<Instance, Error>> {
        let creation = |request: &CreateNode| Creation {
            node_type: request.node_type.clone(),
            shape: request.shape.clone(),
            offer: request.offer.clone(),
            bootstrap: request.bootstrap.clone(),
        };
        self.send_batch(&Request::Create(requests.iter().map(creation).collect()), requests.len()).await
    }

    async fn delete(&self, requests: &[DeleteNode]) -> Vec<Result<(), Error>> {
        let deletion = |request: &DeleteNode| Deletion {
            node: request.node.clone(),
            generation: request.generation,
            instance: request.instance.clone(),
        };
        self.send_batch(&Request::Delete(requests.iter().map(deletion).collect()), requests.len()).await
    }

    async fn describe(&self, instance: &InstanceId) -> Result<Instance, Error> {
        self.send(&Request::Describe(instance.clone())).await
    }

    async fn restart_agent(&self, node: &NodeId, generation: Generation, instance: &InstanceId, force: bool) -> Result<(), Error> {
        self.send(&Request::RestartAgent { node: node.clone(), generation, instance: instance.clone(), force }).await
    }

    async fn reboot(&self, node: &NodeId, generation: Generation, instance: &InstanceId) -> Result<(), Error> {
        self.send(&Request::Reboot { node: node.clone(), generation, instance: instance.clone() }).await
    }
}

/// Waits for the lock and then answers, as long as the cluster has a head's node.
pub fn serve(nodes: &Path) -> io::Result<()> {
    let directory = nodes.join(DIRECTORY);
    // The one that started it may lead no session of its own.
    let _ = nix::unistd::setsid();
    let Some(_lock) = lock(&directory, true)? else { return Ok(()) };
    if !has_head(nodes) {
        return Ok(());
    }
    let settings: Settings = serde_json::from_slice(&fs::read(directory.join(SETTINGS))?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(answer(nodes, &directory, VirtualProvider::new(settings)))
}

async fn answer(nodes: &Path, directory: &Path, provider: VirtualProvider) -> io::Result<()> {
    let socket = directory.join(SOCKET);
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&socket)?;
    let mut waiting: Option<Child> = None;
    let mut connections = tokio::task::JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let provider = provider.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(stream, &provider).await {
                        eprintln!("a request was not answered: {error}");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
            _ = look.tick() => {
                if !has_head(nodes) {
                    break;
                }
                let is_there = waiting.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
                if !is_there {
                    // Without it the service goes on, and the next look tries again.
                    waiting = match detach(nodes) {
                        Ok(child) => Some(child),
                        Err(error) => {
                            eprintln!("the process that waits to take over cannot be started: {error}");
                            None
                        }
                    };
                }
            }
        }
    }
    if let Some(mut child) = waiting {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

async fn connection(mut stream: UnixStream, provider: &VirtualProvider) -> io::Result<()> {
    let mut text = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_to_end(&mut text).await?;
    // Somebody looked whether anything answers.
    if text.is_empty() {
        return Ok(());
    }
    let answer = match serde_json::from_slice(&text)? {
        Request::List => encode(&provider.list().await.map_err(WireError::from)),
        Request::Create(requests) => {
            let create = |r: Creation| CreateNode { node_type: r.node_type, shape: r.shape, offer: r.offer, bootstrap: r.bootstrap };
            let requests: Vec<_> = requests.into_iter().map(create).collect();
            encode(&batch(provider.create(&requests).await))
        }
        Request::Delete(requests) => {
            let delete = |r: Deletion| DeleteNode { node: r.node, generation: r.generation, instance: r.instance };
            let requests: Vec<_> = requests.into_iter().map(delete).collect();
            encode(&batch(provider.delete(&requests).await))
        }
        Request::Describe(instance) => encode(&provider.describe(&instance).await.map_err(WireError::from)),
        Request::RestartAgent { node, generation, instance, force } => {
            encode(&provider.restart_agent(&node, generation, &instance, force).await.map_err(WireError::from))
        }
        Request::Reboot { node, generation, instance } => {
            encode(&provider.reboot(&node, generation, &instance).await.map_err(WireError::from))
        }
    };
    stream.write_all(&answer?).await?;
    stream.shutdown().await
}

fn batch<T>(answers: Vec<Result<T, Error>>) -> Result<Vec<Result<T, WireError>>, WireError> {
    Ok(answers.into_iter().map(|answer| answer.map_err(WireError::from)).collect())
}

fn encode<T: Serialize>(answer: &Result<T, WireError>) -> io::Result<Vec<u8>> {
    serde_json::to_vec(answer).map_err(io::Error::other)
}
