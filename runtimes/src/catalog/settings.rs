//! Whether the properties that a cluster file sets for its runtimes are ones that these have, and values that they can have.

use cloudtik_config::cluster::Property as Set;
use cloudtik_config::diagnostics::InvalidFile;
use cloudtik_config::reader::{Scalar, nearest};
use cloudtik_config::{Cluster, Problem, RuntimeUse};
use cloudtik_model::Bytes;

use super::Catalog;
use crate::manifest::Manifest;
use crate::manifest::properties::{HandThrough, Property, Within};

/// The share of a node's memory that a runtime plans with unless the cluster file says otherwise: the rest is left for
/// the operating system, the agent and the page cache.
pub(crate) const DEFAULT_MEMORY_SHARE: f64 = 0.75;

impl Catalog {
    /// Properties that a runtime does not have, and values that they cannot have.
    pub(super) fn property_problems(&self, uses: &[RuntimeUse]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for wanted in uses {
            let Some(manifest) = self.manifests.get(&wanted.name) else { continue };
            for (key, set) in &wanted.properties {
                problems.extend(match manifest.property(key) {
                    Some(property) => invalid_value(key, property, set),
                    None if manifest.hand_through.takes(key) => invalid_extra(key, set),
                    None => Some(unknown(manifest, key, set)),
                });
            }
        }
        problems
    }

    /// Whether some type of worker has room for what the properties of runtimes say that one worker must have. `file` and
    /// `text` are the cluster file, for problems.
    pub fn check_properties(&self, cluster: &Cluster, file: &str, text: &str) -> Result<(), InvalidFile> {
        let mut problems = Vec::new();
        for wanted in &cluster.runtimes {
            let Some(manifest) = self.manifests.get(&wanted.name) else { continue };
            for (name, property) in &manifest.properties {
                let Some(within) = property.within else { continue };
                let set = manifest.set_by(name, wanted);
                let value = set.map_or(&property.default, |(_, set)| &set.value);
                let Some((needs, has)) = property.amount(value).zip(largest(cluster, wanted, manifest, within)) else { continue };
                if needs <= has {
                    continue;
                }
                let (key, span) = set.map_or((name.as_str(), wanted.span.clone()), |(key, set)| (key, set.value_span.clone()));
                let (has, more) = match within {
                    Within::Cpus if has == 1.0 => ("1 core".to_owned(), "cpus"),
                    Within::Cpus => (format!("{has} cores"), "cpus"),
                    Within::Memory => (Bytes(has as u64).to_string(), "memory"),
                };
                problems.push(Problem {
                    span,
                    message: format!("`{key}` is {value}, and no worker has more than {has} for {}", wanted.name),
                    help: Some(format!("lower it, or raise `{more}` of a type of worker")),
                });
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(InvalidFile::new(file, text, problems)) }
    }
}

/// The most that one worker has for a runtime. None if it is not known of some type, which may have enough.
fn largest(cluster: &Cluster, wanted: &RuntimeUse, manifest: &Manifest, within: Within) -> Option<f64> {
    let share = wanted.memory_share.unwrap_or(DEFAULT_MEMORY_SHARE);
    let types = cluster.workers.iter().filter(|(name, workers)| workers.max > 0 && manifest.runs_on_workers(name));
    let amounts = types.map(|(_, workers)| match within {
        Within::Cpus => workers.cpus.map(f64::from),
        Within::Memory => workers.memory.map(|memory| ((share_of(memory, share).mebibytes()) << 20) as f64),
    });
    amounts.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::max)
}

fn invalid_value(key: &str, property: &Property, set: &Set) -> Option<Problem> {
    let mismatch = property.check(&set.value).err()?;
    let value = match &set.value {
        Scalar::Text(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    let message = format!("`{key}` must be {}, not {value}", mismatch.expected);
    Some(Problem { span: set.value_span.clone(), message, help: mismatch.help })
}

/// Names of settings are plain words with dots; a text may be any, since templates escape it.
fn invalid_extra(key: &str, set: &Set) -> Option<Problem> {
    let is_plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_plain {
        let message = format!("{key:?} is not the name of a setting");
        return Some(Problem { span: set.key_span.clone(), message, help: Some("letters, digits, `.`, `_` and `-`".to_owned()) });
    }
    let has_zero = matches!(&set.value, Scalar::Text(text) if text.contains('\0'));
    has_zero.then(|| Problem { span: set.value_span.clone(), message: format!("`{key}` holds a zero byte"), help: None })
}

fn unknown(manifest: &Manifest, key: &str, set: &Set) -> Problem {
    let known = manifest.properties.keys().map(String::as_str);
    let help = match nearest(key, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let list = if manifest.properties.is_empty() { "none".to_owned() } else { known.collect::<Vec<_>>().join(", ") };
            match &manifest.hand_through {
                HandThrough::Prefixes(prefixes) if !prefixes.is_empty() => {
                    let own: Vec<String> = prefixes.iter().map(|prefix| format!("\"{prefix}…\"")).collect();
                    format!("it has: {list}; what begins with {} goes into its own configuration", own.join(" or "))
                }
                _ => format!("it has: {list}"),
            }
        }
    };
    let message = format!("the runtime {} has no property `{key}`", manifest.name);
    Problem { span: set.key_span.clone(), message, help: Some(help) }
}

/// The share of a node's memory that a runtime plans with.
pub(crate) fn share_of(memory: Bytes, share: f64) -> Bytes {
    Bytes((memory.0 as f64 * share) as u64)
}
