//! The commands: what they print, and how they end.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::process::{Ended, PATIENCE, Process, Signal, poll, run};
use crate::proxy::bind_both;

fn shoal(command: &str, arguments: &[&str], cluster: &Cluster) -> Ended {
    let address = cluster[1].address.to_string();
    run(&[&[command], arguments, &["--node", &address]].concat())
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (tcp, udp, address) = bind_both();
    let refusal = |protocol: &str| {
        let ended = run(&["node", "--listen", &address.to_string(), "--id", "n1"]);
        assert_eq!(ended.code, 2);
        let port = format!("port {} is in use ({protocol}", address.port());
        assert!(ended.errors.contains(&port) && ended.errors.contains("--listen"), "{}", ended.errors);
    };
    drop(udp);
    refusal("TCP");
    drop(tcp);
    let _udp = std::net::UdpSocket::bind(address).expect("the port is free again");
    refusal("UDP");
}

#[test]
fn a_bad_flag_is_named_with_the_form_that_is_accepted() {
    for (flag, given, accepted) in [
        ("--listen", "8001", "host:port"),
        ("--advertise", "0.0.0.0:8001", "name an address and port"),
        ("--join", "nowhere", "host:port"),
        ("--id", "a b", "letters, digits"),
        ("--cluster", "two words", "1-64"),
        ("--copies", "0", "1 to 8"),
        ("--max-memory", "lots", "KiB, MiB, GiB"),
        ("--max-value-size", "0", "1B to 1GiB"),
        ("--detection", "psychic", "lan, fast, relaxed"),
        ("--log-format", "xml", "text, json"),
    ] {
        let listen = if flag == "--listen" { &[][..] } else { &["--listen", "127.0.0.1:0"] };
        let ended = run(&[&["node", flag, given], listen].concat());
        assert_eq!(ended.code, 2, "{flag}: {}", ended.errors);
        for word in [flag, given, accepted] {
            assert!(ended.errors.contains(word), "{word:?} is missing in {:?}", ended.errors);
        }
    }
}

#[test]
fn an_unknown_flag_or_command_ends_with_2() {
    for arguments in
        [&["node", "--colour", "red"][..], &["swim"], &["get"], &["get", "key", "--node", "8001"]]
    {
        let ended = run(arguments);
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.errors);
        assert!(!ended.errors.is_empty());
    }
}

#[test]
fn put_get_and_delete_work_on_any_node_and_tell_by_their_exit_code_what_was_there() {
    let cluster = Cluster::start(2);
    let miss = shoal("get", &["key"], &cluster);
    assert_eq!((miss.code, &*miss.output), (1, ""));
    assert!(miss.errors.contains("not found"), "{}", miss.errors);
    assert_eq!(shoal("delete", &["key"], &cluster).code, 1);
    assert_eq!(shoal("put", &["a key/🐟", "some text"], &cluster).code, 0);
    let hit = shoal("get", &["a key/🐟"], &cluster);
    assert_eq!((hit.code, &*hit.output), (0, "some text"));
    assert_eq!(cluster[2].value("a key/🐟").as_deref(), Some("some text"));
    assert_eq!(shoal("delete", &["a key/🐟"], &cluster).code, 0);
    assert_eq!(shoal("delete", &["a key/🐟"], &cluster).code, 1);
    assert_eq!(shoal("put", &["key", "value", "--ttl", "60"], &cluster).code, 0);
    assert!(cluster[2].read("key").expect(200)["ttl"].as_u64().is_some_and(|ttl| ttl <= 60));
    assert_eq!(shoal("put", &["key", "value", "--ttl", "0"], &cluster).code, 2);
    let refused = shoal("put", &["", "no key"], &cluster);
    assert_eq!(refused.code, 1, "{}", refused.errors);
}

#[test]
fn a_node_that_is_not_there_ends_every_command_with_3() {
    let (_, _, nowhere) = bind_both();
    let nowhere = nowhere.to_string();
    for command in [&["get", "key"][..], &["put", "key", "value"], &["delete", "key"], &["nodes"], &["watch"]]
    {
        let ended = run(&[command, &["--node", &nowhere]].concat());
        assert_eq!(ended.code, 3, "{command:?}: {}", ended.errors);
        assert!(ended.errors.contains(&nowhere), "{}", ended.errors);
    }
}

#[test]
fn nodes_shows_each_member_and_the_ring() {
    let cluster = Cluster::start(3);
    let ended = shoal("nodes", &[], &cluster);
    assert_eq!(ended.code, 0, "{}", ended.errors);
    for node in cluster.running() {
        let shows = |line: &str| {
            [&*node.id, &*node.address.to_string(), "healthy"].iter().all(|word| line.contains(word))
        };
        assert!(ended.output.lines().any(shows), "{}", ended.output);
    }
    assert!(ended.output.contains(&cluster[1].view().expect("a view").ring), "{}", ended.output);
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let cluster = Cluster::start(1);
    for command in ["nodes", "watch"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args([command, "--node", &cluster[1].address.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the shoal binary starts");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("a child can be waited for");
        assert_eq!(
            (ended.status.code(), &*String::from_utf8_lossy(&ended.stderr)),
            (Some(0), ""),
            "{command}"
        );
    }
}

#[test]
fn watch_tells_of_a_death_and_the_new_ring_within_two_seconds() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    let watch = Process::spawn(["watch", "--node", &cluster[1].address.to_string()]);
    let told = |text: &str| watch.output().text().contains(text);
    cluster.wait_until("it shows who is there", PATIENCE, || told("n1 sees 3 members"));
    cluster.kill(3);
    cluster.wait_until("it tells of the death and the ring", Duration::from_secs(2), || {
        told("n3 (") && told(" is dead") && told("new ring ") && told(": 2 members")
    });
}

#[test]
fn a_watcher_goes_on_with_another_node_when_its_own_dies() {
    let mut cluster = Cluster::start(3);
    let watch = Process::spawn(["watch", "--node", &cluster[3].address.to_string()]);
    let told = |text: &str| watch.output().text().contains(text);
    cluster.wait_until("it shows who is there", PATIENCE, || told("n3 sees 3 members"));
    cluster.kill(3);
    cluster.wait_until("it listens to another one", PATIENCE, || told("now listening to"));
}

#[test]
fn a_demo_starts_its_nodes_and_stops_them_all() {
    // Ports below those that the system gives out, so that no other test gets in between.
    let first = (20_000..30_000).step_by(10).map(|port| port + u64::from(std::process::id() % 10));
    let is_free = |port: &u64| {
        (0..2).all(|next| std::net::TcpListener::bind(("127.0.0.1", (port + next) as u16)).is_ok())
    };
    let port = first.into_iter().find(is_free).expect("two free ports");
    let mut demo = Process::spawn(["demo", "--nodes", "2", "--port", &port.to_string()]);
    let formed = poll(PATIENCE, || demo.output().text().contains("2 nodes are up and see each other"));
    assert!(formed, "{}{}", demo.output().text(), demo.log().text());
    let nodes = [port, port + 1].map(|port| format!("127.0.0.1:{port}"));
    assert_eq!(run(&["put", "greeting", "hello", "--node", &nodes[0]]).code, 0);
    assert_eq!(run(&["get", "greeting", "--node", &nodes[1]]).output, "hello");
    demo.signal(Signal::INT);
    assert!(demo.wait(PATIENCE).success());
    for node in &nodes {
        assert_eq!(run(&["nodes", "--node", node]).code, 3, "{node} still runs");
    }
}
