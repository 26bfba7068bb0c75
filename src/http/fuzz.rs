//! Requests as functions of bytes; see [`crate::fuzzing`].

use std::sync::LazyLock;

use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, IF_MATCH,
    IF_NONE_MATCH, TRANSFER_ENCODING,
};
use hyper::{HeaderMap, Request};

use super::auth::Pass;
use super::condition::ReadConditions;
use super::{accept, batch, condition, fields, request};
use crate::model::{NodeId, Version};
use crate::security::{Call, Keyring, Replays, Secret};

const VALUE_BYTES_MAX: usize = 1 << 16;
const HEADERS: [HeaderName; 9] = [
    ACCEPT,
    CONTENT_TYPE,
    IF_MATCH,
    IF_NONE_MATCH,
    HOST,
    TRANSFER_ENCODING,
    EXPECT,
    CONTENT_ENCODING,
    ACCEPT_ENCODING,
];
static NODE: LazyLock<NodeId> = LazyLock::new(|| NodeId::parse("fuzz").expect("a name"));
static CALL: LazyLock<Call<'static>> =
    LazyLock::new(|| Call { cluster: "fuzz", node: &NODE, method: "GET", target: "/internal/cache/a" });

/// The body of a batch.
pub(crate) fn batch(bytes: &[u8]) {
    // Whatever is in it: an operation or an error that can be shown.
    let Ok((operations, count)) = batch::parse_body(bytes, VALUE_BYTES_MAX, &Pass::Whole) else { return };
    assert!(operations.len() <= count);
    for operation in operations {
        match operation {
            Ok(operation) => assert!(!operation.key().as_str().is_empty()),
            Err(error) => assert!(error.status.is_client_error() && !error.message.is_empty()),
        }
    }
}

/// The key in a path, and each header that means something: the first line is the path, each further one a header.
pub(crate) fn request(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    if let Some(Ok(key)) = lines.next().map(request::key) {
        assert!((1..=1024).contains(&key.as_str().len()));
        assert!(key.slot().index() < 16384);
    }
    let mut headers = HeaderMap::new();
    for (name, line) in HEADERS.into_iter().cycle().zip(lines) {
        // What the parser of HTTP lets through.
        if let Ok(value) = HeaderValue::from_str(line) {
            headers.insert(name, value);
        }
        accept::choose(line, Some("image/png"));
        accept::refuses_identity(line);
        let _ = NodeId::parse(line);
        let _ = request::query_ttl(Some(line));
        let keyring = Keyring::parse(&secret()).expect("a secret");
        CALL.check(&keyring, Some(line), &mut Replays::default(), 1_000_000)
            .expect_err("nobody guesses a proof");
    }
    let _ = request::format(&headers);
    let _ = request::check_is_json(&headers);
    let mut whole = Request::new(());
    *whole.headers_mut() = headers.clone();
    // Whatever is refused can be shown.
    if let Err(error) = fields::check(&whole) {
        assert!(!error.message.is_empty());
    }
    let _ = condition::of_put(&headers);
    let _ = condition::of_delete(&headers);
    if let Ok(Some(conditions)) = ReadConditions::of(&headers) {
        conditions.judge(Version::new(1, 1));
    }
}

fn secret() -> String {
    use rand::SeedableRng;
    Secret::generate(&mut rand::rngs::StdRng::seed_from_u64(2)).to_text()
}

/// What is worth changing a little, for either.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let keyring = Keyring::parse(&secret()).expect("a secret");
    // At another time, or it would be right.
    let proof = CALL.prove(&keyring, b"", 1, 1);
    [
        r#"{"operations":[{"op":"put","key":"a","value":"v","ttl":60},{"op":"get","key":"a"}]}"#.to_string(),
        r#"{"operations":[{"op":"delete","key":"a","if_match":"\"1-2\""},{"op":"put","key":"b","value":"dg==","encoding":"base64","if_none_match":"*"}]}"#.into(),
        format!(r#"{{"operations":{}}}"#, "[".repeat(200)),
        r#"{"operations":[{"op":"get","key":"\u0000\ud83d\ude00"}]}"#.into(),
        "photos%2F1%202.png\ntext/html;q=0.8, image/png\napplication/json; charset=utf-8\n\"1-2\", W/\"3\"\n*".into(),
        "a\n*/*;q=0.0\nApplication/JSON; Charset=\"UTF-8\"\n*\n*\n[::1]:8001\ngzip, chunked\n100-continue\ngzip\nidentity;q=0".into(),
        format!("%00%ff%\n*/*\n\n\"\n{proof}\nttl=60\nttl=NaN\nttl=1e400"),
    ]
    .map(String::into_bytes)
    .to_vec()
}
