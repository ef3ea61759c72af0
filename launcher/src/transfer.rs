//! `upload` and `download`: files and folders to and from a node, as archives through a session. They are copied and named as
//! `cp -r` does.

mod pack;
mod scripts;
mod unpack;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::session_frame::Frame;
use tokio::sync::mpsc;

use crate::cli::Target;
use crate::client::Client;
use crate::failure::{FAILED, Failure, INTERRUPTED, NOT_FOUND, USAGE, chain};
use crate::interrupts::Interrupts;
use crate::output::Printer;
use crate::session::{Input, Session};

/// Blocks of an archive that wait between the network and the disk.
const QUEUE: usize = 16;
const BLOCK: usize = 64 << 10;

struct Sender(Input, tokio::runtime::Handle);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block = &bytes[..bytes.len().min(BLOCK)];
        if !self.1.block_on(self.0.send(Bytes::copy_from_slice(block))) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(block.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses a path that says nothing.
fn not_empty(path: &OsStr, hint: &str) -> Result<(), Failure> {
    if path.is_empty() { Err(Failure::new(USAGE, "a path is empty").hint(hint)) } else { Ok(()) }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { FAILED };
    let is_dangling = code == NOT_FOUND && path.is_symlink();
    let why = if is_dangling { "it is a symbolic link to a file that does not exist".to_owned() } else { error.to_string() };
    Failure::new(code, format!("cannot read {}: {why}", path.display()))
}

pub async fn upload(printer: &Printer, cluster: Target<'_>, from: &Path, to: &OsStr, node: Option<String>) -> Result<(), Failure> {
    not_empty(from.as_os_str(), "name a file or folder of this machine; `.` is the current one")?;
    not_empty(to, "name a place on the node; `.` is the node's own directory")?;
    let metadata = fs::metadata(from).map_err(|e| unreadable(from, &e))?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(Failure::new(USAGE, format!("{} is neither a file nor a folder", from.display())));
    }
    let name = match from.file_name() {
        Some(name) => name.to_owned(),
        // Such as `.`.
        None => from.canonicalize().map_err(|e| unreadable(from, &e))?.file_name().unwrap_or_default().to_owned(),
    };
    let client = Client::connect(cluster).await?;
    let node = node.unwrap_or_else(|| "head".to_owned());
    let mut session = Session::open(&client, &node, scripts::place(to, &name, metadata.is_dir())).await?;
    let (sender, path) = (Sender(session.input.clone(), tokio::runtime::Handle::current()), from.to_owned());
    let mut packing = tokio::task::spawn_blocking(move || pack::pack(&path, io::BufWriter::with_capacity(BLOCK, sender)));
    let (mut placed, mut complaint, mut packed) = (Vec::new(), String::new(), None);
    let exit = loop {
        tokio::select! {
            ended = &mut packing, if packed.is_none() => {
                let ended = ended.map_err(|e| Failure::failed(e.to_string()))?;
                if let Err(error @ pack::Error::Entry { .. }) = &ended {
                    // Letting go of the session ends the other end, which removes what it has so far.
                    return Err(Failure::failed(format!("{}; nothing was uploaded", chain(error))));
                }
                session.input.tell(Frame::EndOfInput(true)).await;
                packed = Some(ended);
            }
            next = session.next() => match next? {
                Frame::Stdout(bytes) => placed.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => complaint.push_str(&String::from_utf8_lossy(&bytes)),
                Frame::Exit(exit) => break exit,
                _ => {}
            },
        }
    };
    if exit.code != 0 {
        return Err(scripts::not_placed(&node, &exit, &String::from_utf8_lossy(&placed), &complaint));
    }
    drop(session);
    let packed = match packed {
        Some(packed) => packed,
        // The other end has everything that counts; what was still on its way is the filling at the end.
        None => packing.await.map_err(|e| Failure::failed(e.to_string()))?,
    };
    let notes = packed.unwrap_or_default();
    done(printer, "uploaded", from.display().to_string(), format!("{node}:{}", String::from_utf8_lossy(&placed)), &notes);
    Ok(())
}

pub async fn download(printer: &Printer, cluster: Target<'_>, from: &OsStr, to: &Path, node: Option<String>) -> Result<(), Failure> {
    not_empty(from, "name a file or folder of the node; `.` is the node's own directory")?;
    not_empty(to.as_os_str(), "name a place on this machine; `.` is the current folder")?;
    let target = target_of(to, Path::new(from).file_name());
    let client = Client::connect(cluster).await?;
    let node = node.unwrap_or_else(|| "head".to_owned());
    let mut session = Session::open(&client, &node, scripts::fetch(from)).await?;
    let (blocks, receiver) = mpsc::channel(QUEUE);
    let unpacking = {
        let target = target.clone();
        tokio::task::spawn_blocking(move || unpack::unpack(unpack::Receiver::new(receiver), &target))
    };
    let mut complaint = String::new();
    let mut interrupts = Interrupts::listen()?;
    let received = tokio::select! {
        received = receive(&mut session, &blocks, &mut complaint) => received,
        () = interrupts.next() => Err(Failure::new(INTERRUPTED, "interrupted")),
    };
    match received {
        Ok(Some(exit)) if exit.code == 0 || exit.code == scripts::CHANGED && exit.error.is_empty() => {
            // The end. If unpacking failed, it says why below.
            let _ = blocks.send(Bytes::new()).await;
        }
        // Unpacking failed; it says why below.
        Ok(None) => {}
        other => {
            // It removes what is not whole.
            drop(blocks);
            let _ = unpacking.await;
            let exit = other?.unwrap_or_default();
            return Err(scripts::not_fetched(&node, &exit, from, &complaint));
        }
    }
    drop(blocks);
    unpacking.await.map_err(|e| Failure::failed(e.to_string()))?.map_err(|e| Failure::failed(chain(&e)))?;
    let notes: Vec<String> = complaint.lines().map(str::to_owned).collect();
    done(printer, "downloaded", format!("{node}:{}", from.display()), target.display().to_string(), &notes);
    Ok(())
}

/// Hands an archive on until the program ends; nothing if nobody takes it any more.
async fn receive(session: &mut Session, blocks: &mpsc::Sender<Bytes>, complaint: &mut String) -> Result<Option<wire::Exit>, Failure> {
    loop {
        match session.next().await? {
            Frame::Stdout(bytes) => {
                // An empty block would say that the archive ends.
                if bytes.is_empty() {
                    continue;
                }
                if blocks.send(bytes).await.is_err() {
                    return Ok(None);
                }
            }
            Frame::Stderr(bytes) => complaint.push_str(&String::from_utf8_lossy(&bytes)),
            Frame::Exit(exit) => return Ok(Some(exit)),
            _ => {}
        }
    }
}

/// Where a copy of `name` is to be: in a folder that is there or that ends with a slash, else under the given name.
fn target_of(to: &Path, name: Option<&OsStr>) -> PathBuf {
    match name {
        Some(name) if to.as_os_str().as_bytes().ends_with(b"/") || to.is_dir() => to.join(name),
        _ => to.to_owned(),
    }
}

fn done(printer: &Printer, what: &str, from: String, to: String, notes: &[String]) {
    if printer.is_json() {
        printer.json(&serde_json::json!({ "done": what, "from": from, "to": to, "notes": notes }));
        return;
    }
    for note in notes {
        printer.say(&format!("note: {note}"));
    }
    printer.say(&format!("{what} to {to}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_goes_into_a_folder_and_else_has_the_given_name() {
        let folder = tempfile::tempdir().expect("makes");
        let (there, missing) = (folder.path().to_owned(), folder.path().join("new.txt"));
        let name = Some(OsStr::new("a.txt"));
        assert_eq!(target_of(&there, name), there.join("a.txt"));
        assert_eq!(target_of(&missing, name), missing);
        let with_slash = PathBuf::from(format!("{}/", missing.display()));
        assert_eq!(target_of(&with_slash, name), missing.join("a.txt"));
        assert_eq!(target_of(&there, None), there);
    }
}
