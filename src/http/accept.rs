//! What a client accepts: `Accept` and `Accept-Encoding`, with their weights (RFC 9110 section 12).
//!
//! A key has two representations: JSON about it, and the value's own bytes under their stored type or as octets. Invariant: JSON
//! is what a client gets that has no wish, and only a weight of 0 refuses something; an existing client that names neither
//! representation still gets JSON, which section 12.5.1 leaves to the server.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderName};

use super::error::ApiError;
use super::reply::{JSON, TEXT};
use crate::model::ContentType;

const IDENTITY: &str = "identity";

/// Which representation a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Json,
    Raw,
    /// It refuses both.
    Neither,
}

/// What the `Accept` headers say, if there are any.
///
/// # Errors
/// 400 if they are not ASCII.
pub(super) fn wish(headers: &HeaderMap) -> Result<Option<Box<str>>, ApiError> {
    joined(headers, &ACCEPT)
}

/// The lines of a list as one, if there are any (RFC 9110 section 5.3).
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Box<str>>, ApiError> {
    let mut lines = headers
        .get_all(name)
        .iter()
        .map(|line| line.to_str().map_err(|_| ApiError::invalid(format!("the {name} header is not ASCII"))));
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut all = String::from(first);
    for line in lines {
        all.push(',');
        all.push_str(line?);
    }
    Ok(Some(all.into()))
}

/// The representation of a value that is stored with this type.
pub(super) fn choose(accept: &str, stored: Option<&str>) -> Choice {
    let stored = essence(stored.unwrap_or(TEXT));
    let (mut raw, mut json) = (Weight::default(), Weight::default());
    for (range, weight) in elements(accept) {
        // The bytes have to be named; a range that has JSON in it as well means JSON.
        let whole = range.strip_suffix("/*");
        if range == ContentType::OCTETS || range == stored {
            // Either name is enough, so that the better one counts.
            raw.name(2, weight, true);
        } else if whole.is_some_and(|kind| kind != "application" && is_of_kind(&stored, kind)) {
            raw.name(1, weight, false);
        }
        match &*range {
            JSON => json.name(3, weight, false),
            "application/*" => json.name(2, weight, false),
            "*/*" => json.name(1, weight, false),
            _ => {}
        }
    }
    match (raw.value, json.value) {
        (Some(raw), json) if raw > 0 && json.is_none_or(|json| raw >= json) => Choice::Raw,
        (_, Some(0)) => Choice::Neither,
        _ => Choice::Json,
    }
}

/// Whether a list of codings refuses to take an answer without any.
pub(super) fn refuses_identity(codings: &str) -> bool {
    let mut identity = Weight::default();
    for (coding, weight) in elements(codings) {
        match &*coding {
            IDENTITY => identity.name(2, weight, false),
            "*" => identity.name(1, weight, false),
            _ => {}
        }
    }
    identity.value == Some(0)
}

/// The type alone, in small letters.
fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_of_kind(stored: &str, kind: &str) -> bool {
    !kind.is_empty() && kind != "*" && stored.split('/').next() == Some(kind)
}

/// A weight in thousandths, of the most specific range that names something.
#[derive(Default)]
struct Weight {
    precision: u8,
    value: Option<u32>,
}

impl Weight {
    fn name(&mut self, precision: u8, weight: u32, take_better: bool) {
        if precision > self.precision {
            (self.precision, self.value) = (precision, Some(weight));
        } else if precision == self.precision && take_better {
            self.value = self.value.max(Some(weight));
        }
    }
}

/// What is listed, each without parameters and with its weight.
fn elements(list: &str) -> impl Iterator<Item = (String, u32)> {
    list.split(',').map(|element| (essence(element), weight(element))).filter(|(name, _)| !name.is_empty())
}

/// In thousandths. What is no weight leaves it at 1: there are clients whose lists were never well formed.
fn weight(element: &str) -> u32 {
    let parameters = element.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let mut weights = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let weight = weights.find_map(|(_, text)| text.trim().parse::<f64>().ok());
    // Anything above 0 is no refusal, however little.
    weight
        .filter(|weight| (0.0..=1.0).contains(weight))
        .map_or(1000, |weight| (weight * 1000.0).ceil() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_are_given_to_whoever_prefers_octets_or_the_stored_type() {
        for (accept, choice) in [
            ("application/octet-stream", Choice::Raw),
            ("image/png", Choice::Raw),
            ("text/html, IMAGE/PNG;q=0.8", Choice::Raw),
            ("image/*", Choice::Raw),
            ("image/avif,image/*,*/*;q=0.8", Choice::Raw),
            ("application/json, application/octet-stream", Choice::Raw),
            ("application/octet-stream, */*", Choice::Raw),
            ("image/png;q=0.001", Choice::Raw),
            ("image/png;q=0, application/octet-stream", Choice::Raw),
            ("application/json, image/png;q=0.5", Choice::Json),
            ("image/png;q=0.5, */*", Choice::Json),
            ("application/json", Choice::Json),
            ("application/*", Choice::Json),
            ("*/*", Choice::Json),
            ("", Choice::Json),
            ("text/html", Choice::Json),
            ("image/png;q=0", Choice::Json),
            ("image/png;q=0.0", Choice::Json),
            ("image/png;q=0.000", Choice::Json),
            ("image/png; q=0", Choice::Json),
            ("image/png;Q=0", Choice::Json),
            ("image/*;q=0", Choice::Json),
            ("image/*, image/png;q=0", Choice::Json),
            ("*; q=.2, */*; q=.2", Choice::Json),
            ("application/json;q=0, image/png", Choice::Raw),
            ("application/json;q=0", Choice::Neither),
            ("*/*;q=0", Choice::Neither),
            ("*/*;q=0.0, text/html", Choice::Neither),
            ("*/*;q=0, application/json", Choice::Json),
            ("*/*, application/json;q=0", Choice::Neither),
        ] {
            assert_eq!(choose(accept, Some("image/png; note=1")), choice, "{accept}");
        }
        assert_eq!(choose("text/plain", None), Choice::Raw);
        assert_eq!(choose("text/*", None), Choice::Raw);
    }

    #[test]
    fn an_answer_without_a_coding_is_refused_by_a_weight_of_0_only() {
        for (codings, refuses) in [
            ("gzip, deflate, br", false),
            ("", false),
            ("gzip;q=1, identity;q=0.5", false),
            ("*;q=0, identity", false),
            ("*;q=0, identity;q=0.1", false),
            ("identity;q=0", true),
            ("gzip, identity; q=0.0", true),
            ("*;q=0", true),
            ("gzip, *;q=0", true),
            ("*, identity;q=0", true),
        ] {
            assert_eq!(refuses_identity(codings), refuses, "{codings}");
        }
    }
}
