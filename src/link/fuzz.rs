//! Frames and handshakes as functions of bytes; see [`crate::fuzzing`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::message::{Claim, Operation, Reply, Request, Settled};
use super::record::Inbox;
use super::upgrade::header;
use super::{Lane, LinkConfig, Party, answer};
use super::{frame, party};
use crate::gossip::live_identities;
use crate::model::{NodeId, SlotSet};
use crate::security::{End, Handshake, Keyring, Secret, Terms};

const BYTES_MAX: usize = 1 << 16;

/// Frames in either direction, the lists and sets that travel as values, and the header fields of an upgrade.
pub(crate) fn link(bytes: &[u8]) {
    sealed(bytes);
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(request)) = frame::decode::<Request>(&mut buffer, BYTES_MAX) {
        crate::node::fuzz_request(request.head, request.value);
    }
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(reply)) = frame::decode::<Reply>(&mut buffer, BYTES_MAX) {
        // What fits is written as it was read.
        let mut again = BytesMut::new();
        assert!(frame::encode(
            &mut again,
            reply.id,
            reply.deadline_ms,
            &reply.head,
            std::slice::from_ref(&reply.value),
            BYTES_MAX
        ));
        let read = frame::decode::<Reply>(&mut again, usize::MAX).expect("a frame").expect("a whole one");
        assert_eq!((read.id, &read.head, &read.value), (reply.id, &reply.head, &reply.value));
    }
    // Whether they can be read does not matter here.
    let _ = SlotSet::from_bytes(bytes);
    let _ = live_identities(bytes);
    let head = String::from_utf8_lossy(bytes);
    let me = Party {
        address: ([127, 0, 0, 1], 1).into(),
        node_id: NodeId::parse("fuzz").expect("a name"),
        boot: 1,
    };
    if let Some(party) = Party::parse(&head) {
        // Case and zeros may differ, and a party is itself.
        assert_eq!(Party::parse(&party.to_string()).as_ref(), Some(&party));
    }
    let _ = party::calls(&head, &me);
    let config = LinkConfig {
        cluster: "fuzz".into(),
        me,
        keyring: None,
        nonces: Arc::default(),
        tls: None,
        value_bytes_max: 1 << 20,
        seed: 1,
    };
    let _ = answer(&config, Lane::Requests, None, |name| header(&head, name));
}

/// Bytes instead of a sealed record: they never open.
fn sealed(bytes: &[u8]) {
    let keyring =
        Keyring::parse(&Secret::generate(&mut StdRng::seed_from_u64(4)).to_text()).expect("a secret");
    let terms = Terms {
        cluster: "fuzz",
        purpose: "",
        asking: "",
        called: "",
        answering: "",
        nonces: [&[1; 32], &[2; 32]],
        channel: None,
    };
    let (_, opener) = Handshake::new(keyring.first(), terms).seals(End::Asking);
    let mut inbox = Inbox::new(Some(opener), BYTES_MAX);
    assert!(!matches!(inbox.next::<Request>(&mut BytesMut::from(bytes)), Ok(Some(_))));
}

/// What is worth changing a little.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let claim = Claim {
        settled: Some(Settled { at_ms: 7, done: None, unsure_ms: None }),
        ..Claim::new("00000000000000ff".parse().expect("a fingerprint"), 9, 11)
    };
    let get = Operation::Get { key: "key".into() };
    let put = Operation::Put {
        key: "{tag}key".into(),
        condition: crate::model::Condition::Always,
        ttl_ms: Some(1000),
        content_type: Some("text/plain".into()),
        value_bytes: 5,
    };
    let requests = [
        Request::One { operation: get.clone(), claim },
        Request::One { operation: put.clone(), claim },
        Request::Many { operations: vec![get, put], claim },
        Request::Members,
        Request::Ping { clock: 1 },
    ];
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        let mut frame = BytesMut::new();
        frame::encode(&mut frame, id as u32, 1000, request, &[Bytes::from_static(b"value")], BYTES_MAX);
        corpus.push(frame.to_vec());
    }
    corpus.push(corpus.concat());
    for reply in [Reply::Members, Reply::CalledBack(Some("why".into())), Reply::Leaving] {
        let mut frame = BytesMut::new();
        frame::encode(&mut frame, 1, 0, &reply, &[Bytes::from_static(b"value")], BYTES_MAX);
        corpus.push(frame.to_vec());
    }
    corpus.push(SlotSet::full().to_bytes());
    corpus
        .push(b"GET /internal/link HTTP/1.1\r\nshoal-cluster: fuzz\r\nshoal-key: 00ff00ff\r\n\r\n".to_vec());
    corpus
}
