//! What the parts may name and reach, read from the sources and the dependency tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use cloudtik_tests::repository;

/// How code outside `providers/` names the local provider.
const NAMES: [&str; 5] = ["providers::local", "local::", "LocalProvider", "LocalWorkspace", "\"local\" =>"];
/// Packages by which code reaches a clock, chance, files, processes or the network.
const REACHING: [&str; 12] =
    ["tokio", "nix", "rustix", "libc", "mio", "socket2", "hyper", "reqwest", "rand", "getrandom", "cloudtik-files", "cloudtik-protocol"];
/// What the standard library and `jiff` offer of the same.
const REACHING_CALLS: [&str; 15] = [
    "std::fs",
    "std::io",
    "std::process",
    "std::thread",
    "std::env",
    "std::os",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "Instant::now",
    "SystemTime",
    "UNIX_EPOCH",
    "Timestamp::now",
    "Zoned::now",
];

/// The files of Rust below a directory, without tests beside the code.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("reads the sources") {
            let path = entry.expect("reads the sources").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|n| n != "tests.rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The sources below a folder of the repository that contain one of `words`, by their paths in the repository.
fn that_contain(folder: &str, words: &[&str]) -> Vec<String> {
    let root = repository();
    let contains = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("reads a source");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        code.into_iter().any(|line| words.iter().any(|word| line.contains(word)))
    };
    let all = sources(&root.join(folder));
    assert!(!all.is_empty(), "{folder} has no sources");
    let relative = |path: PathBuf| path.strip_prefix(&root).expect("it is below the repository").display().to_string();
    all.into_iter().filter(contains).map(relative).collect()
}

#[test]
fn no_room_but_the_registry_names_a_provider() {
    let folders = ["agent/src", "config/src", "head/brain/src", "head/src", "launcher/src", "protocol", "runtimes/src"];
    let naming: Vec<_> = folders.iter().flat_map(|folder| that_contain(folder, &NAMES)).collect();
    assert_eq!(naming, Vec::<String>::new(), "rooms that name a provider");
}

#[test]
fn the_brain_calls_nothing_that_reaches_out() {
    assert_eq!(that_contain("head/brain/src", &REACHING_CALLS), Vec::<String>::new());
}

#[test]
fn the_brain_depends_on_nothing_that_reaches_out() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--package", "cloudtik-brain", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(repository())
        .output()
        .expect("starts cargo");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let packages = String::from_utf8(tree.stdout).expect("cargo prints text");
    let names: Vec<_> = packages.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"cloudtik-model"), "{names:?}");
    let reaching: Vec<_> = names.into_iter().filter(|name| REACHING.contains(name)).collect();
    assert_eq!(reaching, Vec::<&str>::new());
}
