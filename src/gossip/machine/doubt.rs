//! Local health, as in Lifeguard (Dadgar, Phillips and Currey 2018): a node that nobody answers doubts itself first.
//!
//! Silence after a ping may be the target's death, or this node is deaf, or mute. What tells them apart is whether anybody at all
//! has answered since, and whether the target shows itself by other means. Invariant: while no answer arrives, no member
//! that the witness vouches for is suspected or declared dead by this node.
//!
//! Deaths that others tell are doubted, too. A node that was alone for a while declares everybody dead, and spreads that when it
//! comes back. Each member refutes its own death when it hears of it; until then the others would take each other for dead.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foca::{Message, ProbeNumber};
use tokio::time::Instant;

use super::super::{GossipEvent, Identity, codec};
use super::{Machine, Now};
use crate::model::{Member, NodeId, Status};

/// How many others are asked for a sign when a ping is not answered.
const ASKED: usize = 3;
/// So many probes in a row without an answer are told: about a second.
const TOLD_AFTER: u32 = 5;

/// For how long this node does not believe the death of a member that nobody suspected and that is vouched for. A living member
/// refutes its death within a probe's period or two.
const DISBELIEVED: Duration = Duration::from_millis(600);

/// Says whether the member at an address shows itself by other means than gossip.
#[derive(Clone)]
pub struct Witness(Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>);

impl Witness {
    /// One that asks `is_alive`.
    pub fn new(is_alive: impl Fn(SocketAddr) -> bool + Send + Sync + 'static) -> Witness {
        Witness(Arc::new(is_alive))
    }

    fn vouches_for(&self, address: SocketAddr) -> bool {
        (self.0)(address)
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Witness")
    }
}

/// What this node makes of its own hearing.
#[derive(Debug)]
pub(super) struct Health {
    witness: Witness,
    heard_at: Option<Instant>,
    /// The ping that has not been concluded.
    ping: Option<Ping>,
    /// Probes in a row during which nobody answered.
    silent_probes: u32,
}

#[derive(Debug)]
struct Ping {
    target: Identity,
    number: ProbeNumber,
    at: Instant,
}

impl Health {
    pub(super) fn new(witness: Witness) -> Health {
        Health { witness, heard_at: None, ping: None, silent_probes: 0 }
    }

    /// An answer has arrived. True if that ends a silence that was told.
    pub(super) fn hear(&mut self, now: Instant) -> bool {
        self.heard_at = Some(now);
        std::mem::take(&mut self.silent_probes) >= TOLD_AFTER
    }

    /// Whether the latest probe ended in silence.
    pub(super) fn is_deaf(&self) -> bool {
        self.silent_probes > 0
    }

    /// Whether an accusation of the member at `address` rests on nothing but this node's own deafness.
    pub(super) fn doubts(&self, address: SocketAddr) -> bool {
        self.is_deaf() && self.witness.vouches_for(address)
    }

    fn is_silent(&self, ping: &Ping) -> bool {
        self.heard_at.is_none_or(|at| at <= ping.at)
    }

    /// Ends the probe. Gives its ping if nobody has answered since.
    fn conclude(&mut self) -> Option<Ping> {
        let ping = self.ping.take().filter(|ping| self.is_silent(ping))?;
        self.silent_probes = self.silent_probes.saturating_add(1);
        Some(ping)
    }
}

/// Deaths that this node was told of and does not believe yet, with the time when it was told.
#[derive(Debug, Default)]
pub(super) struct Hearsay(BTreeMap<NodeId, Instant>);

impl Hearsay {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For one look at the members: whether the death of one that is missing is not believed yet. Forgets who is not missing.
    pub(super) fn look(&mut self, health: &Health, now: Instant) -> impl FnMut(&Member) -> bool {
        let told = std::mem::take(&mut self.0);
        move |member| {
            let at = told.get(&member.node_id).copied().unwrap_or(now);
            let is_doubtful = member.status == Status::Healthy
                && now < at + DISBELIEVED
                && health.witness.vouches_for(member.address);
            if is_doubtful {
                self.0.insert(member.node_id.clone(), at);
            }
            is_doubtful
        }
    }
}

impl Machine {
    /// A probe is over. If nobody has answered since its ping and the target is vouched for, the probe says nothing; foca can
    /// only be told so by an answer.
    pub(super) fn conclude_probe(&mut self, now: Now) {
        let Some(Ping { target, number, .. }) = self.health.conclude() else { return };
        if !self.health.doubts(target.address) {
            return;
        }
        if self.health.silent_probes == TOLD_AFTER {
            self.events.push(GossipEvent::Deaf);
        }
        let known = self.foca.iter_members().find(|member| *member.id() == target);
        let Some(src_incarnation) = known.map(foca::Member::incarnation) else { return };
        let (dst, message) = (self.foca.identity().clone(), Message::Ack(number));
        let answer = foca::Header { src: target, src_incarnation, dst, message };
        if let Ok(answer) = codec::encode_item(&answer) {
            self.hand_on(&answer, now);
        }
    }

    /// Remembers the ping in what foca sends.
    pub(super) fn note_ping(&mut self, payload: &[u8], now: Now) {
        let Ok(header) = codec::decode_item::<foca::Header<Identity>>(payload) else { return };
        if let Message::Ping(number) = header.message {
            self.health.ping = Some(Ping { target: header.dst, number, at: now.instant });
        }
    }

    /// If nobody has answered since the ping, asks others for a sign: so silence at the end of the probe is no accident.
    pub(super) fn ask_for_a_sign(&mut self, now: Now) {
        let Some(ping) = self.health.ping.as_ref().filter(|ping| self.health.is_silent(ping)) else { return };
        let others = self.foca.iter_members().map(foca::Member::id).filter(|id| **id != ping.target);
        let asked: Vec<_> = others.map(|id| id.address).take(ASKED).collect();
        for address in asked {
            self.challenge(address, None, now);
        }
    }
}
