//! A network that falls in two and heals, by proxies that are cut.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process::PATIENCE;
use crate::proxy::{Proxy, bind_both, free_addresses};

/// Two nodes that reach each other only through their proxies.
fn proxied_pair() -> (Cluster, [Proxy; 2]) {
    let listen = free_addresses::<2>();
    let proxies = listen.map(Proxy::start);
    let advertised = [0, 1].map(|index: usize| proxies[index].address.to_string());
    let mut cluster = Cluster::default();
    let start = |index: usize, flags: &[&str]| {
        let flags = [&["--advertise", &advertised[index]], flags].concat();
        Node::start_at(&format!("n{}", index + 1), listen[index], &flags)
    };
    cluster.admit(start(0, &[]));
    cluster.admit(start(1, &["--join", &advertised[0]]));
    cluster.wait_until("the pair is formed", PATIENCE, || cluster.is_whole());
    (cluster, proxies)
}

#[test]
fn a_member_whose_connections_are_swallowed_is_done_without() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    let listen = bind_both().2;
    let proxy = Proxy::start(listen);
    let (seed, advertised) = (cluster[1].address.to_string(), proxy.address.to_string());
    let flags = ["--join", &seed, "--advertise", &advertised];
    cluster.admit(Node::start_at("n4", listen, &flags));
    cluster.wait_until("the fourth has joined", PATIENCE, || cluster.is_whole());
    let keys: Vec<_> = (0..100).map(|index| format!("kept-{index}")).collect();
    keys.iter().for_each(|key| cluster[1].put(key, "before"));

    proxy.deafen();
    let read_all = |number: usize, value: &str| {
        let slowest = keys.iter().map(|key| {
            let asked = Instant::now();
            assert_eq!(cluster[number].value(key).as_deref(), Some(value), "{key}");
            asked.elapsed()
        });
        slowest.max().expect("some keys")
    };
    assert!(read_all(1, "before") < Duration::from_secs(1));
    let newcomer = Node::start("n5", &["--join", &seed]);
    for number in 1..=3 {
        cluster.wait_until("the fifth has joined", PATIENCE, || {
            cluster[number].view().is_some_and(|view| view.members.contains_key("n5"))
        });
    }
    // A table waits two seconds for a member that nobody hears.
    sleep(Duration::from_secs(3));
    keys.iter().for_each(|key| cluster[2].put(key, "after"));
    for number in 1..=3 {
        let slowest = read_all(number, "after");
        assert!(slowest < Duration::from_millis(400), "{slowest:?} at n{number}");
    }
    proxy.mend();
    cluster.admit(newcomer);
    cluster.wait_until("all are one again", PATIENCE, || cluster.is_whole());
    for node in cluster.running() {
        keys.iter().for_each(|key| assert_eq!(node.value(key).as_deref(), Some("after"), "at {}", node.id));
    }
}

#[test]
fn a_pair_that_was_split_serves_on_both_sides_and_heals_into_one_ring() {
    let _alone = crate::measured();
    let (cluster, proxies) = proxied_pair();
    cluster[1].put("before", "the split");
    assert_eq!(cluster[2].value("before").as_deref(), Some("the split"));

    proxies.iter().for_each(Proxy::cut);
    sleep(Duration::from_secs(5));
    for (here, there) in [(1, "n2"), (2, "n1")] {
        let node = &cluster[here];
        let view = node.view().expect("it still serves");
        assert_eq!(view.members[there].0, "unhealthy", "at {}", node.id);
        let key = format!("written at {}", node.id);
        node.put(&key, "alone");
        assert_eq!(node.value(&key).as_deref(), Some("alone"));
    }

    proxies.iter().for_each(Proxy::mend);
    cluster.wait_until("the pair is one ring again", Duration::from_secs(5), || cluster.is_whole());
    for key in ["written at n1", "written at n2"] {
        for node in cluster.running() {
            assert_eq!(node.value(key).as_deref(), Some("alone"), "{key:?}, read at {}", node.id);
        }
    }
}
