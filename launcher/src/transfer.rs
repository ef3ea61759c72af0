//! `upload` and `download`: files and folders to and from a node, as archives through a session. They are copied and named as
//! `cp -r` does.

mod pack;
mod unpack;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use tokio::sync::mpsc;

use crate::cli::Target;
use crate::client::Client;
use crate::failure::{FAILED, Failure, INTERRUPTED, NOT_FOUND, USAGE, chain};
use crate::output::Printer;
use crate::session::{Input, Session};

/// Blocks of an archive that wait between the network and the disk.
const QUEUE: usize = 16;
const BLOCK: usize = 64 << 10;

/// Puts an archive of one entry, `data`, where `$1` says, and prints where that was. `$2` is the name of what was uploaded, `$3`
/// says whether it is a file or a folder. Beside its place first: what breaks off on the way leaves nothing that looks whole.
const PLACE: &str = r#"
case $1 in
*/) target=$1$2 ;;
*) if [ -d "$1" ]; then target=$1/$2; else target=$1; fi ;;
esac
if [ -L "$target" ] && real=$(readlink -f -- "$target"); then target=$real; fi
if [ "$3" = folder ] && [ -e "$target" ] && ! [ -d "$target" ]; then
  echo "cannot replace the file $target by a folder" >&2; exit 1
fi
if [ "$3" = file ] && [ -d "$target" ]; then
  echo "cannot replace the folder $target by a file" >&2; exit 1
fi
parent=$(dirname -- "$target")
mkdir -p -- "$parent" && t=$(mktemp -d -- "$parent/.cloudtik-XXXXXX") || exit 1
trap 'rm -rf -- "$t"' EXIT
trap 'exit 1' TERM INT HUP
tar -xf - -C "$t" --no-same-owner || exit 1
if [ -d "$target" ]; then
  tar -cf - -C "$t/data" . | tar -xf - -C "$target" --no-same-owner --no-overwrite-dir || exit 1
else
  mv -fT -- "$t/data" "$target" || exit 1
fi
printf %s "$target"
"#;

/// Prints an archive of the file or of the folder `$1`.
const FETCH: &str = r#"
if [ -d "$1" ]; then exec tar -cf - --warning=no-file-changed -C "$1" .; fi
[ -e "$1" ] || exit 44
[ -f "$1" ] || exit 45
exec tar -chf - --warning=no-file-changed -C "$(dirname -- "$1")" -- "$(basename -- "$1")"
"#;
/// Exit statuses of [`FETCH`] beside those of GNU tar, for which 1 means that a file changed while it was read.
const MISSING: i32 = 44;
const IS_SPECIAL: i32 = 45;
const CHANGED: i32 = 1;

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

fn script(script: &str, arguments: [&str; 3]) -> What {
    let command = ["sh", "-c", script, "sh"].into_iter().chain(arguments).map(str::to_owned).collect();
    What::Execute(wire::Execute { command, ..Default::default() })
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { FAILED };
    let is_dangling = code == NOT_FOUND && path.is_symlink();
    let why = if is_dangling { "it is a symbolic link to a file that does not exist".to_owned() } else { error.to_string() };
    Failure::new(code, format!("cannot read {}: {why}", path.display()))
}

pub async fn upload(printer: &Printer, cluster: Target<'_>, from: &Path, to: &str, node: Option<String>) -> Result<(), Failure> {
    let metadata = fs::metadata(from).map_err(|e| unreadable(from, &e))?;
    let kind = if metadata.is_dir() { "folder" } else { "file" };
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
    let mut session = Session::open(&client, &node, script(PLACE, [to, &name.to_string_lossy(), kind])).await?;
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
        return Err(Failure::failed(format!("{node}: {}{}", exit.error, complaint.trim())));
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

pub async fn download(printer: &Printer, cluster: Target<'_>, from: &str, to: &Path, node: Option<String>) -> Result<(), Failure> {
    let target = target_of(to, Path::new(from).file_name());
    let client = Client::connect(cluster).await?;
    let node = node.unwrap_or_else(|| "head".to_owned());
    // Nothing in front of it is taken for an option.
    let path = if from.starts_with('/') { from.to_owned() } else { format!("./{from}") };
    let mut session = Session::open(&client, &node, script(FETCH, [&path, "", ""])).await?;
    let (blocks, receiver) = mpsc::channel(QUEUE);
    let unpacking = {
        let target = target.clone();
        tokio::task::spawn_blocking(move || unpack::unpack(unpack::Receiver::new(receiver), &target))
    };
    let mut complaint = String::new();
    let received = tokio::select! {
        received = receive(&mut session, &blocks, &mut complaint) => received,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(INTERRUPTED, "interrupted")),
    };
    match received {
        Ok(Some(exit)) if exit.code == 0 || exit.code == CHANGED && exit.error.is_empty() => {
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
            let (code, why) = match exit.code {
                MISSING => (NOT_FOUND, format!("there is no file or folder {from}")),
                IS_SPECIAL => (FAILED, format!("{from} is neither a file nor a folder")),
                _ => (FAILED, format!("{}{}", exit.error, complaint.trim())),
            };
            return Err(Failure::new(code, format!("{node}: {why}")));
        }
    }
    drop(blocks);
    unpacking.await.map_err(|e| Failure::failed(e.to_string()))?.map_err(|e| Failure::failed(chain(&e)))?;
    let notes: Vec<String> = complaint.lines().map(str::to_owned).collect();
    done(printer, "downloaded", format!("{node}:{from}"), target.display().to_string(), &notes);
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
