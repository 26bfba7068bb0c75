//! Every error of the HTTP interface, in its one shape.

use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
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
        let mut response = super::reply::json(self.status, self.body().to_string().into_bytes());
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
        }
        response
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
            NodeError::Overloaded(_) => {
                ApiError { status: StatusCode::SERVICE_UNAVAILABLE, code: "overloaded", message }
            }
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
