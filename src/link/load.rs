//! Cuts many items into batches, each of which fits one frame.
//!
//! Counts what the receiver bounds, heads as well as values, before anything is encoded. Invariant: every node takes the
//! frame of a batch that holds more than one item.

use serde::Serialize;

use super::frame;

/// Bytes of heads of the things in a frame. What stands around them in its head takes less than the rest.
const HEADS_BYTES_MAX: usize = frame::HEAD_BYTES_ALWAYS - 1024;

/// What one thing takes of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    head_bytes: usize,
    value_bytes: usize,
}

impl Weight {
    /// Of a thing with that head, and as many bytes behind it.
    pub fn of(head: &impl Serialize, value_bytes: usize) -> Weight {
        Weight { head_bytes: frame::head_bytes(head), value_bytes }
    }
}

/// How much one frame may hold, besides what holds of all.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Things.
    pub items: usize,
    /// Bytes of values, at most [`BATCH_BYTES_MAX`](super::BATCH_BYTES_MAX).
    pub value_bytes: usize,
}

/// What a frame holds by now.
#[derive(Debug)]
pub struct Load {
    left: Room,
    head_bytes_left: usize,
}

impl Load {
    /// Nothing yet.
    #[must_use]
    pub fn new(room: Room) -> Load {
        Load { left: room, head_bytes_left: HEADS_BYTES_MAX }
    }

    /// Whether there is room for one thing more, which then counts.
    #[must_use]
    pub fn take(&mut self, weight: Weight) -> bool {
        let left = self.left.items.checked_sub(1);
        let (head, value) = (
            self.head_bytes_left.checked_sub(weight.head_bytes),
            self.left.value_bytes.checked_sub(weight.value_bytes),
        );
        let (Some(items), Some(head_bytes_left), Some(value_bytes)) = (left, head, value) else {
            return false;
        };
        *self = Load { left: Room { items, value_bytes }, head_bytes_left };
        true
    }
}

/// Things that gather until no more of them fit one frame.
#[derive(Debug)]
pub struct Batch<T> {
    room: Room,
    load: Load,
    items: Vec<T>,
}

impl<T> Batch<T> {
    /// Nothing yet.
    #[must_use]
    pub fn new(room: Room) -> Batch<T> {
        Batch { room, load: Load::new(room), items: Vec::new() }
    }

    /// Adds a thing. If there was no room for it, what had gathered comes back and it begins the next batch. One that fits
    /// no batch at all is a batch of its own; whether it fits a frame is seen when it is encoded.
    #[must_use]
    pub fn push(&mut self, item: T, weight: Weight) -> Option<Vec<T>> {
        if self.load.take(weight) {
            self.items.push(item);
            return None;
        }
        let full = self.take();
        if !self.load.take(weight) {
            self.load = Load::new(Room { items: 0, value_bytes: 0 });
        }
        self.items.push(item);
        full
    }

    /// What has gathered since.
    #[must_use]
    pub fn take(&mut self) -> Option<Vec<T>> {
        self.load = Load::new(self.room);
        Some(std::mem::take(&mut self.items)).filter(|items| !items.is_empty())
    }
}

/// All things, in batches.
pub fn cut<T>(items: impl IntoIterator<Item = T>, room: Room, weigh: impl Fn(&T) -> Weight) -> Vec<Vec<T>> {
    let mut batch = Batch::new(room);
    let mut batches = Vec::new();
    for item in items {
        let weight = weigh(&item);
        batches.extend(batch.push(item, weight));
    }
    batches.extend(batch.take());
    batches
}
