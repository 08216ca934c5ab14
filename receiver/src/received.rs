//! One request as it arrived.

use std::sync::atomic::{AtomicU16, Ordering};

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What the check of the three `webhook-*` headers found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// The signature fits the body, the id and a recent timestamp.
    Verified,
    /// The request carries no `webhook-signature`.
    Unsigned,
    /// The request is signed, and this receiver has no secret to check it with.
    Unchecked,
    /// The request is signed wrongly; the text says how.
    Invalid(String),
}

impl std::fmt::Display for Signature {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Verified => formatter.write_str("signature verified"),
            Self::Unsigned => formatter.write_str("unsigned"),
            Self::Unchecked => formatter.write_str("signature not checked (no secret)"),
            Self::Invalid(reason) => write!(formatter, "signature INVALID ({reason})"),
        }
    }
}

/// One POST, kept as it arrived.
#[derive(Debug)]
pub struct Received {
    /// Its place in the order of arrival, from 1.
    pub sequence: u64,
    /// When its last byte had arrived.
    pub at: OffsetDateTime,
    /// The path and the query string it was sent to.
    pub path_and_query: String,
    /// `X-Webhook-Job-Id`, when sent.
    pub job_id: Option<String>,
    /// `X-Webhook-Attempt`, when sent and a number.
    pub attempt: Option<u32>,
    /// `webhook-id`, when sent.
    pub webhook_id: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Bytes,
    /// What the check of the signature found.
    pub signature: Signature,
    /// The status sent back; 0 while none was.
    answered: AtomicU16,
}

impl Received {
    #[expect(clippy::disallowed_methods, reason = "the clock of whoever looks from outside, not of the service")]
    pub(crate) fn new(sequence: u64, parts: Parts, body: Bytes, signature: Signature) -> Self {
        Self {
            sequence,
            at: OffsetDateTime::now_utc(),
            path_and_query: path_and_query(&parts.uri),
            job_id: text(&parts.headers, "x-webhook-job-id"),
            attempt: text(&parts.headers, "x-webhook-attempt").and_then(|text| text.parse().ok()),
            webhook_id: text(&parts.headers, "webhook-id"),
            headers: parts.headers,
            body,
            signature,
            answered: AtomicU16::new(0),
        }
    }

    /// The status sent back. None while the answer is delayed, and for good when there was none or the
    /// sender hung up before it.
    #[must_use]
    pub fn status_answered(&self) -> Option<u16> {
        Some(self.answered.load(Ordering::Acquire)).filter(|&status| status != 0)
    }

    /// Whether the sender was told that all is well.
    #[must_use]
    pub fn answered_success(&self) -> bool {
        self.status_answered().is_some_and(|status| (200..300).contains(&status))
    }

    /// A header's value, when it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn note_answered(&self, status: u16) {
        self.answered.store(status, Ordering::Release);
    }

    /// What a retry of the same webhook has in common with its first attempt.
    pub(crate) fn identity(&self) -> Option<&str> {
        self.webhook_id.as_deref().or(self.job_id.as_deref())
    }

    /// Memory held, for the bound on what is kept. The constant stands for the header map's own tables.
    pub(crate) fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        1024 + headers + self.path_and_query.len() + self.body.len()
    }

    pub(crate) fn to_json(&self) -> Value {
        let headers: serde_json::Map<String, Value> = self
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
            .collect();
        json!({
            "sequence": self.sequence,
            "at": self.at.format(&Rfc3339).unwrap_or_default(),
            "path_and_query": self.path_and_query,
            "job_id": self.job_id,
            "attempt": self.attempt,
            "webhook_id": self.webhook_id,
            "headers": headers,
            "body": String::from_utf8_lossy(&self.body),
            "signature": self.signature.to_string(),
            "status_answered": self.status_answered(),
        })
    }
}

fn path_and_query(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
}
