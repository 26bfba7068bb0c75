//! How the ends of a link prove themselves, and what becomes of links when the secret changes.

use bytes::BytesMut;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::super::handshake::Asked;
use super::*;
use crate::security::{Hash, KeyId, Keyring, Secret, bytes, text};

fn keyring(seed: u64) -> (tokio::sync::watch::Sender<Arc<Keyring>>, LinkConfig) {
    let secret = Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text();
    let (sender, keyring) = tokio::sync::watch::channel(Arc::new(Keyring::parse(&secret).unwrap()));
    (sender, LinkConfig { keyring: Some(keyring), ..config() })
}

fn party(node_id: &str, port: u16) -> Party {
    Party {
        address: ([127, 0, 0, 1], port).into(),
        node_id: NodeId::parse(node_id).unwrap(),
        boot: port.into(),
    }
}

/// Two members of one cluster.
fn pair() -> [LinkConfig; 2] {
    let (_, config) = keyring(1);
    ["n1", "n2"].map(|name| {
        let me = party(name, u16::from(name.as_bytes()[1]));
        LinkConfig { me, nonces: Arc::default(), ..config.clone() }
    })
}

/// A handshake on paper.
struct Shown<'a> {
    asked: Asked<'a>,
    request: String,
}

impl<'a> Shown<'a> {
    fn new(asking: &LinkConfig, called: Called<'a>) -> Shown<'a> {
        let asked = Asked::new(asking, called).unwrap();
        let request = format!("GET\r\nshoal-cluster: test\r\n{}", asked.headers(asking));
        Shown { asked, request }
    }

    fn answered(&self, by: &LinkConfig, channel: Option<&Hash>) -> Result<(Answered, String), Refused> {
        let answered = answer(by, Lane::Requests, channel, |name| upgrade::header(&self.request, name))?;
        let fields = answered.headers.iter().map(|(name, value)| format!("\r\n{name}: {value}"));
        let head = format!("101{}", fields.collect::<String>());
        Ok((answered, head))
    }

    /// What the asking end makes of it.
    fn check(&self, asking: &LinkConfig, channel: Option<&Hash>, head: &str) -> Result<Party, String> {
        let proved = self.asked.check(asking, Lane::Requests, channel, |name| upgrade::header(head, name));
        proved.map(|proved| proved.peer)
    }
}

#[tokio::test]
async fn an_impostor_learns_nothing_of_what_is_asked() {
    let (_own, ours) = keyring(1);
    let (_other, theirs) = keyring(2);
    // Without any proof, with that of another secret, and with what was just shown to it.
    for impostor in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let ours_first = ours.keyring.as_ref().unwrap().borrow().first().id.to_string();
        let theirs = LinkConfig { me: party("n2", 2), ..theirs.clone() };
        let impostor = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = asked(&mut stream).await;
            let nonce = upgrade::header(&head, "shoal-nonce").unwrap();
            let proof = match impostor {
                0 => String::new(),
                1 => {
                    let own = theirs.keyring.as_ref().unwrap().borrow().first().id.to_string();
                    let head = head.replace(&ours_first, &own);
                    let field = |name: &str| upgrade::header(&head, name);
                    let answered = answer(&theirs, Lane::Requests, None, field).unwrap();
                    answered.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
                }
                _ => format!("shoal-nonce: {nonce}\r\nshoal-proof: {nonce}\r\n"),
            };
            stream
                .write_all(format!("HTTP/1.1 101 Switching Protocols\r\n{proof}\r\n").as_bytes())
                .await
                .unwrap();
            let mut more = Vec::new();
            // It is closed without another byte.
            let _ = stream.read_to_end(&mut more).await;
            more
        });
        let error = Pool::new(ours.clone(), metrics()).call(peer, &get("a"), &[], soon()).await.unwrap_err();
        assert!(error.to_string().contains("proof") || error.to_string().contains("prove"), "{error}");
        assert!(impostor.await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn both_ends_prove_themselves_and_a_wrong_proof_is_not_admitted() {
    let [ours, theirs] = pair();
    let shown = Shown::new(&ours, theirs.me.address.into());
    let (answered, head) = shown.answered(&theirs, None).unwrap();
    let right =
        shown.asked.check(&ours, Lane::Requests, None, |name| upgrade::header(&head, name)).unwrap().shown;
    let reflected = bytes(upgrade::header(&head, "shoal-proof").unwrap()).unwrap();
    for (shown, is_admitted) in [(right, true), (reflected, false), (Hash::default(), false)] {
        let (mut asking, mut answering) = tokio::io::duplex(1 << 10);
        asking.write_all(&[&shown[..], b"frame"].concat()).await.unwrap();
        let mut early = BytesMut::new();
        let admitted = answered.admit(&mut answering, &mut early).await;
        assert_eq!(admitted.is_ok(), is_admitted);
        assert!(!is_admitted || &early[..] == b"frame");
    }
    let (_silent, mut answering) = tokio::io::duplex(1 << 10);
    let late = answered.admit(&mut answering, &mut BytesMut::new()).await;
    assert!(matches!(late, Err(Unproved::Late)));
}

#[test]
fn the_node_that_is_called_answers_and_is_taken_for_who_it_is() {
    let [ours, theirs] = pair();
    let elsewhere: SocketAddr = "127.0.0.9:9".parse().unwrap();
    for called in
        [Called::from((&theirs.me.node_id, theirs.me.address)), theirs.me.address.into(), elsewhere.into()]
    {
        let shown = Shown::new(&ours, called);
        let (_, head) = shown.answered(&theirs, None).unwrap();
        assert_eq!(shown.check(&ours, None, &head), Ok(theirs.me.clone()));
    }
}

#[test]
fn a_node_that_is_not_called_refuses_and_would_not_be_believed() {
    let [ours, theirs] = pair();
    let dead = party("n3", 3);
    for (node_id, address) in [
        (&dead.node_id, dead.address),
        (&theirs.me.node_id, dead.address),
        (&dead.node_id, theirs.me.address),
    ] {
        let called = Called::from((node_id, address));
        let mut shown = Shown::new(&ours, called);
        let refused = shown.answered(&theirs, None).err();
        assert!(matches!(refused, Some(Refused::NotCalled { .. })), "{refused:?}");
        // On the way the request may be made to say what pleases the one that answers, and the answer may be made to say what
        // pleases the one that asks.
        let changed = Called::from((&theirs.me.node_id, theirs.me.address)).to_string();
        shown.request = shown.request.replace(&called.to_string(), &changed);
        let (_, head) = shown.answered(&theirs, None).unwrap();
        let wanted = Party { address, node_id: node_id.clone(), boot: 9 }.to_string();
        for head in [head.clone(), head.replace(&theirs.me.to_string(), &wanted)] {
            let error = shown.check(&ours, None, &head).unwrap_err();
            assert!(error.contains("proof of the cluster secret is wrong"), "{error}");
        }
    }
    // It holds the secret, and answers in another's place.
    let called = Called::from((&dead.node_id, dead.address));
    let shown = Shown::new(&ours, called);
    let answering = LinkConfig { me: Party { boot: 1, ..dead.clone() }, ..theirs.clone() };
    let (_, head) = shown.answered(&answering, None).unwrap();
    assert!(shown.check(&ours, None, &head).is_ok());
}

#[test]
fn a_node_refuses_its_own_request_and_its_own_answer() {
    let [ours, theirs] = pair();
    let mut shown = Shown::new(&ours, theirs.me.address.into());
    assert_eq!(shown.answered(&ours, None).err(), Some(Refused::Itself));
    assert!(shown.asked.came_back());
    // Under another's name it still has this node's nonce; with another nonce, this node's name.
    shown.request = shown.request.replace(&ours.me.to_string(), &theirs.me.to_string());
    assert_eq!(shown.answered(&ours, None).err(), Some(Refused::Itself));
    let mut shown = Shown::new(&ours, theirs.me.address.into());
    let nonce = upgrade::header(&shown.request, "shoal-nonce").unwrap().to_string();
    shown.request = shown.request.replace(&nonce, &text(&Hash::default()));
    assert_eq!(shown.answered(&ours, None).err(), Some(Refused::Itself));
    // A process of the same name is another one.
    let namesake = LinkConfig { me: Party { boot: 99, ..ours.me.clone() }, ..theirs };
    let shown = Shown::new(&ours, theirs_address().into());
    let (_, head) = shown.answered(&namesake, None).unwrap();
    assert_eq!(shown.check(&ours, None, &head), Ok(namesake.me));
}

fn theirs_address() -> SocketAddr {
    party("n2", 2).address
}

#[test]
fn a_handshake_is_for_one_tls_connection() {
    let [ours, theirs] = pair();
    let shown = Shown::new(&ours, theirs.me.address.into());
    let (one, other) = (Some([1; 32]), Some([2; 32]));
    for (answering, asking) in [(one, one), (one, other), (one, None), (None, one)] {
        let (_, head) = shown.answered(&theirs, answering.as_ref()).unwrap();
        let checked = shown.check(&ours, asking.as_ref(), &head);
        assert_eq!(checked.is_ok(), answering == asking, "{checked:?}");
    }
}

#[test]
fn a_request_that_names_nobody_is_refused() {
    let [ours, theirs] = pair();
    let called = Called::from((&theirs.me.node_id, theirs.me.address));
    let whole = Shown::new(&ours, called).request;
    for (named, unnamed) in [
        ("shoal-from:", "shoal-other:"),
        ("shoal-to:", "shoal-other:"),
        (&*ours.me.to_string(), "n1"),
        (&*called.to_string(), "n2"),
    ] {
        let mut shown = Shown::new(&ours, called);
        shown.request = whole.replace(named, unnamed);
        assert_eq!(shown.answered(&theirs, None).err(), Some(Refused::Unnamed), "{named}");
    }
}

#[tokio::test]
async fn a_link_ends_with_the_secret_that_it_rests_on() {
    let (sender, ours) = keyring(1);
    let key = ours.keyring.as_ref().unwrap().borrow().first().id;
    let revoked = until_revoked(&ours, Some(key));
    tokio::pin!(revoked);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut revoked).await.is_err());
    sender.send_replace(keyring(2).1.keyring.unwrap().borrow().clone());
    revoked.await;
}

/// A member that serves `Echo` at `listener` under this name, and says which secret each link rests on.
fn sealed_peer(listener: TcpListener, config: &LinkConfig, name: &str) -> UnboundedReceiver<KeyId> {
    let (opened, keys) = tokio::sync::mpsc::unbounded_channel();
    let config = member(&listener, config, name);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = asked(&mut stream).await;
            serve_sealed(stream, &head, &config, &opened).await;
        }
    });
    keys
}

fn member(listener: &TcpListener, config: &LinkConfig, name: &str) -> LinkConfig {
    let me = Party { address: listener.local_addr().unwrap(), ..party(name, 2) };
    LinkConfig { me, nonces: Arc::default(), ..config.clone() }
}

/// Answers the request for a link whose head this is, and serves the link in the background.
async fn serve_sealed(
    mut stream: TcpStream,
    head: &str,
    config: &LinkConfig,
    opened: &UnboundedSender<KeyId>,
) {
    let bulk = head.contains("shoal-lane: bulk");
    let asked_lane = if bulk { Lane::Bulk } else { Lane::Requests };
    let answered = match answer(config, asked_lane, None, |name| upgrade::header(head, name)) {
        Ok(answered) => answered,
        Err(refused) => {
            let body = serde_json::json!({"message": refused.to_string()}).to_string();
            let head = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            return stream.write_all(head.as_bytes()).await.unwrap();
        }
    };
    let fields: String =
        answered.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = opened.send(answered.key.unwrap());
    let config = config.clone();
    tokio::spawn(async move {
        let mut early = BytesMut::new();
        let seals = answered.admit(&mut stream, &mut early).await.unwrap();
        assert!(seals.is_some());
        serve(stream, &early, lane(bulk), Arc::new(Echo), seals, &config, &metrics()).await
    });
}

#[tokio::test]
async fn many_requests_and_long_values_go_over_sealed_links() {
    let (_sender, ours) = keyring(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let _keys = sealed_peer(listener, &ours, "n2");
    let pool = Arc::new(Pool::new(ours, metrics()));
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..500 {
        let pool = pool.clone();
        let key =
            if number % 3 == 0 { format!("{} ms {number}", number % 20) } else { format!("key {number}") };
        asking.spawn(async move {
            let (_, value) = pool.call(peer, &get(&key), &[], soon()).await.unwrap();
            assert_eq!(value, key.as_bytes());
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    let (_, value) = pool.call(peer, &get("long"), &[], soon()).await.unwrap();
    assert_eq!(value.len(), BULK_BYTES + 1);
    let request = Request::Sync(Records { sent_at_ms: None, heads: Vec::new() });
    assert!(pool.call(peer, &request, &[Bytes::from(vec![7; 1 << 20])], soon()).await.is_ok());
}

#[tokio::test]
async fn a_request_for_a_member_goes_over_no_link_that_leads_to_another_one() {
    let (_sender, ours) = keyring(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut keys = sealed_peer(listener, &ours, "n2");
    let pool = Pool::new(ours, metrics());
    let [there, gone] = ["n2", "n3"].map(|name| NodeId::parse(name).unwrap());
    // To whoever is there.
    pool.call(address, &get("a"), &[], soon()).await.unwrap();
    pool.call((&there, address), &get("a"), &[], soon()).await.unwrap();
    let refused = pool.call((&gone, address), &get("a"), &[], soon()).await.unwrap_err();
    assert!(refused.to_string().contains("n2") && refused.to_string().contains("n3"), "{refused}");
    // Nothing became of the link that was there.
    pool.call((&there, address), &get("a"), &[], soon()).await.unwrap();
    assert!(keys.recv().await.is_some() && keys.try_recv().is_err());
}

/// A keyring that begins with a new secret and accepts the one of `keyring(1)`; the ids of both, the new one last.
fn rotated() -> (Arc<Keyring>, [KeyId; 2]) {
    let [old, new] = [1, 2].map(|seed| Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text());
    let both = Keyring::parse(&format!("{new}\n{old}")).unwrap();
    let ids = [Keyring::parse(&old).unwrap().first().id, both.first().id];
    (Arc::new(both), ids)
}

#[tokio::test]
async fn links_move_to_the_first_secret_and_no_call_fails() {
    let (both, [first, second]) = rotated();
    let (sender, ours) = keyring(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let mut keys = sealed_peer(listener, &ours, "n2");
    let pool = Arc::new(Pool::new(ours, metrics()));
    let following = tokio::spawn({
        let pool = pool.clone();
        async move { pool.follow_security().await }
    });
    pool.call(peer, &get("a"), &[], soon()).await.unwrap();
    assert_eq!(keys.recv().await, Some(first));
    sender.send_replace(both);
    let moved = async {
        loop {
            pool.call(peer, &get("a"), &[], soon()).await.unwrap();
            if let Ok(key) = keys.try_recv() {
                return key;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), moved).await, Ok(second));
    following.abort();
}

#[tokio::test]
async fn a_link_that_was_being_opened_when_the_secret_changed_serves_one_call() {
    let (both, [first, second]) = rotated();
    let (sender, ours) = keyring(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (peer, config) = (listener.local_addr().unwrap(), member(&listener, &ours, "n2"));
    let (opened, mut keys) = tokio::sync::mpsc::unbounded_channel();
    let pool = Arc::new(Pool::new(ours, metrics()));
    let calling = tokio::spawn({
        let pool = pool.clone();
        async move { pool.call(peer, &get("a"), &[], soon()).await }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = asked(&mut stream).await;
    sender.send_replace(both);
    serve_sealed(stream, &head, &config, &opened).await;
    calling.await.unwrap().unwrap();
    let mut more = sealed_peer(listener, &config, "n2");
    pool.call(peer, &get("a"), &[], soon()).await.unwrap();
    assert_eq!((keys.try_recv(), more.try_recv()), (Ok(first), Ok(second)));
}
