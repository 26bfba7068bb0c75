//! Every error of the HTTP interface, in its one shape.

use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::reply::CONFINED;
use crate::node::NodeError;

/// An error as clients see it: `{"error","message","timestamp"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    /// What would be taken instead, where HTTP has a field for it.
    hint: Option<(HeaderName, &'static str)>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), hint: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn not_found(path: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {path}"))
    }

    /// `allowed` are the methods that would do, unless the router adds them.
    pub(super) fn method_not_allowed(message: impl Into<String>, allowed: Option<&'static str>) -> ApiError {
        let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        ApiError { hint: allowed.map(|methods| (ALLOW, methods)), ..error }
    }

    pub(super) fn not_acceptable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", message)
    }

    /// The body is in a format or coding that is not taken; `hint` is what is.
    pub(super) fn unsupported(
        message: impl Into<String>,
        hint: Option<(HeaderName, &'static str)>,
    ) -> ApiError {
        let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message);
        ApiError { hint, ..error }
    }

    pub(super) fn expectation(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::EXPECTATION_FAILED, "expectation_failed", message)
    }

    pub(super) fn not_implemented(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message)
    }

    pub(super) fn head_too_large() -> ApiError {
        let message = "the headers of the request are too long, or too many";
        ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", message)
    }

    pub(super) fn target_too_long() -> ApiError {
        ApiError::new(StatusCode::URI_TOO_LONG, "too_large", "the path of the request is too long")
    }

    /// `what` did not arrive in time.
    pub(super) fn timeout(what: &str) -> ApiError {
        let message = format!("{what} did not arrive in time");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(super) fn overloaded(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
    }

    /// The node is not a member yet.
    pub(super) fn joining(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "joining", message)
    }

    pub(super) fn internal(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
    }

    pub(super) fn body(&self) -> serde_json::Value {
        json!({
            "error": self.code,
            "message": self.message,
            "timestamp": jiff::Timestamp::now().to_string(),
        })
    }

    pub(super) fn to_response(&self) -> Response<Full<Bytes>> {
        let mut response =
            super::reply::json(self.status, self.body().to_string().into_bytes()).map(Full::new);
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            StatusCode::UNAUTHORIZED => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            // What else arrives is not worth reading.
            StatusCode::REQUEST_TIMEOUT => headers.insert(CONNECTION, HeaderValue::from_static("close")),
            _ => None,
        };
        if let Some((name, value)) = &self.hint {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    /// A whole answer, for where there is no HTTP layer to write one; the last of its connection.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let body = self.body().to_string();
        let confined: String = CONFINED.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let retry = if self.status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{retry}{confined}connection: close\r\n\r\n",
            self.status,
            body.len()
        );
        [head, body].concat().into_bytes()
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> ApiError {
        let message = error.to_string();
        match error {
            NodeError::TooLarge(_) => ApiError::too_large(message),
            NodeError::PreconditionFailed(_) => {
                ApiError::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", message)
            }
            NodeError::Overloaded(_) => ApiError::overloaded(message),
            NodeError::Joining(_) => ApiError::joining(message),
            NodeError::Undecided(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "undecided", message),
            NodeError::NodeNotFound(_) => ApiError::internal("node_not_found", message),
            NodeError::ForwardFailed(_) => ApiError::internal("forward_failed", message),
            NodeError::DecodeFailed(_) => ApiError::internal("decode_failed", message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        let (head, body) = self.to_response().into_parts();
        debug_assert!(head.headers.contains_key(CONTENT_TYPE));
        Response::from_parts(head, axum::body::Body::new(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_a_node_has_its_documented_error_status_and_shape() {
        let reason = || "why".to_string();
        for (failure, code, status) in [
            (NodeError::TooLarge(reason()), "too_large", 413),
            (NodeError::PreconditionFailed(reason()), "precondition_failed", 412),
            (NodeError::Overloaded(reason()), "overloaded", 503),
            (NodeError::Joining(reason()), "joining", 503),
            (NodeError::Undecided(reason()), "undecided", 503),
            (NodeError::NodeNotFound(reason()), "node_not_found", 500),
            (NodeError::ForwardFailed(reason()), "forward_failed", 500),
            (NodeError::DecodeFailed(reason()), "decode_failed", 500),
        ] {
            let error = ApiError::from(failure);
            let (body, response) = (error.body(), error.to_response());
            assert_eq!((&body["error"], &body["message"]), (&code.into(), &"why".into()));
            assert!(body["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), status == 503, "{code}");
        }
    }
}
