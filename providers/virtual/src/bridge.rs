//! The bridge of a workspace, and the rules for packets that leave it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::names;
use crate::netlink::Netlink;
use crate::range::Range;

/// What is written on a bridge.
pub const ALIAS: &str = "cloudtik workspace ";
/// The links of the machine on which forwarding was switched on for some workspace; gone at a restart, as the switch is.
const SWITCHED: &str = "/run/cloudtik-virtual";
/// What each rule says of itself, so that a rule that is missing is found.
const RULES: [&str; 3] = ["cloudtik: address of the machine", "cloudtik: apart from other workspaces", "cloudtik: answers only"];

/// A workspace's bridge as it is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bridge {
    pub workspace: PathBuf,
    pub range: Range,
    /// Whether nodes reach what is outside.
    pub nat: bool,
}

/// How something was found: none if it is missing, else how it differs from what it is to be.
pub type Found = Option<Vec<String>>;

impl Bridge {
    pub fn name(&self) -> String {
        names::bridge(&self.workspace)
    }

    pub fn find(&self) -> Result<Found, Failure> {
        let failed = |e| Failure::io(format!("look at the bridge {}", self.name()), e);
        let mut netlink = Netlink::open().map_err(failed)?;
        let Some(link) = netlink.link(&self.name()).map_err(failed)? else { return Ok(None) };
        let mut differences = Vec::new();
        if !link.is_up {
            differences.push("it is switched off".to_owned());
        }
        let wanted = (self.range.gateway(), self.range.prefix());
        let addresses = addresses(&mut netlink, link.index).map_err(failed)?;
        if !addresses.contains(&wanted) {
            differences.push(format!("it has not the address {}/{}", wanted.0, wanted.1));
        }
        let others = addresses.iter().filter(|address| **address != wanted);
        differences.extend(others.map(|(address, prefix)| format!("it has the address {address}/{prefix}")));
        if forwarding(&self.name()).map_err(failed)? != self.nat {
            let how = if self.nat { "not sent on" } else { "sent on to other networks" };
            differences.push(format!("packets of its nodes are {how}"));
        }
        Ok(Some(differences))
    }

    /// Makes it, or changes it to what it is to be.
    pub fn create(&self) -> Result<(), Failure> {
        let name = self.name();
        let failed = |e| Failure::io(format!("make the bridge {name}"), e);
        let mut netlink = Netlink::open().map_err(failed)?;
        if netlink.link(&name).map_err(failed)?.is_none() {
            let [a, b, c, d] = self.range.gateway().octets();
            match netlink.add_bridge(&name, &alias(&self.workspace), [0x02, 0x43, a, b, c, d]) {
                // Somebody else made it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(failed)?,
            }
        }
        let link = netlink.link(&name).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        netlink.add_address(link.index, self.range.gateway(), self.range).map_err(failed)?;
        // Of a range that it had before.
        for (address, prefix) in addresses(&mut netlink, link.index).map_err(failed)? {
            if (address, prefix) != (self.range.gateway(), self.range.prefix()) {
                netlink.remove_address(link.index, address, prefix).map_err(failed)?;
            }
        }
        netlink.set_up(link.index, true).map_err(failed)?;
        // Nodes have no addresses of version 6 but those of their links.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        set_forwarding(&name, self.nat).map_err(failed)
    }

    pub fn remove(&self) -> Result<(), Failure> {
        let failed = |e| Failure::io(format!("remove the bridge {}", self.name()), e);
        Netlink::open().and_then(|mut netlink| netlink.remove_link(&self.name())).map_err(failed)
    }

    /// The rules that hide the nodes' addresses behind the machine's.
    pub fn find_nat(&self) -> Result<Found, Failure> {
        let table = names::table(&self.workspace);
        let Some(text) = nft_list(&table)? else { return Ok(None) };
        let missing = RULES.iter().filter(|rule| !text.contains(*rule)).map(|rule| format!("the rule {rule:?} is missing"));
        let mut differences: Vec<String> = missing.collect();
        if !text.contains(&format!("ip saddr {} ", self.range)) {
            differences.push(format!("they are not about the range {}", self.range));
        }
        for uplink in uplinks().map_err(|e| Failure::io("find the default route", e))? {
            if !forwarding(&uplink).map_err(|e| Failure::io(format!("look at {uplink}"), e))? {
                differences.push(format!("packets from {uplink} are not sent on"));
            }
        }
        Ok(Some(differences))
    }

    pub fn create_nat(&self) -> Result<(), Failure> {
        let (table, bridge, range) = (names::table(&self.workspace), self.name(), self.range);
        let [address, apart, answers] = RULES;
        let prefix = names::BRIDGE_PREFIX;
        nft(&format!(
            "add table ip {table}\n\
             delete table ip {table}\n\
             table ip {table} {{\n\
             chain outgoing {{ type nat hook postrouting priority 100; policy accept;\n\
             ip saddr {range} oifname != \"{bridge}\" masquerade comment \"{address}\"\n\
             }}\n\
             chain forwarded {{ type filter hook forward priority 0; policy accept;\n\
             iifname \"{bridge}\" oifname \"{prefix}*\" oifname != \"{bridge}\" drop comment \"{apart}\"\n\
             oifname \"{bridge}\" iifname != \"{bridge}\" ct state != {{ established, related }} drop comment \"{answers}\"\n\
             }}\n\
             }}\n"
        ))?;
        let _lock = switch_lock().map_err(|e| Failure::io("lock the switches of forwarding", e))?;
        for uplink in uplinks().map_err(|e| Failure::io("find the default route", e))? {
            let failed = |e| Failure::io(format!("send on packets from {uplink}"), e);
            if !forwarding(&uplink).map_err(failed)? {
                File::create(Path::new(SWITCHED).join(&uplink)).map_err(failed)?;
                set_forwarding(&uplink, true).map_err(failed)?;
            }
        }
        Ok(())
    }

    pub fn remove_nat(&self) -> Result<(), Failure> {
        remove_table(&names::table(&self.workspace))
    }
}

/// The addresses of a link, with the sizes of their ranges.
fn addresses(netlink: &mut Netlink, index: u32) -> io::Result<Vec<(Ipv4Addr, u8)>> {
    let all = netlink.addresses()?.into_iter();
    Ok(all.filter(|(link, ..)| *link == index).map(|(_, address, prefix)| (address, prefix)).collect())
}

/// What is written on the bridge of a workspace: the kernel takes 255 bytes.
fn alias(workspace: &Path) -> String {
    let text = format!("{ALIAS}{}", workspace.display());
    if text.len() < 256 { text } else { ALIAS.trim_end().to_owned() }
}

/// Removes a table of rules. With the last one, forwarding is as it was.
pub fn remove_table(table: &str) -> Result<(), Failure> {
    nft(&format!("add table ip {table}\ndelete table ip {table}\n"))?;
    let _lock = switch_lock().map_err(|e| Failure::io("lock the switches of forwarding", e))?;
    if !tables()?.is_empty() {
        return Ok(());
    }
    let failed = |e| Failure::io("switch off what was switched on for workspaces", e);
    for entry in fs::read_dir(SWITCHED).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let uplink = entry.file_name().to_string_lossy().into_owned();
        if uplink.starts_with('.') {
            continue;
        }
        match set_forwarding(&uplink, false) {
            // The link is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(failed)?,
        }
        fs::remove_file(entry.path()).map_err(failed)?;
    }
    Ok(())
}

/// The tables of all workspaces.
pub fn tables() -> Result<Vec<String>, Failure> {
    let ran = Command::new("nft").args(["list", "tables", "ip"]).stdin(Stdio::null()).output();
    let ran = match ran {
        Ok(ran) => ran,
        // Without the program nobody made any.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::io("run nft", error)),
    };
    table_names(&ran)
}

/// The names of workspaces' tables in what `nft list tables` wrote.
fn table_names(ran: &Output) -> Result<Vec<String>, Failure> {
    if !ran.status.success() {
        let message = format!("nft ended with {}: {}", ran.status, String::from_utf8_lossy(&ran.stderr).trim());
        return Err(Failure::io("list the packet rules of the machine", io::Error::other(message)));
    }
    let text = String::from_utf8_lossy(&ran.stdout);
    let names = text.lines().filter_map(|line| line.strip_prefix("table ip ")).filter(|name| name.starts_with(names::PREFIX));
    Ok(names.map(str::to_owned).collect())
}

fn switch_lock() -> io::Result<File> {
    cloudtik_files::create_private_directory_in_place(Path::new(SWITCHED))?;
    let path = Path::new(SWITCHED).join(".lock");
    let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    lock.lock()?;
    Ok(lock)
}

/// The links that packets without a way of their own leave by.
fn uplinks() -> io::Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let out = netlink.routes()?.default_links;
    let links = netlink.links()?;
    Ok(links.into_iter().filter(|link| out.contains(&link.index)).map(|link| link.name).collect())
}

fn forwarding_file(link: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{link}/forwarding")
}

/// Whether packets that come from a link are sent on to other links.
fn forwarding(link: &str) -> io::Result<bool> {
    Ok(fs::read_to_string(forwarding_file(link))?.trim() == "1")
}

fn set_forwarding(link: &str, on: bool) -> io::Result<()> {
    fs::write(forwarding_file(link), if on { "1" } else { "0" })
}

/// The rules of a table, as text; none if there is no such table.
fn nft_list(table: &str) -> Result<Option<String>, Failure> {
    if !tables()?.iter().any(|name| name == table) {
        return Ok(None);
    }
    let ran = Command::new("nft").args(["list", "table", "ip", table]).stdin(Stdio::null()).output();
    let ran = ran.map_err(|e| Failure::io("run nft", e))?;
    // It may have gone since.
    Ok(ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).into_owned()))
}

/// Applies a script to the kernel's packet rules, all of it or nothing.
fn nft(script: &str) -> Result<(), Failure> {
    let run = || -> io::Result<()> {
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        let ended = child.wait_with_output()?;
        if ended.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned())) }
    };
    run().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::Forbidden("the program nft, which sets the rules of NAT; install the package nftables, or leave NAT out".to_owned())
        }
        _ => Failure::io("set the rules of NAT", error),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn rules_that_cannot_be_listed_are_not_taken_for_none() {
        let ran = |code: i32, stdout: &str, stderr: &str| Output {
            status: ExitStatus::from_raw(code << 8),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let listed = table_names(&ran(0, "table ip nat\ntable ip cloudtik-abc\n", ""));
        assert_eq!(listed.expect("is a list"), ["cloudtik-abc"]);
        let failed = table_names(&ran(1, "", "Operation not permitted (you must be root)\n"));
        assert!(failed.is_err_and(|failure| failure.to_string().contains("you must be root")));
    }
}
