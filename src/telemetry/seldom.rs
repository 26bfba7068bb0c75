//! A limit on log lines that others can bring about.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lets one line a minute through of each kind, where strangers could bring about any number. There must be few kinds.
#[derive(Debug)]
pub struct Seldom<K>(Mutex<HashMap<K, Instant>>);

/// Between two lines of a kind.
const PAUSE: Duration = Duration::from_secs(60);

impl<K> Default for Seldom<K> {
    fn default() -> Seldom<K> {
        Seldom(Mutex::default())
    }
}

impl<K: Eq + Hash> Seldom<K> {
    /// Whether it is time for the next line of this kind; then it counts as written.
    pub fn is_due(&self, kind: K) -> bool {
        let mut written = self.0.lock();
        let due = written.get(&kind).is_none_or(|at| at.elapsed() >= PAUSE);
        if due {
            written.insert(kind, Instant::now());
        }
        due
    }
}
