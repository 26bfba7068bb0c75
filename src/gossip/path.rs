//! Path validation: whether datagrams pass between this node and an address, in both directions.
//!
//! As in QUIC (RFC 9000, 8.2): a challenge carries a nonce, the response echoes it and is exactly as long, so that whoever
//! forges a sender's address gains nothing by it. Sends nothing itself. Invariant: an address counts as valid only if it has
//! echoed a nonce within [`VALID_FOR`].

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::codec::{decode_item, encode_item};

/// What a path message begins with. A message of foca's begins with the kind of an address, which is 0 or 1.
const MARK: u8 = 0xFF;
/// How long a nonce may be echoed, and an address that has echoed it counts as valid. Shorter than it takes to declare a
/// member dead: one that is back has to show anew that it hears.
const VALID_FOR: Duration = Duration::from_secs(1);
/// How long a challenge that arrived is remembered.
const HEARD_FOR: Duration = Duration::from_secs(3);
/// An address is not challenged by datagrams of its own more often than this.
const CHALLENGE_PAUSE: Duration = Duration::from_millis(50);
/// Addresses that are remembered, the latest; an untrusted sender can name any number of them.
const PATHS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Datagrams of one address that wait for its response.
const HELD_MAX: usize = 4;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Challenge,
    Response,
}

/// A challenge or a response.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Message {
    kind: Kind,
    nonce: u64,
    from: SocketAddr,
}

impl Message {
    /// The message in a payload, if it is one of this kind.
    pub(super) fn decode(payload: &[u8]) -> Option<Message> {
        let (mark, message) = payload.split_first()?;
        // Anything else is padding.
        (*mark == MARK).then(|| decode_item(message).ok())?
    }

    /// A payload of `bytes`, or none if that is too short for it.
    fn encode(&self, bytes: usize) -> Option<Vec<u8>> {
        let mut payload = vec![MARK];
        payload.extend(encode_item(self).ok()?);
        (payload.len() <= bytes).then(|| {
            payload.resize(bytes, 0);
            payload
        })
    }
}

/// What a path message asks for.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// To be sent.
    pub(super) response: Option<(SocketAddr, Vec<u8>)>,
    /// The address that is valid now.
    pub(super) valid: Option<SocketAddr>,
    /// Its datagrams that waited for that.
    pub(super) released: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Path {
    challenged: Option<(Instant, u64)>,
    is_valid: bool,
    held: Vec<Vec<u8>>,
    /// When a challenge last arrived, and how long the longest of those was.
    heard: Option<(Instant, usize)>,
}

impl Path {
    fn challenged_within(&self, time: Duration, now: Instant) -> Option<u64> {
        self.challenged.filter(|(at, _)| now.duration_since(*at) <= time).map(|(_, nonce)| nonce)
    }

    fn is_valid(&self, now: Instant) -> bool {
        self.is_valid && self.challenged_within(VALID_FOR, now).is_some()
    }
}

/// The addresses that datagrams lately came from or went to without their being members'.
#[derive(Debug)]
pub(super) struct Paths {
    paths: LruCache<SocketAddr, Path>,
    random: StdRng,
}

impl Paths {
    pub(super) fn new(seed: u64) -> Paths {
        Paths { paths: LruCache::new(PATHS_MAX), random: StdRng::seed_from_u64(seed) }
    }

    /// The payload of a challenge of this length by the node at `me`; of the shortest possible, if no length is given.
    pub(super) fn challenge(
        &mut self,
        to: SocketAddr,
        me: SocketAddr,
        bytes: Option<usize>,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let path = self.paths.get_or_insert_mut(to, Path::default);
        let nonce = path.challenged_within(VALID_FOR, now).unwrap_or_else(|| {
            let nonce = self.random.random();
            (path.challenged, path.is_valid) = (Some((now, nonce)), false);
            nonce
        });
        let message = Message { kind: Kind::Challenge, nonce, from: me };
        // Its numbers and address take this at most.
        let shortest = || 1 + encode_item(&message).map_or(0, |bytes| bytes.len());
        message.encode(bytes.unwrap_or_else(shortest))
    }

    /// Keeps a datagram until its sender's address is valid. Gives a challenge for it, if it is time for one; shorter than
    /// the datagram in any case.
    pub(super) fn hold(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        me: SocketAddr,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let path = self.paths.get_or_insert_mut(from, Path::default);
        let was_challenged = path.challenged_within(CHALLENGE_PAUSE, now).is_some();
        if path.challenged_within(VALID_FOR, now).is_none() {
            path.held.clear();
        }
        if path.held.len() < HELD_MAX {
            path.held.push(datagram.to_vec());
        }
        if was_challenged {
            return None;
        }
        self.challenge(from, me, None, now).filter(|challenge| challenge.len() <= datagram.len())
    }

    /// Whether what comes from this address now comes from where it says.
    pub(super) fn is_valid(&self, address: SocketAddr, now: Instant) -> bool {
        self.paths.peek(&address).is_some_and(|path| path.is_valid(now))
    }

    /// How long the longest challenge is that lately arrived from the node at `address`, in bytes; zero if none did.
    pub(super) fn heard(&self, address: SocketAddr, now: Instant) -> usize {
        let heard = self.paths.peek(&address).and_then(|path| path.heard);
        heard.filter(|(at, _)| now.duration_since(*at) <= HEARD_FOR).map_or(0, |(_, bytes)| bytes)
    }

    /// Takes in a message that came in a payload of this length.
    pub(super) fn take(&mut self, message: &Message, bytes: usize, me: SocketAddr, now: Instant) -> Taken {
        let from = message.from;
        match message.kind {
            Kind::Challenge => {
                let heard = self.heard(from, now).max(bytes);
                self.paths.get_or_insert_mut(from, Path::default).heard = Some((now, heard));
                let response = Message { kind: Kind::Response, nonce: message.nonce, from: me };
                Taken { response: response.encode(bytes).map(|payload| (from, payload)), ..Taken::default() }
            }
            Kind::Response => match self.paths.get_mut(&from) {
                Some(path) if path.challenged_within(VALID_FOR, now) == Some(message.nonce) => {
                    path.is_valid = true;
                    let released = std::mem::take(&mut path.held);
                    Taken { valid: Some(from), released, ..Taken::default() }
                }
                _ => Taken::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 8001).into()
    }

    fn take(paths: &mut Paths, me: u8, payload: &[u8], now: Instant) -> Taken {
        paths.take(&Message::decode(payload).expect("a path message"), payload.len(), address(me), now)
    }

    #[test]
    fn an_address_is_valid_for_a_second_once_it_has_echoed_the_nonce() {
        let (now, mut one, mut other) = (Instant::now(), Paths::new(1), Paths::new(2));
        let challenge = one.hold(&[7; 100], address(2), address(1), now).unwrap();
        assert!(!one.is_valid(address(2), now));
        let (to, response) = take(&mut other, 2, &challenge, now).response.unwrap();
        assert_eq!((to, response.len()), (address(1), challenge.len()));
        let taken = take(&mut one, 1, &response, now + VALID_FOR);
        assert_eq!((taken.valid, taken.released), (Some(address(2)), vec![vec![7; 100]]));
        assert!(one.is_valid(address(2), now + VALID_FOR));
        let later = now + VALID_FOR + Duration::from_millis(1);
        assert!(!one.is_valid(address(2), later));
        assert_eq!(take(&mut one, 1, &response, later).valid, None, "an old response");
    }

    #[test]
    fn a_response_to_no_challenge_or_another_nonce_says_nothing() {
        let (now, mut one) = (Instant::now(), Paths::new(1));
        let forged = Message { kind: Kind::Response, nonce: 7, from: address(2) }.encode(100).unwrap();
        assert_eq!(take(&mut one, 1, &forged, now).valid, None);
        one.challenge(address(2), address(1), None, now).unwrap();
        assert_eq!(take(&mut one, 1, &forged, now).valid, None);
    }

    #[test]
    fn what_a_forger_of_addresses_brings_about_is_bounded_and_no_longer_than_what_it_sends() {
        let (now, mut paths) = (Instant::now(), Paths::new(1));
        assert!(paths.hold(&[7; 8], address(2), address(1), now).is_none(), "longer than the datagram");
        let many = (0..100).filter(|_| paths.hold(&[7; 100], address(3), address(1), now).is_some());
        assert_eq!(many.count(), 1, "one challenge at a time");
        assert_eq!(paths.paths.peek(&address(3)).unwrap().held.len(), HELD_MAX);
        for number in 0..10_000_u32 {
            let from = (std::net::Ipv4Addr::from(number), 1).into();
            paths.hold(&[7; 100], from, address(1), now);
        }
        assert_eq!(paths.paths.len(), PATHS_MAX.get());
        let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 8001));
        let challenge = paths.challenge(address(2), address(1), None, now).unwrap();
        let message = Message::decode(&challenge).unwrap();
        assert!(paths.take(&message, challenge.len(), v6, now).response.is_none(), "it would be longer");
    }

    #[test]
    fn the_longest_challenge_that_arrived_is_remembered_for_a_while() {
        let (now, mut one, mut other) = (Instant::now(), Paths::new(1), Paths::new(2));
        for bytes in [1350, 100] {
            let challenge = one.challenge(address(2), address(1), Some(bytes), now).unwrap();
            assert_eq!(challenge.len(), bytes);
            assert_eq!(take(&mut other, 2, &challenge, now).response.unwrap().1.len(), bytes);
        }
        assert_eq!(other.heard(address(1), now + HEARD_FOR), 1350);
        assert_eq!(other.heard(address(1), now + HEARD_FOR + Duration::from_millis(1)), 0);
        assert_eq!(other.heard(address(3), now), 0);
    }
}
