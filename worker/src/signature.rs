//! Signing deliveries: as Standard Webhooks 1.0.0 says, `v1` (HMAC-SHA256) and `v1a` (Ed25519), and as GitHub does.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use outbox::signing::key::{KeyMaterial, Scheme, SigningKey};
use ring::signature::Ed25519KeyPair;
use sha2::Sha256;

/// The keys to sign with: more than one while they are rotated, the newest first.
#[derive(Clone)]
pub(crate) struct SigningKeys(Vec<Key>);

#[derive(Clone)]
enum Key {
    V1(Hmac<Sha256>),
    V1a(Arc<Ed25519KeyPair>),
    Github(Hmac<Sha256>),
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} signing keys", self.0.len())
    }
}

/// Values of the signing headers; not sent when `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signatures {
    /// `webhook-signature`: one for each key of Standard Webhooks, separated by spaces.
    pub standard: Option<String>,
    /// `X-Hub-Signature-256`. Its receivers know of one signature, so only the newest key signs.
    pub github: Option<String>,
}

impl SigningKeys {
    /// Reads `whsec_…[,whsec_…]`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let keys: Result<Vec<_>, _> = text.split(',').map(|key| SigningKey::parse(Scheme::V1, key.trim())).collect();
        Ok(Self::new(&keys?))
    }

    /// Keys that were read already, the newest first.
    pub(crate) fn new(keys: &[SigningKey]) -> Self {
        Self(keys.iter().map(Key::new).collect())
    }

    /// The headers of one signed attempt. Id and time are there also with a signature of GitHub's only: the id is what
    /// a receiver knows a repetition by.
    pub(crate) fn headers(&self, id: &str, timestamp: i64, body: &[u8]) -> Vec<(&'static str, String)> {
        let Signatures { standard, github } = self.sign(id, timestamp, body);
        let mut headers = vec![("webhook-id", id.to_owned()), ("webhook-timestamp", timestamp.to_string())];
        headers.extend(standard.map(|signatures| ("webhook-signature", signatures)));
        headers.extend(github.map(|signature| ("x-hub-signature-256", signature)));
        headers
    }

    /// Signs one attempt. `id` must not contain a `.`; `timestamp` is in seconds since 1970.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Signatures {
        let prefix = format!("{id}.{timestamp}.");
        let standard = self.0.iter().filter_map(|key| key.sign_standard(prefix.as_bytes(), body));
        let standard = standard.collect::<Vec<_>>().join(" ");
        Signatures {
            standard: Some(standard).filter(|signatures| !signatures.is_empty()),
            github: self.0.iter().find_map(|key| key.sign_github(body)),
        }
    }
}

impl Key {
    fn new(key: &SigningKey) -> Self {
        let hmac = |bytes: &[u8]| Hmac::new_from_slice(bytes).expect("HMAC takes keys of any length");
        match (key.material(), key.scheme()) {
            (KeyMaterial::Ed25519(pair), _) => Self::V1a(Arc::new(pair)),
            (KeyMaterial::Hmac(bytes), Scheme::Github) => Self::Github(hmac(&bytes)),
            (KeyMaterial::Hmac(bytes), _) => Self::V1(hmac(&bytes)),
        }
    }

    fn sign_standard(&self, prefix: &[u8], body: &[u8]) -> Option<String> {
        match self {
            Self::V1(key) => Some(format!("v1,{}", STANDARD.encode(mac(key, &[prefix, body])))),
            Self::V1a(pair) => Some(format!("v1a,{}", STANDARD.encode(pair.sign(&[prefix, body].concat())))),
            Self::Github(_) => None,
        }
    }

    fn sign_github(&self, body: &[u8]) -> Option<String> {
        match self {
            Self::Github(key) => Some(format!("sha256={}", hex::encode(mac(key, &[body])))),
            Self::V1(_) | Self::V1a(_) => None,
        }
    }
}

fn mac(key: &Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = key.clone();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::signature::{ED25519, KeyPair, UnparsedPublicKey};

    use super::*;

    /// From the specification's reference implementations.
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn keys(texts: &[(Scheme, &str)]) -> SigningKeys {
        let key = |(scheme, text): &(Scheme, &str)| SigningKey::parse(*scheme, text).expect("it is a key");
        SigningKeys::new(&texts.iter().map(key).collect::<Vec<_>>())
    }

    fn standard(keys: &SigningKeys, id: &str, timestamp: i64, body: &[u8]) -> String {
        keys.sign(id, timestamp, body).standard.expect("a key of Standard Webhooks is there")
    }

    #[test]
    fn signs_the_published_vectors() {
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let signatures = SigningKeys::parse(KEY).expect("it is the published key").sign(id, 1_614_265_330, body);
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned();
        assert_eq!(signatures, Signatures { standard: Some(expected), github: None });

        // GitHub's documentation, "Validating webhook deliveries".
        let signatures = keys(&[(Scheme::Github, "It's a Secret to Everybody")]).sign(id, 1, b"Hello, World!");
        let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17".to_owned();
        assert_eq!(signatures, Signatures { standard: None, github: Some(expected) });
        let headers = keys(&[(Scheme::Github, "It's a Secret to Everybody")]).headers(id, 1, b"Hello, World!");
        let names: Vec<&str> = headers.iter().map(|header| header.0).collect();
        assert_eq!(names, ["webhook-id", "webhook-timestamp", "x-hub-signature-256"]);
    }

    #[test]
    fn signs_with_every_key_while_they_are_rotated() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let both = SigningKeys::parse(&format!("{other}, {KEY}")).expect("both are keys");
        let one = |key: &str| standard(&SigningKeys::parse(key).expect("it is a key"), "a", 1, b"x");
        assert_eq!(standard(&both, "a", 1, b"x"), format!("{} {}", one(&other), one(KEY)));
    }

    #[test]
    fn each_scheme_goes_into_its_header_and_of_githubs_only_the_newest() {
        let seed = format!("whsk_{}", STANDARD.encode([3; 32]));
        let (new, old) = ((Scheme::Github, "the new key of all"), (Scheme::Github, "the old key of all"));
        let signatures = keys(&[new, (Scheme::V1a, &seed), old, (Scheme::V1, KEY)]).sign("a", 1, b"x");
        let kinds: Vec<String> =
            signatures.standard.iter().flat_map(|text| text.split(' ')).map(|it| it[..3].into()).collect();
        assert_eq!(kinds, ["v1a", "v1,"]);
        assert_eq!(signatures.github, keys(&[new]).sign("a", 1, b"x").github);
    }

    #[test]
    fn an_asymmetric_signature_verifies_over_the_exact_bytes_and_no_others() {
        let seed = [9; 32];
        let text = format!("whsk_{}", STANDARD.encode(seed));
        let signature = standard(&keys(&[(Scheme::V1a, &text)]), "msg_1", 1_614_265_330, b"{ }");
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").expect("v1a")).expect("base64");
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed");
        let verifies =
            |bytes: &[u8]| UnparsedPublicKey::new(&ED25519, pair.public_key()).verify(bytes, &signature).is_ok();
        assert!(verifies(b"msg_1.1614265330.{ }"));
        for other in [&b"msg_2.1614265330.{ }"[..], b"msg_1.1614265331.{ }", b"msg_1.1614265330.{}"] {
            assert!(!verifies(other));
        }
    }

    #[test]
    fn refuses_what_is_no_key_without_repeating_it() {
        for wrong in ["", "hunter2", "whsec_", "whsec_!!!", "whsec_aHVudGVyMg==", &format!("{KEY},")] {
            let error = SigningKeys::parse(wrong).expect_err(wrong);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        /// The `standardwebhooks` crate, written by the specification's authors, signs alike.
        #[test]
        fn the_reference_implementation_agrees(key in prop::collection::vec(any::<u8>(), 24..=64), body in any::<String>()) {
            let key = format!("whsec_{}", STANDARD.encode(key));
            let now = outbox::service::clock::now().unix_timestamp();
            let signature = standard(&SigningKeys::parse(&key).expect("it is a key"), "job", now, body.as_bytes());
            let reference = standardwebhooks::Webhook::new(&key).expect("it is a key");
            prop_assert_eq!(reference.sign("job", now, body.as_bytes()).expect("it signs"), signature);
        }
    }
}
