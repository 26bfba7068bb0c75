//! Members that reach each other by some ways only: a port that refuses, a pair that cannot connect.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::node::Node;
use crate::process::PATIENCE;
use crate::{machine, namespace};

/// Keys that these nodes own, in any order.
fn keys_owned_by(cluster: &Cluster, owners: [&str; 2], count: usize) -> Vec<String> {
    let is_theirs = |key: &String| {
        let found = cluster.owners_of(key);
        owners.iter().all(|owner| found.iter().any(|one| one == owner))
    };
    let keys: Vec<_> = (0..1000).map(|index| format!("key-{index}")).filter(is_theirs).take(count).collect();
    assert_eq!(keys.len(), count, "keys of {owners:?}");
    keys
}

/// Reads a key at a node again and again until the write is done, and for a lease more; says how often, and how often a
/// read that began after the write was acknowledged gave something else than what it wrote.
fn stale_reads(node: &Node, key: &str, value: &str, write: impl FnOnce()) -> (usize, usize) {
    let acknowledged = AtomicBool::new(false);
    let acknowledged = &acknowledged;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut reads, mut stale, mut until) = (0, 0, None::<Instant>);
            while until.is_none_or(|until| Instant::now() < until) {
                let after = acknowledged.load(Ordering::SeqCst);
                let read = node.value(key);
                if after {
                    until = until.or_else(|| Some(Instant::now() + Duration::from_millis(700)));
                    reads += 1;
                    stale += usize::from(read.as_deref() != Some(value));
                }
            }
            (reads, stale)
        });
        write();
        acknowledged.store(true, Ordering::SeqCst);
        reader.join().expect("the reader ends")
    })
}

#[test]
fn an_owner_that_refuses_connections_is_not_taken_for_gone() {
    let name = "partial::an_owner_that_refuses_connections_is_not_taken_for_gone";
    if !namespace::is_inside(name) {
        return;
    }
    let mut cluster = machine::start(3, &[]);
    let keys = keys_owned_by(&cluster, ["n1", "n2"], 6);
    keys.iter().for_each(|key| cluster[1].put(key, "before"));
    [1, 3].into_iter().for_each(|other| machine::refuse_connections_from(&mut cluster, 2, other));
    for key in &keys {
        let (reads, stale) = stale_reads(&cluster[2], key, "after", || cluster[1].put(key, "after"));
        assert!(reads > 20, "{reads} reads");
        assert_eq!(stale, 0, "of {reads} reads of {key} at n2 after its write was acknowledged");
    }
}

/// Writes keys of `n1` and `n2` of which nobody can bring the latter its copies.
fn write_apart(cluster: &mut Cluster, count: usize) -> Vec<String> {
    let keys = keys_owned_by(cluster, ["n1", "n2"], count);
    keys.iter().for_each(|key| cluster[3].put(key, "before"));
    [1, 3, 4].into_iter().for_each(|other| machine::drop_connections_between(cluster, 2, other));
    for key in &keys {
        let written = cluster[3].put_json(key, &json!({"value": "after"})).expect(200);
        assert_eq!(written["degraded"], true, "{written}");
    }
    keys
}

#[test]
fn what_a_leaver_could_not_bring_to_an_owner_others_bring() {
    if !namespace::is_inside("partial::what_a_leaver_could_not_bring_to_an_owner_others_bring") {
        return;
    }
    // Too short for the leaver to find that it cannot reach all.
    let mut cluster = machine::start(4, &["--drain-timeout", "1s"]);
    // A read that finds them different makes them equal, so only the first is read all the time.
    let keys = write_apart(&mut cluster, 4);
    cluster.terminate(1);
    let ended = Instant::now();
    machine::mend(&mut cluster, 2);
    // Alone as it was it answers with what it has, until it reaches the others again.
    cluster.wait_until("n2 reaches the others again", PATIENCE, || {
        cluster[2].value(&keys[0]).as_deref() == Some("after")
    });
    let must_be_new = |number: usize, key: &str| {
        let read = cluster[number].value(key);
        assert_eq!(
            read.as_deref(),
            Some("after"),
            "{key} at n{number}, {:?} after n1's end",
            ended.elapsed()
        );
    };
    // For longer than n2 waits for one that is gone.
    while ended.elapsed() < Duration::from_secs(6) {
        (2..=4).for_each(|number| must_be_new(number, &keys[0]));
    }
    keys.iter().for_each(|key| (2..=4).for_each(|number| must_be_new(number, key)));
}

#[test]
fn an_owner_that_is_killed_costs_its_lease_once() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start(3);
    let keys = keys_owned_by(&cluster, ["n1", "n2"], 40);
    keys.iter().for_each(|key| cluster[1].put(key, "before"));
    cluster.kill(2);
    let killed = Instant::now();
    let times: Vec<_> = keys
        .iter()
        .map(|key| {
            let asked = Instant::now();
            cluster[1].put(key, "after");
            asked.elapsed()
        })
        .collect();
    // A lease, and a busy machine.
    assert!(killed.elapsed() < Duration::from_millis(1500), "all writes took {times:?}");
    // Half a lease: less may be a busy machine.
    let waited = times.iter().filter(|time| **time > Duration::from_millis(300)).count();
    assert!(waited <= 1, "{times:?}");
    keys.iter().for_each(|key| assert_eq!(cluster[3].value(key).as_deref(), Some("after"), "{key}"));
}

#[test]
fn the_newest_value_is_evicted_before_an_owner_that_lacks_it_is_back_and_its_older_one_goes() {
    let _alone = crate::measured();
    let mut cluster = Cluster::start_with(3, &["--max-memory", "8MiB", "--max-value-size", "1MiB"]);
    let key = &keys_owned_by(&cluster, ["n1", "n2"], 2);
    let others = keys_owned_by(&cluster, ["n1", "n3"], 12);
    let long = |text: &str| format!("{text}{}", "x".repeat(900_000));
    cluster[1].put(&key[0], &long("before"));
    cluster.stop(2);
    // The first write finds that n2 is silent; nothing of the second waits in its socket.
    cluster[1].put(&key[1], "whatever");
    cluster[1].put(&key[0], &long("after"));
    others.iter().for_each(|other| cluster[1].put(other, &long("other")));
    cluster.resume(2);
    let under_replicated = |node: &Node| {
        node.get("/admin/metrics").expect(200)["migration_stats"]["under_replicated_slots"].as_u64()
    };
    cluster.wait_until("nobody lacks anything", PATIENCE, || {
        cluster.is_whole() && cluster.running().all(|node| under_replicated(node) == Some(0))
    });
    for node in cluster.running() {
        let read = node.value(&key[0]).map(|value| value.trim_end_matches('x').to_owned());
        assert_ne!(read.as_deref(), Some("before"), "at {}", node.id);
    }
}
