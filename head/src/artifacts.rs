//! Software by content: fetched once through the ecosystem's own client, packed into an archive that is the same
//! wherever it is made, kept under its SHA-256, served to agents.
//!
//! ```text
//! DIGEST.tar            an archive
//! index/KEY.json        what a source (by its own SHA-256) became
//! .part-KEY             what came of a download that broke off, to go on from
//! .fetch-KEY/           a fetch under way; .fetch-KEY.lock is held meanwhile, also against other heads of this user
//! ```

mod apt;
mod client;
mod collect;
mod fetch;
mod links;
mod pack;
mod progress;
mod truststore;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use cloudtik_model::goal::Artifact;
use cloudtik_model::secret;
use cloudtik_model::software::{Fetch, IndexEntry};
use cloudtik_protocol::files::{create_private_directory, remove_tree, write_atomically};
use cloudtik_protocol::logging::plain;
use cloudtik_protocol::pki::sha256_hex;
use cloudtik_runtimes::planner::{Availability, Resolved, Trimming, Wanted};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use self::progress::{Progress, Step};

/// The first pause after a fetch that failed; it doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// A cheap handle.
#[derive(Clone)]
pub struct ArtifactStore {
    directory: PathBuf,
    state: Arc<Mutex<BTreeMap<String, State>>>,
    /// Grows when an artifact has arrived.
    arrivals: watch::Sender<u64>,
    failed: Arc<Mutex<Vec<String>>>,
    tasks: TaskTracker,
    first_pause: Duration,
}

enum State {
    Here {
        artifact: Artifact,
        wanted: Wanted,
        /// It was removed since, and is being fetched again.
        is_restored: bool,
    },
    Fetching(Progress),
    Failed {
        name: String,
        error: String,
        again: Instant,
        /// A goal has asked for it since.
        is_wanted: bool,
        /// Attempts that failed in a row.
        tries: u32,
    },
}

impl ArtifactStore {
    pub fn open(directory: &Path, tasks: TaskTracker) -> anyhow::Result<Self> {
        create_private_directory(directory).with_context(|| format!("making {}", directory.display()))?;
        create_private_directory(&directory.join("index")).with_context(|| format!("making {}", directory.display()))?;
        let (arrivals, first_pause) = (watch::Sender::new(0), FIRST_PAUSE);
        Ok(Self { directory: directory.to_owned(), state: Arc::default(), arrivals, failed: Arc::default(), tasks, first_pause })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, State>> {
        self.state.lock().expect("nothing panics while holding the lock")
    }

    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// The archive of a digest, if it is here.
    pub fn archive(&self, digest: &str) -> Option<PathBuf> {
        if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let path = self.directory.join(format!("{digest}.tar"));
        path.exists().then_some(path)
    }

    /// What there is of some software.
    pub fn availability(&self, wanted: &Wanted) -> Availability {
        let key = key(wanted);
        let mut state = self.state();
        if let Some(State::Here { artifact, .. }) = state.get(&key) {
            return Availability::Here(artifact.clone());
        }
        if let Some(artifact) = self.indexed(&key) {
            state.insert(key, here(&artifact, wanted));
            return Availability::Here(artifact);
        }
        Availability::Coming("fetched by the head".to_owned())
    }

    fn indexed(&self, key: &str) -> Option<Artifact> {
        let IndexEntry { artifact, .. } = serde_json::from_slice(&fs::read(self.index(key)).ok()?).ok()?;
        // An index without its archive (somebody cleaned up) is fetched again.
        (fs::metadata(self.archive(&artifact.digest)?).ok()?.len() == artifact.size).then_some(artifact)
    }

    fn index(&self, key: &str) -> PathBuf {
        self.directory.join("index").join(format!("{key}.json"))
    }

    /// How often it failed in a row to fetch some software, and how the last time.
    pub fn failed(&self, wanted: &Wanted) -> Option<(u32, String)> {
        match self.state().get(&key(wanted)) {
            Some(State::Failed { tries, error, .. }) => Some((*tries, error.clone())),
            _ => None,
        }
    }

    /// What failed since the last look.
    pub fn failures(&self) -> Vec<String> {
        std::mem::take(&mut *self.failed.lock().expect("nothing panics while holding the lock"))
    }

    /// What is being fetched, and what failed, for people.
    pub fn progress(&self) -> Vec<Fetch> {
        let now = Instant::now();
        let describe = |state: &State| match state {
            State::Here { .. } => None,
            State::Fetching(progress) => Some(progress.show(now)),
            State::Failed { name, error, again, .. } => {
                let seconds = again.saturating_duration_since(now).as_secs();
                let step = format!("failed, next try in {seconds} s");
                Some(Fetch { name: name.clone(), step, error: Some(error.clone()), ..Fetch::default() })
            }
        };
        self.state().values().filter_map(describe).collect()
    }

    /// An archive that a node asks for and that somebody removed is fetched again; what runs from it goes on meanwhile.
    pub fn restore(&self, digest: &str) {
        let mut state = self.state();
        let lost = state.iter_mut().find_map(|(key, state)| match state {
            State::Here { artifact, wanted, is_restored } if artifact.digest == digest && !*is_restored => {
                *is_restored = true;
                Some((key.clone(), wanted.clone()))
            }
            _ => None,
        });
        let Some((key, wanted)) = lost else { return };
        let own = self.clone();
        self.tasks.spawn(async move {
            tracing::warn!(artifact = wanted.name, "its archive was removed; it is fetched again");
            match own.fetch_once(&key, &wanted).await {
                Ok(artifact) => {
                    own.state().insert(key, here(&artifact, &wanted));
                    own.arrivals.send_modify(|n| *n += 1);
                }
                Err(error) => {
                    // A node that still needs it asks again.
                    tracing::error!(artifact = wanted.name, "cannot fetch it again: {error:#}");
                    if let Some(State::Here { is_restored, .. }) = own.state().get_mut(&key) {
                        *is_restored = false;
                    }
                }
            }
        });
    }

    /// Begins to fetch what is missing and not being fetched.
    pub fn fetch(&self, wanted: &Wanted) {
        let key = key(wanted);
        match self.state().entry(key.clone()) {
            // It is here, on its way, or its own task tries again.
            Entry::Occupied(mut known) => {
                if let State::Failed { is_wanted, .. } = known.get_mut() {
                    *is_wanted = true;
                }
                return;
            }
            Entry::Vacant(vacant) => drop(vacant.insert(State::Fetching(Progress::new(&wanted.name)))),
        }
        let (own, wanted) = (self.clone(), wanted.clone());
        self.tasks.spawn(async move { own.fetch_until_here(&key, &wanted).await });
    }

    async fn fetch_until_here(&self, key: &str, wanted: &Wanted) {
        let mut failures = 0u32;
        loop {
            let started = Instant::now();
            match self.fetch_once(key, wanted).await {
                Ok(artifact) => {
                    tracing::info!(
                        artifact = wanted.name,
                        digest = artifact.digest,
                        size = artifact.size,
                        seconds = started.elapsed().as_secs(),
                        "fetched"
                    );
                    self.state().insert(key.to_owned(), here(&artifact, wanted));
                    self.arrivals.send_modify(|n| *n += 1);
                    return;
                }
                Err(error) => {
                    let error = plain(&format!("{error:#}"));
                    tracing::error!(artifact = wanted.name, "cannot fetch: {error}");
                    self.failed
                        .lock()
                        .expect("nothing panics while holding the lock")
                        .push(format!("{} cannot be fetched: {error}", wanted.name));
                    failures += 1;
                    let pause = self.first_pause.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
                    let failed = State::Failed {
                        name: wanted.name.clone(),
                        error,
                        again: Instant::now() + pause,
                        is_wanted: false,
                        tries: failures,
                    };
                    self.state().insert(key.to_owned(), failed);
                    self.arrivals.send_modify(|n| *n += 1);
                    tokio::time::sleep(pause).await;
                    if !self.is_still_wanted(key) {
                        tracing::info!(artifact = wanted.name, "not fetched again: no goal needs it");
                        return;
                    }
                    self.say(key, &wanted.name, Step::doing("trying again"));
                }
            }
        }
    }

    /// Whether a goal has asked since the last attempt failed, when all goals that lack software were planned again. What no
    /// goal asked for is forgotten; the next one that does begins anew.
    fn is_still_wanted(&self, key: &str) -> bool {
        let mut state = self.state();
        let is_wanted = !matches!(state.get(key), Some(State::Failed { is_wanted: false, .. }));
        if !is_wanted {
            state.remove(key);
        }
        is_wanted
    }

    fn say(&self, key: &str, name: &str, step: Step) {
        let mut state = self.state();
        match state.get_mut(key) {
            Some(State::Fetching(progress)) => progress.note(step, Instant::now()),
            // What is fetched again is here for whoever has it.
            Some(State::Here { .. }) => {}
            Some(State::Failed { .. }) | None => {
                let mut progress = Progress::new(name);
                progress.note(step, Instant::now());
                state.insert(key.to_owned(), State::Fetching(progress));
            }
        }
    }

    async fn fetch_once(&self, key: &str, wanted: &Wanted) -> anyhow::Result<Artifact> {
        let (own, waited_for, name) = (self.clone(), key.to_owned(), wanted.name.clone());
        // Held until the fetch has ended.
        let _lock = blocking(move || own.lock(&waited_for, &name)).await?;
        let (own, looked_for) = (self.clone(), key.to_owned());
        if let Some(artifact) = blocking(move || Ok(own.indexed(&looked_for))).await? {
            return Ok(artifact);
        }
        let work = self.directory.join(format!(".fetch-{key}"));
        let tree = work.join("tree");
        let made = tree.clone();
        blocking(move || make_room(&made)).await?;
        let said = |step: Step| self.say(key, &wanted.name, step);
        let result = fetch::fetch(wanted, &self.directory.join(format!(".part-{key}")), &work, &tree, &said).await;
        if let Err(error) = result {
            if let Err(left) = blocking(move || Ok(remove_tree(&work)?)).await {
                tracing::warn!("{left:#}");
            }
            return Err(error);
        }
        said(Step::doing("packing"));
        let (own, key, name, source) = (self.clone(), key.to_owned(), wanted.name.clone(), describe(&wanted.source));
        blocking(move || {
            let archive = work.join("archive.tar");
            let (digest, size) = pack::pack(&tree, &archive).context("packing")?;
            fs::rename(&archive, own.directory.join(format!("{digest}.tar")))?;
            remove_tree(&work)?;
            let entry = IndexEntry { artifact: Artifact { name, digest, size }, source };
            write_atomically(&own.index(&key), &serde_json::to_vec(&entry)?, 0o600).context("writing the index")?;
            Ok(entry.artifact)
        })
        .await
    }

    /// Waits until no other head of this user fetches the same. Blocks.
    fn lock(&self, key: &str, name: &str) -> anyhow::Result<fs::File> {
        let path = self.directory.join(format!(".fetch-{key}.lock"));
        let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path).context("locking the fetch")?;
        if lock.try_lock().is_err() {
            self.say(key, name, Step::doing("waiting for another cluster that fetches it"));
            lock.lock().context("locking the fetch")?;
        }
        Ok(lock)
    }
}

/// Makes the empty directory that software is fetched into, and its parent, in place of what an earlier fetch left.
fn make_room(tree: &Path) -> anyhow::Result<()> {
    let work = tree.parent().context("it has a parent")?;
    remove_tree(work).context("removing what an earlier fetch left")?;
    create_private_directory(work).with_context(|| format!("making {}", work.display()))?;
    Ok(create_private_directory(tree)?)
}

/// Does work on files, which may block, on a thread where it holds up nothing.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("working on files")?
}

fn here(artifact: &Artifact, wanted: &Wanted) -> State {
    State::Here { artifact: artifact.clone(), wanted: wanted.clone(), is_restored: false }
}

/// What stands for software: another text is other software. What is changed about it counts; Debian packages count with what their links lead to, which earlier versions did not bring.
fn key(wanted: &Wanted) -> String {
    let mut text = format!("{:?}", wanted.source);
    if matches!(wanted.source, Resolved::Apt { .. }) {
        text.push_str(" with links");
    }
    if wanted.trimming != Trimming::default() {
        text.push_str(&format!(" {:?}", wanted.trimming));
    }
    sha256_hex(text.as_bytes())
}

/// A source, for people.
fn describe(source: &Resolved) -> String {
    secret::redact(&match source {
        Resolved::PipSdist { requirement, .. } => format!("pip: {requirement}"),
        Resolved::Pip { requirements } => format!("pip: {}", requirements.join(", ")),
        Resolved::Apt { packages } => format!("apt: {}", packages.join(", ")),
        Resolved::Url { url, .. } => url.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_fetch_is_repeated_only_while_a_goal_needs_it() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut store = ArtifactStore::open(directory.path(), TaskTracker::new()).expect("opens");
        store.first_pause = Duration::from_millis(100);
        // Nothing listens there.
        let source = Resolved::Url { url: "http://127.0.0.1:1/x.bin".to_owned(), sha256: "0".repeat(64) };
        let wanted = Wanted { name: "x-1".to_owned(), source, trimming: Trimming::default() };
        let mut arrivals = store.arrivals();
        store.fetch(&wanted);
        for attempt in 1..=3 {
            arrivals.changed().await.expect("the store is there");
            assert_eq!(store.failures().len(), 1, "attempt {attempt}");
            assert_eq!(store.failed(&wanted).map(|(tries, _)| tries), Some(attempt));
            // Its goal is planned again.
            store.fetch(&wanted);
        }
        arrivals.changed().await.expect("the store is there");
        assert!(store.progress()[0].error.is_some());
        // Its goal is gone.
        store.tasks.close();
        store.tasks.wait().await;
        assert_eq!(store.progress(), [], "it is not shown any more");
        assert!(!directory.path().join("index").read_dir().expect("lists").any(|_| true));
    }
}
