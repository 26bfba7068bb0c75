//! One operation of a client: what it asked for, when, and what came of it.

use std::fmt;

use crate::schedule::At;

/// A moment: milliseconds since the load began, and a place in the order of all events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment {
    pub(crate) order: u64,
    pub(crate) ms: u64,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Get,
    Put(String),
    /// A PUT with a time to live, in seconds.
    Lend(String, u64),
    /// A PUT that is to be done only if there is nothing.
    Create(String),
    /// A PUT that is to be done only if this version is there.
    Replace(String, String),
    Delete,
}

impl Action {
    pub(crate) fn value(&self) -> Option<&str> {
        match self {
            Action::Put(value)
            | Action::Lend(value, _)
            | Action::Create(value)
            | Action::Replace(value, _) => Some(value),
            Action::Get | Action::Delete => None,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Found {
        value: String,
        version: String,
    },
    Missing,
    Stored {
        version: String,
    },
    Deleted,
    /// 412: certainly not done.
    Refused,
    /// No connection: certainly not done.
    NotSent,
    /// The node is not admitted yet: certainly not done.
    NotAdmitted,
    /// An error or no answer: may be done, now or later, once or not at all.
    Unknown(String),
}

/// One operation of one client.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) node: usize,
    pub(crate) key: usize,
    pub(crate) action: Action,
    pub(crate) start: Moment,
    /// None while it is under way.
    pub(crate) end: Option<(Moment, Outcome)>,
}

impl Operation {
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.end.as_ref().map(|(_, outcome)| outcome)
    }

    /// The version that it made or found, and that version's value.
    pub(crate) fn version(&self) -> Option<(&str, &str)> {
        match (self.outcome()?, self.action.value()) {
            (Outcome::Found { value, version }, _) => Some((version, value)),
            (Outcome::Stored { version }, Some(value)) => Some((version, value)),
            _ => None,
        }
    }

    /// The version that it made, as far as it is known.
    pub(crate) fn made(&self) -> Option<&str> {
        match self.outcome() {
            Some(Outcome::Stored { version }) => Some(version),
            _ => None,
        }
    }

    /// When it was acknowledged, if it is a write that was.
    pub(crate) fn acknowledged(&self) -> Option<Moment> {
        match &self.end {
            Some((at, Outcome::Stored { .. } | Outcome::Deleted)) => Some(*at),
            _ => None,
        }
    }

    /// Whether it may have changed something.
    pub(crate) fn may_be_done(&self) -> bool {
        self.action != Action::Get
            && !matches!(self.outcome(), Some(Outcome::Refused | Outcome::NotSent | Outcome::NotAdmitted))
    }

    /// Whether it has a condition, and the answer is that this may fail only because the operation itself was done before.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let conditional = matches!(self.action, Action::Create(_) | Action::Replace(..));
        let says_so = |text: &str| text.contains("the write may have been done before");
        conditional && matches!(self.outcome(), Some(Outcome::Unknown(text)) if says_so(text))
    }

    /// Whether it comes before `other` for everybody: it was over when that began, or its version says so.
    pub(crate) fn is_before(&self, other: &Operation) -> bool {
        let by_version = || Some(self.made()? < other.made()?);
        self.is_older_than(other) || by_version().unwrap_or(false)
    }

    /// Whether it was certainly over before `other` began. One with an unknown outcome may still happen.
    pub(crate) fn is_older_than(&self, other: &Operation) -> bool {
        self.acknowledged().is_some_and(|at| at < other.start)
    }

    /// Whether what it wrote may be over at `ms`, by a right clock.
    pub(crate) fn may_be_over_at(&self, ms: u64) -> bool {
        matches!(self.action, Action::Lend(_, ttl) if ms >= self.start.ms + ttl * 1000)
    }

    /// Whether what it wrote must be over at `ms`, by a right clock.
    pub(crate) fn must_be_over_at(&self, ms: u64) -> bool {
        let over = |ttl| self.acknowledged().is_some_and(|at| ms > at.ms + ttl * 1000);
        matches!(self.action, Action::Lend(_, ttl) if over(ttl))
    }

    pub(crate) fn is_write_of(&self, key: usize) -> bool {
        self.key == key && self.action != Action::Get
    }

    pub(crate) fn at(&self) -> At {
        let (start_ms, end_ms) = self.span();
        At { node: self.node, start_ms, end_ms }
    }

    pub(crate) fn span(&self) -> (u64, u64) {
        (self.start.ms, self.end.as_ref().map_or(u64::MAX, |(at, _)| at.ms))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [start, end] = [self.span().0, self.span().1.min(999_999)].map(|ms| ms as f64 / 1000.0);
        let key = self.key;
        let node = self.node + 1;
        write!(
            out,
            "{start:7.3} to {end:7.3} s  client {} at node{node}: {:?} k{key}",
            self.client, self.action
        )?;
        match self.outcome() {
            Some(outcome) => write!(out, " -> {outcome:?}"),
            None => write!(out, " -> (under way)"),
        }
    }
}
