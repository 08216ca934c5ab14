//! By which keys a webhook that comes again is known.

use axum::http::HeaderMap;
use outbox::job::accept::Idempotency;
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// Both count: the caller's key finds its job under another signed id, and the signed id finds it whatever stands in
/// the header, which is not signed and so anything in a replay.
pub(super) fn idempotency(
    signed_id: Option<String>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Option<Idempotency>, ApiError> {
    let Some(key) = idempotency_key(headers)?.or_else(|| signed_id.clone()) else { return Ok(None) };
    Ok(Some(Idempotency { key, signed_id, body_hash: Sha256::digest(body).into() }))
}

/// One key of 1 to 255 visible ASCII characters.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if values.next().is_some() || !(1..=255).contains(&key.len()) {
        let what = "Idempotency-Key must stand there once, with 1 to 255 visible characters";
        return Err(ApiError::InvalidField(what.to_owned()));
    }
    Ok(Some(key.to_owned()))
}
