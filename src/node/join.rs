//! Joining, and staying joined: greets the seeds until there are peers, and pulls whole member lists over the link.
//!
//! SWIM alone spreads news member by member; a list pulled at join, and now and then later, shows a node everybody at
//! once. A seed that is not up yet is normal: the node serves alone meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Node, Stop};
use crate::gossip::{CodecError, Identity, live_identities};
use crate::link::{LinkError, Reply, Request};
use crate::model::NodeId;
use crate::net::lookup_host;

/// Pauses between attempts to join: short at first, for nodes that start together.
const ALONE_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Pauses between pulls once there are peers.
const JOINED_PAUSE: [Duration; 2] = [Duration::from_millis(400), Duration::from_secs(30)];
/// A node that is still alone says so this often.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(10);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first peer may take after a seed has answered.
const FIRST_PEER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a node that no seed has answered waits to be found: it may have been a member a moment ago. Members probe one
/// another several times in that time, and call once for those that they believe dead.
const PROBED_WITHIN: Duration = Duration::from_secs(1);
/// How long it may take until another member goes by the same table.
const TABLE_TIMEOUT: Duration = Duration::from_secs(2);
const PULL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node may take that is called back; shorter than the patience of the one that asked for it.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);

pub(super) async fn run(node: Node) {
    let mut complained_at: Option<Instant> = None;
    let mut random = StdRng::seed_from_u64(node.0.config.seed);
    let mut pause = ALONE_PAUSE[0];
    let mut was_alone = true;
    if node.0.config.seeds.is_empty() {
        info!("no address to join by: this node begins a cluster of its own, unless it was a member before");
    }
    loop {
        let peers: Vec<SocketAddr> = node.members().peers().map(|peer| peer.address).collect();
        let alone = peers.is_empty();
        if alone != was_alone {
            pause = if alone { ALONE_PAUSE[0] } else { JOINED_PAUSE[0] };
            was_alone = alone;
        }
        let greeted = greet_missing_seeds(&node, &peers).await;
        if !node.is_ready() {
            let is_known = greeted.is_ok() && !node.0.config.seeds.is_empty();
            wait_for_table(&node, if is_known { FIRST_PEER_TIMEOUT } else { PROBED_WITHIN }).await;
            // Fails when it was set before, which the condition excludes.
            let _ = node.0.ready.set(());
        }
        let anyone = peers.choose(&mut random).copied();
        if let Some(peer) = anyone {
            // Fails when the peer has just died; another one is asked next time.
            let _ = pull(&node, peer).await;
        } else if let Err(reason) = greeted
            && complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_PERIOD)
        {
            complained_at = Some(Instant::now());
            info!(
                seeds = node.0.config.seeds.join(","),
                reason, "not joined yet; serving alone and trying on"
            );
        }
        wait(&node, alone, pause).await;
        pause = (pause * 2).min(if alone { ALONE_PAUSE[1] } else { JOINED_PAUSE[1] });
    }
}

/// Until another member goes by the same table: before that this node knows some of the members at most, and would look
/// for keys in the wrong places.
async fn wait_for_table(node: &Node, patience: Duration) {
    let first_peer = async {
        loop {
            if let Some(peer) = node.members().peers().next() {
                return peer.address;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    // A seed that is this node itself brings no peers.
    let Ok(peer) = timeout(patience, first_peer).await else { return };
    // Without the list the members become known one by one, which takes longer.
    let _ = pull(node, peer).await;
    let agreed = async {
        while !node.0.placement.load().is_shared() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(TABLE_TIMEOUT, agreed).await;
}

/// Waits for the pause to end, or for the first peer.
async fn wait(node: &Node, alone: bool, pause: Duration) {
    let mut view = node.0.view.clone();
    let peers_come = async {
        while alone && view.borrow_and_update().peers().next().is_none() {
            if view.changed().await.is_err() {
                return;
            }
        }
        if !alone {
            sleep(pause).await;
        }
    };
    let _ = timeout(pause, peers_come).await;
}

/// Greets all seeds that are not peers at once, until one of them has answered. An error, for people, if none did.
async fn greet_missing_seeds(node: &Node, peers: &[SocketAddr]) -> Result<(), String> {
    let mut greeting: FuturesUnordered<_> =
        node.0.config.seeds.iter().map(|seed| greet_seed(node, seed, peers)).collect();
    let mut failed = None;
    while let Some(greeted) = greeting.next().await {
        match greeted {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(reason) => failed = Some(reason),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// True if an address of the seed has answered, false if there was none to greet.
async fn greet_seed(node: &Node, seed: &str, peers: &[SocketAddr]) -> Result<bool, String> {
    let addresses = match timeout(RESOLVE_TIMEOUT, lookup_host(seed)).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(format!("{seed} cannot be resolved: {error}")),
        Err(_) => return Err(format!("{seed} cannot be resolved in {} s", RESOLVE_TIMEOUT.as_secs())),
    };
    let mut failed = None;
    for address in addresses.filter(|address| *address != node.0.address && !peers.contains(address)) {
        match ask_for_call(node, address).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(reason) => {
                failed = Some(reason);
                continue;
            }
        }
        match pull(node, address).await {
            Ok(true) => {
                node.0.gossip.announce(vec![address]).await;
                return Ok(true);
            }
            Ok(false) => failed = Some(format!("this node's name is still taken, says {address}")),
            Err(reason) => failed = Some(reason),
        }
    }
    failed.map_or(Ok(false), Err)
}

/// Has the node at `address` call this one; false if it is this one. A member that gossip reaches and no connection does would
/// be in everybody's way.
async fn ask_for_call(node: &Node, address: SocketAddr) -> Result<bool, String> {
    let request = Request::CallBack { node_id: node.0.id.clone(), address: node.0.address };
    let deadline = Instant::now() + PULL_TIMEOUT;
    match node.0.links.call(address, &request, &[], deadline).await {
        Ok((Reply::CalledBack(None), _)) => Ok(true),
        Ok((Reply::CalledBack(Some(reason)), _)) => Err(format!(
            "{address} does not reach this node: {reason}. Other nodes have to reach {}, over TCP and UDP; if that is not \
             this node's address for them, set --advertise",
            node.0.address
        )),
        Ok(_) => Err(format!("{address} gave an answer that does not fit the question")),
        Err(LinkError::Itself(_)) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the node of this name answers at `address`.
pub(super) async fn call_back(node: &Node, node_id: &NodeId, address: SocketAddr) -> Result<(), String> {
    // It says that it is up, whatever was noticed before.
    node.0.links.forgive(address);
    let request = Request::Ping { clock: node.0.versions.latest() };
    let deadline = Instant::now() + CALL_TIMEOUT;
    match node.0.links.call((node_id, address), &request, &[], deadline).await {
        Ok((Reply::Pong { node_id: other, .. }, _)) if other == *node_id => Ok(()),
        Ok((Reply::Pong { node_id: other, .. }, _)) => Err(format!("{other} answers at {address}")),
        Ok(_) => Err(format!("what answers at {address} is no node")),
        Err(error) => Err(error.to_string()),
    }
}

/// Why a node gave no member list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0} is leaving the cluster")]
    Leaving(SocketAddr),
    #[error("{0} gave no member list: {1}")]
    Unreadable(SocketAddr, CodecError),
}

/// The live members as the node at `address` knows them.
pub(super) async fn list_at(node: &Node, address: SocketAddr) -> Result<Vec<Identity>, ListError> {
    list_of(node, address).await.map(|(_, identities)| identities)
}

async fn list_of(node: &Node, address: SocketAddr) -> Result<(Bytes, Vec<Identity>), ListError> {
    let deadline = Instant::now() + PULL_TIMEOUT;
    let (reply, list) = node.0.links.call(address, &Request::Members, &[], deadline).await?;
    if reply == Reply::Leaving {
        return Err(ListError::Leaving(address));
    }
    let identities = live_identities(&list).map_err(|error| ListError::Unreadable(address, error))?;
    Ok((list, identities))
}

/// Takes in the member list of the node at `address`. False, and nothing taken, if this node's name stands in it for
/// another address.
async fn pull(node: &Node, address: SocketAddr) -> Result<bool, String> {
    let (list, identities) = list_of(node, address).await.map_err(|error| error.to_string())?;
    let namesake = identities.iter().find(|id| id.node_id == node.0.id && id.address != node.0.address);
    if let Some(namesake) = namesake {
        check_name(node, namesake.address).await;
        return Ok(false);
    }
    node.0.gossip.apply(list.into()).await;
    Ok(true)
}

/// Stops this node if another process at `address` really is alive under the same name and was there first.
pub(super) async fn check_name(node: &Node, address: SocketAddr) {
    let request = Request::Ping { clock: node.0.versions.latest() };
    let reply = node.0.links.call(address, &request, &[], Instant::now() + PULL_TIMEOUT).await;
    let Ok((Reply::Pong { node_id, boot, .. }, _)) = reply else { return };
    if node_id != node.0.id || boot >= node.0.boot {
        return;
    }
    let (id, here) = (&node.0.id, node.0.address);
    warn!(id = %id, other = %address, "the name of this node is taken");
    let reason = format!(
        "node id {id:?} is already in use by the member at {address}; this node, at {here}, needs another --id",
        id = id.as_str()
    );
    node.0.stop.send_replace(Some(Stop::Fatal(reason)));
}
