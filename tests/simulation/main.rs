//! Whole clusters on a simulated network and clock, from a seed: what fails once fails again.
//!
//! `SEEDS=5000 make simulate` runs as many that nobody has tried, `SEED=17 make simulate` one with its logs. Which others
//! run is in `seeds.rs`.

mod client;
mod floors;
mod logs;
mod operation;
mod record;
mod run;
mod schedule;
mod seeds;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::floors::{Counts, Kind};
use crate::record::Count;
use crate::run::Verdict;
use crate::schedule::Schedule;

/// How much of a failure is shown.
const FAILURES_SHOWN: usize = 3;
const SEEDS_SHOWN: usize = 12;

thread_local! {
    /// Panics of this thread: the simulation catches those of tasks and would go on.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs one seed and says what is wrong with it, if anything is.
fn try_seed(seed: u64) -> (Option<(Kind, Count)>, Option<Failed>) {
    PANICS.take();
    let caught = std::panic::catch_unwind(|| run::run(seed));
    let panics = PANICS.take();
    let Ok(Verdict { schedule, history, mut failures }) = caught else {
        return (None, Some(Failed::new(seed, None, panics)));
    };
    failures.extend(panics);
    let count = (Kind::of(&schedule), history.count(&schedule));
    (Some(count), (!failures.is_empty()).then(|| Failed::new(seed, Some(&schedule), failures)))
}

/// A seed that failed.
struct Failed {
    seed: u64,
    schedule: String,
    failures: Vec<String>,
    /// The beginnings of `failures`, each with the hole that is known to explain it.
    kinds: BTreeMap<String, Option<&'static str>>,
}

impl Failed {
    fn new(seed: u64, schedule: Option<&Schedule>, failures: Vec<String>) -> Failed {
        let kinds = failures.iter().map(|failure| {
            let kind = failure.split([':', '\n']).next().unwrap_or_default();
            (kind.to_string(), schedule.and_then(|schedule| seeds::explanation(kind, schedule)))
        });
        let kinds = kinds.collect();
        Failed { seed, schedule: schedule.map(ToString::to_string).unwrap_or_default(), failures, kinds }
    }

    /// Whether something in it is not explained.
    fn counts(&self) -> bool {
        self.kinds.values().any(Option::is_none)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failed { seed, schedule, failures, .. } = self;
        let count = failures.len();
        writeln!(out, "seed {seed} fails in {count} ways; again: SEED={seed} make simulate\n{schedule}")?;
        failures.iter().take(FAILURES_SHOWN).try_for_each(|failure| writeln!(out, "{failure}"))
    }
}

/// What came of many seeds.
#[derive(Default)]
struct Tried {
    seeds: u64,
    counts: Counts,
    failed: Vec<Failed>,
}

fn note_panics() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
        shown(panic);
    }));
}

#[test]
fn promises_hold_whatever_breaks() {
    note_panics();
    if let Some(seed) = from_environment("SEED") {
        logs::show();
        let (count, failed) = try_seed(seed);
        eprintln!("{count:?}");
        if let Some(failed) = &failed {
            eprintln!("{failed}");
        }
        return assert!(!failed.is_some_and(|failed| failed.counts()), "seed {seed} fails");
    }
    let until_failure = std::env::var_os("UNTIL_FAILURE").is_some();
    let seeds = seeds::choose(from_environment("FIRST"), from_environment("SEEDS"), !until_failure);
    let (next, tried, started) = (AtomicUsize::new(0), Mutex::new(Tried::default()), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if until_failure && tried.lock().failed.iter().any(Failed::counts) {
                        return;
                    }
                    let (count, failure) = try_seed(*seed);
                    let mut tried = tried.lock();
                    tried.seeds += 1;
                    if let Some((kind, count)) = count {
                        tried.counts.add(kind, count);
                    }
                    if let Some(failure) = failure {
                        if failure.counts() || std::env::var_os("SHOW_OPEN").is_some() {
                            eprintln!("{failure}");
                        }
                        tried.failed.push(failure);
                    }
                }
            });
        }
    });
    summarize(&tried.into_inner(), started.elapsed());
}

fn summarize(tried: &Tried, took: Duration) {
    let Tried { seeds, counts, failed } = tried;
    let counted = failed.iter().filter(|failed| failed.counts()).count();
    let mut seeds_of = BTreeMap::<(Option<&str>, &str), Vec<u64>>::new();
    for Failed { seed, kinds, .. } in failed {
        kinds.iter().for_each(|(kind, hole)| seeds_of.entry((*hole, kind)).or_default().push(*seed));
    }
    eprintln!("{seeds} seeds in {:.0} s, {counted} failed", took.as_secs_f64());
    for ((hole, kind), mut seeds) in seeds_of {
        seeds.sort_unstable();
        let open = hole.map(|hole| format!(" (not counted: {hole})")).unwrap_or_default();
        eprintln!("{:5} {kind}{open}: {:?}", seeds.len(), &seeds[..seeds.len().min(SEEDS_SHOWN)]);
    }
    eprintln!("{counts}");
    assert!(counted == 0, "{counted} of {seeds} seeds fail");
    assert_eq!(counts.below_floor(), [], "too little is checked strictly");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let seed = from_environment("SEED").unwrap_or(3);
    let runs = [(); 2].map(|()| std::thread::spawn(move || run::run(seed).history));
    let [first, second] = runs.map(|run| run.join().unwrap());
    let differ =
        first.operations.iter().zip(&second.operations).find(|(a, b)| a.to_string() != b.to_string());
    assert!(differ.is_none(), "{differ:?}");
    assert_eq!(first.fingerprint(), second.fingerprint());
}
