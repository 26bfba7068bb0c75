//! Joining, and staying joined: greets the seeds until there are peers, and pulls whole member lists over the link.
//!
//! SWIM alone spreads news member by member; a list pulled at join, and now and then later, shows a node everybody at
//! once. A seed that is not up yet is normal. Whether the node may answer meanwhile is for [`super::admission`] to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::admission::{self, Greeting, Round};
use super::{Node, Stop, passage};
use crate::gossip::{CodecError, Identity, live_identities};
use crate::link::{Called, LinkError, Reply, Request};
use crate::model::NodeId;
use crate::net::resolve;

/// Pauses between rounds of greetings while this node knows nobody: short at first, for nodes that start together. Until it is
/// admitted they stay short, for nodes that take the place of one that is about to be declared dead.
const ALONE_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
const UNADMITTED_PAUSE_MAX: Duration = Duration::from_millis(250);
/// The same while datagrams do not pass: each greeting costs the member half a second of trying.
const UNHEARD_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Pauses between pulls once there are peers.
const JOINED_PAUSE: [Duration; 2] = [Duration::from_millis(400), Duration::from_secs(30)];
/// A node that is still outside says so this often.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(10);
/// The same while datagrams do not pass, which takes an operator.
const UNHEARD_COMPLAINT_PERIOD: Duration = Duration::from_secs(60);
/// How long one address of a name may take before the next is tried beside it, and how many are tried at a time: a name may
/// stand for machines that are gone, and swallow what is sent to them.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(100);
const ADDRESSES_AT_ONCE: usize = 8;
const PULL_TIMEOUT: Duration = Duration::from_secs(2);
/// What calling back takes less than the patience of the one that asked for it.
const CALL_MARGIN: Duration = Duration::from_millis(500);

/// Joins, and stays joined.
pub(super) async fn run(node: Node) {
    if node.0.config.seeds.is_empty() {
        info!("no address to join by: this node begins a cluster of its own, unless it was a member before");
    }
    tokio::join!(keep_greeting(&node), admission::run(&node));
}

async fn keep_greeting(node: &Node) {
    let mut complained_at: Option<Instant> = None;
    let mut random = StdRng::seed_from_u64(node.0.config.seed);
    let mut pause = ALONE_PAUSE[0];
    let mut was_alone = true;
    loop {
        let peers: Vec<SocketAddr> = node.members().peers().map(|peer| peer.address).collect();
        let alone = peers.is_empty();
        if alone != was_alone {
            pause = if alone { ALONE_PAUSE[0] } else { JOINED_PAUSE[0] };
            was_alone = alone;
        }
        let round = greet_missing_seeds(node, &peers).await;
        if let Some(peer) = peers.choose(&mut random).copied() {
            // Fails when the peer has just died; another one is asked next time.
            let _ = pull(node, peer).await;
        } else if let Some(reason) = round.failure()
            && complained_at.is_none_or(|at| at.elapsed() >= complaint_period(&round))
        {
            complained_at = Some(Instant::now());
            complain(node, reason);
        }
        let is_unheard = round.is_unheard();
        node.0.admission.note_round(round);
        wait(node, alone, pause).await;
        pause = (pause * 2).min(match (alone, node.is_admitted()) {
            (true, _) if is_unheard => UNHEARD_PAUSE_MAX,
            (_, false) => UNADMITTED_PAUSE_MAX,
            (true, true) => ALONE_PAUSE[1],
            (false, true) => JOINED_PAUSE[1],
        });
    }
}

fn complaint_period(round: &Round) -> Duration {
    if round.is_unheard() { UNHEARD_COMPLAINT_PERIOD } else { COMPLAINT_PERIOD }
}

fn complain(node: &Node, reason: &str) {
    let seeds = node.0.config.seeds.join(",");
    if node.is_admitted() {
        info!(seeds, reason, "nobody else is there; serving alone and trying on");
    } else {
        info!(seeds, reason, "not joined yet; answering nobody and trying on");
    }
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

/// Greets all seeds that are not peers, all at once.
async fn greet_missing_seeds(node: &Node, peers: &[SocketAddr]) -> Round {
    let rounds = join_all(node.0.config.seeds.iter().map(|seed| greet_seed(node, seed, peers))).await;
    let mut all = Round::default();
    for round in rounds {
        all.greeted.extend(round.greeted);
        all.unresolved.extend(round.unresolved);
    }
    all
}

/// Greets the addresses that a seed stands for, until one welcomes this node.
async fn greet_seed(node: &Node, seed: &str, peers: &[SocketAddr]) -> Round {
    let unresolved = |reason: String| Round { greeted: Vec::new(), unresolved: vec![reason] };
    let addresses = match resolve(seed).await {
        Ok(addresses) => addresses,
        Err(error) => return unresolved(format!("{seed} cannot be resolved: {error}")),
    };
    let is_missing = |address: &SocketAddr| *address != node.0.address && !peers.contains(address);
    let missing: Vec<_> = addresses.iter().copied().filter(is_missing).collect();
    let mut greetings = first_welcome(missing, |address| greet(node, address).boxed()).await;
    let greeted = addresses.into_iter().map(|address| (address, greetings.remove(&address))).collect();
    Round { greeted, unresolved: Vec::new() }
}

/// Greets one address after the other, the next when one has taken too long, until one of them is a welcome.
async fn first_welcome<F: Future<Output = Greeting>>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    greet: impl Fn(SocketAddr) -> F,
) -> BTreeMap<SocketAddr, Greeting> {
    let mut waiting = addresses.into_iter().peekable();
    let mut under_way = FuturesUnordered::new();
    let mut greetings = BTreeMap::new();
    loop {
        if under_way.len() < ADDRESSES_AT_ONCE
            && let Some(address) = waiting.next()
        {
            let greeting = greet(address);
            under_way.push(async move { (address, greeting.await) });
        }
        tokio::select! {
            biased;
            greeted = under_way.next() => {
                let Some((address, greeting)) = greeted else { return greetings };
                let is_welcome = greeting == Greeting::Welcomed;
                greetings.insert(address, greeting);
                if is_welcome {
                    return greetings;
                }
            }
            () = sleep(NEXT_ADDRESS_AFTER), if waiting.peek().is_some() && under_way.len() < ADDRESSES_AT_ONCE => {}
        }
    }
}

async fn greet(node: &Node, address: SocketAddr) -> Greeting {
    let known = async {
        ask_for_call(node, address).await?;
        pull(node, address).await
    };
    match known.await {
        Ok(()) => {
            node.0.gossip.announce(vec![address]).await;
            Greeting::Welcomed
        }
        // The address leads back here, where nobody is to be joined.
        Err(GreetError::List(ListError::Link(LinkError::Itself(_)))) => Greeting::Itself,
        Err(error) => error.into(),
    }
}

/// Has the node at `address` call this one. A member that one protocol reaches and the other does not would be in everybody's
/// way.
async fn ask_for_call(node: &Node, address: SocketAddr) -> Result<(), GreetError> {
    let request = Request::CallBack { node_id: node.0.id.clone(), address: node.0.address };
    let deadline = Instant::now() + PULL_TIMEOUT;
    match node.0.links.call(address, &request, &[], deadline).await {
        Ok((Reply::CalledBack(None), _)) => Ok(()),
        Ok((Reply::CalledBack(Some(reason)), _)) => {
            Err(GreetError::NotReached { address, reason, here: node.0.address })
        }
        Ok((Reply::TurnedAway(reason), _)) => Err(GreetError::Unheard(address, reason)),
        Ok(_) => Err(GreetError::Unfit(address)),
        Err(error) => Err(ListError::from(error).into()),
    }
}

/// Whether the node of this name answers at `address`, over TCP and UDP.
pub(super) async fn call_back(node: &Node, node_id: &NodeId, address: SocketAddr) -> Reply {
    // The one that asks waits for no longer than this.
    let deadline = Instant::now() + PULL_TIMEOUT - CALL_MARGIN;
    if let Err(reason) = call(node, node_id, address, deadline).await {
        return Reply::CalledBack(Some(reason));
    }
    match passage::check(node, node_id, address, deadline).await {
        Ok(()) => Reply::CalledBack(None),
        Err(reason) => {
            if node.0.complaints.is_due("join refused") {
                warn!(member = %node_id, %address, reason, "refused a node; more like it are not logged for a minute");
            }
            Reply::TurnedAway(reason)
        }
    }
}

async fn call(node: &Node, node_id: &NodeId, address: SocketAddr, deadline: Instant) -> Result<(), String> {
    // It says that it is up, whatever was noticed before.
    node.0.links.forgive(address);
    let request = Request::Ping { clock: node.0.versions.latest() };
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
pub(super) async fn list_at(
    node: &Node,
    called: impl Into<Called<'_>>,
    deadline: Instant,
) -> Result<Vec<Identity>, ListError> {
    list_of(node, called.into(), deadline).await.map(|(_, identities)| identities)
}

async fn list_of(
    node: &Node,
    called: Called<'_>,
    deadline: Instant,
) -> Result<(Bytes, Vec<Identity>), ListError> {
    let address = called.address;
    let (reply, list) = node.0.links.call(called, &Request::Members, &[], deadline).await?;
    if reply == Reply::Leaving {
        return Err(ListError::Leaving(address));
    }
    let identities = live_identities(&list).map_err(|error| ListError::Unreadable(address, error))?;
    Ok((list, identities))
}

/// Why a node was greeted in vain.
#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error("{0}")]
    List(#[from] ListError),
    #[error(
        "{address} does not reach this node: {reason}. Other nodes have to reach {here}, over TCP and UDP; if that is not this \
         node's address for them, set --advertise"
    )]
    NotReached { address: SocketAddr, reason: String, here: SocketAddr },
    #[error("{0} turns this node away: {1}")]
    Unheard(SocketAddr, String),
    #[error("{0} gave an answer that does not fit the question")]
    Unfit(SocketAddr),
    #[error("this node's name is still taken by the member at {namesake}, says {0}", namesake = .1)]
    NameTaken(SocketAddr, SocketAddr),
}

impl From<GreetError> for Greeting {
    fn from(error: GreetError) -> Greeting {
        match &error {
            GreetError::List(ListError::Link(
                LinkError::Unreachable { .. }
                | LinkError::Refused(_)
                | LinkError::Broken(_)
                | LinkError::Silent(_)
                | LinkError::Late(_),
            )) => Greeting::Absent(error.to_string()),
            GreetError::Unheard(..) => Greeting::Unheard(error.to_string()),
            _ => Greeting::TurnedAway(error.to_string()),
        }
    }
}

/// Takes in the member list of the node at `address`, unless this node's name stands in it for another address.
async fn pull(node: &Node, address: SocketAddr) -> Result<(), GreetError> {
    let (list, identities) = list_of(node, address.into(), Instant::now() + PULL_TIMEOUT).await?;
    let namesake = identities.iter().find(|id| id.node_id == node.0.id && id.address != node.0.address);
    if let Some(namesake) = namesake {
        check_name(node, namesake.address).await;
        return Err(GreetError::NameTaken(address, namesake.address));
    }
    node.0.gossip.apply(list.into()).await;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 8001).into()
    }

    /// The first so many addresses of a name swallow what they are sent, the next one welcomes.
    async fn greet_after_dead(dead: u8) -> (Duration, BTreeMap<SocketAddr, Greeting>) {
        let started = Instant::now();
        let greetings = first_welcome((0..=dead).map(address), async |one| {
            if one == address(dead) {
                return Greeting::Welcomed;
            }
            sleep(Duration::from_secs(1)).await;
            Greeting::Absent("no answer within 1 s".into())
        });
        let greetings = greetings.await;
        (started.elapsed(), greetings)
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_swallow_everything_are_tried_beside_each_other() {
        let (took, greetings) = greet_after_dead(0).await;
        assert_eq!((took, greetings.len()), (Duration::ZERO, 1));
        // A tenth of a second for each of the first eight; the other two wait for the first to be given up.
        let (took, greetings) = greet_after_dead(10).await;
        assert!(took <= Duration::from_millis(1250), "{took:?}");
        assert_eq!(greetings.get(&address(10)), Some(&Greeting::Welcomed));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_addresses_are_greeted_than_it_takes_to_be_welcomed() {
        let greetings = first_welcome((0..5).map(address), async |one| match one == address(1) {
            true => Greeting::Welcomed,
            false => Greeting::TurnedAway("its name is taken".into()),
        });
        let asked: Vec<_> = greetings.await.into_keys().collect();
        assert_eq!(asked, [address(0), address(1)]);
    }
}
