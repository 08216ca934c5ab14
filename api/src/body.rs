//! Reads a request's body: bounded in size and in time.

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::config::ServerConfig;
use crate::error::ApiError;

/// Refuses what is not plain JSON, before a byte of it is read.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::UnsupportedMediaType("the body must not have a Content-Encoding"));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::UnsupportedMediaType("the Content-Type must be application/json"));
    }
    Ok(())
}

/// Reads the whole body.
pub(crate) async fn read(headers: &HeaderMap, body: Body, config: &ServerConfig) -> Result<Bytes, ApiError> {
    let limit = config.max_body_bytes;
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > u64::from(limit)) {
        return Err(ApiError::BodyTooLarge(limit));
    }
    // The whole body, not a piece of it: a time-out that each byte renews never ends.
    let whole = timeout(config.body_timeout(), Limited::new(body, limit as usize).collect()).await;
    match whole {
        Err(_) => Err(ApiError::BodyTimeout),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge(limit)),
        Ok(Err(_)) => Err(ApiError::BodyBroken),
    }
}
