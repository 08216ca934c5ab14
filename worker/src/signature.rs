//! Signing deliveries as Standard Webhooks 1.0.0 says: `v1`, HMAC-SHA256.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a key, as the specification bounds them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The keys to sign with: more than one while they are rotated.
#[derive(Clone)]
pub(crate) struct SigningKeys(Vec<Hmac<Sha256>>);

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} signing keys", self.0.len())
    }
}

impl SigningKeys {
    /// Reads `whsec_…[,whsec_…]`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(|key| parse_key(key.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// The `webhook-signature` header: a signature for each key, separated by spaces.
    ///
    /// `id` must not contain a `.`; `timestamp` is in seconds since 1970.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let sign = |key: &Hmac<Sha256>| {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

fn parse_key(text: &str) -> Result<Hmac<Sha256>, String> {
    let encoded = text.strip_prefix("whsec_").ok_or("a key must start with whsec_")?;
    let key = STANDARD.decode(encoded).map_err(|_| "what follows whsec_ must be base64")?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err("a key must have 24 to 64 bytes".to_owned());
    }
    Ok(Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From the specification's reference implementations.
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn signs_the_published_vector() {
        let keys = SigningKeys::parse(KEY).expect("it is the published key");
        let signature = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn signs_with_every_key_while_they_are_rotated() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let both = SigningKeys::parse(&format!("{other}, {KEY}")).expect("both are keys").sign("a", 1, b"x");
        let one = |key: &str| SigningKeys::parse(key).expect("it is a key").sign("a", 1, b"x");
        assert_eq!(both, format!("{} {}", one(&other), one(KEY)));
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
            let now = outbox::clock::now().unix_timestamp();
            let signature = SigningKeys::parse(&key).expect("it is a key").sign("job", now, body.as_bytes());
            let reference = standardwebhooks::Webhook::new(&key).expect("it is a key");
            prop_assert_eq!(reference.sign("job", now, body.as_bytes()).expect("it signs"), signature);
        }
    }
}
