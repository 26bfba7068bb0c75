//! The membership view: which nodes there are, where, and how they are doing.
//!
//! Owns the memory of members that were declared dead (kept visible for [`Members::DEAD_VISIBLE_MS`]) and the
//! comparison of one sighting with the next. Does not detect anything: gossip says who is active, this says what changed.
//! Invariant: a node id stands in the view once, whatever identities the gossip layer holds for it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::net::SocketAddr;

use super::key::NodeId;

/// How a member is doing, in the words of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Answers probes.
    Healthy,
    /// Missed a probe; still counted as an owner of its slots.
    Suspect,
    /// Declared dead; kept visible for a while, owns nothing.
    Unhealthy,
}

impl Status {
    /// The word that the interface uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Healthy => "healthy",
            Status::Suspect => "suspect",
            Status::Unhealthy => "unhealthy",
        }
    }
}

/// One member as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, the ring's key.
    pub node_id: NodeId,
    /// Where it is, over TCP and UDP.
    pub address: SocketAddr,
    /// Tells one process from the next on the same address; ordered by start time.
    pub boot: u64,
    /// How it is doing.
    pub status: Status,
    /// When it took this status, in milliseconds of the uptime of the node whose view this is.
    pub since_ms: u64,
}

/// A member that the failure detector counts as active now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub node_id: NodeId,
    /// Where it is.
    pub address: SocketAddr,
    /// Its process.
    pub boot: u64,
    /// Whether it is under suspicion.
    pub suspect: bool,
}

/// What became of a member that is no longer active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It said goodbye.
    Left,
    /// It is dead.
    Dead,
    /// It counts as it did before: that it is dead is not believed yet.
    Doubtful,
}

/// What happened to a member between two sightings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not known, or was dead.
    Up,
    /// Same address or id, but a new process: its memory is empty.
    Restarted,
    /// It refuted a suspicion.
    Recovered,
    /// It missed a probe.
    Suspected,
    /// It was declared dead.
    Down,
    /// It said goodbye, or was forgotten by command.
    Left,
}

/// The view. The node itself is in it, always healthy, until it leaves.
#[derive(Clone, Debug)]
pub struct Members {
    me: NodeId,
    members: BTreeMap<NodeId, Member>,
}

impl Members {
    /// How long a dead member stays visible.
    pub const DEAD_VISIBLE_MS: u64 = 10 * 60 * 1000;

    /// The view of a node that knows only itself.
    #[must_use]
    pub fn new(me: NodeId, address: SocketAddr, boot: u64, now_ms: u64) -> Members {
        let own = Member { node_id: me.clone(), address, boot, status: Status::Healthy, since_ms: now_ms };
        Members { members: BTreeMap::from([(me.clone(), own)]), me }
    }

    /// The node whose view this is.
    #[must_use]
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// Every visible member in order of its name, the dead ones too.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The members that own slots: healthy and suspect ones.
    pub fn live(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| member.status != Status::Unhealthy)
    }

    /// Live members other than this node.
    pub fn peers(&self) -> impl Iterator<Item = &Member> {
        self.live().filter(|member| member.node_id != self.me)
    }

    /// One member by name.
    #[must_use]
    pub fn get(&self, node_id: &NodeId) -> Option<&Member> {
        self.members.get(node_id)
    }

    /// How many members are visible, and how many of them are healthy, suspect and dead.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for member in self.iter() {
            match member.status {
                Status::Healthy => counts.healthy += 1,
                Status::Suspect => counts.suspect += 1,
                Status::Unhealthy => counts.unhealthy += 1,
            }
        }
        counts
    }

    /// Takes the present sighting of all active peers and says what changed since the last one.
    ///
    /// `absence` tells what became of one that is no longer active. Of two identities with one node id the older process
    /// counts, so that every node shows the same one.
    pub fn observe(
        &mut self,
        active: impl IntoIterator<Item = Seen>,
        absence: impl FnMut(&Member) -> Absence,
        now_ms: u64,
    ) -> Vec<(Change, Member)> {
        let mut seen: BTreeMap<NodeId, Seen> = BTreeMap::new();
        for one in active {
            if one.node_id == self.me {
                continue;
            }
            match seen.entry(one.node_id.clone()) {
                Slot::Vacant(free) => drop(free.insert(one)),
                Slot::Occupied(mut held) if one.boot < held.get().boot => drop(held.insert(one)),
                Slot::Occupied(_) => {}
            }
        }
        let mut changes = Vec::new();
        self.bury_missing(&seen, absence, now_ms, &mut changes);
        for one in seen.into_values() {
            self.meet(one, now_ms, &mut changes);
        }
        changes
    }

    fn bury_missing(
        &mut self,
        seen: &BTreeMap<NodeId, Seen>,
        mut absence: impl FnMut(&Member) -> Absence,
        now_ms: u64,
        changes: &mut Vec<(Change, Member)>,
    ) {
        let me = &self.me;
        self.members.retain(|node_id, member| {
            if node_id == me || seen.contains_key(node_id) {
                return true;
            }
            match absence(member) {
                Absence::Left => {
                    changes.push((Change::Left, member.clone()));
                    return false;
                }
                Absence::Doubtful => return true,
                Absence::Dead => {}
            }
            if member.status != Status::Unhealthy {
                member.status = Status::Unhealthy;
                member.since_ms = now_ms;
                changes.push((Change::Down, member.clone()));
            }
            now_ms.saturating_sub(member.since_ms) < Self::DEAD_VISIBLE_MS
        });
    }

    fn meet(&mut self, seen: Seen, now_ms: u64, changes: &mut Vec<(Change, Member)>) {
        let status = if seen.suspect { Status::Suspect } else { Status::Healthy };
        let fresh = Member {
            node_id: seen.node_id.clone(),
            address: seen.address,
            boot: seen.boot,
            status,
            since_ms: now_ms,
        };
        let change = match self.members.get(&seen.node_id) {
            None => Change::Up,
            Some(known) if known.boot != seen.boot => Change::Restarted,
            Some(known) if known.status == Status::Unhealthy => Change::Up,
            Some(known) if known.status == status && known.address == seen.address => return,
            Some(_) if seen.suspect => Change::Suspected,
            Some(_) => Change::Recovered,
        };
        changes.push((change, fresh.clone()));
        self.members.insert(seen.node_id, fresh);
    }
}

/// Members by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answering probes.
    pub healthy: usize,
    /// Under suspicion.
    pub suspect: usize,
    /// Declared dead, still visible.
    pub unhealthy: usize,
}

impl Counts {
    /// All visible members.
    #[must_use]
    pub fn total(self) -> usize {
        self.healthy + self.suspect + self.unhealthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn seen(name: &str, port: u16, boot: u64, suspect: bool) -> Seen {
        Seen { node_id: id(name), address: SocketAddr::from(([127, 0, 0, 1], port)), boot, suspect }
    }

    fn view() -> Members {
        Members::new(id("me"), SocketAddr::from(([127, 0, 0, 1], 1)), 1, 0)
    }

    fn kinds(changes: Vec<(Change, Member)>) -> Vec<(Change, String)> {
        changes.into_iter().map(|(change, member)| (change, member.node_id.to_string())).collect()
    }

    #[test]
    fn a_member_comes_is_suspected_recovers_dies_and_returns() {
        let mut view = view();
        let mut step = |active: Vec<Seen>, now| kinds(view.observe(active, |_| Absence::Dead, now));
        assert_eq!(step(vec![seen("a", 2, 5, false)], 1), [(Change::Up, "a".into())]);
        assert_eq!(step(vec![seen("a", 2, 5, false)], 2), []);
        assert_eq!(step(vec![seen("a", 2, 5, true)], 3), [(Change::Suspected, "a".into())]);
        assert_eq!(step(vec![seen("a", 2, 5, false)], 4), [(Change::Recovered, "a".into())]);
        assert_eq!(step(vec![], 5), [(Change::Down, "a".into())]);
        assert_eq!(step(vec![seen("a", 2, 5, false)], 6), [(Change::Up, "a".into())]);
        assert_eq!(step(vec![seen("a", 2, 9, false)], 7), [(Change::Restarted, "a".into())]);
    }

    #[test]
    fn a_dead_member_stays_visible_for_ten_minutes() {
        let mut view = view();
        view.observe([seen("a", 2, 5, false)], |_| Absence::Dead, 0);
        view.observe([], |_| Absence::Dead, 1000);
        assert_eq!(view.counts().unhealthy, 1);
        view.observe([], |_| Absence::Dead, 1000 + Members::DEAD_VISIBLE_MS - 1);
        assert_eq!(view.counts().unhealthy, 1);
        view.observe([], |_| Absence::Dead, 1000 + Members::DEAD_VISIBLE_MS);
        assert_eq!(view.counts().total(), 1);
    }

    #[test]
    fn a_goodbye_removes_the_process_that_said_it_and_no_later_one() {
        let mut view = view();
        view.observe([seen("a", 2, 5, false)], |_| Absence::Dead, 0);
        let left = |member: &Member| if member.boot == 5 { Absence::Left } else { Absence::Dead };
        assert_eq!(kinds(view.observe([], left, 1)), [(Change::Left, "a".into())]);
        view.observe([seen("a", 2, 6, false)], left, 2);
        assert_eq!(kinds(view.observe([], left, 3)), [(Change::Down, "a".into())]);
    }

    #[test]
    fn one_whose_death_is_doubtful_counts_as_it_did() {
        let mut view = view();
        view.observe([seen("a", 2, 5, false)], |_| Absence::Dead, 0);
        assert_eq!(kinds(view.observe([], |_| Absence::Doubtful, 1)), []);
        assert_eq!(view.get(&id("a")).map(|member| member.status), Some(Status::Healthy));
        assert_eq!(kinds(view.observe([], |_| Absence::Dead, 2)), [(Change::Down, "a".into())]);
    }

    #[test]
    fn two_identities_of_one_node_show_as_the_older_process_in_any_order() {
        for order in [[7, 5], [5, 7]] {
            let mut view = view();
            view.observe(order.map(|boot| seen("a", boot as u16, boot, false)), |_| Absence::Dead, 0);
            assert_eq!(view.get(&id("a")).unwrap().boot, 5);
        }
    }
}
