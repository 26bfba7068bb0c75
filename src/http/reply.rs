//! Answers about keys, written straight into one buffer.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::model::{ContentType, Entry, Key, NodeId, Version};
use crate::node::{Done, NewValue, Operation, Outcome};

/// What most answers are, and the bodies of most requests.
pub(super) const JSON: &str = "application/json";
/// What a value without a content type is when it leaves as raw bytes: it came in as a JSON string.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// What `"degraded": true` is in an answer without a body.
const DEGRADED: HeaderName = HeaderName::from_static("shoal-degraded");

/// What keeps an answer from being a page of the node's origin, whatever bytes of a client are in it: they are what their type
/// says, and as a document may load and run nothing, nor be a part of a page elsewhere.
pub(super) const CONFINED: [(HeaderName, &str); 3] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Confines an answer by [`CONFINED`].
pub(super) fn confine(headers: &mut HeaderMap) {
    for (name, value) in CONFINED {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// The answer to one operation, as a single call gives it.
pub(super) fn to_response(operation: &Operation, done: &Done, now_ms: u64) -> Response<Bytes> {
    let mut body = Vec::with_capacity(body_bytes(operation, done));
    write_body(&mut body, operation, done, now_ms, None);
    let mut response = json(status(&done.outcome), body);
    match &done.outcome {
        Outcome::Hit(entry) => add_entry_headers(&mut response, entry, now_ms),
        Outcome::Stored { version, .. } => drop(response.headers_mut().insert(ETAG, etag(*version))),
        Outcome::Miss | Outcome::Gone | Outcome::Deleted { .. } => {}
    }
    response
}

/// A hit as the raw bytes that were stored.
pub(super) fn raw(entry: &Entry, now_ms: u64) -> Response<Bytes> {
    let mut response = Response::new(entry.value.clone());
    let content_type = entry.content_type.as_ref().map_or(TEXT, ContentType::as_str);
    // It was a header's value when it came in; a peer could send anything.
    let content_type =
        HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static(ContentType::OCTETS));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    add_entry_headers(&mut response, entry, now_ms);
    response
}

/// The answer to a PUT of raw bytes.
pub(super) fn stored_raw(version: Version, degraded: bool) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ETAG, etag(version));
    if degraded {
        response.headers_mut().insert(DEGRADED, HeaderValue::from_static("true"));
    }
    response
}

/// The answer to a client that has this version already.
pub(super) fn not_modified(entry: &Entry, now_ms: u64) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    add_entry_headers(&mut response, entry, now_ms);
    response
}

pub(super) fn status(outcome: &Outcome) -> StatusCode {
    match outcome {
        Outcome::Miss | Outcome::Gone => StatusCode::NOT_FOUND,
        Outcome::Hit(_) | Outcome::Stored { .. } | Outcome::Deleted { .. } => StatusCode::OK,
    }
}

/// Appends the JSON body of one operation. In a batch it carries its own `status`, and what would be in headers.
pub(super) fn write_body(
    out: &mut Vec<u8>,
    operation: &Operation,
    done: &Done,
    now_ms: u64,
    status: Option<u16>,
) {
    let mut object = Object::open(out);
    match (&done.outcome, operation) {
        (Outcome::Hit(entry), _) => {
            object.key(operation.key());
            object.value(&entry.value);
            object.found(true);
            if let Some(left) = entry.ttl_left(now_ms) {
                object.field("ttl", &whole_seconds(left));
            }
        }
        (Outcome::Miss | Outcome::Gone, _) => {
            object.key(operation.key());
            object.found(false);
            object.field("message", "key not found");
        }
        (Outcome::Stored { .. }, Operation::Put(key, NewValue { value, .. }, _)) => {
            object.key(key);
            object.value(value);
            object.found(true);
            object.field("message", "success");
        }
        (Outcome::Stored { .. }, _) => object.field("message", "success"),
        (Outcome::Deleted { found, .. }, _) => {
            object.field("message", "deleted");
            object.key(operation.key());
            object.found(*found);
        }
    }
    object.node_id(&done.node_id);
    if let Outcome::Stored { degraded: true, .. } | Outcome::Deleted { degraded: true, .. } = &done.outcome {
        object.field("degraded", &true);
    }
    if let Some(status) = status {
        if let Outcome::Hit(Entry { version, .. }) | Outcome::Stored { version, .. } = &done.outcome {
            object.field("etag", &version.to_string());
        }
        object.field("status", &status);
    }
    object.close();
}

/// Room for the body: exact for values that need no escapes, which most do not.
fn body_bytes(operation: &Operation, done: &Done) -> usize {
    let value = match (&done.outcome, operation) {
        (Outcome::Hit(entry), _) => entry.value.len(),
        (Outcome::Stored { .. }, Operation::Put(_, new, _)) => new.value.len(),
        _ => 0,
    };
    operation.key().as_str().len() + value + value / 16 + 160
}

fn add_entry_headers(response: &mut Response<Bytes>, entry: &Entry, now_ms: u64) {
    response.headers_mut().insert(ETAG, etag(entry.version));
    if let Some(left) = entry.ttl_left(now_ms) {
        let age = HeaderValue::from_str(&format!("max-age={}", whole_seconds(left)));
        response.headers_mut().insert(CACHE_CONTROL, age.unwrap_or(HeaderValue::from_static("no-cache")));
        // Or a cache on the way would answer with JSON where the bytes are wanted.
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    }
}

fn etag(version: Version) -> HeaderValue {
    let mut quoted = [b'"'; Version::TEXT_BYTES + 2];
    quoted[1..=Version::TEXT_BYTES].copy_from_slice(&version.to_ascii());
    HeaderValue::from_bytes(&quoted).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Rounded up: an entry that is there has some time left.
fn whole_seconds(left: Duration) -> u64 {
    left.as_millis().div_ceil(1000) as u64
}

/// A JSON object under construction at the end of a buffer.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    separator: u8,
}

impl<'a> Object<'a> {
    fn open(out: &'a mut Vec<u8>) -> Object<'a> {
        Object { out, separator: b'{' }
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.name(name);
        // Strings and numbers into a vector: this does not fail.
        let _ = serde_json::to_writer(&mut *self.out, value);
    }

    fn key(&mut self, key: &Key) {
        self.field("key", key.as_str());
    }

    fn value(&mut self, value: &[u8]) {
        if let Ok(text) = std::str::from_utf8(value) {
            return self.field("value", text);
        }
        self.field("value", &BASE64.encode(value));
        self.field("encoding", "base64");
    }

    fn found(&mut self, found: bool) {
        self.name("found");
        self.out.extend_from_slice(if found { b"true" } else { b"false" });
    }

    fn node_id(&mut self, node_id: &NodeId) {
        self.name("node_id");
        // Its letters need no escapes.
        self.out.push(b'"');
        self.out.extend_from_slice(node_id.as_str().as_bytes());
        self.out.push(b'"');
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(&[self.separator, b'"']);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.separator = b',';
    }

    fn close(self) {
        self.out.push(b'}');
    }
}
