//! A network of a test's own, in which what is gone swallows what it is sent, as a container does that was removed.
//!
//! Loopback answers for ports on which nothing listens; nothing else does. The test runs itself once more, in a network
//! namespace whose only device is a loopback of its own, and its rules drop those answers.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const INSIDE: &str = "INSIDE_NAMESPACES_OF_THE_TEST";

/// Sets the namespace up, then becomes the test.
const SET_UP: &str = "ip link set lo up && \
     iptables -A OUTPUT -p tcp --tcp-flags RST RST -j DROP && \
     iptables -A OUTPUT -p icmp -j DROP && \
     exec \"$@\"";

/// Whether the test named `name` is inside already. If not, it has been run there, and passed.
#[track_caller]
pub(crate) fn is_inside(name: &str) -> bool {
    is_inside_of(name, &["--map-root-user", "--net"], SET_UP)
}

/// The same for namespaces of these kinds, which `set_up` prepares and then becomes the test.
#[track_caller]
pub(crate) fn is_inside_of(name: &str, kinds: &[&str], set_up: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let test = std::env::current_exe().expect("the test has a path");
    let mut inside = Command::new("unshare")
        .args(kinds)
        .args(["sh", "-c", &format!("exec 2>&1; {set_up}"), "sh"])
        .arg(test)
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare runs (Debian's util-linux, iproute2 and iptables are needed)");
    let mut passed = false;
    let lines = BufReader::new(inside.stdout.take().expect("it is piped")).lines();
    for line in lines.map_while(Result::ok) {
        // As it comes: whoever watches a long test sees how far it is.
        println!("{line}");
        passed |= line.contains("1 passed");
    }
    let ended = inside.wait().expect("a child can be waited for");
    assert!(ended.success() && passed, "in its namespace: {ended}");
    false
}

/// Nothing passes any more.
pub(crate) fn cut_all() {
    add_rule(&["-A", "INPUT", "-j", "DROP"]);
}

/// No connection to the node at `address` carries anything any more; datagrams, and its own connections, still pass.
pub(crate) fn swallow_connections_to(address: SocketAddr) {
    let port = address.port().to_string();
    for end in ["--sport", "--dport"] {
        add_rule(&["-A", "INPUT", "-p", "tcp", end, &port, "-j", "DROP"]);
    }
}

/// No datagram arrives at `address` any more; connections do.
pub(crate) fn close_udp_to(address: SocketAddr) {
    udp_rule("-A", address);
}

/// Datagrams arrive there again.
pub(crate) fn open_udp_to(address: SocketAddr) {
    udp_rule("-D", address);
}

fn udp_rule(change: &str, address: SocketAddr) {
    add_rule(&[change, "INPUT", "-p", "udp", "--dport", &address.port().to_string(), "-j", "DROP"]);
}

fn add_rule(rule: &[&str]) {
    let added = Command::new("iptables").args(rule).status().expect("iptables runs");
    assert!(added.success(), "{rule:?}: {added}");
}
