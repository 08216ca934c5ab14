//! A webhook whose every field can be used.

use std::ops::RangeInclusive;

use outbox::destination::Destination;
use outbox::signing::key::SigningKey;
use outbox::target::TargetPolicy;
use outbox::target::headers;
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::error::ApiError;
use crate::json;
use crate::model::NewWebhook;

/// Bounds of the fields, as they are in the database's constraints.
const MAX_ATTEMPTS: RangeInclusive<i64> = 1..=100;
const TIMEOUT_MS: RangeInclusive<i64> = 100..=300_000;
const ORDERING_KEY_BYTES: RangeInclusive<usize> = 1..=255;
const MAX_DELAY: Duration = Duration::days(366);

/// As it is to be stored.
#[derive(Debug)]
pub(super) struct CheckedWebhook {
    pub payload: String,
    pub client_url: String,
    pub destination: Destination,
    pub headers: Map<String, Value>,
    pub deliver_at: Option<OffsetDateTime>,
    pub max_attempts: Option<i32>,
    pub timeout_ms: Option<i32>,
    pub ordering_key: Option<String>,
    pub signing_key: Option<SigningKey>,
}

impl CheckedWebhook {
    /// Checks what was written, field by field.
    pub(super) fn check(written: &NewWebhook, targets: &TargetPolicy, now: OffsetDateTime) -> Result<Self, ApiError> {
        let client_url = json::string("client_url", written.client_url)?;
        let url = targets.accept_url(&client_url).map_err(|refused| {
            metrics::counter!("outhook_api_targets_refused_total", "reason" => refused.reason()).increment(1);
            invalid(format!("client_url: {refused}"))
        })?;
        Ok(Self {
            payload: payload(written.payload)?,
            destination: Destination::of(&url),
            client_url: url.into(),
            headers: written.headers.map(extra_headers).transpose()?.unwrap_or_default(),
            deliver_at: written.deliver_at.map(|value| deliver_at(value, now)).transpose()?.flatten(),
            max_attempts: written.max_attempts.map(|value| integer("max_attempts", value, MAX_ATTEMPTS)).transpose()?,
            timeout_ms: written.timeout_ms.map(|value| integer("timeout_ms", value, TIMEOUT_MS)).transpose()?,
            ordering_key: written.ordering_key.map(ordering_key).transpose()?,
            signing_key: written.signing_secret.map(signing_key).transpose()?,
        })
    }
}

fn invalid(what: impl Into<String>) -> ApiError {
    ApiError::InvalidField(what.into())
}

/// A string stands for its own text; an object or an array for the very bytes it is written with.
fn payload(value: &RawValue) -> Result<String, ApiError> {
    match value.get().as_bytes().first() {
        Some(b'{' | b'[') => Ok(value.get().to_owned()),
        Some(b'"') => {
            let text = json::string("payload", value)?;
            if text.contains('\0') {
                return Err(invalid("payload: it contains U+0000, which Postgres text cannot hold"));
            }
            Ok(text)
        }
        _ => Err(json::mismatch("payload", "a string, an object or an array", value)),
    }
}

fn extra_headers(value: &RawValue) -> Result<Map<String, Value>, ApiError> {
    let headers = json::strings("headers", value)?.into_iter().map(|(name, value)| (name, value.into())).collect();
    headers::check(&headers).map_err(|error| invalid(error.to_string()))?;
    Ok(headers)
}

/// A past moment means now, by the database's clock. So a year that Postgres cannot hold never gets there.
fn deliver_at(value: &RawValue, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, ApiError> {
    let moment = OffsetDateTime::parse(&json::string("deliver_at", value)?, &Rfc3339)
        .map_err(|_| invalid("deliver_at: it must be a moment as in 2026-01-31T12:00:00Z"))?;
    if moment - now > MAX_DELAY {
        return Err(invalid("deliver_at: it is more than 366 days ahead"));
    }
    Ok(Some(moment).filter(|moment| *moment > now))
}

fn integer(field: &str, value: &RawValue, allowed: RangeInclusive<i64>) -> Result<i32, ApiError> {
    Ok(json::integer(field, value, allowed)?.try_into().expect("what is allowed are 32 bits"))
}

fn ordering_key(value: &RawValue) -> Result<String, ApiError> {
    let key = json::string("ordering_key", value)?;
    if !ORDERING_KEY_BYTES.contains(&key.len()) || key.contains('\0') {
        return Err(invalid("ordering_key: it must be 1 to 255 bytes without U+0000"));
    }
    Ok(key)
}

fn signing_key(value: &RawValue) -> Result<SigningKey, ApiError> {
    let secret = SecretString::from(json::string("signing_secret", value)?);
    SigningKey::parse_standard(secret.expose_secret()).map_err(|error| invalid(format!("signing_secret: {error}")))
}
