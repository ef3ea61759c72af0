//! This machine, reached by its own system calls.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_trait::async_trait;
use cloudtik_files::{create_private_directory_in_place, write_atomically};
use cloudtik_model::program::Digest;
use nix::sys::statvfs::statvfs;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{MARK, inherited_environment};
use crate::machine::{Command, Content, Entry, Machine, Output, Transport, TransportError, digest_of};

/// Where systemd is known by, where it runs the machine: sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";

/// This machine. What it runs gets the part of this process's environment that nodes get.
#[derive(Debug, Clone, Default)]
pub struct LocalTransport {
    /// What runs there belongs to the node in this directory.
    node: Option<PathBuf>,
}

impl LocalTransport {
    /// What is run belongs to the node whose directory this is, and runs in it.
    pub fn of_node(home: &Path) -> Self {
        Self { node: Some(home.to_owned()) }
    }

    fn command(&self, command: &Command) -> tokio::process::Command {
        let mut prepared = tokio::process::Command::new(&command.program);
        prepared.args(&command.arguments).env_clear().envs(inherited_environment()).stdin(Stdio::null());
        if let Some(home) = &self.node {
            prepared.env(MARK, home).current_dir(home);
        }
        prepared
    }
}

/// Does work on files, which may block, on a thread where it holds up nothing.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, TransportError> {
    let owned = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&owned)).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|source| TransportError::File {
        operation,
        path: path.to_owned(),
        source,
    })
}

fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn look(root: &Path, programs: &Path) -> io::Result<Machine> {
    let mut entries = Vec::new();
    for entry in unless_missing(fs::read_dir(programs))?.into_iter().flatten() {
        let entry = entry?;
        let leads_to = fs::read_link(entry.path()).ok().map(|target| target.to_string_lossy().into_owned());
        entries.push(Entry { name: entry.file_name().to_string_lossy().into_owned(), leads_to });
    }
    let has_root = root.is_dir();
    let free = if has_root { statvfs(root).map(|found| found.blocks_available() * found.fragment_size())? } else { 0 };
    Ok(Machine {
        system: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        free,
        has_systemd: Path::new(SYSTEMD).is_dir(),
        has_root,
        entries,
    })
}

/// What is put beside a path before it takes its place.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

/// A program is shared where it can be: a file has one content for all its names, and replacing one name leaves the others.
fn share_or_copy(file: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let new = beside(path);
    unless_missing(fs::remove_file(&new))?;
    let has_mode = fs::metadata(file)?.permissions().mode() & mode == mode;
    // Another file system, somebody else's file, or as many names as a file may have.
    let is_shared = has_mode && fs::hard_link(file, &new).is_ok();
    let placed = (|| {
        if !is_shared {
            fs::copy(file, &new)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
            fs::File::open(&new)?.sync_all()?;
        }
        fs::rename(&new, path)?;
        // Names of one file are not renamed over each other.
        unless_missing(fs::remove_file(&new)).map(drop)
    })();
    if placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed
}

fn link(target: &str, path: &Path) -> io::Result<()> {
    let new = beside(path);
    unless_missing(fs::remove_file(&new))?;
    symlink(target, &new)?;
    fs::rename(&new, path)
}

fn is_running(program: &Path) -> io::Result<bool> {
    let Some(program) = unless_missing(program.canonicalize())? else { return Ok(false) };
    for entry in fs::read_dir("/proc")? {
        // Others' processes cannot be looked at, and run nothing of ours.
        let runs = entry.and_then(|entry| fs::read_link(entry.path().join("exe")));
        if runs.is_ok_and(|runs| runs == program) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a stream to its end and keeps its beginning.
async fn keep(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let Some(mut stream) = stream else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    (&mut stream).take(limit as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[async_trait]
impl Transport for LocalTransport {
    async fn inspect(&self, root: &Path, programs: &Path) -> Result<Machine, TransportError> {
        let programs = programs.to_owned();
        blocking("look at", root, move |root| look(root, &programs)).await
    }

    async fn put(&self, path: &Path, content: Content<'_>, mode: u32) -> Result<(), TransportError> {
        let directory = |path: &Path| match path.parent() {
            Some(parent) if !parent.exists() => create_private_directory_in_place(parent),
            _ => Ok(()),
        };
        match content {
            Content::File(file) => {
                let file = file.to_owned();
                blocking("write", path, move |path| directory(path).and_then(|()| share_or_copy(&file, path, mode))).await
            }
            Content::Bytes(bytes) => {
                let bytes = bytes.to_owned();
                blocking("write", path, move |path| directory(path).and_then(|()| write_atomically(path, &bytes, mode))).await
            }
            Content::Link(target) => {
                let target = target.to_owned();
                blocking("write", path, move |path| directory(path).and_then(|()| link(&target, path))).await
            }
        }
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), TransportError> {
        let from = from.to_owned();
        let rename = move |to: &Path| {
            fs::rename(&from, to)?;
            // Two names of one file are not renamed over each other.
            unless_missing(fs::remove_file(&from)).map(drop)
        };
        blocking("rename a file to", to, rename).await
    }

    async fn remove(&self, path: &Path) -> Result<(), TransportError> {
        blocking("remove", path, |path| unless_missing(fs::remove_file(path)).map(drop)).await
    }

    async fn digest(&self, path: &Path) -> Result<Option<Digest>, TransportError> {
        blocking("read", path, |path| unless_missing(digest_of(path))).await
    }

    async fn is_running(&self, path: &Path) -> Result<bool, TransportError> {
        blocking("find the processes that run", path, is_running).await
    }

    async fn read(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, TransportError> {
        let read = move |path: &Path| {
            let Some(file) = unless_missing(fs::File::open(path))? else { return Ok(None) };
            let mut text = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, limit as u64 + 1), &mut text)?;
            Ok(Some(text))
        };
        match blocking("read", path, read).await? {
            Some(text) if text.len() > limit => Err(TransportError::TooLarge { path: path.to_owned(), limit }),
            text => Ok(text),
        }
    }

    async fn run(&self, command: &Command) -> Result<Output, TransportError> {
        let program = command.program.clone();
        let failed = |source| TransportError::Command { program: program.clone(), source };
        let mut prepared = self.command(command);
        let mut child = prepared.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().map_err(failed)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let ends = async { tokio::try_join!(child.wait(), keep(out, command.output), keep(err, command.output)) };
        match tokio::time::timeout(command.deadline, ends).await {
            Ok(ended) => ended.map(|(status, stdout, stderr)| Output { status, stdout, stderr }).map_err(failed),
            // Dropping it kills it.
            Err(_) => Err(TransportError::Timeout { program: program.clone(), after: command.deadline }),
        }
    }

    async fn start(&self, command: &Command) -> Result<(), TransportError> {
        let program = command.program.clone();
        let failed = |source| TransportError::Command { program: program.clone(), source };
        let mut prepared = self.command(command);
        let status = prepared.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).status();
        let status = match tokio::time::timeout(command.deadline, status).await {
            Ok(status) => status.map_err(failed)?,
            Err(_) => return Err(TransportError::Timeout { program, after: command.deadline }),
        };
        if status.success() {
            return Ok(());
        }
        let said = self.node.as_ref().map_or_else(String::new, |home| format!("see {}", home.join("agent.log").display()));
        Err(TransportError::Ended { program, status, said })
    }

    fn shares_files(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn files_take_the_place_of_others_whole_and_programs_are_shared() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        let (transport, path) = (LocalTransport::default(), at("bin/program"));
        fs::write(at("source"), "#!/bin/sh\n").expect("writes");
        fs::set_permissions(at("source"), fs::Permissions::from_mode(0o755)).expect("sets");
        transport.put(&path, Content::File(&at("source")), 0o700).await.expect("puts");
        let inode = |path: &Path| fs::metadata(path).expect("there").ino();
        assert_eq!(inode(&path), inode(&at("source")), "one file");
        assert_eq!(fs::metadata(at("bin")).expect("there").permissions().mode() & 0o777, 0o700);
        transport.put(&path, Content::File(&at("source")), 0o700).await.expect("puts again");
        transport.put(&at("bin/other"), Content::File(&at("source")), 0o700).await.expect("puts");
        transport.rename(&at("bin/other"), &path).await.expect("renames over another name of the file");
        assert_eq!(fs::read_dir(at("bin")).expect("lists").count(), 1, "nothing is left beside it");
        // One that could not be executed is copied.
        fs::set_permissions(at("source"), fs::Permissions::from_mode(0o600)).expect("sets");
        transport.put(&at("bin/other"), Content::File(&at("source")), 0o700).await.expect("puts");
        assert_ne!(inode(&at("bin/other")), inode(&at("source")));
        assert_eq!(fs::metadata(at("bin/other")).expect("there").permissions().mode() & 0o777, 0o700);

        transport.put(&at("bin/link"), Content::Link("program"), 0o700).await.expect("links");
        transport.put(&at("bin/link"), Content::Link("other"), 0o700).await.expect("links anew");
        transport.put(&at("bin/secret"), Content::Bytes(b"token"), 0o600).await.expect("writes");
        let machine = transport.inspect(directory.path(), &at("bin")).await.expect("looks");
        assert_eq!(machine.entry("link").and_then(|entry| entry.leads_to.as_deref()), Some("other"));
        assert_eq!((machine.entries.len(), machine.has_root, machine.free > 0), (4, true, true));
        assert!(transport.put(&at("a/b/c"), Content::Bytes(b""), 0o600).await.is_err(), "no more than its directory is made");
        assert_eq!(transport.read(&at("bin/secret"), 5).await.expect("reads").as_deref(), Some(b"token".as_slice()));
        assert!(matches!(transport.read(&at("bin/secret"), 4).await, Err(TransportError::TooLarge { .. })));
        assert_eq!(transport.read(&at("missing"), 4).await.expect("looks"), None);
        assert_eq!(transport.digest(&at("missing")).await.expect("looks"), None);
        transport.remove(&at("missing")).await.expect("it is gone");
    }

    #[tokio::test]
    async fn commands_have_a_deadline_and_their_output_a_limit() {
        let transport = LocalTransport::default();
        let shell = |script: &str| Command { output: 8, ..Command::new("/bin/sh", ["-c", script]) };
        let ran = transport.run(&shell("yes | head -c 1000000; echo why >&2; exit 3")).await.expect("runs");
        assert_eq!(
            (ran.status.code(), ran.stdout.as_slice(), ran.stderr.as_slice()),
            (Some(3), b"y\ny\ny\ny\n".as_slice(), b"why\n".as_slice())
        );
        assert_eq!(ran.succeeded("sh").expect_err("it failed").to_string(), "sh ended with exit status: 3: why");
        let endless = Command { deadline: Duration::from_millis(50), ..shell("exec sleep 1000") };
        assert!(matches!(transport.run(&endless).await, Err(TransportError::Timeout { .. })));
        assert!(matches!(transport.start(&endless).await, Err(TransportError::Timeout { .. })));
        assert!(matches!(transport.start(&shell("exit 1")).await, Err(TransportError::Ended { .. })));
        let missing = transport.run(&Command::new("/nonexistent/program", [])).await;
        assert!(matches!(missing, Err(TransportError::Command { .. })), "{missing:?}");
    }

    #[tokio::test]
    async fn a_program_that_runs_is_known() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let program = directory.path().join("sleep");
        let transport = LocalTransport::default();
        let sleep = ["/usr/bin/sleep", "/bin/sleep"].iter().map(Path::new).find(|path| path.exists()).expect("there is sleep");
        fs::copy(sleep.canonicalize().expect("it is somewhere"), &program).expect("copies");
        assert!(!transport.is_running(&program).await.expect("looks"));
        let mut running = std::process::Command::new(&program).arg("1000").spawn().expect("runs");
        assert!(transport.is_running(&program).await.expect("looks"));
        running.kill().and_then(|()| running.wait()).expect("ends");
        assert!(!transport.is_running(&program).await.expect("looks"));
        assert!(!transport.is_running(&directory.path().join("missing")).await.expect("looks"));
    }
}
