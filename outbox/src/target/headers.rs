//! Which request headers a job may bring along. Pure; judged when a job is accepted and again before
//! every attempt, since SQL may have written it.

use std::collections::HashSet;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

/// Most headers, and most bytes of names and values together.
pub const MAX_HEADERS: usize = 32;
/// See [`MAX_HEADERS`].
pub const MAX_HEADER_BYTES: usize = 8_192;

/// Headers that belong to the connection (RFC 9110, section 7.6.1) or to the sender.
const RESERVED: [&str; 14] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
    "x-webhook-job-id",
    "x-webhook-attempt",
];

/// Why headers cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More than [`MAX_HEADERS`].
    #[error("headers: there are more than {MAX_HEADERS}")]
    TooMany,
    /// More than [`MAX_HEADER_BYTES`].
    #[error("headers: they are longer than {MAX_HEADER_BYTES} bytes")]
    TooLong,
    /// Not a header name.
    #[error("headers: a name is not a header name")]
    Name,
    /// Not a string.
    #[error("headers: every value must be a string")]
    NotText,
    /// A string that cannot stand in a header.
    #[error("headers: the value of {0} cannot be sent")]
    Value(HeaderName),
    /// Set by the connection or by the worker.
    #[error("headers: {0} is not the caller's to set")]
    Reserved(HeaderName),
    /// The same name in another spelling.
    #[error("headers: {0} stands there twice")]
    Twice(HeaderName),
}

/// Checks a job's headers and turns them into what is sent.
///
/// # Errors
/// They cannot be sent.
pub fn check(headers: &Map<String, Value>) -> Result<HeaderMap, HeaderError> {
    if headers.len() > MAX_HEADERS {
        return Err(HeaderError::TooMany);
    }
    let mut bytes = 0;
    let mut names = HashSet::new();
    let mut checked = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let text = value.as_str().ok_or(HeaderError::NotText)?;
        bytes += name.len() + text.len();
        let name = HeaderName::try_from(name).map_err(|_| HeaderError::Name)?;
        let value = HeaderValue::from_str(text).map_err(|_| HeaderError::Value(name.clone()))?;
        if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("webhook-") {
            return Err(HeaderError::Reserved(name));
        }
        if !names.insert(name.clone()) {
            return Err(HeaderError::Twice(name));
        }
        checked.insert(name, value);
    }
    if bytes > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLong);
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(headers: &Value) -> Result<HeaderMap, HeaderError> {
        check(headers.as_object().expect("an object"))
    }

    #[test]
    fn ordinary_headers_pass() {
        let headers = checked(&json!({ "X-Tenant": "a b", "content-type": "application/cloudevents+json" }));
        assert_eq!(headers.expect("they can be sent")["x-tenant"], "a b");
    }

    #[test]
    fn what_would_change_the_request_is_refused() {
        for name in ["Content-Length", "Transfer-Encoding", "Host", "Connection", "webhook-id", "X-Webhook-Attempt"] {
            assert!(matches!(checked(&json!({ name: "1" })), Err(HeaderError::Reserved(_))), "{name}");
        }
        assert_eq!(checked(&json!({ "x a": "1" })), Err(HeaderError::Name));
        assert_eq!(checked(&json!({ "x": 1 })), Err(HeaderError::NotText));
        assert!(matches!(checked(&json!({ "x": "1\r\ny: 2" })), Err(HeaderError::Value(_))));
        assert!(matches!(checked(&json!({ "x": "1", "X": "2" })), Err(HeaderError::Twice(_))));
        assert_eq!(checked(&json!({ "x": "v".repeat(MAX_HEADER_BYTES) })), Err(HeaderError::TooLong));
    }
}
