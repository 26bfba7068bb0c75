//! Nodes that stop where nobody, or nobody that can be reached, is left to take what they hold.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::namespace;

const NOBODY_LEFT: &str = "no other member is left to take these entries";

/// Writes so many keys, and gives their names.
fn fill(cluster: &Cluster, keys: usize) -> Vec<String> {
    let names: Vec<_> = (0..keys).map(|index| format!("key-{index}")).collect();
    for some in names.chunks(500) {
        let put = |key| json!({"op": "put", "key": key, "value": "kept"});
        let batch = json!({"operations": some.iter().map(put).collect::<Vec<_>>()});
        cluster[1].post("/api/v1/batch", &batch).expect(200);
    }
    names
}

/// Tells these nodes to stop, one so long after the other, and waits for their ends. Gives how long the last of them took.
fn stop(cluster: &mut Cluster, numbers: &[usize], pause: Duration) -> Duration {
    let asked = Instant::now();
    for number in numbers {
        cluster.ask_to_leave(*number);
        std::thread::sleep(pause);
    }
    for number in numbers {
        let status = cluster.wait_for_end(*number);
        assert!(status.success(), "n{number}: {status}\n{}", cluster[*number].log().tail(20));
    }
    asked.elapsed()
}

#[test]
fn nodes_that_are_all_told_to_stop_end_within_three_seconds() {
    if !namespace::is_inside("stopping::nodes_that_are_all_told_to_stop_end_within_three_seconds") {
        return;
    }
    // Of nodes that are told one after the other, the last hears that the others leave and ends at once.
    for (nodes, pause_ms) in [(2, 0), (3, 0), (3, 5), (3, 40), (3, 200), (5, 20)] {
        let mut cluster = Cluster::start(nodes);
        fill(&cluster, 2000);
        let pause = Duration::from_millis(pause_ms);
        let took = stop(&mut cluster, &(1..=nodes).collect::<Vec<_>>(), pause);
        assert!(took <= Duration::from_secs(3), "{nodes} nodes, {pause:?} apart, took {took:?}");
        let log = |number: usize, message: &str| cluster[number].log().with_message(message).len();
        let said: Vec<_> =
            (1..=nodes).map(|one| (log(one, NOBODY_LEFT), log(one, "handed over all entries"))).collect();
        // Only one that gave everything to a member that stayed for a second more may say so.
        assert!(said.iter().all(|(lost, kept)| lost + kept == 1), "{said:?}");
        assert_eq!(said[nodes - 1], (1, 0), "{}", cluster[nodes].log().tail(20));
    }
}

#[test]
fn a_node_that_is_cut_off_and_told_to_stop_ends_within_two_seconds() {
    if !namespace::is_inside("stopping::a_node_that_is_cut_off_and_told_to_stop_ends_within_two_seconds") {
        return;
    }
    let mut cluster = Cluster::start(3);
    fill(&cluster, 200);
    namespace::cut_all();
    let took = stop(&mut cluster, &[3], Duration::ZERO);
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert_eq!(cluster[3].log().with_message(NOBODY_LEFT).len(), 1, "{}", cluster[3].log().tail(20));
}

#[test]
fn a_node_that_stops_hands_over_to_those_it_reaches() {
    if !namespace::is_inside("stopping::a_node_that_stops_hands_over_to_those_it_reaches") {
        return;
    }
    let mut cluster = Cluster::start_with(3, &["--copies", "1"]);
    let keys = fill(&cluster, 600);
    let here: Vec<_> = keys.into_iter().filter(|key| cluster.owners_of(key)[0] == "n1").collect();
    namespace::swallow_connections_to(cluster[2].address);
    let took = stop(&mut cluster, &[1], Duration::ZERO);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(cluster[1].log().with_message("handed over all entries").len(), 1);
    for key in here {
        assert_eq!(cluster[3].get(&format!("/internal/cache/{key}")).status, 200, "{key}");
    }
}

#[test]
fn the_last_node_says_that_its_entries_go_with_it() {
    let mut cluster = Cluster::start(1);
    fill(&cluster, 20);
    let took = stop(&mut cluster, &[1], Duration::ZERO);
    assert!(took < Duration::from_secs(1), "{took:?}");
    let said = cluster[1].log().with_message(NOBODY_LEFT);
    assert_eq!((said.len(), &said[0]["entries"]), (1, &json!(20)));
}
