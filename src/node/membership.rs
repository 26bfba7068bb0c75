//! Follows the membership: keeps the table in step with the view, and tells what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::time::sleep;
use tracing::{info, warn};

use super::placement::Placement;
use super::{Contact, Node, rfc3339};
use crate::gossip::GossipEvent;
use crate::model::{Change, Member, Members, NodeId, Ring, Slot, Status};

/// Changes of this long are taken together: a healing partition renews nearly every identity at once.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// After a change of the table, until former owners have handed over and dropped what they held, unless they hold very much.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(60);

/// Rebuilds the table after each change of the view.
pub(super) async fn follow_view(node: Node) {
    let (mut view, mut apart) = (node.0.view.clone(), node.0.reach.follow_apart());
    loop {
        let members = view.borrow_and_update().clone();
        apart.mark_unchanged();
        if !node.is_leaving() {
            take_up(&node, &members);
        }
        count(&node, &members);
        let goes_on = tokio::select! {
            changed = view.changed() => changed.is_ok(),
            // The sender is this node's own.
            _ = apart.changed() => true,
        };
        if !goes_on {
            return;
        }
        sleep(DEBOUNCE).await;
    }
}

pub(super) fn addresses<'a>(members: impl IntoIterator<Item = &'a Member>) -> BTreeMap<NodeId, SocketAddr> {
    members.into_iter().map(|member| (member.node_id.clone(), member.address)).collect()
}

fn take_up(node: &Node, members: &Members) {
    let apart = node.0.reach.apart();
    put_in_force(node, &addresses(members.live().filter(|member| !apart.contains(&member.node_id))));
    // After the change, which makes dirty what one that is back may lack.
    note_older(node);
    node.0.contacts.lock().retain(|node_id, _| members.get(node_id).is_some());
    let placement = node.0.placement.load();
    let is_known = |node_id: &_| members.get(node_id).is_some() || placement.addresses.contains_key(node_id);
    node.0.goodbyes.lock().retain(|node_id, _| is_known(node_id));
    close_unused_links(node);
}

/// Notes whether somebody may hold older values than the owners do: a member that is dead and may come back, or one that
/// owned other slots by a former table and has not handed them over.
pub(super) fn note_older(node: &Node) {
    let is_missing = node.members().iter().any(|member| member.status == Status::Unhealthy);
    let is_new =
        node.uptime_ms() < node.0.placement.load().since_ms() + HANDED_OVER_WITHIN.as_millis() as u64;
    node.update_ledger(|ledger| ledger.set_missing(is_missing || is_new));
}

/// One that has left may still have answers under way, and something to hand over.
fn close_unused_links(node: &Node) {
    let placement = node.0.placement.load();
    let used: BTreeSet<_> = placement.addresses.values().copied().collect();
    node.0.links.retain(|address| used.contains(address));
}

pub(super) fn put_in_force(node: &Node, members: &BTreeMap<NodeId, SocketAddr>) {
    let old = node.0.placement.load_full();
    if old.goes_by(members) {
        return;
    }
    let departed = departed(node, &old, members);
    // Built on this task: at most some milliseconds for a hundred members, away from the request path.
    let new = Placement::new(&node.0.id, members, &departed, node.0.config.copies, node.uptime_ms());
    let new = Arc::new(new);
    // Together, so that who asks for a lease is told the slots that go with the table.
    node.owe(|ledger| {
        if node.is_leaving() {
            ledger.leave_behind(&new.ring);
        }
        ledger.change_table(&node.0.id, &old.ring, &new.ring);
        node.0.placement.store(new.clone());
    });
    node.reconsider(&new);
    node.0.table_changed.notify_one();
    let (new, old) = (&new.ring, &old.ring);
    if new.fingerprint() != old.fingerprint() {
        tell_table(node, old, new);
    }
}

/// Members of the former table that said goodbye, which are asked until they are gone, and those that are set apart: they hand
/// over what they hold.
fn departed(
    node: &Node,
    old: &Placement,
    members: &BTreeMap<NodeId, SocketAddr>,
) -> BTreeMap<NodeId, SocketAddr> {
    let view = node.members();
    let mut departed = old.departed();
    // One that leaves itself does not hear of such any more: whoever is not there may be one.
    let has_left = |member: &NodeId| node.is_leaving() || view.get(member).is_none();
    let left = old.ring.members().iter().filter(|member| **member != node.0.id && has_left(member));
    departed.extend(left.filter_map(|member| Some((member.clone(), *old.addresses.get(member)?))));
    let apart = node.0.reach.apart();
    departed.extend(addresses(view.peers().filter(|member| apart.contains(&member.node_id))));
    departed.retain(|member, address| {
        !members.contains_key(member) && !members.values().any(|taken| taken == address)
    });
    departed
}

fn tell_table(node: &Node, old: &Ring, new: &Ring) {
    let moved = Slot::all().filter(|slot| old.primary(*slot) != new.primary(*slot)).count();
    info!(ring = %new.fingerprint(), members = new.members().len(), slots_moved = moved, "the ring changed");
    let data = json!({
        "ring": new.fingerprint(),
        "previous": old.fingerprint(),
        "members": new.members().len(),
        "slots_moved": moved,
    });
    node.0.events.publish("ring_changed", node.wall_ms(), data);
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
            Ok(GossipEvent::Renewed) => {
                info!("the others had declared this node dead; it is back");
                node.0.pulse.wake(node.uptime_ms());
                node.share_everything();
            }
            Ok(GossipEvent::Stalled(lateness)) => {
                warn!(milliseconds = lateness.as_millis() as u64, "this process did not run for a while");
            }
            Ok(GossipEvent::NameTaken(other)) => {
                let node = node.clone();
                crate::net::spawn(async move { super::join::check_name(&node, other).await });
            }
            Ok(GossipEvent::Deaf) => warn!(
                "TCP works, UDP from this node, {}, gets no answer: a firewall, or a clock? The node suspects no member meanwhile",
                node.0.address
            ),
            Ok(GossipEvent::HearsAgain) => info!("UDP gets answers again"),
            // For whoever tried the path.
            Ok(GossipEvent::Echoed { .. }) => {}
            Err(broadcast::error::RecvError::Lagged(missed)) => warn!(missed, "membership events were lost"),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

fn tell(node: &Node, change: Change, member: &Member) {
    if matches!(change, Change::Up | Change::Restarted) {
        node.0.links.forgive(member.address);
        // It may die before it is first pinged, and is to be shown with a time all the same.
        let mut contacts = node.0.contacts.lock();
        let contact = contacts.entry(member.node_id.clone()).or_default();
        (contact.seen_ms, contact.admission) = (Some(node.uptime_ms()), None);
    }
    let udp;
    let (kind, detail) = match change {
        Change::Up => ("member_up", None),
        Change::Restarted => ("member_up", Some("restarted")),
        Change::Recovered => ("member_up", Some("refuted the suspicion")),
        Change::Suspected => ("member_suspect", None),
        Change::Down if node.is_linked(member.address) => {
            udp = format!("TCP works, UDP to {} gets no answer: a firewall, or a clock?", member.address);
            ("member_down", Some(&*udp))
        }
        Change::Down => ("member_down", None),
        Change::Left => ("member_left", None),
    };
    info!(member = %member.node_id, address = %member.address, detail, "{}", kind.replace('_', " "));
    let status = if change == Change::Left { "left" } else { member.status.as_str() };
    let mut data = json!({"node_id": member.node_id, "address": member.address, "status": status});
    if let Some(detail) = detail {
        data["detail"] = detail.into();
    }
    node.0.events.publish(kind, node.wall_ms(), data);
}

/// A member as the interface shows it.
pub(super) fn describe(node: &Node, member: &Member) -> Value {
    let is_me = member.node_id == node.0.id;
    let contact = if is_me {
        Contact { seen_ms: Some(node.uptime_ms()), round_trip: Some(Duration::ZERO), ..Contact::default() }
    } else {
        node.contact(&member.node_id).unwrap_or_default()
    };
    // A member is seen, too, when gossip brings news of it. A death is no sighting, only the latest it can have been.
    let is_news = member.status == Status::Healthy || contact.seen_ms.is_none();
    let seen_ms = contact.seen_ms.max(is_news.then_some(member.since_ms)).unwrap_or_default();
    let round_trip = contact.round_trip.unwrap_or_default();
    json!({
        "node_id": member.node_id,
        "address": member.address,
        "status": member.status.as_str(),
        "last_seen": rfc3339(node.wall_at_ms(seen_ms)),
        "response_time": round_trip.as_millis() as u64,
        "rtt_us": round_trip.as_micros() as u64,
        "clock_offset_ms": node.clock_offset_ms(&member.node_id),
        "slots": node.ring().slots_of(&member.node_id),
        "unreachable_from": node.unreachable_from(&member.node_id),
    })
}
