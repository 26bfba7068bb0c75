//! Every error of the HTTP interface, in its one shape.

use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::node::NodeError;

/// An error as clients see it: `{"error","message","timestamp"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::BAD_REQUEST, code: "invalid_request", message: message.into() }
    }

    pub(super) fn too_large(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::PAYLOAD_TOO_LARGE, code: "too_large", message: message.into() }
    }

    pub(super) fn not_found(path: &str) -> ApiError {
        let message = format!("there is nothing at {path}");
        ApiError { status: StatusCode::NOT_FOUND, code: "not_found", message }
    }

    pub(super) fn method_not_allowed(message: impl Into<String>) -> ApiError {
        ApiError {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            message: message.into(),
        }
    }

    pub(super) fn head_too_large() -> ApiError {
        ApiError {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            code: "too_large",
            message: "the headers of the request are too long, or too many".into(),
        }
    }

    pub(super) fn target_too_long() -> ApiError {
        let message = "the path of the request is too long".into();
        ApiError { status: StatusCode::URI_TOO_LONG, code: "too_large", message }
    }

    /// `what` did not arrive in time.
    pub(super) fn timeout(what: &str) -> ApiError {
        let message = format!("{what} did not arrive in time");
        ApiError { status: StatusCode::REQUEST_TIMEOUT, code: "timeout", message }
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::UNAUTHORIZED, code: "unauthorized", message: message.into() }
    }

    pub(super) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::FORBIDDEN, code: "forbidden", message: message.into() }
    }

    pub(super) fn overloaded(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::SERVICE_UNAVAILABLE, code: "overloaded", message: message.into() }
    }

    /// The node is not a member yet.
    pub(super) fn joining(message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::SERVICE_UNAVAILABLE, code: "joining", message: message.into() }
    }

    pub(super) fn internal(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::INTERNAL_SERVER_ERROR, code, message: message.into() }
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
        response
    }

    /// A whole answer, for where there is no HTTP layer to write one; the last of its connection.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let body = self.body().to_string();
        let retry = if self.status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
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
                ApiError { status: StatusCode::PRECONDITION_FAILED, code: "precondition_failed", message }
            }
            NodeError::Overloaded(_) => ApiError::overloaded(message),
            NodeError::Joining(_) => ApiError::joining(message),
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
