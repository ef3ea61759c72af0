//! The kinds of providers that a program has, and the reading of what a cluster file says of its own.

use std::sync::Arc;

use cloudtik_config::cluster::Cluster;
use cloudtik_config::reader::{Problems, Table, nearest, read_part};
use cloudtik_config::{InvalidFile, Workers};
use cloudtik_model::{ProviderDocument, ProviderKind, Shape};
use serde_json::Value;

use crate::kind::{Catalogue, Kind, Leftover, Machines};
use crate::{Error, NodeProvider};

/// Kinds that other builds or later versions have.
const KNOWN_ELSEWHERE: [&str; 6] = ["on-premise", "aws", "azure", "gcp", "aliyun", "kubernetes"];

/// The kinds of providers that a program has.
pub struct Registry {
    kinds: Vec<&'static dyn Kind>,
}

/// What a cluster file says of its provider, checked by the provider.
#[derive(Clone)]
pub struct Chosen {
    kind: &'static dyn Kind,
    /// The provider's own document.
    pub settings: Value,
    catalogue: Catalogue,
}

impl Registry {
    pub const fn new(kinds: Vec<&'static dyn Kind>) -> Self {
        Self { kinds }
    }

    pub fn kinds(&self) -> impl Iterator<Item = &'static dyn Kind> {
        self.kinds.iter().copied()
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().map(|kind| kind.name())
    }

    pub fn find(&self, name: &ProviderKind) -> Option<&'static dyn Kind> {
        self.kinds.iter().copied().find(|kind| kind.name() == name.as_str())
    }

    /// The kind that a cluster was made with; this program may lack it.
    pub fn require(&self, name: &ProviderKind) -> Result<&'static dyn Kind, Error> {
        self.find(name).ok_or_else(|| Error::NotFound(format!("this program has no provider `{name}`")))
    }

    /// The machines of a cluster, from what it keeps of its provider.
    pub fn nodes(&self, kept: &ProviderDocument) -> Result<Arc<dyn NodeProvider>, Error> {
        machines_of(self.require(&kept.kind)?)?.nodes(&kept.settings, &kept.site)
    }

    /// Reads `[provider]` of a cluster file, and what types of workers say that only the provider knows. What [`Cluster::read`]
    /// tells is not told again.
    pub fn read(&self, name: &str, text: &str) -> Result<Option<Chosen>, InvalidFile> {
        read_part(name, text, |root, problems| {
            // A kind that is missing or no name is the cluster file's own problem, which `Cluster::read` tells.
            if !root.is_table("provider") {
                return None;
            }
            let mut table = root.table("provider")?;
            let quiet = Problems::default();
            let kind = table.quietly(&quiet, |table| table.parse::<ProviderKind>("kind"))?;
            let Some(found) = self.find(&kind.value) else {
                self.unknown(&kind.value, kind.span, problems);
                return None;
            };
            let settings = found.read(&mut table, problems);
            table.finish();
            if !problems.is_empty() {
                return None;
            }
            let chosen = Chosen { kind: found, catalogue: found.catalogue(&settings), settings };
            chosen.check_types(root, problems);
            Some(chosen)
        })
    }

    fn unknown(&self, kind: &ProviderKind, span: std::ops::Range<usize>, problems: &Problems) {
        let has = || self.names().collect::<Vec<_>>().join(", ");
        if KNOWN_ELSEWHERE.contains(&kind.as_str()) {
            let help = format!("this build has: {}", has());
            return problems.note(span, format!("the provider `{kind}` is not part of this version"), Some(help));
        }
        let near = nearest(kind.as_str(), self.names().chain(KNOWN_ELSEWHERE));
        let help = near.map_or_else(|| format!("providers: {}", has()), |near| format!("did you mean `{near}`?"));
        problems.note(span, format!("there is no provider `{kind}`"), Some(help));
    }

    /// Ends what any kind still runs on this machine for nodes below a directory.
    pub fn end_leftovers(&self, nodes: &std::path::Path) -> Result<(), Error> {
        self.kinds.iter().filter_map(|kind| kind.machines()).try_for_each(|machines| machines.end_leftovers(nodes))
    }

    /// What any kind still runs on this machine of nodes that nobody can account for.
    pub fn leftovers(&self, workspaces: &std::path::Path) -> Result<Vec<Leftover>, Error> {
        let mut all = Vec::new();
        for machines in self.kinds.iter().filter_map(|kind| kind.machines()) {
            all.extend(machines.leftovers(workspaces)?);
        }
        Ok(all)
    }
}

/// The machines of a kind that has some.
pub fn machines_of(kind: &'static dyn Kind) -> Result<&'static dyn Machines, Error> {
    kind.machines().ok_or_else(|| Error::NotFound(format!("the provider `{}` creates no machines: it exists for simulations", kind.name())))
}

impl Chosen {
    pub fn kind(&self) -> &'static dyn Kind {
        self.kind
    }

    /// The machines of the kind.
    pub fn machines(&self) -> Result<&'static dyn Machines, Error> {
        machines_of(self.kind)
    }

    /// Gives types of workers the resources and the price of their shape, where they say nothing of their own.
    pub fn fill_in(&self, cluster: &mut Cluster) {
        for workers in cluster.workers.values_mut() {
            let shape = workers.shape.as_ref().and_then(|name| self.catalogue.get(name));
            if let Some(shape) = shape {
                fill_in(workers, shape);
            }
        }
    }

    /// What only the provider knows of types of workers: their shapes, and how they may be bought.
    fn check_types(&self, root: &mut Table<'_>, problems: &Problems) {
        let quiet = Problems::default();
        let has_budget = root.quietly(&quiet, |root| root.table("cluster").is_some_and(|cluster| cluster.has("budget")));
        let (kind, offers) = (self.kind.name(), self.kind.offers());
        let Some(mut all) = root.quietly(&quiet, |root| root.table("workers")) else { return };
        for name in all.quietly(&quiet, |all| all.names::<String>()) {
            let Some(mut table) = all.quietly(&quiet, |all| all.table(&name.value)) else { continue };
            let refuse = |table: &Table<'_>, key: &str| {
                let message = format!("`{key}`: the provider {kind} does not support it");
                problems.note(table.span_of(key), message, Some("leave it out".to_owned()));
            };
            if table.has("zones") && !offers.zones {
                refuse(&table, "zones");
            }
            if let Some(key) = ["spot", "spot_price", "or_on_demand"].into_iter().find(|key| table.has(key)).filter(|_| !offers.spot) {
                refuse(&table, key);
            }
            let Some(shape) = table.quietly(&quiet, |table| table.text("shape")) else {
                let missing: Vec<&str> = ["cpus", "memory"].into_iter().filter(|key| !table.has(key)).collect();
                if !missing.is_empty() && self.kind.default_resources().is_none() {
                    let message = format!("`workers.{}` does not say what a machine has: {}", name.value, missing.join(" and "));
                    let help = "add cpus = 4 and memory = \"16GiB\", or the shape of one in [provider.shapes]";
                    problems.note(table.span(), message, Some(help.to_owned()));
                }
                continue;
            };
            let found = self.catalogue.iter().find(|(known, _)| known.as_str() == shape.value);
            match found {
                None if self.catalogue.is_empty() => refuse(&table, "shape"),
                None => {
                    let names = || self.catalogue.keys().map(|name| name.as_str());
                    let help = nearest(&shape.value, names()).map_or_else(
                        || format!("shapes: {}", names().collect::<Vec<_>>().join(", ")),
                        |near| format!("did you mean `{near}`?"),
                    );
                    problems.note(shape.span, format!("the provider {kind} has no shape {:?}", shape.value), Some(help));
                }
                Some((_, known)) if has_budget && known.price.is_none() && !table.has("price") => {
                    let help = Some("add a price of its own, such as price = \"0.40/h\"".to_owned());
                    let message = format!("`cluster.budget` cannot be kept while the shape {} has no price", shape.value);
                    problems.note(shape.span, message, help);
                }
                Some(_) => {}
            }
        }
    }
}

fn fill_in(workers: &mut Workers, shape: &Shape) {
    let resources = shape.resources;
    workers.cpus.get_or_insert(resources.cpus);
    workers.memory.get_or_insert(resources.memory);
    workers.gpus.get_or_insert(resources.gpus);
    if workers.price.is_none() {
        workers.price = shape.price;
    }
}
