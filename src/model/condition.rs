//! Owns what a write may demand of what is stored.
//!
//! Knows nothing of headers. Invariant: whether a condition holds depends on the stored version alone.

use serde::{Deserialize, Serialize};

use super::version::Version;

/// What must hold of a key for a write to be done. Decided by the owner that stamps the write, under the same lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// There is no live entry.
    Absent,
    /// There is a live entry, of whatever version.
    Present,
    /// There is a live entry of one of these versions; none of them if the list is empty.
    Versions(Vec<Version>),
}

impl Condition {
    /// Whether it holds when the live entry, if there is one, has the version `live`.
    pub fn holds(&self, live: Option<Version>) -> bool {
        match (self, live) {
            (Condition::Always, _) | (Condition::Absent, None) | (Condition::Present, Some(_)) => true,
            (Condition::Versions(wanted), Some(version)) => wanted.contains(&version),
            (Condition::Absent, Some(_)) | (Condition::Present | Condition::Versions(_), None) => false,
        }
    }

    /// What was there when it held was of this version, or a newer one; none if it does not say.
    #[must_use]
    pub fn oldest(&self) -> Option<Version> {
        if let Condition::Versions(wanted) = self { wanted.iter().min().copied() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_looks_at_the_live_version_alone() {
        let [old, new] = [1, 2].map(|time| Version::new(time, 1));
        let old_or_nothing = Condition::Versions(vec![old]);
        for (condition, nothing, at_old, at_new) in [
            (Condition::Always, true, true, true),
            (Condition::Absent, true, false, false),
            (Condition::Present, false, true, true),
            (old_or_nothing, false, true, false),
            (Condition::Versions(Vec::new()), false, false, false),
        ] {
            assert_eq!(condition.holds(None), nothing, "{condition:?}");
            assert_eq!(condition.holds(Some(old)), at_old, "{condition:?}");
            assert_eq!(condition.holds(Some(new)), at_new, "{condition:?}");
        }
    }
}
