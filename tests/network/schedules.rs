//! Schedules of one fault by which real nodes were seen to break a promise.
//!
//! Each goes through many keys, as what one slot went through may hide the next time, and says of how many it was broken.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::fault::Packets::{All, Calls, Replies, Tcp};
use crate::fault::Step::{Lose, Refuse};
use crate::fault::Way::{Both, In, Out};
use crate::fault::{Lasting, Step};
use crate::http::Answer;
use crate::net::{Extras, Net, is_apart};
use crate::node::{Node, key_path};
use crate::process::{PATIENCE, Signal, poll};

const OCTETS: (&str, &str) = ("accept", "application/octet-stream");

/// Keys whose owners are n1 and n2, in this order.
fn keys_of_the_first_two(cluster: &Cluster, count: usize) -> Vec<String> {
    let keys = (0..).map(|number| format!("scheduled-{number}"));
    keys.filter(|key| cluster.owners_of(key) == ["n1", "n2"]).take(count).collect()
}

fn put(node: &Node, key: &str, value: &str) {
    let answer = node.request("PUT", &key_path(key), &[], value.as_bytes());
    assert_eq!(answer.status, 204, "PUT {key} at {}: {}", node.id, answer.text());
}

/// A PUT of a key that must not be there yet.
fn create(node: &Node, key: &str, value: &str) -> Answer {
    node.request("PUT", &key_path(key), &[("if-none-match", "*")], value.as_bytes())
}

fn value(node: &Node, key: &str) -> String {
    node.request("GET", &key_path(key), &[OCTETS], b"").text()
}

/// Until the test ends.
fn begin(net: &mut Net, step: Step) {
    step.begin(net, &mut Lasting::default());
}

#[track_caller]
fn assert_none(broken: &[&String], keys: &[String], what: &str) {
    println!("{what}: {} of {} keys", broken.len(), keys.len());
    assert!(broken.is_empty(), "{what}: {} of {} keys, {broken:?}", broken.len(), keys.len());
}

#[test]
fn what_a_leaver_owed_to_an_owner_it_could_not_reach_is_paid_by_others() {
    if !is_apart("schedules::what_a_leaver_owed_to_an_owner_it_could_not_reach_is_paid_by_others") {
        return;
    }
    // It ends before it would give n2 up, and hand over to n4 as well.
    let mut net = Net::start(4, Extras { flags: &["--drain-timeout", "1s"], ..Extras::default() });
    let keys = keys_of_the_first_two(&net.cluster, 10);
    keys.iter().for_each(|key| put(&net.cluster[3], key, "former"));
    begin(&mut net, Lose(1, Both, Tcp, &[2]));
    keys.iter().for_each(|key| put(&net.cluster[3], key, "latter"));
    net.cluster.terminate(1);
    // Longer than a table waits for somebody who has left.
    sleep(Duration::from_secs(8));
    let is_hidden = |key: &&String| (2..=4).any(|node| value(&net.cluster[node], key) != "latter");
    assert_none(&keys.iter().filter(is_hidden).collect::<Vec<_>>(), &keys, "an older value was read");
}

#[test]
fn a_key_is_created_once_while_its_owners_are_cut_off_from_each_other() {
    if !is_apart("schedules::a_key_is_created_once_while_its_owners_are_cut_off_from_each_other") {
        return;
    }
    let mut net = Net::start(3, Extras::default());
    let keys = keys_of_the_first_two(&net.cluster, 10);
    begin(&mut net, Lose(1, Both, All, &[2]));
    let first: Vec<_> = keys.iter().map(|key| create(&net.cluster[3], key, "first").status).collect();
    sleep(Duration::from_secs(2));
    let second: Vec<_> = keys.iter().map(|key| create(&net.cluster[2], key, "second").status).collect();
    let twice: Vec<_> = (0..keys.len()).filter(|at| (first[*at], second[*at]) == (204, 204)).collect();
    assert_none(&twice.iter().map(|at| &keys[*at]).collect::<Vec<_>>(), &keys, "created twice");
    assert!(first.contains(&204), "nothing was created: {first:?}");
}

#[test]
fn a_key_is_created_once_while_its_primary_calls_and_cannot_be_called() {
    if !is_apart("schedules::a_key_is_created_once_while_its_primary_calls_and_cannot_be_called") {
        return;
    }
    let mut net = Net::start(3, Extras::default());
    let keys = keys_of_the_first_two(&net.cluster, 24);
    begin(&mut net, Lose(1, In, Calls, &[2, 3]));
    // So that n3 has found it silent, and asks n2 at once.
    create(&net.cluster[3], "scheduled", "before");
    let cluster = &net.cluster;
    let mut tries = 0;
    let is_created_twice = |key: &&String| {
        // The first answer comes when a lease is over, in step with the questions that n1 asks every 150 ms.
        tries += 1;
        sleep(Duration::from_millis(37 * tries % 150));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| create(&cluster[3], key, "first").status);
            sleep(Duration::from_millis(12));
            let second = create(&cluster[1], key, "second").status;
            (first.join().expect("it is answered"), second) == (204, 204)
        })
    };
    assert_none(&keys.iter().filter(is_created_twice).collect::<Vec<_>>(), &keys, "created twice");
}

#[test]
fn a_key_is_created_once_while_its_primary_stops_for_a_moment() {
    if !is_apart("schedules::a_key_is_created_once_while_its_primary_stops_for_a_moment") {
        return;
    }
    let net = Net::start(3, Extras::default());
    let cluster = &net.cluster;
    let keys = keys_of_the_first_two(cluster, 24);
    let (keys, others) = keys.split_at(12);
    let mut tries = 0;
    let is_created_twice = |(key, other): &(&String, &String)| {
        tries += 1;
        assert!(poll(PATIENCE, || cluster.is_whole()), "{}", cluster[1].log().tail(5));
        cluster[1].signal(Signal::STOP);
        std::thread::scope(|scope| {
            // By this n3 and n2 find it silent, and send it nothing of what comes next.
            scope.spawn(|| create(&cluster[3], other, "before"));
            sleep(Duration::from_millis(230));
            let first = scope.spawn(|| create(&cluster[3], key, "first").status);
            sleep(Duration::from_millis(10 * tries));
            // It goes on before its lease is over.
            cluster[1].signal(Signal::CONT);
            let second = create(&cluster[1], key, "second").status;
            (first.join().expect("it is answered"), second) == (204, 204)
        })
    };
    let twice: Vec<_> = keys.iter().zip(others).filter(is_created_twice).map(|(key, _)| key).collect();
    assert_none(&twice, keys, "created twice");
}

#[test]
fn a_conditional_write_whose_owner_falls_silent_with_the_answer_is_granted() {
    if !is_apart("schedules::a_conditional_write_whose_owner_falls_silent_with_the_answer_is_granted") {
        return;
    }
    let mut net = Net::start(3, Extras::default());
    let keys = keys_of_the_first_two(&net.cluster, 6);
    let is_refused = |key: &&String| {
        let mut etag = None;
        (0..3).any(|number| {
            assert!(poll(PATIENCE, || net.cluster.is_whole()), "{}", net.cluster[1].log().tail(5));
            // n1 does the write and copies it to n2.
            begin(&mut net, Lose(1, Out, Replies, &[3]));
            let condition = match &etag {
                None => ("if-none-match", "*"),
                Some(etag) => ("if-match", String::as_str(etag)),
            };
            let value = number.to_string();
            let answer = net.cluster[3].request("PUT", &key_path(key), &[condition], value.as_bytes());
            net.drop_rules();
            etag = answer.header("etag").map(str::to_owned);
            println!("{} {}", answer.status, answer.text());
            answer.status != 204
        })
    };
    assert_none(&keys.iter().filter(is_refused).collect::<Vec<_>>(), &keys, "not granted");
}

#[test]
fn an_owner_whose_port_refuses_is_not_taken_for_dead() {
    if !is_apart("schedules::an_owner_whose_port_refuses_is_not_taken_for_dead") {
        return;
    }
    let mut net = Net::start(3, Extras::default());
    let keys = keys_of_the_first_two(&net.cluster, 24);
    keys.iter().for_each(|key| put(&net.cluster[1], key, "former"));
    begin(&mut net, Refuse(2, &[1, 3]));
    let is_read_when_old = |key: &&String| {
        put(&net.cluster[1], key, "latter");
        let acknowledged = Instant::now();
        while acknowledged.elapsed() < Duration::from_millis(200) {
            if value(&net.cluster[2], key) == "former" {
                return true;
            }
        }
        false
    };
    assert_none(
        &keys.iter().filter(is_read_when_old).collect::<Vec<_>>(),
        &keys,
        "read after it was replaced",
    );
}
