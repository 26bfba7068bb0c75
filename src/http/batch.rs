//! Many operations in one request.

use std::fmt;
use std::time::Instant;

use axum::extract::{Extension, State};
use axum::response::Response;
use hyper::StatusCode;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::auth::Pass;
use super::error::ApiError;
use super::request::{self, JsonTtl, JsonValue};
use super::{Edge, condition, reply};
use crate::link::BATCH_BYTES_MAX;
use crate::model::{Condition, Key};
use crate::node::{Operation, Outcome};
use crate::security::Right;
use crate::telemetry::{self, Limit, Route};

/// The most operations that a batch may ever have.
pub(crate) const OPERATIONS_MAX: usize = 1000;
/// The longest body: half of what travels as one frame, with its escapes.
pub(super) const BODY_BYTES_MAX: usize = request::json_bytes_max(BATCH_BYTES_MAX / 2);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    operations: Items,
}

/// As many as may be done, and how many there are: a body can hold a million small ones.
struct Items {
    first: Vec<Item>,
    count: usize,
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Items, D::Error> {
        struct Taken;
        impl<'de> Visitor<'de> for Taken {
            type Value = Items;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an array of operations")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items, A::Error> {
                let mut first = Vec::new();
                while first.len() < OPERATIONS_MAX {
                    match items.next_element()? {
                        Some(item) => first.push(item),
                        None => return Ok(Items { count: first.len(), first }),
                    }
                }
                let mut count = first.len();
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Items { first, count })
            }
        }
        deserializer.deserialize_seq(Taken)
    }
}

struct Item {
    op: String,
    key: String,
    if_match: Option<String>,
    if_none_match: Option<String>,
    value: Option<String>,
    ttl: Option<JsonTtl>,
    encoding: Option<String>,
    /// The first field that means nothing: an error of this operation, not of the batch.
    unknown: Option<String>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Op,
    Key,
    IfMatch,
    IfNoneMatch,
    Value,
    Ttl,
    Encoding,
    Other(String),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item, D::Error> {
        struct Taken;
        impl<'de> Visitor<'de> for Taken {
            type Value = Item;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an operation")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Item, A::Error> {
                let (mut op, mut key, mut value, mut ttl, mut encoding) = (None, None, None, None, None);
                let (mut if_match, mut if_none_match, mut unknown) = (None, None, None);
                while let Some(field) = fields.next_key()? {
                    match field {
                        Field::Op => once(&mut op, &mut fields, "op")?,
                        Field::Key => once(&mut key, &mut fields, "key")?,
                        Field::IfMatch => once(&mut if_match, &mut fields, "if_match")?,
                        Field::IfNoneMatch => once(&mut if_none_match, &mut fields, "if_none_match")?,
                        Field::Value => once(&mut value, &mut fields, "value")?,
                        Field::Ttl => once(&mut ttl, &mut fields, "ttl")?,
                        Field::Encoding => once(&mut encoding, &mut fields, "encoding")?,
                        Field::Other(name) => {
                            // Not kept, however long it is.
                            fields.next_value::<IgnoredAny>()?;
                            unknown.get_or_insert_with(|| request::shown(&name));
                        }
                    }
                }
                Ok(Item {
                    op: op.ok_or_else(|| A::Error::missing_field("op"))?,
                    key: key.ok_or_else(|| A::Error::missing_field("key"))?,
                    if_match: if_match.flatten(),
                    if_none_match: if_none_match.flatten(),
                    value: value.flatten(),
                    ttl: ttl.flatten(),
                    encoding: encoding.flatten(),
                    unknown,
                })
            }
        }
        deserializer.deserialize_map(Taken)
    }
}

/// Takes the value of a field that has not been there before.
fn once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    slot: &mut Option<T>,
    fields: &mut A,
    name: &'static str,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(A::Error::duplicate_field(name));
    }
    *slot = Some(fields.next_value()?);
    Ok(())
}

/// `POST /api/v1/batch`
pub(super) async fn serve(
    State(edge): State<Edge>,
    Extension(pass): Extension<Pass>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    request::check_is_json(&head.headers)?;
    let body = edge.bodies.read(&head.headers, body, BODY_BYTES_MAX).await?;
    let _under_way = edge.begin()?;
    // What is in it is kept a second time.
    let _held = edge.bodies.hold(body.len())?;
    let (parsed, count) = parse_body(&body, edge.config.value_bytes_max, &pass)?;
    let most = edge.config.limits.batch_operations;
    if count > most {
        edge.node.metrics().refuse(Limit::BatchSize);
        return Err(ApiError::too_large(format!("{count} operations, at most {most} are accepted")));
    }
    let valid: Vec<Operation> = parsed.iter().filter_map(|one| one.as_ref().ok().cloned()).collect();
    let mut done = edge.node.perform_all(valid).await?.into_iter();
    let now_ms = edge.node.uptime_ms();
    let mut out = b"{\"results\":[".to_vec();
    for (index, one) in parsed.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let result = one.as_ref().map_err(Clone::clone).and_then(|operation| {
            let lost = || ApiError::internal("decode_failed", "the operation got no answer");
            Ok((operation, done.next().ok_or_else(lost)??))
        });
        match result {
            Ok((_, done)) if is_too_long(out.len(), &done.outcome) => write_error(&mut out, &too_long()),
            Ok((operation, done)) => {
                let (before, status) = (out.len(), reply::status(&done.outcome).as_u16());
                reply::write_body(&mut out, operation, &done, now_ms, Some(status));
                // Escapes can make a value six times as long.
                if matches!(done.outcome, Outcome::Hit(_)) && out.len() > BATCH_BYTES_MAX {
                    out.truncate(before);
                    out.shrink_to(BATCH_BYTES_MAX);
                    write_error(&mut out, &too_long());
                }
            }
            Err(error) => write_error(&mut out, &error),
        }
    }
    out.extend_from_slice(b"],\"node_id\":\"");
    out.extend_from_slice(edge.node.id().as_str().as_bytes());
    out.extend_from_slice(b"\"}");
    edge.node.metrics().request(telemetry::Operation::Batch, Route::Local, started.elapsed());
    let (head, body) = reply::json(StatusCode::OK, out).into_parts();
    let body = edge
        .answers
        .keep(body)
        .map_err(|error| ApiError::overloaded(format!("the operations were done, but {}", error.message)))?;
    Ok(Response::from_parts(head, body.into()))
}

/// The first operations in a body, each by itself as it should be or not, and how many there are.
pub(super) fn parse_body(
    body: &[u8],
    bytes_max: usize,
    pass: &Pass,
) -> Result<(Vec<Result<Operation, ApiError>>, usize), ApiError> {
    let batch: Batch = request::parse_json(body, "{\"operations\": [{\"op\", \"key\", …}, …]}")?;
    let Items { first, count } = batch.operations;
    Ok((first.into_iter().map(|item| parse(item, bytes_max, pass)).collect(), count))
}

fn parse(item: Item, bytes_max: usize, pass: &Pass) -> Result<Operation, ApiError> {
    let Item { op, key, if_match, if_none_match, value, ttl, encoding, unknown } = item;
    let key = Key::parse(key).map_err(|error| ApiError::invalid(error.to_string()))?;
    let condition = condition::of_item(if_match.as_deref(), if_none_match.as_deref())?;
    pass.check(if op == "get" { Right::Read } else { Right::Write }, &key)?;
    if let Some(name) = unknown {
        return Err(ApiError::invalid(format!(
            "there is no field {name} in an operation; known are op, key, value, ttl, encoding, if_match and if_none_match"
        )));
    }
    let has_value = value.is_some() || ttl.is_some() || encoding.is_some();
    match op.as_str() {
        "get" | "delete" if has_value => {
            Err(ApiError::invalid("\"value\", \"ttl\" and \"encoding\" go with \"put\""))
        }
        "get" if condition != Condition::Always => {
            Err(ApiError::invalid("\"if_match\" and \"if_none_match\" go with \"put\" and \"delete\""))
        }
        "get" => Ok(Operation::Get(key)),
        "delete" => Ok(Operation::Delete(key, condition)),
        "put" => {
            let value = JsonValue { value, ttl, encoding }.into_value(bytes_max)?;
            Ok(Operation::Put(key, value, condition))
        }
        other => Err(ApiError::invalid(format!(
            "\"op\" is {}; it must be \"get\", \"put\" or \"delete\"",
            request::shown(other)
        ))),
    }
}

/// Whether this would make the answer too long: a few operations may name a long value many times.
fn is_too_long(bytes: usize, outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Hit(entry) if bytes + entry.value.len() > BATCH_BYTES_MAX)
}

fn too_long() -> ApiError {
    ApiError::too_large(format!("the answer to a batch is longer than {BATCH_BYTES_MAX} bytes"))
}

fn write_error(out: &mut Vec<u8>, error: &ApiError) {
    let mut body = error.body();
    body["status"] = error.status.as_u16().into();
    out.extend_from_slice(body.to_string().as_bytes());
}
