//! Logs that cannot be written: a full disk, a reader that has gone, a reader that does not read. Nothing else may suffer.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::files::Folder;
use crate::node::{Node, View};
use crate::process::{PATIENCE, Process, Signal, poll, run};
use crate::proxy::bind_both;

const LOST: &str = "shoal_log_lines_dropped_total";
/// Flags with which every task of a node logs whatever it can.
const LOUD: [&str; 3] = ["--log", "trace", "--access-log"];
/// Longer than a node that leaves takes, however little of its log can be written.
const PROMPTLY: Duration = Duration::from_secs(6);

/// What stands in the way of a log.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    FullDisk,
    ReaderGone,
    ReaderStalled,
}

/// Standard error that is in trouble from the start, and what keeps it so.
fn troubled(trouble: Trouble) -> (Stdio, Option<PipeReader>) {
    match trouble {
        Trouble::FullDisk => (File::options().write(true).open("/dev/full").expect("/dev/full").into(), None),
        Trouble::ReaderGone => {
            let (reader, writer) = pipe().expect("a pipe");
            drop(reader);
            (writer.into(), None)
        }
        Trouble::ReaderStalled => {
            let (reader, writer) = pipe().expect("a pipe");
            fill(&writer);
            (writer.into(), Some(reader))
        }
    }
}

/// Keeps a pipe full until its reader is dropped.
fn fill(pipe: &PipeWriter) {
    let mut pipe = pipe.try_clone().expect("another handle");
    std::thread::spawn(move || while pipe.write_all(&[b'\n'; 4096]).is_ok() {});
    // Until it is: nothing tells when a pipe is full, and a little room more or less does not matter.
    std::thread::sleep(Duration::from_millis(50));
}

fn free_address() -> SocketAddr {
    bind_both().2
}

fn start_troubled(cluster: &mut Cluster, trouble: Trouble, flags: &[&str]) -> Option<PipeReader> {
    let (log, kept) = troubled(trouble);
    let id = format!("n{}", cluster.running().count() + 1);
    let seed = cluster.running().next().map(|node| node.address.to_string());
    let join = seed.as_deref().map_or(vec![], |seed| vec!["--join", seed]);
    cluster.admit(Node::start_logging_to(log, &id, free_address(), &[flags, &join].concat()));
    kept
}

/// From start to stop, with changes of membership, requests, and a handover to a node whose log is well.
fn lives_a_whole_life(trouble: Trouble) {
    let mut cluster = Cluster::start(1);
    let _kept = [0, 1].map(|_| start_troubled(&mut cluster, trouble, &LOUD));
    cluster.wait_until("all know all", PATIENCE, || cluster.is_whole());
    for index in 0..200 {
        cluster[1 + index % 3].put(&format!("key-{index}"), "value");
    }
    let late = cluster.add(&[]);
    cluster.wait_until("the newcomer is known", PATIENCE, || cluster.is_whole());
    cluster.kill(late);
    cluster.wait_until("its death is known", PATIENCE, || {
        cluster.agrees_on(&[("n1", "healthy"), ("n2", "healthy"), ("n3", "healthy"), ("n4", "unhealthy")])
    });
    for number in 1..=3 {
        for index in 0..200 {
            assert_eq!(cluster[number].value(&format!("key-{index}")).as_deref(), Some("value"));
        }
    }
    let long_key = "k".repeat(900);
    for number in [2, 3] {
        cluster.wait_until("it counts what it could not log", PATIENCE, || {
            (0..100).for_each(|_| cluster[number].put(&long_key, "value"));
            cluster[number].metric(LOST) > 0
        });
    }
    for number in [2, 3] {
        cluster.ask_to_leave(number);
        let node = cluster.node(number);
        node.set_running(false);
        assert_eq!(node.process().wait(PROMPTLY).code(), Some(0), "{trouble:?}: n{number}");
    }
    for index in 0..200 {
        assert_eq!(cluster[1].value(&format!("key-{index}")).as_deref(), Some("value"), "{trouble:?}");
    }
}

#[test]
fn a_node_whose_log_is_on_a_full_disk_does_all_of_its_work() {
    lives_a_whole_life(Trouble::FullDisk);
}

#[test]
fn a_node_whose_logs_reader_has_gone_does_all_of_its_work() {
    lives_a_whole_life(Trouble::ReaderGone);
}

#[test]
fn a_node_whose_logs_reader_does_not_read_does_all_of_its_work() {
    lives_a_whole_life(Trouble::ReaderStalled);
}

#[test]
fn a_node_whose_logs_reader_goes_away_follows_the_membership() {
    let mut cluster = Cluster::default();
    let (reader, writer) = pipe().expect("a pipe");
    cluster.admit(Node::start_logging_to(writer, "n1", free_address(), &[]));
    cluster.add(&[]);
    cluster.add(&[]);
    cluster.wait_until("all know all", PATIENCE, || cluster.is_whole());
    drop(reader);
    cluster.kill(2);
    let dead = [("n1", "healthy"), ("n2", "unhealthy"), ("n3", "healthy")];
    cluster.wait_until("its death is known", PATIENCE, || cluster.agrees_on(&dead));
    let late = cluster.add(&[]);
    assert_eq!(late, 4);
    cluster.wait_until("all that live go by one ring with the newcomer", PATIENCE, || {
        let views: Vec<_> = cluster.running().filter_map(Node::view).collect();
        let knows = |view: &View| view.members.get("n4").is_some_and(|(status, _)| status == "healthy");
        let agree = views.windows(2).all(|two| two[0].ring == two[1].ring);
        let all_know = views.iter().all(|view| view.is_settled() && knows(view));
        views.len() == 3 && agree && all_know && cluster.running().all(Node::is_healthy)
    });
    for index in 0..50 {
        for number in [1, 3, 4] {
            cluster[number].put(&format!("key-{index}"), "value");
        }
    }
}

#[test]
fn what_could_not_be_logged_is_told_once_the_reader_reads_again() {
    let mut cluster = Cluster::default();
    let (mut reader, writer) = pipe().expect("a pipe");
    cluster.admit(Node::start_logging_to(writer, "n1", free_address(), &["--access-log"]));
    let key = "k".repeat(900);
    let mut requests = 0;
    cluster.wait_until("lines are lost", PATIENCE, || {
        for _ in 0..100 {
            cluster[1].put(&key, "value");
        }
        requests += 100;
        cluster[1].metric(LOST) > 0
    });
    let lost = cluster[1].metric(LOST);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the log is text");
        text
    });
    // Not before the thread has caught up: the lines of the end belong to the log, too.
    std::thread::sleep(Duration::from_millis(500));
    assert!(cluster.terminate(1).success());
    let text = reading.join().expect("the log is read");
    let parsed = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")));
    let lines: Vec<Value> = parsed.collect();
    let with = |message: &str| lines.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
    assert_eq!(with("request").len() as u64 + lost, requests, "each line is written or counted");
    let told = with("log lines could not be written");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["lines"], &told[0]["level"]), (&lost.into(), &"WARN".into()));
    assert_eq!(with("stopped").len(), 1, "what was logged at the end is in the log");
}

#[test]
fn a_flood_of_access_lines_keeps_no_warning_out_of_the_log() {
    let mut cluster = Cluster::default();
    let (mut reader, writer) = pipe().expect("a pipe");
    cluster.admit(Node::start_logging_to(writer, "n1", free_address(), &["--access-log"]));
    let key = "k".repeat(900);
    cluster.wait_until("lines are lost", PATIENCE, || {
        for _ in 0..100 {
            cluster[1].put(&key, "value");
        }
        cluster[1].metric(LOST) > 0
    });
    let other = cluster.add(&[]);
    cluster.wait_until("the newcomer is known", PATIENCE, || cluster.is_whole());
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the log is text");
        text
    });
    assert!(cluster.terminate(1).success());
    let text = reading.join().expect("the log is read");
    assert!(text.contains(r#""message":"member up""#), "{}", cluster[other].log().tail(5));
}

#[test]
fn a_node_that_cannot_run_ends_with_2_whatever_its_log_is() {
    for trouble in [Trouble::FullDisk, Trouble::ReaderGone, Trouble::ReaderStalled] {
        let cluster = Cluster::start(1);
        let taken = cluster[1].address.to_string();
        let free = free_address().to_string();
        let other = ["node", "--id", "n1", "--listen", &*free, "--join", &*taken];
        for arguments in [&["node", "--listen", &*taken][..], &other] {
            let (log, _kept) = troubled(trouble);
            let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
            let mut process = Process::of(command.args(arguments).stdout(Stdio::null()).stderr(log));
            assert_eq!(process.wait(PROMPTLY).code(), Some(2), "{trouble:?} {arguments:?}");
        }
    }
}

#[test]
fn a_fatal_error_has_the_shape_of_the_log() {
    let cluster = Cluster::start(1);
    let join = cluster[1].address.to_string();
    let mut namesake = Node::launch("n1", ([127, 0, 0, 1], 0).into(), &["--join", &join, "--log", "off"]);
    assert_eq!(namesake.process().wait(PATIENCE).code(), Some(2));
    let text = namesake.log().text();
    let line: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    assert_eq!((&line["level"], &line["node_id"]), (&"ERROR".into(), &"n1".into()));
    assert!(line["message"].as_str().is_some_and(|text| text.contains("already in use")), "{line}");
}

/// A node with this many threads and processes to its user; none besides, unless the tests run without privileges.
fn with_processes(limit: usize, folder: &Folder) -> Process {
    let shoal = folder.path("shoal");
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={limit}")).arg(shoal);
    command.args(["node", "--listen", "127.0.0.1:0", "--join", "localhost:1", "--log-format", "json"]);
    if rustix::process::geteuid().is_root() {
        command.uid(61_234).gid(61_234);
    }
    Process::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

#[test]
fn a_node_that_may_not_start_its_threads_says_so_and_ends_or_runs_with_fewer() {
    let folder = Folder::new();
    std::fs::copy(env!("CARGO_BIN_EXE_shoal"), folder.path("shoal")).expect("a copy that others may run");
    let mut ended = 0;
    for limit in 1..=8 {
        let mut node = with_processes(limit, &folder);
        let started = poll(PATIENCE, || node.exit_status().is_some() || node.log().address().is_some());
        assert!(started, "limit {limit}: {}", node.log().text());
        if node.log().address().is_some() {
            let alone =
                || !node.log().with_message("not joined yet; answering nobody and trying on").is_empty();
            assert!(poll(PATIENCE, alone), "limit {limit}: {}", node.log().text());
            node.signal(Signal::TERM);
            assert_eq!(node.wait(PROMPTLY).code(), Some(0), "limit {limit}: {}", node.log().text());
        } else {
            assert_eq!(node.wait(PROMPTLY).code(), Some(2), "limit {limit}: {}", node.log().text());
            assert!(node.log().text().contains("threads"), "limit {limit}: {}", node.log().text());
            ended += 1;
        }
        assert!(!node.log().text().contains("panicked"), "limit {limit}: {}", node.log().text());
    }
    assert!(ended > 0, "some of these limits are too low for a node");
}

/// The same with standard output instead of the log.
fn run_with_output(output: Stdio, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    let mut process = Process::of(command.args(arguments).stdout(output).stderr(Stdio::piped()));
    (process.wait(PATIENCE).code(), process.log().text())
}

#[test]
fn a_command_whose_output_cannot_be_written_fails_and_says_why() {
    let cluster = Cluster::start(1);
    cluster[1].put("key", "value");
    let node = cluster[1].address.to_string();
    let commands = [
        &["get", "key", "--node", &node][..],
        &["nodes", "--node", &node],
        &["watch", "--node", &node],
        &["secret"],
        &["--help"],
        &["node", "--help"],
        &["--version"],
    ];
    for command in commands {
        let (code, errors) = run_with_output(troubled(Trouble::FullDisk).0, command);
        assert_eq!(
            (code, &*errors),
            (Some(1), "shoal: standard output: No space left on device (os error 28)")
        );
    }
    for command in [&["get", "key", "--node", &node][..], &["secret"]] {
        let (code, errors) = run_with_output(troubled(Trouble::ReaderGone).0, command);
        assert_eq!((code, &*errors), (Some(1), ""), "{command:?}: what was asked for did not arrive");
    }
}

#[test]
fn a_command_that_fails_says_so_by_its_exit_code_where_it_cannot_be_read() {
    let nowhere = free_address().to_string();
    for trouble in [Trouble::FullDisk, Trouble::ReaderGone] {
        for (arguments, code) in [
            (&["get", "key", "--node", &*nowhere][..], 3),
            (&["get", "key", "--node", "8001"], 2),
            (&["put"], 2),
            (&["key", "a name"], 2),
            (&["key", "name"], 1),
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
            command.args(arguments).stdout(Stdio::piped()).stderr(troubled(trouble).0);
            let mut process = Process::of(&mut command);
            assert_eq!(process.wait(PATIENCE).code(), Some(code), "{trouble:?} {arguments:?}");
            assert_eq!(process.output().text(), "", "{arguments:?}: a line for a key that was not shown");
        }
    }
}

#[test]
fn a_demo_whose_output_is_not_read_stops_when_told() {
    let port = (20_005..30_000)
        .step_by(10)
        .find(|port| (0..2).all(|next| std::net::TcpListener::bind(("127.0.0.1", port + next)).is_ok()));
    let port = port.expect("two free ports").to_string();
    let (output, _kept) = troubled(Trouble::ReaderStalled);
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(["demo", "--nodes", "2", "--port", &port]).stdout(output).stderr(Stdio::piped());
    let mut demo = Process::of(&mut command);
    let node = format!("127.0.0.1:{port}");
    assert!(poll(PATIENCE, || run(&["nodes", "--node", &node]).code == 0), "{}", demo.log().text());
    demo.signal(Signal::TERM);
    assert!(demo.wait(PATIENCE).success());
}
