//! Archives that are the same wherever and whenever they are made: entries in order, without times or owners.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use cloudtik_protocol::pki::hex;

/// Packs a directory; returns the archive's SHA-256 and its size in bytes.
pub fn pack(tree: &Path, archive: &Path) -> io::Result<(String, u64)> {
    let out = Hashing {
        inner: BufWriter::with_capacity(1 << 20, OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(archive)?),
        digest: Context::new(&SHA256),
        size: 0,
    };
    let mut builder = tar::Builder::new(out);
    for path in paths(tree)? {
        let relative = path.strip_prefix(tree).expect("found below it");
        let metadata = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        let executable = metadata.permissions().mode() & 0o100 != 0;
        header.set_mode(if executable || metadata.is_dir() { 0o755 } else { 0o644 });
        header.set_size(0);
        if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, relative, fs::read_link(&path)?)?;
        } else if metadata.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, relative, io::empty())?;
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(metadata.len());
            builder.append_data(&mut header, relative, File::open(&path)?)?;
        }
    }
    let mut out = builder.into_inner()?;
    out.flush()?;
    out.inner.get_ref().sync_all()?;
    Ok((hex(out.digest.finish().as_ref()), out.size))
}

/// Everything below `tree`, parents before what they contain, in order.
fn paths(tree: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut pending = vec![tree.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all.sort();
    Ok(all)
}

struct Hashing<W> {
    inner: W,
    digest: Context,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digest.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tree_is_the_same_archive() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let make = |name: &str, order: [&str; 2]| {
            let tree = directory.path().join(name);
            fs::create_dir_all(tree.join("bin")).expect("makes");
            for file in order {
                fs::write(tree.join("bin").join(file), file).expect("writes");
            }
            std::os::unix::fs::symlink("bin/a", tree.join("link")).expect("links");
            pack(&tree, &directory.path().join(format!("{name}.tar"))).expect("packs")
        };
        let (first, second) = (make("one", ["a", "b"]), make("two", ["b", "a"]));
        assert_eq!(first, second);
        assert_eq!(first.1, fs::metadata(directory.path().join("one.tar")).expect("there").len());
    }
}
