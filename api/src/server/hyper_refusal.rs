//! Requests that hyper cannot read. It answers them by itself and without a body, so that is put in on the way out.

use axum::body::Bytes;
use uuid::Uuid;

use crate::error::{ApiError, Explanation};

/// The length of hyper's body, as it writes it.
const NO_BODY: &str = "content-length: 0\r\n";

/// hyper's answer with the body that every error has.
pub(crate) fn explained(answer: &[u8]) -> Bytes {
    let answer = String::from_utf8_lossy(answer);
    // The status stands behind `HTTP/1.1 `.
    let status = answer.get(9..12).unwrap_or_default();
    let error = match status {
        "414" => ApiError::UriTooLong,
        "431" => ApiError::HeadTooLarge,
        _ => ApiError::MalformedRequest,
    };
    let labels = [("route", "unknown".to_owned()), ("status", status.to_owned())];
    metrics::counter!("outhook_api_requests_total", &labels).increment(1);
    let id = Uuid::now_v7().to_string();
    let body = Explanation::from(&error).to_json(&id);
    let headers = format!("content-type: application/json\r\nx-request-id: {id}\r\ncontent-length: {}\r\n", body.len());
    (answer.replacen(NO_BODY, &headers, 1) + &body).into()
}
