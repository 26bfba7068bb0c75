//! How nodes find each other, and which do not.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process::PATIENCE;
use crate::proxy::{Proxy, bind_both};

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
fn a_node_whose_seed_is_not_up_serves_alone_in_the_end_and_joins_when_the_seed_comes() {
    let seed = bind_both().2;
    let mut cluster = Cluster::default();
    cluster.admit(Node::start("early", &["--join", &seed.to_string()]));
    cluster.wait_until("it begins a cluster of its own", PATIENCE, || cluster.is_whole());
    cluster[1].put("key", "kept");
    assert_eq!(cluster[1].value("key").as_deref(), Some("kept"));
    cluster.admit(Node::start_at("late", seed, &[]));
    cluster.wait_until("the seed is joined", Duration::from_secs(5), || cluster.is_whole());
    for node in cluster.running() {
        assert_eq!(node.value("key").as_deref(), Some("kept"), "at {}", node.id);
    }
}

#[test]
fn a_node_that_the_others_cannot_reach_is_told_so_and_stays_outside() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    cluster[1].put("key", "kept");
    let listen = bind_both().2;
    let proxy = Proxy::start(listen);
    proxy.deafen();
    let (seed, advertised) = (cluster[1].address.to_string(), proxy.address.to_string());
    let outside = Node::start_at("n4", listen, &["--join", &seed, "--advertise", &advertised]);
    let is_told = || outside.log().tail(8).contains("does not reach this node");
    cluster.wait_until("it is told why it cannot join", PATIENCE, is_told);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(cluster.is_whole(), "it has become a member");
        let asked = Instant::now();
        assert_eq!(cluster[2].value("key").as_deref(), Some("kept"));
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    }
    proxy.mend();
    cluster.admit(outside);
    cluster.wait_until("it joins when it can be reached", PATIENCE, || cluster.is_whole());
}

#[test]
fn a_first_node_that_is_started_anew_without_seeds_finds_the_others_before_it_answers() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(4);
    let keys: Vec<_> = (0..50).map(|index| format!("kept-{index}")).collect();
    keys.iter().for_each(|key| cluster[2].put(key, "value"));
    for _ in 0..3 {
        cluster.kill(1);
        cluster.restart(1);
        for key in &keys {
            assert_eq!(cluster[1].value(key).as_deref(), Some("value"), "{key}");
        }
        cluster.wait_until("it is taken back", PATIENCE, || cluster.is_whole());
        let is_repaired = || {
            cluster.running().all(|node| {
                node.get("/admin/metrics").json()["migration_stats"]["under_replicated_slots"] == 0
            })
        };
        cluster.wait_until("all have two copies again", PATIENCE, is_repaired);
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
    let refused = |node: &Node| node.log().text().contains("refused a link");
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
    let last = said.lines().last().expect("a reason");
    assert!(last.contains("already in use"), "{said}");
    for word in ["n2", &cluster[2].address.to_string(), &here.to_string(), "--id"] {
        assert!(last.contains(word), "{word} is missing in {last:?}");
    }
    cluster.wait_until("the first bearer of the name stays", PATIENCE, || cluster.is_whole());
}
