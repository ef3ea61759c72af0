//! What the machine must have, installed by package name where it is missing.

use std::path::Path;
use std::process::Command;

use crate::run;

/// A Debian package, and how to see that the machine has what is wanted of it.
struct Package {
    name: &'static str,
    why: &'static str,
    is_there: fn() -> bool,
}

const PYTHON: Package = Package { name: "python3", why: "runs PySpark jobs", is_there: || exists("/usr/bin/python3") };
const PIP: Package = Package {
    name: "python3-pip",
    why: "fetches Spark from the Python package index",
    is_there: || exists("/usr/lib/python3/dist-packages/pip"),
};
const COMPILER: Package = Package { name: "build-essential", why: "compiles the cryptography", is_there: || exists("/usr/bin/cc") };
const SETSID: Package = Package { name: "util-linux", why: "gives programs a terminal", is_there: || exists("/usr/bin/setsid") };

const FAKETIME: Package =
    Package { name: "faketime", why: "gives a node under test a wrong clock", is_there: || exists("/usr/bin/faketime") };

const NFTABLES: Package =
    Package { name: "nftables", why: "drops a node's packets in a network of the test's own", is_there: || exists("/usr/sbin/nft") };
const IPROUTE: Package = Package { name: "iproute2", why: "sets that network up", is_there: || exists("/usr/sbin/ip") };
const CHROMIUM: Package = Package { name: "chromium", why: "opens the consoles under test", is_there: || exists("/usr/bin/chromium") };
const DRIVER: Package = Package { name: "chromium-driver", why: "drives that browser", is_there: || exists("/usr/bin/chromedriver") };
const STRACE: Package =
    Package { name: "strace", why: "kills a command under test at each of its changes", is_there: || exists("/usr/bin/strace") };
const CURL: Package = Package { name: "curl", why: "fetches the agent on a bare machine", is_there: || exists("/usr/bin/curl") };
const WGET: Package = Package { name: "wget", why: "fetches it where curl is missing", is_there: || exists("/usr/bin/wget") };

/// To build and run.
const NEEDED: [Package; 4] = [COMPILER, PYTHON, PIP, SETSID];
/// To test, on top.
const TESTED: [Package; 8] = [FAKETIME, NFTABLES, IPROUTE, CHROMIUM, DRIVER, STRACE, CURL, WGET];

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"))
}

/// Installs what running needs and is missing.
pub fn install() -> Result<(), String> {
    install_missing(NEEDED.iter().collect())
}

/// Installs what testing needs and is missing.
pub fn install_for_tests() -> Result<(), String> {
    install_missing(NEEDED.iter().chain(&TESTED).collect())
}

/// Installs what is missing, or says what to install to a user who may not.
fn install_missing(wanted: Vec<&Package>) -> Result<(), String> {
    let missing: Vec<&Package> = wanted.into_iter().filter(|p| !(p.is_there)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    eprintln!("about to install with apt-get:");
    for package in &missing {
        eprintln!("  {:<18} {}", package.name, package.why);
    }
    if !is_root() {
        return Err(format!("this needs root; ask for it, or run: sudo apt-get install {}", names.join(" ")));
    }
    run(Command::new("apt-get").args(["-q", "update"]))?;
    run(Command::new("apt-get")
        .args(["-q", "install", "--yes", "--no-install-recommends"])
        .args(&names)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}
