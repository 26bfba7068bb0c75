//! The table in force, where its members are, and how far this node may trust its own memory under it.
//!
//! A node answers for a slot by itself while every member has said what it lacks (see [`Ledger`]), this slot is not among
//! that, and the leases of the slot's other owners run; an only owner needs those of all members, one of which would act
//! in its place. A member that stays out of reach is not waited for. Invariant: a new table starts without any lease, and so
//! does the same table when this process has slept, or was taken for dead: others may have acted in its place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::{Ledger, NodeId, Ring, Slot, SlotSet};

/// How long a table waits for a member from which nothing at all is heard. Longer than anything but a fault
/// between two members whose gossip passes, which may last: until then requests ask everybody.
pub(super) const EXCUSED_AFTER: Duration = Duration::from_secs(2);

/// A table and what goes with it.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) ring: Arc<Ring>,
    /// Of the members, this node among them, and of those that have left and still hand over what they hold.
    pub(super) addresses: BTreeMap<NodeId, SocketAddr>,
    me: NodeId,
    /// Milliseconds since the process started, here as in all of this module.
    since_ms: u64,
    /// By the member's place in the ring: until when its lease runs.
    leases: Box<[AtomicU64]>,
    /// Until when those of all other members run.
    all_leases: AtomicU64,
    /// A bit for each slot in which somebody has something newer, or may have.
    unsynced: Box<[AtomicU64]>,
    /// Whether all have been heard.
    complete: AtomicBool,
    /// The latest time at which authority over some slot may have been lost, or came back.
    shaken_ms: AtomicU64,
    reports: Mutex<Reports>,
}

/// Who has to report, and what each said last.
type Reports = BTreeMap<NodeId, Option<Report>>;

/// The slots that are dirty by a member's answer, and when it was asked for that.
#[derive(Debug)]
struct Report {
    dirty: SlotSet,
    asked_us: u64,
}

impl Placement {
    /// The table of `members`. `departed` have left it and may still hold entries.
    pub(super) fn new(
        me: &NodeId,
        members: &BTreeMap<NodeId, SocketAddr>,
        departed: &BTreeMap<NodeId, SocketAddr>,
        copies: NonZeroU8,
        now_ms: u64,
    ) -> Placement {
        let ring = Arc::new(Ring::build(members.keys().cloned(), copies));
        let mut addresses = departed.clone();
        addresses.extend(members.iter().map(|(member, address)| (member.clone(), *address)));
        let expected = addresses.keys().filter(|member| *member != me).cloned().collect();
        Placement::begin(me, ring, addresses, expected, now_ms)
    }

    /// The same table, of which nothing is known any more.
    pub(super) fn again(&self, now_ms: u64) -> Placement {
        let expected = self.reports.lock().keys().cloned().collect();
        Placement::begin(&self.me, self.ring.clone(), self.addresses.clone(), expected, now_ms)
    }

    fn begin(
        me: &NodeId,
        ring: Arc<Ring>,
        addresses: BTreeMap<NodeId, SocketAddr>,
        expected: Vec<NodeId>,
        now_ms: u64,
    ) -> Placement {
        Placement {
            leases: ring.members().iter().map(|_| AtomicU64::new(0)).collect(),
            unsynced: SlotSet::full().words().map(AtomicU64::new).collect(),
            complete: AtomicBool::new(false),
            shaken_ms: AtomicU64::new(now_ms),
            all_leases: AtomicU64::new(if ring.members().len() == 1 { u64::MAX } else { 0 }),
            reports: Mutex::new(expected.into_iter().map(|member| (member, None)).collect()),
            ring,
            addresses,
            me: me.clone(),
            since_ms: now_ms,
        }
    }

    /// Whether it is the table of exactly these members at these addresses.
    pub(super) fn goes_by(&self, members: &BTreeMap<NodeId, SocketAddr>) -> bool {
        self.ring.members().len() == members.len()
            && members.iter().all(|(member, address)| {
                self.place(member).is_some() && self.addresses.get(member) == Some(address)
            })
    }

    /// Everybody that may hold something, but this node itself.
    pub(super) fn others(&self) -> impl Iterator<Item = (&NodeId, SocketAddr)> {
        let others = self.addresses.iter().filter(|(member, _)| **member != self.me);
        others.map(|(member, address)| (member, *address))
    }

    /// The members of the table, but this node itself.
    pub(super) fn other_members(&self) -> impl Iterator<Item = &NodeId> {
        self.ring.members().iter().filter(|member| **member != self.me)
    }

    /// Those that have left and may still hold something.
    pub(super) fn departed(&self) -> BTreeMap<NodeId, SocketAddr> {
        let expected = self.reports.lock();
        let gone = self.others().filter(|(member, _)| self.place(member).is_none());
        let known = gone.filter(|(member, _)| expected.contains_key(*member));
        known.map(|(member, address)| (member.clone(), address)).collect()
    }

    /// Whether this node is an owner of the slot.
    pub(super) fn owns(&self, slot: Slot) -> bool {
        self.ring.owns(&self.me, slot)
    }

    /// Whether this node, an owner, has all that was acknowledged, as far as it was told; what the other owners have done
    /// since, it may not know.
    pub(super) fn is_synced(&self, slot: Slot) -> bool {
        let (word, bit) = (slot.index() / 64, 1 << (slot.index() % 64));
        self.unsynced[word].load(Ordering::Acquire) & bit == 0
    }

    /// When it was put in force.
    pub(super) fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Whether this node may answer for the slot out of its own memory.
    pub(super) fn has_authority(&self, slot: Slot, now_ms: u64) -> bool {
        let mut is_owner = false;
        let places = self.ring.owner_places(slot);
        if places.len() == 1 && self.all_leases.load(Ordering::Acquire) <= now_ms {
            return false;
        }
        let all_stand_by = places.iter().all(|place| {
            let place = usize::from(*place);
            let is_me = self.ring.members()[place] == self.me;
            is_owner |= is_me;
            is_me || self.leases[place].load(Ordering::Acquire) > now_ms
        });
        is_owner && all_stand_by && self.is_synced(slot)
    }

    /// Whether authority over a slot, which this node had then and has now, was never lost in between. May be false without
    /// need: what happens to one slot counts for all.
    pub(super) fn has_kept_authority_since(&self, since_ms: u64) -> bool {
        self.shaken_ms.load(Ordering::Acquire) < since_ms
    }

    /// Whether this node may go by what was gathered from the reachable owners. Not right after a change of the table:
    /// others may still go by the former one, as one does that can be heard and has not reported.
    pub(super) fn may_act_settled(
        &self,
        now_ms: u64,
        is_unheard: impl Fn(&NodeId, SocketAddr) -> bool,
    ) -> bool {
        self.is_complete()
            || now_ms > self.since_ms + Ledger::LEASE_MS
                && self.have_reported(&self.reports.lock(), is_unheard)
    }

    /// Whether all have reported, but for those that need not.
    fn have_reported(&self, reports: &Reports, need_not: impl Fn(&NodeId, SocketAddr) -> bool) -> bool {
        reports.iter().all(|(member, report)| {
            report.is_some() || self.addresses.get(member).is_some_and(|address| need_not(member, *address))
        })
    }

    /// Whether everybody has been heard.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Members that have not reported yet: they may go by another table.
    pub(super) fn without_report(&self) -> Vec<NodeId> {
        if self.is_complete() {
            return Vec::new();
        }
        let reports = self.reports.lock();
        reports.iter().filter(|(_, report)| report.is_none()).map(|(member, _)| member.clone()).collect()
    }

    /// When the answer was asked for that a member gave last, in microseconds since the process started.
    pub(super) fn asked_us(&self, member: &NodeId) -> Option<u64> {
        Some(self.reports.lock().get(member)?.as_ref()?.asked_us)
    }

    /// A member has granted a lease, which began when it was asked: only these slots are dirty. An answer to an earlier question
    /// than the last answer's comes late, and counts for nothing. True if it says anything new.
    pub(super) fn renew(&self, member: &NodeId, dirty: SlotSet, asked_us: u64, now_ms: u64) -> bool {
        // The lock is held until the lease counts: an equal report that comes at the same time rests on what is merged here.
        let mut reports = self.reports.lock();
        let Some(is_new) = self.take_report(&mut reports, member, dirty, asked_us) else { return false };
        if let Some(place) = self.place(member) {
            // With a gap since the last one, or something new that is dirty, others may have acted meanwhile.
            if is_new || self.leases[place].load(Ordering::Acquire) <= now_ms {
                self.shaken_ms.fetch_max(now_ms, Ordering::AcqRel);
            }
            self.leases[place].store(asked_us / 1000 + Ledger::LEASE_MS, Ordering::Release);
            let others =
                self.ring.members().iter().zip(&self.leases).filter(|(member, _)| **member != self.me);
            let until_ms = others.map(|(_, lease)| lease.load(Ordering::Acquire)).min();
            self.all_leases.store(until_ms.unwrap_or(u64::MAX), Ordering::Release);
        }
        is_new
    }

    /// A member has said the same and granted no lease.
    pub(super) fn report(&self, member: &NodeId, dirty: SlotSet, asked_us: u64) -> bool {
        self.take_report(&mut self.reports.lock(), member, dirty, asked_us).unwrap_or(false)
    }

    /// Whether a report is anything new; none if it comes late.
    fn take_report(
        &self,
        reports: &mut Reports,
        member: &NodeId,
        dirty: SlotSet,
        asked_us: u64,
    ) -> Option<bool> {
        let mut is_new = !self.is_complete();
        match reports.get_mut(member) {
            Some(Some(last)) if asked_us <= last.asked_us => return None,
            Some(Some(last)) if last.dirty == dirty => last.asked_us = asked_us,
            Some(report) => {
                *report = Some(Report { dirty, asked_us });
                is_new = true;
            }
            None => {}
        }
        if is_new && self.is_complete() {
            self.merge(reports);
        }
        Some(is_new)
    }

    /// One that has left is gone for good, and with it what it had to say.
    pub(super) fn dismiss(&self, member: &NodeId) {
        self.reports.lock().remove(member);
    }

    /// Works out again what is unsynced. `free`: no lease that this node granted under another table still runs. Who
    /// `is_excused` is not waited for. After all have been heard once, each report counts at once.
    pub(super) fn reconsider(&self, free: bool, is_excused: impl Fn(&NodeId, SocketAddr) -> bool) {
        let reports = self.reports.lock();
        if self.is_complete() || free && self.have_reported(&reports, is_excused) {
            self.merge(&reports);
            self.complete.store(true, Ordering::Release);
        }
    }

    fn merge(&self, reports: &Reports) {
        let mut unsynced = SlotSet::empty();
        reports.values().flatten().for_each(|report| unsynced.add(&report.dirty));
        for (word, bits) in self.unsynced.iter().zip(unsynced.words()) {
            word.store(bits, Ordering::Release);
        }
    }

    fn place(&self, member: &NodeId) -> Option<usize> {
        self.ring.members().binary_search(member).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED_US: u64 = 50_000;

    /// What "a" knows when "b" has granted it a lease with this slot dirty.
    fn told_dirty(slot: Slot) -> (Placement, NodeId) {
        let [me, b] = ["a", "b"].map(|name| NodeId::parse(name).unwrap());
        let members = [&me, &b].map(|member| (member.clone(), SocketAddr::from(([127, 0, 0, 1], 1)))).into();
        let placement = Placement::new(&me, &members, &BTreeMap::new(), NonZeroU8::new(2).unwrap(), 0);
        assert!(placement.renew(&b, [slot].into_iter().collect(), ASKED_US, ASKED_US / 1000));
        placement.reconsider(true, |_, _| false);
        assert!(placement.is_complete() && !placement.is_synced(slot));
        (placement, b)
    }

    #[test]
    fn a_late_answer_replaces_no_newer_report_and_shortens_no_lease() {
        let [dirty, other] = [7, 8].map(|number| Slot::new(number).unwrap());
        let (placement, b) = told_dirty(dirty);
        assert!(!placement.renew(&b, SlotSet::empty(), ASKED_US - 20_000, ASKED_US / 1000));
        assert!(!placement.is_synced(dirty), "b said otherwise later");
        assert!(placement.has_authority(other, ASKED_US / 1000 + Ledger::LEASE_MS - 1));
        assert!(!placement.has_authority(other, ASKED_US / 1000 + Ledger::LEASE_MS));
    }

    #[test]
    fn an_equal_report_renews_the_lease_and_is_no_news() {
        let [dirty, other] = [7, 8].map(|number| Slot::new(number).unwrap());
        let (placement, b) = told_dirty(dirty);
        assert!(!placement.renew(
            &b,
            [dirty].into_iter().collect(),
            ASKED_US + 150_000,
            ASKED_US / 1000 + 150
        ));
        assert!(placement.has_authority(other, ASKED_US / 1000 + 150 + Ledger::LEASE_MS - 1));
        assert!(placement.renew(&b, SlotSet::empty(), ASKED_US + 300_000, ASKED_US / 1000 + 300));
        assert!(placement.has_authority(dirty, ASKED_US / 1000 + 150));
    }
}
