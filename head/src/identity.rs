//! The head's identity: an intermediate key that was made here and certified by the user's root, and the certificates
//! that it gives.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use cloudtik_model::{ClusterName, Generation, NodeId};
use cloudtik_protocol::files::create_private_directory;
use cloudtik_protocol::pki::{self, Identity, Intermediate, NODE_LIFETIME};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

/// The head's directory of keys.
pub struct Keys {
    directory: PathBuf,
    key: KeyPair,
    installed: watch::Sender<bool>,
}

impl Keys {
    pub fn open(state: &std::path::Path) -> anyhow::Result<Self> {
        let directory = state.join("identity");
        create_private_directory(&directory).with_context(|| format!("making {}", directory.display()))?;
        let key = pki::load_or_generate_key(&directory.join("intermediate.key"))?;
        let installed = watch::Sender::new(directory.join("intermediate.crt").exists());
        Ok(Self { directory, key, installed })
    }

    pub fn is_installed(&self) -> bool {
        *self.installed.borrow()
    }

    pub fn request(&self) -> anyhow::Result<Vec<u8>> {
        Ok(pki::certificate_request(&self.key)?)
    }

    /// Takes the certificate that the root signed; it must be for our key.
    pub fn install(&self, root: &CertificateDer<'static>, certificate: &[u8]) -> anyhow::Result<()> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let intermediate =
            Intermediate::new(&ClusterName::new("check")?, KeyPair::from_pem(&self.key.serialize_pem())?, certificate.clone());
        // A chain that would not verify must not replace anything.
        let identity = intermediate.head(&[], Duration::from_secs(60))?;
        cloudtik_protocol::tls::server_config(root, &identity).context("the certificate is not for the head's key")?;
        pki::save_chain(&[certificate], &self.directory.join("intermediate.crt"))?;
        self.installed.send_replace(true);
        Ok(())
    }

    /// Waits until there is a certificate, and makes the authority from it.
    pub async fn authority(&self, cluster: &ClusterName) -> anyhow::Result<Authority> {
        self.installed.subscribe().wait_for(|installed| *installed).await?;
        let chain = pki::load_chain(&self.directory.join("intermediate.crt"))?;
        let certificate = chain.into_iter().next().context("intermediate.crt is empty")?;
        Ok(Authority { intermediate: Intermediate::new(cluster, KeyPair::from_pem(&self.key.serialize_pem())?, certificate) })
    }
}

/// The power to certify.
pub struct Authority {
    intermediate: Intermediate,
}

impl Authority {
    /// The head's own serving identity, good for as long as a node's.
    pub fn own(&self, address: IpAddr) -> anyhow::Result<Identity> {
        Ok(self.intermediate.head(&[address], NODE_LIFETIME)?)
    }

    pub fn certify(
        &self,
        request: &[u8],
        node: &NodeId,
        generation: Generation,
        address: &str,
    ) -> Result<Vec<CertificateDer<'static>>, pki::Error> {
        self.intermediate.sign_node(request, node, generation, address.parse().ok(), NODE_LIFETIME)
    }
}
