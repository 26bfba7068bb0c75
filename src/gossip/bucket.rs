//! How many datagrams of one source are looked at, before anything about them is known.
//!
//! A token bucket for each address (of IPv6, for each /64), in bounded memory; members have one of their own in any case.
//! Invariant: what is refused has cost a lookup or two.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::net::customer;

/// Far more than any member sends, also if many share an address, for whoever forges a member's address takes from its
/// bucket; and so few that opening all of them takes a hundredth of a core.
const RATE_PER_S: f64 = 5000.0;
const BURST: f64 = 10_000.0;
/// Sources that have a bucket of their own; further ones share one.
const SOURCES_MAX: usize = 4096;
/// After this time without a datagram any bucket is full, so that nothing is lost with it.
const IDLE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Buckets {
    sources: BTreeMap<IpAddr, Bucket>,
    others: Bucket,
    swept_at: Instant,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Buckets {
    pub(super) fn new(now: Instant) -> Buckets {
        Buckets { sources: BTreeMap::new(), others: Bucket::full(now), swept_at: now }
    }

    /// Whether one more datagram of this source is looked at; `is_member` is asked only where it matters, for
    /// it takes longer.
    pub(super) fn admit(&mut self, source: IpAddr, is_member: impl Fn(IpAddr) -> bool, now: Instant) -> bool {
        let (source, group) = (source.to_canonical(), customer(source));
        // A member's neighbours take nothing from it.
        let group = if group != source && is_member(source) { source } else { group };
        if now.duration_since(self.swept_at) > IDLE {
            self.swept_at = now;
            self.sources.retain(|_, bucket| now.duration_since(bucket.filled_at) <= IDLE);
        }
        let has_room = self.sources.len() < SOURCES_MAX;
        match self.sources.get_mut(&group) {
            Some(bucket) => bucket.take(now),
            None if has_room || is_member(source) => {
                self.sources.entry(group).or_insert(Bucket::full(now)).take(now)
            }
            None => self.others.take(now),
        }
    }
}

impl Bucket {
    fn full(now: Instant) -> Bucket {
        Bucket { tokens: BURST, filled_at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + since * RATE_PER_S).min(BURST);
        self.filled_at = now;
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    fn admitted(buckets: &mut Buckets, number: u32, datagrams: usize, now: Instant) -> usize {
        (0..datagrams).filter(|_| buckets.admit(source(number), |_| false, now)).count()
    }

    #[test]
    fn a_flood_of_one_source_leaves_the_others_alone() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        assert_eq!(admitted(&mut buckets, 1, 50_000, start), 10_000);
        assert_eq!(admitted(&mut buckets, 2, 100, start), 100);
        let later = start + Duration::from_millis(100);
        assert_eq!(admitted(&mut buckets, 1, 50_000, later), 500);
    }

    #[test]
    fn a_member_shares_with_no_neighbour() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        let [member, one, other] =
            ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|text| text.parse().unwrap());
        let mut admitted = |source, many: usize| {
            (0..many).filter(|_| buckets.admit(source, |at| at == member, start)).count()
        };
        assert_eq!([admitted(one, 9_000), admitted(other, 9_000)], [9_000, 1_000]);
        assert_eq!(admitted(member, 100), 100);
    }

    #[test]
    fn sources_without_number_take_bounded_memory_and_share_what_is_left() {
        let start = Instant::now();
        let mut buckets = Buckets::new(start);
        let admitted_at = |buckets: &mut Buckets, now| {
            (0..100_000).filter(|&n| buckets.admit(source(n), |_| false, now)).count()
        };
        assert_eq!(admitted_at(&mut buckets, start), SOURCES_MAX + 10_000);
        assert_eq!(buckets.sources.len(), SOURCES_MAX);
        assert_eq!(admitted(&mut buckets, 1 << 20, 1, start), 0);
        assert!(buckets.admit(source(1 << 20), |address| address == source(1 << 20), start), "a member");
        let later = start + Duration::from_secs(3);
        assert!(buckets.admit(source(7), |_| false, later));
        assert_eq!(buckets.sources.len(), 1, "the idle ones are gone");
    }
}
