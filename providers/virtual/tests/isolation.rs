//! What nodes share and what they do not. As root.

mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloudtik_model::InstanceId;
use cloudtik_model::node::InstanceState;
use cloudtik_providers::{DeleteNode, NodeProvider};
use cloudtik_virtual::testing::{self, Lost, heal, lose, on_network, pause, plug, run_on};
use cloudtik_virtual::{Range, Settings, VirtualProvider};
use world::{World, command, delete_all, eventually, id, limited, request, starts};

fn output(provider: &VirtualProvider, instance: &InstanceId, script: &str) -> String {
    let ran = run_on(provider, instance, "/bin/sh", &["-c", script]).expect("runs");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    format!("{}{}", out.trim(), if err.is_empty() { String::new() } else { format!("!{}", err.trim()) })
}

#[tokio::test]
async fn a_node_has_its_own_name_processes_files_and_kernel_view_and_sees_the_software_of_the_machine() {
    let Some(world) = World::new().await else { return };
    // Not where nodes have a directory of their own anyway.
    let apart = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
    for name in ["kept", "secret"] {
        fs::create_dir(apart.path().join(name)).expect("makes");
        fs::write(apart.path().join(name).join("key"), "x").expect("writes");
    }
    fs::remove_file(apart.path().join("kept/key")).expect("removes");
    let (for_heads, hidden) = (vec![apart.path().join("kept")], vec![apart.path().join("secret")]);
    let provider = VirtualProvider::new(Settings { for_heads, hidden, ..world.settings("demo") });
    let (head, w1) = (id("head.1"), id("w1.1"));
    for node in ["head", "w1", "w2"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
    }
    let home = provider.home(&w1);
    eventually("the agent starts", || starts(&provider, &w1), |n| *n == 1);

    assert_eq!(output(&provider, &w1, "cat /proc/sys/kernel/hostname /etc/hostname"), "w1\nw1");
    let listed = provider.list().await.expect("lists");
    for instance in &listed {
        let address = instance.address.clone().expect("has one");
        assert_eq!(instance.state, InstanceState::Running);
        let found = output(&provider, &w1, &format!("getent hosts {}.demo", instance.node));
        assert!(found.starts_with(&address), "{found}");
    }
    assert_eq!(provider.head_address().expect("has one").to_string(), listed[0].address.clone().expect("has one"));

    let numbers = output(&provider, &w1, "cd /proc; for p in [0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done");
    let own = |line: &&str| !line.is_empty() && !line.contains("sleep 1000000") && !line.contains("init") && !line.contains("/bin/sh");
    let others: Vec<&str> = numbers.lines().filter(own).filter(|line| !line.starts_with("tr ")).collect();
    assert!(others.is_empty(), "processes of the machine are seen: {others:?}");

    let name = format!("cloudtik-written-{}", std::process::id());
    for directory in ["/usr/share", "/tmp", "/run", "/dev/shm", "/root", "/etc"] {
        assert_eq!(output(&provider, &w1, &format!("echo x > {directory}/{name}; cat {directory}/{name}")), "x");
        assert!(!Path::new(directory).join(&name).exists(), "what a node writes in {directory} is on the machine");
        assert_eq!(output(&provider, &head, &format!("ls {directory}/{name} 2>/dev/null")), "", "another node sees it");
    }
    // What is the head's is out of a worker's sight, and what is hidden out of everybody's.
    let (kept, secret) = (apart.path().join("kept"), apart.path().join("secret"));
    assert_eq!(output(&provider, &head, &format!("echo mine > '{}'/store; ls '{}'", kept.display(), secret.display())), "");
    assert_eq!(fs::read_to_string(kept.join("store")).expect("reads"), "mine\n");
    assert_eq!(output(&provider, &w1, &format!("ls -A '{}' '{}' | grep -v :", kept.display(), secret.display())), "");
    // The home is one directory at one path.
    assert_eq!(output(&provider, &w1, &format!("echo here > '{}'/note", home.display())), "");
    assert_eq!(fs::read_to_string(home.join("note")).expect("reads"), "here\n");
    assert_eq!(output(&provider, &w1, &format!("ls -A '{}'", provider.settings().nodes.display())), "w1.1", "others' files are hidden");
    assert_eq!(output(&provider, &w1, "ls /bin/sh /usr/bin/env"), "/bin/sh\n/usr/bin/env");
    assert_eq!(output(&provider, &w1, "ls /.host 2>/dev/null"), "", "the machine's root is out of reach");

    let refused = output(&provider, &w1, "echo 1 > /proc/sys/kernel/panic");
    assert!(refused.contains("Read-only"), "a node changes a setting of the machine: {refused}");
    assert_eq!(output(&provider, &w1, "echo 100 > /proc/sys/net/core/somaxconn; cat /proc/sys/net/core/somaxconn"), "100");
    assert_ne!(fs::read_to_string("/proc/sys/net/core/somaxconn").expect("reads").trim(), "100");
    assert_eq!(output(&provider, &w1, "echo x > /dev/null; head -c 3 /dev/zero | wc -c"), "3");

    // A restart empties what does not last, keeps the disk, and starts the agent.
    let before = provider.describe(&w1).await.expect("describes");
    provider.reboot(&before.node, before.generation, &w1).await.expect("reboots");
    eventually("the agent starts again", || starts(&provider, &w1), |n| *n == 2);
    assert_eq!(output(&provider, &w1, &format!("cat /usr/share/{name}; ls /tmp/{name} /run/{name} /dev/shm/{name} 2>/dev/null")), "x");
    let after = provider.describe(&w1).await.expect("describes");
    assert_eq!((before.address, InstanceState::Running), (after.address, after.state));

    delete_all(&provider).await;
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_ends_is_started_again_and_a_node_is_stopped_from_both_sides() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let w1 = id("w1.1");
    let node = provider.create_one(&request("w1", 1)).await.expect("creates");
    eventually("the agent starts", || starts(&provider, &w1), |n| *n == 1);
    provider.restart_agent(&node.node, node.generation, &w1, false).await.expect("leaves it");
    assert_eq!(starts(&provider, &w1), 1, "an agent that runs is left alone");
    provider.restart_agent(&node.node, node.generation, &w1, true).await.expect("restarts");
    eventually("the agent is ended and started", || starts(&provider, &w1), |n| *n == 2);
    // All but the first process.
    let _ = run_on(&provider, &w1, "/bin/sh", &["-c", "kill -9 -1"]);
    eventually("the agent starts again", || starts(&provider, &w1), |n| *n == 3);

    // Its bootstrap payload says how it ends itself.
    let text = fs::read(provider.home(&w1).join("bootstrap.json")).expect("reads");
    let bootstrap: serde_json::Value = serde_json::from_slice(&text).expect("parses");
    let power_off: Vec<&str> = bootstrap["power_off"].as_array().expect("a list").iter().filter_map(|v| v.as_str()).collect();
    let _ = run_on(&provider, &w1, power_off[0], &power_off[1..]);
    let state = || testing::look(&provider, &w1).state;
    eventually("the node stops", state, |state| *state == InstanceState::Stopped);
    let refused = provider.restart_agent(&node.node, node.generation, &w1, true).await;
    assert!(refused.is_err(), "a node that is stopped has no agent to restart");
    provider.reboot(&node.node, node.generation, &w1).await.expect("starts it");
    eventually("the node runs", state, |state| *state == InstanceState::Running);
    provider.stop(&node.node, node.generation, &w1).expect("stops");
    assert_eq!(state(), InstanceState::Stopped);
    provider.create_one(&request("w1", 1)).await.expect("a creation that is repeated starts it");
    assert_eq!(state(), InstanceState::Running);
    delete_all(&provider).await;
    world.end().await;
}

#[tokio::test]
async fn limits_hold_and_a_node_that_uses_up_its_memory_says_so_and_goes_on() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let (w1, w2) = (id("w1.1"), id("w2.1"));
    provider.create_one(&limited("w1", 64 << 20, 1)).await.expect("creates");
    provider.create_one(&request("w2", 1)).await.expect("creates");
    let first = testing::first_process(&provider, &w1).expect("runs");
    assert_eq!(provider.memory_kills(&w1).expect("looks"), 0);
    // `tail` keeps its last line, which has no end here.
    let swallow = "head -c 300000000 /dev/zero | tail | wc -c";
    let got = output(&provider, &w1, swallow);
    assert_ne!(got, "300000000", "a node used more memory than it may");
    assert!(provider.memory_kills(&w1).expect("looks") >= 1);
    assert_eq!(provider.memory_kills(&w2).expect("looks"), 0);
    assert_eq!(output(&provider, &w2, swallow), "300000000", "without a limit there is room");
    assert_eq!(testing::first_process(&provider, &w1).expect("runs"), first, "the node goes on");

    // Two busy processes have one processor's time between them.
    let used = |provider: &VirtualProvider| {
        let script = "timeout 1 sh -c 'while :; do :; done' & timeout 1 sh -c 'while :; do :; done' & wait; cat /proc/$$/stat";
        let stat = output(provider, &w1, script);
        let field = |n: usize| stat.split(' ').nth(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        field(15) + field(16)
    };
    // In hundredths of a second. Ten periods, and what begins and ends between two.
    let ticks = used(&provider);
    assert!(ticks <= 130, "a node used more time than it may: {ticks}");
    // Agents divide what the node has among services.
    let inner = "set -- /sys/fs/cgroup/memory*; [ -d $1 ] || set -- /sys/fs/cgroup; mkdir $1/inner && rmdir $1/inner && echo made";
    assert_eq!(output(&provider, &w1, inner), "made");
    delete_all(&provider).await;
    world.end().await;
}

/// Whether the second node hears the first one.
fn hears(from: (&VirtualProvider, &InstanceId), to: (&VirtualProvider, &InstanceId)) -> bool {
    let listener = on_network(to.0, to.1, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7000))).expect("enters").expect("listens");
    let address: Ipv4Addr = testing::look(to.0, to.1).address.expect("has one").parse().expect("valid");
    let connected = on_network(from.0, from.1, move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, 7000)), Duration::from_millis(400)).ok()?;
        stream.write_all(b"hello").ok()
    });
    if connected.expect("enters").is_none() {
        return false;
    }
    let mut heard = Vec::new();
    let (mut stream, _) = listener.accept().expect("accepts");
    stream.set_read_timeout(Some(Duration::from_millis(400))).expect("sets");
    stream.read_to_end(&mut heard).is_ok() && heard == b"hello"
}

#[tokio::test]
async fn clusters_of_a_workspace_reach_each_other_and_others_do_not() {
    let Some(world) = World::new().await else { return };
    let other = World::with_nat(true).await;
    let (one, two, apart) = (world.provider("one"), world.provider("two"), other.provider("apart"));
    let w1 = id("w1.1");
    for provider in [&one, &two, &apart] {
        provider.create_one(&request("w1", 1)).await.expect("creates");
    }
    assert!(hears((&one, &w1), (&two, &w1)) && hears((&two, &w1), (&one, &w1)), "clusters of a workspace reach each other");
    assert!(!hears((&one, &w1), (&apart, &w1)), "a node of another workspace is reached");
    assert!(!hears((&apart, &w1), (&one, &w1)), "a node of another workspace is reached where nodes reach what is outside");

    // From the machine, as the launcher does.
    let listener = on_network(&one, &w1, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7001))).expect("enters").expect("listens");
    let address = testing::look(&one, &w1).address.expect("has one");
    TcpStream::connect((address.as_str(), 7001)).expect("the machine reaches its nodes");
    drop(listener);

    for provider in [&one, &two, &apart] {
        delete_all(provider).await;
    }
    world.end().await;
    other.end().await;
}

/// A network beyond the machine: a namespace with a link to it.
struct Beyond {
    process: Child,
    link: String,
    address: Ipv4Addr,
}

impl Beyond {
    fn new() -> Self {
        let number = std::process::id();
        let link = format!("out{}", number % 100_000);
        let (near, address) = (Ipv4Addr::new(198, 18, number as u8, 1), Ipv4Addr::new(198, 18, number as u8, 2));
        let process = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn().expect("starts");
        let own = fs::read_link("/proc/self/ns/net").expect("reads");
        let pid = process.id().to_string();
        let its = format!("/proc/{pid}/ns/net");
        eventually("it is apart", || fs::read_link(&its).ok(), |its| its.as_ref().is_some_and(|its| *its != own));
        command("ip", &["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        command("ip", &["addr", "add", &format!("{near}/24"), "dev", &link]);
        command("ip", &["link", "set", &link, "up"]);
        let within = ["-t", &pid, "-n", "ip"];
        command("nsenter", &[&within[..], &["addr", "add", &format!("{address}/24"), "dev", "eth0"]].concat());
        command("nsenter", &[&within[..], &["link", "set", "eth0", "up"]].concat());
        // Only for links that default routes lead to is this done by the workspace.
        fs::write(format!("/proc/sys/net/ipv4/conf/{link}/forwarding"), "1").expect("sets");
        Self { process, link, address }
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.link]).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn nodes_reach_what_is_outside_only_where_it_is_asked_for() {
    let Some(world) = World::new().await else { return };
    let other = World::with_nat(true).await;
    let beyond = Beyond::new();
    let (closed, open) = (world.provider("closed"), other.provider("open"));
    let w1 = id("w1.1");
    for provider in [&closed, &open] {
        provider.create_one(&request("w1", 1)).await.expect("creates");
    }
    let pid = beyond.process.id();
    let listener = testing::on_network_of(pid.cast_signed(), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7002)));
    let listener = listener.expect("enters").expect("listens");
    let to = SocketAddr::from((beyond.address, 7002));
    let connects = |provider: &VirtualProvider| {
        on_network(provider, &w1, move || TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok()).expect("enters")
    };
    assert!(connects(&open), "NAT was asked for");
    let (_, from) = listener.accept().expect("accepts");
    let range: Range = fs::read_to_string(other.workspace.directory.join("network/range")).expect("reads").parse().expect("valid");
    assert!(!range.contains(from.ip().to_string().parse().expect("version 4")), "the node's own address is seen outside: {from}");
    assert!(!connects(&closed), "NAT was not asked for");
    for provider in [&closed, &open] {
        delete_all(provider).await;
    }
    drop(beyond);
    world.end().await;
    other.end().await;
}

#[tokio::test]
async fn links_are_cut_both_ways_and_one_way_and_lose_packets_and_nodes_are_paused() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let (w1, w2) = (id("w1.1"), id("w2.1"));
    for node in ["w1", "w2"] {
        provider.create_one(&request(node, 1)).await.expect("creates");
    }
    let both = || hears((&provider, &w1), (&provider, &w2));
    assert!(both());
    plug(&provider, &w2, false).expect("unplugs");
    assert!(!both(), "the plug is out");
    plug(&provider, &w2, true).expect("plugs");
    eventually("the plug is in", both, |hears| *hears);
    for lost in [Lost::Both, Lost::Sent, Lost::Received] {
        lose(&provider, &w2, lost, 100).expect("cuts");
        assert!(!both(), "{lost:?} is lost");
        heal(&provider, &w2).expect("heals");
        eventually("it is healed", both, |hears| *hears);
    }

    // One way is one way: what is sent still arrives.
    let address: Ipv4Addr = testing::look(&provider, &w1).address.expect("has one").parse().expect("valid");
    let socket = on_network(&provider, &w1, || std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7003))).expect("enters").expect("binds");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("sets");
    let count = |sent: u32| {
        let out = on_network(&provider, &w2, move || {
            let out = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("binds");
            (0..sent).filter(|_| out.send_to(b"x", (address, 7003)).is_ok()).count()
        });
        out.expect("enters");
        let mut heard = 0;
        while socket.recv(&mut [0; 8]).is_ok() {
            heard += 1;
        }
        heard
    };
    assert_eq!(count(10), 10);
    lose(&provider, &w2, Lost::Received, 100).expect("cuts");
    assert_eq!(count(10), 10, "only what is sent to it is lost");
    lose(&provider, &w2, Lost::Sent, 100).expect("cuts");
    assert_eq!(count(10), 0);
    lose(&provider, &w2, Lost::Sent, 30).expect("cuts");
    let heard = count(300);
    assert!((150..=270).contains(&heard), "of 300 a third is lost: {heard} came");
    heal(&provider, &w2).expect("heals");

    let ticks = || count_ticks(&provider, &w1);
    ticks();
    let other = count_ticks(&provider, &w2);
    pause(&provider, &w1, true).expect("pauses");
    let before = ticks();
    eventually("the other node's clock goes on", || count_ticks(&provider, &w2), |now| *now > other + 30);
    assert_eq!(ticks(), before, "a node that is paused does nothing");
    pause(&provider, &w1, false).expect("goes on");
    eventually("it goes on", ticks, |now| *now > before);
    delete_all(&provider).await;
    world.end().await;
}

/// How often the node's clock has ticked: a program that counts in its home.
fn count_ticks(provider: &VirtualProvider, instance: &InstanceId) -> u64 {
    let file = provider.home(instance).join("ticks");
    if !file.exists() {
        let script = "(while :; do echo x >> ticks; sleep 0.01; done) > /dev/null 2>&1 &";
        let home = provider.home(instance);
        run_on(provider, instance, "/bin/sh", &["-c", &format!("cd '{}'; {script}", home.display())]).expect("runs");
        eventually("it counts", || fs::metadata(&file).map_or(0, |m| m.len()), |n| *n > 4);
    }
    fs::metadata(&file).map_or(0, |m| m.len())
}

#[tokio::test]
async fn an_instance_with_something_mounted_from_the_machine_is_not_deleted() {
    let Some(world) = World::new().await else { return };
    let provider = world.provider("demo");
    let node = provider.create_one(&request("w1", 1)).await.expect("creates");
    let data = provider.home(&node.id).join("data");
    fs::create_dir(&data).expect("makes");
    command("mount", &["-t", "tmpfs", "tmpfs", &data.to_string_lossy()]);
    fs::write(data.join("kept"), "mine").expect("writes");
    let refused = provider.delete_one(&DeleteNode::of(&node)).await;
    assert!(matches!(refused, Err(cloudtik_providers::Error::Undeletable { .. })), "{refused:?}");
    assert_eq!(fs::read_to_string(data.join("kept")).expect("reads"), "mine");
    assert_eq!(provider.describe(&node.id).await.expect("stays").state, InstanceState::Running);
    command("umount", &[&data.to_string_lossy()]);
    delete_all(&provider).await;
    world.end().await;
}
