//! The protocol state: foca, its timers, and what foca does not do by itself.
//!
//! Takes datagrams, commands and instants; gives datagrams, events and a view. Does no I/O, so that a whole cluster of
//! machines runs in one test without a socket. Invariant: after every step [`Machine::refresh`] leaves the view equal to
//! foca's active members, and those whose death it does not believe yet.

mod doubt;
mod entrance;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, OwnedNotification, State, Timer};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tracing::debug;

pub use self::doubt::Witness;
use self::doubt::{Health, Hearsay};
use super::codec::{self, BincodeCodec};
use super::envelope::{Envelope, Rejected};
use super::farewell::{Farewell, Farewells};
use super::identity::Identity;
use super::path::Paths;
use super::timers::Timers;
use super::{GossipConfig, GossipEvent};
use crate::model::{Absence, Member, Members, NodeId, Seen};
use crate::net::NodeClock;

/// A timer may run so much early if the process is awake anyway. Otherwise timers of equal periods drift apart, and each of them
/// wakes the process.
const EARLY: Duration = Duration::from_millis(5);
/// How often a node that is alone, or idle for another reason, calls out.
const WATCHDOG_PERIOD: Duration = Duration::from_secs(1);
/// How many addresses one call goes to, seeds and former peers each.
const WATCHDOG_CALLS_MAX: usize = 16;
/// The step of foca that sends a ping.
const PROBE: &str = "probe";
/// A loop that wakes this much later than it asked for was stopped or starved.
pub(super) const LATE: Duration = Duration::from_millis(150);

/// The present, on all clocks.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// For timers.
    pub(super) instant: Instant,
    /// For how long something has been so.
    pub(super) uptime_ms: u64,
    /// For datagrams.
    pub(super) wall_ms: u64,
}

impl Now {
    pub(super) fn by(clock: &NodeClock) -> Now {
        Now { instant: Instant::now(), uptime_ms: clock.uptime_ms(), wall_ms: clock.wall_ms() }
    }
}

pub(super) struct Machine {
    foca: Foca<Identity, BincodeCodec, StdRng, Farewells>,
    runtime: AccumulatingRuntime<Identity>,
    timers: Timers,
    envelope: Envelope,
    /// What the last datagram held; kept for its memory.
    opened: Vec<u8>,
    farewells: Farewells,
    paths: Paths,
    health: Health,
    hearsay: Hearsay,
    suspect_to_down_after: Duration,
    members: Members,
    /// The hash of foca's active members that the view was last made from.
    sighting: Option<u64>,
    seeds: Vec<SocketAddr>,
    watchdog_at: Instant,
    /// Whether foca probes and gossips.
    is_active: bool,
    name_taken: Option<SocketAddr>,
    has_left: bool,
    /// Datagrams to send.
    pub(super) outbox: Vec<(SocketAddr, Vec<u8>)>,
    /// What happened since the caller last took these.
    pub(super) events: Vec<GossipEvent>,
}

impl Machine {
    pub(super) fn new(
        config: &GossipConfig,
        envelope: Envelope,
        identity: Identity,
        witness: Witness,
        now: Now,
    ) -> Machine {
        let farewells = Farewells::new();
        Machine {
            members: Members::new(identity.node_id.clone(), identity.address, identity.boot, now.uptime_ms),
            foca: Foca::with_custom_broadcast(
                identity,
                config.detection.foca_config(),
                StdRng::seed_from_u64(config.seed),
                BincodeCodec::default(),
                farewells.clone(),
            ),
            runtime: AccumulatingRuntime::new(),
            timers: Timers::default(),
            envelope,
            opened: Vec::new(),
            farewells,
            paths: Paths::new(config.seed),
            health: Health::new(witness),
            hearsay: Hearsay::default(),
            suspect_to_down_after: config.detection.foca_config().suspect_to_down_after,
            sighting: None,
            seeds: Vec::new(),
            watchdog_at: now.instant + WATCHDOG_PERIOD,
            is_active: false,
            name_taken: None,
            has_left: false,
            outbox: Vec::new(),
            events: Vec::new(),
        }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// When [`Machine::run_timers`] wants to be called next.
    pub(super) fn next_deadline(&self) -> Instant {
        self.timers.next_deadline().map_or(self.watchdog_at, |first| first.min(self.watchdog_at))
    }

    /// # Errors
    /// When the datagram is not one of this cluster's; then nothing has changed.
    pub(super) fn receive(&mut self, datagram: &[u8], now: Now) -> Result<(), Rejected> {
        let mut payload = std::mem::take(&mut self.opened);
        let opened = self.envelope.open(datagram, now.wall_ms, &mut payload);
        if opened.is_ok() {
            self.take_in(&payload, now);
        }
        self.opened = payload;
        opened
    }

    /// The process did not run for `lateness`: nobody's silence in that time is held against them.
    pub(super) fn excuse(&mut self, lateness: Duration) {
        self.timers.shift(lateness);
        self.watchdog_at += lateness;
        self.events.push(GossipEvent::Stalled(lateness));
    }

    pub(super) fn run_timers(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.instant + EARLY) {
            if self.has_left || self.is_refuted(&timer) {
                continue;
            }
            self.run_timer(timer, now);
        }
        if self.watchdog_at <= now.instant {
            self.watchdog_at = now.instant + WATCHDOG_PERIOD;
            self.call_out_if_idle(now);
        }
    }

    fn run_timer(&mut self, timer: Timer<Identity>, now: Now) {
        let mut step = "timer";
        match &timer {
            Timer::ProbeRandomMember(_) => {
                self.conclude_probe(now);
                step = PROBE;
            }
            Timer::SendIndirectProbe { .. } => self.ask_for_a_sign(now),
            // A refutation would not arrive here.
            Timer::ChangeSuspectToDown { member_id, .. } if self.health.doubts(member_id.address) => {
                return self.timers.submit(now.instant + self.suspect_to_down_after, timer);
            }
            _ => {}
        }
        let result = self.foca.handle_timer(timer, &mut self.runtime);
        self.settle(step, result, now);
    }

    pub(super) fn announce(&mut self, addresses: &[SocketAddr], now: Now) {
        for &address in addresses {
            if address == self.foca.identity().address {
                continue;
            }
            if !self.seeds.contains(&address) && self.seeds.len() < WATCHDOG_CALLS_MAX {
                self.seeds.push(address);
            }
            self.greet(address, now);
        }
    }

    pub(super) fn list(&self) -> Vec<u8> {
        let mut members = vec![foca::Member::alive(self.foca.identity().clone())];
        members.extend(self.foca.iter_membership_state().cloned());
        // The dead may be many, and matter least.
        members.sort_by_key(|member| member.state() == State::Down);
        codec::encode_list(&members).unwrap_or_default()
    }

    pub(super) fn apply(&mut self, list: &[u8], now: Now) {
        // To one that is deaf every list says that it is dead; it would renew again and again, and nobody would take it back.
        if self.has_left || self.health.is_deaf() {
            return;
        }
        let members = match codec::decode_list(list) {
            Ok(members) => members,
            Err(error) => return debug!(%error, "ignored a member list"),
        };
        let me = self.foca.identity();
        let former =
            members.iter().map(foca::Member::id).filter(|id| id.address == me.address && id.boot != me.boot);
        // A process that ran here before, with a clock ahead of ours: without this the others would keep its identity.
        if let Some(epoch) = former.map(|id| id.epoch).max().filter(|epoch| *epoch >= me.epoch) {
            let result = self.foca.change_identity(me.outliving(epoch), &mut self.runtime);
            self.settle("outliving a former process", result, now);
        }
        let result = self.foca.apply_many(members.into_iter(), true, &mut self.runtime);
        self.settle("member list", result, now);
    }

    /// Makes everybody forget a dead member. False if it is unknown or alive.
    pub(super) fn forget(&mut self, node_id: &NodeId, now: Now) -> bool {
        let dead = |members: &Members| {
            members
                .get(node_id)
                .filter(|member| member.status == crate::model::Status::Unhealthy)
                .map(|m| m.boot)
        };
        let Some(boot) = dead(&self.members) else { return false };
        self.say_farewell(&Farewell { node_id: node_id.clone(), boot });
        let result = self.foca.gossip(&mut self.runtime);
        self.settle("forget", result, now);
        true
    }

    /// Says goodbye. Called again, says it again to other members.
    pub(super) fn leave(&mut self, now: Now) {
        let me = self.foca.identity().clone();
        let result = if self.has_left {
            self.foca.gossip(&mut self.runtime)
        } else {
            self.say_farewell(&Farewell { node_id: me.node_id, boot: me.boot });
            self.foca.leave_cluster(&mut self.runtime)
        };
        self.settle("leave", result, now);
        self.has_left = true;
    }

    /// Brings the view up to date; true if it changed.
    pub(super) fn refresh(&mut self, now: Now) -> bool {
        let sighting = self.sighting();
        let is_as_before = self.sighting.replace(sighting) == Some(sighting);
        // What becomes of a missing member depends on time and on farewells, which the hash does not cover.
        let nobody_is_missing = self.members.counts().unhealthy == 0 && self.hearsay.is_empty();
        if self.has_left || is_as_before && nobody_is_missing {
            return false;
        }
        let seen = self.foca.iter_members().map(|member| Seen {
            node_id: member.id().node_id.clone(),
            address: member.id().address,
            boot: member.id().boot,
            suspect: member.state() == State::Suspect,
        });
        let before = self.members.counts();
        let farewells = &self.farewells;
        let mut is_doubtful = self.hearsay.look(&self.health, now.instant);
        let absence = move |member: &Member| {
            if farewells.has_left(&member.node_id, member.boot) {
                Absence::Left
            } else if is_doubtful(member) {
                Absence::Doubtful
            } else {
                Absence::Dead
            }
        };
        let changes = self.members.observe(seen, absence, now.uptime_ms);
        let changed = !changes.is_empty() || before != self.members.counts();
        self.events.extend(changes.into_iter().map(|(change, member)| GossipEvent::Member(change, member)));
        self.watch_for_own_name();
        changed
    }

    /// A hash of what the view shows of the active members, in any order.
    fn sighting(&self) -> u64 {
        let one = |member: &foca::Member<Identity>| {
            let mut hasher = DefaultHasher::new();
            (member.id().boot, member.id().address, member.state() == State::Suspect).hash(&mut hasher);
            hasher.finish()
        };
        self.foca.iter_members().map(one).fold(0, u64::wrapping_add)
    }

    fn watch_for_own_name(&mut self) {
        let me = &self.foca.identity().node_id;
        let other = self.foca.iter_members().find(|member| member.id().node_id == *me);
        let taken = other.map(|member| member.id().address);
        if let Some(address) = taken.filter(|_| taken != self.name_taken) {
            self.events.push(GossipEvent::NameTaken(address));
        }
        self.name_taken = taken;
    }

    /// Foca fires a suspicion's timer even after the suspect refuted it, and then tells it that it was declared down.
    fn is_refuted(&self, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        !self.foca.iter_membership_state().any(|member| {
            member.id() == member_id
                && member.state() == State::Suspect
                && member.incarnation() == *incarnation
        })
    }

    /// With no active member foca goes idle and its timers stop, so that two nodes that lost each other would stay apart. The
    /// same after a renewal, until somebody writes to the new identity; which nobody does if all were renewed at once.
    fn call_out_if_idle(&mut self, now: Now) {
        if self.has_left || self.is_active {
            return;
        }
        let former =
            self.foca.iter_membership_state().map(|member| member.id().address).take(WATCHDOG_CALLS_MAX);
        let mut addresses: Vec<_> = former.chain(self.seeds.iter().copied()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        for address in addresses {
            self.greet(address, now);
        }
    }

    /// Foca drops what was meant for the process that ran here before. To one that knows nobody it says who the members are.
    fn greet_who_asks_for_predecessor(&mut self, payload: &[u8], now: Now) {
        if self.is_active {
            return;
        }
        let me = self.foca.identity();
        // What cannot be read is foca's to refuse.
        let Ok(header) = codec::decode_item::<foca::Header<Identity>>(payload) else { return };
        if header.dst.address == me.address && header.dst != *me && header.message != foca::Message::Announce
        {
            self.greet(header.src.address, now);
        }
    }

    fn greet(&mut self, address: SocketAddr, now: Now) {
        // Only the address of an announcement's destination counts; who lives there is what it asks for.
        let anyone = Identity { address, epoch: 0, boot: 0, ..self.foca.identity().clone() };
        let result = self.foca.announce(anyone, &mut self.runtime);
        self.settle("announce", result, now);
    }

    fn say_farewell(&mut self, farewell: &Farewell) {
        let said = farewell
            .encode()
            .map_err(|error| error.to_string())
            .and_then(|bytes| self.foca.add_broadcast(&bytes).map_err(|error| error.to_string()));
        if let Err(error) = said {
            debug!(error, "could not say farewell");
        }
    }

    fn post(&mut self, to: SocketAddr, payload: &[u8], now: Now) {
        let mut datagram = Vec::with_capacity(payload.len() + super::envelope::OVERHEAD_BYTES);
        self.envelope.seal(payload, now.wall_ms, &mut datagram);
        self.outbox.push((to, datagram));
    }

    /// Collects what a step of foca produced.
    fn settle(&mut self, step: &str, result: Result<(), foca::Error>, now: Now) {
        if let Err(error) = result {
            debug!(%error, step, "gossip step refused");
        }
        while let Some((to, payload)) = self.runtime.to_send() {
            if step == PROBE {
                self.note_ping(&payload, now);
            }
            self.post(to.address, &payload, now);
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers.submit(now.instant + after, timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::Active => self.is_active = true,
                OwnedNotification::Idle | OwnedNotification::Defunct => self.is_active = false,
                OwnedNotification::Rejoin(_) => {
                    self.is_active = false;
                    self.watchdog_at = now.instant;
                    self.events.push(GossipEvent::Renewed);
                }
                _ => {}
            }
        }
    }
}
