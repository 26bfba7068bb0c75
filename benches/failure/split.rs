//! Four nodes in two network namespaces, two in each, cut apart for twenty seconds and joined again.
//!
//! The namespaces `shoal-left` and `shoal-right` are linked with each other, and each with this one, from which both sides are
//! written to and read all the time. The cut drops what passes between the two, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Promises;
use super::common::{Node, Result, SHOAL, TOKEN, are_whole, exchange, http, wait_until};
use super::load::name;

const CUT_FOR: Duration = Duration::from_secs(20);
const ONE_RING_WITHIN: Duration = Duration::from_secs(5);
const EQUAL_WITHIN: Duration = Duration::from_secs(15);
const KEYS: usize = 200;
const SIDES: [(&str, &str); 2] = [("shoal-left", "10.77.0.1"), ("shoal-right", "10.77.0.2")];

pub(super) fn run() -> Result<Vec<String>> {
    let net = match Net::build() {
        Ok(net) => net,
        Err(error) => {
            println!("  skipped: network namespaces cannot be made here ({error})");
            return Ok(Vec::new());
        }
    };
    let token_file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("token");
    fs::write(&token_file, TOKEN)?;
    fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600))?;
    let token_file = token_file.display().to_string();
    let mut nodes = Vec::new();
    for (number, (side, host)) in [SIDES[0], SIDES[1], SIDES[0], SIDES[1]].into_iter().enumerate() {
        let listen = format!("{host}:{}", 8001 + number / 2);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", side, SHOAL]);
        let flags = ["--join", "10.77.0.1:8001", "--insecure", "--admin-token-file", &token_file];
        nodes.push(Node::launch(command, &format!("n{}", number + 1), &listen, &flags)?);
    }
    wait_until("the four see each other", || are_whole(&nodes))?;
    let mut promises = Promises::default();
    let mut newest: BTreeMap<usize, String> = BTreeMap::new();
    (0..KEYS).try_for_each(|key| write(nodes[key % 4].address, key, "before", &mut newest))?;

    net.cut()?;
    let until = Instant::now() + CUT_FOR;
    let (mut written, mut turn) = ([0, 0], 0);
    while Instant::now() < until {
        let side = turn % 2;
        let node = nodes[side + turn / 2 % 2 * 2].address;
        write(node, turn * 7 % KEYS, &format!("{side} {turn}"), &mut newest)?;
        written[side] += 1;
        turn += 1;
        sleep(Duration::from_millis(5));
    }
    println!("  {} writes on the left, {} on the right while they were apart", written[0], written[1]);
    promises.keep(written[0] > KEYS && written[1] > KEYS, "both sides take writes");

    net.heal()?;
    let healed = Instant::now();
    wait_until("all go by one table", || are_whole(&nodes))?;
    let one_ring = healed.elapsed();
    wait_until("all copies are equal", || unequal(&nodes).is_ok_and(|unequal| unequal == 0))?;
    let equal = healed.elapsed();
    let is_newest = |key: usize, node: &Node| -> Result<bool> {
        Ok(etag(node.address, "/api/v1/cache/", key)?.as_ref() == newest.get(&key))
    };
    let mut wrong = 0;
    for key in 0..KEYS {
        for node in &nodes {
            wrong += usize::from(!is_newest(key, node)?);
        }
    }
    println!(
        "  one table {:.2} s after healing, equal copies after {:.2} s; {wrong} of {} reads not the newest",
        one_ring.as_secs_f64(),
        equal.as_secs_f64(),
        4 * KEYS
    );
    promises.keep(one_ring <= ONE_RING_WITHIN, "one table within 5 s");
    promises.keep(equal <= EQUAL_WITHIN, "equal copies within 15 s");
    promises.keep(wrong == 0, "the newest version of each key wins");
    Ok(promises.0)
}

/// Writes a key and notes the version, if it is the newest so far.
fn write(node: SocketAddr, key: usize, value: &str, newest: &mut BTreeMap<usize, String>) -> Result<()> {
    let path = format!("/api/v1/cache/{}", name(key));
    let body = format!("{{\"value\":\"{value}\"}}");
    // The first writes after the cut wait for the others to be found silent; a write that fails may still be there.
    let (head, _) = exchange(node, "PUT", &path, &body)?;
    let version = header(&head, "etag").ok_or_else(|| format!("a PUT was answered with {head}"))?;
    let known = newest.entry(key).or_default();
    *known = version.max(std::mem::take(known));
    Ok(())
}

fn etag(node: SocketAddr, prefix: &str, key: usize) -> Result<Option<String>> {
    let (head, _) = exchange(node, "GET", &format!("{prefix}{}", name(key)), "")?;
    Ok(header(&head, "etag"))
}

fn header(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// How many keys do not have the same version at their two owners.
fn unequal(nodes: &[Node]) -> Result<usize> {
    let mut unequal = 0;
    for key in 0..KEYS {
        let (_, body) = http(nodes[0].address, "GET", &format!("/admin/locate/{}", name(key)), "")?;
        let located: Value = serde_json::from_str(&body)?;
        let owners = located["owners"].as_array().ok_or("no owners")?;
        let addresses = owners.iter().filter_map(|owner| {
            nodes.iter().find(|node| owner["node_id"] == node.id.as_str()).map(|node| node.address)
        });
        let versions: Vec<_> =
            addresses.map(|node| etag(node, "/internal/cache/", key)).collect::<Result<_>>()?;
        unequal += usize::from(versions.len() != 2 || versions[0].is_none() || versions[0] != versions[1]);
    }
    Ok(unequal)
}

/// The namespaces; gone with it.
struct Net;

impl Net {
    fn build() -> Result<Net> {
        drop(Net);
        for (side, _) in SIDES {
            ip(&["netns", "add", side])?;
        }
        let net = Net;
        ip(&[
            "link", "add", "across", "netns", SIDES[0].0, "type", "veth", "peer", "name", "across", "netns",
            SIDES[1].0,
        ])?;
        for (number, (side, host)) in SIDES.into_iter().enumerate() {
            let (here, there) = (format!("10.78.{number}.1/30"), format!("10.78.{number}.2/30"));
            ip(&["-n", side, "link", "set", "lo", "up"])?;
            ip(&["-n", side, "addr", "add", &format!("{host}/24"), "dev", "across"])?;
            ip(&["-n", side, "link", "set", "across", "up"])?;
            ip(&["link", "add", side, "type", "veth", "peer", "name", "outside", "netns", side])?;
            ip(&["addr", "add", &here, "dev", side])?;
            ip(&["link", "set", side, "up"])?;
            ip(&["-n", side, "addr", "add", &there, "dev", "outside"])?;
            ip(&["-n", side, "link", "set", "outside", "up"])?;
            ip(&["route", "add", &format!("{host}/32"), "via", there.trim_end_matches("/30")])?;
        }
        Ok(net)
    }

    fn cut(&self) -> Result<()> {
        let rules = "table inet cut { chain in { type filter hook input priority 0; iifname across drop; }; \
                     chain out { type filter hook output priority 0; oifname across drop; }; }";
        run_in(SIDES[0].0, &["nft", rules])
    }

    fn heal(&self) -> Result<()> {
        run_in(SIDES[0].0, &["nft", "delete table inet cut"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for (side, _) in SIDES {
            // Not there, the first time.
            let _ = Command::new("ip").args(["link", "del", side]).stderr(Stdio::null()).status();
            let _ = Command::new("ip").args(["netns", "del", side]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    succeed("ip", arguments)
}

fn run_in(side: &str, arguments: &[&str]) -> Result<()> {
    succeed("ip", &[&["netns", "exec", side], arguments].concat())
}

fn succeed(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(format!("{program} {}: {said}", arguments.join(" ")).into())
}
