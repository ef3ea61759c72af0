//! Strangers, impostors and nonsense: each is refused with a log line and a count, and nothing else is disturbed.

use std::fs;

use std::time::Duration;

use cloudtik_model::{AdministratorName, ClusterName, Epoch, Generation, NodeId};
use cloudtik_protocol::convert::proof_to_wire;
use cloudtik_protocol::pki::{self, Identity, Intermediate, Root};
use cloudtik_protocol::wire::admin_client::AdminClient;
use cloudtik_protocol::wire::agent_frame::Topic;
use cloudtik_protocol::wire::bus_client::BusClient;
use cloudtik_protocol::wire::join_client::JoinClient;
use cloudtik_protocol::wire::setup_client::SetupClient;
use cloudtik_protocol::{PROTOCOL_VERSION, tls, transport, wire};
use cloudtik_tests::{Cluster, skipped, until};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Channel;

/// Somebody at the door of a running cluster, with whatever keys the test gives.
struct Stranger {
    name: ClusterName,
    address: String,
    root: CertificateDer<'static>,
    intermediate: Intermediate,
}

impl Stranger {
    /// Knows even the head's intermediate key, to make certificates that the head itself would never make.
    fn at(cluster: &Cluster) -> Self {
        tls::install_crypto();
        let name = ClusterName::new(&cluster.name).expect("valid");
        let directory = cluster.directory();
        let root = pki::load_chain(&directory.join("ca/root.crt")).expect("reads").remove(0);
        let key = pki::load_key(&directory.join("head/identity/intermediate.key")).expect("reads");
        let certificate = pki::load_chain(&directory.join("head/identity/intermediate.crt")).expect("reads").remove(0);
        Self { intermediate: Intermediate::new(&name, key, certificate), address: cluster.status().head.address, name, root }
    }

    fn node(&self, node: &str, generation: u32, lifetime: Duration) -> Identity {
        let key = KeyPair::generate().expect("key");
        let request = pki::certificate_request(&key).expect("request");
        let node = NodeId::new(node).expect("valid");
        let chain = self.intermediate.sign_node(&request, &node, Generation(generation), None, lifetime).expect("signs");
        Identity { chain, key: pki::private_key(&key) }
    }

    async fn dial(&self, identity: Option<&Identity>) -> Result<Channel, String> {
        let config = tls::client_config(&self.root, identity).map_err(|e| e.to_string())?;
        transport::dial(&self.address, None, &tls::server_name(&pki::head_name(&self.name)), config).await.map_err(|e| format!("{e:?}"))
    }

    async fn join(&self, node: &str, generation: u32, token: &str) -> Result<(), tonic::Status> {
        let key = KeyPair::generate().expect("key");
        let request = wire::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            node: node.to_owned(),
            generation,
            token: token.to_owned(),
            certificate_request: pki::certificate_request(&key).expect("request").into(),
            address: "127.0.0.1".to_owned(),
            agent_version: "test".to_owned(),
        };
        let channel = self.dial(None).await.expect("anybody may knock");
        JoinClient::new(channel).join(request).await.map(drop)
    }

    async fn hello(&self, identity: &Identity, hello: wire::Hello) -> tonic::Status {
        let channel = match self.dial(Some(identity)).await {
            Ok(channel) => channel,
            Err(error) => return tonic::Status::unauthenticated(error),
        };
        let frame = wire::AgentFrame { topic: Some(Topic::Hello(hello)) };
        // The stream stays open: it is the head that is to end it.
        let (sender, frames) = tokio::sync::mpsc::channel(1);
        sender.send(frame).await.expect("there is room");
        let frames = tokio_stream::wrappers::ReceiverStream::new(frames);
        match BusClient::new(channel).connect(frames).await {
            Err(status) => status,
            // Refused by the brain: the stream says goodbye, or ends.
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(wire::HeadFrame { topic: Some(wire::head_frame::Topic::Goodbye(goodbye)), .. })) => {
                            return tonic::Status::permission_denied(goodbye.reason);
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => return tonic::Status::ok("the stream ended"),
                        Err(status) => return status,
                    }
                }
            }
        }
    }
}

fn hello(node: &str, generation: u32) -> wire::Hello {
    wire::Hello {
        protocol_version: PROTOCOL_VERSION,
        node: node.to_owned(),
        generation,
        facts: b"{\"agent_version\":\"test\",\"agent_pid\":1,\"hostname\":\"h\",\"kernel\":\"k\",\"cpus\":1,\"memory\":1,\"address\":\"127.0.0.1\",\"health_port\":1,\"home\":\"/\",\"artifacts\":\"/\"}".to_vec().into(),
        ..Default::default()
    }
}

/// The head's counts of what it refused, by reason, read with a node's certificate.
async fn refused(stranger: &Stranger, cluster: &Cluster, reason: &str) -> u64 {
    let home = cluster.node_home("head").join("identity");
    let key = pki::load_key(&home.join("node.key")).expect("reads");
    let identity = Identity { chain: pki::load_chain(&home.join("node.crt")).expect("reads"), key: pki::private_key(&key) };
    let config = tls::client_config(&stranger.root, Some(&identity)).expect("config");
    let stream = TcpStream::connect(&stranger.address).await.expect("connects");
    let name = tls::server_name(&pki::head_name(&stranger.name));
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("handshake");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: head\r\nConnection: close\r\n\r\n").await.expect("asks");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text).await;
    let wanted = format!("cloudtik_head_refused_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&wanted)?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_nonsense_are_refused_and_disturb_nobody() {
    let cluster = Cluster::new("trust", "[workers.default]\nmin = 1\nmax = 2");
    cluster.up();
    let stranger = Stranger::at(&cluster);
    let before = cluster.status();
    let hour = Duration::from_secs(3600);

    // Tokens: none, wrong, of a node that there is not, of an older generation.
    for (node, generation, token) in [("w1", 1, ""), ("w1", 1, "wrong"), ("w7", 1, "wrong"), ("w1", 0, "wrong"), ("../w1", 1, "x")] {
        let status = stranger.join(node, generation, token).await.expect_err("nobody may come in like this");
        assert!(matches!(status.code(), Code::PermissionDenied | Code::InvalidArgument), "{node} {generation}: {status:?}");
    }
    assert!(refused(&stranger, &cluster, "join-token").await >= 4);
    let events = cluster.events();
    assert!(!events.iter().any(|e| e.starts_with("refusal")), "strangers reach neither the brain nor the log of events: {events:#?}");

    // A certificate of another cluster's root, and one that has run out.
    let other = Root::generate(&stranger.name).expect("root");
    let foreign = other.admin(&AdministratorName::new("impostor").expect("valid"), hour).expect("makes");
    let expired = stranger.node("w1", 1, Duration::ZERO);
    let handshakes = refused(&stranger, &cluster, "handshake").await;
    until("the end of its validity", Duration::from_secs(5), || {
        let (_, ends) = pki::validity(&expired.chain[0]).expect("parses");
        (std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() as i64 > ends).then_some(())
    });
    for identity in [&foreign, &expired] {
        let status = stranger.hello(identity, hello("w1", 1)).await;
        assert_ne!(status.code(), Code::Ok, "{status:?}");
    }
    assert!(refused(&stranger, &cluster, "handshake").await >= handshakes + 2, "both ended in the handshake, and were counted");

    // A node that claims another's id, an older generation, and a node that there never was.
    let w1 = stranger.node("w1", 1, hour);
    let status = stranger.hello(&w1, hello("head", 1)).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(refused(&stranger, &cluster, "foreign-id").await >= 1);
    for (node, generation) in [("w1", 9), ("w2", 1)] {
        let status = stranger.hello(&stranger.node(node, generation, hour), hello(node, generation)).await;
        assert_ne!(status.code(), Code::Ok, "{node} {generation}: {status:?}");
    }
    let fetch = wire::FetchRequest { digest: "0".repeat(64), offset: 0 };
    let channel = stranger.dial(Some(&stranger.node("w2", 1, hour))).await.expect("its certificate is well made");
    let status = wire::artifacts_client::ArtifactsClient::new(channel).fetch(fetch).await.expect_err("no member");
    assert_eq!(status.code(), Code::PermissionDenied);

    // A node is no administrator, and nobody is even less.
    for identity in [Some(&w1), None] {
        let channel = stranger.dial(identity).await.expect("connects");
        let status = AdminClient::new(channel).status(wire::StatusRequest::default()).await.expect_err("refused");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }

    // A later epoch without a proof, with that of another epoch, and with a signature of one's own: a head that took it for true
    // would stop. (Its own proof is shown by each welcome.)
    let epoch = before.head.epoch.0;
    let proof = stranger.intermediate.prove_epoch(Epoch(epoch)).expect("signs");
    let key = KeyPair::generate().expect("key");
    let own = Intermediate::new(&stranger.name, key, w1.chain[0].clone()).prove_epoch(Epoch(u64::MAX)).expect("signs");
    for (epoch, proof) in [(epoch + 1, None), (u64::MAX, Some(proof)), (u64::MAX, Some(own))] {
        let status = stranger.hello(&w1, wire::Hello { epoch, epoch_proof: proof.as_ref().map(proof_to_wire), ..hello("w1", 1) }).await;
        assert_eq!(status.code(), Code::PermissionDenied, "epoch {epoch}: {status:?}");
    }
    assert_eq!(refused(&stranger, &cluster, "unproven-epoch").await, 3);

    // Another protocol, garbage, and a frame that is too large.
    let old = wire::Hello { protocol_version: 99, ..hello("w1", 1) };
    let status = stranger.hello(&w1, old).await;
    assert!(status.code() == Code::FailedPrecondition && status.message().contains("upgrade the head"), "{status:?}");
    let huge = wire::Hello { facts: vec![b' '; 5 << 20].into(), ..hello("w1", 1) };
    assert_ne!(stranger.hello(&w1, huge).await.code(), Code::Ok);
    let mut raw = TcpStream::connect(&stranger.address).await.expect("connects");
    raw.write_all(&[0xff; 4096]).await.expect("writes");
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), raw.read_to_end(&mut rest)).await.expect("the head hangs up");

    let log = fs::read_to_string(cluster.node_home("head").join("services/cloudtik/head/log")).expect("reads");
    assert!(log.lines().filter(|l| l.contains("WARN") && l.contains("refused")).count() >= 8, "{log}");
    let after = cluster.status();
    assert!(after.ready, "{after:#?}");
    assert_eq!((before.head.pid, before.nodes.len()), (after.head.pid, after.nodes.len()), "nothing else was disturbed");
    let agents = |s: &cloudtik_model::status::Status| s.nodes.iter().map(|n| n.agent.clone().map(|a| a.pid)).collect::<Vec<_>>();
    assert_eq!(agents(&before), agents(&after));
}

/// A token serves one key of one generation of one node, also while that node has not come yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_serves_one_key_of_one_node() {
    let mut cluster = Cluster::new("tokens", "[workers.default]\nmin = 2");
    let programs = cluster.own_programs();
    // The agents of w1 and w2 never come: their tokens lie where a thief might find them.
    let (program, real) = (programs.join("cloudtik-agent"), programs.join("agent"));
    fs::rename(&program, &real).expect("renames");
    let script = format!("#!/bin/sh\ncase \"$*\" in\n*/w?.*) exit 0 ;;\nesac\nexec {} \"$@\"\n", real.display());
    fs::write(&program, script).expect("writes");
    fs::set_permissions(&program, fs::metadata(&real).expect("there").permissions()).expect("sets");
    cluster.run(&["up", &cluster.file.display().to_string(), "--no-wait"]).ok();
    cluster.wait("both machines", Duration::from_secs(10), |s| s.nodes.iter().filter(|n| n.state == "launched").count() == 2);
    let stranger = Stranger::at(&cluster);
    let token = |node: &str| {
        let text = fs::read(cluster.node_home(node).join("bootstrap.json")).expect("reads");
        let bootstrap: serde_json::Value = serde_json::from_slice(&text).expect("a document");
        bootstrap["token"].as_str().expect("a token").to_owned()
    };
    let (first, second) = (token("w1"), token("w2"));
    assert_ne!(first, second);
    for (node, generation, token) in
        [("w1", 1, ""), ("w1", 1, "guessed"), ("w1", 1, second.as_str()), ("w1", 2, first.as_str()), ("head", 1, first.as_str())]
    {
        let status = stranger.join(node, generation, token).await.expect_err("refused");
        assert_eq!(status.code(), Code::PermissionDenied, "{node} {generation} {token}: {status:?}");
    }
    assert_eq!(refused(&stranger, &cluster, "join-token").await, 5);
    stranger.join("w1", 1, &first).await.expect("the right one is let in");
    let status = stranger.join("w1", 1, &first).await.expect_err("the token has served another key");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(refused(&stranger, &cluster, "join").await, 1, "who has the token is told by the brain");
}

/// The beginning of the validity of the certificate that the head serves with.
async fn head_certificate(stranger: &Stranger) -> i64 {
    let config = tls::client_config(&stranger.root, None).expect("config");
    let stream = TcpStream::connect(&stranger.address).await.expect("connects");
    let name = tls::server_name(&pki::head_name(&stranger.name));
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("handshake");
    pki::validity(&stream.get_ref().1.peer_certificates().expect("it has one")[0]).expect("parses").0
}

fn node_certificate(cluster: &Cluster, node: &str) -> Vec<CertificateDer<'static>> {
    pki::load_chain(&cluster.node_home(node).join("identity/node.crt")).expect("reads")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_renew_over_streams_that_stand() {
    let cluster = Cluster::new("renewal", "[head]\ncertificate_lifetime = \"10s\"\n[workers.default]\nmin = 1\nmax = 2");
    cluster.up();
    let stranger = Stranger::at(&cluster);
    let (served, events) = (head_certificate(&stranger).await, cluster.events().len());
    // The ones with which the node joined may be of before the description came; the third is renewed for certain.
    let mut seen = vec![node_certificate(&cluster, "w1")];
    until("three renewals", Duration::from_secs(60), || {
        let now = node_certificate(&cluster, "w1");
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        (seen.len() > 3).then_some(())
    });
    let (begins, ends) = pki::validity(&seen[3][0]).expect("parses");
    assert_eq!(ends - begins - pki::BACKDATE.as_secs() as i64, 10);
    assert!(head_certificate(&stranger).await > served, "the head's own was renewed too");
    // The first ones are long over, and nothing took notice.
    cluster.run(&["exec", "renewal", "--node", "w1", "--", "true"]).ok();
    let disturbed: Vec<_> =
        cluster.events().split_off(events).into_iter().filter(|e| e.starts_with("node") || e.starts_with("verdict")).collect();
    assert_eq!(disturbed, Vec::<String>::new());

    // The user's root certifies the head anew before a year is over; here, before a minute is.
    let root = Root::load_or_generate(&stranger.name, &cluster.directory().join("ca")).expect("reads");
    let channel = transport::dial_unix(&cluster.directory().join("head/admin.sock")).await.expect("connects");
    let mut setup = SetupClient::new(channel);
    let asked = setup.certificate_request(wire::Empty {}).await.expect("asks").into_inner();
    let foreign = Root::generate(&stranger.name).expect("makes").sign_intermediate(&asked.certificate_request, Duration::from_secs(60));
    let other_key = pki::certificate_request(&KeyPair::generate().expect("key")).expect("request");
    let for_another = root.sign_intermediate(&other_key, Duration::from_secs(60));
    for certificate in [foreign, for_another] {
        let certificate = certificate.expect("signs").to_vec().into();
        let refused = setup.install_certificate(wire::InstallCertificateRequest { certificate }).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let brief = root.sign_intermediate(&asked.certificate_request, Duration::from_secs(60)).expect("signs").to_vec().into();
    setup.install_certificate(wire::InstallCertificateRequest { certificate: brief }).await.expect("installs");
    cluster.up();
    let renewed = setup.certificate_request(wire::Empty {}).await.expect("asks").into_inner();
    assert!(renewed.expires_at > asked.expires_at - 3600, "`up` had it certified for a year again: {renewed:?}");
    cluster.run(&["scale", "renewal", "--workers", "2"]).ok();
    cluster.wait("a node that joins by the new one", Duration::from_secs(20), |s| s.ready && s.nodes.len() == 3);
    let disturbed: Vec<_> = cluster.events().split_off(events).into_iter().filter(|e| e.starts_with("node w1")).collect();
    assert_eq!(disturbed, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_wrong_clock_comes_in_and_stays() {
    let library = "/usr/$LIB/faketime/libfaketime.so.1".replace("$LIB", "lib/x86_64-linux-gnu");
    if !std::path::Path::new(&library).exists() {
        skipped("a wrong clock needs the package faketime");
        return;
    }
    let mut cluster = Cluster::new("clocks", "[workers.default]\nmin = 2");
    let programs = cluster.own_programs();
    // The agent of w1 lives four hundred days ahead, the one of w2 in 1999.
    let (program, real) = (programs.join("cloudtik-agent"), programs.join("agent"));
    fs::rename(&program, &real).expect("renames");
    let script = format!(
        "#!/bin/sh\nexport FAKETIME_DONT_FAKE_MONOTONIC=1\ncase \"$*\" in\n*/w1.*) export LD_PRELOAD={library} FAKETIME=+400d ;;\n*/w2.*) export LD_PRELOAD={library} FAKETIME='@1999-01-01 00:00:00' ;;\nesac\nexec {} \"$@\"\n",
        real.display()
    );
    fs::write(&program, script).expect("writes");
    fs::set_permissions(&program, fs::metadata(&real).expect("there").permissions()).expect("sets");
    cluster.up();
    let alarms = cluster.events().into_iter().filter(|e| e.starts_with("alarm") && e.contains("its clock is")).collect::<Vec<_>>();
    assert!(alarms.iter().any(|e| e.contains("w1") && e.contains("ahead of")), "{alarms:?}");
    assert!(alarms.iter().any(|e| e.contains("w2") && e.contains("behind")), "{alarms:?}");
    // Again from the certificate on the disk, which that clock finds invalid too.
    for node in ["w1", "w2"] {
        let agent = cluster.node(node).agent.expect("an agent").pid;
        cloudtik_tests::send(agent as i32, nix::sys::signal::Signal::SIGKILL);
        cluster.wait("its return", Duration::from_secs(20), |s| {
            s.ready && s.nodes.iter().any(|n| n.id.as_str() == node && n.agent.as_ref().is_some_and(|a| a.pid != agent))
        });
        assert_eq!(cluster.node(node).generation, Generation(1), "{node} was not replaced");
    }
    // The head finds its health port answering, whatever that clock says of the head's certificate.
    let agent = cluster.node("w1").agent.expect("an agent").pid as i32;
    cloudtik_tests::send(agent, nix::sys::signal::Signal::SIGSTOP);
    cluster.wait("suspicion", Duration::from_secs(6), |s| s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.state == "suspect"));
    cloudtik_tests::send(agent, nix::sys::signal::Signal::SIGCONT);
    cluster.wait_ready();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_certificate_ran_out_comes_back_by_itself() {
    let cluster = Cluster::new("expiry", "[workers.default]\nmin = 1");
    cluster.up();
    let stranger = Stranger::at(&cluster);
    // A certificate for the node's own key that is over: what a machine finds that was asleep for a day.
    let path = cluster.node_home("w1").join("identity");
    let key = pki::load_key(&path.join("node.key")).expect("reads");
    let request = pki::certificate_request(&key).expect("request");
    let id = NodeId::new("w1").expect("valid");
    let chain = stranger.intermediate.sign_node(&request, &id, Generation(1), None, Duration::ZERO).expect("signs");
    pki::save_chain(&chain, &path.join("node.crt")).expect("writes");
    let agent = cluster.node("w1").agent.expect("an agent").pid;
    cloudtik_tests::send(agent as i32, nix::sys::signal::Signal::SIGKILL);
    cluster.wait("the node's return", Duration::from_secs(20), |s| {
        s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.agent.as_ref().is_some_and(|a| a.pid != agent))
    });
    let (_, ends) = pki::validity(&pki::load_chain(&path.join("node.crt")).expect("reads")[0]).expect("parses");
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() as i64;
    assert!(ends > now + 3600, "it has a new certificate");
    assert_eq!(cluster.node("w1").generation, Generation(1), "the node was not replaced");
}
