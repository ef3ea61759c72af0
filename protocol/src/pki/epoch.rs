//! Proof that a leadership began: what a head signs when it begins to lead, and what counts as a word of a later one.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use cloudtik_model::{ClusterName, Epoch};
use rcgen::SigningKey;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, Intermediate};

/// The signature of a cluster's intermediate under an epoch of its own. Only a head of the cluster can make one; anybody
/// who knows the cluster's root can check it, also after the intermediate's certificate has run out: that a leadership
/// began stays true.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EpochProof {
    pub signature: Vec<u8>,
    /// The intermediate's certificate in DER.
    pub certificate: Vec<u8>,
}

/// What is signed. No certificate begins like this, which is all else that an intermediate signs.
fn statement(cluster: &ClusterName, epoch: Epoch) -> Vec<u8> {
    [b"cloudtik leadership 1\0".as_slice(), cluster.as_str().as_bytes(), b"\0", &epoch.0.to_be_bytes()].concat()
}

impl Intermediate {
    pub fn prove_epoch(&self, epoch: Epoch) -> Result<EpochProof, Error> {
        let signature = self.key.sign(&statement(&self.cluster, epoch)).map_err(Error::Generate)?;
        Ok(EpochProof { signature, certificate: self.certificate.to_vec() })
    }
}

impl EpochProof {
    /// Whether a head of the cluster with this root began that epoch.
    pub fn proves(&self, root: &CertificateDer<'_>, cluster: &ClusterName, epoch: Epoch) -> bool {
        self.check(root, cluster, epoch).is_some()
    }

    fn check(&self, root: &CertificateDer<'_>, cluster: &ClusterName, epoch: Epoch) -> Option<()> {
        let (_, root) = X509Certificate::from_der(root).ok()?;
        let (_, intermediate) = X509Certificate::from_der(&self.certificate).ok()?;
        if !intermediate.is_ca() || intermediate.issuer() != root.subject() {
            return None;
        }
        let verify = |signer: &X509Certificate<'_>, message: &[u8], signature: &[u8]| {
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &signer.public_key().subject_public_key.data);
            key.verify(message, signature).ok()
        };
        verify(&root, intermediate.tbs_certificate.as_ref(), &intermediate.signature_value.data)?;
        verify(&intermediate, &statement(cluster, epoch), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::KeyPair;

    use super::super::{INTERMEDIATE_LIFETIME, Root, certificate_request};
    use super::*;

    fn intermediate(root: &Root, cluster: &ClusterName, lifetime: Duration) -> Intermediate {
        let key = KeyPair::generate().expect("key");
        let certificate = root.sign_intermediate(&certificate_request(&key).expect("request"), lifetime).expect("signs");
        Intermediate::new(cluster, key, certificate)
    }

    #[test]
    fn an_epoch_is_proven_by_a_head_of_the_cluster_and_by_nobody_else() {
        let cluster = ClusterName::new("demo").expect("valid");
        let root = Root::generate(&cluster).expect("root");
        let head = intermediate(&root, &cluster, INTERMEDIATE_LIFETIME);
        let proof = head.prove_epoch(Epoch(7)).expect("signs");
        assert!(proof.proves(root.certificate(), &cluster, Epoch(7)));
        for epoch in [0, 6, 8, u64::MAX] {
            assert!(!proof.proves(root.certificate(), &cluster, Epoch(epoch)), "epoch {epoch}");
        }
        let (other, another) = (Root::generate(&cluster).expect("root"), ClusterName::new("demo2").expect("valid"));
        assert!(!proof.proves(other.certificate(), &cluster, Epoch(7)), "of another root");
        assert!(!proof.proves(root.certificate(), &another, Epoch(7)), "of another cluster");

        // A node has a certificate of the cluster, too, and a key that fits; it is no authority.
        let key = KeyPair::generate().expect("key");
        let node = cloudtik_model::NodeId::new("w1").expect("valid");
        let request = certificate_request(&key).expect("request");
        let chain = head.sign_node(&request, &node, cloudtik_model::Generation(1), None, INTERMEDIATE_LIFETIME).expect("signs");
        let forged = Intermediate::new(&cluster, key, chain[0].clone()).prove_epoch(Epoch(9)).expect("signs");
        assert!(!forged.proves(root.certificate(), &cluster, Epoch(9)));
        for proof in [
            EpochProof { certificate: proof.certificate.clone(), ..forged },
            EpochProof::default(),
            EpochProof { signature: proof.signature.clone(), certificate: vec![0x30; 40] },
        ] {
            assert!(!proof.proves(root.certificate(), &cluster, Epoch(9)), "{proof:?}");
        }
    }

    #[test]
    fn a_proof_outlives_the_certificate_of_its_signer() {
        let cluster = ClusterName::new("demo").expect("valid");
        let root = Root::generate(&cluster).expect("root");
        let proof = intermediate(&root, &cluster, Duration::ZERO).prove_epoch(Epoch(7)).expect("signs");
        assert!(proof.proves(root.certificate(), &cluster, Epoch(7)));
    }
}
