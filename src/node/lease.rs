//! The lease exchange: what this node asks every other member and answers, and what it makes of the answers.
//!
//! What a lease means is in [`Ledger`] and [`Placement`]; when it is asked for is up to [`super::beat`]. A question that is not
//! answered at once is answered by the next frame the other way, which is this node's own question, so that one frame each way
//! carries all. The exchange also measures the round trip, and carries version clocks and admission. Invariant: a lease is
//! counted from the moment it was asked for, so that this node never trusts it longer than its grantor.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::beat::PERIOD;
use super::offset::Offset;
use super::placement::{EXCUSED_AFTER, Placement};
use super::{Contact, Node};
use crate::gossip::Witness;
use crate::link::{Admission, LeaseAnswer, LeaseQuestion, LeaseReply, Pool, Reply, Request, SILENCE, Sender};
use crate::model::{Ledger, NodeId, Slot, SlotSet, Status};

/// A process that did not run for this long may have been taken for gone by those that asked it something.
const ASLEEP: Duration = SILENCE;
/// A member from which nothing was heard for this long counts as out of reach: its last lease, asked for at most a period
/// before that, is about to run out.
pub(super) const UNHEARD_FOR: Duration = Duration::from_millis(Ledger::LEASE_MS - PERIOD.as_millis() as u64);

/// The questions of this process, and those of others that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Questions {
    last_us: AtomicU64,
    waiting: Mutex<BTreeMap<NodeId, Waiting>>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    boot: u64,
    question: LeaseQuestion,
    since_us: u64,
}

impl Questions {
    /// The time of a question that is asked now. No two have the same.
    fn next_us(&self, now_us: u64) -> u64 {
        let later = |last: u64| now_us.max(last + 1);
        let last = self.last_us.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(later(last)));
        later(last.unwrap_or_default())
    }

    /// Keeps a member's question until it is answered, unless it has asked a later one.
    fn keep(&self, member: &NodeId, new: Waiting) {
        let mut waiting = self.waiting.lock();
        let is_late =
            |kept: &Waiting| kept.boot == new.boot && kept.question.asked_us > new.question.asked_us;
        if !waiting.get(member).is_some_and(is_late) {
            waiting.insert(member.clone(), new);
        }
    }

    fn take(&self, member: &NodeId) -> Option<Waiting> {
        self.waiting.lock().remove(member)
    }

    /// Drops the questions of those that are not asked themselves: no frame to them would carry the answer.
    pub(super) fn retain(&self, is_asked: impl Fn(&NodeId) -> bool) {
        self.waiting.lock().retain(|member, _| is_asked(member));
    }
}

/// When this process last ran, and when it last woke from not running: stopped, or starved.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    beat_ms: AtomicU64,
    woke_ms: AtomicU64,
}

impl Pulse {
    /// Notes that others may have taken this process for gone until now, as if it had slept.
    pub(super) fn wake(&self, now_ms: u64) {
        self.woke_ms.fetch_max(now_ms, Ordering::AcqRel);
    }

    /// Notes that the process runs; from time to time, and whenever it matters. Gives when it last woke up.
    fn beat(&self, now_ms: u64) -> u64 {
        let last_ms = self.beat_ms.load(Ordering::Acquire);
        if now_ms.saturating_sub(last_ms) >= ASLEEP.as_millis() as u64 {
            // Before another thread can see that the process runs again.
            self.wake(now_ms);
        }
        // Every request gets here, and all threads share this memory: it is written once a millisecond at most.
        if now_ms > last_ms {
            self.beat_ms.fetch_max(now_ms, Ordering::AcqRel);
        }
        self.woke_ms.load(Ordering::Acquire)
    }
}

/// Keeps the pulse; and when this process has slept, asks everybody again what it may lack.
pub(super) async fn keep_pulse(node: Node) {
    loop {
        if !node.is_current(&node.0.placement.load(), node.uptime_ms()) {
            start_over(&node);
        }
        sleep(ASLEEP / 2).await;
    }
}

/// Puts the table in force anew: others may have acted in this node's place, and what it was told before says nothing.
fn start_over(node: &Node) {
    // Under the lock that changes of the table take.
    let again = node.update_ledger(|_| {
        let again = Arc::new(node.0.placement.load().again(node.uptime_ms()));
        node.0.placement.store(again.clone());
        again
    });
    node.reconsider(&again);
    node.0.table_changed.notify_one();
}

impl Node {
    /// What gossip may know of a member by its links: they are used several times a second.
    #[must_use]
    pub fn witness(links: &Arc<Pool>) -> Witness {
        let links = Arc::downgrade(links);
        Witness::new(move |address| {
            links.upgrade().is_some_and(|links| links.is_linked(address, UNHEARD_FOR))
        })
    }

    /// Whether TCP to the member at `address` works.
    pub(super) fn is_linked(&self, address: SocketAddr) -> bool {
        self.0.links.is_linked(address, UNHEARD_FOR)
    }

    /// What this node asks a member now, with the answer to what that one has asked.
    pub(super) fn ask(&self, placement: &Placement, member: &NodeId, at_once: bool) -> (Request, Vec<Bytes>) {
        // An answer shows the member that its question has arrived directly, which it cannot have by a detour.
        let is_direct = placement.addresses.get(member).is_some_and(|at| !self.0.links.has_detour(*at));
        let waiting = if is_direct { self.0.questions.take(member) } else { None };
        let (answer, slots) = waiting.map(|waiting| self.grant(member, waiting)).unzip();
        let question = self.question(placement, false);
        (Request::Lease { sender: self.sender(), question, answer, at_once }, slots.unwrap_or_default())
    }

    fn question(&self, placement: &Placement, is_back: bool) -> LeaseQuestion {
        let asked_us = self.0.questions.next_us(self.uptime_us());
        LeaseQuestion { ring: placement.ring.fingerprint(), asked_us, is_back }
    }

    /// Answers a member's question.
    pub(super) fn answer_now(&self, asker: &Sender, question: LeaseQuestion) -> (Reply, Vec<Bytes>) {
        self.see_asker(asker, question);
        let waiting = Waiting { boot: asker.boot, question, since_us: self.uptime_us() };
        let (answer, slots) = self.grant(&asker.node_id, waiting);
        let placement = self.0.placement.load();
        let is_mute = |at: &SocketAddr| !self.0.links.has_detour(*at) && self.is_unheard(*at);
        let asker = placement.addresses.get(&asker.node_id).copied().filter(is_mute);
        let question = asker.map(|_| self.question(&placement, true));
        (Reply::Leased(Box::new(LeaseReply { sender: self.sender(), answer, question })), slots)
    }

    /// Answers a member's question with this node's own next one.
    pub(super) fn answer_later(&self, asker: &Sender, question: LeaseQuestion) {
        self.see_asker(asker, question);
        if self.0.placement.load().addresses.contains_key(&asker.node_id) {
            self.answer_at_next_call(asker, question);
        }
    }

    /// Keeps a member's question until this node's next frame to that member, which carries the answer.
    pub(super) fn answer_at_next_call(&self, asker: &Sender, question: LeaseQuestion) {
        let waiting = Waiting { boot: asker.boot, question, since_us: self.uptime_us() };
        self.0.questions.keep(&asker.node_id, waiting);
    }

    fn see_asker(&self, asker: &Sender, question: LeaseQuestion) {
        self.0.clocks.see(&asker.node_id, asker.boot, question.asked_us, self.uptime_us());
        // It is alive, whatever was noticed of the process before it.
        if let Some(address) = self.0.placement.load().addresses.get(&asker.node_id) {
            self.0.links.forgive(*address);
        }
    }

    /// Takes what each frame of the lease exchange says of its sender.
    pub(super) fn see_sender(&self, sender: &Sender) {
        self.see_clock(sender.clock);
        self.0.reach.hear(&sender.node_id, &sender.unreached, self.uptime_ms());
    }

    fn sender(&self) -> Sender {
        Sender {
            node_id: self.0.id.clone(),
            boot: self.0.boot,
            clock: self.0.versions.latest(),
            wall_ms: self.wall_ms(),
            admission: self.admission(),
            unreached: self.0.reach.unreached(),
        }
    }

    fn grant(
        &self,
        member: &NodeId,
        Waiting { boot, question, since_us }: Waiting,
    ) -> (LeaseAnswer, Vec<Bytes>) {
        // Under the lock that changes of the table take, so that table and dirty slots belong together.
        let mut ledger = self.0.ledger.lock();
        let is_known = ledger.knows(member, boot);
        let (ring, dirty) = {
            let placement = self.0.placement.load();
            let (ring, asked) = (&placement.ring, (boot, question.asked_us));
            let now_ms = self.uptime_ms();
            let mut dirty = ledger.grant(member, asked, question.ring, ring, now_ms);
            if let Some(dirty) = &mut dirty {
                self.0.fences.add_promised_to_others(dirty, member, now_ms);
            }
            (ring.fingerprint(), dirty)
        };
        if !is_known {
            self.publish_ledger(&ledger);
        }
        drop(ledger);
        if !*self.0.clean.borrow() {
            self.0.owing.notify_one();
        }
        let waited_us = self.uptime_us().saturating_sub(since_us);
        let is_member = self.members().get(member).is_some_and(|known| known.status != Status::Unhealthy);
        let asked_us = question.asked_us;
        let (granted, is_back) = (dirty.is_some(), question.is_back);
        let answer = LeaseAnswer { boot, asked_us, waited_us, ring, granted, is_back, is_member };
        (answer, dirty.map(|dirty| vec![Bytes::from(dirty.to_bytes())]).unwrap_or_default())
    }

    /// Takes an answer that came with a member's own question. It was asked for under the table in force, or counts for nothing.
    pub(super) fn hear_told(&self, sender: &Sender, answer: &LeaseAnswer, slots: &[u8]) {
        let placement = self.0.placement.load_full();
        let Some(address) = placement.addresses.get(&sender.node_id) else { return };
        let was_asked = answer.asked_us <= self.0.questions.last_us.load(Ordering::Acquire);
        if answer.boot != self.0.boot || !was_asked {
            return;
        }
        // This node's question has reached it.
        if answer.is_back {
            self.0.reach.hear_back(&sender.node_id, self.uptime_ms());
        } else {
            self.0.links.hear(*address);
        }
        if answer.asked_us / 1000 > placement.since_ms() {
            self.hear_answer(&placement, sender, answer, slots);
        }
    }

    /// Takes a member's answer to a question that was asked under this placement. True if it granted a lease.
    pub(super) fn hear_answer(
        &self,
        placement: &Placement,
        sender: &Sender,
        answer: &LeaseAnswer,
        slots: &[u8],
    ) -> bool {
        self.0.reach.hear_membership(&sender.node_id, answer.is_member, self.uptime_ms());
        let round_trip_us = self.uptime_us().saturating_sub(answer.asked_us).saturating_sub(answer.waited_us);
        self.note_contact(sender, Duration::from_micros(round_trip_us));
        let Some(dirty) = SlotSet::from_bytes(slots) else { return false };
        if !answer.granted || answer.ring != placement.ring.fingerprint() {
            return false;
        }
        // No lease: this node cannot call the member, so it could not copy its writes to it.
        let is_new = if answer.is_back {
            placement.report(&sender.node_id, dirty, answer.asked_us)
        } else {
            placement.renew(&sender.node_id, dirty, answer.asked_us, self.uptime_ms())
        };
        if is_new {
            self.reconsider(placement);
        }
        if sender.admission == Admission::Admitted {
            self.admit();
        }
        true
    }

    fn note_contact(&self, sender: &Sender, round_trip: Duration) {
        let mut contacts = self.0.contacts.lock();
        let contact = contacts.entry(sender.node_id.clone()).or_default();
        let (offset, news) = Offset::measure(contact.offset, sender.wall_ms, self.wall_ms(), round_trip);
        *contact = Contact {
            seen_ms: Some(self.uptime_ms()),
            round_trip: Some(round_trip),
            admission: Some(sender.admission),
            offset: Some(offset),
        };
        drop(contacts);
        if let Some(news) = news {
            offset.tell(&sender.node_id, news);
        }
    }

    /// When this process last woke up; zero if it has run all the time.
    pub(super) fn woke_ms(&self) -> u64 {
        self.0.pulse.beat(self.uptime_ms())
    }

    /// Whether this node may answer for the slot out of its own memory.
    pub(super) fn has_authority(&self, placement: &Placement, slot: Slot) -> bool {
        self.had_authority(placement, slot, self.uptime_ms())
    }

    /// The same for a moment just past. A stop of this process since then counts as a stop after the answer.
    pub(super) fn had_authority(&self, placement: &Placement, slot: Slot, now_ms: u64) -> bool {
        self.is_current(placement, now_ms)
            && placement.has_authority(slot, now_ms)
            && !self.0.fences.is_given_away(slot, &self.0.id, now_ms)
    }

    /// Whether this node may go by what was gathered from the reachable owners.
    pub(super) fn may_act_settled(&self, placement: &Placement) -> bool {
        let now_ms = self.uptime_ms();
        let is_unheard =
            |member: &NodeId, address| self.is_unheard(address) && !self.0.reach.is_calling(member, now_ms);
        self.is_current(placement, now_ms) && placement.may_act_settled(now_ms, is_unheard)
    }

    /// Whether what was heard under this placement still says something: this process has not slept since.
    pub(super) fn is_current(&self, placement: &Placement, now_ms: u64) -> bool {
        placement.since_ms() >= self.0.pulse.beat(now_ms) || cfg!(feature = "fault-no-wake")
    }

    /// The members that are out of this node's reach.
    pub(super) fn unheard(&self, placement: &Placement) -> Vec<NodeId> {
        let unheard = placement.others().filter(|(_, address)| self.is_unheard(*address));
        unheard.map(|(member, _)| member.clone()).collect()
    }

    /// Whether a member is out of this node's reach.
    pub(super) fn is_unheard(&self, address: SocketAddr) -> bool {
        !self.0.links.has_heard(address, UNHEARD_FOR)
    }

    pub(super) fn reconsider(&self, placement: &Placement) {
        let (ring, now_ms) = (placement.ring.fingerprint(), self.uptime_ms());
        let bound = self.0.ledger.lock().is_bound_elsewhere(None, ring, now_ms);
        // A process that has slept has heard nobody.
        let may_excuse = now_ms >= self.woke_ms() + EXCUSED_AFTER.as_millis() as u64;
        // A member that calls this node and cannot be called will report with its next call.
        let is_excused = |member: &NodeId, address| {
            let is_silent = !self.0.links.has_heard(address, EXCUSED_AFTER);
            may_excuse && is_silent && !self.0.reach.is_calling(member, now_ms)
        };
        placement.reconsider(!bound, is_excused);
    }
}
