//! Debian packages, unpacked without installing them, with whatever their links lead to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cloudtik_protocol::files::remove_tree;
use tokio::process::Command;

use super::client::{Track, run};
use super::fetch::Say;
use super::progress::Step;
use super::{blocking, links, truststore};

/// Unpacks packages into `tree`. Links of theirs may lead into packages that they depend on: those are unpacked too, and what
/// they link to, but no others: a package's libraries are taken from the machine.
pub async fn fetch(packages: &[String], known: &[String], work: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let mut apt = Apt { work, is_private: false, downloads: 0 };
    let mut considered: BTreeSet<String> = packages.iter().cloned().collect();
    let mut new = apt.download(packages, say).await?;
    say(Step::doing("unpacking"));
    for package in &new {
        unpack(package, tree, say).await?;
    }
    loop {
        let missing = dangling(tree, known).await?;
        if missing.iter().any(|d| d.target == Path::new(truststore::JAVA)) {
            // No package has it: it is made when one is installed.
            make_trust_store(&mut apt, tree, say).await?;
            continue;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut needed = Vec::new();
        for package in &new {
            needed.extend(dependencies(package, say).await?.into_iter().filter(|name| considered.insert(name.clone())));
        }
        new = Vec::new();
        for package in apt.download_known(&needed, say).await? {
            let contents = work.join("contents");
            let emptied = contents.clone();
            blocking(move || {
                remove_tree(&emptied)?;
                Ok(fs::create_dir(&emptied)?)
            })
            .await?;
            unpack(&package, &contents, say).await?;
            let targets: Vec<PathBuf> = missing.iter().map(|d| contents.join(&d.target)).collect();
            if blocking(move || Ok(targets.iter().any(|target| target.symlink_metadata().is_ok()))).await? {
                unpack(&package, tree, say).await?;
                new.push(package);
            }
        }
        if new.is_empty() {
            // The check of all sources names what is missing.
            return Ok(());
        }
    }
}

/// Java's trust store from the certificates of `ca-certificates`, which is what installing `ca-certificates-java` does.
async fn make_trust_store(apt: &mut Apt<'_>, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let certificates = apt.work.join("certificates");
    fs::create_dir(&certificates)?;
    for package in apt.download(&["ca-certificates".to_owned()], say).await? {
        unpack(&package, &certificates, say).await?;
    }
    let path = tree.join(truststore::JAVA);
    blocking(move || {
        fs::create_dir_all(path.parent().context("it is in a directory")?)?;
        Ok(fs::write(path, truststore::of_directory(&certificates.join("usr/share/ca-certificates/mozilla"))?)?)
    })
    .await
}

/// The links of a tree that lead to nothing, but for those that are known to, once the others are made relative.
pub(super) async fn dangling(tree: &Path, known: &[String]) -> anyhow::Result<Vec<links::Dangling>> {
    let (tree, known) = (tree.to_owned(), known.to_vec());
    blocking(move || {
        links::relink(&tree)?;
        let mut missing = links::dangling(&tree, true)?;
        missing.retain(|d| !links::is_known(&d.link, &known));
        Ok(missing)
    })
    .await
}

struct Apt<'a> {
    work: &'a Path,
    /// Whether package lists of our own are used: the machine's are missing or old, and a user may not update them.
    is_private: bool,
    /// So many directories of downloads there are.
    downloads: usize,
}

impl Apt<'_> {
    /// Downloads packages; every one must be there.
    async fn download(&mut self, packages: &[String], say: Say<'_>) -> anyhow::Result<Vec<PathBuf>> {
        if !self.is_private {
            if let Ok(files) = self.attempt(packages, say).await {
                return Ok(files);
            }
            self.is_private = true;
            run(self.command(self.work, &["update"]), "apt-get update", Track::Doing("reading package lists"), say).await?;
        }
        self.attempt(packages, say).await
    }

    /// Downloads those of the packages that there are: what is depended on may have a name that others provide.
    async fn download_known(&mut self, packages: &[String], say: Say<'_>) -> anyhow::Result<Vec<PathBuf>> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        if let Ok(files) = self.attempt(packages, say).await {
            return Ok(files);
        }
        let mut files = Vec::new();
        for package in packages {
            files.extend(self.attempt(std::slice::from_ref(package), say).await.unwrap_or_default());
        }
        Ok(files)
    }

    async fn attempt(&mut self, packages: &[String], say: Say<'_>) -> anyhow::Result<Vec<PathBuf>> {
        self.downloads += 1;
        let directory = self.work.join(format!("downloads-{}", self.downloads));
        fs::create_dir(&directory)?;
        let arguments = |options: &[&'static str]| -> Vec<String> {
            ["download"].iter().chain(options).map(|o| (*o).to_owned()).chain(packages.iter().cloned()).collect()
        };
        let addresses = run(self.command(&directory, &arguments(&["--print-uris"])), "apt-get", Track::Doing("looking for it"), say);
        let total = total_of(&addresses.await?);
        let track = Track::Files { directory: directory.clone(), total };
        run(self.command(&directory, &arguments(&[])), "apt-get", track, say).await?;
        let files = fs::read_dir(&directory)?.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect();
        files.sort();
        Ok(files)
    }

    fn command(&self, directory: &Path, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut apt = Command::new("apt-get");
        apt.current_dir(directory).args(["-q", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]);
        if self.is_private {
            for (option, path) in [("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")] {
                let path = self.work.join(path);
                let _ = fs::create_dir_all(path.join("partial"));
                let _ = fs::create_dir_all(path.join("archives/partial"));
                apt.arg("-o").arg(format!("{option}={}", path.display()));
            }
        }
        apt.args(arguments);
        apt
    }
}

async fn unpack(package: &Path, tree: &Path, say: Say<'_>) -> anyhow::Result<()> {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("-x").arg(package).arg(tree);
    run(dpkg, "dpkg-deb", Track::Doing("unpacking"), say).await.map(drop)
}

async fn dependencies(package: &Path, say: Say<'_>) -> anyhow::Result<Vec<String>> {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("-f").arg(package).arg("Depends");
    Ok(names(&run(dpkg, "dpkg-deb", Track::Doing("looking for what it links to"), say).await?))
}

/// The names of a field such as `libc6 (>= 2.34), python3:any, a | b`: of alternatives the first.
fn names(field: &str) -> Vec<String> {
    let name = |text: &str| text.split(['|', '(', ':']).next().unwrap_or_default().trim().to_owned();
    field.split(',').map(name).filter(|name| !name.is_empty()).collect()
}

/// The sizes of `'URL' FILE SIZE CHECKSUM` lines, together.
fn total_of(addresses: &str) -> Option<u64> {
    let lines = addresses.lines().filter(|line| line.starts_with('\''));
    let sizes = lines.map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    sizes.sum::<Option<u64>>().filter(|total| *total > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_debian_are_read() {
        let depends = "adduser, libjs-jquery (>= 3.5.1~), python3:any, debconf (>= 0.5) | debconf-2.0, libc6 (>= 2.34)\n";
        assert_eq!(names(depends), ["adduser", "libjs-jquery", "python3", "debconf", "libc6"]);
        assert_eq!(names("\n"), Vec::<String>::new());
        let addresses = "'http://deb/a.deb' a.deb 1000 SHA256:00\n'http://deb/b.deb' b.deb 24 SHA256:01\n";
        assert_eq!((total_of(addresses), total_of("Reading\n")), (Some(1_024), None));
    }
}
