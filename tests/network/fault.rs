//! Faults as data: what is lost, where, and what is demanded of the nodes meanwhile.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::http;
use crate::net::{Extras, Net, PORT};

/// A fault that lasts.
pub(crate) struct Fault {
    /// As it is asked for on the command line.
    pub(crate) name: &'static str,
    pub(crate) nodes: usize,
    /// The nodes whose own links are touched.
    pub(crate) sick: &'static [usize],
    /// Whether each of those still calls, and exchanges datagrams with, members that with itself are more than half.
    pub(crate) reach_a_majority: bool,
    pub(crate) steps: &'static [Step],
}

/// A part of a fault at one node. Peers are by number, and clients are never touched.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// These packets are lost.
    Lose(usize, Way, Packets, &'static [usize]),
    /// Calls of these peers are answered by RST, on connections that there are as well.
    Refuse(usize, &'static [usize]),
    /// Connections with these peers are reset, once.
    Reset(usize, &'static [usize]),
    /// The wall clock goes so many seconds ahead.
    Clock(usize, i32),
    /// No file, nor socket, can be opened any more.
    NoFiles(usize),
    /// The queue of connections that wait to be accepted, so long, is full.
    FullQueue(usize, usize),
}

#[derive(Clone, Copy)]
pub(crate) enum Way {
    In,
    Out,
    Both,
}

#[derive(Clone, Copy)]
pub(crate) enum Packets {
    All,
    Tcp,
    /// Those that begin a connection.
    Syn,
    /// Those of connections to the node where they arrive.
    Calls,
    /// Those of connections to the node where they leave.
    Replies,
    Udp,
    /// Datagrams of more than 1200 bytes.
    LongUdp,
}

use Packets::{All, Calls, LongUdp, Replies, Syn, Tcp, Udp};
use Step::{Clock, FullQueue, Lose, NoFiles, Refuse, Reset};
use Way::{Both, In, Out};

const OTHERS: &[usize] = &[2, 3, 4];

/// One node of four.
const fn of_one(name: &'static str, reach_a_majority: bool, steps: &'static [Step]) -> Fault {
    Fault { name, nodes: 4, sick: &[1], reach_a_majority, steps }
}

/// Two nodes of three.
const fn of_a_pair(name: &'static str, steps: &'static [Step]) -> Fault {
    Fault { name, nodes: 3, sick: &[1, 2], reach_a_majority: true, steps }
}

/// All faults.
pub(crate) const FAULTS: &[Fault] = &[
    of_one("tcp", false, &[Lose(1, Both, Tcp, OTHERS)]),
    of_one("tcp-in", false, &[Lose(1, In, Tcp, OTHERS)]),
    of_one("tcp-out", false, &[Lose(1, Out, Tcp, OTHERS)]),
    of_one("new-connections", true, &[Lose(1, Both, Syn, OTHERS)]),
    of_one("calls-to-it", true, &[Lose(1, In, Calls, OTHERS)]),
    of_one("calls-from-it", false, &[Lose(1, Out, Calls, OTHERS)]),
    of_one("rst", true, &[Refuse(1, OTHERS)]),
    of_one("udp", true, &[Lose(1, Both, Udp, OTHERS)]),
    of_one("udp-in", true, &[Lose(1, In, Udp, OTHERS)]),
    of_one("udp-out", true, &[Lose(1, Out, Udp, OTHERS)]),
    of_one("mtu-1200", true, &[Lose(1, Both, LongUdp, OTHERS)]),
    of_one("clock-40s", true, &[Clock(1, 40)]),
    of_one("no-files", false, &[NoFiles(1), Reset(1, OTHERS)]),
    of_one("full-queue", false, &[NoFiles(1), FullQueue(1, 8), Reset(1, OTHERS)]),
    of_a_pair("pair", &[Lose(1, Both, All, &[2])]),
    of_a_pair("pair-tcp", &[Lose(1, Both, Tcp, &[2])]),
    Fault {
        name: "one-of-five",
        nodes: 5,
        sick: &[1],
        reach_a_majority: false,
        steps: &[Lose(1, Both, All, &[3, 4, 5])],
    },
];

impl Fault {
    /// What its nodes have to be started with.
    pub(crate) fn extras(&self) -> Extras {
        let mut extras = Extras::default();
        for step in self.steps {
            match *step {
                Clock(node, _) => extras.clock = Some(node),
                FullQueue(node, length) => extras.queue = Some((node, length)),
                _ => {}
            }
        }
        extras
    }

    /// It begins, and lasts until what is given is ended.
    pub(crate) fn begin(&self, net: &mut Net) -> Lasting {
        let mut lasting = Lasting::default();
        for step in self.steps {
            step.begin(net, &mut lasting);
        }
        lasting
    }
}

/// What has to be undone besides the rules.
#[derive(Default)]
pub(crate) struct Lasting {
    files: Option<(Pid, Rlimit)>,
    queued: Vec<TcpStream>,
}

impl Lasting {
    pub(crate) fn end(self, net: &Net) {
        net.drop_rules();
        net.set_clock(0);
        if let Some((pid, limit)) = self.files {
            prlimit(Some(pid), Resource::Nofile, limit).expect("a limit can be lifted");
        }
    }
}

impl Step {
    /// It begins, and lasts until what `lasting` has of it is ended.
    pub(crate) fn begin(self, net: &mut Net, lasting: &mut Lasting) {
        match self {
            Lose(at, way, packets, peers) => {
                let (begin, end) = match way {
                    In => (true, false),
                    Out => (false, true),
                    Both => (true, true),
                };
                for peer in peers.iter().map(|peer| net.host(*peer)) {
                    if begin {
                        net.add_rule(at, &[&["INPUT", "-s", &peer], packets.matching(), DROP].concat());
                    }
                    if end {
                        net.add_rule(at, &[&["OUTPUT", "-d", &peer], packets.matching(), DROP].concat());
                    }
                }
            }
            Refuse(at, peers) => {
                for peer in peers.iter().map(|peer| net.host(*peer)) {
                    net.add_rule(at, &[&["INPUT", "-s", &peer], Calls.matching(), RST].concat());
                }
            }
            Reset(at, peers) => {
                for peer in peers.iter().map(|peer| net.host(*peer)) {
                    net.add_rule(at, &[&["INPUT", "-s", &peer], Tcp.matching(), RST].concat());
                    net.add_rule(at, &[&["OUTPUT", "-d", &peer], Tcp.matching(), RST].concat());
                }
                // Several beats of a link.
                sleep(Duration::from_millis(500));
                net.drop_rules();
            }
            Clock(_, ahead) => net.set_clock(ahead),
            NoFiles(at) => {
                let pid = Pid::from_raw(net.cluster.node(at).process().id() as i32);
                let pid = pid.expect("a process has an id");
                // A node has the highest limit of whoever starts it, and that stays.
                let none = Rlimit { current: Some(0), maximum: getrlimit(Resource::Nofile).maximum };
                let former = prlimit(Some(pid), Resource::Nofile, none).expect("a limit can be set");
                lasting.files = Some((pid, former));
            }
            FullQueue(at, length) => {
                // One more than the length fits, and the last ones are not even answered.
                let to = net.address(at);
                for _ in 0..=length {
                    lasting.queued.push(http::connect(to).expect("the queue takes it"));
                }
            }
        }
    }
}

const DROP: &[&str] = &["-j", "DROP"];
const RST: &[&str] = &["-j", "REJECT", "--reject-with", "tcp-reset"];

impl Packets {
    /// The same for both chains: in either, the packet's destination is where a call goes to, and its source where a reply comes from.
    fn matching(self) -> &'static [&'static str] {
        match self {
            All => &[],
            Tcp => &["-p", "tcp"],
            Syn => &["-p", "tcp", "--syn"],
            Calls => &["-p", "tcp", "--dport", PORT],
            Replies => &["-p", "tcp", "--sport", PORT],
            Udp => &["-p", "udp"],
            // With 20 bytes of IP and 8 of UDP in front.
            LongUdp => &["-p", "udp", "-m", "length", "--length", "1229:65535"],
        }
    }
}
