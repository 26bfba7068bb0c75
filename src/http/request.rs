//! Reading requests: keys from paths, values and their TTL from bodies, each bounded and each with its own error.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use percent_encoding::percent_decode_str;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Number;

use super::bodies::{Bodies, too_long};
use super::error::ApiError;
use super::reply::JSON;
use crate::model::{ContentType, ContentTypeError, Key};
use crate::node::NewValue;

/// The longest TTL: about 30 years.
const TTL_SECONDS_MAX: f64 = 1e9;
/// The longest part of an error that the client wrote.
const REASON_CHARS_MAX: usize = 300;
/// The names of character sets that JSON may be said to be in.
const UTF8: [&str; 3] = ["utf-8", "utf8", "us-ascii"];

/// The key in the rest of a path.
pub(super) fn key(encoded: &str) -> Result<Key, ApiError> {
    let key = match encoded.contains('%') {
        false => Key::parse(encoded),
        true => Key::from_bytes(&percent_decode_str(encoded).collect::<Vec<_>>()),
    };
    key.map_err(|error| ApiError::invalid(error.to_string()))
}

/// The value in a PUT's body: raw bytes, or a JSON object if the content type says so.
pub(super) async fn new_value<B>(
    key: &Key,
    headers: &HeaderMap,
    query: Option<&str>,
    body: B,
    bytes_max: usize,
    bodies: &Bodies,
) -> Result<NewValue, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    match format(headers)? {
        Format::Json => {
            let query_ttl = query_ttl(query)?;
            let body = bodies.read(headers, body, json_bytes_max(bytes_max)).await?;
            let new = from_json(&body, key, bytes_max)?;
            let ttl = match (new.ttl, query_ttl) {
                (Some(_), Some(_)) => {
                    return Err(ApiError::invalid("ttl is in the query and in the body; send one"));
                }
                (in_body, in_query) => in_body.or(in_query),
            };
            Ok(NewValue { value: bodies.keep(new.value)?, ttl, ..new })
        }
        Format::Form => Err(ApiError::invalid(
            "Content-Type is application/x-www-form-urlencoded, which curl -d sends by itself; \
             add -H 'Content-Type: application/json', or another type for raw bytes",
        )),
        Format::Other | Format::Unnamed => {
            let ttl = query_ttl(query)?;
            let stored = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let content_type = Some(
                ContentType::parse(stored.unwrap_or(ContentType::OCTETS))
                    .map_err(|error| too_long_type(&error))?,
            );
            let value = bodies.read(headers, body, bytes_max).await?;
            Ok(NewValue { value, content_type, ttl })
        }
    }
}

/// Escapes at most double an ordinary text.
pub(super) const fn json_bytes_max(value_bytes_max: usize) -> usize {
    2 * value_bytes_max + 4096
}

/// What a body is, by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    /// What curl sends by itself.
    Form,
    /// The header is missing.
    Unnamed,
    Other,
}

/// The format of the body. Types and their parameters are compared without case (RFC 9110 section 8.3.1).
///
/// # Errors
/// 400 if it is not ASCII or too long, 415 if it is JSON in another character set than UTF-8.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Format::Unnamed) };
    let text = value.to_str().map_err(|_| ApiError::invalid("the Content-Type header is not ASCII"))?;
    ContentType::check(text).map_err(|error| too_long_type(&error))?;
    let mut parts = text.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(Format::Form);
    }
    if !essence.eq_ignore_ascii_case(JSON) {
        return Ok(Format::Other);
    }
    let charset = parts.filter_map(|parameter| parameter.split_once('=')).find_map(|(name, value)| {
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    match charset {
        Some(other) if !UTF8.iter().any(|name| other.eq_ignore_ascii_case(name)) => {
            let message = format!("charset is {}; JSON is taken in UTF-8 only", shown(other));
            Err(ApiError::unsupported(message, Some((ACCEPT, JSON))))
        }
        _ => Ok(Format::Json),
    }
}

fn too_long_type(error: &ContentTypeError) -> ApiError {
    ApiError::invalid(error.to_string())
}

/// Checks the `Content-Type` of a body that can only be JSON. It may be missing, or be what curl and browsers send by
/// themselves, as clients of these calls always could.
pub(super) fn check_is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    match format(headers)? {
        Format::Other if !essence.eq_ignore_ascii_case("text/plain") => {
            let message = format!("Content-Type is {}; the body is to be {JSON}", shown(essence));
            Err(ApiError::unsupported(message, Some((ACCEPT, JSON))))
        }
        _ => Ok(()),
    }
}

/// The body of a PUT. A field that is not known is refused, for it was meant to do something; those of an answer may come back
/// as they were, and say nothing new.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutBody {
    value: Option<String>,
    ttl: Option<JsonTtl>,
    encoding: Option<String>,
    key: Option<String>,
    #[serde(rename = "found")]
    _found: Option<IgnoredAny>,
    #[serde(rename = "node_id")]
    _node_id: Option<IgnoredAny>,
    #[serde(rename = "message")]
    _message: Option<IgnoredAny>,
    #[serde(rename = "degraded")]
    _degraded: Option<IgnoredAny>,
}

pub(super) struct JsonValue {
    pub(super) value: Option<String>,
    pub(super) ttl: Option<JsonTtl>,
    pub(super) encoding: Option<String>,
}

/// What stands for a TTL. Anything else than a number or null is not kept, however long it is.
pub(super) enum JsonTtl {
    Seconds(Number),
    Other(String),
}

impl<'de> Deserialize<'de> for JsonTtl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonTtl, D::Error> {
        struct Taken;
        impl<'de> Visitor<'de> for Taken {
            type Value = JsonTtl;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number of seconds")
            }

            fn visit_f64<E>(self, seconds: f64) -> Result<JsonTtl, E> {
                let other = || JsonTtl::Other(seconds.to_string());
                Ok(Number::from_f64(seconds).map_or_else(other, JsonTtl::Seconds))
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<JsonTtl, E> {
                Ok(JsonTtl::Seconds(seconds.into()))
            }

            fn visit_i64<E>(self, seconds: i64) -> Result<JsonTtl, E> {
                Ok(JsonTtl::Seconds(seconds.into()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<JsonTtl, E> {
                Ok(JsonTtl::Other(value.to_string()))
            }

            fn visit_str<E>(self, text: &str) -> Result<JsonTtl, E> {
                Ok(JsonTtl::Other(shown(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<JsonTtl, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(JsonTtl::Other("an array".into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<JsonTtl, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(JsonTtl::Other("an object".into()))
            }
        }
        deserializer.deserialize_any(Taken)
    }
}

impl JsonValue {
    pub(super) fn into_value(self, bytes_max: usize) -> Result<NewValue, ApiError> {
        let text =
            self.value.ok_or_else(|| ApiError::invalid("\"value\" is missing; it must be a string"))?;
        let value = match self.encoding.as_deref() {
            None => Bytes::from(text),
            Some("base64") => Bytes::from(
                BASE64
                    .decode(text)
                    .map_err(|error| ApiError::invalid(format!("\"value\" is not base64: {error}")))?,
            ),
            Some(other) => {
                return Err(ApiError::invalid(format!(
                    "\"encoding\" is {}, only \"base64\" is known",
                    shown(other)
                )));
            }
        };
        if value.len() > bytes_max {
            return Err(too_long(value.len(), bytes_max));
        }
        // A value that came as base64 is octets; only a string is text.
        let content_type = self.encoding.map(|_| ContentType::octets());
        let ttl = match self.ttl {
            None => None,
            Some(JsonTtl::Seconds(ttl)) => {
                let text = ttl.to_string();
                Some(seconds(ttl.as_f64().ok_or_else(|| bad_ttl(&text))?, &text)?)
            }
            Some(JsonTtl::Other(text)) => return Err(bad_ttl(&text)),
        };
        Ok(NewValue { value, content_type, ttl })
    }
}

fn from_json(body: &[u8], key: &Key, bytes_max: usize) -> Result<NewValue, ApiError> {
    let expected = "{\"value\": \"…\"} with an optional \"ttl\" in seconds";
    let PutBody { value, ttl, encoding, key: named, .. } = parse_json(body, expected)?;
    if let Some(other) = named.filter(|named| named != key.as_str()) {
        return Err(ApiError::invalid(format!(
            "\"key\" is {}, which is not the key of the path",
            shown(&other)
        )));
    }
    JsonValue { value, ttl, encoding }.into_value(bytes_max)
}

/// The beginning of what was sent, for an error: it may be as long as the body.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}

/// Parses a JSON body; `expected` completes the sentence of the error.
pub(super) fn parse_json<T: serde::de::DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        // It may quote a name that is as long as the body.
        let reason: String = error.to_string().chars().take(REASON_CHARS_MAX).collect();
        ApiError::invalid(format!("the body is not the JSON expected here ({expected}): {reason}"))
    })
}

/// The TTL in a query.
pub(super) fn query_ttl(query: Option<&str>) -> Result<Option<Duration>, ApiError> {
    match query {
        None | Some("") => Ok(None),
        Some(query) => match query.split_once('=') {
            Some(("ttl", text)) => seconds(text.parse().map_err(|_| bad_ttl(text))?, text).map(Some),
            _ => Err(ApiError::invalid(format!("unknown query {query:?}; only ttl=SECONDS is known here"))),
        },
    }
}

fn seconds(ttl: f64, text: &str) -> Result<Duration, ApiError> {
    // Written so that NaN fails it.
    if ttl > 0.0 && ttl <= TTL_SECONDS_MAX {
        Ok(Duration::from_secs_f64(ttl.max(0.001)))
    } else {
        Err(bad_ttl(text))
    }
}

fn bad_ttl(text: &str) -> ApiError {
    ApiError::invalid(format!(
        "ttl is {text}; it must be a number of seconds above 0, at most {TTL_SECONDS_MAX}"
    ))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::header::HeaderValue;

    use super::*;
    use crate::http::limits::Arrivals;
    use crate::telemetry::Metrics;

    fn headers(pairs: &[(hyper::header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    async fn put(content_type: Option<&str>, query: Option<&str>, body: &str) -> Result<NewValue, String> {
        let headers = content_type.map(|text| headers(&[(CONTENT_TYPE, text)])).unwrap_or_default();
        let body = Full::new(Bytes::from(body.to_string()));
        let metrics = Metrics::new(&crate::model::NodeId::parse("test").unwrap());
        let bodies = Bodies::new(Duration::from_secs(1), 1 << 20, Arrivals::new(1 << 20), metrics);
        let key = Key::parse("key").unwrap();
        new_value(&key, &headers, query, body, 10, &bodies).await.map_err(|error| error.message)
    }

    #[test]
    fn a_key_is_what_the_path_decodes_to() {
        for (path, decoded) in
            [("a", "a"), ("a/b", "a/b"), ("a%2Fb%20c", "a/b c"), ("%F0%9F%90%9F", "🐟"), ("+", "+")]
        {
            assert_eq!(key(path).unwrap().as_str(), decoded);
        }
        for bad in ["", "%FF", &"k".repeat(1025)] {
            assert_eq!(key(bad).unwrap_err().code, "invalid_request");
        }
    }

    #[tokio::test]
    async fn the_content_type_says_whether_the_body_is_json_or_the_value_itself() {
        let json =
            put(Some("application/json; charset=utf-8"), None, r#"{"value":"v","ttl":1.5}"#).await.unwrap();
        assert_eq!(
            (&json.value[..], json.content_type, json.ttl),
            (&b"v"[..], None, Some(Duration::from_millis(1500)))
        );
        let raw = put(Some("text/html"), Some("ttl=60"), "<p>").await.unwrap();
        assert_eq!(
            (raw.content_type.as_ref().map(ContentType::as_str), raw.ttl),
            (Some("text/html"), Some(Duration::from_secs(60)))
        );
        assert_eq!(put(None, None, "").await.unwrap().content_type, Some(ContentType::octets()));
        for text in ["t".repeat(257), format!("application/json;{}", " ".repeat(256))] {
            let long = put(Some(&text), None, r#"{"value":"v"}"#).await.unwrap_err();
            assert!(long.ends_with(&format!("has {} bytes: at most 256 are accepted", text.len())), "{long}");
        }
        let form = put(Some("application/x-www-form-urlencoded"), None, "v").await.unwrap_err();
        assert!(form.contains("Content-Type: application/json"), "{form}");
    }

    #[tokio::test]
    async fn a_bad_body_is_refused_with_what_was_expected() {
        let json = Some("application/json");
        for (body, error) in [
            ("{", "the body is not the JSON expected here ("),
            ("{}", "\"value\" is missing; it must be a string"),
            (r#"{"value":1}"#, "the body is not the JSON expected here ("),
            (r#"{"value":"v","ttl":0}"#, "ttl is 0; it must be a number of seconds above 0"),
            (r#"{"value":"v","ttl":-1}"#, "ttl is -1; "),
            (r#"{"value":"v","ttl":"1"}"#, "ttl is \"1\"; "),
            (r#"{"value":"v","ttl":1e300}"#, "ttl is 1e+300; "),
            (r#"{"value":"?","encoding":"base64"}"#, "\"value\" is not base64: "),
            (r#"{"value":"v","encoding":"hex"}"#, "\"encoding\" is \"hex\", only \"base64\" is known"),
            (r#"{"value":"12345678901"}"#, "11 bytes, at most 10 are accepted here"),
        ] {
            let given = put(json, None, body).await.unwrap_err();
            assert!(given.starts_with(error), "{body}: {given}");
        }
        for query in ["ttl=NaN", "ttl=0", "ttl=inf", "ttl=", "tll=1", "ttl"] {
            assert!(put(None, Some(query), "v").await.is_err(), "{query}");
        }
        assert_eq!(
            put(None, None, "12345678901").await.unwrap_err(),
            "11 bytes, at most 10 are accepted here"
        );
    }
}
