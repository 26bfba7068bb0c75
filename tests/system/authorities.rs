//! What becomes of open connections when an authority of certificates is removed, and how it is replaced.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio_rustls::rustls;

use crate::files::{Folder, secret};
use crate::http;
use crate::node::Node;
use crate::process::{PATIENCE, poll};
use crate::tls::{Authority, Load, client, members, reload, request, start, strs};

/// A connection that is kept, as that of a client with a certificate of its own.
struct Kept(StreamOwned<ClientConnection, TcpStream>);

impl Kept {
    fn open(config: &Arc<ClientConfig>, to: SocketAddr) -> Kept {
        let connection = ClientConnection::new(config.clone(), ServerName::from(to.ip())).expect("a client");
        Kept(StreamOwned::new(connection, http::connect(to).expect("a connection")))
    }

    fn send(&mut self, path: &str) -> io::Result<()> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
    }

    /// The status of an answer, and whether it is the last one.
    fn get(&mut self, path: &str) -> io::Result<(u16, bool)> {
        self.send(path)?;
        let mut answer = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            match self.0.read(&mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => answer.extend_from_slice(&bytes[..length]),
            }
            if let Some(answer) = http::parse(&answer).filter(|answer| !answer.body.is_empty()) {
                return Ok((answer.status, answer.header("connection") == Some("close")));
            }
        }
    }

    /// Reads on until the other end closes.
    fn ends_within(mut self, patience: Duration) -> bool {
        self.0.sock.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
        poll(patience, || {
            let read = self.0.read(&mut [0; 4096]);
            matches!(read, Ok(0)) || read.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
        })
    }
}

#[test]
fn connections_of_clients_end_with_the_authority_of_their_certificate() {
    let (folder, ours) = (Folder::new(), Authority::new("ours"));
    let (kept, removed) = (Authority::new("kept"), Authority::new("removed"));
    let [staying, leaving] =
        [&kept, &removed].map(|authority| ours.client(Some(authority.issue(&["client"]))));
    let both = folder.write("client-ca", &format!("{}{}{}", ours.pem, kept.pem, removed.pem));
    let mut flags = ours.equip(&folder);
    flags.extend(["--tls-client-ca".into(), both]);
    let mut nodes = start(1, &flags, &staying);
    let to = nodes[0].address;
    let open = |config| {
        let mut connection = Kept::open(config, to);
        assert_eq!(connection.get("/api/v1/stats").expect("an answer"), (200, false));
        connection
    };
    let (mut good, idle, mut busy, mut streaming) =
        (open(&staying), open(&leaving), open(&leaving), open(&leaving));
    streaming.send("/admin/events").expect("it is sent");
    // What is renewed here is the node's own certificate, which ends nobody's connection.
    let (cert, key) = ours.issue(&["127.0.0.1", "localhost"]);
    folder.write("cert", &cert);
    folder.write("key", &key);
    reload(&mut nodes);
    assert_eq!(busy.get("/api/v1/stats").expect("an answer"), (200, false));

    folder.write("client-ca", &format!("{}{}", ours.pem, kept.pem));
    reload(&mut nodes);
    assert!(idle.ends_within(Duration::from_secs(3)), "one that waits");
    // It may be in the middle of something; that is the last.
    assert!(!matches!(busy.get("/api/v1/stats"), Ok((_, false))), "one that asks");
    assert!(streaming.ends_within(Duration::from_secs(5)), "a stream of events");
    Kept::open(&leaving, to).get("/api/v1/stats").expect_err("a new one");
    assert_eq!(good.get("/api/v1/stats").expect("an answer"), (200, false));
}

/// The ports from which connections to this address are established: fields of `/proc/net/tcp`, addresses in hex.
fn connected(to: SocketAddr) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let to = format!("0100007F:{:04X}", to.port());
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[2] == to && row[3] == "01").map(|row| row[1].to_string()).collect()
}

#[test]
fn links_end_with_the_authority_of_the_other_ends_certificate() {
    let folders = [Folder::new(), Folder::new()];
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let client = client(&[&old, &new], Some(new.issue(&["client"])));
    let secret = folders[0].write("secret", &secret());
    let equip = |authority: &Authority, folder: &Folder, trusted: &[&Authority]| {
        let mut flags = authority.equip(folder);
        let trusted: String = trusted.iter().map(|authority| &*authority.pem).collect();
        folder.write("ca", &trusted);
        flags.extend(["--tls-client-ca".into(), folder.write("client-ca", &trusted)]);
        flags.extend(["--cluster-secret-file".into(), secret.clone()]);
        flags
    };
    let first = Node::start("n1", &strs(&equip(&old, &folders[0], &[&old, &new])));
    let mut flags = equip(&old, &folders[1], &[&old, &new]);
    flags.push(format!("--join={}", first.address));
    let second = Node::start("n2", &strs(&flags));
    let mut nodes = [first, second];
    let are_two = |nodes: &[Node]| nodes.iter().all(|node| members(node, &client) == Some(2));
    assert!(poll(PATIENCE, || are_two(&nodes)), "{}", nodes[1].log().tail(5));
    // The first goes on to the new authority alone; the second, as one whose key was stolen, stays with what it has.
    let before = connected(nodes[1].address);
    assert!(!before.is_empty(), "the first has links to the second");
    equip(&new, &folders[0], &[&new]);
    reload(&mut nodes[..1]);
    let closed = || {
        let closed = nodes[0].log().with_message("closed a link");
        closed.iter().any(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("authority")))
    };
    assert!(poll(Duration::from_secs(3), closed), "{}", nodes[0].log().tail(5));
    // The links that the first had opened end, too.
    assert!(
        poll(PATIENCE, || connected(nodes[1].address).is_disjoint(&before)),
        "{}",
        nodes[0].log().tail(5)
    );
    // With a certificate of the authority that is accepted it is one of them again.
    equip(&new, &folders[1], &[&new]);
    reload(&mut nodes[1..]);
    let path = "/api/v1/cache/key";
    let is_served = || {
        let put = request(&client, nodes[0].address, "PUT", path, b"value");
        let get = request(&client, nodes[1].address, "GET", path, b"");
        put.is_ok_and(|(answer, _)| answer.status == 204) && get.is_ok_and(|(answer, _)| answer.status == 200)
    };
    assert!(poll(PATIENCE, is_served), "{}", nodes[1].log().tail(5));
}

#[test]
fn certificates_are_renewed_under_load_also_where_nodes_ask_for_them_and_no_request_fails() {
    let _alone = crate::measured();
    let folder = Folder::new();
    let (old, new, clients) = (Authority::new("old"), Authority::new("new"), Authority::new("clients"));
    let trust = |nodes: &[&Authority]| {
        let nodes: String = nodes.iter().map(|authority| &*authority.pem).collect();
        folder.write("ca", &nodes);
        folder.write("client-ca", &format!("{}{nodes}", clients.pem))
    };
    let client = client(&[&old, &new], Some(clients.issue(&["client"])));
    let mut flags = old.equip(&folder);
    flags.extend(["--tls-client-ca".into(), trust(&[&old])]);
    let mut nodes = start(3, &flags, &client);
    let load = Load::start(&nodes, &client);
    sleep(Duration::from_millis(500));
    trust(&[&old, &new]);
    reload(&mut nodes);
    let (cert, key) = new.issue(&["127.0.0.1", "localhost"]);
    folder.write("cert", &cert);
    folder.write("key", &key);
    reload(&mut nodes);
    // Links move to the new certificates when nothing is under way on them any more.
    sleep(Duration::from_millis(1500));
    trust(&[&new]);
    reload(&mut nodes);
    sleep(Duration::from_millis(1500));
    let (done, failures) = load.end();
    println!("{done} requests, {} failed", failures.len());
    assert!(failures.is_empty(), "{} of {done}: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(done > 500, "{done} requests");
    let cut: Vec<_> = nodes.iter().flat_map(|node| node.log().with_message("closed a link")).collect();
    assert!(cut.is_empty(), "links had to be cut: {cut:?}");
}
