//! The sequence as a script, for machines that nobody can reach before they have joined: a cloud runs it when the machine
//! starts. With nothing but the bootstrap payload it fetches the agent from the head, by digest, and starts it.

use std::path::{Path, PathBuf};

use cloudtik_model::bootstrap::Bootstrap;

use super::{AGENT, Layout, systemd};

const TEMPLATE: &str = include_str!("user_data.sh");
/// Seconds without any progress after which the script gives up: a node that has not come by then is replaced.
const PATIENCE: u32 = 300;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the bootstrap payload of {node} names no agent that the head serves")]
    NoAgent { node: String },
    #[error("the bootstrap payload cannot be written")]
    Payload(#[source] serde_json::Error),
    #[error("{value:?} cannot stand in a script")]
    Unquotable { value: String },
    #[error("the directory {} is not absolute", .0.display())]
    Relative(PathBuf),
}

/// The script for one machine, which becomes the node of the payload below `root`. It holds the payload's join token.
pub fn script(bootstrap: &Bootstrap, root: &Path) -> Result<String, Error> {
    let Bootstrap { cluster, node, generation, head, ca, token, agents, .. } = bootstrap;
    if agents.is_empty() {
        return Err(Error::NoAgent { node: node.to_string() });
    }
    if root.is_relative() {
        return Err(Error::Relative(root.to_owned()));
    }
    // In options of curl and wget, where quoting differs.
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if let Some(value) = [token.as_str(), node.as_str()].into_iter().find(|text| !plain(text)) {
        return Err(Error::Unquotable { value: value.to_owned() });
    }
    let layout = Layout::of_machine(root);
    let cases: Vec<String> =
        agents.iter().map(|agent| format!("\"Linux {}\") sha256={} size={} ;;", agent.arch, agent.sha256, agent.size)).collect();
    let payload = serde_json::to_string(bootstrap).map_err(Error::Payload)?;
    // As it stands in every payload of this node, wherever that was written.
    let identity = format!("\"cluster\":\"{cluster}\",\"node\":\"{node}\",\"generation\":{generation},");
    let values = [
        ("@HEAD@", quoted(head)?),
        ("@ROOT@", quoted(&root.display().to_string())?),
        ("@PATIENCE@", PATIENCE.to_string()),
        ("@AGENTS@", cases.join("\n")),
        ("@IDENTITY@", quoted(&identity)?),
        ("@NAME@", format!("{node}, generation {generation}, of {cluster}")),
        ("@TOKEN@", token.clone()),
        ("@NODE@", node.to_string()),
        ("@GENERATION@", generation.to_string()),
        ("@CA@", ca.trim_end().to_owned()),
        ("@UNIT@", systemd::unit(&layout.program(AGENT), &layout.home).trim_end().to_owned()),
        // Last: what is in it is not looked at.
        ("@BOOTSTRAP@", payload),
    ];
    Ok(values.iter().fold(TEMPLATE.to_owned(), |text, (name, value)| text.replace(name, value)))
}

/// A word of the shell.
fn quoted(text: &str) -> Result<String, Error> {
    let unquotable = || Error::Unquotable { value: text.to_owned() };
    if text.contains('\n') {
        return Err(unquotable());
    }
    shlex::try_quote(text).map(std::borrow::Cow::into_owned).map_err(|_| unquotable())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use cloudtik_model::program::{AgentProgram, Architecture, Digest};
    use cloudtik_model::{Generation, NodeId};

    use super::*;
    use crate::conformance;

    fn payload() -> Bootstrap {
        let request =
            conformance::request(&NodeId::new("w1").expect("valid"), Generation(1), "10.0.0.1:8470", "-----BEGIN CERTIFICATE-----\n");
        let agent = |arch, byte| AgentProgram { arch, sha256: Digest::of_bytes(&[byte; 32]), size: 4_000_000 };
        let agents = vec![agent(Architecture::X86_64, 1), agent(Architecture::Aarch64, 2)];
        Bootstrap { agents, ..request.bootstrap }
    }

    #[test]
    fn the_script_is_small_and_one_of_the_shell() {
        let root = Path::new("/opt/it's $HOME \"here\"");
        let text = script(&payload(), root).expect("renders");
        // What clouds take as user data, with room for what a provider adds.
        assert!(text.len() < 12_000, "{} bytes", text.len());
        let names = ["HEAD", "ROOT", "PATIENCE", "AGENTS", "IDENTITY", "NAME", "TOKEN", "NODE", "GENERATION", "CA", "UNIT", "BOOTSTRAP"];
        let left: Vec<_> = names.iter().filter(|name| text.contains(&format!("@{name}@"))).collect();
        assert_eq!(left, Vec::<&&str>::new());
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("script");
        std::fs::write(&path, &text).expect("writes");
        let checked = Command::new("/bin/sh").arg("-n").arg(&path).output().expect("runs");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        // The root reaches the script as it is.
        let begin = text.lines().find(|line| line.starts_with("root=")).expect("it has a root");
        let said = Command::new("/bin/sh").arg("-c").arg(format!("{begin}; printf %s \"$root\"")).output().expect("runs").stdout;
        assert_eq!(String::from_utf8_lossy(&said), root.display().to_string());
        let case = format!("\"Linux aarch64\") sha256={} size=4000000 ;;", "02".repeat(32));
        assert!(text.contains(&case), "{text}");
    }

    #[test]
    fn what_cannot_be_a_script_is_refused() {
        let root = Path::new("/opt/cloudtik");
        let refused = |change: fn(&mut Bootstrap), root: &Path| {
            let mut payload = payload();
            change(&mut payload);
            script(&payload, root).expect_err("refused")
        };
        assert!(matches!(refused(|b| b.agents.clear(), root), Error::NoAgent { .. }));
        assert!(matches!(refused(|b| b.token = "a\" b".to_owned(), root), Error::Unquotable { .. }));
        assert!(matches!(refused(|b| b.head = "h:1\nrm".to_owned(), root), Error::Unquotable { .. }));
        assert!(matches!(refused(|_| {}, Path::new("relative")), Error::Relative(_)));
    }
}
