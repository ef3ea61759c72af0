//! Unpacks what is downloaded, under the name that it is to have here.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot replace the folder {} by a file", .0.display())]
    IsFolder(PathBuf),
    #[error("cannot replace the file {} by a folder", .0.display())]
    IsFile(PathBuf),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// The archive is not what it should be, or ended before it was whole.
    #[error("cannot read the archive")]
    Archive(#[source] io::Error),
}

/// An archive as it arrives. An empty block is its end; a channel that closes before is a transfer that broke off.
pub struct Receiver {
    blocks: mpsc::Receiver<Bytes>,
    rest: Bytes,
    is_whole: bool,
}

impl Receiver {
    pub fn new(blocks: mpsc::Receiver<Bytes>) -> Self {
        Self { blocks, rest: Bytes::new(), is_whole: false }
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.is_whole {
            match self.blocks.blocking_recv() {
                Some(block) => (self.is_whole, self.rest) = (block.is_empty(), block),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer broke off")),
            }
        }
        let n = buffer.len().min(self.rest.len());
        buffer[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}

/// Unpacks an archive of one file, or of a folder's content with the folder itself first, as `target`. What a folder that is
/// there already holds stays beside it. What is new appears when it is whole.
pub fn unpack(from: impl Read, target: &Path) -> Result<(), Error> {
    let mut archive = tar::Archive::new(from);
    if let Some(parent) = target.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| Error::Write(parent.to_owned(), error))?;
    }
    // Through a link, as `cp` does.
    let target = &target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let part = target.with_file_name(format!(".{name}.cloudtik-{}", std::process::id()));
    let unpacked = entries(&mut archive, target, &part).and_then(|is_part| {
        // Nothing is whole before its sender says so.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(Error::Archive)?;
        if is_part { fs::rename(&part, target).map_err(|error| Error::Write(target.clone(), error)) } else { Ok(()) }
    });
    if unpacked.is_err() {
        let _ = cloudtik_protocol::files::remove_tree(&part);
    }
    unpacked
}

/// Unpacks an archive as `part`, or, where `target` is a folder already, into that; says whether it is the former.
fn entries(archive: &mut tar::Archive<impl Read>, target: &Path, part: &Path) -> Result<bool, Error> {
    let write = |error| Error::Write(target.to_owned(), error);
    let mut entries = archive.entries().map_err(Error::Archive)?;
    let first = entries.next().unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")));
    let mut first = first.map_err(Error::Archive)?;
    if !first.header().entry_type().is_dir() {
        if target.is_dir() {
            return Err(Error::IsFolder(target.to_owned()));
        }
        return first.unpack(part).map(|_| true).map_err(write);
    }
    if target.exists() && !target.is_dir() {
        return Err(Error::IsFile(target.to_owned()));
    }
    let (is_part, into) = if target.is_dir() { (false, target) } else { (true, part) };
    fs::create_dir_all(into).map_err(write)?;
    // Folders last and from within: they may not be writable afterwards.
    let mut folders = vec![first];
    for entry in entries {
        let mut entry = entry.map_err(Error::Archive)?;
        if entry.header().entry_type().is_dir() {
            folders.push(entry);
        } else {
            entry.unpack_in(into).map_err(write)?;
        }
    }
    folders.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut folder in folders {
        folder.unpack_in(into).map_err(write)?;
    }
    Ok(is_part)
}
