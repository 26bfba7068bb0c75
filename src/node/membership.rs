//! Follows the membership: keeps the table in step with the view, tells what happened, stays in contact with peers.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};
use tracing::{info, warn};

use super::{Contact, FormerPlacement, Node, Placement, rfc3339};
use crate::gossip::GossipEvent;
use crate::link::{Reply, Request};
use crate::model::{Change, Member, Members, NodeId, Ring, Slot, Status};
use crate::net::task;

/// Changes of this long are taken together: a healing partition renews nearly every identity at once.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long former tables are asked after a change. Moving a full node's entries takes less.
const FORMER_FOR: Duration = Duration::from_secs(60);
const FORMER_MAX: usize = 8;
/// How often each peer's round trip is measured.
const CONTACT_PERIOD: Duration = Duration::from_secs(1);

/// Rebuilds the table after each change of the view.
pub(super) async fn follow_view(node: Node) {
    let mut view = node.0.view.clone();
    loop {
        let members = view.borrow_and_update().clone();
        if !node.is_leaving() {
            take_up(&node, &members);
        }
        count(&node, &members);
        if view.changed().await.is_err() {
            return;
        }
        sleep(DEBOUNCE).await;
    }
}

/// Takes this node itself out of its table, so that everything it holds belongs elsewhere.
pub(super) fn step_out(node: &Node) {
    put_in_force(node, node.members().peers());
}

fn take_up(node: &Node, members: &Members) {
    put_in_force(node, members.live());
    node.0.contacts.lock().retain(|node_id, _| members.get(node_id).is_some());
    close_unused_links(node, members);
}

/// One that has left may still have answers under way, and entries of a former table.
fn close_unused_links(node: &Node, members: &Members) {
    let dead: Vec<_> = members
        .iter()
        .filter(|member| member.status == Status::Unhealthy)
        .map(|member| member.address)
        .collect();
    let (present, former) = (node.0.placement.load(), node.0.former.load());
    let placements = former.iter().map(|former| &former.placement).chain([&**present]);
    let used: HashSet<_> = placements.flat_map(|placement| placement.addresses.values().copied()).collect();
    node.0.links.retain(|address| used.contains(address) && !dead.contains(address));
}

fn put_in_force<'a>(node: &Node, members: impl Iterator<Item = &'a Member>) {
    let addresses: HashMap<NodeId, SocketAddr> =
        members.map(|member| (member.node_id.clone(), member.address)).collect();
    let old = node.0.placement.load_full();
    if addresses == *old.addresses {
        return;
    }
    // Built on this task: at most some milliseconds for a hundred members, away from the request path.
    let ring = Arc::new(Ring::build(addresses.keys().cloned(), node.0.config.copies));
    let new = Placement { ring, addresses: Arc::new(addresses) };
    if new.ring.fingerprint() == old.ring.fingerprint() {
        return node.0.placement.store(Arc::new(new));
    }
    remember(node, &old, &new);
    node.0.placement.store(Arc::new(new.clone()));
    node.0.misplaced.notify_one();
    let (new, old) = (new.ring, &old.ring);
    let moved = Slot::all().filter(|slot| old.primary(*slot) != new.primary(*slot)).count();
    info!(ring = %new.fingerprint(), members = new.members().len(), slots_moved = moved, "the ring changed");
    let data = json!({
        "ring": new.fingerprint(),
        "previous": old.fingerprint(),
        "members": new.members().len(),
        "slots_moved": moved,
    });
    node.0.events.publish("ring_changed", node.now_ms(), data);
}

/// Keeps the tables that entries may still be placed by. A node that was alone has no former table of the cluster it
/// joins: it takes the one without itself.
fn remember(node: &Node, old: &Placement, new: &Placement) {
    let now = Instant::now();
    let until = now + FORMER_FOR;
    let mut former = vec![FormerPlacement { placement: old.clone(), until }];
    if old.ring.members() == [node.0.id.clone()] && new.ring.members().len() > 1 {
        let others = new.ring.members().iter().filter(|member| **member != node.0.id).cloned();
        let ring = Arc::new(Ring::build(others, node.0.config.copies));
        former.push(FormerPlacement { placement: Placement { ring, ..new.clone() }, until });
    }
    former.extend(node.0.former.load().iter().filter(|former| former.until > now).cloned());
    former.truncate(FORMER_MAX);
    node.0.former.store(Arc::new(former));
}

fn count(node: &Node, members: &Members) {
    let counts = members.counts();
    let each = [
        (Status::Healthy, counts.healthy),
        (Status::Suspect, counts.suspect),
        (Status::Unhealthy, counts.unhealthy),
    ];
    for (status, count) in each {
        node.0.metrics.set_members(status.as_str(), count);
    }
}

/// Turns what gossip noticed into events and log lines.
pub(super) async fn follow_events(node: Node, mut events: broadcast::Receiver<GossipEvent>) {
    loop {
        match events.recv().await {
            Ok(GossipEvent::Member(change, member)) => tell(&node, change, &member),
            Ok(GossipEvent::Renewed) => info!("the others had declared this node dead; it is back"),
            Ok(GossipEvent::Stalled(lateness)) => {
                warn!(milliseconds = lateness.as_millis() as u64, "this process did not run for a while");
            }
            Ok(GossipEvent::NameTaken(other)) => {
                let node = node.clone();
                crate::net::spawn(async move { super::join::check_name(&node, other).await });
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => warn!(missed, "membership events were lost"),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

fn tell(node: &Node, change: Change, member: &Member) {
    if matches!(change, Change::Up | Change::Restarted) {
        node.0.links.forgive(member.address);
        // It may die before it is first pinged, and is to be shown with a time all the same.
        node.0.contacts.lock().entry(member.node_id.clone()).or_default().seen_ms = node.now_ms();
    }
    let (kind, detail) = match change {
        Change::Up => ("member_up", None),
        Change::Restarted => ("member_up", Some("restarted")),
        Change::Recovered => ("member_up", Some("refuted the suspicion")),
        Change::Suspected => ("member_suspect", None),
        Change::Down => ("member_down", None),
        Change::Left => ("member_left", None),
    };
    info!(member = %member.node_id, address = %member.address, detail, "{}", kind.replace('_', " "));
    let status = if change == Change::Left { "left" } else { member.status.as_str() };
    let mut data = json!({"node_id": member.node_id, "address": member.address, "status": status});
    if let Some(detail) = detail {
        data["detail"] = detail.into();
    }
    node.0.events.publish(kind, node.now_ms(), data);
}

/// Measures the round trip to every peer, and exchanges version clocks with it.
pub(super) async fn keep_contact(node: Node) {
    let mut ticks = interval(CONTACT_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut pings = JoinSet::new();
        for peer in node.members().peers() {
            let (node, peer) = (node.clone(), peer.clone());
            pings.spawn(task(async move { ping(&node, &peer).await }));
        }
        while pings.join_next().await.is_some() {}
    }
}

async fn ping(node: &Node, peer: &Member) {
    let (asked, request) = (Instant::now(), Request::Ping { clock: node.0.versions.latest() });
    let reply = node.0.links.call(peer.address, &request, &[], asked + CONTACT_PERIOD).await;
    if let Ok((Reply::Pong { node_id, clock, .. }, _)) = reply {
        node.see_clock(clock);
        let contact = Contact { seen_ms: node.now_ms(), round_trip: Some(asked.elapsed()) };
        node.0.contacts.lock().insert(node_id, contact);
    }
}

/// A member as the interface shows it.
pub(super) fn describe(node: &Node, member: &Member) -> Value {
    let is_me = member.node_id == node.0.id;
    let contact = if is_me {
        Contact { seen_ms: node.now_ms(), round_trip: Some(Duration::ZERO) }
    } else {
        node.contact(&member.node_id).unwrap_or_default()
    };
    // A member is seen, too, when gossip brings news of it. A death is no sighting, only the latest it can have been.
    let is_news = member.status == Status::Healthy || contact.seen_ms == 0;
    let seen_ms = contact.seen_ms.max(if is_news { member.since_ms } else { 0 });
    let round_trip = contact.round_trip.unwrap_or_default();
    json!({
        "node_id": member.node_id,
        "address": member.address,
        "status": member.status.as_str(),
        "last_seen": rfc3339(seen_ms),
        "response_time": round_trip.as_millis() as u64,
        "rtt_us": round_trip.as_micros() as u64,
        "slots": node.ring().slots_of(&member.node_id),
    })
}
