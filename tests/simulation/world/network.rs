//! What the simulated network loses or holds back, and between whom.
//!
//! TCP that is lost waits for the end of its fault, as retransmission would have it; datagrams are gone. Invariant: of a link
//! that is partly closed everything else passes, with the next tick.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use shoal::net::DatagramFaults;
use turmoil::Protocol;

use super::{PORT, World};

/// All that is wrong with the network at a time. Hosts go by their numbers, that of the clients is the last; pairs are ordered,
/// from and to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts {
    pub(crate) pairs: BTreeSet<(usize, usize)>,
    pub(crate) tcp: BTreeSet<(usize, usize)>,
    pub(crate) udp: BTreeSet<(usize, usize)>,
    /// Hosts that are cut off from everything.
    pub(crate) silent: BTreeSet<usize>,
    /// Hosts to whose port no connection of another node gets through.
    pub(crate) unreachable: BTreeSet<usize>,
    /// Hosts that answer for their port with a reset.
    pub(crate) refusing: BTreeSet<usize>,
}

impl Cuts {
    /// A host that is in the place of another one has no faults yet.
    pub(super) fn forget(&mut self, node: usize) {
        for pairs in [&mut self.pairs, &mut self.tcp, &mut self.udp] {
            pairs.retain(|(from, to)| *from != node && *to != node);
        }
        self.unreachable.remove(&node);
        self.refusing.remove(&node);
    }

    fn is_cut(&self, a: usize, b: usize) -> (bool, bool) {
        (self.pairs.contains(&(a, b)), self.pairs.contains(&(b, a)))
    }

    /// Whether some of the TCP between two hosts is held.
    fn is_filtered(&self, a: usize, b: usize) -> bool {
        let in_vain = self.unreachable.contains(&a) || self.unreachable.contains(&b);
        in_vain || self.tcp.contains(&(a, b)) || self.tcp.contains(&(b, a))
    }
}

impl World {
    /// Sets what the network does.
    pub(crate) fn set_cuts(&mut self, mut wanted: Cuts) {
        let ips: Vec<IpAddr> =
            self.hosts.iter().map(|host| host.address.ip()).chain([self.clients]).collect();
        for &node in &wanted.silent {
            let others = (0..ips.len()).filter(|other| *other != node);
            wanted.pairs.extend(others.flat_map(|other| [(node, other), (other, node)]));
        }
        let nodes = self.hosts.len();
        for a in 0..ips.len() {
            for b in a + 1..ips.len() {
                let of = |cuts: &Cuts| (cuts.is_cut(a, b), b < nodes && cuts.is_filtered(a, b));
                let [before, now] = [of(&self.cuts), of(&wanted)];
                if before != now {
                    self.set_cut((ips[a], ips[b]), now.0);
                    if now == ((false, false), true) {
                        self.sim.hold(ips[a], ips[b]);
                    }
                }
            }
        }
        self.cuts = wanted;
        self.tell_processes();
    }

    /// Of what is held because some of it is filtered, the rest goes on. Of a node that listens in vain that is everything but
    /// what its listening end is to get or has sent.
    pub(super) fn let_through(&self) {
        let cuts = &self.cuts;
        if cuts.unreachable.is_empty() && cuts.tcp.is_empty() {
            return;
        }
        let number = |ip| self.hosts.iter().position(|host| host.address.ip() == ip);
        let in_vain = |end: SocketAddr| {
            end.port() == PORT && number(end.ip()).is_some_and(|host| cuts.unreachable.contains(&host))
        };
        self.sim.links(|links| {
            for sent in links.flatten() {
                let (from, to) = sent.pair();
                let (Some(a), Some(b)) = (number(from.ip()), number(to.ip())) else { continue };
                let is_held = in_vain(from) || in_vain(to) || cuts.tcp.contains(&(a, b));
                let passes = matches!(sent.protocol(), Protocol::Udp(_)) || !is_held;
                if cuts.is_cut(a, b) == (false, false) && cuts.is_filtered(a, b) && passes {
                    sent.deliver();
                }
            }
        });
    }

    fn set_cut(&self, (a, b): (IpAddr, IpAddr), cut: (bool, bool)) {
        self.sim.release(a, b);
        if cut == (false, false) {
            return;
        }
        self.sim.hold(a, b);
        let (open_from, open_to) = match cut {
            (false, _) => (a, b),
            (_, false) => (b, a),
            _ => return,
        };
        self.sim.repair_oneway(open_from, open_to);
        self.sim.links(|links| {
            for sent in links.flatten().filter(|sent| sent.pair().0.ip() == open_from) {
                if sent.pair().1.ip() == open_to {
                    sent.deliver();
                }
            }
        });
    }

    /// Tells the processes what becomes of what they send.
    pub(super) fn tell_processes(&self) {
        let nodes = self.hosts.len();
        let ip = |host: usize| self.hosts[host].address.ip();
        for (number, host) in self.hosts.iter().enumerate() {
            let Some(running) = &host.process else { continue };
            let from_here = self.cuts.pairs.iter().chain(&self.cuts.udp);
            let from_here = from_here.filter(|(from, to)| *from == number && *to < nodes);
            let unreachable = from_here.map(|(_, to)| ip(*to)).collect();
            running.process.set_datagram_faults(DatagramFaults { unreachable, ..self.datagrams.clone() });
            let refusing = self.cuts.refusing.iter().filter(|node| **node != number);
            running.process.set_refusing(refusing.map(|node| ip(*node)).collect());
        }
    }
}
