//! What the benchmarks share: node processes, a plain HTTP call, and figures.
//!
//! Blocking and small on purpose: nothing here runs while something is being measured.

#![allow(dead_code, reason = "each benchmark uses its part")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A benchmark that cannot go on says why and ends.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The node under test, built with the release profile.
pub(crate) const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");
/// Longer than anything here takes unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A process that does not outlive its handle.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Kills it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        // Fails only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// For `/admin` of nodes that are not on loopback; others do not look at it.
pub(crate) const TOKEN: &str = "token-of-the-benchmarks";

/// A running node.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

impl Node {
    /// Starts a node and waits until it says where it listens.
    pub(crate) fn start(binary: impl AsRef<Path>, id: &str, listen: &str, flags: &[&str]) -> Result<Node> {
        Node::launch(Command::new(binary.as_ref()), id, listen, flags)
    }

    /// Starts a node by a command that may stand in front of it.
    pub(crate) fn launch(mut command: Command, id: &str, listen: &str, flags: &[&str]) -> Result<Node> {
        let mut child = command
            .args(["node", "--log-format", "json", "--id", id, "--listen", listen])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no standard error")?).lines();
        let process = Process(child);
        let first = lines.next().ok_or_else(|| format!("{id} ended without a word"))??;
        let started = serde_json::from_str::<Value>(&first).map_err(|_| first)?;
        let address = started["address"].as_str().ok_or("the first line names no address")?.parse()?;
        // Read to the end, so that the node never waits for somebody to take its logs.
        thread::spawn(move || lines.for_each(drop));
        Ok(Node { id: id.into(), address, process })
    }

    /// The fingerprint of its ring, if that is one of exactly `count` members, all of them well.
    fn ring_of(&self, count: usize) -> Option<Value> {
        let Ok((200, body)) = http(self.address, "GET", "/admin/cluster", "") else { return None };
        let mut view: Value = serde_json::from_str(&body).ok()?;
        let members = view["cluster_status"]["nodes"].as_array()?;
        let healthy: Vec<_> = members.iter().filter(|member| member["status"] == "healthy").collect();
        // The dead stay visible; by a table that they are still in, the living do not have all slots.
        let slots: u64 = healthy.iter().filter_map(|member| member["slots"].as_u64()).sum();
        (healthy.len() == count && slots == 16384).then(|| view["ring"].take())
    }
}

/// Whether all of them serve, see each other and place keys by the same table. The table follows the view a little later, so
/// that the view alone says nothing about where a key belongs.
pub(crate) fn are_whole(nodes: &[Node]) -> bool {
    let mut rings = nodes.iter().map(|node| node.ring_of(nodes.len()));
    let Some(Some(first)) = rings.next() else { return false };
    rings.all(|ring| ring.as_ref() == Some(&first)) && nodes.iter().all(|node| serves(node.address))
}

/// Whether the node says that it serves.
pub(crate) fn serves(node: SocketAddr) -> bool {
    http(node, "GET", "/api/v1/health", "").is_ok_and(|(status, _)| status == 200)
}

/// One request on a connection of its own: status and body.
pub(crate) fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let (head, body) = exchange(address, method, path, body)?;
    let status = head.split(' ').nth(1).ok_or("no status line")?.parse()?;
    Ok((status, body))
}

/// One request on a connection of its own: head and body.
pub(crate) fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {TOKEN}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without an end of its head")?;
    Ok((head.into(), body.into()))
}

/// What `getconf CLK_TCK` says on every Linux: the unit of `/proc/<pid>/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of all threads of these processes.
pub(crate) fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for &pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything: count the fields after it.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Looks every 20 ms until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > until {
            return Err(format!("waited {} s in vain until {what}", PATIENCE.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The value after `name` on the command line, or the default.
pub(crate) fn flag<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    match arguments.next() {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{name} {text:?} is not of the expected kind").into()),
    }
}

/// Measurements of one quantity.
#[derive(Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The smallest value that at least this part of all values does not exceed.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// Round by round, this divided by the other.
    pub(crate) fn over(&self, other: &Figures) -> Figures {
        Figures(self.0.iter().zip(&other.0).map(|(own, other)| own / other).collect())
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Figures {
        Figures(values.into_iter().collect())
    }
}
