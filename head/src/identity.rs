//! The head's identity: an intermediate key that was made here and certified by the user's root, and the certificates
//! that it gives.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use cloudtik_brain::access::GrantRecord;
use cloudtik_model::{ClusterName, Epoch, Generation, NodeId, Timestamp};
use cloudtik_protocol::files::create_private_directory;
use cloudtik_protocol::pki::{self, EpochProof, Identity, Intermediate};
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
        Ok(Authority { cluster: self.cluster.clone(), root: self.root.clone(), key: self.key.clone(), certificate })
    }
}

/// The power to certify, by the certificate that is installed at the time.
#[derive(Clone)]
pub struct Authority {
    cluster: ClusterName,
    root: CertificateDer<'static>,
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

    /// The head's own serving identity. The root goes along for those who know nothing of it but its digest.
    pub fn own(&self, address: IpAddr, lifetime: Duration) -> anyhow::Result<Identity> {
        let mut own = self.intermediate()?.head(&[address], lifetime)?;
        own.chain.push(self.root.clone());
        Ok(own)
    }

    /// SHA-256 of the root certificate, in hexadecimal.
    pub fn root_digest(&self) -> String {
        pki::sha256_hex(&self.root)
    }

    /// Certifies an administrator's key, until then at the latest: not for longer than the intermediate is good. Also gives
    /// when the certificate ends.
    pub fn certify_administrator(
        &self,
        request: &[u8],
        grant: &GrantRecord,
        now: Timestamp,
    ) -> anyhow::Result<(Vec<CertificateDer<'static>>, Timestamp)> {
        let Some(intermediate) = self.certificate.borrow().clone() else { bail!("the head has no certificate") };
        let own_end = u64::try_from(pki::validity(&intermediate)?.1).unwrap_or(0).saturating_mul(1_000);
        let lifetime = Duration::from_millis(grant.expires.0.min(own_end).saturating_sub(now.0));
        let chain = self.intermediate()?.sign_administrator(request, &grant.name, grant.role, grant.number, lifetime)?;
        let ends = chain.first().map(pki::validity).transpose()?.map_or(0, |(_, ends)| ends);
        Ok((chain, Timestamp(u64::try_from(ends).unwrap_or(0).saturating_mul(1_000))))
    }

    /// That the epoch of this head began.
    pub fn prove_epoch(&self, epoch: Epoch) -> anyhow::Result<EpochProof> {
        Ok(self.intermediate()?.prove_epoch(epoch)?)
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
