//! What clients notice of each fault while it lasts, as a table; a run fails where the bound is broken.
//!
//! The bound: at nodes that reach a majority no request fails, none is stale, and from five seconds after the fault began p99 is
//! at most 50 ms. What a node acknowledged that does not reach a majority, the others do not have to see until the fault ends.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fault::{FAULTS, Fault};
use crate::load::{Load, Outcome, Sample, latencies};
use crate::net::{Net, is_apart};
use crate::process::poll;

const CALM: Duration = Duration::from_secs(4);
const SHOCK: Duration = Duration::from_secs(5);
const LASTS: Duration = Duration::from_secs(17);
/// After the fault has ended.
const WHOLE_WITHIN: Duration = Duration::from_secs(20);
const P99_MS_MAX: f64 = 50.0;
/// Networks at the same time: a core is enough for the processes of one.
const LANES: usize = 2;

const HEAD: &str = "\
| fault | nodes | requests | failed in the first 5 s, after | stale | degraded | p50, p99 before | first 5 s | after | \
log lines a minute | whole again | wrong then | bound |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

#[test]
fn what_lasts_is_paid_once() {
    if !is_apart("table::what_lasts_is_paid_once") {
        return;
    }
    let chosen: Vec<String> = std::env::var("ONLY")
        .map(|names| names.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    let faults: Vec<&Fault> = FAULTS
        .iter()
        .filter(|fault| chosen.is_empty() || chosen.iter().any(|name| name == fault.name))
        .collect();
    assert!(!faults.is_empty(), "no fault is called {chosen:?}");
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let came = measure(fault);
                    println!("{}", came.details());
                    seen.lock().push(came);
                }
            });
        }
    });
    let seen = seen.into_inner();
    println!("{HEAD}");
    let mut broken = Vec::new();
    for fault in faults {
        let Some(came) = seen.iter().find(|came| came.fault.name == fault.name) else { continue };
        for group in came.groups() {
            println!("{}", came.row(&group));
            broken.extend((group.demanded && !came.is_within_bound(&group)).then_some(fault.name));
        }
    }
    assert!(broken.is_empty(), "the bound does not hold while {broken:?} lasts");
}

/// What came of a fault.
struct Came {
    fault: &'static Fault,
    samples: Vec<Sample>,
    began: Duration,
    ended: Duration,
    /// By node, while it lasted.
    log_lines: Vec<usize>,
    /// That its rules caught.
    packets: u64,
    whole_after: Option<Duration>,
    /// Of one read of every key then, by node, those that found less than was acknowledged, or failed.
    old: Vec<usize>,
}

/// Nodes that are looked at together.
struct Group {
    name: String,
    nodes: Vec<usize>,
    /// Whether the bound is meant for them.
    demanded: bool,
}

fn measure(fault: &'static Fault) -> Came {
    let mut net = Net::start(fault.nodes, fault.extras());
    let load = Load::start(&net);
    sleep(CALM);
    let lines = |net: &Net| -> Vec<usize> {
        net.numbers().map(|node| net.cluster[node].log().text().lines().count()).collect()
    };
    let before = lines(&net);
    if !fault.reach_a_majority {
        load.isolate(fault.sick.iter().map(|node| net.address(*node)));
    }
    let began = load.now();
    let lasting = fault.begin(&mut net);
    sleep(LASTS);
    let ended = load.now();
    let log_lines = lines(&net).iter().zip(before).map(|(after, before)| after - before).collect();
    let packets = net.packets_of_rules();
    lasting.end(&net);
    let (samples, keys) = load.stop();
    let healing = Instant::now();
    let whole_after = poll(WHOLE_WITHIN, || net.cluster.is_whole()).then(|| healing.elapsed());
    let old = net.numbers().map(|node| keys.old_at(&net.cluster[node])).collect();
    Came { fault, samples, began, ended, log_lines, packets, whole_after, old }
}

impl Came {
    fn groups(&self) -> Vec<Group> {
        let (sick, well) = (1..=self.fault.nodes).partition(|node| self.fault.sick.contains(node));
        let reach = if self.fault.reach_a_majority { "sick, reach a majority" } else { "sick, do not" };
        vec![
            Group { name: "well".into(), nodes: well, demanded: true },
            Group { name: reach.into(), nodes: sick, demanded: self.fault.reach_a_majority },
        ]
    }

    /// The requests at these nodes that were due in a span.
    fn at(&self, group: &Group, from: Duration, until: Duration) -> impl Iterator<Item = &Sample> + Clone {
        let of = |sample: &&Sample| group.nodes.contains(&sample.node) && (from..until).contains(&sample.due);
        // Collected, so that what is given borrows nothing of the group.
        self.samples.iter().filter(of).collect::<Vec<_>>().into_iter()
    }

    fn is_within_bound(&self, group: &Group) -> bool {
        let wrong = |sample: &&Sample| matches!(sample.outcome, Outcome::Failed(_) | Outcome::Stale(_));
        let after = latencies(self.at(group, self.began + SHOCK, self.ended));
        let old: usize = group.nodes.iter().map(|node| self.old[node - 1]).sum();
        self.at(group, self.began, self.ended).filter(wrong).count() + old == 0
            && after.quantile(0.99) <= P99_MS_MAX
    }

    fn row(&self, group: &Group) -> String {
        let shock = self.began + SHOCK;
        let count = |from, until, wanted: fn(&Outcome) -> bool| {
            self.at(group, from, until).filter(|sample| wanted(&sample.outcome)).count()
        };
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        let span = |from, until| {
            let figures = latencies(self.at(group, from, until));
            format!("{:.1}, {:.0} ms", figures.median(), figures.quantile(0.99))
        };
        let lines = group.nodes.iter().map(|node| self.log_lines[node - 1]).max().unwrap_or_default();
        let minutes = (self.ended - self.began).as_secs_f64() / 60.0;
        let whole = self.whole_after.map_or("no".into(), |after| format!("{:.1} s", after.as_secs_f64()));
        let mut row = format!("| {} | {} ", self.fault.name, group.name);
        let all = count(self.began, self.ended, |_| true);
        let _ = write!(
            row,
            "| {all} | {}, {} ",
            count(self.began, shock, failed),
            count(shock, self.ended, failed)
        );
        let stale = count(self.began, self.ended, |outcome| matches!(outcome, Outcome::Stale(_)));
        let degraded = count(self.began, self.ended, |outcome| matches!(outcome, Outcome::Degraded));
        let _ = write!(row, "| {stale} | {degraded} | {} ", span(Duration::ZERO, self.began));
        let _ = write!(row, "| {} | {} ", span(self.began, shock), span(shock, self.ended));
        let old: usize = group.nodes.iter().map(|node| self.old[node - 1]).sum();
        let _ = write!(row, "| {:.0} | {whole} | {old} ", lines as f64 / minutes);
        let bound = match (group.demanded, self.is_within_bound(group)) {
            (false, _) => "",
            (true, true) => "kept",
            (true, false) => "broken",
        };
        let _ = write!(row, "| {bound} |");
        row
    }

    /// Some of what went wrong, to look into; what breaks the bound first.
    fn details(&self) -> String {
        let (name, requests) = (self.fault.name, self.samples.len());
        let mut details = format!("{name}: {requests} requests, {} packets lost or refused", self.packets);
        let wrong = self.samples.iter().filter_map(|sample| match &sample.outcome {
            Outcome::Failed(why) | Outcome::Stale(why) => Some((sample, why)),
            Outcome::Fine | Outcome::Degraded => None,
        });
        let counts = |node| self.groups().iter().any(|group| group.demanded && group.nodes.contains(&node));
        let mut wrong: Vec<_> = wrong.collect();
        wrong.sort_by_key(|(sample, _)| !counts(sample.node));
        for (sample, why) in wrong.into_iter().take(6) {
            let since = sample.due.as_secs_f64() - self.began.as_secs_f64();
            let _ = write!(details, "\n  at n{} {since:+.2} s: {why}", sample.node);
        }
        details
    }
}
