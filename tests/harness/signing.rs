//! Signing keys: made, set over HTTP, and what verifies with them, none of which shares code with the signer.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use receiver::Received;
use reqwest::Method;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde_json::Value;
use sha2::Sha256;
use uuid::Uuid;

use crate::client::{Response, send};
use crate::{Client, Stack, StackBuilder};

/// 32 random bytes as base64, a `SECRETS_KEY` for one.
#[must_use]
pub fn random_key() -> String {
    BASE64_STANDARD.encode([*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat())
}

/// A new symmetric key of Standard Webhooks.
#[must_use]
pub fn v1_key() -> String {
    format!("whsec_{}", random_key())
}

/// A new asymmetric one.
#[must_use]
pub fn v1a_key() -> String {
    format!("whsk_{}", random_key())
}

/// The same asymmetric key in its longer form: the seed, and the public key behind it.
#[must_use]
pub fn with_public_key(key: &str) -> String {
    let seed = BASE64_STANDARD.decode(key.strip_prefix("whsk_").expect("a private key")).expect("base64");
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed");
    format!("whsk_{}", BASE64_STANDARD.encode([&seed, pair.public_key().as_ref()].concat()))
}

/// A stack that can keep keys, whose receiver does not verify with the default one.
#[must_use]
pub fn stack() -> StackBuilder {
    Stack::builder().receiver_without_key().env("SECRETS_KEY", &random_key())
}

impl Client {
    /// `PUT /destinations/keys` with this body.
    pub async fn put_key(&self, body: &Value) -> Response {
        let request = self.authorized(Method::PUT, "/destinations/keys").header("Content-Type", "application/json");
        send(request.body(body.to_string())).await.expect("the api answers")
    }

    /// Sets a key that must be taken, and returns its id.
    pub async fn set_key(&self, client_url: &str, scheme: &str, secret: &str, overlap_sec: u32) -> String {
        let body = serde_json::json!({
            "client_url": client_url, "scheme": scheme, "secret": secret, "overlap_sec": overlap_sec,
        });
        let response = self.put_key(&body).await;
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()["key_id"].as_str().expect("an id").to_owned()
    }

    /// The keys of a URL's destination, as they are shown.
    pub async fn keys(&self, client_url: &str) -> Vec<Value> {
        let request = self.authorized(Method::GET, &format!("/destinations/keys?client_url={client_url}"));
        let response = send(request).await.expect("the api answers");
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()["keys"].as_array().expect("a list").clone()
    }

    /// Removes a key, which must be there.
    pub async fn remove_key(&self, id: &str) {
        let request = self.authorized(Method::DELETE, &format!("/destinations/keys/{id}"));
        let response = send(request).await.expect("the api answers");
        assert_eq!(response.status, 200, "{}", response.body);
    }
}

/// Whether whoever has this `whsec_…` accepts the delivery, by the specification's own library.
#[must_use]
pub fn verifies(key: &str, delivery: &Received) -> bool {
    let verifier = standardwebhooks::Webhook::new(key).expect("it is a key");
    verifier.verify(&delivery.body, &delivery.headers).is_ok()
}

/// Whether whoever has this `whpk_…` accepts the delivery: one signature must be of the exact bytes.
#[must_use]
pub fn verifies_publicly(key: &str, delivery: &Received) -> bool {
    let key = BASE64_STANDARD.decode(key.strip_prefix("whpk_").expect("a public key")).expect("base64");
    let header = |name| delivery.header(name).unwrap_or_default();
    let signed = [header("webhook-id"), ".", header("webhook-timestamp"), "."].concat();
    let signed = [signed.as_bytes(), &delivery.body].concat();
    let signatures = header("webhook-signature").split(' ').filter_map(|text| text.strip_prefix("v1a,"));
    let mut decoded = signatures.map(|text| BASE64_STANDARD.decode(text).expect("base64"));
    decoded.any(|signature| UnparsedPublicKey::new(&ED25519, &key).verify(&signed, &signature).is_ok())
}

/// What GitHub's scheme says of these bytes.
#[must_use]
pub fn github_signature(key: &str, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(hmac(key.as_bytes(), body)))
}

/// The three headers of Standard Webhooks, of a caller that has this secret.
#[must_use]
pub fn standard_headers(secret: &str, id: &str, timestamp: &str, body: &str) -> [(&'static str, String); 3] {
    let mac = BASE64_STANDARD.encode(hmac(secret.as_bytes(), format!("{id}.{timestamp}.{body}").as_bytes()));
    [
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp.to_owned()),
        ("webhook-signature", format!("v1,{mac}")),
    ]
}

fn hmac(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}
