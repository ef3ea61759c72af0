//! Whose leadership counts: the highest epoch that was ever seen, on the disk before it is acted upon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cloudtik_model::Epoch;
use cloudtik_protocol::files::write_atomically;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a message of epoch {} is refused: epoch {} was seen", .got.0, .seen.0)]
    Older { got: Epoch, seen: Epoch },
    #[error("{} holds no epoch", .0.display())]
    Malformed(PathBuf),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot remember epoch {}", .0.0)]
    Write(Epoch, #[source] io::Error),
}

/// The highest epoch that this node has seen.
#[derive(Debug)]
pub struct Epochs {
    path: PathBuf,
    seen: Mutex<Epoch>,
}

impl Epochs {
    /// Only a file that is not there means that no head was ever seen: what cannot be read must not let an old one in.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let stored = match fs::read_to_string(path) {
            Ok(text) => text.trim().parse().map_err(|_| Error::Malformed(path.to_owned()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::Read(path.to_owned(), error)),
        };
        Ok(Self { path: path.to_owned(), seen: Mutex::new(Epoch(stored)) })
    }

    pub fn seen(&self) -> Epoch {
        *self.seen.lock().expect("nothing panics while holding the lock")
    }

    /// Refuses a head whose leadership is over, and remembers the newest.
    pub fn check(&self, got: Epoch) -> Result<(), Error> {
        let mut seen = self.seen.lock().expect("nothing panics while holding the lock");
        if got < *seen {
            return Err(Error::Older { got, seen: *seen });
        }
        if got > *seen {
            write_atomically(&self.path, got.0.to_string().as_bytes(), 0o600).map_err(|e| Error::Write(got, e))?;
            *seen = got;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_leadership_is_refused_also_by_the_next_agent() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("epoch");
        let epochs = Epochs::load(&path).expect("nothing there yet");
        for (epoch, accepted) in [(3, true), (3, true), (2, false), (4, true), (3, false)] {
            assert_eq!(epochs.check(Epoch(epoch)).is_ok(), accepted, "epoch {epoch}");
        }
        let next = Epochs::load(&path).expect("reads");
        assert!(matches!(next.check(Epoch(3)), Err(Error::Older { seen: Epoch(4), .. })));
        assert!(next.check(Epoch(4)).is_ok());
        for torn in ["", "four"] {
            fs::write(&path, torn).expect("writes");
            assert!(Epochs::load(&path).is_err(), "{torn:?} must not mean that no head was ever seen");
        }
    }
}
