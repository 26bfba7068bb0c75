//! `shoal watch`: what happens in the cluster, one line each.
//!
//! When the node it listens to dies, it goes on with another one that it has heard of.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use tokio::time::sleep;

use super::{Failure, output};
use crate::client::{Access, Client, ClientError, Event};

/// Pause between rounds through all known nodes.
const ROUND_PAUSE: Duration = Duration::from_secs(1);
/// Rounds without any node before it gives up.
const ROUNDS_MAX: usize = 30;

/// Follows the events of the cluster that the node at `address` belongs to, until interrupted.
pub(super) async fn run(address: &str, access: &Access) -> Result<(), Failure> {
    let mut known = Known::new(address);
    let mut rounds = 0;
    let zone = TimeZone::system();
    // At first the named node has to be there; a mistyped address should not be waited for.
    let mut stream = Client::with_access(address, access.clone()).events().await?;
    loop {
        let lost = loop {
            match stream.next().await {
                Ok(event) => {
                    known.learn(&event);
                    for line in render(&event, &zone) {
                        output::line(&line).await?;
                    }
                }
                Err(error) => break error,
            }
        };
        say(&lost.to_string()).await?;
        stream = loop {
            match another(&mut known, access).await {
                Ok(stream) => break stream,
                Err(error) if rounds == ROUNDS_MAX => return Err(error.into()),
                Err(_) => rounds += 1,
            }
            sleep(ROUND_PAUSE).await;
        };
        say(&format!("now listening to {}", known.current)).await?;
        rounds = 0;
    }
}

/// Connects to the first known node that answers, the present one last.
async fn another(known: &mut Known, access: &Access) -> Result<crate::client::EventStream, ClientError> {
    let mut last = None;
    for address in known.candidates() {
        match Client::with_access(address.as_str(), access.clone()).events().await {
            Ok(stream) => {
                known.current = address;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ClientError::Protocol("no other node is known".into())))
}

async fn say(what: &str) -> Result<(), Failure> {
    let time = local_time(&Timestamp::now().to_string(), &TimeZone::system());
    output::line(&format!("{time}  {what}")).await
}

/// The nodes that have been heard of, by name.
struct Known {
    current: String,
    addresses: BTreeMap<String, String>,
}

impl Known {
    fn new(address: &str) -> Known {
        Known { current: address.to_string(), addresses: BTreeMap::new() }
    }

    fn learn(&mut self, event: &Event) {
        let members = event.data["members"].as_array().map_or(&[][..], Vec::as_slice);
        for member in members.iter().chain([&event.data]) {
            if let (Some(node_id), Some(address)) = (member["node_id"].as_str(), member["address"].as_str()) {
                self.addresses.insert(node_id.to_string(), address.to_string());
            }
        }
    }

    fn candidates(&self) -> Vec<String> {
        let others = self.addresses.values().filter(|address| **address != self.current).cloned();
        others.chain([self.current.clone()]).collect()
    }
}

/// The lines that tell of an event, with the time where the reader is.
fn render(event: &Event, zone: &TimeZone) -> Vec<String> {
    let data = &event.data;
    let time = local_time(text(data, "time"), zone);
    let member = || format!("{} ({})", text(data, "node_id"), text(data, "address"));
    let detail = || data["detail"].as_str().map(|detail| format!(", {detail}")).unwrap_or_default();
    let line = match event.kind.as_str() {
        "snapshot" => return snapshot(data, &time),
        "member_up" => format!("{} is up{}", member(), detail()),
        "member_suspect" => format!("{} does not answer and is suspected{}", member(), detail()),
        "member_down" => format!("{} is dead{}", member(), detail()),
        "member_left" => format!("{} has left{}", member(), detail()),
        "ring_changed" => format!(
            "new ring {}: {}, {} with another primary",
            text(data, "ring"),
            count(data["members"].as_u64(), "member"),
            count(data["slots_moved"].as_u64(), "slot")
        ),
        "sync_started" => "moving entries to their owners".to_string(),
        "sync_done" => {
            let [keys, bytes, ms] = ["keys", "bytes", "duration_ms"].map(|field| data[field].as_u64());
            format!("moved {}, {}, in {} ms", count(keys, "key"), count(bytes, "byte"), number(ms))
        }
        other => format!("{other} {data}"),
    };
    vec![format!("{time}  {line}")]
}

fn snapshot(data: &Value, time: &str) -> Vec<String> {
    let members = data["members"].as_array().map_or(&[][..], Vec::as_slice);
    let mut lines = vec![format!(
        "{time}  {} sees {}, ring {}",
        text(data, "node_id"),
        count(Some(members.len() as u64), "member"),
        text(data, "ring")
    )];
    lines.extend(members.iter().map(|member| {
        format!(
            "{:14}{} ({}) {}",
            "",
            text(member, "node_id"),
            text(member, "address"),
            text(member, "status")
        )
    }));
    lines
}

fn text<'a>(data: &'a Value, field: &str) -> &'a str {
    data[field].as_str().unwrap_or("?")
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "?".into(), |number| number.to_string())
}

fn count(things: Option<u64>, noun: &str) -> String {
    format!("{} {noun}{}", number(things), if things == Some(1) { "" } else { "s" })
}

fn local_time(rfc3339: &str, zone: &TimeZone) -> String {
    match rfc3339.parse::<Timestamp>() {
        Ok(time) => time.to_zoned(zone.clone()).strftime("%H:%M:%S.%3f").to_string(),
        Err(_) => rfc3339.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TIME: &str = "2026-11-22T22:30:00.120Z";

    fn lines(kind: &str, mut data: Value) -> Vec<String> {
        data["time"] = TIME.into();
        render(&Event { kind: kind.into(), data, ..Event::default() }, &TimeZone::UTC)
    }

    #[test]
    fn each_event_is_a_readable_line() {
        let member = json!({"node_id": "node2", "address": "127.0.0.1:8002", "status": "unhealthy"});
        assert_eq!(lines("member_down", member.clone()), ["22:30:00.120  node2 (127.0.0.1:8002) is dead"]);
        let mut restarted = member;
        restarted["detail"] = "restarted".into();
        assert_eq!(lines("member_up", restarted), ["22:30:00.120  node2 (127.0.0.1:8002) is up, restarted"]);
        assert_eq!(
            lines("ring_changed", json!({"ring": "00ff", "members": 2, "slots_moved": 5461})),
            ["22:30:00.120  new ring 00ff: 2 members, 5461 slots with another primary"]
        );
        assert_eq!(
            lines("sync_done", json!({"keys": 1, "bytes": 100, "duration_ms": 7})),
            ["22:30:00.120  moved 1 key, 100 bytes, in 7 ms"]
        );
    }

    #[test]
    fn a_snapshot_has_a_line_for_each_member() {
        let member = json!({"node_id": "node1", "address": "127.0.0.1:8001", "status": "healthy"});
        assert_eq!(
            lines("snapshot", json!({"node_id": "node1", "ring": "00ff", "members": [member]})),
            ["22:30:00.120  node1 sees 1 member, ring 00ff", "              node1 (127.0.0.1:8001) healthy"]
        );
    }

    #[test]
    fn missing_fields_and_unknown_events_are_shown_all_the_same() {
        assert_eq!(lines("member_up", json!({})), ["22:30:00.120  ? (?) is up"]);
        assert_eq!(
            lines("ring_changed", json!({})),
            ["22:30:00.120  new ring ?: ? members, ? slots with another primary"]
        );
        let unknown = lines("new_kind", json!({}));
        assert_eq!(unknown, [format!("22:30:00.120  new_kind {{\"time\":\"{TIME}\"}}")]);
        assert_eq!(render(&Event::default(), &TimeZone::UTC), ["?   null"]);
    }

    #[test]
    fn the_time_is_that_of_the_readers_zone() {
        let tokyo = TimeZone::fixed(jiff::tz::offset(9));
        assert_eq!(local_time(TIME, &tokyo), "07:30:00.120");
    }

    #[test]
    fn a_watcher_knows_where_to_turn_after_the_snapshot() {
        let mut known = Known::new("127.0.0.1:1");
        let members =
            json!([{"node_id": "a", "address": "127.0.0.1:1"}, {"node_id": "b", "address": "127.0.0.1:2"}]);
        known.learn(&Event {
            kind: "snapshot".into(),
            data: json!({"node_id": "a", "members": members}),
            ..Event::default()
        });
        known.learn(&Event {
            kind: "member_up".into(),
            data: json!({"node_id": "c", "address": "127.0.0.1:3"}),
            ..Event::default()
        });
        assert_eq!(known.candidates(), ["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"]);
    }
}
