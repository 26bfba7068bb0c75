//! Owns the Content-Type that is kept with raw bytes.
//!
//! Does not know what a media type is: the text comes back as it was put. Invariant: it is short, so that what travels with
//! a value is bounded as keys are.

use std::{fmt, sync::Arc};

/// The Content-Type of raw bytes: at most 256 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ContentType(Arc<str>);

impl ContentType {
    /// The longest, in bytes. RFC 6838 (section 4.2) allows 127 for each half of a media type; parameters have the rest.
    pub const BYTES_MAX: usize = 256;

    /// Raw bytes of which nothing else is known.
    pub const OCTETS: &str = "application/octet-stream";

    /// Checks the length.
    ///
    /// # Errors
    /// [`ContentTypeError`] if it is over [`ContentType::BYTES_MAX`].
    pub fn parse(text: impl Into<Arc<str>>) -> Result<ContentType, ContentTypeError> {
        let text = text.into();
        ContentType::check(&text)?;
        Ok(ContentType(text))
    }

    /// Whether the text is one, without keeping it.
    ///
    /// # Errors
    /// As [`ContentType::parse`].
    pub fn check(text: &str) -> Result<(), ContentTypeError> {
        let bytes = text.len();
        if bytes > ContentType::BYTES_MAX { Err(ContentTypeError { bytes }) } else { Ok(()) }
    }

    /// [`ContentType::OCTETS`].
    pub fn octets() -> ContentType {
        ContentType(ContentType::OCTETS.into())
    }

    /// One that was taken apart into bytes by the store.
    pub(super) fn of_stored(bytes: &[u8]) -> ContentType {
        // It was a `str` when it was packed; nothing is lost.
        ContentType(String::from_utf8_lossy(bytes).into())
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<ContentType> for Arc<str> {
    fn from(content_type: ContentType) -> Arc<str> {
        content_type.0
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Content-Type that is too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Content-Type has {bytes} bytes: at most {} are accepted", ContentType::BYTES_MAX)]
pub struct ContentTypeError {
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_has_at_most_256_bytes() {
        assert_eq!(ContentType::parse("image/png").unwrap().as_str(), "image/png");
        assert!(ContentType::parse("t".repeat(256)).is_ok());
        let error = ContentType::parse("t".repeat(257)).unwrap_err();
        assert_eq!(error.to_string(), "the Content-Type has 257 bytes: at most 256 are accepted");
    }
}
