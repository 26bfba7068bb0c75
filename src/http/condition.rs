//! Conditional requests: `If-Match` and `If-None-Match` in headers and batches, as RFC 9110 (section 13) has them.
//!
//! Does not decide whether a write's condition holds; the owner that stamps the write does. Invariant: a tag that is no
//! version of ours matches nothing, and is no error.

use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::error::ApiError;
use super::request::shown;
use crate::model::{Condition, Version};

/// What a list of entity tags names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    Listed(Vec<Tag>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    /// None if it is no version of ours.
    version: Option<Version>,
}

/// What a read demands of what it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadConditions {
    only: Option<Tags>,
    unless: Option<Tags>,
}

/// What to do with a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send it.
    Send,
    /// The client has it: 304.
    NotModified,
    /// It is not what the client wants: 412.
    Failed,
}

impl ReadConditions {
    /// Those of a GET; none if it has no conditions.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Box<ReadConditions>>, ApiError> {
        // Most reads have none; one look at the names is cheaper than two hashes.
        if !headers.contains_key(IF_NONE_MATCH) && !headers.contains_key(IF_MATCH) {
            return Ok(None);
        }
        let (only, unless) = (tags(headers, &IF_MATCH)?, tags(headers, &IF_NONE_MATCH)?);
        Ok(Some(Box::new(ReadConditions { only, unless })))
    }

    /// Judges a hit of that version.
    pub(super) fn judge(&self, version: Version) -> Verdict {
        let names = |tags: &Tags, weakly: bool| match tags {
            Tags::Any => true,
            Tags::Listed(tags) => {
                tags.iter().any(|tag| (weakly || !tag.weak) && tag.version == Some(version))
            }
        };
        if self.only.as_ref().is_some_and(|only| !names(only, false)) {
            Verdict::Failed
        } else if self.unless.as_ref().is_some_and(|unless| names(unless, true)) {
            Verdict::NotModified
        } else {
            Verdict::Send
        }
    }
}

/// The condition of a PUT.
pub(super) fn of_put(headers: &HeaderMap) -> Result<Condition, ApiError> {
    match (tags(headers, &IF_MATCH)?, tags(headers, &IF_NONE_MATCH)?) {
        (None, None) => Ok(Condition::Always),
        (Some(only), None) => Ok(only.into_condition()),
        (None, Some(Tags::Any)) => Ok(Condition::Absent),
        (None, Some(Tags::Listed(_))) => {
            Err(ApiError::invalid("If-None-Match on a PUT must be \"*\": store only if there is nothing"))
        }
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("If-Match and If-None-Match cannot both hold of one PUT; send one of them"))
        }
    }
}

/// The condition of a DELETE.
pub(super) fn of_delete(headers: &HeaderMap) -> Result<Condition, ApiError> {
    if headers.contains_key(IF_NONE_MATCH) {
        return Err(ApiError::invalid("If-None-Match has no meaning for a DELETE; If-Match has"));
    }
    Ok(tags(headers, &IF_MATCH)?.map_or(Condition::Always, Tags::into_condition))
}

/// The condition of one operation of a batch; tags there may come without their quotes.
pub(super) fn of_item(only: Option<&str>, unless: Option<&str>) -> Result<Condition, ApiError> {
    match (only, unless) {
        (None, None) => Ok(Condition::Always),
        (Some("*"), None) => Ok(Condition::Present),
        (Some(text), None) => {
            let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            Ok(Condition::Versions(version.parse().into_iter().collect()))
        }
        (None, Some("*")) => Ok(Condition::Absent),
        (None, Some(other)) => {
            Err(ApiError::invalid(format!("\"if_none_match\" is {}; it must be \"*\"", shown(other))))
        }
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "\"if_match\" and \"if_none_match\" cannot both hold of one operation; send one of them",
        )),
    }
}

impl Tags {
    fn into_condition(self) -> Condition {
        match self {
            Tags::Any => Condition::Present,
            // A weak tag says that the bytes may differ: a write must not rely on it.
            Tags::Listed(tags) => Condition::Versions(
                tags.into_iter().filter(|tag| !tag.weak).filter_map(|tag| tag.version).collect(),
            ),
        }
    }
}

/// The tags in a header, if it is there.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, ApiError> {
    let mut listed = Vec::new();
    let mut any = false;
    let mut there = false;
    for value in headers.get_all(name) {
        there = true;
        let text = value.to_str().ok();
        if text.is_some_and(|text| text.trim() == "*") {
            any = true;
        } else {
            let parsed = text.and_then(parse_list).ok_or_else(|| {
                ApiError::invalid(format!(
                    "{} is {value:?}; it must be \"*\" or quoted tags, separated by commas, as ETag shows them",
                    if *name == IF_MATCH { "If-Match" } else { "If-None-Match" }
                ))
            })?;
            listed.extend(parsed);
        }
    }
    Ok(there.then_some(if any { Tags::Any } else { Tags::Listed(listed) }))
}

/// `"a", W/"b"`; none if it is anything else.
fn parse_list(text: &str) -> Option<Vec<Tag>> {
    let mut tags = Vec::new();
    let mut rest = text.trim();
    loop {
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let (opaque, after) = quoted.strip_prefix('"')?.split_once('"')?;
        tags.push(Tag { weak, version: opaque.parse().ok() });
        let after = after.trim_start();
        if after.is_empty() {
            return Some(tags);
        }
        rest = after.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const TEXT: &str = "0000000000000001-00000002";
    const VERSION: Version = Version::new(1, 2);

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_write_demands_what_its_headers_say() {
        let ours = format!("\"{TEXT}\"");
        let list = format!("\"other\", {ours},W/{ours}");
        let weak = format!("W/{ours}");
        for (name, value, condition) in [
            (IF_MATCH, "*", Condition::Present),
            (IF_MATCH, &*ours, Condition::Versions(vec![VERSION])),
            (IF_MATCH, &*list, Condition::Versions(vec![VERSION])),
            (IF_MATCH, &*weak, Condition::Versions(vec![])),
            (IF_MATCH, "\"other, with a comma\"", Condition::Versions(vec![])),
            (IF_NONE_MATCH, "*", Condition::Absent),
        ] {
            assert_eq!(of_put(&headers(&[(name.clone(), value)])).unwrap(), condition, "{name}: {value}");
        }
        assert_eq!(of_put(&HeaderMap::new()).unwrap(), Condition::Always);
        assert_eq!(of_delete(&headers(&[(IF_MATCH, "*")])).unwrap(), Condition::Present);
    }

    #[test]
    fn a_header_that_is_no_list_of_tags_is_named_with_what_is_accepted() {
        for value in [TEXT, "", "\"open", "\"a\" \"b\"", "\"a\",", "w/\"a\""] {
            let error = of_put(&headers(&[(IF_MATCH, value)])).unwrap_err();
            assert_eq!(error.code, "invalid_request");
            assert!(error.message.starts_with("If-Match is "), "{}", error.message);
            assert!(error.message.contains("quoted tags"), "{}", error.message);
        }
        let both = headers(&[(IF_MATCH, "*"), (IF_NONE_MATCH, "*")]);
        assert!(of_put(&both).unwrap_err().message.contains("both"));
        assert!(of_put(&headers(&[(IF_NONE_MATCH, "\"a\"")])).unwrap_err().message.contains("must be \"*\""));
        assert!(of_delete(&headers(&[(IF_NONE_MATCH, "*")])).unwrap_err().message.contains("DELETE"));
    }

    #[test]
    fn a_read_is_judged_by_the_version_that_it_finds() {
        let ours = format!("\"{TEXT}\"");
        let weak = format!("W/{ours}");
        for (name, value, verdict) in [
            (IF_NONE_MATCH, &*ours, Verdict::NotModified),
            (IF_NONE_MATCH, &*weak, Verdict::NotModified),
            (IF_NONE_MATCH, "*", Verdict::NotModified),
            (IF_NONE_MATCH, "\"other\"", Verdict::Send),
            (IF_MATCH, &*ours, Verdict::Send),
            (IF_MATCH, "*", Verdict::Send),
            (IF_MATCH, &*weak, Verdict::Failed),
            (IF_MATCH, "\"other\"", Verdict::Failed),
        ] {
            let conditions = ReadConditions::of(&headers(&[(name.clone(), value)])).unwrap().unwrap();
            assert_eq!(conditions.judge(VERSION), verdict, "{name}: {value}");
        }
        assert_eq!(ReadConditions::of(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn an_item_of_a_batch_may_leave_the_quotes_away() {
        for text in [TEXT.to_string(), format!("\"{TEXT}\"")] {
            assert_eq!(of_item(Some(&text), None).unwrap(), Condition::Versions(vec![VERSION]));
        }
        assert_eq!(of_item(Some("other"), None).unwrap(), Condition::Versions(vec![]));
        assert_eq!(of_item(Some("*"), None).unwrap(), Condition::Present);
        assert_eq!(of_item(None, Some("*")).unwrap(), Condition::Absent);
        assert!(of_item(None, Some("x")).unwrap_err().message.contains("if_none_match"));
        assert!(of_item(Some("*"), Some("*")).is_err());
    }
}
