//! Datagrams and member lists as functions of bytes; see [`crate::fuzzing`].

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::Instant;

use super::envelope::Envelope;
use super::machine::{Machine, Now};
use super::{Detection, GossipConfig, Identity, Witness, live_identities};
use crate::model::NodeId;
use crate::security::{Keyring, Secret};

const NOW_MS: u64 = 1_000_000_000;

fn envelope(sealed: bool) -> Envelope {
    let secret = Secret::generate(&mut StdRng::seed_from_u64(1)).to_text();
    let keyring = Keyring::parse(&secret).map(|keyring| watch::channel(Arc::new(keyring)).1);
    Envelope::new("fuzz", keyring.ok().filter(|_| sealed), [7; 32])
}

fn identity(number: u16) -> Identity {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9000 + number));
    let node_id = NodeId::parse(&format!("n{number}")).expect("a name");
    Identity::new(node_id, address, NOW_MS, number)
}

fn machine(number: u16, now: Now) -> Machine {
    let config = GossipConfig { cluster: "fuzz".into(), detection: Detection::Lan, seed: number.into() };
    Machine::new(&config, envelope(false), identity(number), Witness::new(|_| true), now)
}

/// Datagrams as a stranger sends them, and payloads as a member does that has gone mad: after each the machine still gives
/// a view and a list, and its timers run.
pub(crate) fn gossip(bytes: &[u8]) {
    let (mut plain, mut sealed, mut out) = (envelope(false), envelope(true), Vec::new());
    // Whether it opens does not matter; that it does not panic does.
    let _ = plain.open(bytes, NOW_MS, &mut out);
    let _ = sealed.open(bytes, NOW_MS, &mut out);
    let _ = live_identities(bytes);
    let start = Instant::now();
    let at =
        |ms: u64| Now { instant: start + Duration::from_millis(ms), uptime_ms: ms, wall_ms: NOW_MS + ms };
    let mut machine = machine(1, at(0));
    machine.announce(&[identity(2).address], at(0));
    for (index, payload) in bytes.chunks(usize::from(bytes.first().copied().unwrap_or(0)).max(16)).enumerate()
    {
        plain.seal(payload, NOW_MS, &mut out);
        let now = at(index as u64 * 100);
        // Sealed just above, so it opens.
        machine.receive(&out, now).expect("a datagram of this cluster");
        machine.apply(payload, now);
        machine.run_timers(now);
        machine.refresh(now);
        machine.outbox.clear();
    }
    live_identities(&machine.list()).expect("its own list");
    for (_, datagram) in &machine.outbox {
        plain.open(datagram, NOW_MS, &mut out).expect("its own datagram");
    }
}

/// What is worth changing a little: whole datagrams, and a member list.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let start = Instant::now();
    let now = Now { instant: start, uptime_ms: 0, wall_ms: NOW_MS };
    let (mut one, mut other) = (machine(1, now), machine(2, now));
    other.announce(&[identity(1).address], now);
    let mut corpus = Vec::new();
    for _ in 0..4 {
        let (to_one, to_other) = (std::mem::take(&mut other.outbox), std::mem::take(&mut one.outbox));
        for (_, datagram) in to_one {
            one.receive(&datagram, now).expect("a datagram of this cluster");
            corpus.push(datagram);
        }
        for (_, datagram) in to_other {
            other.receive(&datagram, now).expect("a datagram of this cluster");
            corpus.push(datagram);
        }
    }
    let (mut opener, mut sealer, mut payload, mut datagram) =
        (envelope(false), envelope(true), Vec::new(), Vec::new());
    for index in 0..corpus.len() {
        opener.open(&corpus[index], NOW_MS, &mut payload).expect("a datagram of this cluster");
        sealer.seal(&payload, NOW_MS, &mut datagram);
        corpus.push(payload.clone());
        corpus.push(datagram.clone());
    }
    corpus.push(one.list());
    corpus
}
