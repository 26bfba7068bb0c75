//! Two copies of everything: what clients see while an owner dies, sleeps, or comes back empty.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::node::{Node, key_path};
use crate::process::PATIENCE;

const KEYS: usize = 300;
/// A request's deadline, and some time for a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_millis(2500);

fn key(number: usize) -> String {
    format!("copied:{number}")
}

fn fill(node: &Node) {
    for number in 0..KEYS {
        node.put(&key(number), "0");
    }
}

/// The owners of a key that hold it.
fn holders(node: &Node, key: &str) -> BTreeSet<String> {
    let located = node.get(&format!("/admin/locate/{key}")).expect(200);
    let owners = located["owners"].as_array().expect("owners").iter();
    let holding = owners.filter(|owner| owner["holds"] == true);
    holding.map(|owner| owner["node_id"].as_str().expect("an id").to_string()).collect()
}

fn under_replicated(node: &Node) -> u64 {
    let answer = node.get("/admin/metrics").expect(200);
    answer["migration_stats"]["under_replicated_slots"].as_u64().expect("a count")
}

/// Waits until the running nodes know each other, and nobody lacks anything.
fn wait_until_replicated(cluster: &Cluster) {
    cluster.wait_until("every key has two copies", PATIENCE, || {
        cluster.running().all(|node| under_replicated(node) == 0)
            && (0..KEYS).step_by(10).all(|number| {
                cluster.running().next().is_some_and(|node| holders(node, &key(number)).len() == 2)
            })
    });
}

/// Tells clients to stop when it goes.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_request_fails_and_no_value_is_lost_when_an_owner_dies() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(4);
    fill(&cluster[1]);
    let survivors = [cluster[1].address, cluster[2].address, cluster[4].address];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = survivors
            .into_iter()
            .enumerate()
            .map(|(client, address)| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut written = vec![0; KEYS];
                    for turn in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return (turn, written);
                        }
                        // Each client has keys of its own, so that it knows what it must read.
                        let number = (turn * 3 + client) % KEYS;
                        let asked = Instant::now();
                        if turn % 4 == 0 {
                            written[number] += 1;
                            let body = json!({"value": written[number].to_string()}).to_string();
                            let headers = [("content-type", "application/json")];
                            let path = key_path(&key(number));
                            let put = crate::http::request(address, "PUT", &path, &headers, body.as_bytes());
                            put.expect("an answer").expect(200);
                        } else {
                            let read =
                                crate::http::request(address, "GET", &key_path(&key(number)), &[], b"");
                            let value = read.expect("an answer").expect(200)["value"].clone();
                            assert_eq!(value, written[number].to_string(), "{}", key(number));
                        }
                        assert!(asked.elapsed() < ANSWER_WITHIN, "{:?}", asked.elapsed());
                    }
                    unreachable!("the loop ends by its return");
                })
            })
            .collect();
        // Also when something fails: the clients go on until they are told.
        let told = Told(&stop);
        std::thread::sleep(Duration::from_millis(500));
        cluster.kill(3);
        cluster.wait_until("the survivors agree", PATIENCE, || {
            cluster.agrees_on(&[("n1", "healthy"), ("n2", "healthy"), ("n3", "unhealthy"), ("n4", "healthy")])
        });
        drop(told);
        for client in clients {
            let (turns, written) = client.join().expect("no request failed");
            assert!(turns > 100, "{turns} requests");
            for (number, count) in written.iter().enumerate().filter(|(_, count)| **count > 0) {
                assert_eq!(cluster[2].value(&key(number)), Some(count.to_string()));
            }
        }
    });
    wait_until_replicated(&cluster);
}

#[test]
fn a_write_that_a_sleeping_owner_misses_is_degraded_and_never_read_in_its_old_value() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    fill(&cluster[1]);
    cluster.stop(2);
    let mut degraded = 0;
    for number in 0..KEYS {
        let asked = Instant::now();
        let answer = if number % 3 == 0 {
            cluster[3].request("DELETE", &key_path(&key(number)), &[], b"").expect(200)
        } else {
            cluster[1].put_json(&key(number), &json!({"value": "1"})).expect(200)
        };
        assert!(asked.elapsed() < ANSWER_WITHIN, "{:?}", asked.elapsed());
        degraded += usize::from(answer["degraded"] == true);
    }
    assert!(degraded > 0, "no write was degraded while an owner slept");
    cluster.resume(2);
    // At once, while it still believes what it knew before.
    for number in 0..KEYS {
        let expected = (number % 3 != 0).then(|| "1".to_string());
        assert_eq!(cluster[2].value(&key(number)), expected, "{} at the resumed node", key(number));
    }
    cluster.wait_until("nobody lacks anything", PATIENCE, || {
        cluster.is_whole() && cluster.running().all(|node| under_replicated(node) == 0)
    });
    for number in 0..KEYS {
        assert_eq!(holders(&cluster[1], &key(number)).len(), if number % 3 == 0 { 0 } else { 2 });
    }
}

#[test]
fn a_node_that_comes_back_empty_is_filled_again_and_misses_nothing() {
    let mut cluster = Cluster::start(3);
    fill(&cluster[1]);
    cluster.kill(2);
    cluster.restart(2);
    // Until it is admitted it answers nobody; after that, it misses nothing.
    cluster.wait_until("it is admitted", PATIENCE, || cluster[2].is_healthy());
    for number in 0..KEYS {
        assert_eq!(cluster[2].value(&key(number)).as_deref(), Some("0"), "{}", key(number));
    }
    wait_until_replicated(&cluster);
    let held = cluster[2].get("/api/v1/stats").expect(200)["cache_stats"]["total_Size"].as_u64();
    assert!(held.is_some_and(|held| held > KEYS as u64 / 2), "it holds {held:?} of {KEYS}, its share is 200");
}

#[test]
fn a_rebalance_finds_what_is_missing_and_says_so() {
    let cluster = Cluster::start(2);
    fill(&cluster[1]);
    cluster
        .wait_until("the two agree", PATIENCE, || cluster.running().all(|node| under_replicated(node) == 0));
    let equal = cluster[1].post("/admin/cluster/rebalance", &json!({})).expect(200);
    assert_eq!([&equal["message"], &equal["moved"]["keys"]], [&json!("rebalance completed"), &json!(0)]);
    // Known to one node only: the internal interface writes to its own store.
    let body = json!({"value": "alone"}).to_string();
    let headers = [("content-type", "application/json")];
    for number in 0..20 {
        let path = format!("/internal/cache/{}", key(number));
        assert_eq!(cluster[1].request("PUT", &path, &headers, body.as_bytes()).status, 200);
    }
    let moved = cluster[1].post("/admin/cluster/rebalance", &json!({})).expect(200);
    assert_eq!(moved["moved"]["keys"], 20);
    assert_eq!(cluster[2].value(&key(7)).as_deref(), Some("alone"));
}

#[test]
fn an_older_version_that_nobody_knows_of_is_found_by_comparing() {
    // A store of one shard is compared every five seconds.
    let cluster = Cluster::start_with(2, &["--max-memory", "8MiB", "--max-value-size", "1MiB"]);
    cluster[1].put("differs", "old");
    let path = "/internal/cache/differs";
    let headers = [("content-type", "application/json")];
    // Its owner's own store, and only that.
    assert_eq!(cluster[1].request("PUT", path, &headers, br#"{"value": "new"}"#).status, 200);
    let held = |number: usize| cluster[number].get(path).expect(200)["value"].clone();
    assert_eq!((held(1), held(2)), (json!("new"), json!("old")));
    cluster.wait_until("the other owner has the newer one", PATIENCE, || held(2) == "new");
}

#[test]
fn what_is_written_to_a_node_that_does_not_own_it_gets_to_its_owners() {
    let cluster = Cluster::start(4);
    let is_foreign = |key: &String| !cluster.owners_of(key).contains(&"n1".to_owned());
    let keys: Vec<_> = (0..40).map(key).filter(is_foreign).collect();
    assert!(keys.len() > 5, "n1 owns nearly all");
    let headers = [("content-type", "application/json")];
    for key in &keys {
        let path = format!("/internal/cache/{key}");
        let body = json!({"value": "alone"}).to_string();
        assert_eq!(cluster[1].request("PUT", &path, &headers, body.as_bytes()).status, 200);
    }
    cluster.wait_until("their owners hold them", PATIENCE, || {
        keys.iter().all(|key| holders(&cluster[1], key).len() == 2)
    });
}

#[test]
fn a_second_signal_ends_a_stopping_node_at_once() {
    let mut cluster = Cluster::start(2);
    fill(&cluster[1]);
    // So that there is nobody to take what the other hands over.
    cluster.stop(1);
    cluster.ask_to_leave(2);
    let health = |cluster: &Cluster| cluster[2].get("/api/v1/health").status;
    cluster.wait_until("it says that it is stopping", PATIENCE, || health(&cluster) == 503);
    let asked = Instant::now();
    cluster.ask_to_leave(2);
    let status = cluster.wait_for_end(2);
    assert_eq!(status.code(), Some(1));
    assert!(asked.elapsed() < Duration::from_millis(700), "{:?}", asked.elapsed());
}
