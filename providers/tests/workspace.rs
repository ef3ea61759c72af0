//! The contract of workspaces, on the local provider and on a strict fake of a cloud.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cloudtik_model::{ClusterName, MoneyPerHour};
use cloudtik_providers::Error;
use cloudtik_providers::conformance::workspace::{World, check};
use cloudtik_providers::local::LocalWorkspace;
use cloudtik_providers::workspace::{
    Action, Cost, Desired, Event, Found, Outcome, Patience, Presence, ResourceId, Status, Step, WorkspaceProvider, run,
};
use tokio::sync::watch;

/// Looks at a workspace before something does not become visible, and enough attempts for the faults that a world injects; each
/// fault passes by itself.
const LOOKS: u32 = 200;
const QUICK: Patience = Patience { attempts: 50, pause: Duration::from_millis(1), longest: Duration::from_millis(5) };

struct LocalWorld(LocalWorkspace);

#[async_trait]
impl World for LocalWorld {
    async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        Ok(Arc::new(self.0.clone()))
    }

    fn patience(&self) -> (Patience, u32) {
        (QUICK, LOOKS)
    }

    async fn add_cluster(&self, name: &ClusterName) -> bool {
        fs::create_dir(self.0.cluster_directory(name)).expect("makes");
        true
    }

    async fn remove_cluster(&self, name: &ClusterName) {
        fs::remove_dir(self.0.cluster_directory(name)).expect("removes");
    }

    async fn damage(&self, resource: &ResourceId) -> bool {
        let path = if resource.as_str() == "clusters" { self.0.directory.join("clusters") } else { self.0.directory.clone() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("opens it");
        true
    }

    async fn exists(&self) -> Option<Vec<String>> {
        let paths = [self.0.directory.clone(), self.0.directory.join("clusters")];
        Some(paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()).collect())
    }
}

#[tokio::test]
async fn a_local_workspace_keeps_the_contract() {
    let home = tempfile::tempdir().expect("a temporary directory");
    check(&LocalWorld(LocalWorkspace { directory: home.path().join("dev") }), &mut |_| {}).await.expect("keeps the contract");
}

#[tokio::test]
async fn a_local_workspace_is_not_removed_with_files_of_others_or_while_a_cluster_is_being_made() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let workspace = LocalWorkspace { directory: home.path().join("dev") };
    let (_stop, stopped) = watch::channel(false);
    run(&workspace, &workspace.plan().await.expect("plans"), Patience::default(), stopped.clone(), |_| {}).await.expect("makes");
    let removal = workspace.delete_plan().await.expect("plans");

    let lock = fs::File::create(workspace.directory.join("clusters/.demo.lock")).expect("makes");
    lock.lock().expect("locks");
    let refused = run(&workspace, &removal, Patience::default(), stopped.clone(), |_| {}).await.expect_err("a command makes a cluster");
    assert!(matches!(&refused.source, Error::Conflict { used_by, .. } if *used_by == ["demo"]), "{refused:?}");
    drop(lock);

    let note = workspace.directory.join("clusters/note.txt");
    fs::write(&note, "mine").expect("writes");
    let refused = run(&workspace, &removal, Patience::default(), stopped.clone(), |_| {}).await.expect_err("a file is there");
    assert!(matches!(&refused.source, Error::Undeletable { .. }), "{refused:?}");
    assert_eq!(fs::read_to_string(&note).expect("reads"), "mine");
    fs::remove_file(note).expect("removes");
    run(&workspace, &removal, Patience::default(), stopped, |_| {}).await.expect("removes");
    assert!(!workspace.directory.exists());
}

/// Looks until what was made is seen, and until what was deleted is gone.
const DELAY: u32 = 3;

/// Resources, what each needs, and whether it costs.
const RESOURCES: [(&str, &[&str], u64); 6] = [
    ("vpc", &[], 0),
    ("subnet", &["vpc"], 0),
    ("gateway", &["vpc"], 0),
    ("nat", &["subnet", "gateway"], 45_000),
    ("firewall", &["vpc"], 0),
    ("role", &[], 0),
];

#[derive(Debug)]
struct Made {
    serial: u32,
    hidden: u32,
    going: Option<u32>,
    is_damaged: bool,
}

#[derive(Default)]
struct Cloud {
    made: BTreeMap<&'static str, Made>,
    clusters: Vec<ClusterName>,
    serial: u32,
    calls: u32,
    /// Whether calls fail in ways that pass.
    is_rough: bool,
    /// The resource that may not be made.
    quota_of: Option<&'static str>,
}

impl Cloud {
    fn tick(&mut self) {
        self.calls += 1;
        for made in self.made.values_mut() {
            made.hidden = made.hidden.saturating_sub(1);
            made.going = made.going.map(|left| left.saturating_sub(1));
        }
        self.made.retain(|_, made| made.going != Some(0));
    }

    fn create(&mut self, id: &'static str, needs: &[&str]) -> Result<(), Error> {
        if self.quota_of == Some(id) {
            return Err(Error::Quota { quota: id.to_owned(), message: "the account has its most of these".to_owned() });
        }
        for need in needs {
            match self.made.get(need) {
                None => return Err(Error::permanent(format!("create {id}"), format!("there is no {need}"))),
                Some(made) if made.hidden > 0 || made.going.is_some() => {
                    return Err(Error::transient(format!("create {id}"), format!("{need} is not available")));
                }
                Some(_) => {}
            }
        }
        match self.made.get_mut(id) {
            Some(made) if made.going.is_some() => return Err(Error::transient(format!("create {id}"), "the old one is being deleted")),
            Some(made) => made.is_damaged = false,
            None => {
                self.serial += 1;
                self.made.insert(id, Made { serial: self.serial, hidden: DELAY, going: None, is_damaged: false });
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: &'static str) -> Result<(), Error> {
        if !self.clusters.is_empty() {
            let used_by = self.clusters.iter().map(ToString::to_string).collect();
            return Err(Error::Conflict { what: "the workspace dev".to_owned(), used_by });
        }
        let users = RESOURCES.iter().filter(|(user, needs, _)| needs.contains(&id) && self.made.contains_key(user));
        let used_by: Vec<String> = users.map(|(user, ..)| (*user).to_owned()).collect();
        if !used_by.is_empty() {
            return Err(Error::Conflict { what: id.to_owned(), used_by });
        }
        match self.made.get_mut(id) {
            None => Ok(()),
            Some(made) => {
                made.going.get_or_insert(DELAY);
                Err(Error::transient(format!("delete {id}"), "it is being deleted"))
            }
        }
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Cloud>>);

impl Fake {
    fn with<T>(&self, look: impl FnOnce(&mut Cloud) -> T) -> T {
        look(&mut self.0.lock().expect("no panic while it is held"))
    }
}

fn throttled() -> Error {
    Error::Throttled { message: "slow down".to_owned(), retry_after: Some(Duration::from_millis(2)) }
}

#[async_trait]
impl WorkspaceProvider for Fake {
    fn name(&self) -> String {
        "dev".to_owned()
    }

    fn desired(&self) -> Vec<Desired> {
        let cost = |price| if price == 0 { Cost::Free } else { Cost::PerHour(MoneyPerHour(price)) };
        let one =
            |(id, _, price): &(&str, &[&str], u64)| Desired { id: ResourceId::new(*id), summary: format!("the {id}"), cost: cost(*price) };
        RESOURCES.iter().map(one).collect()
    }

    async fn status(&self) -> Result<Status, Error> {
        self.with(|cloud| {
            cloud.tick();
            if cloud.is_rough && cloud.calls % 5 == 0 {
                return Err(throttled());
            }
            let found = |(id, ..): &(&str, &[&str], u64)| {
                let made = cloud.made.get(id).filter(|made| made.hidden == 0);
                let presence = match made {
                    None => Presence::Missing,
                    Some(made) if made.going.is_some() => Presence::Deleting,
                    Some(made) if made.is_damaged => Presence::Differs { differences: vec!["a tag is missing".to_owned()] },
                    Some(_) => Presence::Present,
                };
                let outputs = made.map(|made| ("id".to_owned(), format!("{id}-{}", made.serial))).into_iter().collect();
                Found { id: ResourceId::new(*id), presence, outputs }
            };
            Ok(Status { resources: RESOURCES.iter().map(found).collect(), clusters: cloud.clusters.clone() })
        })
    }

    async fn apply(&self, step: &Step) -> Result<(), Error> {
        let known = RESOURCES.iter().find(|(id, ..)| *id == step.resource.as_str());
        let (id, needs, _) = known.ok_or_else(|| Error::NotFound(step.resource.to_string()))?;
        self.with(|cloud| {
            cloud.tick();
            let fault = if cloud.is_rough { cloud.calls % 4 } else { 3 };
            match fault {
                0 => return Err(throttled()),
                1 => return Err(Error::transient("connect", "connection reset")),
                _ => {}
            }
            match step.action {
                Action::Create | Action::Change => cloud.create(id, needs)?,
                Action::Remove => cloud.remove(id)?,
            }
            if fault == 2 { Err(Error::transient("read the answer", "connection reset")) } else { Ok(()) }
        })
    }
}

#[async_trait]
impl World for Fake {
    async fn open(&self) -> Result<Arc<dyn WorkspaceProvider>, Error> {
        Ok(Arc::new(self.clone()))
    }

    fn patience(&self) -> (Patience, u32) {
        (QUICK, LOOKS)
    }

    async fn add_cluster(&self, name: &ClusterName) -> bool {
        self.with(|cloud| cloud.clusters.push(name.clone()));
        true
    }

    async fn remove_cluster(&self, name: &ClusterName) {
        self.with(|cloud| cloud.clusters.retain(|cluster| cluster != name));
    }

    async fn damage(&self, resource: &ResourceId) -> bool {
        self.with(|cloud| cloud.made.get_mut(resource.as_str()).expect("it is there").is_damaged = true);
        true
    }

    async fn exists(&self) -> Option<Vec<String>> {
        Some(self.with(|cloud| cloud.made.iter().map(|(id, made)| format!("{id}-{}", made.serial)).collect()))
    }
}

#[tokio::test]
async fn a_cloud_that_fails_at_every_step_keeps_the_contract() {
    for is_rough in [false, true] {
        let fake = Fake::default();
        fake.with(|cloud| cloud.is_rough = is_rough);
        check(&fake, &mut |_| {}).await.expect("keeps the contract");
    }
}

#[tokio::test]
async fn a_step_that_is_refused_is_named_and_the_next_run_goes_on_there() {
    for (number, (id, ..)) in RESOURCES.iter().enumerate() {
        let fake = Fake::default();
        fake.with(|cloud| cloud.quota_of = Some(id));
        let (_stop, stopped) = watch::channel(false);
        let plan = fake.plan().await.expect("plans");
        assert_eq!(plan.cost(), Cost::PerHour(MoneyPerHour(45_000)));
        let failed = run(&fake, &plan, QUICK, stopped.clone(), |_| {}).await.expect_err("the quota is used up");
        assert!(matches!(failed.source, Error::Quota { .. }), "{failed:?}");
        assert_eq!((failed.applied, failed.step.resource.as_str()), (number, *id));
        let before = fake.exists().await.expect("can be seen");
        assert_eq!(before.len(), number, "the steps before it hold");

        fake.with(|cloud| cloud.quota_of = None);
        run(&fake, &fake.plan().await.expect("plans"), QUICK, stopped, |_| {}).await.expect("goes on");
        let after = fake.exists().await.expect("can be seen");
        assert_eq!(after.len(), RESOURCES.len());
        assert!(before.iter().all(|made| after.contains(made)), "what was made stays: {before:?} {after:?}");
    }
}

#[tokio::test]
async fn a_run_stops_between_steps_and_while_it_waits() {
    let fake = Fake::default();
    let (stop, stopped) = watch::channel(false);
    let plan = fake.plan().await.expect("plans");
    let outcome = run(&fake, &plan, QUICK, stopped, |event| {
        if matches!(event, Event::Done { number: 3, .. }) {
            stop.send_replace(true);
        }
    });
    assert_eq!(outcome.await.expect("no step fails"), Outcome::Stopped { applied: 3 });
    assert_eq!(fake.exists().await.expect("can be seen").len(), 3);

    let (stop, stopped) = watch::channel(false);
    let endless = Patience { attempts: 2, pause: Duration::from_secs(3600), longest: Duration::from_secs(3600) };
    let mut looks = 0;
    while fake.status().await.expect("looks").resources.iter().filter(|found| found.presence == Presence::Present).count() < 3 {
        looks += 1;
        assert!(looks < 10, "what was made becomes visible");
    }
    // Deleting takes a while, so that there is a pause, which lasts until it is told to stop.
    let removal = fake.delete_plan().await.expect("plans");
    let outcome = run(&fake, &removal, endless, stopped, |event| {
        if matches!(event, Event::Waiting { .. }) {
            stop.send_replace(true);
        }
    });
    assert_eq!(outcome.await.expect("no step fails"), Outcome::Stopped { applied: 0 });
}

#[tokio::test]
async fn a_pause_is_as_long_as_the_provider_says() {
    let fake = Fake::default();
    // The next call is the fourth: throttled.
    fake.with(|cloud| (cloud.is_rough, cloud.calls) = (true, 2));
    let (_stop, stopped) = watch::channel(false);
    let plan = fake.plan().await.expect("plans");
    let mut pauses = Vec::new();
    let outcome = run(&fake, &plan, QUICK, stopped, |event| {
        if let Event::Waiting { error: Error::Throttled { .. }, pause, .. } = event {
            pauses.push(pause);
        }
    });
    assert_eq!(outcome.await.expect("no step fails"), Outcome::Done);
    assert_eq!(pauses.first(), Some(&Duration::from_millis(2)), "{pauses:?}");
}
