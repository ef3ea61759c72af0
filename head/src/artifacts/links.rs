//! Symbolic links of unpacked software: they stay inside it, and lead to something.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::bail;
use cloudtik_protocol::files::remove_tree;

/// Links that are named in an error; the rest is counted.
const MAX_NAMED: usize = 12;
/// What every machine has for itself.
const OF_EVERY_MACHINE: [&str; 4] = ["dev", "proc", "run", "sys"];

/// A link that leads to nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dangling {
    /// Relative to the tree.
    pub link: PathBuf,
    /// What it should lead to: relative to the tree if it is in it.
    pub target: PathBuf,
}

/// Makes absolute links that lead to something in the tree relative, since the tree is nobody's root.
pub fn relink(tree: &Path) -> io::Result<()> {
    for (path, target) in links(tree)? {
        let Ok(inside) = target.strip_prefix("/") else { continue };
        if tree.join(inside).symlink_metadata().is_err() {
            continue;
        }
        let depth = path.components().count() - 1;
        let up: PathBuf = std::iter::repeat_n("..", depth).collect();
        let path = tree.join(path);
        fs::remove_file(&path)?;
        std::os::unix::fs::symlink(up.join(inside), &path)?;
    }
    Ok(())
}

/// Makes a link at `at` that leads to `to`, both relative to the tree, in place of what is there.
pub fn make(tree: &Path, at: &Path, to: &Path) -> io::Result<()> {
    let path = tree.join(at);
    leave_out(&path)?;
    fs::create_dir_all(path.parent().unwrap_or(tree))?;
    let up: PathBuf = std::iter::repeat_n("..", at.components().count() - 1).collect();
    std::os::unix::fs::symlink(up.join(to), path)
}

/// Removes a file or directory, if there is one: versions differ in what they have.
pub fn leave_out(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path).map_err(io::Error::other),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The links of a tree that lead to nothing. Where the tree is `complete`, as Debian packages and what they depend on are, a
/// link to the outside leads to nothing even if this machine has a file there: another may not.
pub fn dangling(tree: &Path, complete: bool) -> io::Result<Vec<Dangling>> {
    let mut found = Vec::new();
    for (link, target) in links(tree)? {
        let own = match target.strip_prefix("/") {
            Ok(inside) if inside.components().next().is_some_and(|c| OF_EVERY_MACHINE.iter().any(|own| c.as_os_str() == *own)) => continue,
            Ok(_) if !complete && target.exists() => continue,
            Ok(inside) => inside.to_owned(),
            Err(_) => match inside(&link, &target) {
                Some(inside) if fs::metadata(tree.join(&link)).is_ok() && tree.join(&inside).symlink_metadata().is_ok() => continue,
                Some(inside) => inside,
                None => target,
            },
        };
        found.push(Dangling { link, target: own });
    }
    found.sort();
    Ok(found)
}

/// Fails with the names of the links that lead to nothing, but for those that are known to and harmless.
pub fn check(tree: &Path, complete: bool, known: &[String]) -> anyhow::Result<()> {
    let unknown: Vec<Dangling> = dangling(tree, complete)?.into_iter().filter(|d| !is_known(&d.link, known)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> =
        unknown.iter().take(MAX_NAMED).map(|d| format!("{} -> {}", d.link.display(), d.target.display())).collect();
    if unknown.len() > MAX_NAMED {
        named.push(format!("{} more", unknown.len() - MAX_NAMED));
    }
    let what = if unknown.len() == 1 { "a link leads".to_owned() } else { format!("{} links lead", unknown.len()) };
    let remedy = if complete { "add the packages that have the targets to `apt`, or " } else { "" };
    bail!("{what} to what it does not contain: {}; {remedy}list links that nothing needs in `dangling` of the artifact", named.join(", "))
}

/// Whether a link is listed, itself or by a beginning that ends in `*`.
pub fn is_known(link: &Path, known: &[String]) -> bool {
    known.iter().any(|known| match known.strip_suffix('*') {
        Some(beginning) => link.to_string_lossy().starts_with(beginning),
        None => link == Path::new(known),
    })
}

/// Every symbolic link of a tree, relative to it, with its target.
fn links(tree: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let (mut links, mut pending) = (Vec::new(), vec![tree.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path)?;
                links.push((path.strip_prefix(tree).map_err(io::Error::other)?.to_owned(), target));
            }
        }
    }
    Ok(links)
}

/// The target of a relative link, relative to the tree; none if that is outside.
fn inside(link: &Path, target: &Path) -> Option<PathBuf> {
    let mut path = link.parent().unwrap_or(Path::new("")).to_owned();
    for component in target.components() {
        match component {
            Component::ParentDir if !path.pop() => return None,
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(links: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(tree.path().join("usr/share/app")).expect("makes");
        fs::write(tree.path().join("usr/share/app/file"), "x").expect("writes");
        for (link, target) in links {
            let link = tree.path().join(link);
            fs::create_dir_all(link.parent().expect("below the tree")).expect("makes");
            symlink(target, link).expect("links");
        }
        tree
    }

    #[test]
    fn links_that_lead_to_nothing_are_found_with_what_they_should_lead_to() {
        let tree = tree(&[
            ("usr/share/app/good", "file"),
            ("usr/bin/app", "/usr/share/app/file"),
            ("usr/share/app/jquery", "../javascript/jquery"),
            ("usr/share/app/chain", "jquery"),
            ("etc/store", "/etc/passwd"),
            ("etc/null", "/dev/null"),
            ("up", "../../outside"),
        ]);
        relink(tree.path()).expect("relinks");
        let found = dangling(tree.path(), true).expect("looks");
        let found: Vec<String> = found.iter().map(|d| format!("{} {}", d.link.display(), d.target.display())).collect();
        let expected = [
            "etc/store etc/passwd",
            "up ../../outside",
            "usr/share/app/chain usr/share/app/jquery",
            "usr/share/app/jquery usr/share/javascript/jquery",
        ];
        assert_eq!(found, expected);
        assert_eq!(dangling(tree.path(), false).expect("looks").len(), 3, "this machine has /etc/passwd");
    }

    #[test]
    fn links_are_made_in_place_of_what_is_there() {
        let tree = tree(&[("web/static/lib", "../../nothing")]);
        for at in ["web/static/lib", "web/new/lib", "top"] {
            make(tree.path(), Path::new(at), Path::new("usr/share/app")).expect("links");
            assert_eq!(fs::read_to_string(tree.path().join(at).join("file")).expect("leads there"), "x");
        }
        check(tree.path(), true, &[]).expect("all lead to something");
    }

    #[test]
    fn an_incomplete_tree_is_refused_by_name_unless_the_links_are_known() {
        let tree = tree(&[("lib/a", "nothing"), ("man/b", "nothing"), ("man/c", "nothing")]);
        let known = |known: &[&str]| check(tree.path(), false, &known.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>());
        let error = known(&["man/*"]).expect_err("one is left").to_string();
        assert!(error.starts_with("a link leads to what it does not contain: lib/a -> lib/nothing;"), "{error}");
        assert!(known(&[]).expect_err("all three").to_string().contains("3 links lead"));
        known(&["man/*", "lib/a"]).expect("all are known");
    }
}
