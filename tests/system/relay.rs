//! A process without the secret, on no path between nodes, at an address that one of them calls: it passes on what it is told,
//! so that two members prove themselves to each other through it, and then speaks itself.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use shoal::link::{RecordHead, RecordKind, Records, Reply, Request};
use shoal::model::Version;
use tokio_rustls::rustls;

use crate::cluster::Cluster;
use crate::files::{Folder, secret};
use crate::http;
use crate::node::Node;
use crate::process::{PATIENCE, poll};
use crate::proxy::{Proxy, bind_both};
use crate::tls::{Authority, strs};

/// How long a node may take to say anything to a frame.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than the death of a member stays unnoticed, which is how long the others call it.
const ASKED_FOR: Duration = Duration::from_secs(4);

/// How the relay changes the request for a link before it passes it on.
type Change = fn(&str, SocketAddr) -> String;

/// As it is; as if the node that it goes to were called; as if whoever is there were called.
const CHANGES: [Change; 3] = [
    |head, _| head.to_string(),
    |head, to| replace_field(head, "shoal-to", Some(&to.to_string())),
    |head, _| replace_field(head, "shoal-to", None),
];

fn replace_field(head: &str, name: &str, value: Option<&str>) -> String {
    let kept = head.trim_end().split("\r\n").filter(|line| !line.starts_with(&format!("{name}:")));
    let added = value.map(|value| format!("{name}: {value}"));
    kept.map(ToString::to_string).chain(added).map(|line| line + "\r\n").collect::<String>() + "\r\n"
}

fn read_head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Has the two ends prove themselves to each other; an error if one of them is not content.
fn relay(
    asking: &mut (impl Read + Write),
    answering: &mut (impl Read + Write),
    change: impl Fn(&str) -> String,
) -> io::Result<()> {
    let head = read_head(asking)?;
    answering.write_all(change(&head).as_bytes())?;
    let answer = read_head(answering)?;
    asking.write_all(answer.as_bytes())?;
    if !answer.starts_with("HTTP/1.1 101 ") {
        return Err(io::Error::other(answer));
    }
    let mut proof = [0; 32];
    asking.read_exact(&mut proof)?;
    answering.write_all(&proof)
}

/// A connection to a node that answers soon or not at all.
fn connect(to: SocketAddr) -> TcpStream {
    let stream = http::connect(to).expect("a connection");
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a socket");
    stream
}

/// Sends a request over a link, and waits for the reply and the value behind it.
fn ask(stream: &mut (impl Read + Write), request: &Request, value: &[u8]) -> io::Result<(Reply, Bytes)> {
    let config = bincode::config::standard();
    let head = bincode::serde::encode_to_vec(request, config).map_err(io::Error::other)?;
    let header = [(head.len() + value.len()) as u32, 7, 1000, head.len() as u32];
    let header: Vec<u8> = header.iter().flat_map(|field| field.to_le_bytes()).collect();
    stream.write_all(&[&header, &head, value].concat())?;
    loop {
        let mut header = [[0; 4]; 4];
        stream.read_exact(header.as_flattened_mut())?;
        let [bytes, id, _, head] = header.map(|field| u32::from_le_bytes(field) as usize);
        if bytes > 1 << 20 || head > bytes {
            return Err(io::Error::other("no frame"));
        }
        let mut frame = vec![0; bytes];
        stream.read_exact(&mut frame)?;
        // Others are answers to what was asked before.
        if id == 7 {
            let (reply, _) = bincode::serde::decode_from_slice(&frame, config).map_err(io::Error::other)?;
            return Ok((reply, Bytes::from(frame.split_off(head))));
        }
    }
}

/// A value of `key` that is newer than any other.
fn forged(key: &str, value: &str) -> Request {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_millis() as u64;
    let kind = RecordKind::Entry { left: None, content_type: None, value_bytes: value.len() as u32 };
    let version = Version::new((now_ms + 5000) << 16, 1);
    let head = RecordHead { key: key.into(), version, mark: 0, kind };
    Request::Sync(Records { sent_at_ms: None, heads: vec![head] })
}

/// Everything that the relay can do with a link that it has; gives what was answered.
fn abuse(stream: &mut TcpStream) -> Vec<Reply> {
    let peek =
        Request::Peek { key: "balance".into(), ring: "0000000000000000".parse().expect("a ring"), mark: 0 };
    let requests =
        [Request::Ping { clock: 0 }, Request::Members, peek, forged("balance", "1000000"), Request::Leave];
    let answered = requests.iter().map(|request| {
        let value = if matches!(request, Request::Sync(_)) { &b"1000000"[..] } else { &[] };
        ask(stream, request, value).map(|(reply, _)| reply)
    });
    answered.filter_map(Result::ok).collect()
}

/// A cluster with a secret, its last node killed, and a relay at its address to the node of this number. What came of it.
#[track_caller]
fn expect_nothing_of_a_relay(nodes: usize, to: usize) {
    let folder = Folder::new();
    let mut cluster =
        Cluster::start_with(nodes, &["--cluster-secret-file", &folder.write("secret", &secret())]);
    cluster[1].put("balance", "100");
    let address = cluster[nodes].address;
    cluster.kill(nodes);
    let listener = TcpListener::bind(address).expect("the address is free");
    listener.set_nonblocking(true).expect("a socket");
    let (mut asked, started) = (0, Instant::now());
    while started.elapsed() < ASKED_FOR {
        let Ok((mut asking, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        asking.set_nonblocking(false).expect("a socket");
        asking.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a socket");
        let (to, change) = (cluster[to].address, CHANGES[asked % CHANGES.len()]);
        let mut answering = connect(to);
        let relayed = relay(&mut asking, &mut answering, |head| change(head, to));
        asked += 1;
        if relayed.is_err() {
            continue;
        }
        // Only now, or the other end would be told that the link is gone.
        drop(asking);
        let answered = abuse(&mut answering);
        assert!(answered.is_empty(), "asked {asked} times, the relay got {answered:#?}");
    }
    assert!(asked >= CHANGES.len(), "asked {asked} times");
    assert!(cluster.running().all(|node| node.value("balance").as_deref() == Some("100")));
}

#[test]
fn a_handshake_that_is_relayed_from_a_dead_members_address_to_another_member_opens_no_link() {
    expect_nothing_of_a_relay(3, 2);
}

#[test]
fn a_handshake_that_is_relayed_back_to_the_member_that_asks_opens_no_link() {
    expect_nothing_of_a_relay(2, 1);
}

#[test]
fn a_seed_may_be_reached_by_another_address_and_who_passes_its_bytes_on_reads_none_of_them() {
    let folder = Folder::new();
    let flags = ["--cluster-secret-file", &*folder.write("secret", &secret())];
    let mut cluster = Cluster::start_with(1, &flags);
    // Only the address to join by is the relay's; that which the first node tells is its own.
    let seed = Proxy::start(cluster[1].address);
    let listen = bind_both().2;
    let proxy = Proxy::start(listen);
    let (join, advertised) = (seed.address.to_string(), proxy.address.to_string());
    cluster.admit(Node::start_at(
        "n2",
        listen,
        &[&flags[..], &["--join", &join, "--advertise", &advertised]].concat(),
    ));
    cluster.wait_until("the pair is formed", PATIENCE, || cluster.is_whole());
    for number in 0..20 {
        cluster[1].put(&format!("visible-{number}"), "visible-value");
    }
    let passed = [seed.passed(), proxy.passed()].concat();
    assert!(passed.len() > 1000, "{} bytes went this way", passed.len());
    assert!(!passed.windows(7).any(|seven| seven == b"visible"));
}

#[test]
fn a_proved_link_takes_no_frame_that_its_peer_did_not_send() {
    let folder = Folder::new();
    let flags = ["--cluster-secret-file", &*folder.write("secret", &secret())];
    let cluster = Cluster::start_with(1, &flags);
    cluster[1].put("balance", "100");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let join = listener.local_addr().expect("it is bound").to_string();
    let joining = Node::start("n2", &[&flags[..], &["--join", &join]].concat());
    let rejected = || cluster[1].metric("shoal_link_rejected_total");
    for round in 0..3 {
        let (mut asking, _) = listener.accept().expect("it asks for a link");
        let (before, mut answering) = (rejected(), connect(cluster[1].address));
        // Whoever is at the address of a seed may be any member: here both ends are content.
        relay(&mut asking, &mut answering, str::to_string).expect("both prove themselves");
        let mut sent = [0; 1024];
        let length = asking.read(&mut sent).expect("it asks something");
        match round {
            0 => assert!(abuse(&mut answering).is_empty()),
            1 => {
                sent[length - 1] ^= 1;
                answering.write_all(&sent[..length]).expect("it is sent");
            }
            // The first is good, and answered; a second time it is not.
            _ => answering.write_all(&sent[..length].repeat(2)).expect("it is sent"),
        }
        assert!(poll(PATIENCE, || rejected() > before), "round {round}: {}", cluster[1].log().tail(5));
    }
    drop(joining);
    assert_eq!(cluster[1].value("balance").as_deref(), Some("100"));
}

#[test]
fn a_certificate_without_the_secret_relays_no_link() {
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let flags = authority.equip(&folder);
    let secret = folder.write("secret", &secret());
    let flags = [&strs(&flags)[..], &["--cluster-secret-file", &secret]].concat();
    let first = Node::start("n1", &flags);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let join = listener.local_addr().expect("it is bound").to_string();
    let joining = Node::start("n2", &[&flags[..], &["--join", &join]].concat());
    // One that ends TLS on both sides: it has a certificate by which it may be called at this address.
    let server = Authority::server(authority.issue(&["127.0.0.1"]));
    let client = authority.client(None);
    for _ in 0..2 {
        let (asking, _) = listener.accept().expect("it asks for a link");
        let mut asking = StreamOwned::new(ServerConnection::new(server.clone()).expect("a server"), asking);
        let name = ServerName::from(first.address.ip());
        let connection = ClientConnection::new(client.clone(), name).expect("a client");
        let mut answering = StreamOwned::new(connection, connect(first.address));
        let relayed = relay(&mut asking, &mut answering, str::to_string);
        assert!(relayed.is_err(), "{:?}", ask(&mut answering, &Request::Members, &[]));
    }
    let said = || joining.log().text().contains("its proof of the cluster secret is wrong");
    assert!(poll(PATIENCE, said), "{}", joining.log().tail(5));
}
