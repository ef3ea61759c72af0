//! Chores: [`HELP`] lists them.
//!
//! Each sets up what it needs on a fresh Debian machine that has Rust, and says what it is about to install before it
//! does. No dependencies, so that it is built in a moment.

mod bench;
mod setup;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
Chores of the project.

  cargo xtask quickstart        set up, build, bring a cluster with Spark up and count words on it
  cargo xtask test              set up, check formatting and lints, run every test
  cargo xtask picture           record a session of the quickstart and draw the README's picture of it
  cargo xtask soak              the simulation's longer run: 10,000 seeds, crashes at every point of 16, a year
  cargo xtask bench footprint   sizes, memory and processor time of the programs
  cargo xtask bench decide      how long decisions about the cluster's size take, up to 10,000 nodes
  cargo xtask bench scale       how soon `cloudtik scale` reaches the provider
  cargo xtask bench fleet       what a head costs for 100, 1,000 and 4,000 agents; --agents N for another number
  cargo xtask bench detect      how soon killed, stopped and cut-off agents are noticed (some minutes)
  cargo xtask bench nodes       what virtual nodes cost: time to make them and memory (root)
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["quickstart"] => quickstart(),
        ["test"] => test(),
        ["picture"] => picture(),
        ["soak"] => soak(),
        ["bench", "footprint"] => bench::footprint(),
        ["bench", "detect"] => bench::detect(),
        ["bench", "nodes"] => bench::nodes(),
        ["bench", "decide"] => bench::decide(),
        ["bench", "scale"] => bench::scale(),
        ["bench", "fleet"] => bench::fleet(None),
        ["bench", "fleet", "--agents", agents] => bench::fleet(Some(agents)),
        ["help" | "--help" | "-h"] | [] => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("there is no chore {:?}\n\n{HELP}", other.join(" "))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The simulated world for longer than the test command has time for: tens of minutes of processor time.
fn soak() -> Result<(), String> {
    let longer = [("CLOUDTIK_SEEDS", "10000"), ("CLOUDTIK_CRASH_SEEDS", "16"), ("CLOUDTIK_DAYS", "365")];
    let tests = ["test", "-p", "cloudtik-simulation", "--test", "seeds", "--test", "year", "--", "--nocapture"];
    run(cargo(&tests).envs(longer))
}

/// The root of the checkout.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ is in the checkout").to_owned()
}

/// Runs a command to its end, showing it first.
fn run(command: &mut Command) -> Result<(), String> {
    let line = describe(command);
    eprintln!("+ {line}");
    let status = command.status().map_err(|e| format!("cannot run {line}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{line}: {status}")) }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(repository());
    command
}

fn build() -> Result<(), String> {
    eprintln!("building the programs (some minutes the first time)");
    run(&mut cargo(&[
        "build",
        "--release",
        "--bins",
        "-p",
        "cloudtik-launcher",
        "-p",
        "cloudtik-head",
        "-p",
        "cloudtik-agent",
        "-p",
        "cloudtik-virtual",
    ]))
}

/// The README's picture: what a session of the quickstart really prints, drawn.
fn picture() -> Result<(), String> {
    setup::install()?;
    build()?;
    eprintln!("Spark and Prometheus are fetched into a directory of the session's own");
    run(&mut cargo(&["run", "--quiet", "-p", "cloudtik-tests", "--example", "picture", "--", "target/release", "docs/session.svg"]))
}

fn quickstart() -> Result<(), String> {
    setup::install()?;
    build()?;
    let cloudtik = repository().join("target/release/cloudtik");
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(&cloudtik);
        command.args(arguments).current_dir(repository());
        command
    };
    eprintln!("the first time, Spark (456 MB) and Prometheus with its console (25 MB) are fetched");
    run(&mut ours(&["up", "examples/quickstart.toml", "--yes", "--timings"]))?;
    run(&mut ours(&["submit", "quickstart", "examples/jobs/wordcount.py", "/usr/share/common-licenses/GPL-3"]))?;
    run(&mut ours(&["status", "quickstart"]))?;
    let path = "target/release/cloudtik";
    println!(
        "
The cluster is up. Look further:
  {path} runtimes quickstart           services, and the addresses of the consoles
  {path} events quickstart -f          what happens, as it happens
  {path} kill-node quickstart w1       and watch it come back with `status`
  {path} why quickstart w1             why it is what it is
  {path} scale quickstart --workers 3
  {path} down quickstart               removes the cluster
  {path} cache clean                   removes the software that was fetched for it"
    );
    Ok(())
}

/// Whether this Rust has a component; one that it lacks is named, never silently passed over.
fn has_component(name: &str) -> bool {
    let there = cargo(&[name, "--version"]).output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("SKIPPED: cargo {name} is not installed (rustup component add {})", if name == "fmt" { "rustfmt" } else { name });
    }
    there
}

fn test() -> Result<(), String> {
    setup::install_for_tests()?;
    if has_component("fmt") {
        run(&mut cargo(&["fmt", "--check"]))?;
    }
    if has_component("clippy") {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))?;
    }
    run(&mut cargo(&["build", "--workspace", "--quiet"]))?;
    eprintln!("the first time, Spark (456 MB), Prometheus and Java are fetched");
    let list = std::env::temp_dir().join(format!("cloudtik-skipped-{}", std::process::id()));
    let result = run(cargo(&["test", "--workspace", "--quiet", "--no-fail-fast"]).env("CLOUDTIK_SKIPPED", &list));
    let skipped = std::fs::read_to_string(&list).unwrap_or_default();
    let _ = std::fs::remove_file(&list);
    for why in skipped.lines() {
        eprintln!("SKIPPED: {why}");
    }
    if !skipped.is_empty() && setup::is_root() {
        return Err("tests were skipped although this is root".to_owned());
    }
    result
}
