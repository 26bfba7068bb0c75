//! A small blocking HTTP client: one connection a request, nothing retried, nothing normalised.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer that a test is patient about.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; the test fails if it is something else.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The JSON of an answer with this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// The message of an error in the one shape that errors have.
    #[track_caller]
    pub(crate) fn expect_error(&self, status: u16, code: &str) -> String {
        let body = self.expect(status);
        assert_eq!(body["error"], code, "{body}");
        assert!(is_time(&body["timestamp"]), "{body}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        let message = body["message"].as_str().unwrap_or_default().to_string();
        assert!(!message.is_empty(), "{body}");
        message
    }
}

/// Whether this is an RFC 3339 time in UTC of this century.
pub(crate) fn is_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let date = text.get(..19).unwrap_or_default();
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00" && date.starts_with("20") && text.ends_with('Z')
}

/// One request with its own headers and body.
pub(crate) fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || matches!(method, "PUT" | "POST") {
        head += &format!("content-length: {}\r\n", body.len());
    }
    head += "\r\n";
    exchange(to, &[head.as_bytes(), body].concat())
}

/// Sends these very bytes and reads until the other side closes.
pub(crate) fn exchange(to: SocketAddr, bytes: &[u8]) -> io::Result<Answer> {
    let mut stream = connect(to)?;
    // A server may refuse, and close, before it has read everything: then its answer counts.
    let sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    let received = stream.read_to_end(&mut answer);
    parse(&answer).ok_or_else(|| {
        let cut_short = || io::Error::other(format!("no whole answer: {}", String::from_utf8_lossy(&answer)));
        sent.err().or(received.err()).unwrap_or_else(cut_short)
    })
}

pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn parse(answer: &[u8]) -> Option<Answer> {
    // What says that the body may come is not the answer yet.
    let answer = answer.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string()))
        .collect();
    let body = answer[end + 4..].to_vec();
    // Of HEAD only the head is there; otherwise a body that stops short is no answer.
    let whole = match headers.get("content-length").map(|length| length.parse::<usize>()) {
        Some(Ok(length)) => body.len() == length || body.is_empty(),
        _ => true,
    };
    whole.then_some(Answer { status, headers, body })
}

/// Percent-encodes everything but letters and digits.
pub(crate) fn encode(key: &str) -> String {
    key.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() {
            out.push(byte as char);
        } else {
            out += &format!("%{byte:02X}");
        }
        out
    })
}
