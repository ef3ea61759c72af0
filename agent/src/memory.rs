//! What the kernel kills on this node because a limit of memory was reached: looked for now and then, and told to the head.
//!
//! A service or a job that fails by it says so itself. What is told here are the processes whose end nothing else would explain:
//! those that a service's or a job's own process started, and programs that people run on the node.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloudtik_model::ServiceKey;
use cloudtik_model::report::{MemoryKills, MemoryLimit};
use tokio::time::MissedTickBehavior;

use crate::cgroup::{self, Kills};
use crate::home::Home;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Services of which something is kept for the head while there is no link.
const MAX_KEPT: usize = 256;

/// What is to be told to the head: a cheap handle.
#[derive(Debug, Clone, Default)]
pub struct PendingKills(Arc<Mutex<Vec<MemoryKills>>>);

impl PendingKills {
    fn add(&self, kills: MemoryKills) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter_mut().find(|known| (&known.service, known.limit) == (&kills.service, kills.limit)) {
            known.count = known.count.saturating_add(kills.count);
        } else if all.len() < MAX_KEPT {
            all.push(kills);
        }
    }

    pub fn take(&self) -> Vec<MemoryKills> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Looks for what the kernel killed, for ever.
pub async fn watch(home: Home, pending_kills: PendingKills) {
    let told = fs::read_to_string(home.memory_kills()).ok().and_then(|text| text.trim().parse().ok());
    let mut seen = Seen { own: told, ..Seen::default() };
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let (prefix, list, before) = (home.group_prefix(), home.groups(), seen.own);
        let looked = tokio::task::spawn_blocking(move || {
            let kills = cgroup::read_kills(&prefix).ok()?;
            // Without limits there is nothing to look for.
            (kills.own.is_some() || list.exists()).then_some(kills)
        });
        // What cannot be read now may be the next time.
        let Ok(Some(kills)) = looked.await else { continue };
        for kills in seen.take(&kills) {
            tracing::warn!("{kills}");
            pending_kills.add(kills);
        }
        if let Some(own) = seen.own.filter(|_| seen.own != before)
            && let Err(error) = tokio::fs::write(home.memory_kills(), own.to_string()).await
        {
            tracing::warn!("what the kernel killed may be told twice: {error}");
        }
    }
}

/// What was seen by the look before.
#[derive(Debug, Default)]
struct Seen {
    /// None before the first look, and where an earlier agent noted nothing.
    own: Option<u64>,
    /// None before the first look.
    services: Option<BTreeMap<String, u64>>,
    /// Told by the next look, if the service's own process goes on.
    pending: BTreeMap<String, (u64, MemoryLimit)>,
}

impl Seen {
    /// Takes what was found; returns what is to be told.
    fn take(&mut self, now: &Kills) -> Vec<MemoryKills> {
        let mut told = Vec::new();
        let mut tell = |service: Option<ServiceKey>, count: u64, limit: MemoryLimit| {
            told.push(MemoryKills { service, count: u32::try_from(count).unwrap_or(u32::MAX), limit });
        };
        if let Some(own) = now.own {
            let before = self.own.replace(own).unwrap_or(own);
            // A node that was started anew counts from zero.
            let count = own.checked_sub(before).unwrap_or(own);
            if count > 0 {
                tell(None, count, MemoryLimit::Node);
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for (name, (count, limit)) in &now.services {
            let before = match &self.services {
                // Of what an earlier agent saw nothing is known.
                None => *count,
                Some(before) => before.get(name).copied().unwrap_or(0),
            };
            // A group that was made anew is of another process: the end of the one before tells the rest.
            if *count < before {
                continue;
            }
            if let Some((kills, limit)) = pending.get(name) {
                // A job's group has no service's name.
                tell(key(name), *kills, *limit);
            }
            if *count > before {
                self.pending.insert(name.clone(), (count - before, *limit));
            }
        }
        self.services = Some(now.services.iter().map(|(name, (count, _))| (name.clone(), *count)).collect());
        told
    }
}

/// The service of a group, by the end of the group's name; none of a job's.
fn key(name: &str) -> Option<ServiceKey> {
    name.replacen('.', "/", 1).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seen: &mut Seen, own: u64, services: &[(&str, u64)]) -> Vec<(String, u32)> {
        let services = services.iter().map(|(name, count)| ((*name).to_owned(), (*count, MemoryLimit::Service))).collect();
        let told = seen.take(&Kills { own: Some(own), services });
        told.into_iter().map(|kills| (kills.service.map(|s| s.to_string()).unwrap_or_default(), kills.count)).collect()
    }

    fn told(of: &[(&str, u32)]) -> Vec<(String, u32)> {
        of.iter().map(|(service, count)| ((*service).to_owned(), *count)).collect()
    }

    #[test]
    fn processes_are_told_once_and_those_of_a_service_if_it_goes_on() {
        let mut seen = Seen { own: Some(1), ..Seen::default() };
        assert_eq!(look(&mut seen, 3, &[("a.b", 5)]), told(&[("", 2)]), "what an earlier agent told is not told again");
        assert_eq!(look(&mut seen, 3, &[("a.b", 6), ("c.d", 1)]), told(&[]));
        assert_eq!(look(&mut seen, 3, &[("a.b", 8), ("c.d", 1)]), told(&[("a/b", 1), ("c/d", 1)]));
        // Its own process ended by it, which its end tells; its next one has another group.
        assert_eq!(look(&mut seen, 3, &[("a.b", 0), ("c.d", 1)]), told(&[]));
        assert_eq!(look(&mut seen, 3, &[("a.b", 0)]), told(&[]));
        assert_eq!(look(&mut seen, 1, &[]), told(&[("", 1)]), "a node that was started anew counts from zero");
        assert_eq!(look(&mut seen, 1, &[("job-7", 1)]), told(&[]));
        assert_eq!(look(&mut seen, 1, &[("job-7", 1)]), told(&[("", 1)]));
    }
}
