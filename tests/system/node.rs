//! One member of a test's cluster: how it is started, asked, and what it believes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::http::{self, Answer};
use crate::process::{Log, PATIENCE, Process, Signal, poll};

const SLOTS: u64 = 16384;

/// A node, running or not; one of a test's cluster.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    process: Process,
    /// The words in front of the binary, by which a node gets a network of its own.
    front: Vec<String>,
    flags: Vec<String>,
    /// For `/admin` of nodes that are not on loopback.
    token: Option<String>,
    running: bool,
}

/// What a node says of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) ring: String,
    /// Status and slots by node id.
    pub(crate) members: BTreeMap<String, (String, u64)>,
}

impl Node {
    /// Starts a node on a port of its choice.
    pub(crate) fn start(id: &str, flags: &[&str]) -> Node {
        Node::start_at(id, ([127, 0, 0, 1], 0).into(), flags)
    }

    /// Starts a node and waits until it can be talked to.
    pub(crate) fn start_at(id: &str, listen: SocketAddr, flags: &[&str]) -> Node {
        let mut node = Node::launch(id, listen, flags);
        node.wait_for_port();
        node
    }

    /// Starts a node that may not get far.
    pub(crate) fn launch(id: &str, listen: SocketAddr, flags: &[&str]) -> Node {
        Node::launch_behind(&[], None, id, listen, flags)
    }

    /// Starts a node by `front`, whose `/admin` takes `token`: each of `tests/network` has a network of its own.
    #[allow(dead_code, reason = "the system tests have one network")]
    pub(crate) fn start_behind(
        front: &[&str],
        token: &str,
        id: &str,
        listen: SocketAddr,
        flags: &[&str],
    ) -> Node {
        let mut node = Node::launch_behind(front, Some(token), id, listen, flags);
        node.wait_for_port();
        node
    }

    fn launch_behind(
        front: &[&str],
        token: Option<&str>,
        id: &str,
        listen: SocketAddr,
        flags: &[&str],
    ) -> Node {
        let owned = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
        let (front, flags) = (owned(front), owned(flags));
        let process = spawn(&front, id, listen, &flags);
        let token = token.map(str::to_owned);
        Node { id: id.into(), address: listen, process, front, flags, token, running: true }
    }

    /// Starts a node whose log goes to `log`, at an address that is known: its log cannot be read here.
    pub(crate) fn start_logging_to(
        log: impl Into<Stdio>,
        id: &str,
        listen: SocketAddr,
        flags: &[&str],
    ) -> Node {
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(arguments(id, listen, &flags)).stdout(Stdio::null()).stderr(log);
        let process = Process::of(&mut command);
        let (id, front) = (id.into(), Vec::new());
        let mut node = Node { id, address: listen, process, front, flags, token: None, running: true };
        node.wait_for_port();
        node
    }

    /// Starts a node by a command that becomes it, once `begun` has done for that process what it waits for.
    #[allow(dead_code, reason = "the nodes of tests/network have another way")]
    pub(crate) fn start_through(
        mut command: Command,
        begun: impl FnOnce(u32),
        token: &str,
        id: &str,
        listen: SocketAddr,
        flags: &[&str],
    ) -> Node {
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        command.arg(env!("CARGO_BIN_EXE_shoal")).args(arguments(id, listen, &flags));
        let process = Process::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        begun(process.id());
        let (id, front, token) = (id.into(), Vec::new(), Some(token.into()));
        let mut node = Node { id, address: listen, process, front, flags, token, running: true };
        node.wait_for_port();
        node
    }

    fn wait_for_port(&mut self) {
        let log = self.process.log().clone();
        let started = poll(PATIENCE, || {
            if self.address.port() == 0 {
                self.address = log.address().unwrap_or(self.address);
            }
            self.address.port() != 0 && http::connect(self.address).is_ok() || self.has_ended()
        });
        assert!(started && !self.has_ended(), "{} does not start; its log ends\n{}", self.id, log.tail(20));
    }

    fn has_ended(&mut self) -> bool {
        self.process.exit_status().is_some()
    }

    /// Starts it anew with the address, name and flags it had.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.front, &self.id, self.address, &self.flags);
        self.wait_for_port();
        self.running = true;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Whether it is meant to answer.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    pub(crate) fn set_running(&mut self, running: bool) {
        self.running = running;
    }

    pub(crate) fn log(&self) -> &Log {
        self.process.log()
    }

    /// A request that must be answered, with whatever status.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.ask(method, path, headers, body).unwrap_or_else(|error| {
            panic!("{method} {path} at {}: {error}\n{}", self.id, self.log().tail(20))
        })
    }

    /// A request that may not be answered.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let token = bearer.as_ref().map(|bearer| ("authorization", &**bearer));
        let headers: Vec<_> = headers.iter().copied().chain(token).collect();
        http::request(self.address, method, path, &headers, body)
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.request("POST", path, &json, body.to_string().as_bytes())
    }

    #[track_caller]
    pub(crate) fn put_json(&self, key: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.request("PUT", &key_path(key), &json, body.to_string().as_bytes())
    }

    /// Stores a string.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.put_json(key, &json!({"value": value})).expect(200);
    }

    #[track_caller]
    pub(crate) fn read(&self, key: &str) -> Answer {
        self.get(&key_path(key))
    }

    /// The string that a hit gives, or `None` for a miss; anything else fails the test.
    #[track_caller]
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let answer = self.read(key);
        match answer.status {
            200 => Some(answer.json()["value"].as_str().expect("a value").to_string()),
            404 if answer.json()["found"] == false => None,
            _ => panic!(
                "GET {key} at {}: {} {}\n{}",
                self.id,
                answer.status,
                answer.text(),
                self.log().tail(20)
            ),
        }
    }

    /// Whether it says that it serves.
    pub(crate) fn is_healthy(&self) -> bool {
        self.ask("GET", "/api/v1/health", &[], b"").is_ok_and(|answer| answer.status == 200)
    }

    /// A figure from `/metrics`: the sum over its labels.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values: Vec<u64> = text
            .lines()
            .filter(is_it)
            .map(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number"))
            .collect();
        assert!(!values.is_empty(), "no {name} in {text}");
        values.iter().sum()
    }

    /// What it believes; `None` if it does not answer.
    pub(crate) fn view(&self) -> Option<View> {
        let body = self.ask("GET", "/admin/cluster", &[], b"").ok()?.json();
        let member = |node: &Value| {
            let text = |name: &str| node[name].as_str().unwrap_or_default().to_string();
            (text("node_id"), (text("status"), node["slots"].as_u64().unwrap_or(u64::MAX)))
        };
        let members = body["cluster_status"]["nodes"].as_array()?.iter().map(member).collect();
        Some(View { ring: body["ring"].as_str()?.to_string(), members })
    }
}

impl View {
    pub(crate) fn statuses(&self) -> Vec<(&str, &str)> {
        self.members.iter().map(|(id, (status, _))| (&**id, &**status)).collect()
    }

    /// Whether the ring is the one of the members that are not dead: it follows the view a moment later.
    pub(crate) fn is_settled(&self) -> bool {
        let fits = |(status, slots): &(String, u64)| (status == "unhealthy") == (*slots == 0);
        self.members.values().all(fits) && self.members.values().map(|(_, slots)| slots).sum::<u64>() == SLOTS
    }
}

fn spawn(front: &[String], id: &str, listen: SocketAddr, flags: &[String]) -> Process {
    let arguments = arguments(id, listen, flags);
    match front {
        [] => Process::spawn(arguments),
        [program, words @ ..] => {
            let mut command = Command::new(program);
            command.args(words).arg(env!("CARGO_BIN_EXE_shoal")).args(arguments);
            Process::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
        }
    }
}

fn arguments(id: &str, listen: SocketAddr, flags: &[String]) -> Vec<String> {
    let fixed = ["node", "--listen", &listen.to_string(), "--id", id, "--log-format", "json"];
    fixed.iter().map(ToString::to_string).chain(flags.iter().cloned()).collect()
}

pub(crate) fn key_path(key: &str) -> String {
    format!("/api/v1/cache/{}", http::encode(key))
}
