//! Unpacks what is downloaded, under the name that it is to have here.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
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

impl Error {
    fn of_writing(path: &Path, error: io::Error) -> Self {
        Self::Write(path.to_owned(), system_error(error))
    }
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
/// there already holds stays beside it. What is new appears when it is whole; a failure leaves nothing of it.
pub fn unpack(from: impl Read, target: &Path) -> Result<(), Error> {
    let mut archive = tar::Archive::new(from);
    // Through a link, as `cp` does.
    let target = &target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let part = target.with_file_name(format!(".cloudtik-{}", std::process::id()));
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty());
    let missing: Vec<&Path> = parent.map_or_else(Vec::new, |parent| parent.ancestors().take_while(|p| !p.exists()).collect());
    let unpacked = entries(&mut archive, target, &part).and_then(|is_part| {
        // Nothing is whole before its sender says so.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(Error::Archive)?;
        if is_part { fs::rename(&part, target).map_err(|error| Error::Write(target.clone(), error)) } else { Ok(()) }
    });
    if unpacked.is_err() {
        open_folders(&part);
        let _ = cloudtik_protocol::files::remove_tree(&part);
        // Those that were made for it, from within.
        for folder in missing {
            let _ = fs::remove_dir(folder);
        }
    }
    unpacked
}

/// Unpacks an archive as `part`, or, where `target` is a folder already, into that; says whether it is the former.
fn entries(archive: &mut tar::Archive<impl Read>, target: &Path, part: &Path) -> Result<bool, Error> {
    let mut entries = archive.entries().map_err(Error::Archive)?;
    let first = entries.next().unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")));
    let mut first = first.map_err(Error::Archive)?;
    if let Some(parent) = target.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|error| Error::Write(parent.to_owned(), error))?;
    }
    if !first.header().entry_type().is_dir() {
        if target.is_dir() {
            return Err(Error::IsFolder(target.to_owned()));
        }
        return first.unpack(part).map(|_| true).map_err(|error| Error::of_writing(target, error));
    }
    if target.exists() && !target.is_dir() {
        return Err(Error::IsFile(target.to_owned()));
    }
    let (is_part, into) = if target.is_dir() { (false, target) } else { (true, part) };
    if is_part {
        fs::DirBuilder::new().mode(0o700).create(into).map_err(|error| Error::Write(target.to_owned(), error))?;
    }
    // Folders last and from within: they may not be writable afterwards. One that was there stays as it is.
    let mut folders = Vec::new();
    let unpack = |entry: &mut tar::Entry<'_, _>| {
        let path = entry.path().map_or_else(|_| target.to_owned(), |path| target.join(path.strip_prefix(".").unwrap_or(&path)));
        entry.unpack_in(into).map_err(|error| Error::of_writing(&path, error))
    };
    for entry in entries {
        let mut entry = entry.map_err(Error::Archive)?;
        if !entry.header().entry_type().is_dir() {
            unpack(&mut entry)?;
        } else if !into.join(entry.path().map_err(Error::Archive)?).is_dir() {
            folders.push(entry);
        }
    }
    folders.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut folder in folders {
        unpack(&mut folder)?;
    }
    if is_part {
        // The folder itself is no entry that could be unpacked in it.
        let mode = first.header().mode().map_err(Error::Archive)? & 0o777;
        fs::set_permissions(into, fs::Permissions::from_mode(mode)).map_err(|error| Error::Write(target.to_owned(), error))?;
    }
    Ok(is_part)
}

/// Lets folders that may not be written be emptied.
fn open_folders(path: &Path) {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        return;
    }
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        open_folders(&entry.path());
    }
}

/// What the operating system said, beneath what others made of it.
fn system_error(error: io::Error) -> io::Error {
    fn number(error: &io::Error) -> Option<i32> {
        let mut next = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        let mut found = error.raw_os_error();
        while let Some(inner) = next.filter(|_| found.is_none()) {
            found = inner.downcast_ref::<io::Error>().and_then(number);
            next = inner.source();
        }
        found
    }
    number(&error).map_or(error, io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of a folder with these entries; a name that ends with a slash is a folder's.
    fn archive(entries: &[(&str, u32)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_size(0);
            header.set_entry_type(if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
            archive.append_data(&mut header, name, io::empty()).expect("appends");
        }
        archive.into_inner().expect("an archive")
    }

    struct BreaksOff;
    impl Read for BreaksOff {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    #[test]
    fn folders_that_may_not_be_written_are_unpacked_and_leave_nothing_when_it_fails() {
        let folder = tempfile::tempdir().expect("makes");
        let whole = archive(&[("./", 0o555), ("./inner/", 0o555), ("./inner/a", 0o444)]);
        let target = folder.path().join("deep/er/copy");
        // It breaks off after all entries have come.
        let broken_off = unpack((&whole[..]).chain(BreaksOff), &target);
        assert!(matches!(broken_off, Err(Error::Archive(_))), "{broken_off:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("reads").count(), 0, "nothing is left");
        unpack(&whole[..], &target).expect("unpacks");
        let mode = |path: &str| fs::metadata(target.join(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("inner"), mode("inner/a")), (0o555, 0o555, 0o444));
        open_folders(&target);
        fs::write(target.join("inner/own"), "own").expect("writes");
        unpack(&whole[..], &target).expect("unpacks");
        assert_eq!((mode(""), mode("inner")), (0o700, 0o700), "what was there stays as it was");
        assert!(target.join("inner/own").exists());
        // It cannot be written as a whole: a file stands in the way of a folder.
        fs::write(folder.path().join("file"), "").expect("writes");
        let failed = unpack(&whole[..], &folder.path().join("file/new/copy"));
        let said = failed.map_err(|error| cloudtik_protocol::logging::chain(&error)).expect_err("fails");
        assert!(said.contains("cannot write") && said.contains("Not a directory"), "{said}");
    }
}
