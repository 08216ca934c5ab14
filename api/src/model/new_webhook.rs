//! `POST /webhooks`, as it is written.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What each field must be is said by whoever reads it, in JSON's words; and a payload is delivered byte for byte.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewWebhook<'a> {
    #[serde(borrow)]
    pub payload: &'a RawValue,
    #[serde(borrow)]
    pub client_url: &'a RawValue,
    #[serde(borrow, default)]
    pub headers: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub deliver_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub max_attempts: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub timeout_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub ordering_key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub signing_secret: Option<&'a RawValue>,
}
