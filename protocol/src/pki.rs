//! The identities of a cluster: a root that stays with the user, an intermediate at the head, short-lived certificates
//! for nodes. Keys are made where they are used and never travel; what travels is a certificate request.
//!
//! A node's certificate names it by the SPIFFE id `spiffe://<cluster>/node/<id>` and by its generation (as the subject's
//! organisational unit), so that what an older generation kept is worth nothing.
//!
//! An administrator's certificate names a person by `spiffe://<cluster>/admin/<name>`; the organisational unit carries the role
//! and the number of the grant (`role operator, grant 7`), by which the head knows whether it still holds. One that the root
//! signed itself needs no grant: whoever has the root's key can do everything.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cloudtik_model::access::Role;
use cloudtik_model::{AdministratorName, ClusterName, Generation, NodeId, RuntimeName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::files;

mod epoch;
pub use epoch::EpochProof;

/// How long a root is good for: it stays with the user, who can make a new cluster sooner.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long the head's intermediate is good for.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid this long before they were made, for machines whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// Roots and intermediates are valid even longer before: the user's clock and the head's need not agree.
pub const AUTHORITY_BACKDATE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make a key or certificate")]
    Generate(#[source] rcgen::Error),
    #[error("the certificate request is malformed or not signed by its key")]
    Request(#[source] rcgen::Error),
    #[error("the certificate is unusable: {0}")]
    Certificate(String),
    #[error("cannot read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: String, source: std::io::Error },
}

/// A private key with the chain that certifies it, ready for TLS.
#[derive(Debug)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Who a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Head,
    Node { id: NodeId, generation: Generation },
    Admin(Administrator),
}

/// A person, as a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Administrator {
    pub name: AdministratorName,
    pub role: Role,
    /// The grant that it was made for; absent if the root signed it.
    pub grant: Option<u64>,
    /// When the certificate ceases to be valid, in seconds since the Unix epoch.
    pub ends: i64,
}

/// The DNS name in a head's certificate: agents check it whatever address they dialled.
pub fn head_name(cluster: &ClusterName) -> String {
    format!("head-service.{cluster}.cloudtik.internal")
}

/// The DNS name in a node's certificate.
pub fn node_name(cluster: &ClusterName, node: &NodeId) -> String {
    format!("{node}.{cluster}.cloudtik.internal")
}

fn subject(name: &str, unit: Option<String>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(unit) = unit {
        subject.push(DnType::OrganizationalUnitName, unit);
    }
    subject
}

/// A subject has one value of a kind, so role and grant share theirs.
fn administrator_unit(role: Role, grant: Option<u64>) -> String {
    grant.map_or_else(|| format!("role {role}"), |grant| format!("role {role}, grant {grant}"))
}

fn read_administrator_unit(unit: &str) -> Option<(Role, Option<u64>)> {
    let rest = unit.strip_prefix("role ")?;
    match rest.split_once(", grant ") {
        Some((role, grant)) => Some((role.parse().ok()?, Some(grant.parse().ok()?))),
        None => Some((rest.parse().ok()?, None)),
    }
}

fn administrator_params(
    cluster: &ClusterName,
    name: &AdministratorName,
    unit: String,
    lifetime: Duration,
) -> Result<CertificateParams, Error> {
    let names = vec![uri(&format!("spiffe://{cluster}/admin/{name}"))?];
    let mut params = leaf_params(subject(name.as_str(), Some(unit)), names, lifetime);
    // A person serves nothing.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn dated(mut params: CertificateParams, backdate: Duration, lifetime: Duration) -> CertificateParams {
    let now = std::time::SystemTime::now();
    params.not_before = (now - backdate).into();
    params.not_after = (now + lifetime).into();
    params
}

fn ca_params(name: &str, path_length: u8, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dated(params, AUTHORITY_BACKDATE, lifetime)
}

fn uri(text: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(text.try_into().map_err(Error::Generate)?))
}

fn dns(text: &str) -> Result<SanType, Error> {
    Ok(SanType::DnsName(text.try_into().map_err(Error::Generate)?))
}

fn leaf_params(subject: DistinguishedName, names: Vec<SanType>, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.subject_alt_names = names;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    dated(params, BACKDATE, lifetime)
}

/// The cluster's root, in the user's hands.
pub struct Root {
    cluster: ClusterName,
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Root {
    pub fn generate(cluster: &ClusterName) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(Error::Generate)?;
        let certificate = ca_params(&format!("{cluster} root"), 1, ROOT_LIFETIME).self_signed(&key).map_err(Error::Generate)?;
        Ok(Self { cluster: cluster.clone(), certificate: certificate.der().clone(), key })
    }

    /// Reads the root from `directory`, or makes it there.
    pub fn load_or_generate(cluster: &ClusterName, directory: &Path) -> Result<Self, Error> {
        let (key_path, certificate_path) = (directory.join("root.key"), directory.join("root.crt"));
        if key_path.exists() && certificate_path.exists() {
            let key = load_key(&key_path)?;
            let certificate = load_chain(&certificate_path)?.into_iter().next();
            let certificate = certificate.ok_or_else(|| Error::Certificate(format!("{} is empty", certificate_path.display())))?;
            return Ok(Self { cluster: cluster.clone(), key, certificate });
        }
        if let Some(left) = [&key_path, &certificate_path].into_iter().find(|path| path.exists()) {
            // Another root would be another cluster.
            return Err(Error::Certificate(format!("of the root only {} is there; put the other half back", left.display())));
        }
        files::create_private_directory(directory).map_err(|source| Error::Write { path: directory.display().to_string(), source })?;
        let root = Self::generate(cluster)?;
        save_key(&root.key, &key_path)?;
        save_chain(std::slice::from_ref(&root.certificate), &certificate_path)?;
        Ok(root)
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> String {
        chain_pem(std::slice::from_ref(&self.certificate))
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, Error> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(Error::Generate)
    }

    /// Certifies a head's intermediate key.
    pub fn sign_intermediate(&self, request: &[u8], lifetime: Duration) -> Result<CertificateDer<'static>, Error> {
        let request = parse_request(request)?;
        let mut params = ca_params(&format!("{} head", self.cluster), 0, lifetime);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.public_key, &self.issuer()?).map_err(Error::Generate)?;
        Ok(certificate.der().clone())
    }

    /// Makes the identity of an administrator who needs no grant, for use over mutual TLS.
    pub fn admin(&self, name: &AdministratorName, lifetime: Duration) -> Result<Identity, Error> {
        let key = KeyPair::generate().map_err(Error::Generate)?;
        let params = administrator_params(&self.cluster, name, administrator_unit(Role::Admin, None), lifetime)?;
        let certificate = params.signed_by(&key, &self.issuer()?).map_err(Error::Generate)?;
        Ok(Identity { chain: vec![certificate.der().clone()], key: private_key(&key) })
    }
}

/// The head's power to certify nodes.
pub struct Intermediate {
    cluster: ClusterName,
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Intermediate {
    pub fn new(cluster: &ClusterName, key: KeyPair, certificate: CertificateDer<'static>) -> Self {
        Self { cluster: cluster.clone(), key, certificate }
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, Error> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(Error::Generate)
    }

    /// Certifies a node's key. What the request says of names is ignored: the head knows who asks.
    pub fn sign_node(
        &self,
        request: &[u8],
        node: &NodeId,
        generation: Generation,
        address: Option<IpAddr>,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let request = parse_request(request)?;
        let mut names = vec![uri(&format!("spiffe://{}/node/{node}", self.cluster))?, dns(&node_name(&self.cluster, node))?];
        names.extend(address.map(SanType::IpAddress));
        let params = leaf_params(subject(node.as_str(), Some(format!("generation {generation}"))), names, lifetime);
        let certificate = params.signed_by(&request.public_key, &self.issuer()?).map_err(Error::Generate)?;
        Ok(vec![certificate.der().clone(), self.certificate.clone()])
    }

    /// Certifies an administrator's key for a grant. What the request says of names is ignored.
    pub fn sign_administrator(
        &self,
        request: &[u8],
        name: &AdministratorName,
        role: Role,
        grant: u64,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let request = parse_request(request)?;
        let params = administrator_params(&self.cluster, name, administrator_unit(role, Some(grant)), lifetime)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer()?).map_err(Error::Generate)?;
        Ok(vec![certificate.der().clone(), self.certificate.clone()])
    }

    /// Makes the head's own serving identity.
    pub fn head(&self, addresses: &[IpAddr], lifetime: Duration) -> Result<Identity, Error> {
        let key = KeyPair::generate().map_err(Error::Generate)?;
        let mut names = vec![uri(&format!("spiffe://{}/head", self.cluster))?, dns(&head_name(&self.cluster))?];
        names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let certificate = leaf_params(subject("head", None), names, lifetime).signed_by(&key, &self.issuer()?).map_err(Error::Generate)?;
        Ok(Identity { chain: vec![certificate.der().clone(), self.certificate.clone()], key: private_key(&key) })
    }
}

fn parse_request(der: &[u8]) -> Result<CertificateSigningRequestParams, Error> {
    // `from_der` verifies the request's own signature, which proves possession of the key.
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der)).map_err(Error::Request)
}

/// A request, in DER, to certify `key`.
pub fn certificate_request(key: &KeyPair) -> Result<Vec<u8>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key).map_err(Error::Generate)?.der().to_vec())
}

/// The SHA-256 of the public key in a certificate request, in hexadecimal, after checking the request's signature.
pub fn request_fingerprint(request: &[u8]) -> Result<String, Error> {
    Ok(sha256_hex(&parse_request(request)?.public_key.subject_public_key_info()))
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `N` bytes from the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// The join token of one node's one generation. It is derived, not stored: a launch that is repeated after a crash
/// carries the same token as the launch that it repeats.
pub fn join_token(secret: &[u8], node: &NodeId, generation: Generation) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    hex(aws_lc_rs::hmac::sign(&key, format!("join {node} {generation}").as_bytes()).as_ref())
}

/// What the processes of one runtime of the cluster know each other by.
pub fn runtime_secret(secret: &[u8], runtime: &RuntimeName) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    hex(aws_lc_rs::hmac::sign(&key, format!("runtime {runtime}").as_bytes()).as_ref())
}

/// Compares secrets without telling by the time it takes where they differ.
pub fn secrets_match(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// Who a chain that TLS has already verified names, in this cluster.
pub fn peer(cluster: &ClusterName, chain: &[CertificateDer<'_>]) -> Option<Peer> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let path = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.strip_prefix(cluster.as_str())?.strip_prefix('/'),
        _ => None,
    })?;
    if path == "head" {
        return Some(Peer::Head);
    }
    let unit = certificate.subject().iter_organizational_unit().next()?.as_str().ok()?;
    if let Some(name) = path.strip_prefix("admin/") {
        let (role, grant) = read_administrator_unit(unit)?;
        // Without a grant nothing but the root may vouch for it: a chain of one is signed by the root.
        let is_vouched_for = grant.is_some() || chain.len() == 1;
        let (name, ends) = (name.parse().ok()?, certificate.validity().not_after.timestamp());
        return is_vouched_for.then_some(Peer::Admin(Administrator { name, role, grant, ends }));
    }
    let id = path.strip_prefix("node/")?.parse().ok()?;
    let generation = Generation(unit.strip_prefix("generation ")?.parse().ok()?);
    Some(Peer::Node { id, generation })
}

/// Seconds since the Unix epoch at which a certificate begins and ceases to be valid.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| Error::Certificate(e.to_string()))?;
    Ok((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

pub fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// Writes a private key to a file that only its owner can read.
pub fn save_key(key: &KeyPair, path: &Path) -> Result<(), Error> {
    files::write_atomically(path, key.serialize_pem().as_bytes(), 0o600)
        .map_err(|source| Error::Write { path: path.display().to_string(), source })
}

pub fn load_key(path: &Path) -> Result<KeyPair, Error> {
    let text = read(path)?;
    KeyPair::from_pem(&String::from_utf8_lossy(&text)).map_err(Error::Generate)
}

/// Reads the key at `path`, or makes one there.
pub fn load_or_generate_key(path: &Path) -> Result<KeyPair, Error> {
    if path.exists() {
        return load_key(path);
    }
    let key = KeyPair::generate().map_err(Error::Generate)?;
    save_key(&key, path)?;
    Ok(key)
}

pub fn chain_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|c| pem::encode(&pem::Pem::new("CERTIFICATE", c.to_vec()))).collect()
}

pub fn save_chain(chain: &[CertificateDer<'_>], path: &Path) -> Result<(), Error> {
    files::write_atomically(path, chain_pem(chain).as_bytes(), 0o644)
        .map_err(|source| Error::Write { path: path.display().to_string(), source })
}

pub fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    parse_chain(&read(path)?)
}

/// The certificates in a PEM text.
pub fn parse_chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(|e| Error::Certificate(e.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterName {
        ClusterName::new("demo").expect("valid")
    }

    fn intermediate(root: &Root) -> Intermediate {
        let key = KeyPair::generate().expect("key");
        let certificate = root.sign_intermediate(&certificate_request(&key).expect("request"), INTERMEDIATE_LIFETIME).expect("signs");
        Intermediate::new(&cluster(), key, certificate)
    }

    #[test]
    fn a_node_certificate_names_node_and_generation() {
        let root = Root::generate(&cluster()).expect("root");
        let node = NodeId::new("w1").expect("valid");
        let key = KeyPair::generate().expect("key");
        let request = certificate_request(&key).expect("request");
        let chain = intermediate(&root).sign_node(&request, &node, Generation(3), None, Duration::from_secs(3600)).expect("signs");
        assert_eq!(peer(&cluster(), &chain), Some(Peer::Node { id: node, generation: Generation(3) }));
        assert_eq!(peer(&ClusterName::new("demo2").expect("valid"), &chain), None, "a name of another cluster is no name");
    }

    #[test]
    fn an_administrator_certificate_names_person_role_and_grant() {
        let root = Root::generate(&cluster()).expect("root");
        let name = AdministratorName::new("ada@example.org").expect("valid");
        let key = KeyPair::generate().expect("key");
        let request = certificate_request(&key).expect("request");
        for role in Role::ALL {
            let chain = intermediate(&root).sign_administrator(&request, &name, role, 7, Duration::from_secs(3600)).expect("signs");
            let ends = validity(&chain[0]).expect("parses").1;
            assert_eq!(peer(&cluster(), &chain), Some(Peer::Admin(Administrator { name: name.clone(), role, grant: Some(7), ends })));
            assert_eq!(peer(&ClusterName::new("other").expect("valid"), &chain), None, "it is good for one cluster");
        }
    }

    #[test]
    fn only_the_root_vouches_for_an_administrator_without_a_grant() {
        let root = Root::generate(&cluster()).expect("root");
        let name = AdministratorName::new("ada").expect("valid");
        let own = root.admin(&name, Duration::from_secs(3600)).expect("makes");
        let ends = validity(&own.chain[0]).expect("parses").1;
        assert_eq!(peer(&cluster(), &own.chain), Some(Peer::Admin(Administrator { name, role: Role::Admin, grant: None, ends })));
        let longer: Vec<_> = own.chain.into_iter().chain([intermediate(&root).certificate]).collect();
        assert_eq!(peer(&cluster(), &longer), None);
    }

    #[test]
    fn a_unit_that_is_not_exactly_a_role_is_none() {
        assert_eq!(read_administrator_unit("role admin, grant 3"), Some((Role::Admin, Some(3))));
        for bad in ["", "admin", "role root", "role admin, grant", "role admin, grant x", "role admin,grant 3", "generation 3"] {
            assert_eq!(read_administrator_unit(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tampered_request_is_refused() {
        let key = KeyPair::generate().expect("key");
        let mut request = certificate_request(&key).expect("request");
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(request_fingerprint(&request).is_err());
        assert!(request_fingerprint(b"garbage").is_err());
    }

    #[test]
    fn tokens_differ_by_node_and_generation() {
        let (w1, w11) = (NodeId::new("w1").expect("valid"), NodeId::new("w11").expect("valid"));
        let token = |node, generation| join_token(b"secret", node, Generation(generation));
        assert_ne!(token(&w1, 1), token(&w1, 2));
        assert_ne!(token(&w1, 1), token(&w11, 1));
        assert_ne!(token(&w1, 1), join_token(b"other", &w1, Generation(1)));
        assert_eq!(token(&w1, 1), token(&w1, 1));
    }

    #[test]
    fn the_root_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = Root::load_or_generate(&cluster(), directory.path()).expect("makes");
        let again = Root::load_or_generate(&cluster(), directory.path()).expect("reads");
        assert_eq!(first.certificate(), again.certificate());
        let mode = std::fs::metadata(directory.path().join("root.key")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
