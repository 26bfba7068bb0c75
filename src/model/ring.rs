//! Owns placement: the table that says, for each slot, which nodes hold it and in which order.
//!
//! Does not know who is alive or what is where: it is built anew from a set of members and then only read.
//! Invariant: it is a pure function of that set and the number of copies, so nodes that know the same members
//! agree on every slot, whatever order they learned them in.
//!
//! Every (slot, node) pair has a score (rendezvous hashing; Thaler and Ravishankar 1998), and no node may
//! hold more than 1.05 of the mean, which makes it a stable matching (Gale and Shapley 1962): each slot
//! proposes down its order of scores, a full node keeps its best-scoring slots, the refused propose on. Both
//! sides rank by the same score, so there is exactly one result. The second copies are a second matching
//! without the nodes chosen in the first, and so on. A slot that every remaining node has refused goes to the
//! best-scoring of them in spite of the cap: all owners of a slot are distinct and there are always as many
//! as can be. That concerns the later copies of a cluster with hardly more nodes than copies, where there is
//! little to choose from.

use std::{cmp::Reverse, collections::BinaryHeap, fmt, num::NonZeroU8, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    key::{NodeId, Slot},
    mix,
};

const SLOTS: usize = Slot::COUNT as usize;

/// Which nodes hold which slot.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Sorted and distinct.
    members: Box<[NodeId]>,
    copies: NonZeroU8,
    /// Owners of each slot as indices into `members`, `width` to a slot, primary first.
    owners: Box<[u16]>,
    width: usize,
    fingerprint: Fingerprint,
}

impl Ring {
    /// Works the table out: some milliseconds for 100 members, so not on a request's way. Duplicates are
    /// ignored, no members give a table without owners. (Members past the 65535th are left out: an index is
    /// 16 bits.)
    ///
    /// ```
    /// use shoal::model::{NodeId, Ring, Slot};
    /// use std::num::NonZeroU8;
    ///
    /// let copies = NonZeroU8::new(2).unwrap();
    /// let ring = |names: [&str; 3]| Ring::build(names.map(|name| NodeId::parse(name).unwrap()), copies);
    /// let (here, there) = (ring(["a", "b", "c"]), ring(["c", "a", "b"]));
    /// assert_eq!(here.fingerprint(), there.fingerprint());
    /// let slot = Slot::of(b"greeting");
    /// assert_eq!(here.primary(slot), there.primary(slot));
    /// assert_eq!(here.owners(slot).count(), 2);
    /// ```
    pub fn build(members: impl IntoIterator<Item = NodeId>, copies: NonZeroU8) -> Ring {
        let mut members: Vec<NodeId> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        members.truncate(usize::from(u16::MAX));

        let width = members.len().min(usize::from(copies.get()));
        let mut matching = Matching::new(&members, width);
        for rank in 0..width {
            matching.fill(rank);
        }
        let owners = matching.owners.into_boxed_slice();
        let fingerprint = Fingerprint::of(&members, copies);
        Ring { members: members.into_boxed_slice(), copies, owners, width, fingerprint }
    }

    /// All members, sorted.
    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    /// How many owners a slot has where there are enough members.
    pub fn copies(&self) -> NonZeroU8 {
        self.copies
    }

    /// The owners of a slot, all distinct, primary first: `copies` of them, or all members if those are
    /// fewer.
    pub fn owners(&self, slot: Slot) -> impl ExactSizeIterator<Item = &NodeId> + '_ {
        self.row(slot).iter().map(|member| &self.members[usize::from(*member)])
    }

    /// The first owner, which orders the writes; none without members.
    pub fn primary(&self, slot: Slot) -> Option<&NodeId> {
        self.owners(slot).next()
    }

    /// Whether that node is among the owners.
    pub fn owns(&self, node: &NodeId, slot: Slot) -> bool {
        self.owners(slot).any(|owner| owner == node)
    }

    /// For how many slots that node is the primary.
    pub fn slots_of(&self, node: &NodeId) -> usize {
        Slot::all().filter(|slot| self.primary(*slot) == Some(node)).count()
    }

    /// Equal on two nodes exactly when their tables are.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The owners of a slot as places in [`Ring::members`], primary first.
    pub fn owner_places(&self, slot: Slot) -> &[u16] {
        self.row(slot)
    }

    fn row(&self, slot: Slot) -> &[u16] {
        &self.owners[slot.index() * self.width..][..self.width]
    }
}

/// 64 bits that stand for a whole table: a hash of the sorted members and the number of copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    fn of(members: &[NodeId], copies: NonZeroU8) -> Fingerprint {
        let seed = u64::from(copies.get());
        Fingerprint(members.iter().fold(seed, |state, member| mix::hash(state, member.as_str().as_bytes())))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Fingerprint, FingerprintError> {
        let bits = u64::from_str_radix(text, 16).map(Fingerprint).map_err(|_| FingerprintError)?;
        if bits.to_string() == text { Ok(bits) } else { Err(FingerprintError) }
    }
}

/// Hex digits where people read it, the number itself between nodes: it goes with every forwarded request.
impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Fingerprint)
        }
    }
}

/// A text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 16 lower-case hex digits")]
pub struct FingerprintError;

/// How strongly a slot and a node want each other: 48 bits of the mix, and below them the complement of the
/// node's index, which makes the scores of a slot distinct and says whose a score is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score(u64);

impl Score {
    /// Below every score, because no node has the index 65535.
    const NONE: Score = Score(0);

    fn new(mixed: u64, node: u16) -> Score {
        Score((mixed | 0xffff) ^ u64::from(node))
    }

    fn node(self) -> u16 {
        !(self.0 as u16)
    }
}

/// How many of its best nodes a slot remembers. The few slots that propose further look through all nodes;
/// eight cost 1.5 times as long to build at 100 nodes with 3 copies.
const REMEMBERED: usize = 4;

/// The table while it is worked out.
struct Matching {
    seeds: Vec<u64>,
    /// Of each slot.
    best: Vec<[Score; REMEMBERED]>,
    owners: Vec<u16>,
    width: usize,
    cap: usize,
}

impl Matching {
    fn new(members: &[NodeId], width: usize) -> Matching {
        let seeds: Vec<u64> = members.iter().map(|id| mix::hash(0, id.as_str().as_bytes())).collect();
        let best = Slot::all().map(|slot| best_of(&seeds, slot)).collect();
        let nodes = members.len().max(1);
        // 1.05 of the mean in whole slots, but never so few that not all slots fit.
        let cap = SLOTS.div_ceil(nodes).max(SLOTS * 105 / (nodes * 100));
        Matching { seeds, best, owners: vec![0; SLOTS * width], width, cap }
    }

    /// Matches every slot with its owner of that rank, given those of the lower ranks.
    fn fill(&mut self, rank: usize) {
        let mut held: Vec<BinaryHeap<Reverse<(Score, Slot)>>> = vec![BinaryHeap::new(); self.seeds.len()];
        // The last node each slot has proposed to.
        let mut asked: Vec<Option<Score>> = vec![None; SLOTS];
        for start in Slot::all() {
            let mut next = Some(start);
            while let Some(slot) = next {
                let Some(score) = self.next_choice(slot, rank, asked[slot.index()]) else {
                    self.owners[slot.index() * self.width + rank] = self.favourite(slot, rank);
                    break;
                };
                asked[slot.index()] = Some(score);
                let node = score.node();
                let keeps = &mut held[usize::from(node)];
                keeps.push(Reverse((score, slot)));
                self.owners[slot.index() * self.width + rank] = node;
                // The refused one proposes on; that may be the slot that has just asked.
                next = (keeps.len() > self.cap).then(|| keeps.pop()).flatten().map(|Reverse((_, slot))| slot);
            }
        }
    }

    /// The best-scoring node below `after` that is not yet an owner.
    fn next_choice(&self, slot: Slot, rank: usize, after: Option<Score>) -> Option<Score> {
        let taken = &self.owners[slot.index() * self.width..][..rank];
        let open = |score: &Score| after.is_none_or(|after| *score < after) && !taken.contains(&score.node());
        let mut best = self.best[slot.index()].iter().copied().filter(|score| *score != Score::NONE);
        best.find(open).or_else(|| scores(&self.seeds, slot).filter(open).max())
    }

    /// Where a slot goes that all have refused.
    fn favourite(&self, slot: Slot, rank: usize) -> u16 {
        self.next_choice(slot, rank, None).map_or(0, Score::node)
    }
}

/// The best scores of a slot, best first; [`Score::NONE`] where there are fewer nodes.
fn best_of(seeds: &[u64], slot: Slot) -> [Score; REMEMBERED] {
    let mut best = [Score::NONE; REMEMBERED];
    for score in scores(seeds, slot) {
        if score <= best[REMEMBERED - 1] {
            continue;
        }
        let mut at = REMEMBERED - 1;
        while at > 0 && score > best[at - 1] {
            best[at] = best[at - 1];
            at -= 1;
        }
        best[at] = score;
    }
    best
}

fn scores(seeds: &[u64], slot: Slot) -> impl Iterator<Item = Score> + '_ {
    // A multiple of an odd number spreads the slot's few bits over the word before the nodes' are mixed in.
    let slot = (slot.index() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    seeds.iter().zip(0..).map(move |(seed, node)| Score::new(mix::mix(seed ^ slot), node))
}

#[cfg(test)]
mod tests;
