//! Webhooks as their callers write them.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Accepted, Client, body};

/// A webhook that is to be posted. Its payload is `{}` unless said, and what else is not said is not in its body.
#[derive(Clone, Debug)]
pub struct Webhook {
    payload: String,
    client_url: String,
    fields: Map<String, Value>,
}

impl Webhook {
    /// One that goes there.
    #[must_use]
    pub fn to(client_url: &str) -> Self {
        Self { payload: "{}".to_owned(), client_url: client_url.to_owned(), fields: Map::new() }
    }

    /// JSON text, which stands in the body as it is.
    #[must_use]
    pub fn payload(mut self, payload: &str) -> Self {
        payload.clone_into(&mut self.payload);
        self
    }

    /// Attempts in all.
    #[must_use]
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.with("max_attempts", attempts)
    }

    /// The time of each attempt.
    #[must_use]
    pub fn timeout_ms(self, milliseconds: u32) -> Self {
        self.with("timeout_ms", milliseconds)
    }

    /// The key in whose order it is delivered.
    #[must_use]
    pub fn ordering_key(self, key: &str) -> Self {
        self.with("ordering_key", key)
    }

    /// When its first attempt is due.
    #[must_use]
    pub fn deliver_at(self, moment: OffsetDateTime) -> Self {
        self.with("deliver_at", moment.format(&Rfc3339).expect("the year has four digits"))
    }

    /// The key that signs it, instead of the destination's or the default one.
    #[must_use]
    pub fn signing_secret(self, secret: &str) -> Self {
        self.with("signing_secret", secret)
    }

    /// A header of its deliveries.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.fields.entry("headers").or_insert_with(|| Value::Object(Map::new()))[name] = value.into();
        self
    }

    fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// The body of its request.
    #[must_use]
    pub fn body(&self) -> String {
        let mut fields = String::new();
        for (name, value) in &self.fields {
            write!(fields, r#","{name}":{value}"#).expect("a string takes what is written to it");
        }
        body(&self.payload, &self.client_url, &fields)
    }
}

impl Client {
    /// Posts a webhook that must be accepted.
    pub async fn post_webhook(&self, webhook: &Webhook) -> Accepted {
        self.post_body(webhook.body(), &webhook.payload).await
    }
}

impl From<Webhook> for Vec<u8> {
    fn from(webhook: Webhook) -> Self {
        webhook.body().into_bytes()
    }
}
