//! Nodes that die, freeze, leave and come back. Deaths are measured against their promises.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::process::PATIENCE;

/// A key for each of `count` different places, and its value.
fn pairs(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|index| (format!("key-{index}"), format!("value-{index}")))
}

#[test]
fn a_killed_node_is_unhealthy_everywhere_within_two_and_a_half_seconds() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(5);
    cluster.kill(3);
    let survivors =
        [("n1", "healthy"), ("n2", "healthy"), ("n3", "unhealthy"), ("n4", "healthy"), ("n5", "healthy")];
    cluster.wait_until("the survivors agree on one ring without n3", Duration::from_millis(2500), || {
        cluster.agrees_on(&survivors)
    });
}

#[test]
fn until_a_death_is_known_a_request_for_the_dead_nodes_key_says_that_it_could_not_be_forwarded() {
    let _alone = crate::measured();
    let mut cluster =
        Cluster::start_with(2, &["--copies", "1", "--detection", "relaxed", "--request-timeout", "1s"]);
    let key = cluster.key_owned_by(2);
    cluster[1].put(&key, "value");
    cluster.kill(2);
    let message = cluster[1].read(&key).expect_error(500, "forward_failed");
    assert!(message.contains("127.0.0.1:"), "{message}");
}

#[test]
fn the_keys_of_a_killed_node_are_misses_not_errors_and_can_be_written_again() {
    let mut cluster = Cluster::start_with(3, &["--copies", "1"]);
    for (key, value) in pairs(60) {
        cluster[1].put(&key, &value);
    }
    let holder = |cluster: &Cluster, key: &str| {
        cluster[1].get(&format!("/admin/locate/{key}")).expect(200)["owners"][0]["node_id"].clone()
    };
    let lost: Vec<_> = pairs(60).filter(|(key, _)| holder(&cluster, key) == "n2").collect();
    assert!((5..55).contains(&lost.len()), "n2 holds {} of 60", lost.len());
    cluster.kill(2);
    cluster.wait_until("the survivors know of the death", PATIENCE, || {
        cluster.agrees_on(&[("n1", "healthy"), ("n2", "unhealthy"), ("n3", "healthy")])
    });
    for (key, value) in pairs(60) {
        let expected = (!lost.contains(&(key.clone(), value.clone()))).then_some(value);
        for node in cluster.running() {
            assert_eq!(node.value(&key), expected, "{key} at {}", node.id);
        }
    }
    for (key, _) in lost {
        cluster[1].put(&key, "again");
        assert_eq!(cluster[3].value(&key).as_deref(), Some("again"));
    }
}

#[test]
fn a_frozen_node_is_declared_dead_and_taken_back_when_it_goes_on() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    for (key, value) in pairs(30) {
        cluster[1].put(&key, &value);
    }
    cluster.stop(2);
    let frozen_at = std::time::Instant::now();
    cluster.wait_until("the frozen node is declared dead", Duration::from_millis(2500), || {
        cluster.agrees_on(&[("n1", "healthy"), ("n2", "unhealthy"), ("n3", "healthy")])
    });
    cluster[1].put("meanwhile", "written");
    std::thread::sleep(Duration::from_secs(10).saturating_sub(frozen_at.elapsed()));
    cluster.resume(2);
    cluster.wait_until("all three are one ring again", Duration::from_secs(3), || cluster.is_whole());
    for node in cluster.running() {
        assert_eq!(node.value("meanwhile").as_deref(), Some("written"), "at {}", node.id);
        node.put("afterwards", &node.id);
        assert_eq!(cluster[2].value("afterwards").as_deref(), Some(&*node.id));
    }
}

#[test]
fn a_terminated_node_leaves_at_once_and_its_entries_stay() {
    let mut cluster = Cluster::start(3);
    for (key, value) in pairs(200) {
        cluster[1].put(&key, &value);
    }
    let status = cluster.terminate(2);
    assert!(status.success(), "{status}");
    cluster.wait_until("it is gone, not unhealthy", Duration::from_secs(1), || {
        cluster.agrees_on(&[("n1", "healthy"), ("n3", "healthy")])
    });
    let unhealthy = |node: &crate::node::Node| node.log().with_message("member down").len();
    for node in cluster.running() {
        assert_eq!(unhealthy(node), 0, "{} took the goodbye for a death", node.id);
        assert_eq!(node.log().with_message("member left").len(), 1, "at {}", node.id);
        for (key, value) in pairs(200) {
            assert_eq!(node.value(&key), Some(value), "{key} at {}", node.id);
        }
    }
}

#[test]
fn keys_can_be_read_at_every_moment_while_a_node_leaves() {
    let mut cluster = Cluster::start(3);
    for (key, value) in pairs(300) {
        cluster[1].put(&key, &value);
    }
    let reader = crate::moving::Reader::start(cluster[3].address, pairs(300).collect());
    assert!(cluster.terminate(2).success());
    cluster.wait_until("the others are one ring", PATIENCE, || cluster.is_whole());
    let (reads, faults) = reader.finish();
    assert!(faults.is_empty(), "{} of {reads} reads went wrong: {faults:?}", faults.len());
}

#[test]
fn a_node_that_restarts_at_once_on_its_port_is_taken_back() {
    let mut cluster = Cluster::start(3);
    cluster.kill(2);
    cluster.restart(2);
    cluster.wait_until("all three are one ring again", PATIENCE, || {
        // The newcomer's own view counts too: it has to learn of both others.
        cluster.is_whole() && cluster[2].view().is_some_and(|view| view.members.len() == 3)
    });
    for (key, value) in pairs(60) {
        cluster[2].put(&key, &value);
        assert_eq!(cluster[1].value(&key).as_deref(), Some(&*value));
        assert_eq!(cluster[3].value(&key), Some(value));
    }
}

#[test]
fn a_node_that_restarts_after_it_was_declared_dead_is_taken_back() {
    let mut cluster = Cluster::start(3);
    cluster.kill(3);
    cluster.wait_until("its death is known", PATIENCE, || {
        cluster.agrees_on(&[("n1", "healthy"), ("n2", "healthy"), ("n3", "unhealthy")])
    });
    cluster.restart(3);
    cluster.wait_until("all three are one ring again", PATIENCE, || cluster.is_whole());
    cluster[3].put("key", "value");
    assert_eq!(cluster[1].value("key").as_deref(), Some("value"));
}
