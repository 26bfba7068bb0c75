//! Which seeds a run tries, and which failures are known and wait for their cure.
//!
//! Invariant: a seed that ever failed stays in one of the lists, and runs for ever.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::schedule::Schedule;

/// How many seeds from 0 a run tries, which are the same ones each time, and how many that nobody has tried.
const SAME: u64 = 200;
const FRESH: u64 = 60;

/// Seeds that failed once: by a sleep, with one copy; by writes done twice; by the holes that partial failures showed.
const FAILED_ONCE: &[u64] = &[
    24,
    57,
    117,
    129,
    182,
    10_031,
    10_067,
    10_116,
    10_117,
    10_151,
    10_183,
    263,
    2130,
    2179,
    2748,
    164,
    10_102,
    10_105,
    10_152,
    10_180,
    10_061,
    10_077,
    10_020,
    10_035,
    10_104,
    10_109,
    10_110,
    10_134,
    10_138,
    10_148,
    10_108,
    10_083,
    29_929_530_025,
    29_929_530_038,
    29_929_584_049,
    29_929_692_020,
    29_929_692_025,
    29_929_692_033,
    10,
    122,
    10_016,
    10_051,
    10_185,
    10_195,
    40_136,
    40_138,
    40_397,
    50_215,
    50_223,
    50_381,
    50_461,
    60_355,
    60_429,
    60_733,
    29_929_779_446,
    29_929_780_016,
    29_929_879_112,
    29_929_782_392,
    10_121,
    29_930_431_734,
    29_930_432_471,
    29_930_432_816,
    29_930_433_397,
    29_930_435_171,
    29_930_625_129,
    29_930_816_283,
    103,
    413,
    2609,
    29_930_976_292,
];

/// A hole that is known: what comes of it is reported and not counted until its cure is there. Then the entry goes, and its
/// seeds join those that failed once.
pub(crate) struct Open {
    pub(crate) hole: &'static str,
    /// The beginnings of the failures that it explains.
    kinds: &'static [&'static str],
    /// The schedules in which it may show.
    shows_in: fn(&Schedule) -> bool,
    seeds: &'static [u64],
}

const OPEN: &[Open] = &[Open {
    hole: "a write is done again when its first owner cannot say that it did it",
    kinds: &["a write under two versions", "a write done twice"],
    shows_in: Schedule::silences_an_owner,
    seeds: &[10_044, 10_142, 14_011, 50_225, 50_743],
}];

/// The hole that explains a failure, if there is one.
pub(crate) fn explanation(kind: &str, schedule: &Schedule) -> Option<&'static str> {
    let mut holes = OPEN.iter().filter(|open| open.kinds.contains(&kind) && (open.shows_in)(schedule));
    holes.next().map(|open| open.hole)
}

/// The seeds of one run. A range that is asked for comes alone but for the lists; where a planted fault is looked for, how soon
/// it is found says more, and the lists are left out.
pub(crate) fn choose(first: Option<u64>, seeds: Option<u64>, with_lists: bool) -> Vec<u64> {
    let fresh = || {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since_epoch.as_secs() / 60 * 1000
    };
    let (same, first, count) = match (first, seeds) {
        (None, None) => (SAME, fresh(), FRESH),
        (None, Some(count)) => (0, fresh(), count),
        (Some(first), count) => (0, first, count.unwrap_or(SAME)),
    };
    eprintln!("seeds from {first} on; again: FIRST={first} SEEDS={count} make simulate");
    let listed = FAILED_ONCE.iter().chain(OPEN.iter().flat_map(|open| open.seeds)).filter(|_| with_lists);
    let mut known = BTreeSet::new();
    let all = listed.copied().chain(0..same).chain(first..first + count);
    all.filter(|seed| known.insert(*seed)).collect()
}

#[test]
fn lists_come_first_and_no_seed_twice() {
    let seeds = choose(Some(260), Some(5), true);
    assert_eq!(seeds[..FAILED_ONCE.len()], *FAILED_ONCE);
    assert_eq!(seeds.iter().collect::<BTreeSet<_>>().len(), seeds.len());
    assert_eq!(choose(Some(260), Some(5), false), [260, 261, 262, 263, 264]);
}
