//! Mutual TLS of a cluster: TLS 1.3 only, one trusted root, identities that can be replaced while serving.

use std::sync::{Arc, OnceLock};

use cloudtik_model::ClusterName;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::sync::watch;

use crate::clock::ClusterClock;
use crate::pki::{self, Identity};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the root certificate is unusable")]
    Root(#[source] rustls::Error),
    #[error("the verifier of clients cannot be made")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("TLS 1.3 is not available")]
    Version(#[source] rustls::Error),
    #[error("the identity is unusable")]
    Identity(#[source] rustls::Error),
}

/// Chooses the cryptography of this process. Called first in every `main` and test: a dependency may bring another.
pub fn install_crypto() {
    // An error means that it is installed already.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn crypto() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

fn roots(root: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    store.add(root.clone()).map_err(Error::Root)?;
    Ok(Arc::new(store))
}

/// For a server that knows its clients by their certificates. A client without one is let in as nobody, so that it can
/// join; a certificate that does not hold ends the handshake.
pub fn server_config(
    root: &CertificateDer<'static>,
    identity: &Identity,
    clock: &ClusterClock,
) -> Result<Arc<rustls::ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder(roots(root)?).allow_unauthenticated().build().map_err(Error::Verifier)?;
    let mut config = rustls::ServerConfig::builder_with_details(crypto(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Version)?
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
    client(WebPkiServerVerifier::builder(roots(root)?).build().map_err(Error::Verifier)?, identity, &ClusterClock::default())
}

/// For a client that knows nothing of the cluster but the digest of its root: the head sends the root along, and everything
/// else is verified as usual. The second value tells the root after the handshake.
pub fn pinned_client_config(digest: &str) -> Result<(Arc<rustls::ClientConfig>, Arc<OnceLock<CertificateDer<'static>>>), Error> {
    let root = Arc::new(OnceLock::new());
    let verifier = PinnedVerifier { digest: digest.to_owned(), root: root.clone(), crypto: crypto() };
    Ok((client(Arc::new(verifier), None, &ClusterClock::default())?, root))
}

/// Verifies by the one root that has a known digest, which the server has to send.
#[derive(Debug)]
struct PinnedVerifier {
    /// SHA-256 in hexadecimal.
    digest: String,
    root: Arc<OnceLock<CertificateDer<'static>>>,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_pinned = |certificate: &&CertificateDer<'_>| pki::secrets_match(&pki::sha256_hex(certificate), &self.digest);
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let root = intermediates.iter().find(is_pinned).ok_or_else(unknown)?.clone().into_owned();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(&root).map_err(|_| unknown())?, self.crypto.clone());
        let verifier = verifier.build().map_err(|_| unknown())?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let _ = self.root.set(root);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.crypto.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.crypto.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// For a node towards its head: where only the dates of the head's chain do not fit, the machine's clock is taken to be
/// wrong, and `clock` is set by the head's certificate.
pub fn node_client_config(
    root: &CertificateDer<'static>,
    identity: Option<&Identity>,
    clock: &ClusterClock,
) -> Result<Arc<rustls::ClientConfig>, Error> {
    let inner = WebPkiServerVerifier::builder(roots(root)?).build().map_err(Error::Verifier)?;
    client(Arc::new(HeadVerifier { inner, clock: clock.clone() }), identity, clock)
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<&Identity>,
    clock: &ClusterClock,
) -> Result<Arc<rustls::ClientConfig>, Error> {
    let builder = rustls::ClientConfig::builder_with_details(crypto(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Version)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(Error::Identity)?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Verifies like webpki; forgives a machine its clock.
#[derive(Debug)]
struct HeadVerifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: ClusterClock,
}

impl ServerCertVerifier for HeadVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |at| self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at);
        let refused = match verify(now) {
            Err(error) if is_about_time(&error) => error,
            other => return other,
        };
        // When it was made, which is at most its short life ago.
        let Ok((begins, ends)) = pki::validity(end_entity) else { return Err(refused) };
        // One that had ended by a time that is known to have passed is no head's, whatever this machine's clock says: a
        // key that was stolen once must not be good for ever.
        if ends * 1_000 < self.clock.floor() {
            return Err(refused);
        }
        let made = begins + pki::BACKDATE.as_secs() as i64;
        let verified = verify(UnixTime::since_unix_epoch(std::time::Duration::from_secs(made.max(0) as u64)))?;
        self.clock.set(made * 1_000);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn is_about_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(error, rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }))
}

/// Whether `identity` is a head's, with a chain to `root` that holds now.
pub fn verify_head(root: &CertificateDer<'static>, cluster: &ClusterName, identity: &Identity) -> Result<(), Error> {
    let verifier = WebPkiServerVerifier::builder(roots(root)?).build().map_err(Error::Verifier)?;
    let name = server_name(&pki::head_name(cluster));
    let (leaf, others) = identity.chain.split_first().ok_or(Error::Identity(rustls::Error::NoCertificatesPresented))?;
    verifier.verify_server_cert(leaf, others, &name, &[], UnixTime::now()).map(|_| ()).map_err(Error::Identity)
}

/// A server's TLS configuration that can be replaced: connections that stand keep theirs, new ones take the new one.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    cluster: ClusterName,
    root: CertificateDer<'static>,
    clock: ClusterClock,
    config: watch::Sender<Arc<rustls::ServerConfig>>,
}

impl ServerIdentity {
    pub fn new(cluster: &ClusterName, root: &CertificateDer<'static>, identity: &Identity, clock: &ClusterClock) -> Result<Self, Error> {
        let config = watch::Sender::new(server_config(root, identity, clock)?);
        Ok(Self { cluster: cluster.clone(), root: root.clone(), clock: clock.clone(), config })
    }

    pub fn replace(&self, identity: &Identity) -> Result<(), Error> {
        self.config.send_replace(server_config(&self.root, identity, &self.clock)?);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::TOLERATED;
    use crate::pki::{Intermediate, Root};

    const DAY: i64 = 24 * 3_600_000;

    /// What a node whose clock is so many days off thinks of a head's certificate that was made just now.
    fn verdict(days: i64, floor: i64, root: &Root, signer: &Root, name: &str) -> (Result<(), rustls::Error>, ClusterClock) {
        install_crypto();
        let cluster = ClusterName::new("demo").expect("valid");
        let key = rcgen::KeyPair::generate().expect("key");
        let request = pki::certificate_request(&key).expect("request");
        let certificate = signer.sign_intermediate(&request, Duration::from_secs(3_600 * 24 * 365)).expect("signs");
        let head = Intermediate::new(&cluster, key, certificate).head(&[], Duration::from_secs(3_600 * 24)).expect("makes");
        let clock = ClusterClock::default();
        let true_time = clock.now();
        clock.set(true_time + days * DAY);
        clock.has_passed(true_time + floor * DAY);
        let inner = WebPkiServerVerifier::builder(roots(root.certificate()).expect("a root")).build().expect("a verifier");
        let verifier = HeadVerifier { inner, clock: clock.clone() };
        let now = rustls::time_provider::TimeProvider::current_time(&clock).expect("a time");
        let (leaf, others) = head.chain.split_first().expect("a chain");
        let verdict = verifier.verify_server_cert(leaf, others, &server_name(name), &[], now).map(drop);
        clock.set(clock.now());
        (verdict, clock)
    }

    #[test]
    fn a_pinned_root_is_found_in_the_chain_and_no_other_is() {
        install_crypto();
        let cluster = ClusterName::new("demo").expect("valid");
        let (root, other) = (Root::generate(&cluster).expect("makes"), Root::generate(&cluster).expect("makes"));
        let head = |signer: &Root| {
            let key = rcgen::KeyPair::generate().expect("key");
            let request = pki::certificate_request(&key).expect("request");
            let certificate = signer.sign_intermediate(&request, Duration::from_secs(3_600)).expect("signs");
            Intermediate::new(&cluster, key, certificate).head(&[], Duration::from_secs(3_600)).expect("makes").chain
        };
        let verify = |mut chain: Vec<CertificateDer<'static>>, sent: Option<&Root>, pin: &Root, name: &str| {
            chain.extend(sent.map(|root| root.certificate().clone()));
            let root = Arc::new(OnceLock::new());
            let verifier = PinnedVerifier { digest: pki::sha256_hex(pin.certificate()), root: root.clone(), crypto: crypto() };
            let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &server_name(name), &[], UnixTime::now());
            verified.map(|_| root.get().cloned().expect("it tells the root"))
        };
        let name = pki::head_name(&cluster);
        assert_eq!(verify(head(&root), Some(&root), &root, &name).as_ref(), Ok(root.certificate()));
        assert!(verify(head(&root), None, &root, &name).is_err(), "the root was not sent");
        assert!(verify(head(&root), Some(&root), &other, &name).is_err(), "another root is pinned");
        assert!(verify(head(&other), Some(&root), &root, &name).is_err(), "the pinned root is sent by somebody it did not certify");
        assert!(verify(head(&root), Some(&root), &root, "w1.demo.cloudtik.internal").is_err(), "a node is no head");
    }

    #[test]
    fn only_dates_are_forgiven_and_not_those_that_are_known_to_have_passed() {
        let cluster = ClusterName::new("demo").expect("valid");
        let (root, other) = (Root::generate(&cluster).expect("makes"), Root::generate(&cluster).expect("makes"));
        let name = pki::head_name(&cluster);
        for days in [0, -400, 400] {
            let (verdict, clock) = verdict(days, -1, &root, &root, &name);
            assert!(verdict.is_ok(), "{days} days off: {verdict:?}");
            assert!(clock.offset().abs() <= TOLERATED, "{days} days off: the node goes by the head's time now");
            for (signer, name) in [(&other, name.as_str()), (&root, "somebody.demo.cloudtik.internal")] {
                let (verdict, _) = self::verdict(days, -1, &root, signer, name);
                assert!(verdict.is_err(), "{days} days off, {name}: dates are no excuse for the rest");
            }
        }
        let (verdict, _) = verdict(400, 2, &root, &root, &name);
        assert!(verdict.is_err(), "two days from now have passed, and the certificate was for one");
    }
}
