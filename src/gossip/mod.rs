//! Membership: SWIM over UDP, by foca.
//!
//! One task (`driver`) owns the protocol state (`machine`) and the socket. It knows nobody above it: it publishes a
//! membership view on a `watch` channel and what happened on a `broadcast` channel, and takes commands on a third.
//! Invariant: no step of the protocol ever awaits.

mod bucket;
mod codec;
mod driver;
mod envelope;
mod farewell;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod identity;
mod machine;
mod path;
#[cfg(test)]
mod simulated;
mod timers;

use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use foca::PeriodicParams;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

pub use self::codec::CodecError;
pub use self::driver::start;
pub use self::envelope::Rejected;
pub use self::identity::Identity;
pub use self::machine::Witness;
use crate::model::{Change, Member, Members, NodeId};
use crate::security::SharedKeyring;

/// The longest payload of a datagram. Leaves room for the envelope within an Ethernet frame.
pub const PAYLOAD_BYTES_MAX: usize = 1350;
/// The longest datagram: such a payload, sealed.
pub const DATAGRAM_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + envelope::OVERHEAD_BYTES;
/// How often a path is tried, and how long each try waits for its echo: datagrams may be lost.
const PATH_TRIES: usize = 4;
const PATH_TRY: Duration = Duration::from_millis(150);

/// How quickly a silent member is suspected and declared dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detection {
    /// For one data centre: a death is known everywhere after about a second.
    #[default]
    Lan,
    /// For one rack or machine: about half of that, at twice the traffic.
    Fast,
    /// For links between sites, or machines that stall.
    Relaxed,
}

impl Detection {
    fn foca_config(self) -> foca::Config {
        let [probe_period, probe_rtt, suspect_to_down, gossip] = match self {
            Detection::Lan => [200, 80, 600, 100],
            Detection::Fast => [100, 40, 300, 50],
            Detection::Relaxed => [500, 200, 1000, 100],
        }
        .map(Duration::from_millis);
        let every = |frequency, members: usize| {
            Some(PeriodicParams { frequency, num_members: NonZeroUsize::MIN.saturating_add(members - 1) })
        };
        foca::Config {
            probe_period,
            probe_rtt,
            num_indirect_probes: NonZeroUsize::MIN.saturating_add(2),
            max_transmissions: NonZeroU8::MIN.saturating_add(11),
            suspect_to_down_after: suspect_to_down,
            remove_down_after: Some(Duration::from_secs(3600)),
            max_packet_size: NonZeroUsize::MIN.saturating_add(PAYLOAD_BYTES_MAX - 1),
            notify_down_members: true,
            periodic_announce: every(Duration::from_secs(30), 1),
            // A healed partition is noticed by these: each half believes the other dead.
            periodic_announce_to_down_members: every(Duration::from_secs(1), 2),
            periodic_gossip: every(gossip, 3),
        }
    }
}

/// What the gossip layer has to be told.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// Datagrams of clusters with another name are ignored.
    pub cluster: String,
    /// How patient the failure detector is.
    pub detection: Detection,
    /// Seed of the protocol's random choices.
    pub seed: u64,
}

/// What datagrams are sealed with.
pub struct Sealing {
    /// None: they are not.
    pub keyring: SharedKeyring,
    /// Must never have been used before.
    pub nonce_seed: [u8; 32],
}

/// Something the membership layer noticed.
#[derive(Clone, Debug)]
pub enum GossipEvent {
    /// A member changed.
    Member(Change, Member),
    /// The others had declared this node dead; it is back under a new identity, with its memory as it was.
    Renewed,
    /// This process did not run for so long; deadlines were moved by as much.
    Stalled(Duration),
    /// Another live member carries this node's id.
    NameTaken(SocketAddr),
    /// No member answers a datagram any more, though members show themselves by other means.
    Deaf,
    /// Members answer datagrams again.
    HearsAgain,
    /// The node at this address has echoed a payload of so many bytes.
    Echoed {
        /// Where it says it is.
        address: SocketAddr,
        /// How long the payload was, there and back.
        bytes: usize,
    },
}

/// Whether datagrams pass between this node and another, there and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The longest do.
    Open,
    /// Only short ones do.
    Narrow,
    /// None does.
    Closed,
}

enum Command {
    Announce(Vec<SocketAddr>),
    Apply(Vec<u8>),
    List(oneshot::Sender<Vec<u8>>),
    Challenge(SocketAddr),
    Heard(SocketAddr, oneshot::Sender<usize>),
    Forget(NodeId, oneshot::Sender<bool>),
    Leave(oneshot::Sender<()>),
}

/// The handle to a running membership task.
#[derive(Clone)]
pub struct Gossip {
    identity: Identity,
    is_sealed: bool,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<Members>>,
    events: broadcast::Sender<GossipEvent>,
}

impl Gossip {
    /// The identity this process started with.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether datagrams are sealed, and so have to arrive in time.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    /// The membership view, now and whenever it changes.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<Members>> {
        self.view.clone()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<GossipEvent> {
        self.events.subscribe()
    }

    /// Greets the nodes at these addresses, and remembers them for as long as this node is alone.
    pub async fn announce(&self, addresses: Vec<SocketAddr>) {
        self.send(Command::Announce(addresses)).await;
    }

    /// Takes in a member list that a peer gave with [`Gossip::list`].
    pub async fn apply(&self, list: Vec<u8>) {
        self.send(Command::Apply(list)).await;
    }

    /// Everything this node knows of the membership, for a peer's [`Gossip::apply`].
    pub async fn list(&self) -> Vec<u8> {
        let (answer, list) = oneshot::channel();
        self.send(Command::List(answer)).await;
        list.await.unwrap_or_default()
    }

    /// Tries whether datagrams as long as any, and short ones, pass to the node at `address` and back. Takes 0.6 s at most.
    pub async fn try_path(&self, address: SocketAddr) -> Passage {
        let (mut events, mut passage) = (self.events.subscribe(), Passage::Closed);
        for _ in 0..PATH_TRIES {
            self.send(Command::Challenge(address)).await;
            let echoed = timeout(PATH_TRY, async {
                while passage != Passage::Open {
                    match events.recv().await {
                        Ok(GossipEvent::Echoed { address: from, bytes }) if from == address => {
                            passage = if bytes < PAYLOAD_BYTES_MAX { Passage::Narrow } else { Passage::Open };
                        }
                        Err(broadcast::error::RecvError::Closed) => return,
                        _ => {}
                    }
                }
            });
            // Late: the next try.
            let _ = echoed.await;
            if passage == Passage::Open {
                break;
            }
        }
        passage
    }

    /// How many bytes the longest payload had with which the node at `address` lately tried the path to this one.
    pub async fn heard(&self, address: SocketAddr) -> usize {
        let (answer, heard) = oneshot::channel();
        self.send(Command::Heard(address, answer)).await;
        heard.await.unwrap_or(0)
    }

    /// Makes the whole cluster forget a dead member now. False if it is unknown or alive.
    pub async fn forget(&self, node_id: NodeId) -> bool {
        let (answer, done) = oneshot::channel();
        self.send(Command::Forget(node_id, answer)).await;
        done.await.unwrap_or(false)
    }

    /// Says goodbye to the cluster; the task stops listening afterwards.
    pub async fn leave(&self) {
        let (answer, done) = oneshot::channel();
        self.send(Command::Leave(answer)).await;
        // An error means that the task is gone: then there is nobody to say goodbye any more.
        let _ = done.await;
    }

    async fn send(&self, command: Command) {
        // Fails only when the task has ended, which ends the process; nothing is left to tell.
        let _ = self.commands.send(command).await;
    }
}

/// Reads the identities of the live members in a list, without applying it.
///
/// # Errors
/// When the bytes are not a member list.
pub fn live_identities(list: &[u8]) -> Result<Vec<Identity>, CodecError> {
    let members = codec::decode_list(list)?;
    let live = members.into_iter().filter(|member| member.state() != foca::State::Down);
    Ok(live.map(|member| member.id().clone()).collect())
}
