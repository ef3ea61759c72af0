//! The sequence on a machine of memory, that fails at any call, before or after it had its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Mutex;

use async_trait::async_trait;
use cloudtik_model::{ClusterName, Generation, NodeId};

use super::*;
use crate::conformance;

#[derive(Debug, Clone, PartialEq, Eq)]
enum File {
    Content(Vec<u8>, u32),
    Link(String),
}

/// Where a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// As if the machine could not be reached.
    Before(usize),
    /// As if only the answer were lost.
    After(usize),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    calls: usize,
    copies: usize,
    /// The content of what was started, and the bootstrap payload that it found.
    started: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    ran: Vec<String>,
}

#[derive(Debug)]
struct Fake {
    state: Mutex<State>,
    failing: Option<Failing>,
    /// What is copied arrives damaged.
    corrupts: bool,
    machine: Machine,
    /// Programs that run, by their content.
    running: BTreeSet<Vec<u8>>,
}

impl Fake {
    fn new() -> Self {
        let machine = Machine {
            system: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            free: 1 << 30,
            has_systemd: true,
            has_root: true,
            entries: Vec::new(),
        };
        Self { state: Mutex::default(), failing: None, corrupts: false, machine, running: BTreeSet::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no other holder panics")
    }

    fn call<T>(&self, effect: impl FnOnce(&mut State) -> T) -> Result<T, TransportError> {
        let mut state = self.state();
        state.calls += 1;
        let lost = || TransportError::Unreachable { machine: "m".to_owned(), source: io::Error::from(io::ErrorKind::TimedOut).into() };
        if self.failing == Some(Failing::Before(state.calls)) {
            return Err(lost());
        }
        let answer = effect(&mut state);
        if self.failing == Some(Failing::After(state.calls)) { Err(lost()) } else { Ok(answer) }
    }

    fn files(&self) -> Vec<String> {
        self.state().files.keys().map(|path| path.display().to_string()).collect()
    }
}

impl Fake {
    fn calls(&self) -> usize {
        self.state().calls
    }
    fn copies(&self) -> usize {
        self.state().copies
    }
    fn placed(&self) -> BTreeMap<PathBuf, File> {
        self.state().files.clone()
    }
    fn ran(&self) -> Vec<String> {
        self.state().ran.clone()
    }
    /// How often an agent was started.
    fn starts(&self) -> usize {
        self.state().started.len()
    }
}

impl State {
    fn content(&self, path: &Path) -> Option<Vec<u8>> {
        match self.files.get(path)? {
            File::Content(content, _) => Some(content.clone()),
            File::Link(target) => self.content(&path.with_file_name(target)),
        }
    }
}

fn sha256(content: &[u8]) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content).as_ref());
    Digest::of_bytes(&bytes)
}

#[async_trait]
impl Transport for Fake {
    async fn inspect(&self, _: &Path, programs: &Path) -> Result<Machine, TransportError> {
        self.call(|state| {
            let entry = |(path, file): (&PathBuf, &File)| {
                let leads_to = if let File::Link(target) = file { Some(target.clone()) } else { None };
                let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
                (path.parent() == Some(programs)).then_some(Entry { name, leads_to })
            };
            Machine { entries: state.files.iter().filter_map(entry).collect(), ..self.machine.clone() }
        })
    }

    async fn put(&self, path: &Path, content: Content<'_>, mode: u32) -> Result<(), TransportError> {
        let file = match content {
            Content::File(file) => {
                let mut content = std::fs::read(file).expect("our file");
                if self.corrupts {
                    content.truncate(content.len() / 2);
                }
                File::Content(content, mode)
            }
            Content::Bytes(bytes) => File::Content(bytes.to_owned(), mode),
            Content::Link(target) => File::Link(target.to_owned()),
        };
        self.call(|state| {
            state.copies += usize::from(matches!(content, Content::File(_)));
            state.files.insert(path.to_owned(), file);
        })
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), TransportError> {
        self.call(|state| {
            let file = state.files.remove(from).expect("it is there");
            state.files.insert(to.to_owned(), file);
        })
    }

    async fn remove(&self, path: &Path) -> Result<(), TransportError> {
        self.call(|state| drop(state.files.remove(path)))
    }

    async fn digest(&self, path: &Path) -> Result<Option<Digest>, TransportError> {
        self.call(|state| state.content(path).map(|content| sha256(&content)))
    }

    async fn is_running(&self, path: &Path) -> Result<bool, TransportError> {
        self.call(|state| state.content(path).is_some_and(|content| self.running.contains(&content)))
    }

    async fn read(&self, path: &Path, _: usize) -> Result<Option<Vec<u8>>, TransportError> {
        self.call(|state| state.content(path))
    }

    async fn run(&self, command: &Command) -> Result<Output, TransportError> {
        self.call(|state| {
            state.ran.push(format!("{} {}", command.program.display(), command.arguments.join(" ")));
            Output { status: ExitStatus::from_raw(0), stdout: Vec::new(), stderr: Vec::new() }
        })
    }

    async fn start(&self, command: &Command) -> Result<(), TransportError> {
        self.call(|state| {
            let program = state.content(&command.program).expect("the program that is started is there");
            let payload = state.content(Path::new("/m/node/bootstrap.json"));
            state.started.push((program, payload));
        })
    }
}

/// Programs of ours: an agent and a head that run anywhere, and an agent to be served to other machines.
struct Ours {
    _directory: tempfile::TempDir,
    agent: PathBuf,
    programs: Vec<Program>,
}

fn ours(version: &str) -> Ours {
    let directory = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n# {name} {version}\n")).expect("writes");
        path
    };
    let read = |name, file: &str| Program::read(name, &write(file)).expect("reads");
    let programs = vec![read(AGENT, AGENT), read(HEAD, HEAD), read(AGENT, "other").to_serve(Architecture::Aarch64)];
    Ours { agent: directory.path().join(AGENT), _directory: directory, programs }
}

fn bootstrap(node: &str, generation: u32) -> Bootstrap {
    conformance::request(&NodeId::new(node).expect("valid"), Generation(generation), "10.0.0.1:9", "CA").bootstrap
}

async fn make(fake: &Fake, programs: &[Program], bootstrap: &Bootstrap, start: Start) -> Result<(), Error> {
    let layout = Layout::of_machine(Path::new("/m"));
    run(fake, &Order { layout: &layout, may_create_root: false, programs, bootstrap: Some(bootstrap), start }).await
}

#[tokio::test]
async fn what_breaks_off_at_any_call_goes_on_and_runs_nothing_that_is_not_whole() {
    let ours = ours("1");
    let agent = std::fs::read(&ours.agent).expect("reads");
    let payload = bootstrap("w1", 1);
    let whole = Fake::new();
    make(&whole, &ours.programs, &payload, Start::Detached).await.expect("makes a node");
    let (calls, files) = (whole.calls(), whole.placed());
    assert!(calls > 10, "{calls}");
    let mut steps = Vec::new();
    for failing in (1..=calls).flat_map(|call| [Failing::Before(call), Failing::After(call)]) {
        let mut fake = Fake { failing: Some(failing), ..Fake::new() };
        let error = make(&fake, &ours.programs, &payload, Start::Detached).await.expect_err("a call failed");
        assert!(!error.is_permanent() && matches!(error.cause, Cause::Transport(TransportError::Unreachable { .. })), "{error:?}");
        steps.push(error.step);
        fake.failing = None;
        make(&fake, &ours.programs, &payload, Start::Detached).await.unwrap_or_else(|e| panic!("{failing:?}: {e:?}"));
        let state = fake.state();
        assert_eq!(state.files, files, "{failing:?}: the same is there in the end");
        let expected = serde_json::to_vec(&payload).expect("a document");
        let is_whole = |(program, payload): &(Vec<u8>, Option<Vec<u8>>)| *program == agent && payload.as_ref() == Some(&expected);
        assert!(!state.started.is_empty() && state.started.iter().all(is_whole), "{failing:?}: {:?}", state.started);
        assert!(state.copies <= ours.programs.len() + 1, "{failing:?}: what is whole is not copied again");
    }
    steps.dedup();
    let place = |link: &str| Step::Place(link.to_owned());
    let places = [place("cloudtik-agent"), place("cloudtik-head"), place("cloudtik-agent.aarch64")];
    let expected = [&[Step::Check], places.as_slice(), &[Step::RemoveOld, Step::WriteBootstrap, Step::Start]].concat();
    assert_eq!(steps, expected, "a failure names its step");
    assert_eq!(
        whole.placed()[Path::new("/m/node/bootstrap.json")],
        File::Content(serde_json::to_vec(&payload).expect("a document"), SECRET)
    );
}

#[tokio::test]
async fn a_node_that_is_made_is_only_started_again() {
    let (fake, ours, payload) = (Fake::new(), ours("1"), bootstrap("w1", 1));
    make(&fake, &ours.programs, &payload, Start::Detached).await.expect("makes a node");
    let (copies, files) = (fake.copies(), fake.placed());
    let later = Bootstrap { token: "another".to_owned(), ..payload };
    make(&fake, &ours.programs, &later, Start::Detached).await.expect("does it again");
    let state = fake.state();
    assert_eq!((state.copies, &state.files, state.started.len()), (copies, &files, 2), "the first payload stands");
}

#[tokio::test]
async fn what_arrives_damaged_gets_no_name_and_what_was_damaged_is_replaced() {
    let (mut fake, ours, payload) = (Fake { corrupts: true, ..Fake::new() }, ours("1"), bootstrap("w1", 1));
    for _ in 0..2 {
        let error = make(&fake, &ours.programs, &payload, Start::Detached).await.expect_err("it is not whole");
        assert!(matches!(&error.cause, Cause::Corrupt { expected, .. } if *expected == ours.programs[0].digest), "{error:?}");
        assert_eq!((error.to_string().as_str(), error.step), ("cannot place cloudtik-agent", Step::Place("cloudtik-agent".to_owned())));
        assert_eq!(fake.files(), Vec::<String>::new(), "nothing is left of it");
    }
    assert!(fake.state().started.is_empty());
    fake.corrupts = false;
    make(&fake, &ours.programs, &payload, Start::Detached).await.expect("makes a node");
    let path = PathBuf::from("/m/bin").join(ours.programs[0].file_name());
    fake.state().files.insert(path.clone(), File::Content(b"changed on the machine".to_vec(), PROGRAM));
    fake.state().started.clear();
    make(&fake, &ours.programs, &payload, Start::Detached).await.expect("makes it whole again");
    let agent = std::fs::read(&ours.agent).expect("reads");
    assert_eq!(fake.state().started.iter().map(|(program, _)| program).collect::<Vec<_>>(), [&agent]);
    // The program itself was overwritten here, under the name that it was placed as.
    let directory = tempfile::tempdir().expect("temporary directory");
    let placed = directory.path().join(ours.programs[0].file_name());
    std::fs::write(&placed, "overwritten").expect("writes");
    let overwritten = [Program::read(AGENT, &placed).expect("reads")];
    assert_eq!(overwritten[0].digest, ours.programs[0].digest, "it goes by its name");
    let error = make(&Fake::new(), &overwritten, &payload, Start::Detached).await.expect_err("it is not what its name says");
    assert!(matches!(error.cause, Cause::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn a_machine_that_does_not_fit_is_left_as_it_is() {
    let (ours, payload) = (ours("1"), bootstrap("w1", 1));
    let arm = Program { arch: Some(Architecture::Aarch64), ..ours.programs[0].clone() };
    let with = |change: fn(&mut Machine)| {
        let mut fake = Fake::new();
        change(&mut fake.machine);
        fake
    };
    let cases = [
        (Fake::new(), vec![arm.clone()], "cloudtik-agent is for aarch64, the machine is x86_64", true),
        (with(|m| m.system = "freebsd".to_owned()), ours.programs.clone(), "agents do not run on freebsd", true),
        (with(|m| m.free = 1 << 20), ours.programs.clone(), "the disk is full: /m/bin has 1048576 bytes, and", false),
        (with(|m| m.has_root = false), ours.programs.clone(), "its directory /m is missing", false),
    ];
    for (fake, programs, why, is_permanent) in cases {
        let error = make(&fake, &programs, &payload, Start::Detached).await.expect_err(why);
        assert!(error.cause.to_string().starts_with(why) && error.step == Step::Check, "{error:?}");
        assert_eq!(error.is_permanent(), is_permanent, "{why}");
        assert_eq!((fake.files(), fake.starts()), (Vec::new(), 0), "{why}");
    }
    // One that is only served may be for any machine.
    make(&Fake::new(), &[ours.programs[0].clone(), arm.to_serve(Architecture::Aarch64)], &payload, Start::Detached)
        .await
        .expect("makes a node");

    let fake = Fake::new();
    make(&fake, &ours.programs, &payload, Start::Detached).await.expect("makes a node");
    for other in [bootstrap("w1", 2), bootstrap("w2", 1), Bootstrap { cluster: ClusterName::new("other").expect("valid"), ..payload }] {
        let error = make(&fake, &ours.programs, &other, Start::Detached).await.expect_err("it is another node");
        assert!(matches!(error.cause, Cause::Occupied { .. }) && error.is_permanent(), "{error:?}");
    }
    assert_eq!(fake.starts(), 1);
}

#[tokio::test]
async fn programs_that_nothing_leads_to_are_removed_once_nothing_runs_them() {
    let (mut fake, payload) = (Fake::new(), bootstrap("w1", 1));
    let (old, new) = (ours("1"), ours("2"));
    make(&fake, &old.programs, &payload, Start::Detached).await.expect("makes a node");
    let foreign = PathBuf::from("/m/bin/cloudtik-agent-of-somebody");
    fake.state().files.insert(foreign.clone(), File::Content(Vec::new(), PROGRAM));
    fake.running.insert(std::fs::read(&old.agent).expect("reads"));
    let layout = Layout::of_machine(Path::new("/m"));
    assert!(place(&fake, &layout, &new.programs).await.expect("places"), "something else is started from now on");
    let is_there = |program: &Program| fake.placed().contains_key(&layout.bin().join(program.file_name()));
    assert!(new.programs.iter().all(is_there));
    assert_eq!(old.programs.iter().map(is_there).collect::<Vec<_>>(), [true, false, false], "the old agent runs");
    fake.running.clear();
    assert!(!place(&fake, &layout, &new.programs).await.expect("places"), "nothing changed");
    let is_there = |program: &Program| fake.placed().contains_key(&layout.bin().join(program.file_name()));
    assert!(!is_there(&old.programs[0]) && fake.placed().contains_key(&foreign));
    assert_eq!(fake.starts(), 1, "placing starts nothing");
}

#[tokio::test]
async fn systemd_keeps_the_agent_where_it_is_asked_for_and_there() {
    let (ours, payload) = (ours("1"), bootstrap("w1", 1));
    let asked = || Start::Systemd("cloudtik-agent".to_owned());
    let fake = Fake::new();
    make(&fake, &ours.programs, &payload, asked()).await.expect("makes a node");
    assert_eq!(fake.ran(), ["systemctl daemon-reload", "systemctl enable --now cloudtik-agent.service"]);
    assert!(fake.state().started.is_empty());
    let text = systemd::unit(Path::new("/m/bin/cloudtik-agent"), Path::new("/m/node"));
    assert_eq!(fake.placed()[&systemd::path("cloudtik-agent")], File::Content(text.into_bytes(), 0o644));

    let mut without = Fake::new();
    without.machine.has_systemd = false;
    make(&without, &ours.programs, &payload, asked()).await.expect("makes a node");
    assert_eq!((without.ran().len(), without.starts()), (0, 1));

    // A machine that has nothing yet.
    let mut bare = Fake::new();
    bare.machine.has_root = false;
    let layout = Layout::of_machine(Path::new("/m"));
    let order =
        Order { layout: &layout, may_create_root: true, programs: &ours.programs, bootstrap: Some(&payload), start: Start::Detached };
    run(&bare, &order).await.expect("makes a node");
    assert_eq!(bare.ran(), ["/bin/mkdir -p -m 700 /m"]);
}
