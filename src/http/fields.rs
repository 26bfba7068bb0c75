//! Checks of a request's head that hold for every path: RFC 9110 and 9112, as `docs/http.md` lists them.
//!
//! A field that would change what the request means is honoured where it belongs or refused here. Invariant: after the check
//! there is one `Host`, one reading of the body's length, and no coding of the body.

use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE, CONTENT_TYPE, EXPECT,
    HOST, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, ORIGIN, TRANSFER_ENCODING,
};
use hyper::{Method, Request, Version};

use super::accept;
use super::auth::{FETCH_SITE, KEY_HEADER};
use super::error::ApiError;
use super::host::Host;
use crate::security::PROOF_HEADER;

const CHUNKED: &str = "chunked";
const CONTINUE: &str = "100-continue";

/// Checks the head, and gives the host that it is for; none only in HTTP/1.0.
///
/// # Errors
/// 400, 406, 415, 417 or 501, each with what is accepted.
pub(super) fn check<B>(request: &Request<B>) -> Result<Option<Host<'_>>, ApiError> {
    let headers = request.headers();
    // One look at each name: most requests have a handful, and none of these but Host.
    let mut host = None;
    let has_content = matches!(*request.method(), Method::PUT | Method::POST);
    for (name, value) in headers {
        match *name {
            HOST => host = Some(value),
            TRANSFER_ENCODING => check_transfer_coding(value)?,
            EXPECT => check_expectation(value)?,
            CONTENT_ENCODING if has_content => check_content_coding(value)?,
            CONTENT_RANGE if has_content => {
                let reason = "Content-Range is for a part of a value, and only whole ones are taken";
                return Err(ApiError::invalid(reason));
            }
            CONTENT_LANGUAGE if has_content => {
                let reason =
                    "Content-Language would not come back with the value: only its Content-Type is kept";
                return Err(ApiError::unsupported(reason, None));
            }
            ACCEPT_ENCODING => check_identity(headers)?,
            _ => {}
        }
    }
    if headers.keys_len() < headers.len() {
        check_repeated(headers)?;
    }
    check_target(request)?;
    let from_header = match host {
        Some(value) => Some(Host::of_header(value).ok_or_else(|| bad_host(&format!("{value:?}")))?),
        None if request.version() >= Version::HTTP_11 => {
            return Err(ApiError::invalid("the Host header is missing, which HTTP/1.1 demands"));
        }
        None => None,
    };
    match request.uri().authority() {
        Some(authority) => {
            Host::of_target(request.uri()).map(Some).ok_or_else(|| bad_host(authority.as_str()))
        }
        None => Ok(from_header),
    }
}

/// Checks the head of a request for something that has no version.
///
/// # Errors
/// 400 if it has a condition all the same: what it guards against could not be seen.
pub(super) fn check_unconditional(headers: &HeaderMap) -> Result<(), ApiError> {
    match [IF_MATCH, IF_NONE_MATCH].iter().find(|name| headers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(ApiError::invalid(format!(
            "{name} is for keys of the cache, and for operations in a batch as if_match and if_none_match; this has no version"
        ))),
    }
}

fn bad_host(shown: &str) -> ApiError {
    ApiError::invalid(format!(
        "the host {shown} is malformed; it must be a name or an address, with or without a port"
    ))
}

/// The only coding is chunked. The bytes of another one would be stored as the value.
fn check_transfer_coding(value: &HeaderValue) -> Result<(), ApiError> {
    let text = value.to_str().unwrap_or_default();
    let codings: Vec<&str> = text.split(',').map(str::trim).filter(|coding| !coding.is_empty()).collect();
    match codings.as_slice() {
        [only] if only.eq_ignore_ascii_case(CHUNKED) => Ok(()),
        all if !all.is_empty() && all.iter().all(|coding| coding.eq_ignore_ascii_case(CHUNKED)) => {
            Err(ApiError::invalid("Transfer-Encoding has chunked more than once"))
        }
        _ => Err(ApiError::not_implemented(format!(
            "Transfer-Encoding is {value:?}; only {CHUNKED} is implemented"
        ))),
    }
}

fn check_expectation(value: &HeaderValue) -> Result<(), ApiError> {
    if value.is_empty() || value.as_bytes().eq_ignore_ascii_case(CONTINUE.as_bytes()) {
        return Ok(());
    }
    Err(ApiError::expectation(format!("Expect is {value:?}; only {CONTINUE} can be met")))
}

/// The store keeps a value's type and not its coding, so a coded value would come back unmarked.
fn check_content_coding(value: &HeaderValue) -> Result<(), ApiError> {
    let text = value.to_str().unwrap_or("?");
    let mut codings = text.split(',').map(str::trim).filter(|coding| !coding.is_empty());
    if codings.all(|coding| coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    let reason = format!(
        "Content-Encoding is {value:?}, which would not come back with the value; only identity is taken: send the value \
         as it is, or the coded bytes with a Content-Type that says so, such as application/gzip"
    );
    Err(ApiError::unsupported(reason, Some((ACCEPT_ENCODING, "identity"))))
}

fn check_identity(headers: &HeaderMap) -> Result<(), ApiError> {
    let codings = accept::joined(headers, &ACCEPT_ENCODING)?;
    if codings.is_some_and(|codings| codings.contains('=') && accept::refuses_identity(&codings)) {
        return Err(ApiError::not_acceptable(
            "Accept-Encoding refuses identity, and no answer has another coding",
        ));
    }
    Ok(())
}

/// A field that holds one value must not be repeated: nothing says which value counts.
fn check_repeated(headers: &HeaderMap) -> Result<(), ApiError> {
    const SINGLE: [HeaderName; 8] = [
        HOST,
        CONTENT_TYPE,
        AUTHORIZATION,
        ORIGIN,
        HeaderName::from_static(KEY_HEADER),
        HeaderName::from_static(FETCH_SITE),
        HeaderName::from_static(PROOF_HEADER),
        TRANSFER_ENCODING,
    ];
    for name in &SINGLE {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(ApiError::invalid(format!("the header {name} is there more than once")));
        }
    }
    Ok(())
}

/// A path, or an absolute URI (RFC 9112 section 3.2); the other forms are for methods that no resource here takes.
fn check_target<B>(request: &Request<B>) -> Result<(), ApiError> {
    let (target, method) = (request.uri(), request.method());
    if *method == Method::CONNECT || (*method == Method::OPTIONS && target.path() == "*") {
        return Err(ApiError::method_not_allowed(format!("{method} is not for anything here"), Some("")));
    }
    let is_web = target.scheme_str().is_none_or(|scheme| scheme == "http" || scheme == "https");
    if !is_web || !target.path().starts_with('/') {
        return Err(ApiError::invalid(format!("the target {target} is neither a path nor an http URI")));
    }
    Ok(())
}
