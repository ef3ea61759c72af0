//! Fetching through the ecosystems' own clients: pip, apt, or a URL with its checksum. None of it needs root.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use aws_lc_rs::digest::{Context as Digest, SHA256};
use cloudtik_protocol::pki::hex;
use cloudtik_runtimes::manifest::Part;
use cloudtik_runtimes::planner::Resolved;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_stream::StreamExt;

/// Between two looks at how far a client is.
const LOOK: Duration = Duration::from_millis(500);
/// Nothing of a download for this long: it is given up, to be tried again.
const STALL: Duration = Duration::from_secs(60);
/// Characters of a client's complaint that are passed on.
const MOST_SAID: usize = 300;
/// Lines of a client's complaint that are passed on.
const COMPLAINT: usize = 6;

type Say<'a> = &'a (dyn Fn(&str) + Sync);

/// Fetches `source` into the empty directory `tree`, using `work` for what is not kept and the file `kept` for what the
/// next attempt can go on from.
pub async fn fetch(source: &Resolved, kept: &Path, work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    match source {
        Resolved::PipSdist { requirement, parts } => pip_sdist(requirement, parts, work, tree, say).await,
        Resolved::Pip { requirements } => pip(requirements, work, tree, say).await,
        Resolved::Apt { packages } => apt(packages, work, tree, say).await,
        Resolved::Url { url, sha256 } => download(url, sha256, kept, work, tree, say).await,
    }
}

/// Debian's own Python, whatever else is first on the path.
fn python() -> Command {
    let system = Path::new("/usr/bin/python3");
    let with_pip = system.exists() && (Path::new("/usr/lib/python3/dist-packages/pip").exists());
    Command::new(if with_pip { "/usr/bin/python3" } else { "python3" })
}

async fn pip_sdist(requirement: &str, parts: &[Part], work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let (downloads, temporary) = (work.join("downloads"), work.join("tmp"));
    fs::create_dir(&downloads)?;
    fs::create_dir(&temporary)?;
    let mut pip = python();
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--no-binary", ":all:", "-d"]);
    pip.arg(&downloads).arg(requirement).env("TMPDIR", &temporary);
    run(pip, "pip", work, "downloading", say).await?;
    let archive = only_file(&downloads)?;
    say("unpacking");
    let unpacked = work.join("unpacked");
    fs::create_dir(&unpacked)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(&unpacked).args(["--no-same-owner", "--strip-components=1", "--wildcards"]);
    tar.args(parts.iter().map(|p| format!("*/{}", p.from.trim_end_matches('/'))));
    run(tar, "tar", &unpacked, "unpacking", say).await?;
    for part in parts {
        let to = tree.join(&part.to);
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::rename(unpacked.join(&part.from), &to).with_context(|| format!("{requirement} has no {}", part.from))?;
    }
    Ok(())
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
    fs::create_dir(&temporary)?;
    let mut pip = python();
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--target"]);
    pip.arg(tree).args(requirements).env("TMPDIR", &temporary);
    run(pip, "pip", work, "installing", say).await
}

async fn apt(packages: &[String], work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let downloads = work.join("downloads");
    fs::create_dir(&downloads)?;
    let get = |private: bool, arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&downloads).args(["-q", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]);
        if private {
            // Lists of our own, for a user who may not update the system's.
            for (option, path) in [("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")] {
                let path = work.join(path);
                let _ = fs::create_dir_all(path.join("partial"));
                let _ = fs::create_dir_all(path.join("archives/partial"));
                apt.arg("-o").arg(format!("{option}={}", path.display()));
            }
        }
        apt.args(arguments);
        apt
    };
    let mut wanted = vec!["download"];
    wanted.extend(packages.iter().map(String::as_str));
    if run(get(false, &wanted), "apt-get", work, "downloading", say).await.is_err() {
        // The machine's lists are missing or old.
        run(get(true, &["update"]), "apt-get update", work, "reading package lists", say).await?;
        run(get(true, &wanted), "apt-get", work, "downloading", say).await?;
    }
    say("unpacking");
    for entry in fs::read_dir(&downloads)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let mut dpkg = Command::new("dpkg-deb");
            dpkg.arg("-x").arg(&path).arg(tree);
            run(dpkg, "dpkg-deb", work, "unpacking", say).await?;
        }
    }
    relink(tree, tree)
}

/// Makes absolute links that lead to something in the tree relative, since the tree is nobody's root.
fn relink(root: &Path, directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            relink(root, &path)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            let Ok(inside) = target.strip_prefix("/") else { continue };
            if root.join(inside).symlink_metadata().is_err() {
                continue;
            }
            let depth = path.strip_prefix(root)?.components().count() - 1;
            let up: PathBuf = std::iter::repeat_n("..", depth).collect();
            fs::remove_file(&path)?;
            std::os::unix::fs::symlink(up.join(inside), &path)?;
        }
    }
    Ok(())
}

async fn download(url: &str, sha256: &str, kept: &Path, work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let name = url.rsplit('/').next().filter(|n| !n.is_empty() && *n != "..").context("the URL names no file")?;
    get(url, kept, say).await?;
    say("verifying");
    let path = kept.to_owned();
    let got = tokio::task::spawn_blocking(move || digest(&path)).await??;
    let path = work.join("download");
    fs::rename(kept, &path)?;
    if got != sha256 {
        bail!("{url} has the SHA-256 {got}, not {sha256}: it is not what the runtime's author meant");
    }
    let is_archive = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst"].iter().any(|suffix| name.ends_with(suffix));
    if !is_archive {
        fs::rename(&path, tree.join(name))?;
        return Ok(());
    }
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&path).arg("-C").arg(tree).arg("--no-same-owner");
    run(tar, "tar", work, "unpacking", say).await
}

/// Downloads to `path`, going on from what an earlier attempt left there if the server can.
async fn get(url: &str, path: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await?;
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
        let chunk = chunk.with_context(|| format!("the download broke off at {have} bytes and will go on from there"))?;
        file.write_all(&chunk).await.context("writing the download")?;
        have += chunk.len() as u64;
        match total {
            Some(total) if total > 0 => say(&format!("downloading, {} %", have * 100 / total)),
            _ => say(&format!("downloading, {} MiB", have >> 20)),
        }
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

/// Runs a client to its end; an error carries what it complained of last.
async fn run(mut command: Command, name: &str, grows: &Path, doing: &str, say: Say<'_>) -> anyhow::Result<()> {
    // In the head's own process group, so that its shim ends them with a head that is killed.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().with_context(|| format!("cannot run {name}; is it installed?"))?;
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let output = loop {
        tokio::select! {
            output = &mut ended => break output?,
            () = tokio::time::sleep(LOOK) => {
                let size = size_of(grows);
                say(&if size < 1 << 20 { doing.to_owned() } else { format!("{doing}, {} MiB", size >> 20) });
            }
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr }).into_owned();
    let lines: Vec<&str> = complaint.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut last = lines[lines.len().saturating_sub(COMPLAINT)..].join("; ");
    // Clients list everything that there is instead; the end of a complaint says what is wrong.
    if let Some((at, _)) = last.char_indices().rev().nth(MOST_SAID) {
        last = format!("…{}", &last[at..]);
    }
    bail!("{name} ended with {}: {last}", output.status)
}

/// Bytes in a directory, as far as they can be counted while somebody writes there.
fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => size_of(&entry.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}
