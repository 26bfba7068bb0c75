//! How much must have been checked strictly: a checker that excuses everything passes everything.
//!
//! Invariant: each kind of schedule has a floor for the share of its reads that had to show a certain write or a newer one.

use std::collections::BTreeMap;
use std::fmt;

use crate::record::Count;
use crate::schedule::Schedule;

/// Schedules by the most that they excuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Nodes are split into sides, or so much is cut that it cannot be said who reaches whom.
    Split,
    /// Several nodes are down, or one of a pair that cannot talk.
    Down,
    /// A pair of nodes cannot talk, and all others are well.
    Pair,
    /// One fault after the other, or none.
    Usual,
}

/// Too few reads say nothing of a share.
const READS_MIN: usize = 20_000;

impl Kind {
    pub(crate) fn of(schedule: &Schedule) -> Kind {
        match schedule {
            schedule if schedule.has_split() => Kind::Split,
            schedule if schedule.ever_down() > usize::from(!schedule.has_pair()) => Kind::Down,
            schedule if schedule.has_pair() => Kind::Pair,
            _ => Kind::Usual,
        }
    }

    fn floor(self) -> f64 {
        match self {
            Kind::Split => 0.5,
            Kind::Down => 0.8,
            Kind::Pair | Kind::Usual => 0.9,
        }
    }
}

/// What was counted, by kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<Kind, Count>);

impl Counts {
    pub(crate) fn add(&mut self, kind: Kind, count: Count) {
        *self.0.entry(kind).or_default() += count;
    }

    /// The kinds of which too little was checked.
    pub(crate) fn below_floor(&self) -> Vec<Kind> {
        let many = self.0.iter().filter(|(_, count)| count.reads >= READS_MIN);
        many.filter(|(kind, count)| share(count) < kind.floor()).map(|(kind, _)| *kind).collect()
    }
}

fn share(count: &Count) -> f64 {
    count.strict_reads as f64 / count.reads.max(1) as f64
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.0 {
            let Count { operations, reads, errors, .. } = count;
            let (share, floor) = (share(count), kind.floor());
            let kind = format!("{kind:?}");
            writeln!(
                out,
                "{kind:>6}: {share:.3} of {reads} reads strict (floor {floor}); {operations} operations, {errors} errors"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Event, Fault};

    fn of(faults: &[Fault]) -> Kind {
        let events = faults.iter().cloned().map(|fault| Event { fault, start_ms: 1, end_ms: 2 });
        Kind::of(&Schedule { nodes: 5, copies: 2, events: events.collect(), ..Schedule::default() })
    }

    #[test]
    fn a_schedule_is_of_the_kind_that_excuses_most() {
        let (pause, crash) = (Fault::Pause { node: 0 }, Fault::Crash { node: 1 });
        let (pair, split) = (Fault::OneWayCut { from: 0, to: 1 }, Fault::OneAgainstAll { node: 1 });
        assert_eq!(of(&[]), Kind::Usual);
        assert_eq!(of(&[pause.clone(), pause.clone()]), Kind::Usual);
        assert_eq!(of(&[pause.clone(), crash]), Kind::Down);
        assert_eq!(of(std::slice::from_ref(&pair)), Kind::Pair);
        assert_eq!(of(&[pair.clone(), pause]), Kind::Down);
        assert_eq!(of(&[pair, split]), Kind::Split);
    }

    #[test]
    fn a_share_below_its_floor_is_told_once_there_are_enough_reads() {
        let count = |reads, strict_reads| Count { reads, strict_reads, ..Count::default() };
        let below = |count| {
            let mut counts = Counts::default();
            counts.add(Kind::Usual, count);
            counts.below_floor()
        };
        assert_eq!(below(count(READS_MIN, READS_MIN * 9 / 10)), []);
        assert_eq!(below(count(READS_MIN, READS_MIN * 9 / 10 - 1)), [Kind::Usual]);
        assert_eq!(below(count(READS_MIN - 1, 0)), []);
        assert_eq!(below(Count::default()), []);
    }
}
