//! Clusters that this user was given access to: each has a directory with the address of its head, a key that was made there,
//! its certificate, and the cluster's root. Nobody else can read it.
//!
//! ```text
//! $CLOUDTIK_HOME/remote/WORKSPACE/clusters/NAME/
//!   access.json    the cluster, its head's address, and in which role it is reached
//!   key.pem        the private key
//!   chain.pem      its certificate
//!   ca.pem         the cluster's root certificate
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use cloudtik_model::access::{Accepted, Invitation, Role};
use cloudtik_model::{AdministratorName, ClusterName, Timestamp};
use cloudtik_protocol::files::{create_private_directory, write_atomically};
use cloudtik_protocol::pki::{self, Identity};
use cloudtik_protocol::wire::access_client::AccessClient;
use cloudtik_protocol::{PROTOCOL_VERSION, tls, transport, wire};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use crate::clusters::{self, ClusterPaths, ELSEWHERE, home};
use crate::failure::{FAILED, Failure, NOT_AUTHORISED, REFUSED, TIMED_OUT, innermost};

const FILE: &str = "access.json";
const KEY: &str = "key.pem";
const CHAIN: &str = "chain.pem";
const CA: &str = "ca.pem";

/// How long the head may take to answer an invitation.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(15);

/// How a cluster of somebody else is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// As its head calls it; the directory may have another name.
    pub cluster: ClusterName,
    /// Of the head: host and port.
    pub address: String,
    pub name: AdministratorName,
    pub role: Role,
    /// When the certificate ends.
    pub expires: Timestamp,
}

impl Remote {
    /// How a cluster is reached, if it is one of somebody else.
    pub fn of(paths: &ClusterPaths) -> Result<Option<Self>, Failure> {
        let path = paths.directory.join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
                let failure = Failure::failed(format!("{} is unreadable: {e}", path.display()));
                failure.hint(format!("remove {}, and ask for a new invitation", paths.directory.display()))
            }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Failure::failed(format!("cannot read {}: {error}", path.display()))),
        }
    }

    /// Connects to the head over mutual TLS.
    pub async fn dial(&self, paths: &ClusterPaths) -> Result<Channel, Failure> {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
        if self.expires.0 <= now {
            let message = format!("the access of {} to {} has expired", self.name, paths.name);
            return Err(Failure::new(NOT_AUTHORISED, message).hint(self.ask_again()));
        }
        let key = pki::load_key(&paths.directory.join(KEY))?;
        let identity = Identity { chain: pki::load_chain(&paths.directory.join(CHAIN))?, key: pki::private_key(&key) };
        let ca = paths.directory.join(CA);
        let root = pki::load_chain(&ca)?.into_iter().next();
        let root = root.ok_or_else(|| Failure::failed(format!("{} has no certificate", ca.display())))?;
        let config = tls::client_config(&root, Some(&identity)).map_err(|e| Failure::failed(crate::failure::chain(&e)))?;
        dial(&self.address, &self.cluster, config).await
    }

    fn ask_again(&self) -> String {
        format!("ask an administrator of the cluster: `cloudtik access grant {} {} --role {}`", self.cluster, self.name, self.role)
    }

    /// What to say where the head cannot be reached.
    pub fn unreachable(&self, paths: &ClusterPaths, error: Failure) -> Failure {
        if error.code == NOT_AUTHORISED {
            return error;
        }
        let message = format!("the head of {} at {} does not answer: {}", paths.name, self.address, error.message);
        Failure::new(TIMED_OUT, message).hint("see that this machine reaches that address; the cluster may have been taken down")
    }
}

/// The place of a cluster of somebody else, where a file describes one that is not here.
pub fn instead_of(paths: &ClusterPaths) -> Result<Option<ClusterPaths>, Failure> {
    if paths.exists() {
        return Ok(None);
    }
    let elsewhere = ClusterPaths::within(home()?.join(ELSEWHERE).join(paths.workspace_name()), paths.name.clone());
    Ok(Remote::of(&elsewhere)?.map(|_| elsewhere))
}

async fn dial(address: &str, cluster: &ClusterName, config: std::sync::Arc<rustls::ClientConfig>) -> Result<Channel, Failure> {
    let name = tls::server_name(&pki::head_name(cluster));
    let dialled = tokio::time::timeout(ACCEPT_TIMEOUT, transport::dial(address, None, &name, config)).await;
    let dialled = dialled.map_err(|_| Failure::failed("no answer in time"))?;
    dialled.map_err(|e| Failure::new(FAILED, innermost(&e)))
}

/// Accepts an invitation. The key is made here; what leaves this machine is the request to certify it.
pub async fn accept(invitation: &Invitation, local_name: Option<ClusterName>) -> Result<(ClusterPaths, Accepted), Failure> {
    let name = local_name.unwrap_or_else(|| invitation.cluster.clone());
    may_be_called(&name, invitation)?;
    let root = home()?.join(ELSEWHERE);
    create_private_directory(&root).map_err(|e| Failure::failed(format!("cannot create {}: {e}", root.display())))?;
    // Made aside and moved into its place when it is whole.
    let draft = root.join(format!(".accepting-{}", pki::hex(&pki::random::<8>())));
    let result = accept_in(&draft, &root, &name, invitation).await;
    if result.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    result
}

/// Refuses a name that another cluster has here, before the invitation is used up.
fn may_be_called(name: &ClusterName, invitation: &Invitation) -> Result<(), Failure> {
    for paths in clusters::all()?.into_iter().filter(|paths| paths.name == *name) {
        let known = pki::load_chain(&paths.directory.join(CA)).ok().and_then(|chain| chain.first().map(|root| pki::sha256_hex(root)));
        // Access to the same cluster is replaced by the newer.
        if known.as_ref() != Some(&invitation.ca) {
            let message = format!("there is a cluster {name} here already, in the workspace {}", paths.workspace_name());
            return Err(Failure::new(REFUSED, message).hint("call the new one differently: add `--as NAME`"));
        }
    }
    Ok(())
}

async fn accept_in(draft: &Path, root: &Path, name: &ClusterName, invitation: &Invitation) -> Result<(ClusterPaths, Accepted), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("cannot write below {}: {e}", root.display()));
    create_private_directory(draft).map_err(failed)?;
    let key = pki::load_or_generate_key(&draft.join(KEY))?;
    let (config, pinned) = tls::pinned_client_config(&invitation.ca).map_err(|e| Failure::failed(crate::failure::chain(&e)))?;
    let channel = dial(&invitation.address, &invitation.cluster, config).await.map_err(|failure| {
        let message = format!("cannot reach the head of {} at {}: {}", invitation.cluster, invitation.address, failure.message);
        let hint = "see that this machine reaches that address, and that the invitation is whole and of this cluster";
        Failure::new(TIMED_OUT, message).hint(hint)
    })?;
    let request = wire::AcceptRequest {
        protocol_version: PROTOCOL_VERSION,
        token: invitation.token.clone(),
        certificate_request: pki::certificate_request(&key)?.into(),
    };
    let mut client = AccessClient::new(channel);
    let answer = tokio::time::timeout(ACCEPT_TIMEOUT, client.accept(request)).await;
    let answer = answer.map_err(|_| Failure::new(TIMED_OUT, "the head does not answer"))?.map_err(|status| {
        let failure = Failure::from(status);
        if failure.code == NOT_AUTHORISED { failure.hint("ask whoever sent it for a new one: `cloudtik access grant`") } else { failure }
    })?;
    let reply = answer.into_inner();
    let unusable = |why: &str| Failure::failed(format!("the head's answer is unusable: {why}"));
    let accepted: Accepted = serde_json::from_slice(&reply.document).map_err(|e| unusable(&e.to_string()))?;
    let ca = pinned.get().cloned().ok_or_else(|| unusable("it showed no root certificate"))?;
    let chain: Vec<_> = reply.chain.iter().map(|der| rustls::pki_types::CertificateDer::from(der.to_vec())).collect();
    // What would not work as an identity must not take the place of one that does.
    let identity = Identity { chain, key: pki::private_key(&key) };
    tls::client_config(&ca, Some(&identity)).map_err(|e| unusable(&crate::failure::chain(&e)))?;
    let remote = Remote {
        cluster: accepted.cluster.clone(),
        address: invitation.address.clone(),
        name: accepted.name.clone(),
        role: accepted.role,
        expires: accepted.expires,
    };
    let text = serde_json::to_vec_pretty(&remote).map_err(|e| Failure::failed(e.to_string()))?;
    for (file, text) in
        [(CHAIN, pki::chain_pem(&identity.chain).into_bytes()), (CA, pki::chain_pem(std::slice::from_ref(&ca)).into_bytes()), (FILE, text)]
    {
        write_atomically(&draft.join(file), &text, 0o600).map_err(failed)?;
    }
    let paths = ClusterPaths::within(root.join(accepted.workspace.as_str()), name.clone());
    let directory = &paths.directory;
    if let Some(parent) = directory.parent() {
        cloudtik_protocol::files::create_missing_directories(parent).map_err(failed)?;
    }
    let replaced = root.join(format!(".replaced-{}", pki::hex(&pki::random::<8>())));
    let was_there = match fs::rename(directory, &replaced) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
    };
    fs::rename(draft, directory).map_err(failed)?;
    if was_there {
        let _ = fs::remove_dir_all(&replaced);
    }
    Ok((paths, accepted))
}
