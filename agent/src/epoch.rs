//! Whose leadership counts: the latest epoch that was ever proven, on the disk before it is acted upon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cloudtik_model::{ClusterName, Epoch};
use cloudtik_protocol::files::write_atomically;
use cloudtik_protocol::pki::EpochProof;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a message of epoch {} is refused: epoch {} was seen", .got.0, .seen.0)]
    Older { got: Epoch, seen: Epoch },
    #[error("a message of epoch {} is refused: the head does not prove that it leads", .0.0)]
    Unproven(Epoch),
    #[error("{} is malformed", .0.display())]
    Malformed(PathBuf, #[source] serde_json::Error),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot remember epoch {}", .0.0)]
    Write(Epoch, #[source] io::Error),
}

/// The latest epoch that a head of this cluster has proven to this node, with the proof, which is shown to every head.
#[derive(Debug)]
pub struct Epochs {
    path: PathBuf,
    root: CertificateDer<'static>,
    cluster: ClusterName,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Seen {
    epoch: u64,
    signature: Vec<u8>,
    certificate: Vec<u8>,
}

impl Epochs {
    /// Only a file that is not there means that no head was ever seen: what cannot be read must not let an old one in.
    pub fn load(path: &Path, root: &CertificateDer<'static>, cluster: &ClusterName) -> Result<Self, Error> {
        let seen = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::Malformed(path.to_owned(), e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::default(),
            Err(error) => return Err(Error::Read(path.to_owned(), error)),
        };
        Ok(Self { path: path.to_owned(), root: root.clone(), cluster: cluster.clone(), seen: Mutex::new(seen) })
    }

    /// The latest epoch and its proof; epoch 0 has none.
    pub fn seen(&self) -> (Epoch, EpochProof) {
        let seen = self.seen.lock().expect("nothing panics while holding the lock");
        (Epoch(seen.epoch), EpochProof { signature: seen.signature.clone(), certificate: seen.certificate.clone() })
    }

    /// Refuses a head whose leadership is over or not proven, and remembers the latest.
    pub fn check(&self, got: Epoch, proof: Option<&EpochProof>) -> Result<(), Error> {
        let mut seen = self.seen.lock().expect("nothing panics while holding the lock");
        if got.0 < seen.epoch {
            return Err(Error::Older { got, seen: Epoch(seen.epoch) });
        }
        if got.0 > seen.epoch {
            let proof = proof.filter(|proof| proof.proves(&self.root, &self.cluster, got)).ok_or(Error::Unproven(got))?;
            let later = Seen { epoch: got.0, signature: proof.signature.clone(), certificate: proof.certificate.clone() };
            let text = serde_json::to_vec(&later).expect("numbers and bytes become JSON");
            write_atomically(&self.path, &text, 0o600).map_err(|e| Error::Write(got, e))?;
            *seen = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cloudtik_protocol::pki::{INTERMEDIATE_LIFETIME, Intermediate, Root, certificate_request};
    use rcgen::KeyPair;

    use super::*;

    #[test]
    fn an_older_leadership_is_refused_also_by_the_next_agent() {
        let cluster = ClusterName::new("demo").expect("valid");
        let root = Root::generate(&cluster).expect("makes");
        let key = KeyPair::generate().expect("key");
        let certificate = root.sign_intermediate(&certificate_request(&key).expect("request"), INTERMEDIATE_LIFETIME).expect("signs");
        let head = Intermediate::new(&cluster, key, certificate);
        let proof = |epoch| head.prove_epoch(Epoch(epoch)).expect("signs");
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("epoch");
        let load = || Epochs::load(&path, root.certificate(), &cluster);
        let epochs = load().expect("nothing there yet");
        for (epoch, accepted) in [(3, true), (3, true), (2, false), (4, true), (3, false)] {
            assert_eq!(epochs.check(Epoch(epoch), Some(&proof(epoch))).is_ok(), accepted, "epoch {epoch}");
        }
        let next = load().expect("reads");
        assert_eq!(next.seen(), epochs.seen(), "with its proof");
        assert!(matches!(next.check(Epoch(3), Some(&proof(3))), Err(Error::Older { seen: Epoch(4), .. })));
        assert!(next.check(Epoch(4), None).is_ok(), "what is proven needs no other proof");
        assert!(matches!(next.check(Epoch(5), None), Err(Error::Unproven(Epoch(5)))));
        assert!(matches!(next.check(Epoch(u64::MAX), Some(&proof(4))), Err(Error::Unproven(_))));
        assert_eq!(next.seen().0, Epoch(4), "a refused one is not remembered");
        for torn in ["", "four"] {
            fs::write(&path, torn).expect("writes");
            assert!(load().is_err(), "{torn:?} must not mean that no head was ever seen");
        }
    }
}
