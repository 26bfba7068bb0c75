//! A cable with a switch: stands in front of a node, over TCP and UDP, and can be cut.
//!
//! Nodes advertise the proxy's address, so all that others send them comes through here. Datagrams need no
//! rewriting: gossip answers the address in the message, not the one it came from.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

/// Forwards to one address until it is cut, and again once it is mended.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    cut: AtomicBool,
    deaf: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    captured: Mutex<Vec<Vec<u8>>>,
    passed: Mutex<Vec<u8>>,
}

impl Proxy {
    /// Takes TCP and UDP at one free port, for the node that listens at `to`.
    pub(crate) fn start(to: SocketAddr) -> Proxy {
        let (tcp, udp, address) = bind_both();
        let shared = Arc::new(Shared {
            to,
            cut: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            streams: Mutex::default(),
            captured: Mutex::default(),
            passed: Mutex::default(),
        });
        // These threads end with the test process: a listener cannot be woken to be told.
        let (for_tcp, for_udp) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::spawn(move || for_tcp.forward_streams(&tcp));
        thread::spawn(move || for_udp.forward_datagrams(&udp));
        Proxy { address, shared }
    }

    /// The datagrams that have passed so far.
    pub(crate) fn captured(&self) -> Vec<Vec<u8>> {
        self.shared.captured.lock().clone()
    }

    /// All bytes that have passed over connections so far.
    pub(crate) fn passed(&self) -> Vec<u8> {
        self.shared.passed.lock().clone()
    }

    /// Nothing passes any more; what was connected is torn apart.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        for stream in self.shared.streams.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections are taken and nothing of them passes, as behind a firewall that drops TCP; datagrams still do.
    pub(crate) fn deafen(&self) {
        self.shared.deaf.store(true, Ordering::SeqCst);
    }

    pub(crate) fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
        self.shared.deaf.store(false, Ordering::SeqCst);
    }
}

/// An address that is free for both protocols.
pub(crate) fn bind_both() -> (TcpListener, UdpSocket, SocketAddr) {
    for _ in 0..32 {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = tcp.local_addr().expect("a bound socket has an address");
        if let Ok(udp) = UdpSocket::bind(address) {
            return (tcp, udp, address);
        }
    }
    panic!("no port is free for TCP and UDP");
}

/// Addresses that are free for both protocols. All are held until the last is found: one that is given back may be found again.
pub(crate) fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let held: [_; N] = std::array::from_fn(|_| bind_both());
    held.each_ref().map(|(_, _, address)| *address)
}

impl Shared {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    fn forward_streams(self: &Arc<Self>, listener: &TcpListener) {
        for near in listener.incoming().map_while(Result::ok) {
            // Closed at once when cut, or when the node is not there.
            let Ok(far) = TcpStream::connect(self.to) else { continue };
            if self.is_cut() {
                continue;
            }
            let mut streams = self.streams.lock();
            for (from, into) in [(&near, &far), (&far, &near)] {
                let _ = from.set_nodelay(true);
                let (Ok(from), Ok(into), Ok(kept)) = (from.try_clone(), into.try_clone(), from.try_clone())
                else {
                    continue;
                };
                streams.push(kept);
                let shared = self.clone();
                thread::spawn(move || shared.copy(from, into));
            }
        }
    }

    fn forward_datagrams(&self, socket: &UdpSocket) {
        let mut datagram = [0; 2048];
        while let Ok((length, _)) = socket.recv_from(&mut datagram) {
            if !self.is_cut() {
                self.captured.lock().push(datagram[..length].to_vec());
                // Fails while the node is not there: the datagram is lost, as they are.
                let _ = socket.send_to(&datagram[..length], self.to);
            }
        }
    }

    fn copy(&self, mut from: TcpStream, mut into: TcpStream) {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            while self.deaf.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            self.passed.lock().extend_from_slice(&buffer[..length]);
            if into.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = into.shutdown(Shutdown::Both);
    }
}
