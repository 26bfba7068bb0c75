//! The one task that owns the socket and the machine.
//!
//! Selects, biased, over datagrams, commands and the earliest timer; takes everything off the socket before it runs a
//! timer, so that an answer that has arrived is never counted as missing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::bucket::Buckets;
use super::envelope::{Envelope, Rejected};
use super::machine::{LATE, Machine, Now};
use super::{Command, Gossip, GossipConfig, GossipEvent, Identity, PAYLOAD_BYTES_MAX, Sealing, Witness};
use crate::net::{NodeClock, UdpSocket, spawn_vital};
use crate::telemetry::{Metrics, Seldom};

/// Larger than any datagram of ours; a longer one is cut off and refused.
const DATAGRAM_BYTES_MAX: usize = 2048;
/// Datagrams taken before timers run, so that a flood cannot stop the timers altogether.
const DATAGRAMS_PER_TURN: usize = 1024;
/// Subscribers that fall behind this far lose the oldest events.
const EVENTS_KEPT: usize = 1024;
const COMMANDS_MAX: usize = 64;
/// A goodbye goes out this often: a datagram may be lost.
const GOODBYES: usize = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(20);

/// Starts the membership task of `identity` on a bound socket.
pub fn start(
    socket: UdpSocket,
    config: &GossipConfig,
    identity: Identity,
    sealing: Sealing,
    witness: Witness,
    clock: NodeClock,
    metrics: Arc<Metrics>,
) -> (Gossip, JoinHandle<()>) {
    let now = Now::by(&clock);
    let is_sealed = sealing.keyring.is_some();
    let envelope = Envelope::new(&config.cluster, sealing.keyring, sealing.nonce_seed);
    let machine = Machine::new(config, envelope, identity.clone(), witness, now);
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (publish, view) = watch::channel(Arc::new(machine.members().clone()));
    let (events, _) = broadcast::channel(EVENTS_KEPT);
    let buckets = Buckets::new(now.instant);
    metrics.show_rejections(&Rejected::KINDS);
    let driver = Driver {
        socket,
        machine,
        clock,
        metrics,
        inbox,
        publish,
        events: events.clone(),
        buckets,
        complaints: Seldom::default(),
    };
    (Gossip { identity, is_sealed, commands, view, events }, spawn_vital("gossip", driver.run()))
}

struct Driver {
    socket: UdpSocket,
    machine: Machine,
    clock: NodeClock,
    metrics: Arc<Metrics>,
    inbox: mpsc::Receiver<Command>,
    publish: watch::Sender<Arc<crate::model::Members>>,
    events: broadcast::Sender<GossipEvent>,
    buckets: Buckets,
    complaints: Seldom<&'static str>,
}

impl Driver {
    async fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let deadline = self.machine.next_deadline();
            let mut command = None;
            tokio::select! {
                biased;
                // An error shows again at the read, where it is counted.
                _ = self.socket.readable() => {}
                received = self.inbox.recv() => match received {
                    Some(received) => command = Some(received),
                    None => return,
                },
                () = sleep_until(deadline) => {}
            }
            let lateness = Instant::now().saturating_duration_since(deadline);
            // Before the datagrams: timers that they start run from now on.
            if lateness > LATE {
                self.machine.excuse(lateness);
            }
            self.drain(&mut buffer);
            // In a flood there is always another datagram, and the select never gets to the commands.
            if command.is_none() {
                command = self.inbox.try_recv().ok();
            }
            let now = self.now();
            self.machine.run_timers(now);
            if let Some(command) = command {
                self.obey(command, now).await;
            }
            self.finish_turn(now);
        }
    }

    fn now(&self) -> Now {
        Now::by(&self.clock)
    }

    fn drain(&mut self, buffer: &mut [u8]) {
        for _ in 0..DATAGRAMS_PER_TURN {
            match self.socket.try_recv_from(buffer) {
                Ok((bytes, from)) => self.receive(&buffer[..bytes], from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Linux reports an earlier send's "port unreachable" here: a dead peer, which the protocol finds out.
                Err(error) => debug!(%error, "receiving a datagram"),
            }
        }
    }

    fn receive(&mut self, datagram: &[u8], from: SocketAddr) {
        self.metrics.gossip_received.inc();
        self.metrics.gossip_received_bytes.inc_by(datagram.len() as u64);
        let now = self.now();
        let members = self.machine.members();
        let is_member = |address| members.peers().any(|member| member.address.ip().to_canonical() == address);
        let received = match self.buckets.admit(from.ip(), is_member, now.instant) {
            true => self.machine.receive(datagram, now),
            false => Err(Rejected::TooMany),
        };
        let Err(reason) = received else { return };
        self.metrics.reject_datagram(reason.kind());
        if self.complaints.is_due(reason.kind()) {
            warn!(%from, %reason, "dropped a datagram; more like this are counted, not logged, for a minute");
        }
    }

    async fn obey(&mut self, command: Command, now: Now) {
        match command {
            Command::Announce(addresses) => self.machine.announce(&addresses, now),
            Command::Apply(list) => self.machine.apply(&list, now),
            // A caller that stopped waiting needs no answer.
            Command::List(answer) => drop(answer.send(self.machine.list())),
            Command::Challenge(address) => {
                self.machine.challenge(address, None, now);
                self.machine.challenge(address, Some(PAYLOAD_BYTES_MAX), now);
            }
            // A caller that stopped waiting needs no answer.
            Command::Heard(address, answer) => drop(answer.send(self.machine.heard(address, now))),
            Command::Forget(node_id, answer) => drop(answer.send(self.machine.forget(&node_id, now))),
            Command::Leave(done) => {
                self.say_goodbye().await;
                // A caller that stopped waiting needs no answer.
                let _ = done.send(());
            }
        }
    }

    async fn say_goodbye(&mut self) {
        for _ in 0..GOODBYES {
            self.machine.leave(self.now());
            self.send_outbox();
            sleep(GOODBYE_PAUSE).await;
        }
    }

    fn finish_turn(&mut self, now: Now) {
        if self.machine.refresh(now) {
            self.publish.send_replace(Arc::new(self.machine.members().clone()));
        }
        self.send_outbox();
        for event in self.machine.events.drain(..) {
            // Fails when nobody listens, which is fine.
            let _ = self.events.send(event);
        }
    }

    fn send_outbox(&mut self) {
        for (to, datagram) in self.machine.outbox.drain(..) {
            // A full socket buffer loses the datagram, as the network might; the protocol expects that.
            match self.socket.try_send_to(&datagram, to) {
                Ok(bytes) => {
                    self.metrics.gossip_sent.inc();
                    self.metrics.gossip_sent_bytes.inc_by(bytes as u64);
                }
                Err(error) => debug!(%error, %to, "sending a datagram"),
            }
        }
    }
}
