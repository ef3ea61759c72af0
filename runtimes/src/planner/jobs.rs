//! Whether a runtime's jobs can run at all: what each of their parts needs of one worker, held against the workers that there
//! are and may be.

use std::collections::BTreeMap;

use cloudtik_model::alarm::{Misfit, PartNeeds, Room};
use cloudtik_model::spec::Role;
use cloudtik_model::{Bytes, NodeTypeName, Resources, RuntimeName};
use minijinja::Value;

use super::{DEFAULT_MEMORY_SHARE, Error, NodeContext, Planner, Software, View};
use crate::manifest::{Manifest, parse_cpus};
use crate::size::parse_size;

impl Planner {
    /// The runtimes whose jobs cannot run. `head` is the head's node, `workers` those that are there, by type.
    pub fn misfits(&self, view: &View, head: &NodeContext, workers: &[(NodeTypeName, Resources)]) -> Vec<Misfit> {
        let of = |name: &RuntimeName| self.misfit(name, view, head, workers).ok().flatten();
        self.used().filter_map(|(used, _)| of(&used.name)).collect()
    }

    /// Why no job of a runtime can run, if that is so. Unknown is not too small: what a type of worker has that nobody
    /// described and none of which is there may be enough.
    pub fn misfit(
        &self,
        runtime: &RuntimeName,
        view: &View,
        head: &NodeContext,
        workers: &[(NodeTypeName, Resources)],
    ) -> Result<Option<Misfit>, Error> {
        let Some((used, manifest)) = self.used().find(|(used, _)| used.name == *runtime) else { return Ok(None) };
        let Some((submit, part)) = manifest.submit.as_ref().and_then(|s| Some((s, s.part.as_ref()?))) else { return Ok(None) };
        let Some(service) = manifest.service(&submit.service) else { return Ok(None) };
        let values = self.values(used, manifest, service, view, head, &Software::default());
        let key = manifest.key(service);
        let fill = |text: &Option<String>| -> Result<Option<String>, Error> {
            let render = |text| {
                self.templates.render("submit.part", text, &values as &Value).map_err(|source| Error::Template {
                    service: key.clone(),
                    what: "what a job needs",
                    source,
                })
            };
            text.as_deref().map(render).transpose()
        };
        let unreadable = |text: &String| Error::Limit { service: key.clone(), text: text.clone() };
        let cpu_millis = fill(&part.cpus)?.map(|text| parse_cpus(&text).ok_or_else(|| unreadable(&text))).transpose()?;
        let memory = fill(&part.memory)?.map(|text| parse_memory(&text).ok_or_else(|| unreadable(&text))).transpose()?;
        let needs = PartNeeds { cpu_millis: cpu_millis.unwrap_or(0), memory: memory.unwrap_or_default() };
        let share = used.memory_share.unwrap_or(DEFAULT_MEMORY_SHARE);
        let Some(rooms) = self.rooms(manifest, share, workers) else { return Ok(None) };
        let fits = |room: &Room| u64::from(room.cpus) * 1_000 >= needs.cpu_millis && room.memory >= needs.memory;
        if rooms.is_empty() || rooms.iter().any(fits) {
            return Ok(None);
        }
        Ok(Some(Misfit { runtime: runtime.clone(), part: part.name.clone(), needs, rooms, advice: part.advice.clone() }))
    }

    /// What one worker of each type has for a runtime, the largest first; nothing if it is not known of some type.
    fn rooms(&self, manifest: &Manifest, share: f64, workers: &[(NodeTypeName, Resources)]) -> Option<Vec<Room>> {
        let runs_on = |name: &NodeTypeName| manifest.services.iter().any(|s| s.role != Role::Head && s.role.covers(name));
        let mut largest: BTreeMap<&NodeTypeName, Room> = BTreeMap::new();
        for (name, described) in self.cluster.workers.iter().filter(|(name, w)| w.max > 0 && runs_on(name)) {
            let there = workers.iter().filter(|(of, _)| of == name).map(|(_, resources)| *resources);
            let known = described.cpus.zip(described.memory).map(|(cpus, memory)| Resources { cpus, memory, gpus: 0 });
            let best = there.chain(known).max_by_key(|r| (r.memory, r.cpus))?;
            let memory = Bytes((best.memory.0 as f64 * share) as u64).mebibytes() << 20;
            largest.insert(name, Room { node_type: name.clone(), cpus: best.cpus, memory: Bytes(memory) });
        }
        let mut rooms: Vec<Room> = largest.into_values().collect();
        rooms.sort_by_key(|room| std::cmp::Reverse((room.memory, room.cpus)));
        Some(rooms)
    }
}

/// An amount of memory as `512MiB`, or as programs on a JVM write it: `512m`, `2g`, a bare number being MiB.
fn parse_memory(text: &str) -> Option<Bytes> {
    let text = text.trim();
    if let Some(bytes) = parse_size(text) {
        return Some(bytes);
    }
    let lower = text.to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let number: u64 = lower[..end].parse().ok()?;
    let unit: u64 = match lower[end..].strip_suffix('b').unwrap_or(&lower[end..]) {
        "" if lower.ends_with('b') => 1,
        "k" => 1 << 10,
        "" | "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_as_runtimes_write_it() {
        for (text, mebibytes) in [("512m", 512), ("2g", 2048), ("2GB", 1907), ("1024", 1024), ("4Gb", 4096), ("1GiB", 1024), ("2048k", 2)] {
            assert_eq!(parse_memory(text).map(Bytes::mebibytes), Some(mebibytes), "{text}");
        }
        assert_eq!(parse_memory("100b"), Some(Bytes(100)));
        assert!(["lots", "", "m", "1.5x"].iter().all(|text| parse_memory(text).is_none()));
    }
}
