//! `PUT /destinations/keys`, as it is written.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What each field must be is said by whoever reads it, in JSON's words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSigningKey<'a> {
    #[serde(borrow, default)]
    pub client_url: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub destination: Option<&'a RawValue>,
    #[serde(borrow)]
    pub scheme: &'a RawValue,
    #[serde(borrow)]
    pub secret: &'a RawValue,
    #[serde(borrow, default)]
    pub overlap_sec: Option<&'a RawValue>,
}
