//! Access of several people to one cluster, from homes of their own, over mutual TLS: roles, invitations, revocation.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloudtik_model::access::{Grant, Granted, Role};
use cloudtik_model::{AdministratorName, ClusterName};
use cloudtik_protocol::pki::{self, Identity, Intermediate, Root};
use cloudtik_protocol::wire::admin_client::AdminClient;
use cloudtik_protocol::wire::open_request::What;
use cloudtik_protocol::wire::session_frame::Frame;
use cloudtik_protocol::{AdminMethod, tls, transport, wire};
use cloudtik_tests::{Cluster, Ran, programs, until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The exit status of what a person may not do.
const NOT_AUTHORISED: i32 = 7;

/// Somebody else, with a home of their own.
struct Person {
    home: TempDir,
}

impl Person {
    fn new() -> Self {
        Self { home: tempfile::Builder::new().prefix("ctkhome").tempdir().expect("a temporary directory") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs().join("cloudtik"));
        command.args(arguments).env("CLOUDTIK_HOME", self.home.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let begun = Instant::now();
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("cloudtik runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr), took: begun.elapsed() }
    }

    /// Where access to the cluster is kept.
    fn directory(&self, cluster: &str) -> PathBuf {
        self.home.path().join("remote/default/clusters").join(cluster)
    }

    fn identity(&self, cluster: &Cluster) -> Identity {
        let directory = self.directory(&cluster.name);
        let key = pki::load_key(&directory.join("key.pem")).expect("reads");
        Identity { chain: pki::load_chain(&directory.join("chain.pem")).expect("reads"), key: pki::private_key(&key) }
    }
}

fn client_config(cluster: &Cluster, identity: &Identity) -> Arc<rustls::ClientConfig> {
    tls::install_crypto();
    let root = pki::load_chain(&cluster.directory().join("ca/root.crt")).expect("reads").remove(0);
    tls::client_config(&root, Some(identity)).expect("a config")
}

async fn admin(cluster: &Cluster, identity: &Identity) -> AdminClient<Channel> {
    let name = tls::server_name(&pki::head_name(&ClusterName::new(&cluster.name).expect("valid")));
    let dialled = transport::dial(&cluster.status().head.address, None, &name, client_config(cluster, identity)).await;
    AdminClient::new(dialled.expect("dials"))
}

/// The first line of the answer to a request for `/metrics`.
async fn metrics(cluster: &Cluster, identity: &Identity, address: &str, name: &str) -> String {
    let stream = TcpStream::connect(address).await.expect("connects");
    let connector = tokio_rustls::TlsConnector::from(client_config(cluster, identity));
    let mut stream = connector.connect(tls::server_name(name), stream).await.expect("a handshake");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.expect("asks");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text).await;
    text.lines().next().unwrap_or_default().to_owned()
}

fn grant(cluster: &Cluster, name: &str, role: &str, more: &[&str]) -> Granted {
    let arguments = [&["access", "grant", &cluster.name, name, "--role", role, "-o", "json"], more].concat();
    serde_json::from_str(&cluster.run(&arguments).ok().out).expect("a document")
}

/// Somebody who was invited and has accepted.
fn with_access(cluster: &Cluster, name: &str, role: &str, more: &[&str]) -> Person {
    let (person, granted) = (Person::new(), grant(cluster, name, role, more));
    person.run(&["access", "accept", &granted.invitation]).ok();
    person
}

fn grants(cluster: &Cluster) -> Vec<Grant> {
    serde_json::from_str(&cluster.run(&["access", "list", &cluster.name, "-o", "json"]).ok().out).expect("a document")
}

/// Asks for a method with an empty request, or one that changes nothing if it is let through.
async fn ask(admin: &mut AdminClient<Channel>, method: AdminMethod) -> Result<(), Status> {
    use AdminMethod as M;
    let nobody = || wire::NodeRequest { node: "nobody".to_owned() };
    let nothing = || wire::JobRequest { job: "nothing".to_owned() };
    match method {
        M::Apply => admin.apply(wire::ApplyRequest { plan_only: true, ..Default::default() }).await.map(drop),
        M::Status => admin.status(wire::StatusRequest::default()).await.map(drop),
        M::Watch => admin.watch(wire::Empty {}).await.map(drop),
        M::Events => admin.events(wire::EventsRequest::default()).await.map(drop),
        M::Explain => admin.explain(nobody()).await.map(drop),
        M::Scale => admin.scale(wire::ScaleRequest::default()).await.map(drop),
        M::Outlook => admin.outlook(wire::Empty {}).await.map(drop),
        M::Revoke => admin.revoke(wire::RevokeRequest { name: "nothing".to_owned(), now: false }).await.map(drop),
        M::Hold => admin.hold(wire::HoldRequest::default()).await.map(drop),
        M::Resume => admin.resume(wire::Empty {}).await.map(drop),
        M::RolloutStatus => admin.rollout_status(wire::Empty {}).await.map(drop),
        M::RolloutResume => admin.rollout_resume(wire::Empty {}).await.map(drop),
        M::RolloutUndo => admin.rollout_undo(wire::RolloutUndoRequest { plan_only: false }).await.map(drop),
        M::QuarantineNode => {
            admin.quarantine_node(wire::QuarantineRequest { node: "nobody".to_owned(), ..Default::default() }).await.map(drop)
        }
        M::ReleaseNode => admin.release_node(nobody()).await.map(drop),
        M::KillNode => admin.kill_node(nobody()).await.map(drop),
        M::DrainNode => admin.drain_node(nobody()).await.map(drop),
        M::Shutdown => admin.shutdown(wire::Empty {}).await.map(drop),
        M::Dump => admin.dump(wire::Empty {}).await.map(drop),
        M::Session => open(admin, What::Logs(wire::Logs { lines: 1, ..Default::default() })).await,
        M::AccessList => admin.access_list(wire::Empty {}).await.map(drop),
        M::AccessGrant => admin.access_grant(wire::AccessGrantRequest::default()).await.map(drop),
        M::JobsSubmit => admin.jobs_submit(tokio_stream::empty()).await.map(drop),
        M::JobsList => admin.jobs_list(wire::Empty {}).await.map(drop),
        M::JobsStatus => admin.jobs_status(nothing()).await.map(drop),
        M::JobsWatch => admin.jobs_watch(nothing()).await.map(drop),
        M::JobsCancel => admin.jobs_cancel(nothing()).await.map(drop),
        M::JobsDelete => admin.jobs_delete(nothing()).await.map(drop),
        M::AccessRevoke => admin.access_revoke(wire::AccessRevokeRequest { name: "nobody".to_owned() }).await.map(drop),
    }
}

async fn open(admin: &mut AdminClient<Channel>, what: What) -> Result<(), Status> {
    let open = wire::OpenRequest { node: String::new(), what: Some(what) };
    let (sender, frames) = tokio::sync::mpsc::channel(4);
    sender.send(wire::SessionFrame { frame: Some(Frame::Open(open)) }).await.expect("there is room");
    let mut answer = admin.session(tokio_stream::wrappers::ReceiverStream::new(frames)).await?.into_inner();
    answer.message().await.map(drop)
}

/// The least role for each method, by the documentation.
fn documented(method: AdminMethod) -> Role {
    use AdminMethod as M;
    match method {
        M::Status | M::Watch | M::Events | M::Explain | M::Outlook | M::RolloutStatus | M::Session => Role::Viewer,
        M::JobsList | M::JobsStatus | M::JobsWatch => Role::Viewer,
        M::JobsSubmit | M::JobsCancel | M::JobsDelete => Role::Operator,
        M::Scale | M::Revoke | M::Hold | M::Resume | M::RolloutResume => Role::Operator,
        M::QuarantineNode | M::ReleaseNode | M::KillNode | M::DrainNode => Role::Operator,
        M::Apply | M::RolloutUndo | M::Shutdown | M::Dump | M::AccessList | M::AccessGrant | M::AccessRevoke => Role::Admin,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_do_what_is_documented_and_nothing_else() {
    let cluster = Cluster::new("roles", "[workers.default]\nmin = 1\nmax = 2");
    cluster.up();
    for role in [Role::Viewer, Role::Operator, Role::Admin] {
        let person = with_access(&cluster, role.name(), role.name(), &[]);
        let mut admin = admin(&cluster, &person.identity(&cluster)).await;
        // The end of the cluster comes last, from the one who may.
        for method in AdminMethod::ALL.iter().copied().filter(|method| *method != AdminMethod::Shutdown || role < Role::Admin) {
            let answer = ask(&mut admin, method).await;
            match answer {
                Err(status) if role < documented(method) => {
                    assert_eq!(status.code(), Code::PermissionDenied, "{role} {method:?}: {status:?}");
                    let said = format!("needs the role {}; {role} has the role {role}", documented(method));
                    assert!(status.message().contains(&said), "{method:?}: {status:?}");
                }
                Ok(()) => assert!(role >= documented(method), "{role} may not {method:?}"),
                // Let through, and then answered for what was asked.
                Err(status) => {
                    let is_refused = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented);
                    assert!(!is_refused, "{role} may {method:?}: {status:?}");
                }
            }
        }
        let execute = wire::Execute { command: vec!["true".to_owned()], ..Default::default() };
        let refused = matches!(open(&mut admin, What::Execute(execute)).await, Err(status) if status.code() == Code::PermissionDenied);
        assert_eq!(refused, role < Role::Operator, "{role}");
    }
    cluster.run(&["resume", "roles"]).ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_for_those_whose_access_holds_and_agents_are_not_for_people() {
    let cluster = Cluster::new("measured", "[workers.default]\nmin = 1\nmax = 1");
    cluster.up();
    let name = ClusterName::new(&cluster.name).expect("valid");
    let identity = with_access(&cluster, "vera", "viewer", &[]).identity(&cluster);
    let (head, head_name) = (cluster.status().head.address, pki::head_name(&name));
    assert!(metrics(&cluster, &identity, &head, &head_name).await.contains("200"));
    let node = cluster.node("w1");
    let agent = format!("{}:{}", node.address.expect("an address"), node.agent.expect("an agent").health_port);
    let agent_name = pki::node_name(&name, &node.id);
    assert!(metrics(&cluster, &identity, &agent, &agent_name).await.contains("403"), "only the head knows whose access holds");
    cluster.run(&["access", "revoke", "measured", "vera"]).ok();
    assert!(metrics(&cluster, &identity, &head, &head_name).await.contains("403"));

    // Whoever has the root's key needs no grant; one that the head's intermediate signed for no grant is nobody's.
    let root = Root::load_or_generate(&name, &cluster.directory().join("ca")).expect("reads");
    let anna = AdministratorName::new("anna").expect("valid");
    let mut owner = admin(&cluster, &root.admin(&anna, Duration::from_secs(3600)).expect("makes")).await;
    owner.dump(wire::Empty {}).await.expect("may everything");
    let directory = cluster.directory().join("head/identity");
    let certificate = pki::load_chain(&directory.join("intermediate.crt")).expect("reads").remove(0);
    let head = Intermediate::new(&name, pki::load_key(&directory.join("intermediate.key")).expect("reads"), certificate);
    let key = rcgen::KeyPair::generate().expect("a key");
    let request = pki::certificate_request(&key).expect("a request");
    let chain = head.sign_administrator(&request, &anna, Role::Admin, 99, Duration::from_secs(3600)).expect("signs");
    let mut unknown = admin(&cluster, &Identity { chain, key: pki::private_key(&key) }).await;
    let refused = unknown.status(wire::StatusRequest::default()).await.expect_err("nobody granted it");
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "the access of anna is not known to this head"));
}

#[test]
fn two_people_use_one_cluster_from_homes_of_their_own() {
    let cluster = Cluster::new("shared", "[workers.default]\nmin = 1\nmax = 2");
    cluster.up();
    let (viewer, operator) = (with_access(&cluster, "vera", "viewer", &[]), with_access(&cluster, "otto@example.org", "operator", &[]));
    let refusals = |ran: &Ran, name: &str, least: &str, has: &str| {
        assert_eq!(ran.code, NOT_AUTHORISED, "{}{}", ran.out, ran.err);
        assert!(ran.err.contains(&format!("needs the role {least}; {name} has the role {has}")), "{}", ran.err);
    };
    for (person, name, role) in [(&viewer, "vera", "viewer"), (&operator, "otto@example.org", "operator")] {
        assert!(person.run(&["status", "shared"]).ok().out.contains("shared: ready"));
        for reading in [&["nodes"][..], &["events"], &["why"], &["requests"], &["info"], &["logs"], &["runtimes"]] {
            person.run(&[reading, &["shared"]].concat()).ok();
        }
        assert!(person.run(&["list"]).ok().out.contains("shared"));
        refusals(&person.run(&["access", "list", "shared"]), name, "admin", role);
    }
    refusals(&viewer.run(&["exec", "shared", "--", "true"]), "vera", "operator", "viewer");
    refusals(&viewer.run(&["scale", "shared", "--workers", "2"]), "vera", "operator", "viewer");
    refusals(&viewer.run(&["upload", "shared", "/etc/hostname", "/tmp/"]), "vera", "operator", "viewer");
    assert_eq!(operator.run(&["exec", "shared", "--node", "w1", "--", "echo", "hello"]).ok().out, "hello\n");
    operator.run(&["scale", "shared", "--workers", "2", "--wait"]).ok();
    assert_eq!(cluster.status().nodes.len(), 3);
    refusals(&operator.run(&["dump", "shared"]), "otto@example.org", "admin", "operator");

    // What they did and were given is told, with who it was.
    let events = cluster.run(&["events", "shared"]).ok().out;
    let by_otto = "(by otto@example.org, operator)";
    for (said, by) in [
        ("access granted to vera as viewer", "(by the local user)"),
        ("vera accepted access as viewer, from 127.", "(by vera, viewer)"),
        ("exec echo", by_otto),
        ("scale: default: ", by_otto),
    ] {
        assert!(events.lines().any(|line| line.contains(said) && line.ends_with(by)), "{said} {by}: {events}");
    }
    // Keys and certificates are their owner's, and the key never left: the head has no copy of it.
    let mut secret = None;
    for file in ["access.json", "key.pem", "chain.pem", "ca.pem"] {
        let path = viewer.directory("shared").join(file);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600, "{}", path.display());
        if file == "key.pem" {
            secret = fs::read_to_string(&path).expect("reads").lines().nth(1).map(str::to_owned);
        }
    }
    let secret = secret.expect("a key in PEM");
    assert_eq!(find(&cluster.state(), secret.as_bytes()), Vec::<PathBuf>::new());
    assert_eq!(find(viewer.home.path(), secret.as_bytes()), [viewer.directory("shared").join("key.pem")]);
}

/// Who an event names: a person, or the kind of actor.
fn actor_of(cluster: &Cluster, said: &str) -> String {
    let out = cluster.run(&["events", &cluster.name, "-o", "json"]).ok().out;
    let mut events = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an event a line"));
    let event = events.rfind(|event| event["message"].as_str().is_some_and(|message| message.contains(said)));
    let actor = event.unwrap_or_else(|| panic!("no event says {said:?}:\n{out}"))["actor"].clone();
    actor["name"].as_str().or(actor["actor"].as_str()).unwrap_or_default().to_owned()
}

/// The files below a directory that contain some bytes.
fn find(directory: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            found.extend(find(&entry.path(), bytes));
        } else if kind.is_file() && fs::read(entry.path()).is_ok_and(|content| content.windows(bytes.len()).any(|part| part == bytes)) {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn an_admin_applies_a_file_and_takes_the_cluster_down_from_elsewhere() {
    let cluster = Cluster::new("ruled", "[workers.default]\nmin = 1\nmax = 2");
    cluster.up();
    let (operator, admin) = (with_access(&cluster, "otto", "operator", &[]), with_access(&cluster, "anna", "admin", &[]));
    cluster.write("[workers.default]\nmin = 2\nmax = 2");
    let file = cluster.file.display().to_string();
    let refused = operator.run(&["up", &file, "--yes"]);
    assert!(refused.code == NOT_AUTHORISED && refused.err.contains("apply needs the role admin"), "{}", refused.err);
    assert!(admin.run(&["up", &file, "--plan"]).ok().out.contains("default"), "the plan names the type");
    assert_eq!(cluster.status().nodes.len(), 2);
    admin.run(&["up", &file, "--yes"]).ok();
    assert_eq!(cluster.status().nodes.len(), 3);
    assert!(admin.run(&["up", &file, "--yes"]).ok().err.contains("nothing to do"));
    assert!(!admin.home.path().join("workspaces").exists(), "nothing was made here");

    let own = admin.run(&["access", "grant", "ruled", "vera", "--role", "viewer"]).ok();
    let invitation = own.out.trim().strip_prefix("cloudtik access accept ").expect("the command").to_owned();
    let viewer = Person::new();
    viewer.run(&["access", "accept", &invitation]).ok();
    let events = cluster.run(&["events", "ruled"]).ok().out;
    assert!(events.contains("access granted to vera as viewer (by anna, admin)"), "{events}");
    assert_eq!(actor_of(&cluster, "access granted to vera as viewer"), "anna");

    let refused = operator.run(&["down", "ruled", "--yes"]);
    assert!(refused.code == NOT_AUTHORISED && refused.err.contains("shutdown needs the role admin"), "{}", refused.err);
    let ran = admin.run(&["down", "ruled", "--yes"]).ok();
    assert!(ran.err.contains("Its head stays"), "{}", ran.err);
    assert_eq!(admin.run(&["nodes", "ruled", "-o", "json"]).ok().out.matches("\"kind\": \"worker\"").count(), 0);
    assert!(viewer.run(&["status", "ruled"]).ok().out.contains("stopped"), "access goes on");
}

#[test]
fn an_invitation_is_good_once_for_a_while_and_for_the_cluster_that_it_names() {
    let cluster = Cluster::new("invited", "[workers.default]\nmin = 0\nmax = 1");
    cluster.up();
    let not_valid = |ran: Ran| {
        assert_eq!(ran.code, NOT_AUTHORISED, "{}{}", ran.out, ran.err);
        assert!(ran.err.contains("the invitation is not valid, or was used"), "{}", ran.err);
    };
    // Late.
    let (late, person) = (grant(&cluster, "ada", "viewer", &["--accept-within", "1s"]), Person::new());
    until("the end of the invitation", Duration::from_secs(10), || {
        (grants(&cluster)[0].state == cloudtik_model::access::GrantState::Lapsed).then_some(())
    });
    not_valid(person.run(&["access", "accept", &late.invitation]));

    let granted = grant(&cluster, "ada", "viewer", &[]);
    let again = cluster.run(&["access", "grant", "invited", "ada", "--role", "admin"]);
    assert_eq!(again.code, 5, "{}", again.err);
    assert!(again.err.contains("ada has an invitation as viewer that was not accepted yet; revoke it first"), "{}", again.err);

    // Of another authority, the token of which is not shown to anybody.
    let (rest, token) = granted.invitation.rsplit_once('/').expect("an invitation");
    let (head, ca) = rest.rsplit_once('/').expect("an invitation");
    let other = format!("{head}/{}/{token}", pki::sha256_hex(ca.as_bytes()));
    let ran = person.run(&["access", "accept", &other]);
    assert_eq!(ran.code, 6, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("cannot reach the head of invited"), "{}", ran.err);
    assert!(!ran.err.contains(token), "secrets are not repeated: {}", ran.err);
    not_valid(person.run(&["access", "accept", &format!("{rest}/{}", "0".repeat(64))]));
    assert_eq!(person.run(&["access", "accept", "cloudtik://invited"]).code, 2);
    assert!(!person.directory("invited").exists(), "nothing is left of attempts");

    let accepted = person.run(&["access", "accept", &granted.invitation, "-o", "json"]).ok();
    let accepted: serde_json::Value = serde_json::from_str(&accepted.out).expect("a document");
    assert_eq!(
        (accepted["name"].as_str(), accepted["role"].as_str(), accepted["local_name"].as_str()),
        (Some("ada"), Some("viewer"), Some("invited"))
    );
    not_valid(Person::new().run(&["access", "accept", &granted.invitation]));
    person.run(&["status", "invited"]).ok();
    // Tokens are kept as digests.
    assert_eq!(find(&cluster.directory(), token.as_bytes()), Vec::<PathBuf>::new());

    // A name that this home has for another cluster is not taken over.
    let granted = grant(&cluster, "own", "viewer", &[]);
    let refused = cluster.run(&["access", "accept", &granted.invitation]);
    assert_eq!(refused.code, 5, "{}", refused.err);
    assert!(refused.err.contains("--as NAME"), "{}", refused.err);
    let address = cluster.status().head.address;
    cluster.run(&["access", "accept", &granted.invitation, "--as", "mirror", "--address", &address]).ok();
    assert!(cluster.run(&["status", "mirror"]).ok().out.contains("invited: ready"));

    // Whoever guesses waits.
    let guesser = Person::new();
    let limited = until("the limit", Duration::from_secs(30), || {
        let ran = guesser.run(&["access", "accept", &format!("{rest}/{}", "1".repeat(64))]);
        (ran.code != NOT_AUTHORISED).then_some(ran)
    });
    assert!(limited.code == 5 && limited.err.contains("too many invitations from this address were not valid"), "{}", limited.err);
}

/// A command that goes on, and its lines.
fn following(person: &Person, arguments: &[&str]) -> (Child, std::sync::mpsc::Receiver<String>) {
    let mut child = person.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cloudtik runs");
    let output = child.stdout.take().expect("piped");
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    (child, lines)
}

/// Waits for the end of what a person follows; returns what it said and how long that took.
fn end_of(mut child: Child, since: Instant) -> (i32, String, Duration) {
    let status = until("the end of the stream", Duration::from_secs(20), || child.try_wait().expect("is ours"));
    let took = since.elapsed();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("reads");
    (status.code().unwrap_or(-1), said, took)
}

#[test]
fn a_revoked_person_is_refused_at_once_and_what_they_follow_ends() {
    let cluster = Cluster::new("revoked", "[workers.default]\nmin = 1\nmax = 1");
    cluster.up();
    let person = with_access(&cluster, "olga", "operator", &[]);
    let bystander = with_access(&cluster, "vera", "viewer", &[]);
    let streams: [&[&str]; 4] = [
        &["events", "revoked", "-f"],
        &["status", "revoked", "-w"],
        &["logs", "revoked", "-f"],
        &["exec", "revoked", "--node", "w1", "--", "sh", "-c", "echo runs; exec sleep 1000"],
    ];
    let running: Vec<_> = streams.iter().map(|arguments| following(&person, arguments)).collect();
    for (arguments, (_, lines)) in streams.iter().zip(&running) {
        lines.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("{arguments:?} says something"));
    }
    let (mut other, others) = following(&bystander, &["events", "revoked", "-f"]);
    others.recv_timeout(Duration::from_secs(20)).expect("says something");
    cluster.run(&["access", "revoke", "revoked", "olga"]).ok();
    let since = Instant::now();
    for (arguments, (child, _)) in streams.iter().zip(running) {
        let (code, said, took) = end_of(child, since);
        assert_eq!(code, NOT_AUTHORISED, "{arguments:?}: {said}");
        assert!(said.contains("the access of olga was revoked"), "{arguments:?}: {said}");
        assert!(took < Duration::from_secs(1), "{arguments:?} ended after {took:?}");
    }
    let refused = person.run(&["status", "revoked"]);
    assert!(refused.code == NOT_AUTHORISED && refused.err.contains("the access of olga was revoked"), "{}", refused.err);
    let listed = person.run(&["list"]).ok().out;
    assert!(listed.lines().any(|line| line.starts_with("revoked") && line.contains("no-access")), "{listed}");
    assert!(other.try_wait().expect("is ours").is_none(), "others go on");
    other.kill().expect("is ours");
    other.wait().expect("is ours");
    until("the end of the program", Duration::from_secs(10), || {
        (!cluster.processes().iter().any(|(_, line)| line.contains("sleep 1000"))).then_some(())
    });

    // Another head knows it as well.
    let head = cluster.status().head.pid;
    cloudtik_tests::send(head as i32, nix::sys::signal::Signal::SIGKILL);
    cluster.wait("another head", Duration::from_secs(20), |status| status.ready && status.head.pid != head);
    let refused = person.run(&["status", "revoked"]);
    assert!(refused.code == NOT_AUTHORISED && refused.err.contains("the access of olga was revoked"), "{}", refused.err);
    bystander.run(&["status", "revoked"]).ok();

    // Granted again, there is a new key and a new certificate; the old ones stay worthless.
    let granted = grant(&cluster, "olga", "viewer", &[]);
    let old = fs::read(person.directory("revoked").join("key.pem")).expect("reads");
    person.run(&["access", "accept", &granted.invitation]).ok();
    person.run(&["status", "revoked"]).ok();
    assert_ne!(fs::read(person.directory("revoked").join("key.pem")).expect("reads"), old);
    let states: Vec<_> = grants(&cluster).iter().map(|grant| (grant.name.to_string(), grant.state.name())).collect();
    let expected = [("olga", "revoked"), ("vera", "active"), ("olga", "active")];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
}

#[test]
fn access_that_expires_ends_with_what_follows() {
    let cluster = Cluster::new("expires", "[workers.default]\nmin = 0\nmax = 1");
    cluster.up();
    let since = Instant::now();
    let person = with_access(&cluster, "ada", "viewer", &["--expires", "4s"]);
    let (child, lines) = following(&person, &["events", "expires", "-f"]);
    lines.recv_timeout(Duration::from_secs(4)).expect("says something");
    let (code, said, took) = end_of(child, since);
    assert_eq!(code, NOT_AUTHORISED, "{said}");
    assert!(said.contains("the access of ada") && said.contains("expired"), "{said}");
    assert!(took < Duration::from_secs(8), "it ended after {took:?}");
    let refused = person.run(&["status", "expires"]);
    assert!(refused.code == NOT_AUTHORISED && refused.err.contains("the access of ada to expires has expired"), "{}", refused.err);
    assert!(refused.err.contains("cloudtik access grant expires ada --role viewer"), "{}", refused.err);
}
