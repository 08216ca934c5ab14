//! What a caller says in the body of `POST /webhooks`, checked field by field.

use outbox::headers;
use outbox::signing_key::SigningKey;
use outbox::target::{TargetPolicy, destination};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::error::ApiError;
use crate::json;

/// Bounds of the fields, as they are in the database's constraints.
const MAX_ATTEMPTS: std::ops::RangeInclusive<i64> = 1..=100;
const TIMEOUT_MS: std::ops::RangeInclusive<i64> = 100..=300_000;
const ORDERING_KEY_BYTES: std::ops::RangeInclusive<usize> = 1..=255;
const MAX_DELAY: Duration = Duration::days(366);

/// A request as it is to be stored.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub payload: String,
    pub client_url: String,
    pub destination: String,
    pub headers: Map<String, Value>,
    pub deliver_at: Option<OffsetDateTime>,
    pub max_attempts: Option<i32>,
    pub timeout_ms: Option<i32>,
    pub ordering_key: Option<String>,
    pub signing_key: Option<SigningKey>,
}

/// The fields as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
    client_url: String,
    #[serde(default)]
    headers: Option<Map<String, Value>>,
    #[serde(default)]
    deliver_at: Option<String>,
    #[serde(default)]
    max_attempts: Option<i64>,
    #[serde(default)]
    timeout_ms: Option<i64>,
    #[serde(default)]
    ordering_key: Option<String>,
    #[serde(default)]
    signing_secret: Option<SecretString>,
}

impl Envelope {
    /// Reads and checks a body. Malformed JSON is one error, a field that cannot be used another.
    pub(crate) fn read(body: &[u8], targets: &TargetPolicy, now: OffsetDateTime) -> Result<Self, ApiError> {
        let written: Written = json::read(body)?;
        let url = targets.check_url(&written.client_url).map_err(|refused| {
            metrics::counter!("outhook_api_targets_refused_total", "reason" => refused.reason()).increment(1);
            invalid(format!("client_url: {refused}"))
        })?;
        let headers = written.headers.unwrap_or_default();
        headers::check(&headers).map_err(|error| invalid(error.to_string()))?;
        Ok(Self {
            payload: payload(written.payload)?,
            client_url: written.client_url,
            destination: destination(&url),
            headers,
            deliver_at: match &written.deliver_at {
                Some(text) => deliver_at(text, now)?,
                None => None,
            },
            max_attempts: written.max_attempts.map(max_attempts).transpose()?,
            timeout_ms: written.timeout_ms.map(timeout_ms).transpose()?,
            ordering_key: written.ordering_key.map(ordering_key).transpose()?,
            signing_key: written.signing_secret.as_ref().map(signing_key).transpose()?,
        })
    }
}

fn invalid(what: impl Into<String>) -> ApiError {
    ApiError::InvalidField(what.into())
}

/// A string stands for its own text; an object or an array for the very bytes it is written with.
fn payload(raw: &RawValue) -> Result<String, ApiError> {
    match raw.get().as_bytes().first() {
        Some(b'{' | b'[') => Ok(raw.get().to_owned()),
        Some(b'"') => {
            let text: String = serde_json::from_str(raw.get()).map_err(|error| invalid(error.to_string()))?;
            if text.contains('\0') {
                return Err(invalid("payload: it contains U+0000, which Postgres text cannot hold"));
            }
            Ok(text)
        }
        _ => Err(invalid("payload: it must be a string, an object or an array")),
    }
}

/// A past moment means now, by the database's clock. So a year that Postgres cannot hold never gets there.
fn deliver_at(text: &str, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, ApiError> {
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| invalid("deliver_at: it must be a moment as in 2026-01-31T12:00:00Z"))?;
    if moment - now > MAX_DELAY {
        return Err(invalid("deliver_at: it is more than 366 days ahead"));
    }
    Ok(Some(moment).filter(|moment| *moment > now))
}

fn max_attempts(number: i64) -> Result<i32, ApiError> {
    match i32::try_from(number) {
        Ok(number) if MAX_ATTEMPTS.contains(&number.into()) => Ok(number),
        _ => Err(invalid("max_attempts: it must be from 1 to 100")),
    }
}

fn timeout_ms(number: i64) -> Result<i32, ApiError> {
    match i32::try_from(number) {
        Ok(number) if TIMEOUT_MS.contains(&number.into()) => Ok(number),
        _ => Err(invalid("timeout_ms: it must be from 100 to 300000")),
    }
}

fn ordering_key(key: String) -> Result<String, ApiError> {
    if !ORDERING_KEY_BYTES.contains(&key.len()) || key.contains('\0') {
        return Err(invalid("ordering_key: it must be 1 to 255 bytes without U+0000"));
    }
    Ok(key)
}

fn signing_key(secret: &SecretString) -> Result<SigningKey, ApiError> {
    SigningKey::parse_standard(secret.expose_secret()).map_err(|error| invalid(format!("signing_secret: {error}")))
}
