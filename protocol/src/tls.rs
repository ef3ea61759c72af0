//! Mutual TLS of a cluster: TLS 1.3 only, one trusted root, identities that can be replaced while serving.

use std::sync::Arc;

use cloudtik_model::ClusterName;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use tokio::sync::watch;

use crate::pki::{self, Identity};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the root certificate is unusable")]
    Root(#[source] rustls::Error),
    #[error("the verifier of clients cannot be made")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("the identity is unusable")]
    Identity(#[source] rustls::Error),
}

/// Chooses the cryptography of this process. Called first in every `main` and test: a dependency may bring another.
pub fn install_crypto() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn roots(root: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    store.add(root.clone()).map_err(Error::Root)?;
    Ok(Arc::new(store))
}

/// For a server that knows its clients by their certificates. A client without one is let in as nobody, so that it can
/// join; a certificate that does not hold ends the handshake.
pub fn server_config(root: &CertificateDer<'static>, identity: &Identity) -> Result<Arc<rustls::ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder(roots(root)?).allow_unauthenticated().build().map_err(Error::Verifier)?;
    let mut config = rustls::ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(Error::Identity)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are long-lived streams: resumption would only keep state, and outlive a replaced identity.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For a client of the cluster, with its certificate or, to join, without.
pub fn client_config(root: &CertificateDer<'static>, identity: Option<&Identity>) -> Result<Arc<rustls::ClientConfig>, Error> {
    let builder = rustls::ClientConfig::builder_with_protocol_versions(&[&TLS13]).with_root_certificates(roots(root)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(Error::Identity)?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A server's TLS configuration that can be replaced: connections that stand keep theirs, new ones take the new one.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    cluster: ClusterName,
    root: CertificateDer<'static>,
    config: watch::Sender<Arc<rustls::ServerConfig>>,
}

impl ServerIdentity {
    pub fn new(cluster: &ClusterName, root: &CertificateDer<'static>, identity: &Identity) -> Result<Self, Error> {
        let config = watch::Sender::new(server_config(root, identity)?);
        Ok(Self { cluster: cluster.clone(), root: root.clone(), config })
    }

    pub fn replace(&self, identity: &Identity) -> Result<(), Error> {
        self.config.send_replace(server_config(&self.root, identity)?);
        Ok(())
    }

    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        self.config.borrow().clone()
    }

    /// Who is at the other end of a connection, from the certificate that the handshake verified.
    pub fn peer(&self, connection: &rustls::ServerConnection) -> Option<pki::Peer> {
        pki::peer(&self.cluster, connection.peer_certificates()?)
    }
}

/// A name for rustls.
pub fn server_name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).expect("host names made of validated names are valid")
}
