//! Clocks that are wrong, or are set while nodes run. Times to live do not notice, and the members do.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::Answer;
use crate::net::{Extras, Net, is_apart};
use crate::process::PATIENCE;

/// The node whose clock can be set.
const ODD: usize = 3;
/// Keys of each kind.
const KEYS: usize = 30;
/// The clock is asked for once a second.
const SET_WITHIN: Duration = Duration::from_millis(1500);

/// A key that was put with a time to live.
struct Lent {
    key: String,
    ttl: Duration,
    /// When it was asked for, and when it was acknowledged.
    written: (Instant, Instant),
}

impl Lent {
    /// Asks a node for it, and says what is wrong with the answer.
    fn judge(&self, net: &Net, node: usize) -> Option<String> {
        let begun = Instant::now();
        let answer = net.cluster[node].read(&self.key);
        let ended = Instant::now();
        let (least, most) = (begun - self.written.1, ended - self.written.0);
        let is_there = answer.status == 200;
        let wrong = match is_there {
            false => (most < self.ttl).then(|| "a miss".to_string()),
            true if least > self.ttl => Some("a hit".to_string()),
            true => self.judge_ttl(&answer, least, most),
        };
        wrong.map(|wrong| {
            format!("{wrong} at n{node}, {most:?} after {} was lent for {:?}", self.key, self.ttl)
        })
    }

    fn judge_ttl(&self, answer: &Answer, least: Duration, most: Duration) -> Option<String> {
        let whole = |left: Duration| left.as_millis().div_ceil(1000) as u64;
        let right = whole(self.ttl.saturating_sub(most))..=whole(self.ttl.saturating_sub(least));
        let shown = answer.json()["ttl"].as_u64();
        let max_age = answer.header("cache-control").map(str::to_owned);
        let is_right = shown.is_some_and(|shown| right.contains(&shown))
            && max_age == shown.map(|shown| format!("max-age={shown}"));
        (!is_right).then(|| format!("a ttl of {shown:?} and {max_age:?}, not {right:?}"))
    }
}

fn lend(net: &Net, name: &str, ttl: u64) -> Vec<Lent> {
    let lend = |number: usize| {
        let (key, begun) = (format!("{name}-{number}"), Instant::now());
        let answer = net.cluster[1 + number % 3].put_json(&key, &json!({"value": "v", "ttl": ttl}));
        answer.expect(200);
        Lent { key, ttl: Duration::from_secs(ttl), written: (begun, Instant::now()) }
    };
    (0..KEYS).map(lend).collect()
}

/// Reads all of them at all nodes.
#[track_caller]
fn assert_right(net: &Net, when: &str, lent: &[Lent]) {
    let reads = lent.iter().flat_map(|one| net.numbers().map(move |node| (one, node)));
    let wrong: Vec<String> = reads.filter_map(|(one, node)| one.judge(net, node)).collect();
    println!("{when}: {} of {} reads were wrong", wrong.len(), 3 * lent.len());
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
}

fn offset_ms(net: &Net, at: usize, of: usize) -> Option<i64> {
    let nodes = net.cluster[at].get("/admin/nodes").expect(200);
    nodes["nodes"][format!("n{of}")]["clock_offset_ms"].as_i64()
}

#[test]
fn a_clock_that_is_off_is_shown_and_no_time_to_live_follows_it() {
    if !is_apart("clocks::a_clock_that_is_off_is_shown_and_no_time_to_live_follows_it") {
        return;
    }
    let net = Net::start(3, Extras { clock: Some(ODD), ..Extras::default() });
    for ahead in [20, -20] {
        net.set_clock(ahead);
        let is_near =
            |offset: Option<i64>, wanted: i64| offset.is_some_and(|off| (off - wanted * 1000).abs() < 500);
        net.cluster.wait_until("the offset is shown on both sides", PATIENCE, || {
            is_near(offset_ms(&net, 1, ODD), ahead.into())
                && is_near(offset_ms(&net, ODD, 1), (-ahead).into())
        });
        assert_eq!(offset_ms(&net, ODD, ODD), Some(0));
        let lent = lend(&net, &format!("off-by-{ahead}"), 15);
        assert_right(&net, "at once", &lent);
        sleep(Duration::from_secs(10));
        assert_right(&net, "after ten seconds", &lent);
        sleep(Duration::from_secs(7));
        assert_right(&net, "when all are over", &lent);
        net.set_clock(0);
        net.cluster.wait_until("they agree again", PATIENCE, || is_near(offset_ms(&net, 1, ODD), 0));
    }
    let log = net.cluster[1].log();
    for way in ["s ahead of this node's", "s behind this node's"] {
        let is_it = |line: &&str| line.contains("the clock of n3 is ") && line.contains(way);
        assert_eq!(log.text().lines().filter(is_it).count(), 1, "{}", log.text());
    }
    let metrics = net.cluster[1].get("/metrics").text();
    assert!(metrics.contains(r#"shoal_clock_offset_seconds{member="n3",node="n1"}"#), "{metrics}");
}

#[test]
fn a_clock_that_is_set_moves_no_time_to_live() {
    if !is_apart("clocks::a_clock_that_is_set_moves_no_time_to_live") {
        return;
    }
    // What is sealed two minutes ahead is refused.
    let net = Net::start(3, Extras { clock: Some(ODD), is_open: true, ..Extras::default() });
    for (name, ahead) in [("forward", 120), ("back", -3600)] {
        net.set_clock(0);
        sleep(SET_WITHIN);
        let mut lent = lend(&net, &format!("long-{name}"), 60);
        lent.extend(lend(&net, &format!("short-{name}"), 6));
        net.set_clock(ahead);
        sleep(SET_WITHIN);
        assert_right(&net, &format!("set {name}"), &lent);
        sleep(Duration::from_secs(6));
        assert_right(&net, &format!("six seconds after it was set {name}"), &lent);
    }
}
