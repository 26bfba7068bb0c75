//! How nodes find each other, and which do not.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process::PATIENCE;
use crate::proxy::bind_both;

#[test]
fn three_and_five_nodes_form_one_ring() {
    for nodes in [3, 5] {
        let cluster = Cluster::start(nodes);
        let views: Vec<_> = cluster.running().map(|node| node.view().expect("a view")).collect();
        assert!(views.windows(2).all(|two| two[0] == two[1]), "{views:?}");
        assert_eq!(views[0].members.len(), nodes);
    }
}

#[test]
fn twenty_nodes_that_join_at_once_all_know_all_within_three_seconds() {
    let _alone = crate::measured();
    let mut cluster = Cluster::default();
    cluster.add(&[]);
    let seed = cluster[1].address.to_string();
    let started = Instant::now();
    let joining: Vec<_> = (2..=20)
        .map(|number| {
            let seed = seed.clone();
            std::thread::spawn(move || Node::start(&format!("n{number}"), &["--join", &seed]))
        })
        .collect();
    for node in joining {
        cluster.admit(node.join().expect("the node starts"));
    }
    let left = Duration::from_secs(3).saturating_sub(started.elapsed());
    cluster.wait_until("twenty nodes know each other", left, || cluster.is_whole());
}

#[test]
fn a_node_whose_seed_is_not_up_serves_alone_and_joins_when_the_seed_comes() {
    let seed = bind_both().2;
    let mut cluster = Cluster::default();
    cluster.admit(Node::start("early", &["--join", &seed.to_string()]));
    cluster[1].put("key", "kept");
    assert_eq!(cluster[1].value("key").as_deref(), Some("kept"));
    cluster.admit(Node::start_at("late", seed, &[]));
    cluster.wait_until("the seed is joined", Duration::from_secs(5), || cluster.is_whole());
    for node in cluster.running() {
        assert_eq!(node.value("key").as_deref(), Some("kept"), "at {}", node.id);
    }
}

#[test]
fn a_seed_may_be_given_by_host_name() {
    let mut cluster = Cluster::default();
    cluster.add(&[]);
    let seed = format!("localhost:{}", cluster[1].address.port());
    cluster.admit(Node::start("n2", &["--join", &seed]));
    cluster.wait_until("the named seed is joined", PATIENCE, || cluster.is_whole());
}

#[test]
fn nodes_of_different_clusters_never_mix() {
    let mut cluster = Cluster::start(2);
    let seed = cluster[1].address.to_string();
    let stranger = Node::start("x1", &["--cluster", "other", "--join", &seed]);
    let refused = |node: &Node| node.log().text().contains("refused the link of a node of another cluster");
    cluster.wait_until("the stranger has been refused", PATIENCE, || refused(&cluster[1]));
    // A member of the strangers' cluster cannot be greeted from this side either.
    let join = serde_json::json!({"node_id": "x1", "address": stranger.address});
    cluster[1].post("/internal/cluster/join", &join).expect_error(500, "add_node_error");
    assert_eq!(stranger.view().expect("a view").statuses(), [("x1", "healthy")]);
    assert!(cluster.is_whole());
    cluster.add(&[]);
    cluster.wait_until("friends still join", PATIENCE, || cluster.is_whole());
}

#[test]
fn a_node_id_that_is_taken_is_refused_with_both_addresses() {
    let cluster = Cluster::start(2);
    let seed = cluster[1].address.to_string();
    let mut double = Node::launch("n2", ([127, 0, 0, 1], 0).into(), &["--join", &seed]);
    let status = double.process().wait(PATIENCE);
    assert_eq!(status.code(), Some(2));
    let here = double.log().address().expect("it had an address");
    let said = double.log().text();
    let last = said.lines().find(|line| line.starts_with("shoal: ")).expect("a reason");
    for word in ["n2", &cluster[2].address.to_string(), &here.to_string(), "--id"] {
        assert!(last.contains(word), "{word} is missing in {last:?}");
    }
    cluster.wait_until("the first bearer of the name stays", PATIENCE, || cluster.is_whole());
}
