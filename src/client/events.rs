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
/// The longest event, and the longest line; a snapshot of a thousand members is a third of that.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// A stream may begin with it; it means nothing.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// One event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// Grows by one with each event of the node, so a gap tells of lost ones.
    pub id: String,
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
    /// The last byte was a carriage return, so a line feed now belongs to the line that it ended.
    returned: bool,
    begun: bool,
    kind: String,
    data: String,
    /// Of this event, or else of the one before: so says the standard.
    id: String,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8], out: &mut VecDeque<Event>) -> Result<(), String> {
        for &byte in bytes {
            let returned = std::mem::replace(&mut self.returned, byte == b'\r');
            match byte {
                b'\n' if returned => {}
                b'\n' | b'\r' => self.end_line(out)?,
                _ if self.line.len() == EVENT_BYTES_MAX => return Err(too_long()),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut VecDeque<Event>) -> Result<(), String> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        let first = !std::mem::replace(&mut self.begun, true);
        let line = if first { line.trim_start_matches(BYTE_ORDER_MARK) } else { &line };
        if line.is_empty() {
            return self.dispatch(out);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.kind = value.to_string(),
            "data" if self.data.len() + value.len() > EVENT_BYTES_MAX => return Err(too_long()),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = value.to_string(),
            // Comments, and fields of the future.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, out: &mut VecDeque<Event>) -> Result<(), String> {
        let (mut kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
        if data.is_empty() {
            return Ok(());
        }
        if kind.is_empty() {
            kind.push_str("message");
        }
        let data = serde_json::from_str(&data)
            .map_err(|error| format!("an event whose data is not JSON: {error}"))?;
        out.push_back(Event { id: self.id.clone(), kind, data });
        Ok(())
    }
}

fn too_long() -> String {
    "an event of over a megabyte".into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(id: &str, kind: &str, data: Value) -> Event {
        Event { id: id.into(), kind: kind.into(), data }
    }

    #[test]
    fn events_are_read_however_they_are_cut_and_however_lines_end() {
        let text =
            ": alive\n\nid: 1\nevent: member_up\ndata: {\"a\":\ndata: 1}\n\nevent:x\ndata:2\n\ndata:3\n\n";
        let expected = [
            event("1", "member_up", json!({"a": 1})),
            event("1", "x", json!(2)),
            event("1", "message", json!(3)),
        ];
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("\u{feff}{}", text.replace('\n', end));
            for step in [1, 3, 1000] {
                let (mut parser, mut events) = (Parser::default(), VecDeque::new());
                for part in text.as_bytes().chunks(step) {
                    parser.feed(part, &mut events).unwrap();
                }
                assert_eq!(events, expected, "lines that end with {end:?}, {step} bytes at a time");
            }
        }
    }

    #[test]
    fn an_event_without_end_is_refused_on_one_line_and_on_many() {
        let line = format!("data: {}\n", "x".repeat(1000));
        for text in [line.repeat(2000), "x".repeat(2 * EVENT_BYTES_MAX)] {
            assert_eq!(Parser::default().feed(text.as_bytes(), &mut VecDeque::new()), Err(too_long()));
        }
    }

    #[test]
    fn data_that_is_not_json_is_an_error() {
        assert!(Parser::default().feed(b"data: nope\n\n", &mut VecDeque::new()).is_err());
    }
}
