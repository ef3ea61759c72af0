//! No import circle: the modules of a crate use each other in one direction, so that each can be read, tested and moved with
//! what it stands on alone.
//!
//! Looked at are the modules right below a crate's root. What the root itself offers is everybody's, and a module and those
//! below it are one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cloudtik_tests::repository;

/// Which modules a module uses, and where.
type Uses = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The folders of crates below a directory.
fn crates(directory: &Path, found: &mut Vec<PathBuf>) {
    if directory.join("Cargo.toml").is_file() && directory.join("src").is_dir() {
        found.push(directory.to_owned());
    }
    for entry in fs::read_dir(directory).expect("reads a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && !name.starts_with('.') && !["target", "src", "tests", "benches"].contains(&name.as_str()) {
            crates(&path, found);
        }
    }
    let is_tests = |path: &Path| path.ends_with("tests") && path.join("Cargo.toml").is_file();
    if let Some(tests) = Some(directory.join("tests")).filter(|path| is_tests(path)) {
        crates(&tests, found);
    }
}

/// The files of Rust below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("reads a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without comments and without the tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first names of what a path prefix such as `crate::` leads to: `a` and `b` of `crate::a::X` and `crate::{X, b::{Y, Z}}`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest).to_owned());
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && (letter.is_alphanumeric() || letter == '_') => {
                    found.insert(word(&group[at..]).to_owned());
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// What the modules of a crate use of each other.
fn uses(src: &Path) -> Uses {
    let mut all = Vec::new();
    files(src, &mut all);
    let place = |path: &Path| path.strip_prefix(src).expect("it is below").to_owned();
    let module = |path: &Path| {
        let first = place(path).components().next().expect("a file has a name").as_os_str().to_string_lossy().into_owned();
        first.strip_suffix(".rs").unwrap_or(&first).to_owned()
    };
    let is_root = |path: &Path| ["lib", "main", "tests", "bin"].contains(&module(path).as_str());
    let is_test =
        |path: &Path| path.file_name().is_some_and(|name| name == "tests.rs") || path.components().any(|c| c.as_os_str() == "tests");
    all.retain(|path| !is_root(path) && !is_test(&place(path)));
    let modules: BTreeSet<String> = all.iter().map(|path| module(path)).collect();
    let mut uses = Uses::new();
    for path in &all {
        let (own, code) = (module(path), code(&fs::read_to_string(path).expect("reads a source")));
        let mut names = names_after(&code, "crate::");
        // Right below the root, `super` is the root.
        if place(path).components().count() == 1 {
            names.extend(names_after(&code, "super::"));
        }
        for name in names.into_iter().filter(|name| *name != own && modules.contains(name)) {
            uses.entry(own.clone()).or_default().entry(name).or_default().insert(place(path).display().to_string());
        }
    }
    uses
}

/// The modules that a module leads to, step by step.
fn reached<'u>(uses: &'u Uses, from: &'u str) -> BTreeSet<&'u str> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        for used in uses.get(module).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(used.as_str()) {
                next.push(used);
            }
        }
    }
    reached
}

/// The groups of modules of which each leads to every other.
fn circles(uses: &Uses) -> BTreeSet<BTreeSet<&str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|module| (module.as_str(), reached(uses, module))).collect();
    let leads = |from: &str, to: &str| reached.get(from).is_some_and(|all| all.contains(to));
    let of = |module: &'_ &str| reached[*module].iter().copied().filter(|other| leads(other, module)).collect::<BTreeSet<_>>();
    reached.keys().map(of).filter(|circle| !circle.is_empty()).collect()
}

#[test]
fn a_circle_is_found_and_what_only_looks_like_one_is_not() {
    let of = |module: &str, code: &str| (module.to_owned(), names_after(code, "crate::"));
    let files = [
        of("a", "use crate::b::X;\nfn f() { crate::d::g() }"),
        of("b", "use crate::{\n    Root,\n    c::{Y, a},\n};"),
        of("c", "use crate::a;"),
        of("d", "use othercrate::a::b; use super::a;"),
    ];
    let uses: Uses = files
        .into_iter()
        .map(|(module, names)| (module, names.into_iter().filter(|n| n != "Root").map(|n| (n, BTreeSet::new())).collect()))
        .collect();
    assert_eq!(circles(&uses), BTreeSet::from([BTreeSet::from(["a", "b", "c"])]));
}

#[test]
fn the_modules_of_no_crate_use_each_other_in_a_circle() {
    let root = repository();
    let mut folders = Vec::new();
    crates(&root, &mut folders);
    let mut found = BTreeSet::new();
    let mut said = Vec::new();
    let mut looked = 0;
    for folder in folders {
        let (name, uses) = (folder.strip_prefix(&root).expect("it is below").display().to_string(), uses(&folder.join("src")));
        looked += uses.len();
        for circle in circles(&uses) {
            for from in &circle {
                for (to, files) in uses[*from].iter().filter(|(to, _)| circle.contains(to.as_str())) {
                    said.push(format!("{name}: {from} uses {to} in {files:?}"));
                }
            }
            found.insert((name.clone(), circle.iter().map(|module| (*module).to_owned()).collect::<BTreeSet<_>>()));
        }
    }
    assert!(looked > 100, "{looked} modules use others");
    assert!(found.is_empty(), "\n{}", said.join("\n"));
}
