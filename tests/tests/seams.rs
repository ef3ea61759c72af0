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

/// How code tells cases apart by the words of a message, which change without notice. Errors, answers and events have variants.
const READING_MESSAGES: [&str; 5] = ["to_string()", "message", "message()", "sentence()", "description"];
const SEARCHES: [&str; 9] =
    [".contains(", ".starts_with(", ".ends_with(", ".strip_prefix(", ".strip_suffix(", ".find(", ".split(", ".split_once(", " == "];
/// Files that read what other programs print, or formats that have words in them.
const READING_OTHER_PROGRAMS: [&str; 7] = [
    // Tables of nft.
    "providers/virtual/src/bridge.rs",
    // Progress of pip.
    "head/src/artifacts/client.rs",
    // Errors of clap, as they are printed.
    "launcher/src/main.rs",
    // Errors of tar.
    "launcher/src/transfer/scripts.rs",
    // The begin of a private key.
    "protocol/model/src/secret.rs",
    // Roles and grants as certificates name them.
    "protocol/src/pki.rs",
    // What systems and programs call a full disk, where it is shown.
    "protocol/src/logging.rs",
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

/// Whether a line looks into a message, or for a phrase in a text. Names, paths and flags have no blanks.
fn reads_words(line: &str) -> bool {
    let reads_message = READING_MESSAGES.iter().any(|of| {
        let starts = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        line.match_indices(of).filter(|(at, _)| starts(*at)).any(|(at, _)| {
            let rest = &line[at + of.len()..];
            let rest = rest.strip_prefix(".as_str()").unwrap_or(rest);
            // A single character is looked for in what is no message, as in paths.
            SEARCHES
                .iter()
                .any(|search| rest.strip_prefix(search).is_some_and(|found| !found.starts_with('\'') && !found.starts_with("None")))
        })
    });
    let is_phrase = |text: &str| text.split('"').next().is_some_and(|text| text.trim().contains(' ') && text.contains(char::is_alphabetic));
    let searches_phrase = SEARCHES.iter().any(|search| {
        let quoted = |(at, _): (usize, &str)| line[at + search.len()..].strip_prefix('"');
        line.match_indices(search).filter_map(quoted).any(is_phrase)
    });
    reads_message || searches_phrase
}

#[test]
fn no_production_code_compares_or_searches_messages() {
    for found in [
        "let is_silent = message.contains(\"http2 error\");",
        "if error.to_string().starts_with(prefix) {",
        "status.message() == \"no\"",
        "text.split_once(\"because of \")",
        "let denied = |e: &dyn Error| e.to_string().contains(\"Permission denied\");",
    ] {
        assert!(reads_words(found), "{found} is found");
    }
    for other in ["if name.contains(\"cloudtik.pid\") {", "from.to_string().ends_with('/')", "let message = first.to_string();"] {
        assert!(!reads_words(other), "{other} is none");
    }
    let root = repository();
    let mut reading = Vec::new();
    for folder in ["agent/src", "config/src", "head", "launcher/src", "protocol", "providers", "runtimes/src"] {
        for path in sources(&root.join(folder)) {
            let relative = path.strip_prefix(&root).expect("it is below the repository").display().to_string();
            let is_test = relative.contains("/tests/") || relative.contains("/benches/") || relative.contains("/target/");
            if is_test || READING_OTHER_PROGRAMS.contains(&relative.as_str()) {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("reads a source");
            let production = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let code = production.lines().filter(|line| !line.trim_start().starts_with("//"));
            reading.extend(code.filter(|line| reads_words(line)).map(|line| format!("{relative}: {}", line.trim())));
        }
    }
    assert!(reading.is_empty(), "these lines read words, not variants:\n{}", reading.join("\n"));
}

/// Where the state of the brain's components is declared.
const COMPONENTS: [(&str, &str); 7] = [
    ("autoscaler.rs", "Autoscaler"),
    ("cluster.rs", "Cluster"),
    ("effects.rs", "Effects"),
    ("jobs.rs", "Jobs"),
    ("nodes.rs", "Nodes"),
    ("placement.rs", "Placement"),
    ("reconcile.rs", "Reconcile"),
];

/// What is private to a component's room is changed by nothing else: the compiler sees to it, as long as no field is public.
#[test]
fn the_brain_is_made_of_components_with_private_state() {
    let sources = repository().join("head/brain/src");
    let fields = |file: &str, name: &str| {
        let text = std::fs::read_to_string(sources.join(file)).expect("reads a component");
        let begin = text.find(&format!("pub(crate) struct {name}")).unwrap_or_else(|| panic!("{file} has no {name}"));
        let end = text[begin..].find("\n}\n").or_else(|| text[begin..].find(";\n")).expect("it ends");
        text[begin..begin + end].lines().skip(1).map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    for (file, name) in COMPONENTS {
        let public: Vec<_> = fields(file, name).into_iter().filter(|line| line.starts_with("pub")).collect();
        assert!(public.is_empty(), "{name} shows {public:?}");
    }
    let brain = std::fs::read_to_string(sources.join("lib.rs")).expect("reads the brain");
    let begin = brain.find("pub struct Brain {").expect("there is a brain");
    let owned = brain[begin..].lines().skip(1).take_while(|line| *line != "}").filter(|line| !line.trim().starts_with("//")).count();
    assert_eq!(owned, COMPONENTS.len() + 3, "the brain holds components, its configuration, its epoch and its clock, and nothing else");
}
