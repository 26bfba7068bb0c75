//! Both ends of a link over loopback, with services that answer, dawdle or talk nonsense.

mod proof;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::*;
use crate::model::{NodeId, Version};
use crate::net::{TcpListener, TcpStream};
use crate::telemetry::Metrics;

/// Answers a GET with its key as the value; a key that starts with a number of milliseconds takes that long.
struct Echo;

impl Service for Echo {
    fn call(&self, request: Request, _value: Bytes, _deadline: Instant) -> Answer {
        let Request::One { operation: Operation::Get { key }, .. } = request else {
            return Answer::Now(
                Reply::Copied { ring: claim().ring, bound: false, met: Vec::new() },
                Vec::new(),
            );
        };
        let hit = Reply::One(Outcome::Hit {
            version: Version::new(1, 1),
            left: None,
            content_type: None,
            value_bytes: key.len() as u32,
        });
        if &*key == "long head" {
            let refusal = Refusal::Invalid("x".repeat(BULK_BYTES));
            return Answer::Now(Reply::One(Outcome::Refused(refusal)), Vec::new());
        }
        let pause = key.split(' ').next().and_then(|first| first.parse().ok());
        let value =
            if &*key == "long" { Bytes::from(vec![7; BULK_BYTES + 1]) } else { Bytes::from(key.to_string()) };
        match pause {
            None => Answer::Now(hit, vec![value]),
            Some(ms) => Answer::Later(Box::pin(async move {
                sleep(Duration::from_millis(ms)).await;
                (hit, vec![value])
            })),
        }
    }
}

fn config() -> LinkConfig {
    let node_id = NodeId::parse("test").unwrap();
    LinkConfig {
        cluster: "test".into(),
        me: Party { address: ([127, 0, 0, 1], 1).into(), node_id, boot: 1 },
        keyring: None,
        nonces: Arc::default(),
        tls: None,
        value_bytes_max: 1 << 20,
        seed: 1,
    }
}

/// Of a peer that takes what this node takes.
fn lane(bulk: bool) -> (Lane, usize) {
    (if bulk { Lane::Bulk } else { Lane::Requests }, config().frame_bytes_max())
}

fn metrics() -> Arc<Metrics> {
    Metrics::new(&NodeId::parse("test").unwrap())
}

fn get(key: &str) -> Request {
    Request::One { operation: Operation::Get { key: key.into() }, claim: claim() }
}

fn claim() -> Claim {
    Claim::new("0000000000000000".parse().unwrap(), 0, 0)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Reads the upgrade request and accepts it; true if it was for the bulk lane.
async fn accept(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
    String::from_utf8(head).unwrap().contains("shoal-lane: bulk")
}

/// A peer that serves `Echo`, and how often it was connected to on each lane.
async fn echo_peer() -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connects: Arc<[AtomicUsize; 2]> = Arc::default();
    let counted = connects.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let bulk = accept(&mut stream).await;
                counted[usize::from(bulk)].fetch_add(1, Ordering::SeqCst);
                let _ = serve(stream, b"", lane(bulk), Arc::new(Echo), None, &config(), &metrics()).await;
            });
        }
    });
    (address, connects)
}

/// Answers with how many requests came before; to a goodbye with nothing.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Service for Counter {
    fn call(&self, request: Request, _value: Bytes, _deadline: Instant) -> Answer {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Goodbye { .. } => Answer::Never,
            _ => Answer::Now(Reply::Wanted(vec![before as u32]), Vec::new()),
        }
    }
}

#[tokio::test]
async fn what_is_told_arrives_in_order_without_a_reply_and_opens_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        accept(&mut stream).await;
        let service = Arc::new(Counter::default());
        serve(stream, b"", lane(false), service, None, &config(), &metrics()).await
    });
    let pool = Pool::new(config(), metrics());
    let told = Request::Goodbye { node_id: NodeId::parse("test").unwrap(), boot: 1 };
    assert!(matches!(pool.tell(peer, &told, &[]), Err(LinkError::Broken(_))), "nothing is open");
    let count = async || pool.call(peer, &get("key"), &[], soon()).await.unwrap().0;
    assert_eq!(count().await, Reply::Wanted(vec![0]));
    pool.tell(peer, &told, &[]).unwrap();
    pool.tell(peer, &told, &[]).unwrap();
    assert_eq!(count().await, Reply::Wanted(vec![3]));
}

#[tokio::test]
async fn every_asker_gets_its_own_answer_over_one_connection() {
    let (peer, connects) = echo_peer().await;
    let pool = Arc::new(Pool::new(config(), metrics()));
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..500 {
        let pool = pool.clone();
        // Every third takes some time, so that answers come out of order.
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
    assert_eq!(connects[0].load(Ordering::SeqCst), 1);
    assert_eq!(connects[1].load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_long_answer_comes_over_the_bulk_connection() {
    let (peer, connects) = echo_peer().await;
    let pool = Pool::new(config(), metrics());
    let (_, value) = pool.call(peer, &get("long"), &[], soon()).await.unwrap();
    assert_eq!(value.len(), BULK_BYTES + 1);
    assert_eq!(connects[1].load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_long_head_takes_the_bulk_connection_in_either_direction() {
    let (peer, connects) = echo_peer().await;
    let pool = Pool::new(config(), metrics());
    assert!(pool.call(peer, &get("long head"), &[], soon()).await.is_ok());
    assert_eq!(connects[1].load(Ordering::SeqCst), 1);
    let (peer, connects) = echo_peer().await;
    let operations = vec![Operation::Get { key: "k".repeat(1024).into() }; 64];
    assert!(pool.call(peer, &Request::Many { operations, claim: claim() }, &[], soon()).await.is_ok());
    assert_eq!(connects[1].load(Ordering::SeqCst), 1);
}

/// Counts what it is asked, and answers everything at length.
struct Wordy(AtomicUsize);

impl Service for Wordy {
    fn call(&self, _: Request, _: Bytes, _: Instant) -> Answer {
        self.0.fetch_add(1, Ordering::SeqCst);
        Answer::Now(Reply::Many(Vec::new()), vec![Bytes::from(vec![7; BULK_BYTES + 1])])
    }
}

#[tokio::test]
async fn a_write_is_not_asked_twice_however_long_its_answer_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let service = Arc::new(Wordy(AtomicUsize::new(0)));
    let served = service.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bulk = accept(&mut stream).await;
            let service = served.clone();
            tokio::spawn(async move {
                let _ = serve(stream, b"", lane(bulk), service, None, &config(), &metrics()).await;
            });
        }
    });
    let pool = Pool::new(config(), metrics());
    let get = Operation::Get { key: "key".into() };
    let delete = Operation::Delete { key: "key".into(), condition: crate::model::Condition::Always };
    for (operations, times) in [(vec![get.clone()], 2), (vec![get, delete.clone()], 1), (vec![delete], 1)] {
        service.0.store(0, Ordering::SeqCst);
        let request = Request::Many { operations, claim: claim() };
        let (reply, value) = pool.call(peer, &request, &[], soon()).await.unwrap();
        assert_eq!((reply, value.len()), (Reply::Many(Vec::new()), BULK_BYTES + 1));
        assert_eq!(service.0.load(Ordering::SeqCst), times);
    }
}

#[tokio::test]
async fn a_frame_that_is_longer_than_the_peer_takes_is_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            asked(&mut stream).await;
            let answer =
                format!("HTTP/1.1 101 Switching Protocols\r\n{FRAME_HEADER}: {FRAME_BYTES_LEAST}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            tokio::spawn(async move {
                let _ = serve(stream, b"", lane(true), Arc::new(Echo), None, &config(), &metrics()).await;
            });
        }
    });
    let metrics = metrics();
    let pool = Pool::new(config(), metrics.clone());
    let copies = Request::Sync(Records { sent_at_ms: None, heads: Vec::new() });
    let long = Bytes::from(vec![7; FRAME_BYTES_LEAST]);
    let refused = pool.call(peer, &copies, std::slice::from_ref(&long), soon()).await;
    assert!(matches!(refused, Err(LinkError::TooLong)), "{refused:?}");
    // It goes on over the connection that is there.
    assert!(pool.call(peer, &copies, &[long.slice(1024..)], soon()).await.is_ok());
    assert_eq!(metrics.link_connects.get(), 1);
}

#[tokio::test]
async fn a_deadline_is_kept_and_the_late_answer_disturbs_nobody() {
    let (peer, _) = echo_peer().await;
    let pool = Pool::new(config(), metrics());
    let asked = Instant::now();
    let late = pool.call(peer, &get("300 late"), &[], asked + Duration::from_millis(50)).await;
    assert!(matches!(late, Err(LinkError::Late(_))), "{late:?}");
    assert!(asked.elapsed() < Duration::from_millis(250));
    sleep(Duration::from_millis(400)).await;
    let (_, value) = pool.call(peer, &get("still here"), &[], soon()).await.unwrap();
    assert_eq!(value, "still here");
}

#[tokio::test]
async fn a_broken_connection_fails_what_is_under_way_and_is_opened_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        accept(&mut first).await;
        let _ = first.read_u8().await;
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        let bulk = accept(&mut second).await;
        let _ = serve(second, b"", lane(bulk), Arc::new(Echo), None, &config(), &metrics()).await;
    });
    let pool = Pool::new(config(), metrics());
    let broken = pool.call(peer, &get("a"), &[], soon()).await;
    assert!(matches!(broken, Err(LinkError::Broken(_))), "{broken:?}");
    assert!(pool.call(peer, &get("a"), &[], soon()).await.is_ok());
}

#[tokio::test]
async fn a_connection_to_a_peer_that_is_dropped_meanwhile_serves_who_asked_for_it_and_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = Arc::new(Pool::new(config(), metrics()));
    let asker = pool.clone();
    let asking = tokio::spawn(async move { asker.call(address, &get("a"), &[], soon()).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    pool.retain(|_| false);
    accept(&mut stream).await;
    let (ours, metrics) = (config(), metrics());
    let serving = serve(stream, b"", lane(false), Arc::new(Echo), None, &ours, &metrics);
    assert_eq!(timeout_at(soon(), serving).await, Ok(Ok(())), "the connection ends, between frames");
    let (_, value) = asking.await.unwrap().unwrap();
    assert_eq!(value, "a");
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_not_asked_again_at_once() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = unused.local_addr().unwrap();
    drop(unused);
    let pool = Pool::new(config(), metrics());
    for _ in 0..3 {
        let refused = pool.call(peer, &get("a"), &[], soon()).await;
        assert!(matches!(refused, Err(LinkError::Refused(_))), "{refused:?}");
    }
    // Within the backoff nothing is tried, even now that somebody listens; after it, it is.
    let listener = TcpListener::bind(peer).await.unwrap();
    assert!(pool.call(peer, &get("a"), &[], soon()).await.is_err());
    sleep(Duration::from_millis(60)).await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let bulk = accept(&mut stream).await;
        let _ = serve(stream, b"", lane(bulk), Arc::new(Echo), None, &config(), &metrics()).await;
    });
    assert!(pool.call(peer, &get("a"), &[], soon()).await.is_ok());
}

#[tokio::test]
async fn a_silent_peer_is_given_up_soon_and_not_asked_again_until_it_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let (wake, woken) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let bulk = accept(&mut stream).await;
        woken.await.unwrap();
        let _ = serve(stream, b"", lane(bulk), Arc::new(Echo), None, &config(), &metrics()).await;
    });
    let pool = Pool::new(config(), metrics());
    let asked = Instant::now();
    let silent = pool.call(peer, &get("a"), &[], soon()).await;
    assert!(matches!(silent, Err(LinkError::Silent(_))), "{silent:?}");
    assert!((SILENCE..5 * SILENCE).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    let asked = Instant::now();
    let silent = pool.call(peer, &get("a"), &[], soon()).await;
    assert!(matches!(silent, Err(LinkError::Unreachable { .. })), "{silent:?}");
    assert!(asked.elapsed() < SILENCE, "{:?}", asked.elapsed());
    wake.send(()).unwrap();
    assert!(pool.call(peer, &Request::Ping { clock: 0 }, &[], soon()).await.is_ok());
    assert!(pool.call(peer, &get("a"), &[], soon()).await.is_ok());
}

#[tokio::test]
async fn a_peer_that_is_busy_is_waited_for() {
    let (peer, _) = echo_peer().await;
    let pool = Pool::new(config(), metrics());
    let (_, value) = pool.call(peer, &get("350 ms of work"), &[], soon()).await.unwrap();
    assert_eq!(value, "350 ms of work");
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        accept(&mut stream).await;
        // Takes everything and answers nothing.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    let pool = Arc::new(Pool::new(config(), metrics()));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..OUTSTANDING_MAX + 100 {
        let pool = pool.clone();
        // A ping waits for its answer to the end, however long it takes until all of these have been sent.
        asking.spawn(async move { pool.call(peer, &Request::Ping { clock: 0 }, &[], soon()).await });
    }
    let asked = Instant::now();
    for _ in 0..100 {
        let refused = asking.join_next().await.unwrap().unwrap();
        assert!(matches!(refused, Err(LinkError::Overloaded(_))), "{refused:?}");
    }
    assert!(asked.elapsed() < Duration::from_secs(3), "the others are still waiting for their answers");
}

#[tokio::test]
async fn a_peer_that_refuses_the_upgrade_is_quoted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
        sleep(Duration::from_secs(1)).await;
    });
    let error = Pool::new(config(), metrics()).call(peer, &get("a"), &[], soon()).await.unwrap_err();
    assert!(error.to_string().ends_with("it refused the link: HTTP/1.1 403 Forbidden"), "{error}");
}

#[tokio::test]
async fn garbage_closes_the_connection_with_a_reason() {
    for (garbage, reason) in [
        (&[0xff; 16][..], "a frame of 4294967295 bytes"),
        (&[8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0], "a head of 9 bytes in a frame of 8"),
        (&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 250], "an unreadable head"),
    ] {
        let (mut asker, answerer) = tokio::io::duplex(1 << 10);
        asker.write_all(garbage).await.unwrap();
        let closed = serve(answerer, b"", lane(false), Arc::new(Echo), None, &config(), &metrics()).await;
        assert!(closed.as_ref().is_err_and(|error| error.starts_with(reason)), "{closed:?}");
    }
}

/// The request for a link, and the value of one of its headers.
async fn asked(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_link_follows_no_redirect() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (peer, target) = (listener.local_addr().unwrap(), elsewhere.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        asked(&mut stream).await;
        let answer =
            format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{target}/internal/link\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let error = Pool::new(config(), metrics()).call(peer, &get("a"), &[], soon()).await.unwrap_err();
    assert!(error.to_string().contains("307"), "{error}");
    let followed = tokio::time::timeout(Duration::from_millis(200), elsewhere.accept()).await;
    assert!(followed.is_err(), "somebody came");
}
