//! Java's store of trusted certificates: a `JKS` file, as Debian makes it when its Java is installed.
//!
//! The format: <https://github.com/openjdk/jdk/blob/master/src/java.base/share/classes/sun/security/provider/JavaKeyStore.java>.

use std::fs;
use std::path::Path;

use anyhow::Context;
use aws_lc_rs::digest::{Context as Digest, SHA1_FOR_LEGACY_USE_ONLY};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Where Debian's Java looks for it, relative to the root.
pub const JAVA: &str = "etc/ssl/certs/java/cacerts";

const MAGIC: u32 = 0xFEED_FEED;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
/// Everybody's: it keeps nothing secret, and Java ships with it.
const PASSWORD: &str = "changeit";
const WHITENER: &[u8] = b"Mighty Aphrodite";

/// The store of the certificates of a directory's `.crt` files (PEM); the same files give the same bytes.
pub fn of_directory(directory: &Path) -> anyhow::Result<Vec<u8>> {
    let mut certificates = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "crt") {
            let certificate = CertificateDer::from_pem_file(&path).with_context(|| format!("reading {}", path.display()))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
            certificates.push((name, certificate.to_vec()));
        }
    }
    certificates.sort();
    Ok(store(&certificates))
}

fn store(certificates: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [MAGIC, VERSION, certificates.len() as u32] {
        out.extend(number.to_be_bytes());
    }
    for (name, certificate) in certificates {
        out.extend(TRUSTED_CERTIFICATE.to_be_bytes());
        text(&mut out, name);
        // When it came: never, so that the archive is the same whenever it is made.
        out.extend(0u64.to_be_bytes());
        text(&mut out, "X.509");
        out.extend((certificate.len() as u32).to_be_bytes());
        out.extend(certificate);
    }
    let mut digest = Digest::new(&SHA1_FOR_LEGACY_USE_ONLY);
    for unit in PASSWORD.encode_utf16() {
        digest.update(&unit.to_be_bytes());
    }
    digest.update(WHITENER);
    digest.update(&out);
    out.extend(digest.finish().as_ref());
    out
}

/// ASCII is the same in Java's UTF-8; what is not is left out of a name.
fn text(out: &mut Vec<u8>, text: &str) {
    let bytes: Vec<u8> = text.bytes().filter(u8::is_ascii).collect();
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_what_javas_own_reader_expects() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let key = rcgen::KeyPair::generate().expect("makes");
        let certificate = rcgen::CertificateParams::new(vec!["ca".to_owned()]).expect("valid").self_signed(&key).expect("signs");
        fs::write(directory.path().join("Some_CA.crt"), certificate.pem()).expect("writes");
        fs::write(directory.path().join("README"), "not a certificate").expect("writes");
        let store = of_directory(directory.path()).expect("makes");
        assert_eq!(store[..12], [0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(&store[12..25], b"\0\0\0\x02\0\x07some_ca");
        let der = certificate.der();
        let end = store.len() - 20;
        assert_eq!(&store[end - der.len()..end], &der[..], "the certificate, and then the digest");
        assert_eq!(of_directory(directory.path()).expect("makes"), store, "the same again");
    }
}
