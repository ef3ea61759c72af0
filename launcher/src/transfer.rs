//! Files to and from nodes, as archives through a session: what permissions and folders there are is kept.

use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use tokio::sync::mpsc;

use crate::cli::Target;
use crate::client::Client;
use crate::failure::{FAILED, Failure, NOT_FOUND};
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

struct Receiver {
    blocks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.blocks.blocking_recv() {
                Some(block) => self.rest = block,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.rest.len());
        buffer[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}

pub async fn upload(printer: &Printer, cluster: Target<'_>, from: &Path, to: &str, node: Option<String>) -> Result<(), Failure> {
    let metadata = std::fs::metadata(from).map_err(|e| Failure::new(NOT_FOUND, format!("cannot read {}: {e}", from.display())))?;
    let name = from.canonicalize()?.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let client = Client::connect(cluster).await?;
    let node = node.unwrap_or_else(|| "head".to_owned());
    // Beside its place first: what breaks off on the way leaves nothing that looks whole.
    let script = "mkdir -p \"$1\" && t=$(mktemp -d --tmpdir=\"$1\") || exit 1
trap 'rm -rf \"$t\"' EXIT; trap 'exit 1' TERM INT HUP
tar -xf - -C \"$t\" --no-same-owner && tar -cf - -C \"$t\" . | tar -xf - -C \"$1\" --no-same-owner --no-overwrite-dir";
    let command = ["sh", "-c", script, "sh", to].map(str::to_owned).to_vec();
    let mut session = Session::open(&client, &node, What::Execute(wire::Execute { command, ..Default::default() })).await?;
    let (input, from, from_text) = (session.input.clone(), from.to_owned(), from.display().to_string());
    let runtime = tokio::runtime::Handle::current();
    let packing = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let mut archive = tar::Builder::new(io::BufWriter::with_capacity(BLOCK, Sender(input.clone(), runtime.clone())));
        archive.follow_symlinks(false);
        if metadata.is_dir() {
            archive.append_dir_all(&name, &from)?;
        } else {
            archive.append_path_with_name(&from, &name)?;
        }
        archive.into_inner()?.flush()?;
        runtime.block_on(input.tell(Frame::EndOfInput(true)));
        Ok(())
    });
    finish(&mut session).await?;
    packing.await.map_err(|e| Failure::failed(e.to_string()))??;
    done(printer, "uploaded", from_text, format!("{node}:{to}"));
    Ok(())
}

pub async fn download(printer: &Printer, cluster: Target<'_>, from: &str, to: &Path, node: Option<String>) -> Result<(), Failure> {
    let client = Client::connect(cluster).await?;
    let node = node.unwrap_or_else(|| "head".to_owned());
    let path = Path::new(from);
    let (parent, name) = (path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")), path.file_name());
    let name = name.ok_or_else(|| Failure::new(crate::failure::USAGE, format!("{from:?} names no file or folder")))?;
    let command = ["tar", "-cf", "-", "-C", &parent.to_string_lossy(), "--", &name.to_string_lossy()].map(str::to_owned).to_vec();
    let mut session = Session::open(&client, &node, What::Execute(wire::Execute { command, ..Default::default() })).await?;
    let (blocks, receiver) = mpsc::channel(QUEUE);
    let target = to.to_owned();
    std::fs::create_dir_all(&target).map_err(|e| Failure::failed(format!("cannot make {}: {e}", target.display())))?;
    let unpacking =
        tokio::task::spawn_blocking(move || tar::Archive::new(Receiver { blocks: receiver, rest: Bytes::new() }).unpack(target));
    let mut complaint = String::new();
    loop {
        match session.next().await? {
            Frame::Stdout(bytes) => match blocks.send(bytes).await {
                Ok(()) => {}
                // Unpacking failed; it says why below.
                Err(_) => break,
            },
            Frame::Stderr(bytes) => complaint.push_str(&String::from_utf8_lossy(&bytes)),
            Frame::Exit(exit) if exit.code == 0 => break,
            Frame::Exit(exit) => {
                let code = if exit.code == 2 { NOT_FOUND } else { FAILED };
                return Err(Failure::new(code, format!("{node}: {}{}", exit.error, complaint.trim())));
            }
            _ => {}
        }
    }
    drop(blocks);
    unpacking.await.map_err(|e| Failure::failed(e.to_string()))??;
    done(printer, "downloaded", format!("{node}:{from}"), to.display().to_string());
    Ok(())
}

fn done(printer: &Printer, what: &str, from: String, to: String) {
    if printer.is_json() {
        printer.json(&serde_json::json!({ "done": what, "from": from, "to": to }));
    } else {
        printer.say(&format!("{what} to {to}"));
    }
}

async fn finish(session: &mut Session) -> Result<(), Failure> {
    let mut complaint = String::new();
    loop {
        match session.next().await? {
            Frame::Stderr(bytes) => complaint.push_str(&String::from_utf8_lossy(&bytes)),
            Frame::Exit(exit) if exit.code == 0 => return Ok(()),
            Frame::Exit(exit) => return Err(Failure::failed(format!("{}{}", exit.error, complaint.trim()))),
            _ => {}
        }
    }
}
