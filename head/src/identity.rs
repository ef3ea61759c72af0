//! The head's identity: an intermediate key that was made here and certified by the user's root, and the certificates
//! that it gives.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_protocol::files::create_private_directory;
use cloudtik_protocol::pki::{self, Identity, Intermediate};
use cloudtik_protocol::tls;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

/// The head's directory of keys.
pub struct Keys {
    directory: PathBuf,
    cluster: ClusterName,
    root: CertificateDer<'static>,
    /// The intermediate key as PEM.
    key: String,
    certificate: watch::Sender<Option<CertificateDer<'static>>>,
}

impl Keys {
    pub fn open(state: &std::path::Path, cluster: &ClusterName, root: &CertificateDer<'static>) -> anyhow::Result<Self> {
        let directory = state.join("identity");
        create_private_directory(&directory).with_context(|| format!("making {}", directory.display()))?;
        let key = pki::load_or_generate_key(&directory.join("intermediate.key"))?.serialize_pem();
        let path = directory.join("intermediate.crt");
        let certificate = if path.exists() { pki::load_chain(&path)?.into_iter().next() } else { None };
        Ok(Self { directory, cluster: cluster.clone(), root: root.clone(), key, certificate: watch::Sender::new(certificate) })
    }

    /// When the installed certificate ends, in seconds since the Unix epoch, if there is one.
    pub fn expires_at(&self) -> Option<i64> {
        self.certificate.borrow().as_ref().and_then(|certificate| pki::validity(certificate).ok()).map(|(_, ends)| ends)
    }

    pub fn request(&self) -> anyhow::Result<Vec<u8>> {
        Ok(pki::certificate_request(&KeyPair::from_pem(&self.key)?)?)
    }

    /// Takes the certificate that the root signed, instead of the present one if there is one. Streams that stand go on.
    pub fn install(&self, certificate: &[u8]) -> anyhow::Result<()> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let intermediate = Intermediate::new(&self.cluster, KeyPair::from_pem(&self.key)?, certificate.clone());
        // What would not verify, or is for another key, must not replace anything.
        let identity = intermediate.head(&[], Duration::from_secs(60))?;
        tls::verify_head(&self.root, &self.cluster, &identity).context("the certificate is not the root's for the head's key")?;
        pki::save_chain(std::slice::from_ref(&certificate), &self.directory.join("intermediate.crt"))?;
        self.certificate.send_replace(Some(certificate));
        Ok(())
    }

    /// Waits until there is a certificate, and makes the authority from it.
    pub async fn authority(&self) -> anyhow::Result<Authority> {
        let mut certificate = self.certificate.subscribe();
        certificate.wait_for(Option::is_some).await?;
        Ok(Authority { cluster: self.cluster.clone(), key: self.key.clone(), certificate })
    }
}

/// The power to certify, by the certificate that is installed at the time.
#[derive(Clone)]
pub struct Authority {
    cluster: ClusterName,
    key: String,
    certificate: watch::Receiver<Option<CertificateDer<'static>>>,
}

impl Authority {
    fn intermediate(&self) -> anyhow::Result<Intermediate> {
        let Some(certificate) = self.certificate.borrow().clone() else { bail!("the head has no certificate") };
        Ok(Intermediate::new(&self.cluster, KeyPair::from_pem(&self.key)?, certificate))
    }

    /// Returns when another certificate was installed.
    pub async fn replaced(&mut self) {
        if self.certificate.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The head's own serving identity.
    pub fn own(&self, address: IpAddr, lifetime: Duration) -> anyhow::Result<Identity> {
        Ok(self.intermediate()?.head(&[address], lifetime)?)
    }

    pub fn certify(
        &self,
        request: &[u8],
        node: &NodeId,
        generation: Generation,
        address: &str,
        lifetime: Duration,
    ) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        Ok(self.intermediate()?.sign_node(request, node, generation, address.parse().ok(), lifetime)?)
    }
}
