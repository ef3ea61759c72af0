//! Packs what is uploaded: an archive of one entry, [`TOP`], which is the file or the folder that was named.
//!
//! The named path is followed if it is a symbolic link; links inside a folder stay links. A file is sent as long as it is
//! when it is opened, whatever is appended to it meanwhile.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The name of the packed file or folder in the archive.
pub const TOP: &str = "data";
/// Files up to this size, in bytes, are read before their length is written: it is right even if they shrink, and for files
/// that do not tell their size, such as those of `/proc`.
const READ_AHEAD: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}", path = path.display())]
    Entry { path: PathBuf, source: io::Error },
    /// The other end takes no more.
    #[error("cannot send the archive")]
    Archive(#[source] io::Error),
}

fn entry(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Entry { path, source }
}

/// Packs a file or a folder; returns what a person should know about the copy.
pub fn pack(from: &Path, to: impl Write) -> Result<Vec<String>, Error> {
    let mut packer = Packer { archive: tar::Builder::new(to), notes: Vec::new() };
    let metadata = fs::metadata(from).map_err(entry(from))?;
    if metadata.is_dir() {
        packer.folder(from, Path::new(TOP), &metadata)?;
    } else {
        let file = File::open(from).map_err(entry(from))?;
        packer.file(from, Path::new(TOP), file)?;
    }
    packer.archive.into_inner().and_then(|mut to| to.flush()).map_err(Error::Archive)?;
    Ok(packer.notes)
}

struct Packer<W: Write> {
    archive: tar::Builder<W>,
    notes: Vec<String>,
}

impl<W: Write> Packer<W> {
    fn folder(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), Error> {
        // Read first: one that cannot be read is not half packed.
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(entry(path))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        self.archive.append_data(&mut header(metadata, 0), name, io::empty()).map_err(Error::Archive)?;
        for found in entries {
            match self.inner(&found.path(), &name.join(found.file_name())) {
                // It was removed since the folder was read.
                Err(Error::Entry { path, source }) if source.kind() == io::ErrorKind::NotFound && path == found.path() => {
                    self.notes.push(format!("{} was removed while its folder was copied", path.display()));
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// An entry of a folder.
    fn inner(&mut self, path: &Path, name: &Path) -> Result<(), Error> {
        let metadata = fs::symlink_metadata(path).map_err(entry(path))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.folder(path, name, &metadata);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(entry(path))?;
            return self.archive.append_link(&mut header(&metadata, 0), name, target).map_err(Error::Archive);
        }
        if kind.is_file() {
            let file = File::open(path).map_err(entry(path))?;
            return self.file(path, name, file);
        }
        let what = match () {
            () if kind.is_socket() => "socket",
            () if kind.is_fifo() => "named pipe",
            () => "device",
        };
        self.notes.push(format!("{} was not copied: it is a {what}", path.display()));
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path, file: File) -> Result<(), Error> {
        let metadata = file.metadata().map_err(entry(path))?;
        let size = metadata.len();
        if size <= READ_AHEAD {
            let mut content = Vec::new();
            let most = if size == 0 { READ_AHEAD } else { size };
            (&file).take(most).read_to_end(&mut content).map_err(entry(path))?;
            let mut header = header(&metadata, content.len() as u64);
            return self.archive.append_data(&mut header, name, &content[..]).map_err(Error::Archive);
        }
        let mut reader = Exact { file, left: size, missing: 0, failure: None };
        let sent = self.archive.append_data(&mut header(&metadata, size), name, &mut reader);
        if let Some(source) = reader.failure {
            return Err(Error::Entry { path: path.to_owned(), source });
        }
        sent.map_err(Error::Archive)?;
        if reader.missing > 0 {
            let note = format!("{} shrank while it was copied: the last {} bytes of the copy are zeros", path.display(), reader.missing);
            self.notes.push(note);
        }
        Ok(())
    }
}

fn header(metadata: &Metadata, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    header.set_size(size);
    header
}

/// Exactly the promised number of bytes of a file; what it no longer has is zeros.
struct Exact {
    file: File,
    left: u64,
    missing: u64,
    /// Why it could not be read.
    failure: Option<io::Error>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let read = match self.file.read(buffer) {
            Ok(0) => {
                buffer.fill(0);
                self.missing += most as u64;
                most
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                return Err(kind.into());
            }
        };
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::*;

    /// The entries of an archive with what they hold or lead to.
    fn entries(archive: &[u8]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let mut text = String::new();
            match entry.link_name().expect("a name") {
                Some(target) => text = format!("-> {}", target.display()),
                None => drop(entry.read_to_string(&mut text).expect("text")),
            }
            found.insert(entry.path().expect("a path").display().to_string(), text);
        }
        found
    }

    #[test]
    fn links_inside_a_folder_stay_links_and_the_named_one_is_followed() {
        let folder = tempfile::tempdir().expect("makes");
        fs::create_dir(folder.path().join("logs")).expect("makes");
        fs::write(folder.path().join("logs/app-2.log"), "two").expect("writes");
        symlink("app-2.log", folder.path().join("logs/current.log")).expect("links");
        symlink("/etc", folder.path().join("logs/absolute")).expect("links");
        symlink("logs", folder.path().join("named")).expect("links");
        let mut archive = Vec::new();
        let notes = pack(&folder.path().join("named"), &mut archive).expect("packs");
        let wanted = [("data", ""), ("data/absolute", "-> /etc"), ("data/app-2.log", "two"), ("data/current.log", "-> app-2.log")];
        assert_eq!(entries(&archive), wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(notes, Vec::<String>::new());
        let mut archive = Vec::new();
        pack(&folder.path().join("logs/current.log"), &mut archive).expect("packs");
        assert_eq!(entries(&archive), [("data".to_owned(), "two".to_owned())].into());
    }

    #[test]
    fn a_file_that_grows_while_it_is_packed_has_the_length_that_it_had() {
        struct Growing(Vec<u8>, PathBuf);
        impl Write for Growing {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                fs::OpenOptions::new().append(true).open(&self.1)?.write_all(b"more")?;
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = tempfile::tempdir().expect("makes");
        let file = folder.path().join("live.log");
        fs::write(&file, "x".repeat(3 << 20)).expect("writes");
        let mut to = Growing(Vec::new(), file.clone());
        let notes = pack(&file, &mut to).expect("packs");
        assert_eq!(entries(&to.0)["data"].len(), 3 << 20);
        assert_eq!(notes, Vec::<String>::new());
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_packed_keeps_the_archive_whole_and_is_told() {
        struct Shrinking(Vec<u8>, PathBuf);
        impl Write for Shrinking {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if self.0.len() > 1 << 20 {
                    fs::OpenOptions::new().write(true).open(&self.1)?.set_len(100)?;
                }
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = tempfile::tempdir().expect("makes");
        let file = folder.path().join("a.log");
        fs::write(&file, "x".repeat(3 << 20)).expect("writes");
        fs::write(folder.path().join("b.log"), "whole").expect("writes");
        let mut to = Shrinking(Vec::new(), file);
        let notes = pack(folder.path(), &mut to).expect("packs");
        let found = entries(&to.0);
        assert_eq!((found["data/a.log"].len(), found["data/b.log"].as_str()), (3 << 20, "whole"));
        assert!(notes.len() == 1 && notes[0].contains("a.log shrank while it was copied"), "{notes:?}");
    }

    #[test]
    fn what_is_no_file_is_left_out_and_told() {
        let folder = tempfile::tempdir().expect("makes");
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("s.sock")).expect("binds");
        let mut archive = Vec::new();
        let notes = pack(folder.path(), &mut archive).expect("packs");
        assert_eq!(entries(&archive).into_keys().collect::<Vec<_>>(), ["data"]);
        assert!(notes[0].ends_with("s.sock was not copied: it is a socket"), "{notes:?}");
    }
}
