//! The stream of events: a snapshot, and then what happens.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::http;
use crate::process::PATIENCE;

/// Kinds and data of what one node has told so far.
#[derive(Clone, Default)]
struct Stream(Arc<Mutex<Vec<(String, Value)>>>);

impl Stream {
    fn open(address: SocketAddr) -> Stream {
        let mut connection = http::connect(address).expect("a connection");
        connection.write_all(b"GET /admin/events HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a request");
        let stream = Stream::default();
        let events = stream.clone();
        std::thread::spawn(move || events.follow(BufReader::new(connection)));
        stream
    }

    /// Takes the fields of each event; what else is between them belongs to HTTP.
    fn follow(&self, lines: impl BufRead) {
        let (mut kind, mut id) = (String::new(), String::new());
        for line in lines.lines().map_while(Result::ok) {
            match line.split_once(": ") {
                Some(("event", text)) => kind = text.to_string(),
                Some(("id", text)) => id = text.to_string(),
                Some(("data", text)) => {
                    let data: Value = serde_json::from_str(text).expect("data is JSON");
                    assert_eq!(data["id"].to_string(), id);
                    self.0.lock().push((kind.clone(), data));
                }
                _ => {}
            }
        }
    }

    fn all(&self) -> Vec<(String, Value)> {
        self.0.lock().clone()
    }

    /// Whether there was an event of this kind, about this node if one is named.
    fn has(&self, kind: &str, node_id: Option<&str>) -> bool {
        let about = |data: &Value| node_id.is_none_or(|id| data["node_id"] == id);
        self.all().iter().any(|(known, data)| known == kind && about(data))
    }
}

#[test]
fn the_stream_starts_with_a_snapshot_and_tells_of_comings_deaths_goodbyes_and_rings() {
    let mut cluster = Cluster::start(3);
    let stream = Stream::open(cluster[1].address);
    cluster.wait_until("there is a snapshot", PATIENCE, || !stream.all().is_empty());
    let (kind, snapshot) = stream.all().remove(0);
    assert_eq!(kind, "snapshot");
    assert_eq!(snapshot["node_id"], "n1");
    assert_eq!(snapshot["ring"], cluster[1].view().expect("a view").ring);
    assert_eq!(snapshot["members"].as_array().map(Vec::len), Some(3));

    cluster.add(&[]);
    cluster.wait_until("the newcomer is told of", PATIENCE, || stream.has("member_up", Some("n4")));
    cluster.wait_until("so is its ring", PATIENCE, || stream.has("ring_changed", None));
    cluster.wait_until("all know all", PATIENCE, || cluster.is_whole());
    cluster.kill(3);
    cluster.wait_until("the death is told of", Duration::from_secs(5), || {
        stream.has("member_suspect", Some("n3")) && stream.has("member_down", Some("n3"))
    });
    cluster.terminate(2);
    cluster.wait_until("the goodbye is told of", PATIENCE, || stream.has("member_left", Some("n2")));
    cluster.wait_until("the last ring is the one in force", PATIENCE, || {
        let events = stream.all();
        let last = events.iter().rfind(|(kind, _)| kind == "ring_changed");
        last.is_some_and(|(_, data)| data["ring"] == cluster[1].view().expect("a view").ring)
    });

    let events = stream.all();
    let ids: Vec<_> = events.iter().map(|(_, data)| data["id"].as_u64().expect("an id")).collect();
    assert!(ids.windows(2).all(|two| two[0] + 1 == two[1]), "{ids:?}");
    assert!(events.iter().all(|(_, data)| http::is_time(&data["time"])), "{events:?}");
    assert!(!stream.has("member_down", Some("n2")), "a goodbye is no death");
}
