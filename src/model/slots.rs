//! Owns sets of slots: one bit for each of the 16384.
//!
//! Knows nothing of what the slots are for. Invariant: a set and its bytes are the same set.

use super::key::Slot;

const WORDS: usize = Slot::COUNT as usize / 64;

type Words = [u64; WORDS];

static NO_WORDS: Words = [0; WORDS];

/// Some of the slots.
///
/// In a cluster at rest nearly all sets are empty, and many are made, sent and compared: such a set takes no memory.
#[derive(Clone)]
pub struct SlotSet(Option<Box<Words>>);

impl SlotSet {
    /// Bytes that a set takes on the wire, unless it is empty, when it takes none.
    pub const BYTES: usize = WORDS * 8;

    /// No slot.
    pub fn empty() -> SlotSet {
        SlotSet(None)
    }

    /// Every slot.
    pub fn full() -> SlotSet {
        SlotSet(Some(Box::new([u64::MAX; WORDS])))
    }

    fn as_words(&self) -> &Words {
        self.0.as_deref().unwrap_or(&NO_WORDS)
    }

    fn as_words_mut(&mut self) -> &mut Words {
        self.0.get_or_insert_with(|| Box::new(NO_WORDS))
    }

    /// Adds a slot; true if it was not there.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        let word = &mut self.as_words_mut()[word];
        let was = *word & bit != 0;
        *word |= bit;
        !was
    }

    /// Whether a slot is there.
    pub fn contains(&self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        self.as_words()[word] & bit != 0
    }

    /// Adds all of another set.
    pub fn add(&mut self, other: &SlotSet) {
        if let Some(more) = &other.0 {
            self.as_words_mut().iter_mut().zip(more.iter()).for_each(|(word, more)| *word |= more);
        }
    }

    /// Takes out all of another set.
    pub fn subtract(&mut self, other: &SlotSet) {
        if let (Some(words), Some(less)) = (&mut self.0, &other.0) {
            words.iter_mut().zip(less.iter()).for_each(|(word, less)| *word &= !less);
        }
    }

    /// What is in both sets.
    pub fn intersection(&self, other: &SlotSet) -> SlotSet {
        let (Some(words), Some(other)) = (&self.0, &other.0) else { return SlotSet::empty() };
        let mut both = words.clone();
        both.iter_mut().zip(other.iter()).for_each(|(word, other)| *word &= other);
        SlotSet(Some(both))
    }

    /// Keeps the slots that `wanted` says.
    pub fn retain(&mut self, wanted: impl Fn(Slot) -> bool) {
        let dropped: Vec<Slot> = self.iter().filter(|slot| !wanted(*slot)).collect();
        for slot in dropped {
            let (word, bit) = place(slot);
            self.as_words_mut()[word] &= !bit;
        }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.words().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|words| **words == NO_WORDS)
    }

    /// The slots in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        Slot::all().filter(|slot| self.contains(*slot))
    }

    /// The set in words of 64 slots, the first slot in the lowest bit of the first.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.as_words().iter().copied()
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.is_empty() { Vec::new() } else { self.words().flat_map(u64::to_le_bytes).collect() }
    }

    /// What [`SlotSet::to_bytes`] has made; none of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<SlotSet> {
        if bytes.is_empty() {
            return Some(SlotSet::empty());
        }
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let words = <Box<Words>>::try_from(words.into_boxed_slice()).ok()?;
        rest.is_empty().then_some(SlotSet(Some(words)))
    }
}

impl PartialEq for SlotSet {
    fn eq(&self, other: &SlotSet) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            _ => self.as_words() == other.as_words(),
        }
    }
}

impl Eq for SlotSet {}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::empty();
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

impl std::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().take(16)).finish_non_exhaustive()
    }
}

fn place(slot: Slot) -> (usize, u64) {
    (slot.index() / 64, 1 << (slot.index() % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn slots() -> impl Strategy<Value = BTreeSet<u16>> {
        prop::collection::btree_set(0..Slot::COUNT, 0..200)
    }

    fn set(numbers: &BTreeSet<u16>) -> SlotSet {
        numbers.iter().filter_map(|number| Slot::new(*number)).collect()
    }

    fn numbers(set: &SlotSet) -> BTreeSet<u16> {
        set.iter().map(u16::from).collect()
    }

    #[test]
    fn a_full_set_has_every_slot_and_other_lengths_are_no_set() {
        assert_eq!(SlotSet::full().len(), usize::from(Slot::COUNT));
        assert_eq!(SlotSet::full().to_bytes().len(), SlotSet::BYTES);
        assert_eq!(SlotSet::from_bytes(&[0; SlotSet::BYTES - 1]), None);
        assert_eq!(SlotSet::from_bytes(&[0; SlotSet::BYTES + 8]), None);
    }

    proptest! {
        #[test]
        fn a_set_does_what_sets_do(a in slots(), b in slots()) {
            let (mut sum, mut rest) = (set(&a), set(&a));
            sum.add(&set(&b));
            rest.subtract(&set(&b));
            prop_assert_eq!(numbers(&sum), &a | &b);
            prop_assert_eq!(numbers(&rest), &a - &b);
            prop_assert_eq!(numbers(&set(&a).intersection(&set(&b))), &a & &b);
            prop_assert_eq!(sum.len(), (&a | &b).len());
            prop_assert_eq!(SlotSet::from_bytes(&sum.to_bytes()), Some(sum.clone()));
            let mut none = set(&a);
            none.subtract(&set(&a));
            prop_assert!(none.is_empty() && none == SlotSet::empty() && none.iter().next().is_none());
            sum.retain(|slot| b.contains(&u16::from(slot)));
            prop_assert_eq!(numbers(&sum), b);
        }
    }
}
