//! Whom this node takes in by a datagram: nobody whose address has not echoed a nonce.
//!
//! To foca any datagram is a sign of life. A node that hears nobody would be taken in by what it sends, declared dead for
//! what it does not answer, and taken in again. Invariant: foca sees a datagram only if its sender is a live member, or has
//! just shown that it hears this node.

use std::net::SocketAddr;

use super::super::path::Message;
use super::super::{GossipEvent, Identity, codec};
use super::{Machine, Now};

impl Machine {
    pub(super) fn take_in(&mut self, payload: &[u8], now: Now) {
        // News of one's own death would make foca renew, and so return from where this node has just said goodbye.
        if self.has_left {
            return;
        }
        if let Some(message) = Message::decode(payload) {
            return self.follow_path(&message, payload.len(), now);
        }
        if is_answer(payload) {
            self.hear(now);
        }
        self.greet_who_asks_for_predecessor(payload, now);
        match self.unproven_sender(payload, now) {
            Some(sender) => {
                let me = self.foca.identity().address;
                if let Some(challenge) = self.paths.hold(payload, sender, me, now.instant) {
                    self.post(sender, &challenge, now);
                }
            }
            None => self.hand_on(payload, now),
        }
    }

    /// Something has arrived that shows that others hear this node, and it them.
    fn hear(&mut self, now: Now) {
        if self.health.hear(now.instant) {
            self.events.push(GossipEvent::HearsAgain);
        }
    }

    /// Gives foca a payload.
    pub(super) fn hand_on(&mut self, payload: &[u8], now: Now) {
        let result = self.foca.handle_data(payload, &mut self.runtime);
        self.settle("datagram", result, now);
    }

    /// The sender's address, if it has to show first that it hears this node.
    fn unproven_sender(&self, payload: &[u8], now: Now) -> Option<SocketAddr> {
        // What cannot be read is foca's to refuse.
        let src = codec::decode_item::<foca::Header<Identity>>(payload).ok()?.src;
        let is_mine = src.address == self.foca.identity().address;
        let is_proven = is_mine
            || self.foca.iter_members().any(|member| *member.id() == src)
            || self.paths.is_valid(src.address, now.instant);
        (!is_proven).then_some(src.address)
    }

    fn follow_path(&mut self, message: &Message, bytes: usize, now: Now) {
        let taken = self.paths.take(message, bytes, self.foca.identity().address, now.instant);
        if let Some((to, response)) = taken.response {
            self.post(to, &response, now);
        }
        if let Some(address) = taken.valid {
            self.hear(now);
            self.events.push(GossipEvent::Echoed { address, bytes });
        }
        for datagram in taken.released {
            self.hand_on(&datagram, now);
        }
    }

    /// Asks for an echo from the node at `address`, by a payload of this length or a short one.
    pub(in super::super) fn challenge(&mut self, address: SocketAddr, bytes: Option<usize>, now: Now) {
        let me = self.foca.identity().address;
        if let Some(challenge) = self.paths.challenge(address, me, bytes, now.instant) {
            self.post(address, &challenge, now);
        }
    }

    /// How long the longest challenge is that lately arrived from the node at `address`, in bytes; zero if none did.
    pub(in super::super) fn heard(&self, address: SocketAddr, now: Now) -> usize {
        self.paths.heard(address, now.instant)
    }
}

/// Whether it answers something that this node has sent.
fn is_answer(payload: &[u8]) -> bool {
    use foca::Message::{Ack, Feed, ForwardedAck};
    let header = codec::decode_item::<foca::Header<Identity>>(payload);
    header.is_ok_and(|header| matches!(header.message, Ack(_) | ForwardedAck { .. } | Feed))
}
