//! TLS on the one port, and what is renewed while it runs.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use tokio_rustls::rustls;

use crate::files::{Folder, secret};
use crate::http::{self, Answer};
use crate::node::Node;
use crate::process::{PATIENCE, Process, Signal, poll, run};

/// An authority of the test's own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names, and its key.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("parameters");
        let pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        (pem, key.serialize_pem())
    }

    /// Writes a certificate for a node on loopback, and the authority's; gives the flags for them.
    pub(crate) fn equip(&self, folder: &Folder) -> Vec<String> {
        let (cert, key) = self.issue(&["127.0.0.1", "localhost"]);
        let files =
            [("--tls-cert", "cert", &cert), ("--tls-key", "key", &key), ("--tls-ca", "ca", &self.pem)];
        files.iter().flat_map(|(flag, name, pem)| [(*flag).to_string(), folder.write(name, pem)]).collect()
    }

    /// What a server needs that shows this certificate.
    pub(crate) fn server((cert, key): (String, String)) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let config = config.expect("its defaults fit").with_no_client_auth().with_single_cert(chain, key);
        Arc::new(config.expect("they fit"))
    }

    /// What a client needs that trusts this authority.
    pub(crate) fn client(&self, own: Option<(String, String)>) -> Arc<ClientConfig> {
        client(&[self], own)
    }
}

/// What a client needs that trusts these authorities, and shows a certificate of its own.
pub(crate) fn client(trusted: &[&Authority], own: Option<(String, String)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in trusted {
        let certificate = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("a certificate");
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("its defaults fit").with_root_certificates(roots);
    Arc::new(match own {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            config.with_client_auth_cert(chain, key).expect("they fit")
        }
    })
}

pub(crate) fn strs(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

/// A request over TLS on a connection of its own, and the certificate that the node showed.
pub(crate) fn request(
    config: &Arc<ClientConfig>,
    to: SocketAddr,
    method: &str,
    path: &str,
    body: &[u8],
) -> io::Result<(Answer, CertificateDer<'static>)> {
    let name = ServerName::from(to.ip());
    let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, http::connect(to)?);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let shown = stream.conn.peer_certificates().and_then(|chain| chain.first()).cloned();
    let answer =
        http::parse(&answer).ok_or_else(|| read.err().unwrap_or_else(|| io::Error::other("no answer")))?;
    Ok((answer, shown.ok_or_else(|| io::Error::other("no certificate"))?.into_owned()))
}

/// Nodes that speak TLS among each other and to clients. They cannot be asked without it, so they say in their logs that
/// they have found each other.
pub(crate) fn start(nodes: usize, flags: &[String], config: &Arc<ClientConfig>) -> Vec<Node> {
    let mut started: Vec<Node> = Vec::new();
    for number in 1..=nodes {
        let join = started.first().map(|first| format!("--join={}", first.address));
        let flags = flags.iter().chain(join.as_ref()).map(String::as_str).collect::<Vec<_>>();
        started.push(Node::start(&format!("n{number}"), &flags));
    }
    let serves = |node: &Node| {
        request(config, node.address, "GET", "/api/v1/health", b"")
            .is_ok_and(|(answer, _)| answer.status == 200)
    };
    let is_whole = || started.iter().all(|node| members(node, config) == Some(nodes as u64) && serves(node));
    let formed = poll(PATIENCE, is_whole);
    assert!(formed, "{}", started.iter().map(|node| node.log().tail(6)).collect::<Vec<_>>().join("\n\n"));
    started
}

pub(crate) fn members(node: &Node, config: &Arc<ClientConfig>) -> Option<u64> {
    let (answer, _) = request(config, node.address, "GET", "/admin/cluster", b"").ok()?;
    answer.json()["cluster_status"]["healthy_nodes"].as_u64()
}

#[test]
fn a_cluster_under_tls_serves_any_key_at_any_node() {
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let client = authority.client(None);
    let mut flags = authority.equip(&folder);
    flags.extend(["--cluster-secret-file".into(), folder.write("secret", &secret())]);
    let nodes = start(3, &flags, &client);
    for number in 0..30 {
        let path = format!("/api/v1/cache/key-{number}");
        let (put, _) =
            request(&client, nodes[number % 3].address, "PUT", &path, b"value").expect("an answer");
        assert_eq!(put.status, 204);
        for node in &nodes {
            assert_eq!(request(&client, node.address, "GET", &path, b"").expect("an answer").0.status, 200);
        }
    }
    // Longer than the lane of short values takes.
    let long = vec![7; 1 << 20];
    request(&client, nodes[0].address, "PUT", "/api/v1/cache/long", &long).expect("an answer");
    for node in &nodes {
        let (read, _) = request(&client, node.address, "GET", "/api/v1/cache/long", b"").expect("an answer");
        assert!(read.text().len() > 1 << 20);
    }
    let plain = http::request(nodes[0].address, "GET", "/api/v1/health", &[], b"").expect("an answer");
    assert!(plain.expect_error(400, "invalid_request").contains("https://"));
    // The commands of people.
    let ca = folder.path("ca");
    let node = ["--node", &nodes[1].address.to_string(), "--tls-ca", ca.to_str().expect("a path")];
    assert_eq!(run(&[&["put", "greeting", "hello"][..], &node].concat()).code, 0);
    assert_eq!(run(&[&["get", "greeting"][..], &node].concat()).output, "hello");
    assert!(run(&[&["nodes"][..], &node].concat()).output.contains("n3"));
    assert_ne!(run(&["get", "greeting", "--node", &nodes[1].address.to_string()]).code, 0);
    let other = Authority::new("other").client(None);
    let refused =
        request(&other, nodes[0].address, "GET", "/api/v1/health", b"").expect_err("another authority");
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
}

#[test]
fn a_node_with_a_certificate_of_another_authority_stays_outside() {
    let (folder, theirs_folder) = (Folder::new(), Folder::new());
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let secret = folder.write("secret", &secret());
    let with_secret = |mut flags: Vec<String>| {
        flags.extend(["--cluster-secret-file".into(), secret.clone()]);
        flags
    };
    let nodes = start(2, &with_secret(ours.equip(&folder)), &ours.client(None));
    let join = format!("--join={}", nodes[0].address);
    let flags = with_secret(theirs.equip(&theirs_folder));
    let stranger = Node::start("x1", &[&strs(&flags)[..], &[&join]].concat());
    let without = Node::start("x2", &["--cluster-secret-file", &secret, &join]);
    let said = |node: &Node, text: &str| node.log().text().contains(text);
    let complained = poll(PATIENCE, || said(&stranger, "UnknownIssuer") && said(&without, "speaks TLS"));
    assert!(complained, "{}\n{}", stranger.log().tail(3), without.log().tail(3));
    assert!(nodes[0].log().says("a TLS handshake failed"), "{}", nodes[0].log().tail(5));
    // It may know the secret: what it gossips still brings no link to it.
    sleep(Duration::from_secs(3));
    assert_eq!(members(&nodes[0], &ours.client(None)), Some(2));
    assert_eq!(members(&stranger, &theirs.client(None)), Some(1));
}

#[test]
fn with_an_authority_of_clients_nobody_is_served_without_a_certificate() {
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let own = authority.issue(&["client"]);
    let client = authority.client(Some(own.clone()));
    let mut flags = authority.equip(&folder);
    flags.extend(["--tls-client-ca".into(), folder.write("client-ca", &authority.pem)]);
    let nodes = start(2, &flags, &client);
    assert_eq!(
        request(&client, nodes[0].address, "GET", "/api/v1/stats", b"").expect("an answer").0.status,
        200
    );
    let anonymous = authority.client(None);
    request(&anonymous, nodes[0].address, "GET", "/api/v1/stats", b"").expect_err("no certificate");
    let other = Authority::new("other");
    let foreign = authority.client(Some(other.issue(&["client"])));
    request(&foreign, nodes[0].address, "GET", "/api/v1/stats", b"").expect_err("a certificate of others");
    // Each reason is told, whatever else was told in that minute.
    let junk =
        TcpStream::connect(nodes[0].address).and_then(|mut stream| stream.write_all(b"\x16junk\r\n\r\n"));
    junk.expect("it is sent");
    let told = || nodes[0].log().text().matches("a TLS handshake failed").count();
    assert!(poll(PATIENCE, || told() == 3), "{}", nodes[0].log().tail(8));
    let (cert, key) = (folder.write("client-cert", &own.0), folder.write("client-key", &own.1));
    let ca = folder.path("ca");
    let access = ["--tls-ca", ca.to_str().expect("a path"), "--tls-cert", &cert, "--tls-key", &key];
    let address = nodes[1].address.to_string();
    let ended = run(&[&["put", "a", "b", "--node", &address][..], &access].concat());
    assert_eq!(ended.code, 0, "{}", ended.errors);
}

#[test]
fn unusable_certificates_are_named_before_anything_starts() {
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let (cert, key) = authority.issue(&["127.0.0.1"]);
    let (_, other_key) = authority.issue(&["127.0.0.1"]);
    let write = |name: &str, text: &str| folder.write(name, text);
    let (cert, key, ca) = (write("cert", &cert), write("key", &key), write("ca", &authority.pem));
    let (other_key, nothing) = (write("other-key", &other_key), write("nothing", "nothing"));
    for (flags, said) in [
        (vec!["--tls-cert", &*cert], "TLS takes --tls-key and --tls-ca as well"),
        (vec!["--tls-cert", &cert, "--tls-key", &key], "TLS takes --tls-ca as well"),
        (vec!["--tls-cert", &nothing, "--tls-key", &key, "--tls-ca", &ca], "no certificate in it"),
        (vec!["--tls-cert", &cert, "--tls-key", &nothing, "--tls-ca", &ca], "no private key"),
        (vec!["--tls-cert", &cert, "--tls-key", &other_key, "--tls-ca", &ca], "cert: "),
        (vec!["--tls-cert", "/nowhere", "--tls-key", &key, "--tls-ca", &ca], "/nowhere cannot be read"),
    ] {
        let ended = run(&[&["node", "--listen", "127.0.0.1:0"][..], &flags].concat());
        assert!(ended.code == 2 && ended.errors.contains(said), "{}", ended.errors);
    }
    folder.set_mode("key", 0o644);
    let flags = ["node", "--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    assert!(run(&flags).errors.contains("chmod 600"));
}

/// Asks the nodes in turn, all the time, on connections of their own and on kept ones.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    pub(crate) fn start(nodes: &[Node], config: &Arc<ClientConfig>) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
        let threads = (0..3).map(|number: usize| {
            let (stop, done, config, addresses) =
                (stop.clone(), done.clone(), config.clone(), addresses.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                for round in 0_usize.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let path = format!("/api/v1/cache/load-{number}-{}", round % 50);
                    let (put_at, get_at) = (addresses[round % 3], addresses[(round + 1) % 3]);
                    for (method, to) in [("PUT", put_at), ("GET", get_at)] {
                        match request(&config, to, method, &path, b"value") {
                            Ok((answer, _)) if answer.status < 300 => {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok((answer, _)) => failures.push(format!("{method} {path}: {answer:?}")),
                            Err(error) => failures.push(format!("{method} {path} at {to}: {error}")),
                        }
                    }
                }
                failures
            })
        });
        let threads = threads.collect();
        Load { stop, done, threads }
    }

    pub(crate) fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        (self.done.load(Ordering::Relaxed), failures)
    }
}

/// Has each node read its files again, one after the other, as a person would.
pub(crate) fn reload(nodes: &mut [Node]) {
    for node in nodes {
        let read =
            |node: &Node| node.log().text().matches("secrets, certificates and keys were read again").count();
        let before = read(node);
        node.process().signal(Signal::HUP);
        assert!(poll(PATIENCE, || read(node) > before), "{}", node.log().tail(3));
        sleep(Duration::from_millis(300));
    }
}

#[test]
fn secrets_and_certificates_are_renewed_under_load_and_no_request_fails() {
    let _alone = crate::measured();
    let folder = Folder::new();
    let (old_authority, new_authority) = (Authority::new("old"), Authority::new("new"));
    let (old_secret, new_secret) = (secret(), secret());
    let mut flags = old_authority.equip(&folder);
    flags.extend(["--cluster-secret-file".into(), folder.write("secret", &old_secret)]);
    let client = client(&[&old_authority, &new_authority], None);
    let mut nodes = start(3, &flags, &client);
    let shown = |nodes: &[Node]| {
        request(&client, nodes[0].address, "GET", "/api/v1/stats", b"").expect("an answer").1
    };
    let first_shown = shown(&nodes);
    let load = Load::start(&nodes, &client);
    sleep(Duration::from_millis(500));

    // The secret: known everywhere, then used everywhere, then the only one.
    for secrets in
        [format!("{old_secret}\n{new_secret}"), format!("{new_secret}\n{old_secret}"), new_secret.clone()]
    {
        folder.write("secret", &secrets);
        reload(&mut nodes);
        // Links move to the new secret when nothing is under way on them any more.
        sleep(Duration::from_millis(1500));
    }
    // The certificates: first both authorities are trusted, then the new one issues, then it is the only one.
    folder.write("ca", &format!("{}{}", old_authority.pem, new_authority.pem));
    reload(&mut nodes);
    let (cert, key) = new_authority.issue(&["127.0.0.1", "localhost"]);
    folder.write("cert", &cert);
    folder.write("key", &key);
    reload(&mut nodes);
    folder.write("ca", &new_authority.pem);
    reload(&mut nodes);
    sleep(Duration::from_millis(500));
    let (done, failures) = load.end();
    println!("{done} requests, {} failed", failures.len());
    assert!(failures.is_empty(), "{} of {done}: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(done > 500, "{done} requests");
    assert_ne!(shown(&nodes), first_shown);
    assert!(nodes.iter().all(|node| members(node, &client) == Some(3)));

    // Who has only what was replaced stays outside; who has the new things joins.
    let late_folder = Folder::new();
    let late = |authority: &Authority, secret: &str, id: &str| {
        let mut flags = authority.equip(&late_folder);
        flags.extend(["--cluster-secret-file".into(), late_folder.write("secret", secret)]);
        flags.push(format!("--join={}", nodes[0].address));
        Node::start(id, &strs(&flags))
    };
    let outdated = late(&new_authority, &old_secret, "x1");
    let refused = poll(PATIENCE, || outdated.log().text().contains("does not have the secret"));
    assert!(refused, "{}", outdated.log().tail(3));
    let _joined = late(&new_authority, &new_secret, "n4");
    assert!(poll(PATIENCE, || members(&nodes[0], &client) == Some(4)));
}

#[test]
fn a_handshake_that_stops_half_way_keeps_no_connection() {
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let mut flags = authority.equip(&folder);
    flags.extend(["--header-timeout=1s".into()]);
    let client = authority.client(None);
    let nodes = start(1, &flags, &client);
    let closed = |bytes: &[u8]| {
        let mut stream: TcpStream = http::connect(nodes[0].address).expect("a connection");
        stream.write_all(bytes).expect("it is sent");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    };
    // Nothing at all, and the beginning of a record that never ends.
    closed(b"");
    closed(&[0x16, 3, 1, 2, 0, 1]);
    closed(&[0x16; 4096]);
    assert_eq!(members(&nodes[0], &client), Some(1));
}

#[test]
fn a_name_may_stand_for_all_nodes() {
    let (folder, authority) = (Folder::new(), Authority::new("ours"));
    let (cert, key) = authority.issue(&["shoal.internal"]);
    let (cert, key, ca) =
        (folder.write("cert", &cert), folder.write("key", &key), folder.write("ca", &authority.pem));
    let flags =
        ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca, "--tls-server-name", "shoal.internal"];
    let first = Node::start("n1", &flags);
    let join = format!("--join={}", first.address);
    let second = Node::start("n2", &[&flags[..], &[&join]].concat());
    let joined = poll(PATIENCE, || second.log().text().contains("member up"));
    assert!(joined, "{}", second.log().tail(4));
    let target =
        ["--node", &first.address.to_string(), "--tls-ca", &ca, "--tls-server-name", "shoal.internal"];
    let mut process = Process::spawn([&["nodes"][..], &target].concat());
    assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", process.log().tail(3));
}
