//! Asks every other member, again and again, what this node may lack; and answers the same question.
//!
//! What it means is in [`Ledger`] and [`Placement`]. The same exchange measures the round trip and carries version clocks.
//! Invariant: a lease is counted from the moment it was asked for, so that this node never trusts it longer than its grantor.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::placement::{EXCUSED_AFTER, Placement};
use super::{Contact, Node};
use crate::link::{Admission, LinkError, Reply, Request, SILENCE};
use crate::model::{Fingerprint, Ledger, NodeId, Slot, SlotSet};
use crate::net::{task, vital};

/// Pause between two questions to one member.
const PERIOD: Duration = Duration::from_millis(150);
/// The same while the tables differ, which is over soon.
const IMPATIENT_PERIOD: Duration = Duration::from_millis(25);
/// A process that did not run for this long may have been taken for gone by those that asked it something.
const ASLEEP: Duration = SILENCE;
/// How long one that has left may be silent before it counts as gone.
const DEPARTED_FOR: Duration = Duration::from_secs(5);
/// A member from which nothing was heard for this long counts as out of reach: its last lease, asked for at most a period
/// before that, is about to run out.
const UNHEARD_FOR: Duration = Duration::from_millis(Ledger::LEASE_MS - PERIOD.as_millis() as u64);

/// Asks the members of whatever table is in force.
pub(super) async fn run(node: Node) {
    loop {
        let placement = node.0.placement.load_full();
        let mut asking = JoinSet::new();
        for (member, address) in placement.others() {
            let asker =
                Asker { node: node.clone(), placement: placement.clone(), member: member.clone(), address };
            // Nobody waits for it: a panic would leave this node without that member's lease for ever.
            asking.spawn(task(vital("leases", asker.run())));
        }
        loop {
            tokio::select! {
                biased;
                () = node.0.table_changed.notified() => break,
                () = sleep(IMPATIENT_PERIOD), if !placement.is_complete() => node.reconsider(&placement),
            }
        }
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
        sleep(ASLEEP / 4).await;
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

struct Asker {
    node: Node,
    placement: Arc<Placement>,
    member: NodeId,
    address: SocketAddr,
}

impl Asker {
    async fn run(self) {
        let mut heard_at = Instant::now();
        loop {
            let pause = match self.ask().await {
                Ok(granted) => {
                    heard_at = Instant::now();
                    if granted { PERIOD } else { IMPATIENT_PERIOD }
                }
                Err(error) => {
                    let is_gone = matches!(error, LinkError::Refused(_)) || heard_at.elapsed() > DEPARTED_FOR;
                    if is_gone && self.placement.ring.members().binary_search(&self.member).is_err() {
                        self.placement.dismiss(&self.member);
                        return self.node.reconsider(&self.placement);
                    }
                    PERIOD
                }
            };
            sleep(pause).await;
        }
    }

    /// True if the member granted a lease.
    async fn ask(&self) -> Result<bool, LinkError> {
        let (node, ring) = (&self.node, self.placement.ring.fingerprint());
        let (asked, asked_ms) = (Instant::now(), node.uptime_ms());
        let request = Request::Lease {
            node_id: node.0.id.clone(),
            boot: node.0.boot,
            ring,
            clock: node.0.versions.latest(),
        };
        let deadline = asked + Duration::from_millis(Ledger::LEASE_MS);
        let (reply, dirty) = node.0.links.call((&self.member, self.address), &request, &[], deadline).await?;
        let Reply::Leased { ring: theirs, granted, clock, admission } = reply else { return Ok(false) };
        node.see_clock(clock);
        let contact =
            Contact { seen_ms: node.now_ms(), round_trip: Some(asked.elapsed()), admission: Some(admission) };
        node.0.contacts.lock().insert(self.member.clone(), contact);
        match SlotSet::from_bytes(&dirty) {
            Some(dirty) if granted && theirs == ring => {
                self.placement.renew(&self.member, dirty, asked_ms, node.uptime_ms());
                node.reconsider(&self.placement);
                if admission == Admission::Admitted {
                    node.admit();
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl Node {
    /// Answers the question of the process `boot` of a member.
    pub(super) fn grant_lease(&self, member: &NodeId, boot: u64, theirs: Fingerprint) -> (Reply, Vec<Bytes>) {
        // Under the lock that changes of the table take, so that table and dirty slots belong together.
        let (placement, dirty) = self.update_ledger(|ledger| {
            let placement = self.0.placement.load_full();
            let now_ms = self.uptime_ms();
            let mut dirty = ledger.grant(member, boot, theirs, &placement.ring, now_ms);
            if let Some(dirty) = &mut dirty {
                self.0.fences.add_promised_to_others(dirty, member, now_ms);
            }
            (placement, dirty)
        });
        // It is alive, whatever was noticed of the process before it.
        if let Some(address) = placement.addresses.get(member) {
            self.0.links.forgive(*address);
        }
        if !*self.0.clean.borrow() {
            self.0.owing.notify_one();
        }
        let ring = placement.ring.fingerprint();
        let (clock, admission) = (self.0.versions.latest(), self.admission());
        let reply = Reply::Leased { ring, granted: dirty.is_some(), clock, admission };
        (reply, dirty.map(|dirty| vec![Bytes::from(dirty.to_bytes())]).unwrap_or_default())
    }

    /// When this process last woke up; zero if it has run all the time.
    pub(super) fn woke_ms(&self) -> u64 {
        self.0.pulse.beat(self.uptime_ms())
    }

    /// Whether this node may answer for the slot out of its own memory.
    pub(super) fn has_authority(&self, placement: &Placement, slot: Slot) -> bool {
        let now_ms = self.uptime_ms();
        self.is_current(placement, now_ms)
            && placement.has_authority(slot, now_ms)
            && !self.0.fences.is_given_away(slot, &self.0.id, now_ms)
    }

    /// Whether this node may go by what was gathered from the reachable owners.
    pub(super) fn may_act_settled(&self, placement: &Placement) -> bool {
        let is_unheard = |address| !self.0.links.has_heard(address, UNHEARD_FOR);
        let now_ms = self.uptime_ms();
        self.is_current(placement, now_ms) && placement.may_act_settled(now_ms, is_unheard)
    }

    /// Whether what was heard under this placement still says something: this process has not slept since.
    pub(super) fn is_current(&self, placement: &Placement, now_ms: u64) -> bool {
        placement.since_ms() >= self.0.pulse.beat(now_ms)
    }

    /// The members that are out of this node's reach.
    pub(super) fn unheard(&self, placement: &Placement) -> Vec<NodeId> {
        let unheard =
            placement.others().filter(|(_, address)| !self.0.links.has_heard(*address, UNHEARD_FOR));
        unheard.map(|(member, _)| member.clone()).collect()
    }

    pub(super) fn reconsider(&self, placement: &Placement) {
        let (ring, now_ms) = (placement.ring.fingerprint(), self.uptime_ms());
        let bound = self.0.ledger.lock().is_bound_elsewhere(None, ring, now_ms);
        let may_excuse = now_ms >= placement.since_ms() + EXCUSED_AFTER.as_millis() as u64;
        let is_excused = |address| may_excuse && !self.0.links.has_heard(address, EXCUSED_AFTER);
        placement.reconsider(!bound, is_excused);
    }
}
