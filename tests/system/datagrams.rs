//! Datagrams of strangers: forged, replayed, or far too many.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::files::{Folder, secret};
use crate::node::Node;
use crate::process::PATIENCE;
use crate::proxy::{Proxy, free_addresses};

/// The reasons for which the node has dropped datagrams, and how many.
fn reasons(node: &Node) -> Vec<(String, u64)> {
    let text = node.get("/metrics").text();
    let rejected = text.lines().filter(|line| line.starts_with("shoal_gossip_rejected_total{"));
    let parsed = rejected.map(|line| {
        let reason = line.split("reason=\"").nth(1)?.split('"').next()?;
        Some((reason.to_string(), line.rsplit(' ').next()?.parse().ok()?))
    });
    let all = parsed.collect::<Option<Vec<_>>>().expect("reasons and numbers");
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// Two nodes behind proxies that remember what passes, with these flags.
fn proxied(flags: &[&str], cluster: &mut Cluster) -> [Proxy; 2] {
    let listen = free_addresses::<2>();
    let proxies = listen.map(Proxy::start);
    let seed = proxies[0].address.to_string();
    for number in [1, 2] {
        let advertised = proxies[number - 1].address.to_string();
        let join = if number == 2 { &["--join", &*seed][..] } else { &[] };
        let flags = [&["--advertise", &*advertised], join, flags].concat();
        cluster.admit(Node::start_at(&format!("n{number}"), listen[number - 1], &flags));
    }
    cluster.wait_until("the pair is formed", PATIENCE, || cluster.is_whole());
    let enough = || proxies.iter().all(|proxy| proxy.captured().len() >= 50);
    cluster.wait_until("a hundred datagrams have passed", PATIENCE, enough);
    proxies
}

/// Sends datagrams to a node and waits until it has looked at all of them.
fn send_all(cluster: &Cluster, number: usize, datagrams: &[Vec<u8>]) -> u64 {
    let node = &cluster[number];
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let before = [node.metric("shoal_gossip_rejected_total"), node.metric("shoal_gossip_received_total")];
    for datagrams in datagrams.chunks(50) {
        for datagram in datagrams {
            socket.send_to(datagram, node.address).expect("it is sent");
        }
        // Less than the socket's buffer at a time, so that none is lost.
        sleep(Duration::from_millis(5));
    }
    cluster.wait_until("all have arrived", PATIENCE, || {
        node.metric("shoal_gossip_received_total") >= before[1] + datagrams.len() as u64
    });
    node.metric("shoal_gossip_rejected_total") - before[0]
}

#[test]
fn forged_datagrams_change_nothing() {
    let folder = Folder::new();
    // A cluster without a secret and one with another: their joins and goodbyes are as real as a stranger can make them.
    let mut forged = Vec::new();
    let other = folder.write("other", &secret());
    for flags in [&[][..], &["--cluster-secret-file", &other]] {
        let mut donor = Cluster::default();
        let proxies = proxied(flags, &mut donor);
        donor.terminate(2);
        forged.extend(proxies.iter().flat_map(Proxy::captured));
    }
    let mut cluster = Cluster::default();
    let file = folder.write("secret", &secret());
    let proxies = proxied(&["--cluster-secret-file", &file], &mut cluster);
    // And real ones that were changed by a bit.
    let real = proxies.iter().flat_map(Proxy::captured);
    forged.extend(real.enumerate().map(|(index, mut datagram)| {
        let at = index % datagram.len();
        datagram[at] ^= 1 << (index % 8);
        datagram
    }));
    assert!(forged.len() > 100, "{} datagrams", forged.len());
    for number in [1, 2] {
        let rejected = send_all(&cluster, number, &forged);
        assert!(rejected >= forged.len() as u64, "{rejected} of {} were rejected", forged.len());
        let complaints = cluster[number].log().text().matches("dropped a datagram").count();
        assert_eq!(complaints, reasons(&cluster[number]).len(), "one line a minute for each reason");
    }
    assert!(cluster.is_whole());
}

#[test]
fn junk_hides_no_other_reason_in_the_log() {
    let cluster = Cluster::start(1);
    let (foreign, version) = (vec![0; 64], vec![0xB5; 64]);
    let junk = [vec![foreign; 100], vec![version; 100]].concat();
    assert_eq!(send_all(&cluster, 1, &junk), 200);
    assert_eq!(reasons(&cluster[1]), [("foreign".to_string(), 100), ("version".to_string(), 100)]);
    let log = cluster[1].log();
    cluster.wait_until("both are logged", PATIENCE, || {
        let text = log.text();
        text.matches("not a shoal datagram").count() == 1 && text.matches("protocol version 181").count() == 1
    });
}

#[test]
fn captured_datagrams_change_nothing_when_they_come_again() {
    let folder = Folder::new();
    let file = folder.write("secret", &secret());
    let mut cluster = Cluster::default();
    let proxies = proxied(&["--cluster-secret-file", &file], &mut cluster);
    // Its goodbye is among what is captured; then it is back, and told again that it has left.
    cluster.terminate(2);
    cluster.wait_until("it has left", PATIENCE, || {
        cluster[1].view().is_some_and(|view| view.members.len() == 1)
    });
    let captured = proxies[0].captured();
    assert!(captured.len() > 10, "{} datagrams", captured.len());
    cluster.restart(2);
    cluster.wait_until("it is back", PATIENCE, || cluster.is_whole());
    let rejected = send_all(&cluster, 1, &captured);
    assert!(rejected >= captured.len() as u64, "{rejected} of {} were rejected", captured.len());
    // Those meant for one are not for the other.
    send_all(&cluster, 2, &captured);
    for _ in 0..10 {
        assert!(cluster.is_whole());
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_flood_of_datagrams_keeps_no_node_from_joining_or_leaving() {
    let _alone = crate::measured();
    let folder = Folder::new();
    let file = folder.write("secret", &secret());
    let mut cluster = Cluster::start_with(2, &["--cluster-secret-file", &file]);
    /// Also when the test fails.
    struct EndsWith<'a>(&'a AtomicBool);
    impl Drop for EndsWith<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    let to = cluster[1].address;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // From an address of its own, as a stranger's is.
                let socket = UdpSocket::bind("127.0.0.9:0").expect("a socket");
                while !over.load(Ordering::Relaxed) {
                    // Fails when the node's buffer is full, which is what is wanted.
                    let _ = socket.send_to(&[0; 64], to);
                }
            });
        }
        let _flood = EndsWith(&over);
        let started = Instant::now();
        cluster.add(&["--cluster-secret-file", &file]);
        cluster.wait_until("it is a member everywhere", PATIENCE, || cluster.is_whole());
        println!("joined after {:?}", started.elapsed());
        let started = Instant::now();
        let status = cluster.terminate(1);
        assert!(status.success(), "{status}");
        println!("left after {:?}", started.elapsed());
    });
}
