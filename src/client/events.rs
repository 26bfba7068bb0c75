//! Server-Sent Events, read as the HTML standard says ("Interpreting an event stream").

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use serde_json::Value;
use tokio::time::timeout;

use super::ClientError;

/// A node says that it is alive every 5 s; one that is silent for this long is not.
const SILENCE: Duration = Duration::from_secs(15);
/// The longest line; a snapshot of a thousand members is a third of that.
const LINE_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `snapshot`, `member_up`, `ring_changed` …
    pub kind: String,
    /// Its data.
    pub data: Value,
}

/// The events of one node, as they come.
pub struct EventStream {
    address: String,
    /// Keeps the connection open.
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Event>,
}

impl EventStream {
    pub(super) fn new(address: String, sender: SendRequest<Full<Bytes>>, body: Incoming) -> EventStream {
        EventStream { address, _sender: sender, body, parser: Parser::default(), ready: VecDeque::new() }
    }

    /// The next event.
    ///
    /// # Errors
    /// When the node closes the stream, is silent for 15 s, or sends something else than events.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let gone = |reason: &str| ClientError::Unreachable {
                address: self.address.clone(),
                reason: reason.into(),
            };
            match timeout(SILENCE, self.body.frame()).await {
                Err(_) => return Err(gone("it has been silent for 15 s")),
                Ok(None) => return Err(gone("it closed the stream of events")),
                Ok(Some(Err(_))) => return Err(gone("the stream of events broke")),
                Ok(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.parser.feed(&data, &mut self.ready).map_err(ClientError::Protocol)?;
                }
            }
        }
    }
}

/// Bytes to events; lines may be cut anywhere.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    kind: String,
    data: String,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8], out: &mut VecDeque<Event>) -> Result<(), String> {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(out)?,
                b'\r' => {}
                _ if self.line.len() == LINE_BYTES_MAX => return Err("an event of over a megabyte".into()),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut VecDeque<Event>) -> Result<(), String> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            return self.dispatch(out);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.kind = value.to_string(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            // Comments, ids, and fields of the future.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, out: &mut VecDeque<Event>) -> Result<(), String> {
        let (kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
        if data.is_empty() {
            return Ok(());
        }
        let data = serde_json::from_str(&data)
            .map_err(|error| format!("an event whose data is not JSON: {error}"))?;
        out.push_back(Event { kind, data });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = ": alive\n\nid: 1\nevent: member_up\ndata: {\"a\":\ndata: 1}\n\r\nevent:x\ndata:2\n\n";
        for step in [1, 3, 1000] {
            let (mut parser, mut events) = (Parser::default(), VecDeque::new());
            for part in text.as_bytes().chunks(step) {
                parser.feed(part, &mut events).unwrap();
            }
            let event = |kind: &str, data| Event { kind: kind.into(), data };
            assert_eq!(events, [event("member_up", json!({"a": 1})), event("x", json!(2))]);
        }
    }

    #[test]
    fn data_that_is_not_json_is_an_error() {
        assert!(Parser::default().feed(b"data: nope\n\n", &mut VecDeque::new()).is_err());
    }
}
