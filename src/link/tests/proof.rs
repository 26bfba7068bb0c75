//! How the ends of a link prove themselves, and what becomes of links when the secret changes.

use bytes::BytesMut;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::security::{End, Handshake, Hash, Keyring, Secret, bytes, text};

fn keyring(seed: u64) -> (tokio::sync::watch::Sender<Arc<Keyring>>, LinkConfig) {
    let secret = Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text();
    let (sender, keyring) = tokio::sync::watch::channel(Arc::new(Keyring::parse(&secret).unwrap()));
    (sender, LinkConfig { keyring: Some(keyring), ..config() })
}

#[tokio::test]
async fn an_impostor_learns_nothing_of_what_is_asked() {
    let (_own, ours) = keyring(1);
    let (_other, theirs) = keyring(2);
    // Without any proof, with that of another secret, and with what was just shown to it.
    for impostor in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let theirs = theirs.clone();
        let impostor = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = asked(&mut stream).await;
            let field = |name: &str| upgrade::header(&head, name);
            let nonce = field("shoal-nonce").unwrap();
            let proof = match impostor {
                0 => String::new(),
                1 => {
                    let keyring = theirs.keyring.unwrap().borrow().clone();
                    let nonce = bytes(nonce).unwrap();
                    let handshake = Handshake::new(keyring.first(), "test", "requests", &nonce, &nonce);
                    format!(
                        "shoal-nonce: {}\r\nshoal-proof: {}\r\n",
                        text(&nonce),
                        text(&handshake.proof(End::Answering))
                    )
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
    let (_own, ours) = keyring(1);
    let nonce = Hash::default();
    let key = ours.keyring.as_ref().unwrap().borrow().first().id.to_string();
    let header = |name: &str| match name {
        "shoal-cluster" => Some("test"),
        "shoal-key" => Some(key.as_str()),
        "shoal-nonce" => Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        _ => None,
    };
    let answered = answer(&ours, Lane::Requests, header).unwrap();
    let theirs = bytes(&answered.headers[0].1).unwrap();
    let keyring = ours.keyring.as_ref().unwrap().borrow().clone();
    let right = Handshake::new(keyring.first(), "test", "requests", &nonce, &theirs).proof(End::Asking);
    let other_lane = Handshake::new(keyring.first(), "test", "bulk", &nonce, &theirs).proof(End::Asking);
    let reflected = bytes(&answered.headers[1].1).unwrap();
    for (shown, is_admitted) in [(right, true), (other_lane, false), (reflected, false), (nonce, false)] {
        let (mut asking, mut answering) = tokio::io::duplex(1 << 10);
        asking.write_all(&[&shown[..], b"frame"].concat()).await.unwrap();
        let mut early = BytesMut::new();
        let admitted = answered.admit(&mut answering, &mut early).await;
        assert_eq!(admitted.is_ok(), is_admitted);
        assert!(!is_admitted || &early[..] == b"frame");
    }
    let (_silent, mut answering) = tokio::io::duplex(1 << 10);
    let late = answered.admit(&mut answering, &mut BytesMut::new()).await;
    assert!(late.unwrap_err().contains("in time"));
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

#[tokio::test]
async fn links_move_to_the_first_secret_and_no_call_fails() {
    let [old, new] = [1, 2].map(|seed| Secret::generate(&mut StdRng::seed_from_u64(seed)).to_text());
    let (sender, ours) = keyring(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let (opened, mut keys) = tokio::sync::mpsc::unbounded_channel();
    let theirs = ours.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = asked(&mut stream).await;
            let answered = answer(&theirs, Lane::Requests, |name| upgrade::header(&head, name)).unwrap();
            let fields: String =
                answered.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let config = theirs.clone();
            opened.send(answered.key.unwrap()).unwrap();
            tokio::spawn(async move {
                let mut early = BytesMut::new();
                answered.admit(&mut stream, &mut early).await.unwrap();
                serve(stream, &early, lane(false), Arc::new(Echo), &config, &metrics()).await
            });
        }
    });
    let pool = Arc::new(Pool::new(ours, metrics()));
    let following = tokio::spawn({
        let pool = pool.clone();
        async move { pool.follow_keyring().await }
    });
    pool.call(peer, &get("a"), &[], soon()).await.unwrap();
    let both = Keyring::parse(&format!("{new}\n{old}")).unwrap();
    let (first, second) = (Keyring::parse(&old).unwrap().first().id, both.first().id);
    assert_eq!(keys.recv().await, Some(first));
    sender.send_replace(Arc::new(both));
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
