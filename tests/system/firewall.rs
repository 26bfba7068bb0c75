//! UDP that does not arrive while TCP works: at a node that would join, and at a member.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::namespace;
use crate::node::Node;
use crate::process::{PATIENCE, poll};
use crate::proxy::bind_both;

/// For how long nothing is to happen.
const A_WHILE: Duration = Duration::from_secs(6);

fn lines(node: &Node) -> usize {
    node.log().text().lines().count()
}

#[test]
fn a_node_that_no_datagram_reaches_stays_outside_quietly_and_says_why() {
    if !namespace::is_inside("firewall::a_node_that_no_datagram_reaches_stays_outside_quietly_and_says_why") {
        return;
    }
    let mut cluster = Cluster::start(3);
    let (listen, seed) = (bind_both().2, cluster[1].address.to_string());
    namespace::close_udp_to(listen);
    let before: usize = cluster.running().map(lines).sum();
    let outsider = Node::start_at("n4", listen, &["--join", &seed]);
    let reason = format!("TCP works, UDP from {seed} to {listen} does not arrive: a firewall?");
    let health = || outsider.get("/api/v1/health");
    let told = || health().json()["reason"].as_str().is_some_and(|why| why.contains(&reason));
    assert!(poll(PATIENCE, told), "{}", health().text());
    let until = Instant::now() + A_WHILE;
    while Instant::now() < until {
        assert_eq!((health().status, &health().json()["status"]), (503, &json!("joining")));
        assert!(cluster.is_whole());
        std::thread::sleep(Duration::from_millis(50));
    }
    let written = cluster.running().map(lines).sum::<usize>() - before;
    assert_eq!(written, 1, "the member that was asked says once why it refuses");
    assert!(cluster[1].log().says(&reason), "{}", cluster[1].log().tail(5));
    assert_eq!(outsider.log().text().matches(&reason).count(), 1, "{}", outsider.log().tail(5));

    namespace::open_udp_to(listen);
    cluster.admit(outsider);
    cluster.wait_until("it is a member", PATIENCE, || cluster.is_whole());
}

#[test]
fn a_member_that_no_datagram_reaches_is_found_out_and_accuses_nobody() {
    if !namespace::is_inside("firewall::a_member_that_no_datagram_reaches_is_found_out_and_accuses_nobody") {
        return;
    }
    let cluster = Cluster::start(4);
    cluster[1].put("key", "value");
    namespace::close_udp_to(cluster[4].address);
    let found_out =
        |number: usize| cluster[number].view().is_some_and(|view| view.members["n4"].0 == "unhealthy");
    cluster.wait_until("the others know", PATIENCE, || (1..=3).all(found_out));
    let until = Instant::now() + A_WHILE;
    while Instant::now() < until {
        assert_eq!(cluster[4].value("key").as_deref(), Some("value"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let count = |number: usize, message: &str| cluster[number].log().with_message(message).len();
    for well in 1..=3 {
        let log = cluster[well].log();
        assert_eq!((count(well, "member suspect"), count(well, "member down")), (1, 1), "{}", log.tail(30));
        assert_eq!(count(well, "the others had declared this node dead; it is back"), 0, "{}", log.tail(30));
        assert!(log.text().contains("TCP works, UDP to"), "{}", log.tail(30));
    }
    assert_eq!(
        (count(4, "member suspect"), count(4, "member down")),
        (0, 0),
        "{}",
        cluster[4].log().tail(30)
    );
    namespace::open_udp_to(cluster[4].address);
    cluster.wait_until("it is back", PATIENCE, || cluster.is_whole());
}
