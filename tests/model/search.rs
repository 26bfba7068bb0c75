//! Breadth-first search over all states that a schedule can lead to.
//!
//! Keeps a hash of 64 bits of each state that was seen, not the state. If two states share one, the second is left out; among
//! forty million states the chance of that is below one in ten thousand. The shortest schedule to a violation is found first.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::rules::{Event, Model};
use crate::world::World;

/// What a search has found.
pub(crate) struct Found {
    pub(crate) states: usize,
    /// No state was left out.
    pub(crate) is_exhaustive: bool,
    /// What is violated, and the events that lead there.
    pub(crate) violation: Option<(String, Vec<Event>)>,
}

/// Visits everything, or the shortest schedules first until `limit` states were seen.
pub(crate) fn search(model: &Model, limit: usize) -> Found {
    let first = model.first();
    let mut seen: HashSet<u64, BuildHasherDefault<Same>> = HashSet::default();
    let mut came: Vec<(u32, Event)> = vec![(0, Event::Tick)];
    let mut queue = VecDeque::from([(0u32, first.clone())]);
    seen.insert(hash(&first));
    while let Some((at, world)) = queue.pop_front() {
        for (event, next) in model.next(&world) {
            if !seen.insert(hash(&next)) {
                continue;
            }
            came.push((at, event));
            let here = came.len() as u32 - 1;
            if let Some(what) = model.violation(&next) {
                return Found {
                    states: seen.len(),
                    is_exhaustive: false,
                    violation: Some((what, path(&came, here))),
                };
            }
            queue.push_back((here, next));
        }
        if seen.len() > limit {
            return Found { states: seen.len(), is_exhaustive: false, violation: None };
        }
    }
    Found { states: seen.len(), is_exhaustive: true, violation: None }
}

fn path(came: &[(u32, Event)], mut here: u32) -> Vec<Event> {
    let mut path = Vec::new();
    while here != 0 {
        let (from, event) = came[here as usize];
        path.push(event);
        here = from;
    }
    path.reverse();
    path
}

/// The same for two states that differ only in which of two operations of one kind is which.
fn hash(world: &World) -> u64 {
    let mut hasher = Mix(0);
    if let [a, b] = &world.ops[..]
        && a.kind == b.kind
        && a > b
    {
        let mut swapped = world.clone();
        swapped.ops.reverse();
        swapped.hash(&mut hasher);
    } else {
        world.hash(&mut hasher);
    }
    hasher.finish()
}

/// Fast, and good enough for small numbers.
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let hash = (self.0 ^ self.0 >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^ hash >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0xF135_7AEA_2E62_A9C5);
        self.0 ^= self.0 >> 31;
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
}

/// Takes a hash for what it is.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
