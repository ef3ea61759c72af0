//! Fetching through the ecosystems' own clients: pip, apt, or a URL with its checksum. None of it needs root.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use aws_lc_rs::digest::{Context as Digest, SHA256};
use cloudtik_protocol::files::{create_missing_directories, create_private_directory};
use cloudtik_protocol::pki::hex;
use cloudtik_runtimes::manifest::Part;
use cloudtik_runtimes::planner::{Resolved, Trimming, Wanted};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_stream::StreamExt;

use super::client::{Track, run};
use super::progress::Step;
use super::{apt, blocking, links};

/// Nothing of a download for this long: it is given up, to be tried again.
const STALL: Duration = Duration::from_secs(60);
/// Hears what a fetch does.
pub type Say<'a> = &'a (dyn Fn(Step) + Sync);

/// Fetches software into the empty directory `tree`, using `work` for what is not kept and the file `kept` for what the
/// next attempt can go on from. Fails if it has links that lead to nothing.
pub async fn fetch(wanted: &Wanted, kept: &Path, work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    match &wanted.source {
        Resolved::PipSdist { requirement, parts } => pip_sdist(requirement, parts, work, tree, say).await?,
        Resolved::Pip { requirements } => pip(requirements, work, tree, say).await?,
        Resolved::Apt { packages } => apt::fetch(packages, &wanted.trimming.dangling, work, tree, say).await?,
        Resolved::Url { url, sha256 } => download(url, sha256, kept, work, tree, say).await?,
    }
    finish(wanted, tree).await
}

async fn finish(wanted: &Wanted, tree: &Path) -> anyhow::Result<()> {
    let (trimming, is_complete, tree) = (wanted.trimming.clone(), matches!(wanted.source, Resolved::Apt { .. }), tree.to_owned());
    blocking(move || trim(&trimming, is_complete, &tree)).await
}

/// Changes about unpacked software what the runtime says, and checks its links.
fn trim(trimming: &Trimming, is_complete: bool, tree: &Path) -> anyhow::Result<()> {
    for link in &trimming.links {
        links::make(tree, Path::new(&link.at), Path::new(&link.to)).with_context(|| format!("linking {}", link.at))?;
    }
    for path in &trimming.exclude {
        links::leave_out(&tree.join(path)).with_context(|| format!("leaving {path} out"))?;
    }
    links::check(tree, is_complete, &trimming.dangling)
}

/// Debian's own Python, whatever else is first on the path.
fn python() -> Command {
    let system = Path::new("/usr/bin/python3");
    let with_pip = system.exists() && (Path::new("/usr/lib/python3/dist-packages/pip").exists());
    Command::new(if with_pip { "/usr/bin/python3" } else { "python3" })
}

async fn pip_sdist(requirement: &str, parts: &[Part], work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let (downloads, temporary) = (work.join("downloads"), work.join("tmp"));
    create_private_directory(&downloads)?;
    create_private_directory(&temporary)?;
    let mut pip = python();
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--no-binary", ":all:", "-d"]);
    pip.arg(&downloads).arg(requirement).env("TMPDIR", &temporary).env("PYTHONUNBUFFERED", "1");
    run(pip, "pip", Track::pip(work, true), say).await?;
    let archive = only_file(&downloads)?;
    say(Step::doing("unpacking"));
    let unpacked = work.join("unpacked");
    create_private_directory(&unpacked)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(&unpacked).args(["--no-same-owner", "--strip-components=1", "--wildcards"]);
    tar.args(parts.iter().map(|p| format!("*/{}", p.from.trim_end_matches('/'))));
    run(tar, "tar", Track::Doing("unpacking"), say).await?;
    let (parts, tree, requirement) = (parts.to_vec(), tree.to_owned(), requirement.to_owned());
    blocking(move || {
        for part in parts {
            let to = tree.join(&part.to);
            create_missing_directories(to.parent().unwrap_or(&tree))?;
            fs::rename(unpacked.join(&part.from), &to).with_context(|| format!("{requirement} has no {}", part.from))?;
        }
        Ok(())
    })
    .await
}

fn only_file(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(directory)?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.path()),
        _ => bail!("pip did not download exactly one file"),
    }
}

async fn pip(requirements: &[String], work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let temporary = work.join("tmp");
    create_private_directory(&temporary)?;
    let mut pip = python();
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--target"]);
    pip.arg(tree).args(requirements).env("TMPDIR", &temporary).env("PYTHONUNBUFFERED", "1");
    run(pip, "pip", Track::pip(work, false), say).await.map(drop)
}

async fn download(url: &str, sha256: &str, kept: &Path, work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let name = url.rsplit('/').next().filter(|n| !n.is_empty() && *n != "..").context("the URL names no file")?;
    get(url, kept, say).await?;
    say(Step::doing("verifying"));
    let path = kept.to_owned();
    let got = blocking(move || digest(&path)).await?;
    let path = work.join("download");
    fs::rename(kept, &path)?;
    if got != sha256 {
        bail!("{url} has the SHA-256 {got}, not {sha256}: it is not the file that the runtime names");
    }
    let is_archive = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst"].iter().any(|suffix| name.ends_with(suffix));
    if !is_archive {
        fs::rename(&path, tree.join(name))?;
        return Ok(());
    }
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&path).arg("-C").arg(tree).arg("--no-same-owner");
    run(tar, "tar", Track::Doing("unpacking"), say).await.map(drop)
}

/// Downloads to `path`, going on from what an earlier attempt left there if the server can.
async fn get(url: &str, path: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
    let mut have = file.metadata().await?.len();
    let client = reqwest::Client::builder().connect_timeout(STALL).read_timeout(STALL).build()?;
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(reqwest::header::RANGE, format!("bytes={have}-"));
    }
    let answer = request.send().await?;
    if answer.status() == reqwest::StatusCode::RANGE_NOT_SATISFIABLE {
        // Everything came already; the checksum has the last word.
        return Ok(());
    }
    let answer = answer.error_for_status()?;
    if answer.status() != reqwest::StatusCode::PARTIAL_CONTENT && have > 0 {
        file.set_len(0).await?;
        have = 0;
    }
    let total = answer.content_length().map(|rest| have + rest);
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.with_context(|| format!("the download was interrupted at {have} bytes and will resume from there"))?;
        file.write_all(&chunk).await.context("writing the download")?;
        have += chunk.len() as u64;
        say(Step::Downloading { what: String::new(), done: have, total });
    }
    file.sync_all().await.context("writing the download")
}

fn digest(path: &Path) -> anyhow::Result<String> {
    let (mut file, mut digest, mut buffer) = (fs::File::open(path)?, Digest::new(&SHA256), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(digest.finish().as_ref())),
            n => digest.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// Polls once.
    async fn is_ready_at_once(work: impl Future) -> bool {
        tokio::select! {
            biased;
            _ = work => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn a_tree_of_software_is_looked_through_beside_the_async_threads() {
        let tree = tempfile::tempdir().expect("temporary directory");
        fs::write(tree.path().join("file"), "x").expect("writes");
        for n in 0..2_000 {
            std::os::unix::fs::symlink("file", tree.path().join(format!("link-{n}"))).expect("links");
        }
        let source = Resolved::Apt { packages: vec!["p".to_owned()] };
        let wanted = Wanted { name: "p".to_owned(), source, trimming: Trimming::default() };
        // What computes in its first poll would hold up everything else on the thread.
        let mut finishing = pin!(finish(&wanted, tree.path()));
        assert!(!is_ready_at_once(finishing.as_mut()).await);
        finishing.await.expect("all links lead to something");
        let mut looking = pin!(apt::dangling(tree.path(), &[]));
        assert!(!is_ready_at_once(looking.as_mut()).await);
        assert_eq!(looking.await.expect("looks"), []);
    }
}
