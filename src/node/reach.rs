//! Which members cannot be called over TCP, by whom, and what follows: a detour, or a table without them.
//!
//! Gossip may pass where connections do not. A member that this node cannot call is called through one that can (see
//! [`crate::link`]); a relay is nothing but a slow wire. After [`ACCUSED_AFTER`] this node says so in every frame of the lease
//! exchange, until it has reached the member for a while again, each time longer. Who has such a fault with more than half
//! of the other members is *set apart*: it owns nothing in anybody's table, and hands over like one that leaves. So does a
//! node that learns over TCP that most of the others do not count it as a member: it hears no gossip. Invariant: one node's
//! word sets no other apart, and never are half of the members.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Node;
use super::placement::Placement;
use crate::link::{Request, Unreached};
use crate::model::{Ledger, NodeId, Status, mix};
use crate::net::spawn;

/// A member that has not answered over a connection for this long is called by a detour.
const DETOUR_AFTER: Duration = super::lease::UNHEARD_FOR;
/// For how long a member cannot be called before this node tells the others. Until no table names it, some 600 ms later, it may
/// go on deciding conditions that are asked of it, and nobody else can. A request that begins with the fault has 2 s.
const ACCUSED_AFTER: Duration = Duration::from_millis(1200);
/// For how long it has to be reached again before that is taken back; doubles at each return, up to the second.
const CLEARED_AFTER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];
/// How long what another member says of its reach holds.
const SAID_FOR: Duration = Duration::from_secs(1);
/// A member must deny this node's membership for this long before the node believes it: the news of a join takes its time.
const DENIED_AFTER: Duration = Duration::from_secs(1);
/// Between two tries to reach a member without the detour.
const PROBE_PERIOD: Duration = Duration::from_millis(500);

/// What this node and the others know of who reaches whom.
#[derive(Debug)]
pub(super) struct Reach {
    paths: Mutex<BTreeMap<NodeId, Path>>,
    said: Mutex<BTreeMap<NodeId, Said>>,
    /// What this node says.
    unreached: ArcSwap<Vec<Unreached>>,
    apart: watch::Sender<Arc<BTreeSet<NodeId>>>,
}

/// This node's own way to one member.
#[derive(Debug, Default)]
struct Path {
    boot: u64,
    /// Since when the member is reached; none while it is not.
    reached_since_ms: Option<u64>,
    is_accused: bool,
    /// How often it was.
    accusations: u32,
    probed_ms: u64,
}

/// What one member said last.
#[derive(Debug, Default)]
struct Said {
    unreached: Vec<Unreached>,
    at_ms: u64,
    /// Since when it says that this node is no member.
    denied_since_ms: Option<u64>,
    /// When it last answered a question that came with an answer.
    back_ms: Option<u64>,
}

impl Default for Reach {
    fn default() -> Reach {
        Reach {
            paths: Mutex::default(),
            said: Mutex::default(),
            unreached: ArcSwap::default(),
            apart: watch::channel(Arc::default()).0,
        }
    }
}

impl Reach {
    /// What this node cannot reach, as it tells the others.
    pub(super) fn unreached(&self) -> Vec<Unreached> {
        self.unreached.load().to_vec()
    }

    /// Takes note of what a member cannot reach.
    pub(super) fn hear(&self, member: &NodeId, unreached: &[Unreached], now_ms: u64) {
        let mut all = self.said.lock();
        // The name is cloned only for a member that is new.
        let said = match all.get_mut(member) {
            Some(said) => said,
            None => all.entry(member.clone()).or_default(),
        };
        said.at_ms = now_ms;
        if said.unreached != unreached {
            said.unreached = unreached.to_vec();
        }
    }

    /// Takes note that a member, which cannot be called, has answered what it was asked when it called.
    pub(super) fn hear_back(&self, member: &NodeId, now_ms: u64) {
        if let Some(said) = self.said.lock().get_mut(member) {
            said.back_ms = Some(now_ms);
        }
    }

    /// Whether a member calls this node, and gets its answers, though it cannot be called.
    pub(super) fn is_calling(&self, member: &NodeId, now_ms: u64) -> bool {
        let is_recent = |at_ms| now_ms <= at_ms + SAID_FOR.as_millis() as u64;
        self.said.lock().get(member).is_some_and(|said| said.back_ms.is_some_and(is_recent))
    }

    /// Takes note of whether a member, which was heard just now, counts this node as one.
    pub(super) fn hear_membership(&self, member: &NodeId, is_member: bool, now_ms: u64) {
        if let Some(said) = self.said.lock().get_mut(member) {
            said.denied_since_ms = if is_member { None } else { said.denied_since_ms.or(Some(now_ms)) };
        }
    }

    /// Whether a member said last that this node is none.
    pub(super) fn is_denied_by(&self, member: &NodeId) -> bool {
        self.said.lock().get(member).is_some_and(|said| said.denied_since_ms.is_some())
    }

    /// Whether more than half of these members, the others, have said for a while that this node is none.
    fn is_denied<'a>(&self, others: impl Iterator<Item = &'a NodeId>, now_ms: u64) -> bool {
        let said = self.said.lock();
        let denies = |said: &Said| {
            let since_ms = said.denied_since_ms.filter(|_| said.holds(now_ms));
            since_ms.is_some_and(|since_ms| now_ms >= since_ms + DENIED_AFTER.as_millis() as u64)
        };
        let (mut all, mut denying) = (0, 0);
        for member in others {
            all += 1;
            denying += usize::from(said.get(member).is_some_and(denies));
        }
        2 * denying > all
    }

    /// Forgets what nodes said that are no members, once it no longer holds: their names would fill the memory.
    fn forget_strangers(&self, placement: &Placement, now_ms: u64) {
        let is_known = |member: &NodeId| placement.addresses.contains_key(member);
        self.said.lock().retain(|member, said| said.holds(now_ms) || is_known(member));
    }

    /// Members that own nothing because too many others cannot reach them.
    pub(super) fn apart(&self) -> Arc<BTreeSet<NodeId>> {
        self.apart.borrow().clone()
    }

    /// Tells when that changes.
    pub(super) fn follow_apart(&self) -> watch::Receiver<Arc<BTreeSet<NodeId>>> {
        self.apart.subscribe()
    }

    /// The members that say they cannot reach this one, by name; `me` among them.
    pub(super) fn accusers(&self, me: &NodeId, of: &NodeId, now_ms: u64) -> BTreeSet<NodeId> {
        let says = |unreached: &[Unreached]| unreached.iter().any(|one| one.is_accused && one.node_id == *of);
        let said = self.said.lock();
        let others = said.iter().filter(|(_, said)| said.holds(now_ms) && says(&said.unreached));
        let mut accusers: BTreeSet<NodeId> = others.map(|(member, _)| member.clone()).collect();
        if says(&self.unreached.load()) {
            accusers.insert(me.clone());
        }
        accusers
    }

    /// Pairs of members of which one says that it cannot reach the other.
    fn faults(&self, me: &NodeId, now_ms: u64) -> BTreeSet<(NodeId, NodeId)> {
        let mut faults = BTreeSet::new();
        let mut add = |member: &NodeId, unreached: &[Unreached]| {
            for one in unreached.iter().filter(|one| one.is_accused) {
                faults.insert((member.clone(), one.node_id.clone()));
                faults.insert((one.node_id.clone(), member.clone()));
            }
        };
        add(me, &self.unreached.load());
        let said = self.said.lock();
        said.iter()
            .filter(|(_, said)| said.holds(now_ms))
            .for_each(|(member, said)| add(member, &said.unreached));
        faults
    }

    /// A member through which another can be reached.
    fn relay(&self, to: &NodeId, reached: &[&NodeId], now_ms: u64) -> Option<NodeId> {
        let said = self.said.lock();
        let reaches = |member: &&NodeId| {
            said.get(*member).is_some_and(|said| {
                said.holds(now_ms) && !said.unreached.iter().any(|one| one.node_id == *to)
            })
        };
        let score =
            |member: &&NodeId| mix::hash(mix::hash(0, to.as_str().as_bytes()), member.as_str().as_bytes());
        reached.iter().copied().filter(|member| *member != to).filter(reaches).max_by_key(score).cloned()
    }
}

impl Said {
    fn holds(&self, now_ms: u64) -> bool {
        now_ms <= self.at_ms + SAID_FOR.as_millis() as u64
    }
}

impl Path {
    /// Takes note of how long the process `boot` of a member has not answered. True if the accusation changes.
    fn look(&mut self, boot: u64, silent_for: Duration, may_accuse: bool, now_ms: u64) -> bool {
        if self.boot != boot {
            *self = Path { boot, ..Path::default() };
        }
        if silent_for < DETOUR_AFTER {
            let since_ms = *self.reached_since_ms.get_or_insert(now_ms);
            let clears = self.is_accused && now_ms >= since_ms + self.cleared_after().as_millis() as u64;
            self.is_accused &= !clears;
            return clears;
        }
        self.reached_since_ms = None;
        let accuses = may_accuse && !self.is_accused && silent_for >= ACCUSED_AFTER;
        if accuses {
            (self.is_accused, self.accusations) = (true, self.accusations + 1);
        }
        accuses
    }

    fn cleared_after(&self) -> Duration {
        let doublings = self.accusations.saturating_sub(1).min(10);
        (CLEARED_AFTER[0] * 2_u32.pow(doublings)).min(CLEARED_AFTER[1])
    }
}

/// Who has a fault with more than half of the other members, and with two at least; nobody if that were half of them all.
fn set_apart(members: &BTreeSet<NodeId>, faults: &BTreeSet<(NodeId, NodeId)>) -> BTreeSet<NodeId> {
    let faults_of = |member: &NodeId| {
        faults
            .iter()
            .filter(|(one, other)| one == member && other != member && members.contains(other))
            .count()
    };
    let is_apart = |member: &&NodeId| {
        let faults = faults_of(member);
        faults >= 2 && 2 * faults > members.len() - 1
    };
    let apart: BTreeSet<NodeId> = members.iter().filter(is_apart).cloned().collect();
    if 2 * apart.len() < members.len() { apart } else { BTreeSet::new() }
}

impl Node {
    /// Looks at which members can be called, and draws the conclusions. On every beat.
    pub(super) fn look_around(&self, placement: &Placement) {
        let (now_ms, view) = (self.uptime_ms(), self.members());
        // What a process does not hear while it does not run says nothing.
        let awake_for = Duration::from_millis(now_ms.saturating_sub(self.woke_ms()));
        let (mut reached, mut unreached, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        let mut paths = self.0.reach.paths.lock();
        paths.retain(|member, _| placement.addresses.contains_key(member));
        self.0.reach.forget_strangers(placement, now_ms);
        for (member, address) in placement.others() {
            let known = view.get(member).filter(|known| known.address == address);
            // Nobody accuses a member that has left, and gossip decides about a suspect. Both may still need a detour.
            let may_accuse = known.is_some_and(|known| known.status == Status::Healthy);
            let silent_for = self.0.links.silent_for(address).min(awake_for);
            let path = match paths.get_mut(member) {
                Some(path) => path,
                None => paths.entry(member.clone()).or_default(),
            };
            if path.look(known.map_or(path.boot, |known| known.boot), silent_for, may_accuse, now_ms) {
                tell(self, member, address, path.is_accused);
            }
            if path.reached_since_ms.is_some() {
                reached.push(member);
            } else {
                missing.push((member.clone(), address));
                if now_ms >= path.probed_ms + PROBE_PERIOD.as_millis() as u64 {
                    path.probed_ms = now_ms;
                    self.probe(member.clone(), address);
                }
            }
            if path.reached_since_ms.is_none() || path.is_accused {
                unreached.push(Unreached { node_id: member.clone(), is_accused: path.is_accused });
            }
        }
        drop(paths);
        self.0.metrics.unreached_members.set(unreached.len() as i64);
        if **self.0.reach.unreached.load() != unreached {
            self.0.reach.unreached.store(Arc::new(unreached));
        }
        let detours = missing.into_iter().filter_map(|(member, address)| {
            let relay = self.0.reach.relay(&member, &reached, now_ms)?;
            let at = *placement.addresses.get(&relay)?;
            Some((address, (relay, at)))
        });
        self.0.links.set_detours(detours.collect());
        let faults = self.0.reach.faults(self.id(), now_ms);
        let mut apart = BTreeSet::new();
        if !faults.is_empty() {
            apart = set_apart(&view.live().map(|member| member.node_id.clone()).collect(), &faults);
        }
        let others = view.peers().map(|member| &member.node_id);
        if self.0.reach.is_denied(others, now_ms) && apart.insert(self.id().clone()) {
            let is_news = !self.0.reach.apart().contains(self.id());
            if is_news {
                warn!(
                    "most members do not count this node as a member: it owns no slot, and forwards each request"
                );
            }
        }
        self.0.reach.apart.send_if_modified(|current| {
            let changes = **current != apart;
            if changes {
                *current = Arc::new(apart);
            }
            changes
        });
    }

    /// The members that cannot reach this one.
    pub(super) fn unreachable_from(&self, member: &NodeId) -> BTreeSet<NodeId> {
        self.0.reach.accusers(self.id(), member, self.uptime_ms())
    }

    /// Tries whether a member can be reached without the detour.
    fn probe(&self, member: NodeId, address: SocketAddr) {
        let node = self.clone();
        spawn(async move {
            let ping = Request::Ping { clock: node.0.versions.latest() };
            let deadline = Instant::now() + Duration::from_millis(Ledger::LEASE_MS);
            // Whatever comes of it: an answer is noticed where it arrives.
            let _ = node.0.links.call_directly((&member, address), &ping, &[], deadline).await;
        });
    }
}

fn tell(node: &Node, member: &NodeId, address: SocketAddr, is_accused: bool) {
    if is_accused {
        let seconds = ACCUSED_AFTER.as_secs_f64();
        warn!(
            %member,
            "TCP to {address} has had no answer for {seconds} s, though UDP works: a firewall? \
             Another member that reaches it relays requests to it, if there is one"
        );
    } else {
        info!(%member, "TCP to {address} gets answers again");
    }
    let kind = if is_accused { "member_unreachable" } else { "member_reachable" };
    let data = serde_json::json!({"node_id": member, "address": address, "protocol": "tcp"});
    node.0.events.publish(kind, node.wall_ms(), data);
}

#[cfg(test)]
mod tests;
