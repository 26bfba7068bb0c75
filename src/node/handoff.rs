//! Leaving: says goodbye, and hands what this node holds to the members that stay.
//!
//! A node that has left hears no gossip any more, so it asks the others who is there, and is told by those that leave, too.
//! Invariant: what is handed over is acknowledged by a member that did not say goodbye and was heard a moment ago.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::Node;
use super::join::{ListError, list_at};
use super::membership::{addresses, put_in_force};
use super::placement::Placement;
use crate::gossip::Identity;
use crate::link::{LinkError, Request};
use crate::model::{NodeId, Status};

/// How long a node that has left still answers after it has handed over everything: the news takes this long to reach
/// everybody, and whoever goes by a former table may still give it something.
const LINGER: Duration = Duration::from_secs(1);
/// How long a goodbye may take to arrive.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(300);
/// Pause between two questions who is there, and how long an answer may take.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
const FOLLOW_TIMEOUT: Duration = Duration::from_millis(500);
/// A member from which nothing is heard for this long, though it is asked for leases all the time, takes nothing. About as
/// long as the failure detector's patience.
const OUT_OF_REACH_AFTER: Duration = Duration::from_millis(1200);

/// What a member said of who is there.
enum News {
    /// These are.
    List(Vec<Identity>),
    /// It is gone, or about to be.
    Gone,
    /// Nothing.
    None,
}

/// What a member said of its leaving.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goodbye {
    /// The process that said it.
    pub(super) boot: u64,
    /// It ends, after it has handed over what it held.
    pub(super) has_ended: bool,
}

impl Node {
    /// Notes what a member said of its leaving.
    pub(super) fn note_goodbye(&self, member: NodeId, said: Goodbye) {
        let mut goodbyes = self.0.goodbyes.lock();
        let last = goodbyes.entry(member).or_insert(said);
        // On two connections the first may come last.
        if said.boot > last.boot || said.boot == last.boot && said.has_ended {
            *last = said;
        }
    }

    /// Whether the process of a member is known to be gone: gossip has declared it dead, or it said its farewell. That its
    /// port refuses connections says nothing: a rule, or a load balancer, may do that while it lives.
    pub(super) fn is_gone(&self, member: &NodeId) -> bool {
        let goodbye = self.0.goodbyes.lock().get(member).copied().filter(|goodbye| goodbye.has_ended);
        match self.members().get(member) {
            Some(seen) if seen.status == Status::Unhealthy => true,
            Some(seen) => goodbye.is_some_and(|goodbye| goodbye.boot >= seen.boot),
            None => goodbye.is_some(),
        }
    }

    /// The error as it is, but for a refusal by a member that may live: then it is out of reach.
    pub(super) fn doubt_refusal(&self, member: &NodeId, error: LinkError) -> LinkError {
        match error {
            LinkError::Refused(_) if cfg!(feature = "fault-refused-is-gone") => error,
            LinkError::Refused(address) if !self.is_gone(member) => LinkError::Unreachable {
                address,
                reason: "its port refuses connections, though it is not known to be gone".into(),
            },
            error => error,
        }
    }

    /// Leaves the cluster: says goodbye, then hands every entry to its new owner, for at most `patience`.
    pub async fn leave(&self, patience: Duration) {
        let began = Instant::now();
        self.0.leaving.store(true, Ordering::Release);
        // Also those that left before are told: they must not hand over to this node.
        let goodbye = Request::Goodbye { node_id: self.0.id.clone(), boot: self.0.boot };
        tokio::join!(self.0.gossip.leave(), tell_all(self, &goodbye));
        let handed_over = async {
            tokio::select! {
                biased;
                () = self.wait_until_quiet(LINGER) => true,
                () = step_out(self, began) => false,
            }
        };
        let (entries, left_out_before) = (self.0.store.len(), self.0.metrics.sync_left_out.get());
        let ended = timeout(patience, handed_over).await;
        if ended.is_err() {
            self.bequeath().await;
        }
        tell_all(self, &Request::Farewell { node_id: self.0.id.clone(), boot: self.0.boot }).await;
        let left_out = self.0.metrics.sync_left_out.get() - left_out_before;
        match ended {
            Ok(true) if left_out > 0 => {
                warn!(left_out, "handed over all entries but those that no owner takes");
            }
            Ok(true) => info!("handed over all entries"),
            Ok(false) if entries == 0 => info!("no other member is left, and there is nothing to hand over"),
            Ok(false) => warn!(entries, "no other member is left to take these entries"),
            Err(_) => warn!(
                seconds = patience.as_secs(),
                slots = self.under_replicated_slots(),
                "stopped before all entries were handed over"
            ),
        }
    }
}

/// Tells everybody that may hold something, or wait for what this node holds.
async fn tell_all(node: &Node, news: &Request) {
    let placement = node.0.placement.load_full();
    let deadline = Instant::now() + GOODBYE_TIMEOUT;
    // The last word is for those that hear it: nothing waits for it.
    let is_last = matches!(news, Request::Farewell { .. });
    let hearers = placement.others().filter(|(_, address)| !is_last || !node.is_unheard(*address));
    let told = hearers.map(|member| node.0.links.call(member, news, &[], deadline));
    // A member that this does not reach learns it by gossip, or is gone.
    let _ = timeout(GOODBYE_TIMEOUT, join_all(told)).await;
}

/// Takes this node itself out of its table, so that everything it holds belongs elsewhere, and follows who is there. Ends
/// when nobody is.
async fn step_out(node: &Node, began: Instant) {
    let view = node.members();
    let mut members = addresses(view.peers().filter(|peer| !has_left(node, &peer.node_id, peer.boot)));
    loop {
        put_in_force(node, &members);
        if members.is_empty() {
            return;
        }
        sleep(FOLLOW_PAUSE).await;
        members = follow(node, &node.0.placement.load_full()).await;
        members.retain(|_, address| is_in_reach(node, *address, began));
    }
}

/// The members that are there, by the lists of those that answer. A member that does not answer yet counts as there.
async fn follow(node: &Node, placement: &Placement) -> BTreeMap<NodeId, SocketAddr> {
    let others: Vec<_> = placement.others().collect();
    let news = join_all(others.iter().map(|member| news_of(node, *member))).await;
    let listed = news.iter().flat_map(|news| if let News::List(list) = news { &list[..] } else { &[] });
    let there = listed.filter(|one| one.node_id != node.0.id && !has_left(node, &one.node_id, one.boot));
    let mut members: BTreeMap<_, _> = there.map(|one| (one.node_id.clone(), one.address)).collect();
    for ((member, address), news) in others.into_iter().zip(&news) {
        let is_owner = placement.ring.members().binary_search(member).is_ok();
        match news {
            News::Gone if members.get(member) == Some(&address) => drop(members.remove(member)),
            News::None if is_owner && !node.0.goodbyes.lock().contains_key(member) => {
                members.entry(member.clone()).or_insert(address);
            }
            _ => {}
        }
    }
    members
}

async fn news_of(node: &Node, (member, address): (&NodeId, SocketAddr)) -> News {
    match list_at(node, (member, address), Instant::now() + FOLLOW_TIMEOUT).await {
        Ok(list) => News::List(list),
        Err(ListError::Leaving(_)) => News::Gone,
        Err(ListError::Link(LinkError::Refused(_))) if node.is_gone(member) => News::Gone,
        Err(error) => {
            debug!(%member, %error, "no news of the members");
            News::None
        }
    }
}

/// Whether this process of a member said goodbye.
fn has_left(node: &Node, member: &NodeId, boot: u64) -> bool {
    node.0.goodbyes.lock().get(member).is_some_and(|left| left.boot >= boot)
}

/// Whether something was heard of the member a moment ago. It is asked all the time, unless this process itself did not run.
fn is_in_reach(node: &Node, address: SocketAddr, began: Instant) -> bool {
    let asked_for = began.elapsed().min(Duration::from_millis(node.uptime_ms() - node.woke_ms()));
    asked_for < OUT_OF_REACH_AFTER || node.0.links.has_heard(address, OUT_OF_REACH_AFTER)
}
