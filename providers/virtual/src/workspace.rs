//! The workspace of virtual clusters: a directory, a range of addresses and a bridge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cloudtik_files::RemoveError;
use cloudtik_model::ClusterName;
use cloudtik_providers::Error;
use cloudtik_providers::local::LocalWorkspace;
use cloudtik_providers::workspace::{Action, Cost, Desired, Found, Plan, Presence, ResourceId, Status, Step, WorkspaceProvider};

use crate::bridge::Bridge;
use crate::failure::Failure;
use crate::ground::{Ground, Work, is_root};
use crate::names;
use crate::netlink::Netlink;
use crate::network::Network;
use crate::range::Range;

const RANGE: &str = "range";
/// Only of an ordinary user.
const NAMESPACES: &str = "namespaces";
const BRIDGE: &str = "bridge";
const NAT: &str = "nat";
const NO_NAT: &str = "NAT for an ordinary user's workspace: it has a network apart from the machine's; leave NAT out, or run as root";
/// Ranges that workspaces are given lie in 10.64.0.0/10, each of this size.
const SIZE: u8 = 20;
const RANGES: u32 = 1 << (SIZE - 10);
const FIRST_RANGE: u32 = 0x0a40_0000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualWorkspace {
    /// The directory of this workspace.
    pub directory: PathBuf,
    /// The addresses of its nodes; a free range, if absent.
    pub range: Option<Range>,
    /// Whether its nodes reach what the machine reaches.
    pub nat: bool,
    /// The program `cloudtik-virtual`.
    pub program: PathBuf,
}

impl VirtualWorkspace {
    fn directories(&self) -> LocalWorkspace {
        LocalWorkspace { directory: self.directory.clone() }
    }

    fn network(&self) -> Network {
        Network::of(&crate::absolute(&self.directory))
    }

    /// The bridge as it is to be: with the range that is asked for, or else the one that the workspace has. Where its range cannot
    /// be told, which is told of the range, only its name counts.
    fn bridge(&self) -> Bridge {
        let range = self.range.or_else(|| self.network().range().ok().flatten());
        let range = range.unwrap_or(Range::of(FIRST_RANGE.into(), SIZE));
        Bridge { workspace: crate::absolute(&self.directory), range, nat: self.nat }
    }

    /// Refuses another range while nodes may have addresses of the present one.
    fn keeps_its_range(&self, clusters: &[ClusterName]) -> Result<(), Error> {
        let (Some(wanted), Ok(Some(range))) = (self.range, self.network().range()) else { return Ok(()) };
        if wanted == range || clusters.is_empty() {
            return Ok(());
        }
        let used_by = clusters.iter().map(ToString::to_string).collect();
        Err(Error::Conflict { what: format!("the range {range} of the workspace {}, which is to become {wanted},", self.name()), used_by })
    }

    fn find(&self, resource: &ResourceId) -> Result<(Presence, BTreeMap<String, String>), Error> {
        let network = self.network();
        let presence = |found: Option<Vec<String>>| match found {
            None => Presence::Missing,
            Some(differences) if differences.is_empty() => Presence::Present,
            Some(differences) => Presence::Differs { differences },
        };
        Ok(match resource.as_str() {
            RANGE => match network.range() {
                Ok(None) => (Presence::Missing, BTreeMap::new()),
                Ok(Some(range)) => {
                    let outputs =
                        BTreeMap::from([("range".to_owned(), range.to_string()), ("gateway".to_owned(), range.gateway().to_string())]);
                    let differs = self.range.filter(|wanted| *wanted != range);
                    (presence(Some(differs.map(|_| format!("it is {range}")).into_iter().collect())), outputs)
                }
                Err(error) => (Presence::Differs { differences: vec![error.to_string()] }, BTreeMap::new()),
            },
            NAMESPACES => {
                let holder = self.ground().holder().map_err(|e| failure("look at the namespaces of", &self.directory, e))?;
                let outputs = holder.iter().map(|holder| ("process".to_owned(), holder.pid.to_string())).collect();
                (presence(holder.map(|_| Vec::new())), outputs)
            }
            BRIDGE => {
                let bridge = self.bridge();
                let found = self.work(Work::Find(bridge.clone()))?;
                (presence(found), BTreeMap::from([("name".to_owned(), bridge.name())]))
            }
            _ => {
                let bridge = self.bridge();
                let table = names::table(&crate::absolute(&self.directory));
                let found = match is_root().then(|| bridge.find_nat()) {
                    None => None,
                    // Rules that cannot be listed are of no concern where there are to be none, and none were made.
                    Some(Err(_)) if !self.nat && !self.network().has_nat() => None,
                    Some(found) => found?,
                };
                (presence(found), BTreeMap::from([("table".to_owned(), table)]))
            }
        })
    }

    fn ground(&self) -> Ground {
        Ground::of(&crate::absolute(&self.directory))
    }

    /// Does something to the bridge. Without namespaces there is none.
    fn work(&self, work: Work) -> Result<Option<Vec<String>>, Error> {
        let is_held = is_root() || self.ground().holder().map_err(|e| failure("look at the namespaces of", &self.directory, e))?.is_some();
        if !is_held && !matches!(work, Work::Create(_)) {
            return Ok(None);
        }
        self.ground().work(&self.program, &work).map_err(Error::from)
    }

    /// The range that is asked for, if nothing of the machine has it, or else a free one.
    fn choose(&self) -> Result<Range, Error> {
        let own = names::bridge(&crate::absolute(&self.directory));
        let used = used_ranges(&own).map_err(|e| Error::transient("read the machine's routes", e))?;
        if let Some(range) = self.range {
            let users: Vec<String> = used.iter().filter(|(other, _)| other.overlaps(range)).map(|(_, link)| link.clone()).collect();
            return if users.is_empty() || !is_root() {
                Ok(range)
            } else {
                Err(Error::Conflict { what: format!("the range {range}"), used_by: users })
            };
        }
        // Each workspace begins to look somewhere else, so that those which are made at once do not meet.
        let start = names::workspace_tag(&crate::absolute(&self.directory))
            .bytes()
            .fold(0, |sum: u32, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let candidate = |n: u32| Range::of((FIRST_RANGE + ((start.wrapping_add(n)) % RANGES) * (1 << (32 - SIZE))).into(), SIZE);
        let free = (0..RANGES).map(candidate).find(|range| !used.iter().any(|(other, _)| other.overlaps(*range)));
        free.ok_or_else(|| Error::Quota { quota: "address ranges".to_owned(), message: "no range in 10.64.0.0/10 is free".to_owned() })
    }

    fn make(&self, resource: &ResourceId) -> Result<(), Error> {
        match resource.as_str() {
            RANGE => {
                let range = match self.network().range() {
                    Ok(Some(range)) if self.range.is_none_or(|wanted| wanted == range) => range,
                    _ => self.choose()?,
                };
                self.network().create(range).map_err(|e| failure("write the range of", &self.directory, e))
            }
            BRIDGE => {
                let bridge = self.needed_bridge()?;
                let used = used_ranges(&bridge.name()).map_err(|e| Error::transient("read the machine's routes", e))?;
                let users: Vec<String> = used.into_iter().filter(|(other, _)| other.overlaps(bridge.range)).map(|(_, link)| link).collect();
                // An ordinary user's bridge is in a network of its own.
                if is_root() && !users.is_empty() {
                    return Err(Error::Conflict { what: format!("the range {}", bridge.range), used_by: users });
                }
                self.work(Work::Create(bridge)).map(drop)
            }
            NAMESPACES => self.ground().create(&self.program).map_err(Error::from),
            _ => {
                if !is_root() {
                    return Err(Error::Permission { action: NO_NAT.to_owned() });
                }
                // First, so that rules of which nothing is noted are none of this workspace.
                self.network().note_nat(true).map_err(|e| failure("write in", &self.directory, e))?;
                self.needed_bridge()?.create_nat().map_err(Error::from)
            }
        }
    }

    fn needed_bridge(&self) -> Result<Bridge, Error> {
        let range = self.network().range().map_err(|e| failure("read the range of", &self.directory, e))?;
        let missing = || Error::NotFound(format!("the range of addresses of the workspace {}", self.name()));
        Ok(Bridge { range: range.ok_or_else(missing)?, ..self.bridge() })
    }

    fn remove(&self, resource: &ResourceId) -> Result<(), Error> {
        match resource.as_str() {
            RANGE => self.network().remove().map_err(|error| match error {
                RemoveError::Mounted(_) => {
                    Error::Undeletable { what: self.network().directory().display().to_string(), source: error.into() }
                }
                RemoveError::Io { path, source } => failure("remove", &path, source),
            }),
            BRIDGE => self.work(Work::Remove(self.bridge())).map(drop),
            NAMESPACES => self.ground().remove().map_err(Error::from),
            _ => {
                self.bridge().remove_nat()?;
                self.network().note_nat(false).map_err(|e| failure("write in", &self.directory, e))
            }
        }
    }

    fn is_directory(resource: &ResourceId) -> bool {
        !matches!(resource.as_str(), RANGE | NAMESPACES | BRIDGE | NAT)
    }
}

/// The ranges that links of the machine lead to, but those of one bridge.
fn used_ranges(but: &str) -> std::io::Result<Vec<(Range, String)>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let routes = netlink.routes()?.destinations.into_iter().filter_map(|(to, prefix, out)| Some((Range::of(to, prefix), name(out?)?)));
    let mut used: Vec<(Range, String)> = routes.filter(|(_, link)| link != but).collect();
    for (index, address, prefix) in netlink.addresses()? {
        used.extend(name(index).filter(|link| link != but).map(|link| (Range::of(address, prefix), link)));
    }
    used.dedup();
    Ok(used)
}

fn failure(operation: &str, path: &Path, error: std::io::Error) -> Error {
    Failure::io(format!("{operation} {}", path.display()), error).into()
}

#[async_trait]
impl WorkspaceProvider for VirtualWorkspace {
    fn name(&self) -> String {
        self.directories().name()
    }

    fn desired(&self) -> Vec<Desired> {
        let one = |id, summary: String| Desired { id: ResourceId::new(id), summary, cost: Cost::Free };
        let range = self.range.map_or_else(|| "a free range of addresses".to_owned(), |range| format!("the range of addresses {range}"));
        let mut desired = self.directories().desired();
        desired.push(one(RANGE, range));
        if !is_root() {
            desired.push(one(NAMESPACES, "namespaces of its own, since an ordinary user may make no links on the machine".to_owned()));
        }
        desired.push(one(BRIDGE, format!("the bridge {}", names::bridge(&crate::absolute(&self.directory)))));
        if self.nat {
            desired.push(one(NAT, "rules by which nodes reach what is outside".to_owned()));
        }
        desired
    }

    async fn status(&self) -> Result<Status, Error> {
        let mut status = self.directories().status().await?;
        let all = [RANGE, NAMESPACES, BRIDGE, NAT].into_iter();
        let resources: Vec<ResourceId> = all.filter(|id| *id != NAMESPACES || !is_root()).map(ResourceId::new).collect();
        let workspace = self.clone();
        let found = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for id in resources {
                let (presence, outputs) = workspace.find(&id)?;
                // Rules that nobody asks for are told where they are there, to be removed.
                if workspace.nat || id.as_str() != NAT || presence != Presence::Missing {
                    found.push(Found { id, presence, outputs });
                }
            }
            Ok::<_, Error>(found)
        });
        status.resources.extend(found.await.map_err(|e| Error::transient("look at the workspace", e))??);
        Ok(status)
    }

    async fn plan(&self) -> Result<Plan, Error> {
        let status = self.status().await?;
        self.keeps_its_range(&status.clusters)?;
        Ok(Plan::to_reach(&self.desired(), &status))
    }

    async fn apply(&self, step: &Step) -> Result<(), Error> {
        if Self::is_directory(&step.resource) {
            return self.directories().apply(step).await;
        }
        if step.action != Action::Remove && step.resource.as_str() == RANGE {
            self.keeps_its_range(&self.directories().status().await?.clusters)?;
        }
        if step.action == Action::Remove {
            let clusters = self.directories().status().await?.clusters;
            // Rules that nobody asks for any more go while clusters are there.
            let is_wanted = self.nat || step.resource.as_str() != NAT;
            if is_wanted && !clusters.is_empty() {
                let used_by = clusters.iter().map(ToString::to_string).collect();
                return Err(Error::Conflict { what: format!("the workspace {}", self.name()), used_by });
            }
        }
        let (workspace, step) = (self.clone(), step.clone());
        let applied = tokio::task::spawn_blocking(move || match step.action {
            Action::Create | Action::Change => workspace.make(&step.resource),
            Action::Remove => workspace.remove(&step.resource),
        });
        applied.await.map_err(|e| Error::transient("change the workspace", e))?
    }
}
