//! Software reaches nodes by content: fetched once, gone on with where it broke off, verified, and nothing of the host
//! needed that is not there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloudtik_protocol::pki::sha256_hex;
use cloudtik_tests::{Cluster, skipped, until};

/// How a server answers.
#[derive(Clone)]
enum Manner {
    Whole,
    /// The first answer breaks off in the middle.
    BreaksOff,
    /// The second half follows once this is set.
    HoldsBack(Arc<AtomicBool>),
}

/// A file server on loopback. Remembers the ranges it was asked for.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Server {
    fn start(content: Vec<u8>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound").to_string();
        let asked: Arc<Mutex<Vec<Option<u64>>>> = Arc::default();
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &content, &manner, &log);
            }
        });
        Self { address, asked }
    }
}

fn answer(mut stream: TcpStream, content: &[u8], manner: &Manner, log: &Mutex<Vec<Option<u64>>>) -> std::io::Result<()> {
    let is_first = log.lock().expect("no panic").is_empty();
    let mut from = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse::<u64>().ok();
        }
        if line.is_empty() {
            break;
        }
    }
    log.lock().expect("no panic").push(from);
    let rest = &content[from.unwrap_or(0) as usize..];
    let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", rest.len())?;
    let (half, other) = rest.split_at(rest.len() / 2);
    stream.write_all(half)?;
    match manner {
        Manner::BreaksOff if is_first => return Ok(()),
        Manner::HoldsBack(go_on) => until("the word to go on", Duration::from_secs(60), || go_on.load(Ordering::Relaxed).then_some(())),
        Manner::BreaksOff | Manner::Whole => {}
    }
    stream.write_all(other)
}

fn content() -> Vec<u8> {
    (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn runtime(cluster: &Cluster, name: &str, manifest: &str) {
    cluster.write_runtime(name, &format!("[runtime]\nname = \"{name}\"\nversion = \"1\"\n{manifest}"));
}

fn with_url(address: &str, sha256: &str) -> String {
    format!(
        "[artifacts.data]\nurl = \"http://{address}/data.bin\"\nsha256 = \"{sha256}\"\n[services.keeper]\nrole = \"workers\"\ncommand = [\"/bin/sh\", \"-c\", \"sha256sum {{{{ artifacts.data }}}}/data.bin; sleep 100000\"]\n"
    )
}

#[test]
fn a_download_goes_on_where_it_broke_off_and_is_verified_twice() {
    let content = content();
    let (server, sum) = (Server::start(content.clone(), Manner::BreaksOff), sha256_hex(&content));
    let cluster = Cluster::new("wares", "[workers.default]\nmin = 1\n[runtimes.wares]\npath = \"./wares\"");
    let file = cluster.file.display().to_string();

    // Not what the runtime's author meant: said, and nothing is started.
    runtime(&cluster, "wares", &with_url(&server.address, &"0".repeat(64)));
    let wrong = cluster.run(&["up", &file, "--yes", "--timeout", "8"]);
    assert!(wrong.code == 6 && wrong.err.contains(&format!("has the SHA-256 {sum}")), "{wrong:?}");
    let asked = server.asked.lock().expect("no panic").clone();
    assert_eq!(asked[..2], [None, Some(content.len() as u64 / 2)], "the second attempt went on from the middle");

    runtime(&cluster, "wares", &with_url(&server.address, &sum));
    cluster.up();
    let log = || cluster.run(&["logs", "wares", "--node", "w1", "--runtime", "wares"]).ok().out;
    until("the file on the worker", Duration::from_secs(10), || log().contains(&sum).then_some(()));

    // On the way to a node: half of it is there, and then half of it is there and broken.
    let artifacts = cluster.state().join("artifacts");
    let archive = fs::read_dir(&artifacts).expect("lists").flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "tar"));
    let archive = archive.expect("the head keeps it");
    let digest = archive.file_stem().expect("named by digest").to_string_lossy().into_owned();
    let part = artifacts.join("unpacked").join(format!(".{digest}.part"));
    for breaks in [false, true] {
        let mut half = fs::read(&archive).expect("reads");
        half.truncate(half.len() / 2);
        half[1_000] ^= u8::from(breaks);
        fs::remove_dir_all(artifacts.join("unpacked").join(&digest)).expect("was unpacked");
        fs::write(&part, half).expect("writes");
        let before = cluster.node("w1").instance;
        cluster.run(&["kill-node", "wares", "w1", "--yes"]).ok();
        cluster.wait("its replacement", Duration::from_secs(30), |s| {
            s.ready && s.nodes.iter().any(|n| n.id.as_str() == "w1" && n.instance != before)
        });
        let agent = fs::read_to_string(cluster.node_home("w1").join("agent.log")).expect("reads");
        assert!(agent.contains("going on from"), "{agent}");
        assert_eq!(agent.contains("SHA-256 of what was received differs"), breaks, "{agent}");
        until("the file on the worker", Duration::from_secs(10), || log().contains(&sum).then_some(()));
    }
}

/// What a machine without Java does: the same in a mount namespace in which the host's Java is hidden.
#[test]
fn java_is_an_artifact_where_the_host_has_none() {
    let hidden = "mount -t tmpfs none /usr/lib/jvm";
    let may = Command::new("unshare").args(["--mount", "sh", "-c", hidden]).output();
    let has_java = Path::new("/usr/lib/jvm").is_dir();
    if has_java && !may.is_ok_and(|o| o.status.success()) {
        skipped("hiding the host's Java needs the right to mount (root)");
        return;
    }
    let cluster = Cluster::new("beans", "[workers.default]\nmin = 1\n[runtimes.beans]\npath = \"./beans\"").with_shared_software();
    let manifest = "[needs]\njava = 17\n[services.bean]\nrole = \"workers\"\ncommand = [\"/bin/sh\", \"-c\", \"{{ java }}/bin/java -version && {{ java }}/bin/keytool -list -cacerts -storepass changeit && echo it runs from {{ java }}; sleep 100000\"]\n";
    runtime(&cluster, "beans", manifest);
    let hide = if has_java { format!("{hidden} && exec") } else { "exec".to_owned() };
    let up = cluster.command(&["up", &cluster.file.display().to_string(), "--yes", "--timeout", "300"]);
    let words: Vec<_> = std::iter::once(up.get_program()).chain(up.get_args()).map(|w| w.to_string_lossy().into_owned()).collect();
    let mut unshared = Command::new("unshare");
    unshared.args(["--mount", "sh", "-c", &format!("{hide} \"$@\""), "sh"]).args(&words);
    unshared.envs(up.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = unshared.output().expect("runs");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let all = || cluster.run(&["logs", "beans", "--node", "w1", "--runtime", "beans", "-n", "1000"]).ok().out;
    let log = until("its words", Duration::from_secs(30), || Some(all()).filter(|log| log.contains("it runs from")));
    assert!(log.contains("version \"17") && log.contains("/artifacts/unpacked/"), "{log}");
    // It trusts what Debian trusts, as Java that is installed does.
    let trusted = log.lines().filter(|line| line.contains("trustedCertEntry")).count();
    assert!(trusted > 50, "{trusted} certificates:\n{log}");
}

#[test]
fn a_download_shows_each_byte_once_its_total_its_rate_and_the_time_left() {
    let (content, go_on) = (content(), Arc::new(AtomicBool::new(false)));
    let (server, sum) = (Server::start(content.clone(), Manner::HoldsBack(go_on.clone())), sha256_hex(&content));
    let cluster = Cluster::new("slow", "[workers.default]\nmin = 1\n[runtimes.slow]\npath = \"./slow\"");
    runtime(&cluster, "slow", &with_url(&server.address, &sum));
    let mut up = cluster.command(&["up", &cluster.file.display().to_string(), "--yes", "--timeout", "60"]);
    let said = cluster.file.with_extension("said");
    let mut up = up.stdout(Stdio::null()).stderr(fs::File::create(&said).expect("makes")).spawn().expect("runs");
    let status = cluster.wait("a rate", Duration::from_secs(30), |s| s.fetching.iter().any(|f| f.seconds_left.is_some()));
    let fetch = &status.fetching[0];
    assert_eq!((fetch.name.as_str(), fetch.step.as_str()), ("data-1", "downloading"));
    assert_eq!((fetch.done_bytes, fetch.total_bytes), (Some(content.len() as u64 / 2), Some(content.len() as u64)), "{fetch:?}");
    assert_eq!(status.waiting_for[0], fetch.to_string());
    // Where no terminal shows it, lines do.
    let said = || fs::read_to_string(&said).expect("reads");
    until("a line of it", Duration::from_secs(20), || said().contains("waiting for data-1: downloading, 6 of 12 MB").then_some(()));
    go_on.store(true, Ordering::Relaxed);
    assert!(up.wait().expect("ends").success(), "{}", said());
    assert!(cluster.wait_ready().fetching.is_empty());
}

#[test]
fn software_with_links_that_lead_to_nothing_is_refused_by_their_names_unless_they_are_listed() {
    let cluster = Cluster::new("links", "[workers.default]\nmin = 1\n[runtimes.links]\npath = \"./links\"");
    let pack = "mkdir -p x/lib x/doc && cd x && ln -s missing.so lib/a.so && ln -s nowhere doc/b && echo c > lib/c && tar -cf - *";
    let directory = cluster.file.parent().expect("it lies in a directory");
    let tar = Command::new("sh").args(["-c", pack]).current_dir(directory).output().expect("tar runs");
    let (server, sum) = (Server::start(tar.stdout.clone(), Manner::Whole), sha256_hex(&tar.stdout));
    let manifest = |more: &str| {
        let address = &server.address;
        format!(
            "[artifacts.data]\nurl = \"http://{address}/data.tar\"\nsha256 = \"{sum}\"\n{more}\n[services.keeper]\nrole = \"workers\"\ncommand = [\"/bin/sh\", \"-c\", \"ls -R {{{{ artifacts.data }}}}; sleep 100000\"]\n"
        )
    };
    let file = cluster.file.display().to_string();
    runtime(&cluster, "links", &manifest(""));
    let refused = cluster.run(&["up", &file, "--yes", "--timeout", "8"]);
    assert!(refused.code == 6 && refused.err.contains("2 links lead to what it does not contain"), "{refused:?}");
    assert!(refused.err.contains("doc/b -> doc/nowhere, lib/a.so -> lib/missing.so"), "{refused:?}");
    runtime(&cluster, "links", &manifest("exclude = [\"doc\"]\ndangling = [\"lib/*\"]"));
    cluster.up();
    let log = || cluster.run(&["logs", "links", "--node", "w1", "--runtime", "links"]).ok().out;
    let listed = until("the listing", Duration::from_secs(10), || Some(log()).filter(|log| log.contains("a.so")));
    assert!(!listed.contains("doc"), "{listed}");
}
