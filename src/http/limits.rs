//! Bounds on what strangers can make big, many or slow.
//!
//! Counts, and says no; what a refusal looks like is in `error`. Invariant: what was admitted is counted until its guard is
//! dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::net::customer;
use crate::telemetry::{Limit, Metrics};

/// Connections beyond the limit that members get, so that nobody can keep members from each other by opening many.
const RESERVED_FOR_MEMBERS: usize = 256;

/// What of a head or a body is not counted while it arrives: more than nearly every head has, with a key of the longest kind.
const UNCOUNTED_BYTES: usize = 4 << 10;
/// The part of the memory for bodies that unfinished heads and short bodies have besides.
const ARRIVALS_PART: usize = 16;

/// The bounds. Each has a flag of `shoal node`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's line and headers. At least 8 KiB, or the parser refuses it.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// From the first byte of a request to the end of its headers.
    pub head_timeout: Duration,
    /// From there to the end of its body; and for a client to take an answer, once it does not take it at once.
    pub body_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// Bytes of all bodies of requests that this node has in hand, together, and as many of answers; see
    /// [`super::body_memory_least`].
    pub body_memory_bytes: usize,
    /// Open at a time.
    pub connections: usize,
    /// The same of one address.
    pub connections_per_address: usize,
    /// Requests under way.
    pub requests: usize,
    /// Streams of events.
    pub event_streams: usize,
    /// Operations of a batch.
    pub batch_operations: usize,
}

impl Limits {
    /// Bytes of heads and short bodies that have begun to arrive and are not whole, together, beyond a few of each.
    #[must_use]
    pub fn arrival_bytes(&self) -> usize {
        self.body_memory_bytes / ARRIVALS_PART
    }
}

/// A number of things at a time.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicUsize);

/// Some of the things that a [`Gauge`] counts, which is at hand as a reference or shared.
#[derive(Debug)]
pub(super) struct Held<G: Deref<Target = Gauge>> {
    gauge: G,
    amount: usize,
}

impl<G: Deref<Target = Gauge>> Held<G> {
    /// `amount` more, if there are at most `max` then.
    pub(super) fn new(gauge: G, amount: usize, max: usize) -> Option<Held<G>> {
        let mut held = Held { gauge, amount: 0 };
        held.grow_to(amount, max).then_some(held)
    }

    /// The same of what is held already: `amount` from now on, which is no less. False, and nothing changed, if that would be
    /// too many.
    pub(super) fn grow_to(&mut self, amount: usize, max: usize) -> bool {
        let more = amount - self.amount;
        let before = self.gauge.0.fetch_add(more, Ordering::Relaxed);
        let fits = before + more <= max;
        if fits {
            self.amount = amount;
        } else {
            self.gauge.0.fetch_sub(more, Ordering::Relaxed);
        }
        fits
    }
}

impl<G: Deref<Target = Gauge>> Drop for Held<G> {
    fn drop(&mut self) {
        self.gauge.0.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Counts what has begun to arrive and is not whole.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    gauge: Arc<Gauge>,
    bytes_max: usize,
}

impl Arrivals {
    pub(super) fn new(bytes_max: usize) -> Arrivals {
        Arrivals { gauge: Arc::default(), bytes_max }
    }

    /// Counts as `held` that `bytes` of something are here by now. False, and nothing changed, if all together are too many.
    pub(super) fn count(&self, held: &mut Option<Held<Arc<Gauge>>>, bytes: usize) -> bool {
        if bytes <= UNCOUNTED_BYTES {
            return true;
        }
        match held {
            Some(held) => held.grow_to(bytes, self.bytes_max),
            None => {
                *held = Held::new(self.gauge.clone(), bytes, self.bytes_max);
                held.is_some()
            }
        }
    }
}

/// Bytes that count until nobody has them any more.
struct Counted {
    bytes: Bytes,
    #[expect(dead_code, reason = "counts the bytes for as long as anybody has them")]
    held: Held<Arc<Gauge>>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The same bytes; what they hold is given back when they are freed.
pub(super) fn counted(bytes: Bytes, held: Held<Arc<Gauge>>) -> Bytes {
    Bytes::from_owner(Counted { bytes, held })
}

/// Counts the open connections.
#[derive(Clone)]
pub(super) struct Doors(Arc<Inner>);

struct Inner {
    total_max: usize,
    per_address_max: usize,
    metrics: Arc<Metrics>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// An open connection.
pub(super) struct Door {
    doors: Doors,
    address: IpAddr,
}

impl Doors {
    pub(super) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Doors {
        Doors(Arc::new(Inner {
            total_max: limits.connections,
            per_address_max: limits.connections_per_address,
            metrics,
            open: Mutex::default(),
        }))
    }

    /// One more connection from there.
    pub(super) fn enter(&self, from: IpAddr, is_member: bool) -> Result<Door, Limit> {
        let address = customer(from);
        let reserve = if is_member { RESERVED_FOR_MEMBERS } else { 0 };
        let mut open = self.0.open.lock();
        let here = open.by_address.get(&address).copied().unwrap_or_default();
        if open.total >= self.0.total_max + reserve {
            return Err(Limit::Connections);
        }
        if here >= self.0.per_address_max + reserve {
            return Err(Limit::ConnectionsPerAddress);
        }
        open.total += 1;
        open.by_address.insert(address, here + 1);
        self.0.metrics.set_connections(open.total);
        Ok(Door { doors: self.clone(), address })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut open = self.doors.0.open.lock();
        open.total -= 1;
        self.doors.0.metrics.set_connections(open.total);
        match open.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.by_address.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeId;

    fn doors(total: usize, per_address: usize) -> Doors {
        let metrics = Metrics::new(&NodeId::parse("test").unwrap());
        Doors(Arc::new(Inner {
            total_max: total,
            per_address_max: per_address,
            metrics,
            open: Mutex::default(),
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_counted_in_all_and_by_address_until_they_close() {
        let doors = doors(3, 2);
        let first = doors.enter(ip("10.0.0.1"), false).ok().unwrap();
        let _second = doors.enter(ip("::ffff:10.0.0.1"), false).ok().unwrap();
        assert_eq!(doors.enter(ip("10.0.0.1"), false).err(), Some(Limit::ConnectionsPerAddress));
        let _third = doors.enter(ip("10.0.0.2"), false).ok().unwrap();
        assert_eq!(doors.enter(ip("10.0.0.3"), false).err(), Some(Limit::Connections));
        assert!(doors.enter(ip("10.0.0.3"), true).is_ok(), "a member gets in");
        drop(first);
        assert!(doors.enter(ip("10.0.0.1"), false).is_ok());
    }

    #[test]
    fn all_addresses_of_an_ipv6_customer_are_one() {
        let doors = doors(10, 1);
        let _first = doors.enter(ip("2001:db8:1:2::1"), false).ok().unwrap();
        assert!(doors.enter(ip("2001:db8:1:2:ffff::2"), false).is_err());
        assert!(doors.enter(ip("2001:db8:1:3::1"), false).is_ok());
    }

    #[test]
    fn what_is_held_is_given_back() {
        let gauge = Gauge::default();
        let mut held = Held::new(&gauge, 3, 4).unwrap();
        assert!(Held::new(&gauge, 2, 4).is_none());
        assert!(held.grow_to(4, 4) && !held.grow_to(5, 4));
        drop(held);
        assert!(Held::new(&gauge, 4, 4).is_some());
    }

    #[test]
    fn what_arrives_counts_from_4_kib_on() {
        let arrivals = Arrivals::new(10 << 10);
        let (mut first, mut second) = (None, None);
        assert!(arrivals.count(&mut first, 4 << 10) && first.is_none(), "a little is free");
        assert!(arrivals.count(&mut first, 5 << 10) && arrivals.count(&mut first, 6 << 10));
        assert!(!arrivals.count(&mut second, 5 << 10) && second.is_none());
        drop(first);
        assert!(arrivals.count(&mut second, 10 << 10) && !arrivals.count(&mut second, 11 << 10));
    }
}
