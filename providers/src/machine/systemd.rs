//! The agent as a service of systemd (systemd.service(5)).

use std::path::{Path, PathBuf};

/// Where a unit's file goes.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/etc/systemd/system/{name}.service"))
}

/// The text of the agent's unit. What the agent runs outlives it, so only the agent itself is ended with the unit.
pub fn unit(agent: &Path, home: &Path) -> String {
    let (agent, home) = (word(agent), word(home));
    format!(
        "[Unit]\nDescription=CloudTik agent\nAfter=network-online.target\nWants=network-online.target\nStartLimitIntervalSec=0\n\n\
         [Service]\nType=notify\nExecStart={agent} run --home {home}\nRestart=always\nRestartSec=1\nWatchdogSec=60\nKillMode=process\n\
         TimeoutStopSec=15\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

/// One word of a command line, in which systemd expands nothing.
fn word(path: &Path) -> String {
    let mut word = String::from("\"");
    for character in path.display().to_string().chars() {
        match character {
            '"' | '\\' => word.extend(['\\', character]),
            '%' | '$' => word.extend([character, character]),
            other => word.push(other),
        }
    }
    word.push('"');
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_its_programs_literally_and_ends_nothing_but_the_agent() {
        let text = unit(Path::new("/opt/100% \"$X\"/bin/cloudtik-agent"), Path::new("/opt/node"));
        assert!(text.contains("ExecStart=\"/opt/100%% \\\"$$X\\\"/bin/cloudtik-agent\" run --home \"/opt/node\"\n"), "{text}");
        assert!(text.contains("\nKillMode=process\n") && text.contains("\nType=notify\n"), "{text}");
        assert_eq!(path("cloudtik-agent"), Path::new("/etc/systemd/system/cloudtik-agent.service"));
    }
}
