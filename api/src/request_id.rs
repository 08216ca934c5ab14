//! An id for every request: in the answer's header, in an error's body and in the log.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderName, HeaderValue, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::error::{ApiError, Explanation};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request its id, writes the body of an error, and logs and counts the answer.
pub(crate) async fn identify(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = given(&request).unwrap_or_else(|| Uuid::now_v7().to_string());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();

    let mut response = if has_its_host(&request) {
        next.run(request).await
    } else {
        ApiError::MalformedHeader("there must be one Host header").into_response()
    };

    let status = response.status();
    let mut notable = status.is_server_error();
    if let Some(error) = response.extensions_mut().remove::<Explanation>() {
        notable = error.notable;
        *response.body_mut() = Body::from(error.to_json(&id));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Ok(value) = HeaderValue::try_from(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    if notable {
        warn!(request_id = id, %method, route, status = status.as_u16(), "request failed");
    } else {
        debug!(request_id = id, %method, route, status = status.as_u16(), "request");
    }
    let labels = [("route", route), ("status", status.as_str().to_owned())];
    metrics::counter!("outhook_api_requests_total", &labels).increment(1);
    metrics::histogram!("outhook_api_request_seconds").record(started.elapsed());
    response
}

/// Of several hosts, a proxy before us may go by another than we do (RFC 9112, section 3.2). HTTP/1.0 needs none.
fn has_its_host(request: &Request) -> bool {
    let hosts = request.headers().get_all(HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() == Version::HTTP_10)
}

/// The caller's own id, if it is one that can be logged and sent back as it is.
fn given(request: &Request) -> Option<String> {
    let id = request.headers().get(X_REQUEST_ID)?.to_str().ok()?;
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ((1..=128).contains(&id.len()) && id.bytes().all(harmless)).then(|| id.to_owned())
}
