//! Entries on the move: a join while thousands of keys are stored and read.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http;
use crate::node::Node;
use crate::process::PATIENCE;

const KEYS: usize = 10_000;
/// Operations of one batch; the interface accepts this many.
const BATCH: usize = 1000;

/// Reads keys over and over, through the batch call, while something happens.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Reader {
    pub(crate) fn start(address: SocketAddr, pairs: Vec<(String, String)>) -> Reader {
        let stop = Arc::new(AtomicBool::new(false));
        let wanted = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut reads, mut faults) = (0, Vec::new());
            // At least one whole round, however soon it is over.
            for chunk in pairs.chunks(250).cycle() {
                if reads >= pairs.len() && wanted.load(Ordering::Relaxed) {
                    break;
                }
                match read_all(address, chunk) {
                    Ok(wrong) => faults.extend(wrong),
                    Err(error) => faults.push(error.to_string()),
                }
                reads += chunk.len();
            }
            (reads, faults)
        });
        Reader { stop, thread }
    }

    /// How many reads there were, and every answer that was not the value.
    pub(crate) fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the reader ends")
    }
}

fn batch(address: SocketAddr, operations: &[Value]) -> std::io::Result<Vec<Value>> {
    let body = json!({"operations": operations}).to_string();
    let json = [("content-type", "application/json")];
    let answer = http::request(address, "POST", "/api/v1/batch", &json, body.as_bytes())?.expect(200);
    Ok(answer["results"].as_array().expect("results").clone())
}

fn read_all(address: SocketAddr, pairs: &[(String, String)]) -> std::io::Result<Vec<String>> {
    let mut faults = Vec::new();
    for chunk in pairs.chunks(BATCH) {
        let gets: Vec<_> = chunk.iter().map(|(key, _)| json!({"op": "get", "key": key})).collect();
        let results = batch(address, &gets)?;
        assert_eq!(results.len(), chunk.len());
        let wrong = results.iter().zip(chunk).filter(|(result, (_, value))| result["value"] != **value);
        faults.extend(wrong.map(|(result, _)| result.to_string()));
    }
    Ok(faults)
}

fn write_all(node: &Node, pairs: &[(String, String)]) {
    for chunk in pairs.chunks(BATCH) {
        let puts: Vec<_> =
            chunk.iter().map(|(key, value)| json!({"op": "put", "key": key, "value": value})).collect();
        let results = batch(node.address, &puts).expect("an answer");
        assert!(results.iter().all(|result| result["status"] == 200), "{results:?}");
    }
}

fn pairs(count: usize) -> Vec<(String, String)> {
    (0..count).map(|index| (format!("moving:{index}"), format!("value {index}"))).collect()
}

fn moved_keys(node: &Node) -> u64 {
    node.get("/admin/metrics").expect(200)["migration_stats"]["MigratedKeys"].as_u64().expect("a count")
}

#[test]
fn every_key_can_be_read_while_a_node_joins_and_then_from_the_new_node() {
    let _alone = crate::measured();
    let pairs = pairs(KEYS);
    let mut cluster = Cluster::start(3);
    write_all(&cluster[1], &pairs);
    let readers = [1, 3].map(|number| Reader::start(cluster[number].address, pairs.clone()));
    let newcomer = cluster.add(&[]);
    cluster.wait_until("the newcomer is taken in", PATIENCE, || cluster.is_whole());
    let at_the_newcomer = Reader::start(cluster[newcomer].address, pairs.clone());
    cluster.wait_until("a share of the keys has moved", PATIENCE, || {
        let held = cluster[newcomer].get("/api/v1/stats").expect(200);
        held["cache_stats"]["total_Size"].as_u64().is_some_and(|held| held > KEYS as u64 / 5)
    });
    for reader in readers.into_iter().chain([at_the_newcomer]) {
        let (reads, faults) = reader.finish();
        assert!(
            faults.is_empty(),
            "{} of {reads} reads went wrong, first {:?}",
            faults.len(),
            faults.first()
        );
    }
    for node in cluster.running() {
        assert_eq!(read_all(node.address, &pairs).expect("answers"), Vec::<String>::new(), "at {}", node.id);
    }
    let moved: u64 = [1, 2, 3].map(|number| moved_keys(&cluster[number])).iter().sum();
    // The readers have brought many of them themselves: what is found at another owner is written through.
    assert!(moved > 0, "no keys are said to have moved");
}

#[test]
fn nothing_is_lost_when_nodes_join_one_after_the_other() {
    let _alone = crate::measured();
    let pairs = pairs(2000);
    let mut cluster = Cluster::start(1);
    write_all(&cluster[1], &pairs);
    for _ in 0..3 {
        let newcomer = cluster.add(&[]);
        cluster.wait_until("the newcomer is taken in", PATIENCE, || cluster.is_whole());
        assert_eq!(read_all(cluster[newcomer].address, &pairs).expect("answers"), Vec::<String>::new());
    }
}

#[test]
fn what_three_of_five_that_leave_at_once_hold_reaches_those_that_stay() {
    let _alone = crate::measured();
    let pairs = pairs(5000);
    let mut cluster = Cluster::start(5);
    write_all(&cluster[1], &pairs);
    let leavers = [1, 3, 5];
    leavers.iter().for_each(|number| cluster.ask_to_leave(*number));
    for number in leavers {
        assert!(cluster.wait_for_end(number).success(), "{}", cluster[number].log().tail(8));
    }
    for number in [2, 4] {
        let wrong = read_all(cluster[number].address, &pairs).expect("answers");
        assert!(wrong.is_empty(), "{} of {} at n{number}, first {:?}", wrong.len(), pairs.len(), wrong[0]);
    }
}

#[test]
fn a_whole_cluster_that_is_told_to_stop_ends_soon() {
    let mut cluster = Cluster::start(3);
    write_all(&cluster[1], &pairs(100));
    (1..=3).for_each(|number| cluster.ask_to_leave(number));
    let started = Instant::now();
    for number in 1..=3 {
        assert!(cluster.wait_for_end(number).success(), "{}", cluster[number].log().tail(8));
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn a_rebalance_answers_when_it_is_done_and_says_what_it_moved() {
    let cluster = Cluster::start_with(2, &["--copies", "1"]);
    // Put where they do not belong, behind the cluster's back.
    let mut strays = BTreeSet::new();
    for index in 0..50 {
        let key = format!("stray-{index}");
        let located = cluster[1].get(&format!("/admin/locate/{key}")).expect(200);
        if located["owners"][0]["node_id"] == "n2" {
            let path = format!("/internal/cache/{key}");
            assert_eq!(cluster[1].request("PUT", &path, &[], b"astray").status, 204);
            strays.insert(key);
        }
    }
    assert!(strays.len() > 5, "only {} of 50 keys belong to n2", strays.len());
    let report = cluster[1].request("POST", "/admin/cluster/rebalance", &[], b"").expect(200);
    assert_eq!(report["message"], "rebalance completed");
    assert_eq!(report["node_id"], "n1");
    assert!(http::is_time(&report["timestamp"]), "{report}");
    // Some may have been on their way already.
    assert!(report["moved"]["keys"].as_u64() <= Some(strays.len() as u64), "{report}");
    for key in &strays {
        let there = cluster[2].get(&format!("/internal/cache/{key}"));
        assert_eq!((there.status, &there.json()["value"]), (200, &json!("astray")), "{key}");
    }
    let said = cluster[1].get("/admin/metrics").expect(200)["migration_stats"].clone();
    assert_eq!(said["MigratedKeys"], strays.len(), "{said}");
    assert!(http::is_time(&said["LastMigration"]), "{said}");
    cluster.wait_until("what has moved is gone from its old place", Duration::from_secs(5), || {
        cluster[1].get("/api/v1/stats").expect(200)["cache_stats"]["total_Size"] == 0
    });
}
